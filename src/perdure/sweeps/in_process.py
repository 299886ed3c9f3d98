"""The executor that performs one trial after another in this process."""

from collections.abc import Callable
from pathlib import Path

from perdure.sweeps.executor import Job, Jobs, Outcome, Outcomes
from perdure.sweeps.trial import attempted


class InProcess:
    """Perform trials in this process.

    A signal to stop interrupts the trial, whose `Stopped` is raised.

    Parameters
    ----------
    work
        The function that performs a job. It may use objects that cannot be sent to another
        process.
    """

    def __init__(self, work: Callable[..., Outcome]):
        self._work = work

    def connect(self) -> None:
        """Do nothing: this process is always there."""

    def perform(self, jobs: Jobs, folder: Path) -> Outcomes:
        """Perform jobs; see `Executor`."""
        for job in jobs:
            # all earlier outcomes are known, so that there always is a next job
            assert isinstance(job, Job)
            yield attempted(job.trial, lambda job=job: self._work(job))
