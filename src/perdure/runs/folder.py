"""The run folder as a user reads it in Python: `perdure.Run`."""

from pathlib import Path
from typing import Any

from jaxtyping import Float
from numpy import ndarray

from perdure import registry
from perdure.evaluation.system import Learned
from perdure.learning.snapshot import Snapshot
from perdure.runs import layout
from perdure.runs.state import RunState, read


class Run:
    """A run folder. Whatever is asked is answered as the folder is now.

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
        layout.check_run(self.folder)
        if trust:
            registry.trust(layout.recipe(self.folder))

    @property
    def state(self) -> RunState:
        """The folder as it is now, read once."""
        return read(self.folder)

    @property
    def recipe(self) -> dict[str, Any]:
        """The resolved recipe."""
        return self.state.recipe

    @property
    def tasks(self) -> list[str]:
        """The names of the tasks learned."""
        return self.state.tasks

    def task_folders(self) -> dict[str, Path]:
        """The folders of the tasks that are complete, by name, in the order in which they were learned."""
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
        """The state inside the task that was being learned, if there is one.

        Raises
        ------
        RunError
            It is damaged.
        """
        return self.state.unfinished

    def begun(self) -> str | None:
        """The name of the task that was being learned when the run was stopped, if its state was saved."""
        return self.state.begun

    def events(self) -> list[dict[str, Any]]:
        """The lines of events.jsonl."""
        return layout.events(self.folder)

    def combined(self) -> dict[str, Any]:
        """How the adapters are combined: name, options, space, since, and the candidates of a search."""
        return layout.combined(self.folder)

    def scores(self) -> list[dict[str, Any]]:
        """The rows of scores.csv: `step` tasks had been learned when `value` was measured on `task`."""
        return layout.scores(self.folder)

    def matrix(
        self, rule: str | None = None, task_id: str = "posterior"
    ) -> Float[ndarray, "steps tasks"]:
        """The accuracy matrix R of a rule (by default the run's own): nan where nothing was measured."""
        return self.state.matrix(rule, task_id)

    def accuracies(self, rule: str) -> dict[str, float]:
        """Return the average accuracy of a rule after the last task, for each way to know the task in which every task
        was measured.
        """
        return self.state.accuracies(rule)
