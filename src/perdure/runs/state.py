"""A run folder, read once: a value. `perdure.runs.layout` says what is in its files."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from perdure import registry
from perdure.errors import RunError
from perdure.evaluation.system import Learned
from perdure.learning.snapshot import Snapshot
from perdure.runs import layout, schema, task_folder
from perdure.runs.layout import UNFINISHED, reading


@dataclass(frozen=True)
class RunState:
    """A run folder as it was when it was read.

    The recipe and the names of the tasks are read at once, every other file when it is first asked
    for; none is read twice.

    Attributes
    ----------
    recipe
        The resolved recipe.
    places
        The folders of the tasks that are complete, by name, in the order in which they were learned.
    """

    folder: Path
    recipe: dict[str, Any]
    places: dict[str, Path]

    @property
    def tasks(self) -> list[str]:
        """The names of the tasks learned."""
        return list(self.places)

    @property
    def shares_head(self) -> bool:
        """True if all tasks have one head (`training.heads`)."""
        return self.recipe["training"].get("heads") == "shared"

    @property
    def made_in_python(self) -> bool:
        """True if the stream was made in Python, so that the recipe cannot make it again."""
        stream = self.recipe["stream"]
        return isinstance(stream, dict) and "tasks_made_in_python" in stream

    @cached_property
    def learned(self) -> tuple[Learned, ...]:
        """All that is kept of the tasks learned, in order.

        Raises
        ------
        RunError
            A file is missing or is not what was written.
        """
        return tuple(self.load_task(name) for name in self.tasks)

    def load_task(self, name: str) -> Learned:
        """Read a task's folder.

        Raises
        ------
        RunError
            There is no such task, or a file is missing or is not what was written.
        """
        place = self.places.get(name)
        if place is None:
            raise RunError(f"`{self.folder}` has no task `{name}`, or no longer.")
        return task_folder.load(place, rank=layout.innermost(self.recipe["method"]).get("rank"))

    @cached_property
    def unfinished(self) -> Snapshot | None:
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

    @property
    def begun(self) -> str | None:
        """The name of the task that was being learned when the run was stopped, if its state was saved."""
        with reading(self.folder / UNFINISHED):
            return (
                list(self.unfinished.about["belongs_to"]["tasks"])[-1] if self.unfinished else None
            )

    @cached_property
    def stands_on_a_model(self) -> bool:
        """True if something was learned already, which fits the pre-trained model of then only."""
        return bool(self.places) or layout.is_there(self.folder / UNFINISHED)

    @cached_property
    def scores(self) -> list[dict[str, Any]]:
        """The rows of scores.csv: `step` tasks had been learned when `value` was measured on `task`."""
        return layout.scores(self.folder)

    @cached_property
    def combined(self) -> dict[str, Any]:
        """How the adapters are combined: name, options, space, since, and the candidates of a search.

        Raises
        ------
        RunError
            No task was finished, or the file is damaged.
        """
        return layout.combined(self.folder)

    @cached_property
    def searches(self) -> list[dict[str, Any]]:
        """The result of each search for a scale: `rule` (its label), `step`, `options` and `candidates`."""
        return layout.searches(self.folder)

    def found(self, label: str, step: int) -> dict[str, Any] | None:
        """Return what a rule's search found after `step` tasks: its `options` and `candidates`."""
        for search in self.searches:
            if (search["rule"], search["step"]) == (label, step):
                return search
        return None

    def matrix(
        self, rule: str | None = None, task_id: str = "posterior"
    ) -> Float[ndarray, "steps tasks"]:
        """Return the accuracy matrix R of a rule, by default the run's own: nan where nothing was measured."""
        rule = rule or self.combined["label"]
        R = np.full((len(self.tasks), len(self.tasks)), np.nan)
        for row in self.scores:
            known = row["task"] in self.tasks and 0 < row["step"] <= len(self.tasks)
            if known and row["rule"] == rule and row["task_id"] == task_id:
                R[row["step"] - 1, self.tasks.index(row["task"])] = row["value"]
        return R

    def accuracies(self, rule: str) -> dict[str, float]:
        """Return the average accuracy of a rule after the last task, for each way to know the task in which every task
        was measured.
        """
        tasks = self.tasks
        values: dict[str, dict[str, float]] = {}
        for row in self.scores:
            asked = (
                row["rule"] == rule and row["metric"] == "accuracy" and row["step"] == len(tasks)
            )
            if asked and row["task"] in tasks:
                values.setdefault(row["task_id"], {})[row["task"]] = row["value"]
        return {
            way: sum(of.values()) / len(tasks)
            for way, of in values.items()
            if len(of) == len(tasks)
        }


def read(folder: str | Path, *, trust: bool = False) -> RunState:
    """Read a run folder.

    Parameters
    ----------
    trust
        Whether Python files that the folder names (a method, a rule or a benchmark of one's own)
        may be run, by all that is done in this process. They are run as they are then.

    Raises
    ------
    RunError
        The folder is no run, or is damaged.
    """
    folder = Path(folder)
    layout.check_run(folder)
    if trust:
        registry.trust(layout.recipe(folder))
    recipe = layout.whole_recipe(folder)
    return RunState(folder, recipe, layout.task_folders(folder, layout.forgotten(recipe)))
