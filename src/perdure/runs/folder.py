"""The run folder: write it, read it. Everything after training needs nothing else. `perdure.runs.layout` describes it.

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

from perdure import registry
from perdure.errors import OutputError, RunError
from perdure.learning.snapshot import Snapshot
from perdure.merging.rule_settings import label
from perdure.runs import layout, schema, sources, task_folder
from perdure.runs.layout import COLUMNS, UNFINISHED, is_there, reading
from perdure.runs.task_folder import Learned
from perdure.storage import files, lock, partial, staging


class Run:
    """A run folder.

    Parameters
    ----------
    trust
        Whether Python files that the folder names (a method, a rule or a benchmark of one's own) may be
        run, by all that is done with it in this process. They are run as they are then.

    Raises
    ------
    RunError
        The folder is no run, or is damaged.
    """

    def __init__(self, folder: str | Path, *, trust: bool = False):
        self.folder = Path(folder)
        self._recipe: tuple[Any, dict[str, Any]] | None = None
        layout.check_run(self.folder)
        if trust:
            registry.trust(layout.recipe(self.folder))

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
            _check_free(folder)
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(f"`{error.filename}` cannot be made: {error.strerror}.") from error
        with lock.held(folder):
            _check_free(folder)  # another process may have made it meanwhile
            files.write(folder / "environment.json", files.to_json({"format": layout.FORMAT, **environment}))
            files.write(folder / "recipe.yaml", files.to_yaml(recipe))  # the last: with it the folder is a run
        return cls(folder)

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """Hold the run, so that no other process writes it, and remove what dead ones left.

        Raises
        ------
        RunError
            Another process is writing it, or a file of it is a link.
        """
        layout.check_no_links(self.folder)
        with lock.held(self.folder):
            for place in (self.folder, self.folder / "tasks"):
                partial.sweep(place)
            self._finish_forgetting()
            self._drop_stale()
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
            self._recipe = key, layout.whole_recipe(self.folder)
        return copy.deepcopy(self._recipe[1])

    @recipe.setter
    def recipe(self, value: Mapping[str, Any]) -> None:
        files.write(self.folder / "recipe.yaml", files.to_yaml(value))

    @property
    def shares_head(self) -> bool:
        """Whether all tasks have one head (`training.heads`)."""
        return self.recipe["training"].get("heads") == "shared"

    # -- tasks

    def task_folders(self) -> dict[str, Path]:
        """The folders of the tasks that are complete, by name, in the order in which they were learned."""
        return layout.task_folders(self.folder, layout.forgotten(self.recipe))

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
        place = self.task_folders().get(name)
        if place is None:
            raise RunError(f"`{self.folder}` has no task `{name}`, or no longer.")
        return task_folder.load(place, rank=layout.innermost(self.recipe["method"]).get("rank"))

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
            if not path.exists():
                return None
            snapshot = Snapshot.load(path)
            layout.check(path, schema.Unfinished, snapshot.about)
            return snapshot

    def begun(self) -> str | None:
        """The name of the task that was being learned when the run was stopped, if its state was saved."""
        snapshot = self.load_unfinished()
        with reading(self.folder / UNFINISHED):
            return list(snapshot.about["belongs_to"]["tasks"])[-1] if snapshot else None

    def drop_unfinished(self) -> None:
        """Remove the state inside a task."""
        _remove(self.folder / UNFINISHED)

    def remove_task(self, name: str) -> None:
        """Take the task that was learned last out of the run, with all that was measured of it or with it."""
        self.drop_unfinished()
        self._drop_values(name, range(len(self.tasks)))
        self._drop_derived()
        _remove(self.task_folders()[name])  # with it the task is gone
        self._drop_derived()  # somebody may have written of it meanwhile

    def forget(self, name: str, recipe: Mapping[str, Any]) -> None:
        """Take a task out of the run: its folder, and all that was measured of it or with it.

        The moment that counts is the writing of the `recipe`, which has to list the task as `forgotten`; what is left
        to do should the process die then, the next one does.
        """
        self.recipe = recipe
        self._finish_forgetting()

    def _finish_forgetting(self) -> None:
        """Remove the folders of tasks that the recipe lists as forgotten, and what was measured with them."""
        gone = set(layout.forgotten(self.recipe))
        present = layout.task_folders(self.folder, [])
        left = [name for name in present if name in gone]
        if left:
            self._drop_derived()
            self.drop_unfinished()
        for name in reversed(left):  # before anything was learned, all heads of the stream were asked: no step 0
            self._drop_values(name, range(1, list(present).index(name) + 1))
            self._combine_without(name)
            _remove(present[name])
        self._renumber()
        if left:
            self._drop_derived()  # somebody may have written of them meanwhile
        recipe, count = self.recipe, len(self.tasks)
        traces = recipe.get("traces") or {}
        if any(place >= count for place in traces.values()):  # the tasks that had them are gone
            self.recipe = recipe | {"traces": {name: place for name, place in traces.items() if place < count}}

    def _drop_derived(self) -> None:
        """Remove what tells of tasks that are gone."""
        for name in layout.DERIVED:
            _remove(self.folder / name)

    def _drop_stale(self) -> None:
        """Remove what tells of tasks that are gone, and was written in the instant in which they went."""
        for name in sources.stale(self.folder):
            _remove(self.folder / name)

    def _combine_without(self, name: str) -> None:
        """A scale that was found with a task is no longer the one to use."""
        if not self.tasks or not is_there(self.folder / "combined.json"):
            return _remove(self.folder / "combined.json")
        rule = self.combined()
        options, scales = rule["options"], rule["options"].get("scale")
        if rule["candidates"]:  # a search: what it found before that task was learned is still true
            before = [event for event in self.events() if measured(event, rule["label"], len(self.tasks))]
            options.pop("scale", None)
            found = before[-1] if before else {"options": options, "candidates": []}
            self.save_combined(rule | {key: found[key] for key in ("options", "candidates")})
        elif isinstance(scales, dict) and scales.pop(name, None) is not None:
            named = label(rule["name"], options, rule["space"], rule["since"])
            self.save_combined(rule | {"label": named})

    def _renumber(self) -> None:
        """Give the tasks' folders the numbers that they would have had without the others."""
        for number, (name, place) in enumerate(self.task_folders().items()):
            wanted = place.with_name(f"{number:02d}-{name}")
            if place != wanted:
                _moved(place, wanted)

    def _drop_values(self, name: str, steps: range) -> None:
        """Drop every value and event of a task, and what was measured after other numbers of tasks than `steps`.

        So goes what was measured by a rule that names the task, which one with a scale for each does.
        """

        def counts(row: Mapping[str, Any]) -> bool:
            return row.get("step") in steps and f"'{name}':" not in str(row.get("rule"))

        self._write_scores(row for row in self.scores() if row["task"] != name and counts(row))
        kept = [e for e in self.events() if e.get("task") != name and (e.get("event") != "evaluation" or counts(e))]
        files.write(self.folder / "events.jsonl", "".join(map(layout.line, kept)))

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
        return layout.scores(self.folder)

    def matrix(self, rule: str | None = None, task_id: str = "posterior") -> Float[ndarray, "steps tasks"]:
        """The accuracy matrix R of a rule (by default the run's own): nan where nothing was measured."""
        rule, tasks = rule or self.combined()["label"], self.tasks
        R = np.full((len(tasks), len(tasks)), np.nan)
        for row in self.scores():
            known = row["task"] in tasks and 0 < row["step"] <= len(tasks)
            if known and row["rule"] == rule and row["task_id"] == task_id:
                R[row["step"] - 1, tasks.index(row["task"])] = row["value"]
        return R

    def accuracies(self, rule: str) -> dict[str, float]:
        """Return the average accuracy of a rule after the last task, for each way to know the task in which every task
        was measured.
        """
        tasks = self.tasks
        values: dict[str, dict[str, float]] = {}
        for row in self.scores():
            asked = row["rule"] == rule and row["metric"] == "accuracy" and row["step"] == len(tasks)
            if asked and row["task"] in tasks:
                values.setdefault(row["task_id"], {})[row["task"]] = row["value"]
        return {way: sum(of.values()) / len(tasks) for way, of in values.items() if len(of) == len(tasks)}

    def event(self, values: Mapping[str, Any]) -> None:
        """Add one line to events.jsonl."""
        path = self.folder / "events.jsonl"
        try:
            files.append(path, layout.line(dict(values)))
        except OSError as error:
            raise OutputError(f"`{path}` cannot be written: {error.strerror}. Finished tasks are kept.") from error

    def events(self) -> list[dict[str, Any]]:
        """The lines of events.jsonl."""
        return layout.events(self.folder)

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

        if is_there(path := self.folder / "events.jsonl"):
            files.write(path, "".join(layout.line(event) for event in self.events() if counts(event)))

    def save_combined(self, rule: Mapping[str, Any]) -> None:
        """Write how the adapters are combined now."""
        files.write(self.folder / "combined.json", files.to_json(rule))

    def save_answers(self, answers: Mapping[str, Any]) -> None:
        """Write how the test examples were answered at the last measurement."""
        files.write(self.folder / "answers.json", files.to_json(answers))

    def combined(self) -> dict[str, Any]:
        """How the adapters are combined: name, options, space, since, and the candidates of a search."""
        return layout.combined(self.folder)


def _check_free(folder: Path) -> None:
    """Raise `OutputError` if there is more than what a process leaves that dies while it makes a run."""
    with reading(folder):
        names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    if not all(name in (lock.NAME, "environment.json") or name.endswith(partial.ENDING) for name in names):
        staging.check_free(folder)


def _key(row: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple(str(row[name]) for name in COLUMNS[:-1])


def measured(event: Mapping[str, Any], label: str, step: int) -> bool:
    """Whether an event tells of a measurement by a rule, after so many tasks."""
    wanted = {"event": "evaluation", "rule": label, "step": step}
    return wanted.items() <= event.items() and {"options", "candidates"} <= event.keys()


def _remove(path: Path) -> None:
    """Remove a file or a folder; a folder disappears at once, under a name that counts for nothing.

    A link is not followed, and not removed either: what it points to may tell of what was to be removed.

    Raises
    ------
    OutputError
        It is not allowed, or it is a link.
    """
    with files.refusing(path, verb="removed"):
        if path.is_symlink():
            raise OutputError(
                f"`{path}` is a link, which is not followed. Remove it, and what it points to if need be."
            )
        if not path.is_dir():
            path.unlink(missing_ok=True)
            return
        hidden = partial.new_path(path.parent)
        os.rename(path, hidden)
        files.sync_names(path.parent)
        shutil.rmtree(hidden)


def _moved(path: Path, place: Path) -> None:
    with files.refusing(path, verb="renamed"):
        os.rename(path, place)
