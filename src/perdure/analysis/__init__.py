"""Diagnostics of why tasks interfere, how features change, and how well a run recognises tasks.

Each of these files computes one diagnostic, which the file of the same name in
`perdure.report.diagnostics` displays:

interference.py   pairs of task vectors: cosines, shared subspaces and sign conflicts
zones.py          the energy of weight changes along the pre-trained weights' singular vectors
cka.py            the similarity of the features of two models
probe.py          linear classifiers trained on frozen features
posterior.py      confusion between tasks, and the calibration of task and class probabilities

The other files:

diagnose.py       computes the diagnostics of a run: `perdure diagnose`
hidden.py         the hidden states of each layer, one vector per example
shared.py         task vectors, plain numbers, and the exception that skips a diagnostic
subject.py        the run to diagnose, with its models and examples

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
