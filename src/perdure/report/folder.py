"""A run folder's files as plain values, read without torch (`perdure.run_files` describes them)."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from perdure import run_files
from perdure.errors import RunError


@dataclass(frozen=True)
class Files:
    """What a report needs of a run folder.

    Attributes
    ----------
    combined
        The rule as it was last applied, empty if no task was finished.
    tasks
        Name, number of classes and bytes on disk of each complete task, in the order of learning.
    """

    folder: Path
    recipe: dict[str, Any]
    environment: dict[str, Any]
    scores: list[dict[str, Any]]
    events: list[dict[str, Any]]
    combined: dict[str, Any]
    tasks: list[dict[str, Any]]


def read(folder: str | Path) -> Files:
    """Read a run folder.

    Raises
    ------
    RunError
        A file is missing or cannot be understood; the message names it.
    """
    folder = Path(folder)
    run_files.check_run(folder)
    if not run_files.is_there(path := folder / "scores.csv"):
        raise RunError(
            f"`{path}` is missing: nothing was measured yet. If the run was stopped, go on with `perdure run {folder}`."
        )
    recipe = run_files.recipe(folder)
    places = run_files.task_folders(folder, run_files.forgotten(recipe))
    return Files(
        folder=folder,
        recipe=recipe,
        environment=run_files.environment(folder),
        scores=run_files.scores(folder),
        events=run_files.events(folder),
        combined=run_files.combined(folder) if run_files.is_there(folder / "combined.json") else {},
        tasks=[_task(name, place) for name, place in places.items()],
    )


def _task(name: str, place: Path) -> dict[str, Any]:
    size = sum(file["size"] for file in run_files.manifest(place).values())
    return {"name": name, "classes": len(run_files.task(place)["classes"]) or None, "bytes": size}
