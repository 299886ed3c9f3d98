"""The run folder: write it, read it. Everything after training needs nothing else. `perdure.run_files` describes it.

Every file is written under a temporary name, synced and renamed. safetensors and JSON only: nothing is unpickled.
"""

import contextlib
import copy
import csv
import io
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from numpy import ndarray
from torch import nn

from perdure import files, lock, run_files, staging, task_folder
from perdure.errors import OutputError
from perdure.run_files import COLUMNS, reading
from perdure.snapshot import Snapshot
from perdure.task_folder import Learned

UNFINISHED = "unfinished.safetensors"


class Run:
    """A run folder.

    Raises
    ------
    RunError
        The folder is no run, or is damaged.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        self._recipe: tuple[Any, dict[str, Any]] | None = None
        run_files.check_run(self.folder)

    @classmethod
    def create(cls, folder: str | Path, recipe: Mapping[str, Any], environment: Mapping[str, Any]) -> "Run":
        """Make a new run folder.

        Raises
        ------
        RunError
            There is something in the folder already: nothing is ever overwritten.
        OutputError
            It cannot be written.
        """
        folder = Path(folder)
        try:
            if not _was_being_made(folder):
                staging.check_free(folder)
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(f"`{error.filename}` cannot be made: {error.strerror}.") from error
        with lock.held(folder):
            files.write(folder / "environment.json", files.to_json({"format": run_files.FORMAT, **environment}))
            files.write(folder / "recipe.yaml", files.to_yaml(recipe))  # the last: with it the folder is a run
        return cls(folder)

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """Hold the run, so that no other process writes it, and remove what dead ones left.

        Raises
        ------
        RunError
            Another process is writing it.
        """
        with lock.held(self.folder):
            for place in (self.folder, self.folder / "tasks"):
                staging.sweep(place)
            self._finish_forgetting()
            yield

    # -- the recipe

    @property
    def recipe(self) -> dict[str, Any]:
        """The resolved recipe."""
        path = self.folder / "recipe.yaml"
        with reading(path):
            status = path.stat()
            key = status.st_ino, status.st_mtime_ns, status.st_size
        if self._recipe is None or self._recipe[0] != key:
            self._recipe = key, run_files.whole_recipe(self.folder)
        return copy.deepcopy(self._recipe[1])

    @recipe.setter
    def recipe(self, value: Mapping[str, Any]) -> None:
        files.write(self.folder / "recipe.yaml", files.to_yaml(value))

    # -- tasks

    def task_folders(self) -> dict[str, Path]:
        """The folders of the tasks that are complete, by name, in the order in which they were learned."""
        return run_files.task_folders(self.folder, run_files.forgotten(self.recipe))

    @property
    def tasks(self) -> list[str]:
        """The names of the tasks learned."""
        return list(self.task_folders())

    def save_task(self, learned: Learned, *, base: str, head: tuple[str, nn.Linear] | None) -> Path:
        """Write a task's folder, all of it or nothing, and remove the state inside it, which is over.

        Raises
        ------
        OutputError
            The disk is full, or writing is not allowed.
        """
        place = self.folder / "tasks" / f"{len(self.tasks):02d}-{learned.name}"
        _remove(place)  # what may be there has no manifest: it counts for nothing
        task_folder.save(place, learned, base=base, head=head)
        self.drop_unfinished()
        return place

    def load_task(self, name: str) -> Learned:
        """Read a task's folder.

        Raises
        ------
        RunError
            A file is missing or is not what was written.
        """
        return task_folder.load(self.task_folders()[name], rank=self.recipe["method"].get("rank"))

    def save_unfinished(self, snapshot: Snapshot) -> None:
        """Write the state inside a task."""
        snapshot.save(self.folder / UNFINISHED)

    def load_unfinished(self) -> Snapshot | None:
        """The state inside the task that was being learned, if there is one.

        Raises
        ------
        RunError
            It is damaged.
        """
        path = self.folder / UNFINISHED
        with reading(path):
            return Snapshot.load(path) if path.exists() else None

    def drop_unfinished(self) -> None:
        """Remove the state inside a task."""
        _remove(self.folder / UNFINISHED)

    def remove_task(self, name: str) -> None:
        """Take the task that was learned last out of the run, with all that was measured of it."""
        self.drop_unfinished()
        self._drop_values({name}, step=len(self.tasks) - 1)
        _remove(self.task_folders()[name])  # the last: with it the task is gone

    def forget(self, name: str, recipe: Mapping[str, Any]) -> None:
        """Take a task out of the run: its folder, and all that was measured of it or with it.

        The moment that counts is the writing of the `recipe`, which has to list the task as `forgotten`; what is left
        to do should the process die then, the next one does.
        """
        self.recipe = recipe
        self._finish_forgetting()

    def _finish_forgetting(self) -> None:
        """Remove the folders of tasks that the recipe lists as forgotten, and what was measured with them."""
        gone = set(run_files.forgotten(self.recipe))
        present = run_files.task_folders(self.folder, [])
        left = [name for name in present if name in gone]
        if left:
            _remove(self.folder / "report.html")
            self.drop_unfinished()
        for name in reversed(left):
            self._drop_values({name}, step=list(present).index(name))
            self._combine_without(name)
            _remove(present[name])
        self._renumber()

    def _combine_without(self, name: str) -> None:
        """A scale that was found with a task is no longer the one to use."""
        if not self.tasks:
            return _remove(self.folder / "combined.json")
        rule, scales = self.combined(), self.combined()["options"].get("scale")
        if rule["candidates"]:
            rule["options"].pop("scale", None)
        elif isinstance(scales, dict):
            scales.pop(name, None)
            rule["options"]["scale"] = scales
        self.save_combined(rule | {"candidates": []})

    def _renumber(self) -> None:
        """Give the tasks' folders the numbers that they would have had without the others."""
        for number, (name, place) in enumerate(self.task_folders().items()):
            wanted = place.with_name(f"{number:02d}-{name}")
            if place != wanted:
                _moved(place, wanted)

    def _drop_values(self, names: set[str], *, step: int) -> None:
        """Drop what was measured after so many tasks, and every event of the tasks `names`."""
        rows = [row for row in self.scores() if row["step"] <= step and row["task"] not in names]
        self._write_scores(rows)
        kept = [e for e in self.events() if e.get("task") not in names and not _after(e, step)]
        files.write(self.folder / "events.jsonl", "".join(map(run_files.line, kept)))

    # -- values

    def add_scores(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Add measured values; one of the same step, task, scenario, task_id, rule and metric is replaced."""
        table = {_key(row): row for row in [*self.scores(), *rows]}
        self._write_scores(table.values())

    def _write_scores(self, rows: Iterable[Mapping[Any, Any]]) -> None:
        text = io.StringIO()
        writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        files.write(self.folder / "scores.csv", text.getvalue())

    def scores(self) -> list[dict[str, Any]]:
        """The rows of scores.csv: `step` tasks had been learned when `value` was measured on `task`."""
        return run_files.scores(self.folder)

    def matrix(self, rule: str | None = None, task_id: str = "posterior") -> Float[ndarray, "steps tasks"]:
        """The accuracy matrix R of a rule (by default the run's own): nan where nothing was measured."""
        rule, tasks = rule or self.combined()["label"], self.tasks
        R = np.full((len(tasks), len(tasks)), np.nan)
        for row in self.scores():
            known = row["task"] in tasks and 0 < row["step"] <= len(tasks)
            if known and row["rule"] == rule and row["task_id"] == task_id:
                R[row["step"] - 1, tasks.index(row["task"])] = row["value"]
        return R

    def event(self, values: Mapping[str, Any]) -> None:
        """Add one line to events.jsonl."""
        path = self.folder / "events.jsonl"
        try:
            files.append(path, run_files.line(dict(values)))
        except OSError as error:
            raise OutputError(f"`{path}` cannot be written: {error.strerror}. Finished tasks are kept.") from error

    def events(self) -> list[dict[str, Any]]:
        """The lines of events.jsonl."""
        return run_files.events(self.folder)

    def trim_events(self, task: str | None, step: int) -> None:
        """Drop the events of tasks that are not finished, but for the first steps of `task`; and of what has no scores.

        A process that was killed may have written more than it saved, and a part of a line.
        """
        learned = set(self.tasks)
        measured = {(row["step"], row["rule"]) for row in self.scores()}

        def counts(event: dict[str, Any]) -> bool:
            if event.get("event") == "evaluation":
                return (event.get("step"), event.get("rule")) in measured
            name = event.get("task")
            inside = event.get("event") == "step" and name == task and event.get("step", 0) <= step
            return name is None or name in learned or inside

        with reading(path := self.folder / "events.jsonl"):
            present = path.exists()
        if present:
            files.write(path, "".join(run_files.line(event) for event in self.events() if counts(event)))

    def save_combined(self, rule: Mapping[str, Any]) -> None:
        """Write how the adapters are combined now."""
        files.write(self.folder / "combined.json", files.to_json(rule))

    def combined(self) -> dict[str, Any]:
        """How the adapters are combined: name, options, space, since, and the candidates of a search."""
        return run_files.combined(self.folder)


def _was_being_made(folder: Path) -> bool:
    """Whether there is nothing in a folder but what a process leaves that dies while it makes a run."""
    names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    return all(name in (lock.NAME, "environment.json") or name.endswith(files.ENDING) for name in names)


def _key(row: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple(str(row[name]) for name in COLUMNS[:-1])


def _after(event: Mapping[str, Any], step: int) -> bool:
    """Whether an event is a measurement after more than so many tasks."""
    found = event.get("step")
    return event.get("event") == "evaluation" and isinstance(found, int) and found > step


def _remove(path: Path) -> None:
    """Remove a file or a folder; a folder disappears at once, under a name that counts for nothing.

    Raises
    ------
    OutputError
        It is not allowed.
    """
    try:
        if path.is_dir():
            hidden = path.with_name(f".{path.name}.{os.getpid()}{files.ENDING}")
            os.rename(path, hidden)
            files.sync(path.parent)
            shutil.rmtree(hidden)
        else:
            path.unlink(missing_ok=True)
    except OSError as error:
        raise OutputError(f"`{error.filename or path}` cannot be removed: {error.strerror}.") from error


def _moved(path: Path, place: Path) -> None:
    try:
        os.rename(path, place)
    except OSError as error:
        raise OutputError(f"`{path}` cannot be renamed: {error.strerror}.") from error
