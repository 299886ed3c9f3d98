"""The contents of a run folder, read once. `perdure.runs.layout` describes the files."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from perdure import registry
from perdure.errors import RunError
from perdure.evaluation.metrics import is_score
from perdure.evaluation.posterior import PosteriorSettings
from perdure.evaluation.system import Learned
from perdure.learning.snapshot import Snapshot
from perdure.runs import layout, old_names, schema, task_folder
from perdure.runs.layout import UNFINISHED, reading
from perdure.settings import checked


@dataclass(frozen=True)
class RunState:
    """The contents of a run folder at the time when it was read.

    The recipe and the names of the tasks are read immediately; other files are read when
    they are first needed. No file is read twice.

    Attributes
    ----------
    recipe
        The recipe, with all defaults filled in.
    places
        The folders of the complete tasks, by name, in the order of learning.
    """

    folder: Path
    recipe: dict[str, Any]
    places: dict[str, Path]

    @property
    def tasks(self) -> list[str]:
        """The names of the tasks that the run has learned, in order."""
        return list(self.places)

    @property
    def shares_head(self) -> bool:
        """True if all tasks share one head (`training.heads`)."""
        return self.recipe["training"].get("heads") == "shared"

    @cached_property
    def posterior(self) -> PosteriorSettings:
        """The settings of the task posterior; the defaults, if the recipe does not have any.

        Raises
        ------
        RunError
            A setting is not valid.
        """
        path = self.folder / "recipe.yaml"
        with reading(path):
            settings = self.recipe.get("posterior") or {}
            where = f"`{path}`: posterior"
            return PosteriorSettings(**checked(PosteriorSettings, settings, where))

    @property
    def made_in_python(self) -> bool:
        """True if the stream was made in Python, so that the recipe cannot create it again."""
        stream = self.recipe["stream"]
        return isinstance(stream, dict) and "tasks_made_in_python" in stream

    # `cached_property` writes into `__dict__`, which a frozen dataclass allows.

    @cached_property
    def learned(self) -> tuple[Learned, ...]:
        """Everything that is stored about the learned tasks, in order.

        Raises
        ------
        RunError
            A file is missing or differs from what was written.
        """
        return tuple(self.load_task(name) for name in self.tasks)

    def load_task(self, name: str) -> Learned:
        """Load everything that is stored about a task.

        Raises
        ------
        RunError
            The run has no such task, or a file is missing or differs from what was written.
        """
        folder = self.places.get(name)
        if folder is None:
            raise RunError(f"`{self.folder}` does not have a task `{name}`, or no longer has it.")
        # The rank in the adapter's own config is checked against the one in the recipe.
        # The modules of a wrapper are those of the inner method.
        method = layout.innermost(self.recipe["method"])
        return task_folder.load(folder, rank=method.get("rank"))

    @cached_property
    def unfinished(self) -> Snapshot | None:
        """The checkpoint of the task that was being learned; None if there is none.

        Raises
        ------
        RunError
            The checkpoint is damaged.
        """
        path = self.folder / UNFINISHED
        with reading(path):
            if not path.exists():
                return None
            snapshot = Snapshot.load(path)
            # the snapshot's own hash shows that it is undamaged, not that perdure wrote it
            layout.check(path, schema.Unfinished, snapshot.about)
            return snapshot

    @property
    def begun(self) -> str | None:
        """The name of the task that was being learned, if there is a checkpoint of it."""
        with reading(self.folder / UNFINISHED):
            if self.unfinished is None:
                return None
            # the tasks seen so far, in order: the last one was being learned
            belongs_to = self.unfinished.about["belongs_to"]
            return list(belongs_to["tasks"])[-1]

    @cached_property
    def stands_on_a_model(self) -> bool:
        """True if something has been learned already, so that the backbone must stay the same."""
        return bool(self.places) or layout.is_there(self.folder / UNFINISHED)

    @property
    def is_blank(self) -> bool:
        """True if the run was rejected before it began: its folder contains only the recipe."""
        others = set(layout.WRITTEN) - {"recipe.yaml", "environment.json"}
        written = any(layout.is_there(self.folder / name) for name in others)
        return not written and not layout.forgotten(self.recipe)

    @cached_property
    def scores(self) -> list[dict[str, Any]]:
        """The rows of scores.csv: `value` was measured on `task` after learning `step` tasks."""
        return layout.scores(self.folder)

    @cached_property
    def combined(self) -> dict[str, Any]:
        """The rule that combines the adapters, with its settings and the scales it has tried.

        Raises
        ------
        RunError
            No task has been finished yet, or the file is damaged.
        """
        return layout.combined(self.folder)

    @cached_property
    def searches(self) -> list[dict[str, Any]]:
        """The result of each search for a scale: `rule`, `step`, `options` and `candidates`."""
        return layout.searches(self.folder)

    def found(self, label: str, step: int) -> dict[str, Any] | None:
        """Return the result of a rule's search after `step` tasks; None if there is no result."""
        for search in self.searches:
            if search["rule"] == label and search["step"] == step:
                return search
        return None

    def matrix(
        self, rule: str | None = None, task_id: str = "posterior"
    ) -> Float[ndarray, "steps tasks"]:
        """Return the accuracy matrix R of a rule, by default the run's own.

        `R[i, j]` is the score on task `j` after `i + 1` tasks; nan if it was not
        measured. Tasks may use different scores, which `task_scores` names.
        """
        rule = rule or self.combined["label"]
        task_id = old_names.task_id(task_id)  # code for older versions uses old names
        tasks = len(self.tasks)
        columns = {name: column for column, name in enumerate(self.tasks)}
        R = np.full((tasks, tasks), np.nan)
        for row in self.scores:
            if row["rule"] != rule or row["task_id"] != task_id or not is_score(row):
                continue
            step = row["step"]
            column = columns.get(row["task"])
            # Step 0 has no row in R, and a task that is not learned yet has no column,
            # although `evaluation.future` measures these, too.
            if column is None or not 0 < step <= tasks:
                continue
            R[step - 1, column] = row["value"]
        return R

    @property
    def task_scores(self) -> dict[str, str]:
        """The name of the score of each task that was measured, such as `accuracy`."""
        names = {}
        for row in self.scores:
            if row["task"] in self.places and is_score(row):
                names[row["task"]] = row["metric"]
        return names

    def accuracies(self, rule: str) -> dict[str, float]:
        """Return a rule's average score over all tasks after the last one, by `task_id`.

        A `task_id` is included only if every task was measured with it. If the tasks use
        different scores (`task_scores`), the average mixes them.
        """
        tasks = self.tasks
        by_way: dict[str, dict[str, float]] = {}
        for row in self.scores:
            if row["rule"] != rule or not is_score(row):
                continue
            if row["step"] == len(tasks) and row["task"] in tasks:
                values = by_way.setdefault(row["task_id"], {})
                values[row["task"]] = row["value"]
        averages = {}
        for way, values in by_way.items():
            # an average over fewer tasks would look better or worse than it is
            if len(values) == len(tasks):
                total = sum(values.values())
                averages[way] = total / len(tasks)
        return averages


def read(folder: str | Path, *, trust: bool = False) -> RunState:
    """Read a run folder.

    Parameters
    ----------
    trust
        Allow running Python files that the folder names (a custom method, rule or
        benchmark). This applies to everything in this process, and the files are run in
        their current version.

    Raises
    ------
    RunError
        The folder is not a run, or is damaged.
    """
    folder = Path(folder)
    layout.check_run(folder)
    if trust:
        registry.trust(layout.recipe(folder))
    recipe = layout.whole_recipe(folder)
    forgotten = layout.forgotten(recipe)
    places = layout.task_folders(folder, forgotten)
    return RunState(folder, recipe, places)
