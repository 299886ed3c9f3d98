"""Perform a trial of any kind, and turn every error into its outcome."""

import os
import time
import traceback
from collections.abc import Callable
from dataclasses import replace

from perdure import registry
from perdure.errors import PerdureError, Stopped
from perdure.sweeps import first_tasks, whole_run
from perdure.sweeps.executor import FirstTasks, Job, Outcome, WholeRun

LONGEST = 10_000
"""The maximum number of characters of a traceback that are kept, from its end."""
KINDS: dict[str, tuple[type[Job], Callable[..., Outcome]]] = {
    WholeRun.kind: (WholeRun, whole_run.perform),
    FirstTasks.kind: (FirstTasks, first_tasks.perform),
}
"""Each kind of job, and the function that performs it."""


def perform(values: dict) -> dict[str, object]:
    """Perform a trial in whatever process, and return its `Outcome` as a JSON object.

    Every error is an outcome: a trial that fails does not end its sweep.

    Parameters
    ----------
    values
        The trial as a JSON object (see `Job`).
    """
    options = dict(values)
    kind, work = KINDS[options.pop("kind")]
    job = kind(**options)

    def work_there() -> Outcome:
        os.chdir(job.directory)
        # the user named these files in the sweep, in a process that is not this one
        registry.trust([job.recipe, options.get("rules", [])])
        return work(job)

    try:
        outcome = attempted(job.trial, work_there)
    except Stopped:
        outcome = Outcome(job.trial, "stopped")
    return outcome.plain()


def attempted(trial: str, work: Callable[[], Outcome]) -> Outcome:
    """Perform a trial in this process, and return its outcome with the time that it took.

    Raises
    ------
    Stopped
        The process was asked to stop.
    """
    started = time.monotonic()
    try:
        outcome = work()
    except Stopped:
        raise
    except PerdureError as error:
        outcome = Outcome(trial, "failed", reason=str(error))
    except Exception as error:
        reason = registry.fault(error) or f"{type(error).__name__}: {error}"
        trace = traceback.format_exc()[-LONGEST:]
        outcome = Outcome(trial, "failed", reason=_line(reason), traceback=trace)
    seconds = round(time.monotonic() - started, 3)
    return replace(outcome, seconds=seconds)


def _line(text: str) -> str:
    return " ".join(text.split())[:500]
