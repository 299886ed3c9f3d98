"""What an executor promises, the jobs that it performs, and their outcomes.

All values that travel are JSON.
"""

from collections import Counter, deque
from collections.abc import Generator, Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import ClassVar, Literal, Protocol

from perdure.errors import RunError
from perdure.evaluation.score import TaskId
from perdure.settings import Section

ATTEMPTS = 3
"""How often a job is begun whose process is killed; a whole run goes on from its checkpoint."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """A trial as an executor receives it: recipe × settings → an outcome.

    Attributes
    ----------
    kind
        The name of what is to be done, by which the process that performs it finds the code.
    trial
        The name of the trial.
    recipe
        The recipe that all trials have in common.
    settings
        The trial's settings, each as `key=value`.
    directory
        The working directory, to which paths in the recipe are relative.
    """

    kind: ClassVar[str]

    trial: str
    recipe: dict[str, object]
    settings: list[str]
    directory: str

    def plain(self) -> dict[str, object]:
        """Return the job as a JSON object."""
        return {"kind": self.kind, **asdict(self)}


@dataclass(frozen=True, kw_only=True)
class WholeRun(Job):
    """A run of the recipe in a folder, which is kept.

    Attributes
    ----------
    folder
        The run folder, as an absolute path.
    features
        A folder for the features of frozen backbones, which all trials share.
    rules
        Further rules to measure the finished run with.
    """

    kind = "run"

    folder: str
    features: str
    rules: list[Section] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class FirstTasks(Job):
    """The first tasks of the recipe, learned to be scored on their validation examples.

    Attributes
    ----------
    folder
        The folder of the search, as an absolute path; nothing of the run is kept in it.
    tasks
        The number of tasks.
    task_id
        The `task_id` with which the examples are scored.
    """

    kind = "first_tasks"

    folder: str
    tasks: int
    task_id: TaskId


@dataclass(frozen=True)
class Outcome:
    """The outcome of a trial.

    Attributes
    ----------
    state
        `stopped` if the process was asked to stop; the trial continues the next time.
    reason
        Why the trial failed, or has no score, as one sentence.
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


Jobs = Iterable[Job | None]
"""Jobs; None means that the next one depends on an outcome that is not known yet."""
Outcomes = Generator[Outcome | None, None, None]


class Executor(Protocol):
    """A place where trials are performed."""

    def connect(self) -> None:
        """Get ready; raise `InputError` if trials cannot be performed here."""
        ...

    def perform(self, jobs: Jobs, folder: Path) -> Outcomes:
        """Perform jobs, and yield each outcome when it is known; yield None about once a second.

        A job is taken when there is room for it. Closing the generator asks the trials that
        are still running to save their progress.

        Parameters
        ----------
        folder
            The folder of the sweep, for a log.
        """
        ...


class Waiting:
    """The jobs that have not begun, or whose process was killed."""

    def __init__(self, jobs: Jobs):
        self._jobs = iter(jobs)
        self._again: deque[Job] = deque()
        self._lost = Counter[str]()

    def take(self) -> Job | None:
        """Return the next job; None if there is none, at least until an outcome is known."""
        if self._again:
            return self._again.popleft()
        return next(self._jobs, None)

    def lost(self, job: Job, how: str) -> Outcome | None:
        """Put a job back whose process was killed; after too many attempts, return its outcome."""
        self._lost[job.trial] += 1
        if self._lost[job.trial] < ATTEMPTS:
            self._again.append(job)
            return None
        reason = f"{how}, {ATTEMPTS} times. If the machine ran out of memory, use fewer workers."
        return Outcome(job.trial, "failed", reason=reason)


def lost(error: Exception) -> RunError:
    """Return the error for an executor that can perform no more trials."""
    reason = " ".join(str(error).split())[:300]
    return RunError(
        f"The executor was lost: {reason} Finished trials are kept. Continue with the same command."
    )
