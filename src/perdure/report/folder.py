"""A run folder's files as plain values, read without torch (`perdure.runs.layout` describes them).

Of a run that is damaged, or that is being written, as much is read as there is, and what is missing is named.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from perdure.errors import RunError
from perdure.runs import layout
from perdure.runs.sources import Sources
from perdure.storage import lock

T = TypeVar("T")


@dataclass(frozen=True)
class Files:
    """What a report needs of a run folder.

    Attributes
    ----------
    combined
        The rule as it was last applied, empty if no task was finished.
    tasks
        Name, number of classes, bytes on disk and SHA-256 of the manifest of each complete task, in the order of
        learning.
    problems
        A sentence for each file that is missing or cannot be understood.
    running
        Whether a process is writing the run.
    """

    folder: Path
    recipe: dict[str, Any]
    environment: dict[str, Any]
    scores: list[dict[str, Any]]
    events: list[dict[str, Any]]
    combined: dict[str, Any]
    tasks: list[dict[str, Any]]
    answers: layout.Answers
    diagnostics: dict[str, Any]
    problems: list[str]
    running: bool


def read(folder: str | Path) -> Files:
    """Read a run folder.

    Raises
    ------
    RunError
        It is not a run, or one of a format that is not known here.
    """
    folder = Path(folder)
    problems: list[str] = []

    def tried(read: Callable[..., T], usual: T, *values: Any) -> T:
        try:
            return read(*values)
        except RunError as error:
            problems.append(str(error))
            return usual

    sources = Sources.readable(folder)  # before anything is read that may be forgotten meanwhile
    environment = tried(layout.environment, {}, folder)
    if not problems:  # its format is known then, or wrong
        layout.check_run(folder)
    elif not layout.is_run(folder):
        raise RunError(f"`{folder}` is not a run: it has no `recipe.yaml`.")
    recipe = tried(layout.recipe, {}, folder)
    forgotten = layout.forgotten(recipe)
    places = tried(layout.task_folders, {}, folder, forgotten)
    names = (
        "environment.json",
        "events.jsonl",
        "combined.json",
    )  # without scores.csv nothing is measured yet
    there = {name: tried(layout.is_there, True, folder / name) for name in names}
    for name in names:
        if not there[name] and (places or name != "combined.json"):
            problems.append(_missing(folder, name))
    scores, events = tried(layout.scores, [], folder), tried(layout.events, [], folder)
    tasks = {name: tried(_task, _unknown(name), name, place) for name, place in places.items()}
    for name in _learned(recipe, scores, events):
        if name not in tasks and name not in forgotten:
            problems.append(
                f"`{folder / 'tasks'}` has no whole folder of task `{name}`, which was learned."
            )
            tasks[name] = _unknown(name)
    return Files(
        folder=folder,
        recipe=recipe,
        environment=environment,
        scores=scores,
        events=events,
        combined=tried(layout.combined, {}, folder) if there["combined.json"] else {},
        tasks=[task | {"manifest": sources.tasks.get(task["name"])} for task in tasks.values()],
        answers=tried(layout.answers, {}, folder),
        diagnostics=tried(layout.diagnostics, {}, folder),
        problems=list(dict.fromkeys(problems)),
        running=lock.holder(folder) is not None,
    )


def _missing(folder: Path, name: str) -> str:
    why = {
        "events.jsonl": "losses and times are not known",
        "combined.json": "the rule is not known. `perdure evaluate RUN` writes it",
        "environment.json": "it is not known with which versions this was run",
    }
    return f"`{folder / name}` is missing: {why[name].replace('RUN', str(folder))}."


def _learned(
    recipe: dict[str, Any], scores: list[dict[str, Any]], events: list[dict[str, Any]]
) -> list[str]:
    """The tasks of which a run says that they were learned: of tasks to come there may be scores, too."""
    evaluation = recipe.get("evaluation")
    future = isinstance(evaluation, dict) and evaluation.get("future")
    rows = (
        []
        if future
        else sorted((row for row in scores if row["step"] > 0), key=lambda row: row["step"])
    )
    names = [event.get("task") for event in events if event.get("event") == "task"] + [
        row["task"] for row in rows
    ]
    return [name for name in dict.fromkeys(names) if name]


def _unknown(name: str) -> dict[str, Any]:
    return {"name": name, "classes": None, "bytes": None}


def _task(name: str, place: Path) -> dict[str, Any]:
    size = sum(file["size"] for file in layout.manifest(place).values())
    return {"name": name, "classes": len(layout.task(place)["classes"]) or None, "bytes": size}
