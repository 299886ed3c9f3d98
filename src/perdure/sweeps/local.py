"""The executor `local`: processes on this machine, each of which performs one trial at a time."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from multiprocessing.connection import wait
from pathlib import Path
from typing import IO

from perdure.sweeps.executor import Job, Jobs, Outcome, Outcomes, Waiting
from perdure.sweeps.folder import LOG

TICK = 1.0
"""The maximum number of seconds between two yields of `perform`."""
GRACE = 60.0
"""Seconds that running trials have for saving their progress when the sweep is stopped."""
# -P: a file `random.py` in the current folder must not hide Python's own
COMMAND = [sys.executable, "-P", "-m", "perdure.sweeps.worker"]


class Local:
    """Perform trials in processes on this machine.

    Parameters
    ----------
    workers
        The number of processes. The cores and accelerators are divided among them.
    """

    def __init__(self, workers: int = 1):
        self.workers = workers

    def connect(self) -> None:
        """Do nothing: this machine is always there."""

    def perform(self, jobs: Jobs, folder: Path) -> Outcomes:
        """Perform jobs; see `Executor`."""
        waiting = Waiting(jobs)
        workers = [Worker(number, self.workers, folder / LOG) for number in range(self.workers)]
        try:
            while _busy(workers, waiting):
                for worker in _ready(workers):
                    job, outcome = worker.ended()
                    if outcome is None:
                        # killed, or asked to stop by somebody else: a new process goes on
                        outcome = waiting.lost(job, worker.gone())
                    if outcome:
                        yield outcome
                yield None
        finally:
            _stop(workers)


class Worker:
    """A process, and the job that it is performing.

    Parameters
    ----------
    number, workers
        The number of the process, and of all processes, which share the machine.
    log
        The file for everything that the process prints; its outcomes have a pipe.
    """

    def __init__(self, number: int, workers: int, log: Path):
        self.job: Job | None = None
        self.process: subprocess.Popen[str] | None = None
        self._share = number, workers
        self._log = log

    def _started(self) -> "subprocess.Popen[str]":
        with self._log.open("ab") as log:
            return subprocess.Popen(
                COMMAND,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env=environment(*self._share),
            )

    def begin(self, job: Job) -> None:
        """Send a job to the process, which is started if there is none."""
        self.job = job
        self.process = self.process or self._started()
        assert self.process.stdin
        # a process that has ended is noticed when its outcome is read
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.write(json.dumps(job.plain()) + "\n")
            self.process.stdin.flush()

    @property
    def outcomes(self) -> IO[str]:
        """The pipe through which the process sends outcomes."""
        assert self.process and self.process.stdout
        return self.process.stdout

    def ended(self) -> tuple[Job, Outcome | None]:
        """Return the job that has ended, and its outcome; None if the process was killed."""
        assert self.job
        job, self.job = self.job, None
        line = self.outcomes.readline()
        if not line.endswith("\n"):
            return job, None
        outcome = Outcome(**json.loads(line))
        # stopped by somebody else than the sweep, which would not read this: as if killed
        return job, None if outcome.state == "stopped" else outcome

    def gone(self) -> str:
        """Forget the process, which has ended, and describe how."""
        self.close()
        assert self.process
        status = self.process.wait()
        self.outcomes.close()
        self.process = None
        if status < 0:
            return f"Its process was killed by {signal.Signals(-status).name}"
        return f"Its process ended with status {status}"

    def close(self) -> None:
        """Ask the process to end; a run that it is training saves its progress."""
        if self.process and self.process.stdin:
            with contextlib.suppress(BrokenPipeError):
                self.process.stdin.close()


def _busy(workers: Sequence[Worker], waiting: Waiting) -> bool:
    """Give a job to each worker without one; return False if all of them are still without."""
    for worker in workers:
        if worker.job is None and (job := waiting.take()):
            worker.begin(job)
    return any(worker.job for worker in workers)


def _ready(workers: Sequence[Worker]) -> list[Worker]:
    """Return the workers whose job has ended; wait for one up to `TICK` seconds."""
    by_pipe = {worker.outcomes: worker for worker in workers if worker.job}
    return [by_pipe[pipe] for pipe in wait(list(by_pipe), TICK)]  # pyright: ignore[reportArgumentType]


def environment(number: int, workers: int) -> dict[str, str]:
    """Return the environment of a worker, with its share of the cores and accelerators."""
    values = dict(os.environ)
    # more threads than cores slow all workers down; a number that the user chose is kept
    values.setdefault("OMP_NUM_THREADS", str(max(1, _cores() // workers)))
    accelerators = _accelerators()
    if accelerators:
        values["CUDA_VISIBLE_DEVICES"] = accelerators[number % len(accelerators)]
    return values


def _cores() -> int:
    """Return the number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):  # not on a Mac
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _accelerators() -> list[str]:
    """Return the identifiers of the accelerators that this process may use."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [name for name in visible.split(",") if name]
    import torch

    return [str(number) for number in range(torch.cuda.device_count())]


def _stop(workers: Sequence[Worker]) -> None:
    """End all processes; running trials have some time to save their progress."""
    deadline = time.monotonic() + GRACE
    processes = [worker.process for worker in workers if worker.process]
    try:
        for worker in workers:
            worker.close()
        for process in processes:
            process.wait(max(0.0, deadline - time.monotonic()))
    except subprocess.TimeoutExpired:
        pass
    finally:
        # also if a second Ctrl-C interrupts the waiting
        for process in processes:
            process.kill()
            process.wait()
            if process.stdout:
                process.stdout.close()
