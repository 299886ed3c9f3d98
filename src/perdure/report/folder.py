"""The files of a run folder as plain values, read without torch.

`perdure.runs.layout` describes the files. A run that is damaged, or still being written,
is read as far as possible, and the missing files are named.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TypeVar

from perdure.errors import RunError
from perdure.evaluation.metrics import is_score
from perdure.report.plain import Record
from perdure.runs import derived, layout
from perdure.runs.sources import Sources
from perdure.storage import lock

T = TypeVar("T")

# Without `scores.csv`: if it is missing, nothing has been measured yet, which is not an error.
EXPECTED = ("environment.json", "events.jsonl", "combined.json")


@dataclass(frozen=True)
class Files:
    """The contents of a run folder that a report needs.

    Attributes
    ----------
    combined
        The rule as it was last applied; empty if no task is finished.
    tasks
        The name, the number of classes, the bytes on disk and the SHA-256 of the manifest
        of each task, in the order in which the tasks were learned. Unknown values are
        None.
    caught
        The share of unknown inputs that were caught, by the name of the score (see
        `perdure.runs.derived.caught`).
    problems
        A sentence for each file that is missing or cannot be read.
    running
        True if a process is writing the run at the moment.
    """

    folder: Path
    recipe: Record
    environment: Record
    scores: list[Record]
    events: list[Record]
    combined: Record
    tasks: list[Record]
    answers: derived.Answers
    caught: dict[str, list[float]]
    diagnostics: Record
    problems: list[str]
    running: bool

    @cached_property
    def score_names(self) -> dict[str, str]:
        """The name of the score with which each task was measured; the last one if several were."""
        names = {}
        for row in self.scores:
            if is_score(row):
                names[row["task"]] = row["metric"]
        return names


def read(folder: str | Path) -> Files:
    """Read the files of a run folder, as far as possible.

    Raises
    ------
    RunError
        The folder is not a run, or has an unknown format.
    """
    folder = Path(folder)
    problems: list[str] = []

    def tried(read: Callable[..., T], default: T, *values: object) -> T:
        # A file that cannot be read is a problem to report, but not a reason to show nothing.
        try:
            return read(*values)
        except RunError as error:
            problems.append(str(error))
            return default

    # This comes first, so that a task that is forgotten during the rest is noticed at the end.
    sources = Sources.readable(folder)
    environment = tried(layout.environment, {}, folder)
    # The format is in `environment.json`. If that is damaged, the rest is still worth showing.
    if not problems:
        layout.check_run(folder)
    elif not layout.is_run(folder):
        raise RunError(f"`{folder}` is not a run: it has no `recipe.yaml`.")
    recipe = tried(layout.recipe, {}, folder)
    forgotten = layout.forgotten(recipe)
    task_folders = tried(layout.task_folders, {}, folder, forgotten)
    there = {name: tried(layout.is_there, True, folder / name) for name in EXPECTED}
    problems += _missing(folder, there, combined=bool(task_folders))
    scores = tried(layout.scores, [], folder)
    events = tried(layout.events, [], folder)

    tasks: dict[str, Record] = {}
    for name, task_folder in task_folders.items():
        tasks[name] = tried(_task, _unknown(name), name, task_folder)
    for name in _learned(recipe, scores, events):
        if name not in tasks and name not in forgotten:
            problems.append(
                f"`{folder / 'tasks'}` has no complete folder for the learned task `{name}`."
            )
            tasks[name] = _unknown(name)
    combined: Record = {}
    if there["combined.json"]:
        combined = tried(layout.combined, {}, folder)
    return Files(
        folder=folder,
        recipe=recipe,
        environment=environment,
        scores=scores,
        events=events,
        combined=combined,
        tasks=[task | {"manifest": sources.tasks.get(task["name"])} for task in tasks.values()],
        answers=tried(derived.answers, {}, folder),
        caught=tried(_caught, {}, folder, combined, len(tasks)),
        diagnostics=tried(derived.diagnostics, {}, folder),
        # A damaged file may be read more than once.
        problems=list(dict.fromkeys(problems)),
        running=lock.holder(folder) is not None,
    )


def _caught(folder: Path, combined: Record, step: int) -> dict[str, list[float]]:
    # The rule or the number of tasks may have changed since they were last measured.
    return derived.caught(folder, rule=combined.get("label"), step=step)


def _missing(folder: Path, there: dict[str, bool], *, combined: bool) -> list[str]:
    """Return a sentence for each missing file; `combined.json` exists once a task is finished."""
    consequences = {
        "environment.json": "the versions used for the run are not known",
        "events.jsonl": "losses and times are not known",
        "combined.json": f"the rule is not known. `perdure evaluate {folder}` writes it",
    }
    sentences = []
    for name, consequence in consequences.items():
        if not there[name] and (combined or name != "combined.json"):
            sentences.append(f"`{folder / name}` is missing: {consequence}.")
    return sentences


def _learned(recipe: Record, scores: list[Record], events: list[Record]) -> list[str]:
    """Return the names of the tasks that were learned, according to the events and the scores."""
    names = []
    for event in events:
        if event.get("event") == "task":
            names.append(event.get("task"))
    evaluation = recipe.get("evaluation")
    future = isinstance(evaluation, dict) and evaluation.get("future")
    # With `future`, tasks that are not learned yet have scores, too, so scores prove nothing.
    if not future:
        rows = [row for row in scores if row["step"] > 0 and is_score(row)]
        rows.sort(key=lambda row: row["step"])
        names += [row["task"] for row in rows]
    return [name for name in dict.fromkeys(names) if name]


def _unknown(name: str) -> Record:
    return {"name": name, "classes": None, "bytes": None}


def _task(name: str, folder: Path) -> Record:
    size = sum(file["size"] for file in layout.manifest(folder).values())
    classes = len(layout.task(folder)["classes"])
    return {"name": name, "classes": classes or None, "bytes": size}
