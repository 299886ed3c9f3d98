"""The Python interface to a run folder: `perdure.Run`."""

from pathlib import Path

from jaxtyping import Float
from numpy import ndarray

from perdure import registry
from perdure.evaluation.system import Learned
from perdure.learning.snapshot import Snapshot
from perdure.runs import layout
from perdure.runs.layout import Content, Settings
from perdure.runs.state import RunState, read


class Run:
    """A run folder, opened for reading. Every method reads the current contents of the folder.

    Parameters
    ----------
    trust
        Allow running Python files that the folder names (a custom method, rule or
        benchmark). This applies to everything that is done with the folder in this
        process, and the files are run in their current version.

    Raises
    ------
    RunError
        The folder is not a run, or is damaged.
    """

    def __init__(self, folder: str | Path, *, trust: bool = False):
        self.folder = Path(folder)
        layout.check_run(self.folder)
        if trust:
            registry.trust(layout.recipe(self.folder))

    @property
    def state(self) -> RunState:
        """The current contents of the folder."""
        # Not cached, because another process may be continuing the run.
        return read(self.folder)

    @property
    def recipe(self) -> Settings:
        """The run's recipe, with all defaults filled in."""
        return self.state.recipe

    @property
    def tasks(self) -> list[str]:
        """The names of the tasks that the run has learned, in order."""
        return self.state.tasks

    def task_folders(self) -> dict[str, Path]:
        """Return the folder of each task that the run has learned, by name, in order."""
        return self.state.places

    def load_task(self, name: str) -> Learned:
        """Load everything that was saved for a task.

        Raises
        ------
        RunError
            The run has no such task, or a file is missing or differs from what was written.
        """
        return self.state.load_task(name)

    def load_unfinished(self) -> Snapshot | None:
        """Return the checkpoint of the task that was being learned, or None if there is none.

        Raises
        ------
        RunError
            The checkpoint is damaged.
        """
        return self.state.unfinished

    def begun(self) -> str | None:
        """Return the name of the task that was being learned, if there is a checkpoint of it."""
        return self.state.begun

    def events(self) -> list[Content]:
        """Return the events in events.jsonl, one for each line."""
        # Not from `state`, which would read the recipe and the tasks first.
        return layout.events(self.folder)

    def combined(self) -> Content:
        """Return the rule that combines the adapters, as a dictionary.

        Its keys include `name`, `label`, `options`, `space`, `since` and `candidates`,
        the scales that a search has tried.
        """
        return layout.combined(self.folder)

    def scores(self) -> list[Content]:
        """Return the rows of scores.csv.

        In each row, `value` was measured on `task` after `step` tasks had been learned.
        """
        return layout.scores(self.folder)

    @property
    def task_scores(self) -> dict[str, str]:
        """The name of the score of each task that was measured, such as `accuracy`."""
        return self.state.task_scores

    def matrix(
        self, rule: str | None = None, task_id: str = "posterior"
    ) -> Float[ndarray, "steps tasks"]:
        """Return the accuracy matrix R of a rule, by default the run's own.

        `R[i, j]` is the score on task `j` after `i + 1` tasks; nan if it was not
        measured. Tasks may use different scores, which `task_scores` names.
        """
        return self.state.matrix(rule, task_id)

    def accuracies(self, rule: str) -> dict[str, float]:
        """Return a rule's average score over all tasks after the last one, by `task_id`.

        A `task_id` is included only if every task was measured with it.
        """
        return self.state.accuracies(rule)
