"""The folder of a sweep, read and written without torch.

sweep.json    the recipe that all trials have in common, further rules, and all trials
trials.jsonl  the outcome of each trial, a line each; the last line of a trial counts
runs/         the run folder of each trial
features/     features of frozen backbones, which the trials share; may be deleted
log.txt       what the processes of the executor `local` printed
report.html   derived, may be deleted
lock.json     the process that performs the sweep, if any
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from perdure.errors import CheckpointError, RunError
from perdure.runs.layout import is_run, is_there
from perdure.storage import files

SWEEP = "sweep.json"
OUTCOMES = "trials.jsonl"
LOG = "log.txt"
FEATURES = "features"
FORMAT = 1

Record = dict[str, Any]
"""A JSON object from a sweep's folder."""


@dataclass(frozen=True)
class Entry:
    """A trial as the folder describes it.

    Attributes
    ----------
    label
        What distinguishes the trial from others, without its seeds.
    run
        Its run folder, which may not exist yet.
    outcome
        The last outcome that was recorded; empty if there is none.
    """

    name: str
    label: str
    settings: Record
    run: Path
    outcome: Record

    @property
    def finished(self) -> bool:
        """True if the trial was finished and its run still exists."""
        return self.outcome.get("state") == "finished" and is_run(self.run)

    @property
    def failed(self) -> bool:
        """True if the trial failed the last time."""
        return self.outcome.get("state") == "failed"


def is_sweep(folder: Path) -> bool:
    """Return True if a folder contains a sweep; raise `RunError` if it cannot be read."""
    return is_there(folder / SWEEP)


def run_folder(folder: Path, trial: str) -> Path:
    """Return the run folder of a trial."""
    return folder / "runs" / trial


def about(folder: Path) -> Record:
    """Return the content of `sweep.json`.

    Raises
    ------
    RunError
        The file is missing or damaged, or has an unknown format.
    """
    path = folder / SWEEP
    try:
        record = files.read_json(path)
    except CheckpointError as error:
        raise RunError(f"`{folder}` is not a sweep that can be read: {error}") from error
    if record.get("format") != FORMAT:
        raise RunError(
            f"`{folder}` is a sweep of format {str(record.get('format'))[:20]}; this version of "
            f"perdure reads format {FORMAT}."
        )
    trials = record.get("trials")
    whole = isinstance(trials, list) and all(_is_trial(trial) for trial in trials)
    if not whole:
        raise RunError(f"`{path}` has no list of trials. It is damaged or was changed.")
    return record


def _is_trial(trial: object) -> bool:
    """Return True if a trial has a name that is safe as the name of a folder."""
    if not isinstance(trial, dict) or not isinstance(trial.get("settings"), dict):
        return False
    name = trial.get("name")
    named = isinstance(name, str) and isinstance(trial.get("label"), str)
    return named and bool(name) and Path(name).name == name and name not in (".", "..")


def entries(folder: Path) -> list[Entry]:
    """Return all trials of a sweep, in order, each with its last outcome."""
    outcomes = _outcomes(folder)
    made = []
    for trial in about(folder)["trials"]:
        name = trial["name"]
        entry = Entry(
            name=name,
            label=trial["label"],
            settings=trial["settings"],
            run=run_folder(folder, name),
            outcome=outcomes.get(name, {}),
        )
        made.append(entry)
    return made


def _outcomes(folder: Path) -> dict[str, Record]:
    """Return the last outcome of each trial, by the trial's name."""
    path = folder / OUTCOMES
    if not path.exists():
        return {}
    outcomes = {}
    for line in files.read_lines(path):
        # the last line is incomplete if the process was killed
        if line.endswith(b"\n") and line.strip():
            record = files.parse_json(line, f"a line of `{path}`")
            outcomes[str(record.get("trial"))] = record
    return outcomes


def write(folder: Path, record: Record) -> None:
    """Write `sweep.json`."""
    files.write(folder / SWEEP, json.dumps(record | {"format": FORMAT}, indent=1) + "\n")


def append(folder: Path, outcome: Record) -> None:
    """Record the outcome of a trial."""
    with files.refusing(folder / OUTCOMES):
        files.append(folder / OUTCOMES, json.dumps(outcome) + "\n")
