"""What an executor promises, and the outcome of a trial. All values that travel are JSON."""

from collections.abc import Generator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal, Protocol

from perdure.errors import RunError
from perdure.settings import Section

ATTEMPTS = 3
"""How often a trial is begun whose process is killed; each attempt goes on from its checkpoint."""


@dataclass(frozen=True)
class Job:
    """A trial as an executor receives it: recipe × settings → run folder.

    Attributes
    ----------
    trial
        The name of the trial.
    folder
        The run folder, as an absolute path.
    recipe
        The recipe that all trials have in common.
    settings
        The trial's settings, each as `key=value`.
    rules
        Further rules to measure the finished run with.
    directory
        The working directory, to which paths in the recipe are relative.
    """

    trial: str
    folder: str
    recipe: dict[str, object]
    settings: list[str]
    rules: list[Section]
    directory: str

    def plain(self) -> dict[str, object]:
        """Return the job as a JSON object."""
        return asdict(self)


@dataclass(frozen=True)
class Outcome:
    """The outcome of a trial.

    Attributes
    ----------
    state
        `stopped` if the process was asked to stop; the trial continues the next time.
    reason
        Why the trial failed, as one sentence.
    traceback
        The traceback of an error that perdure does not expect.
    scores
        The average score over all tasks after the last one, by `task_id`.
    """

    trial: str
    state: Literal["finished", "failed", "stopped"]
    reason: str = ""
    traceback: str = ""
    seconds: float = 0.0
    scores: dict[str, float] = field(default_factory=dict)

    def plain(self) -> dict[str, object]:
        """Return the outcome as a JSON object, without empty values."""
        return {name: value for name, value in asdict(self).items() if value}


Outcomes = Generator[Outcome | None, None, None]


class Executor(Protocol):
    """A place where trials are performed."""

    def connect(self) -> None:
        """Get ready; raise `InputError` if trials cannot be performed here."""
        ...

    def perform(self, jobs: Sequence[Job], folder: Path) -> Outcomes:
        """Perform jobs, and yield each outcome when it is known; yield None about once a second.

        Closing the generator asks the trials that are still running to save their progress.

        Parameters
        ----------
        folder
            The folder of the sweep, for a log.
        """
        ...


def killed(trial: str, how: str) -> Outcome:
    """Return the outcome of a trial whose process was killed in every attempt."""
    return Outcome(
        trial,
        "failed",
        reason=f"{how}, {ATTEMPTS} times. If the machine ran out of memory, use fewer workers.",
    )


def lost(error: Exception) -> RunError:
    """Return the error for an executor that can perform no more trials."""
    reason = " ".join(str(error).split())[:300]
    return RunError(
        f"The executor was lost: {reason} Finished trials are kept. Continue with the same command."
    )
