"""Diagnostics: why tasks interfere, how features move, how well a run recognises the task.

One file is one diagnostic; the file of the same name in `perdure.report.diagnostics` shows it:

interference.py   task vectors, pair by pair: cosine, common subspaces, conflicts of sign
zones.py          where in the pre-trained weights' own directions a change lies
cka.py            how alike two models' features are
probe.py          a fresh linear classifier on frozen features
posterior.py      confusion of the tasks, and how well calibrated tasks and classes are

They build on:

diagnose.py       all of them for a run: `perdure diagnose`
hidden.py         the hidden states of each layer, one vector per example
shared.py         task vectors, plain numbers, and the reason to leave a diagnostic out
subject.py        a run with everything that a diagnosis needs

The measures are pure functions.
"""

from perdure.analysis.cka import UnbiasedCKA, cka
from perdure.analysis.hidden import hidden_states
from perdure.analysis.interference import Pairwise, cosines, norms, overlaps, sign_conflicts
from perdure.analysis.probe import Probe, plasticity, stability
from perdure.analysis.zones import Zones
from perdure.evaluation.calibration import (
    Bin,
    confusion,
    expected_calibration_error,
    reliability,
)

__all__ = [
    "Bin",
    "Pairwise",
    "Probe",
    "UnbiasedCKA",
    "Zones",
    "cka",
    "confusion",
    "cosines",
    "expected_calibration_error",
    "hidden_states",
    "norms",
    "overlaps",
    "plasticity",
    "reliability",
    "sign_conflicts",
    "stability",
]
