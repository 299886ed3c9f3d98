"""The run folder as a user reads it in Python: `perdure.Run`."""

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
    """A run folder. Every method reads the folder as it is at that moment.

    Parameters
    ----------
    trust
        True if Python files that the folder names (a custom method, rule or benchmark) may be run
        by anything done with it in this process. They are run as they are then.

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
        """The folder as it is now, read once."""
        # Not cached: the run may go on in another process while somebody looks at it.
        return read(self.folder)

    @property
    def recipe(self) -> Settings:
        """The resolved recipe."""
        return self.state.recipe

    @property
    def tasks(self) -> list[str]:
        """The names of the tasks learned."""
        return self.state.tasks

    def task_folders(self) -> dict[str, Path]:
        """Return the folders of the complete tasks, by name, in the order of learning."""
        return self.state.places

    def load_task(self, name: str) -> Learned:
        """Read a task's folder.

        Raises
        ------
        RunError
            A file is missing or is not what was written.
        """
        return self.state.load_task(name)

    def load_unfinished(self) -> Snapshot | None:
        """Return the saved state inside the task that was being learned, if there is one.

        Raises
        ------
        RunError
            It is damaged.
        """
        return self.state.unfinished

    def begun(self) -> str | None:
        """Return the name of the task whose learning was stopped, if its state was saved."""
        return self.state.begun

    def events(self) -> list[Content]:
        """Return the lines of events.jsonl."""
        # Not from `state`, which would read the recipe and the tasks first.
        return layout.events(self.folder)

    def combined(self) -> Content:
        """Return how the adapters are combined: name, options, space, since, and candidates."""
        return layout.combined(self.folder)

    def scores(self) -> list[Content]:
        """Return the rows of scores.csv.

        In each, `value` was measured on `task` after `step` tasks had been learned.
        """
        return layout.scores(self.folder)

    @property
    def task_scores(self) -> dict[str, str]:
        """The name of each task's score, such as `accuracy`, for the tasks that were measured."""
        return self.state.task_scores

    def matrix(
        self, rule: str | None = None, task_id: str = "posterior"
    ) -> Float[ndarray, "steps tasks"]:
        """Return the accuracy matrix R of a rule (by default the run's own); nan: not measured.

        Tasks may have different scores, which `task_scores` names.
        """
        return self.state.matrix(rule, task_id)

    def accuracies(self, rule: str) -> dict[str, float]:
        """Return the average score of a rule after the last task, by `task_id`.

        It has only the `task_id`s that every task was measured with.
        """
        return self.state.accuracies(rule)
