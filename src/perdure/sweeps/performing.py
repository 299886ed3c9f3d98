"""Perform jobs on an executor, and record each outcome before the next one is awaited."""

import contextlib
from collections.abc import Callable
from pathlib import Path

from perdure.errors import Stopped
from perdure.learning.stopping import stopping
from perdure.sweeps.executor import Executor, Jobs, Outcome

HINT = "Continue with the same command."


def perform_all(
    executor: Executor,
    jobs: Jobs,
    folder: Path,
    *,
    record: Callable[[Outcome], None],
    show: Callable[[Outcome | None], None],
    kept: str,
) -> None:
    """Perform all jobs.

    Parameters
    ----------
    folder
        The folder of the sweep.
    record
        A function that saves an outcome.
    show
        A function that reports an outcome; it is also called with None about once a second.
    kept
        A sentence that says what is not lost when the sweep is stopped.

    Raises
    ------
    Stopped
        The sweep was asked to stop.
    """
    try:
        with stopping(HINT) as stop, contextlib.closing(executor.perform(jobs, folder)) as outcomes:
            while True:
                # a signal waits until the executor yields, about a second at most: Ray fails
                # if an exception is raised while it waits
                with stop.later():
                    try:
                        outcome = next(outcomes)
                    except StopIteration:
                        break
                    if outcome:
                        record(outcome)
                show(outcome)
    except Stopped as stopped:
        raise Stopped(f"Stopped. {kept} {HINT}", signal=stopped.signal) from None
