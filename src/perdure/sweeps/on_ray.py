"""The executor `ray`: each trial is a task on a Ray cluster, or on a Ray of this machine alone.

Plain Ray tasks rather than Ray Tune: a task runs in the main thread of its process, so that a
run can save its progress when it is cancelled, and the run folder is the only record of a trial.

All nodes need perdure, and one file system with the data, the model and the sweep's folder
under the same paths.
"""

import importlib
import math
import os
import socket
import subprocess
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from perdure.errors import InputError, PerdureWarning
from perdure.sweeps.executor import Job, Jobs, Outcome, Outcomes, Waiting, lost
from perdure.sweeps.trial import perform

TICK = 1.0
"""The maximum number of seconds between two yields of `perform`."""
KNOCK = 10.0
"""Seconds to wait for a connection to an address."""
ANSWER = 60.0
"""Seconds to wait for an answer of the cluster. `ray.init` itself waits for minutes."""
GRACE = 60.0
"""Seconds that running trials have for saving their progress when the sweep is stopped."""
PROBE = "import ray, sys; ray.init(sys.argv[1], log_to_driver=False)"


class OnRay:
    """Perform trials as tasks of Ray.

    Parameters
    ----------
    address
        The address of a cluster, such as `10.0.0.1:6379`, or `auto` for the one that this
        machine belongs to. By default, RAY_ADDRESS, or else a Ray for this sweep alone.
    workers
        The maximum number of trials at the same time; by default, as many as fit.
    cpus, gpus
        The resources of each trial.
    """

    def __init__(
        self,
        address: str | None = None,
        *,
        workers: int | None = None,
        cpus: float = 1.0,
        gpus: float = 0.0,
    ):
        self.address = address or os.environ.get("RAY_ADDRESS")
        self.workers = workers
        self.cpus = cpus
        self.gpus = gpus

    def connect(self) -> None:
        """Connect to the cluster.

        Raises
        ------
        InputError
            Ray is not installed, or the address does not answer.
        """
        ray = _ray()
        if ray.is_initialized():  # by the caller, who may have settings of their own
            return
        if self.address:
            check_address(self.address)
        # a Ray for this sweep alone needs no dashboard; that of a cluster is not ours
        options = {} if self.address else {"include_dashboard": False}
        try:
            ray.init(self.address, log_to_driver=False, logging_level="WARNING", **options)
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise _silent(self.address, error) from error
        self._check_resources(ray)

    def _check_resources(self, ray: Any) -> None:
        """Warn if no node is large enough for a trial; a cluster may still grow."""
        for node in ray.nodes():
            resources = node["Resources"]
            enough = resources.get("CPU", 0) >= self.cpus and resources.get("GPU", 0) >= self.gpus
            if node["Alive"] and enough:
                return
        warnings.warn(
            f"No node of the Ray cluster has {self.cpus:g} CPUs and {self.gpus:g} GPUs, which each "
            "trial needs: the sweep waits until one joins. Ctrl-C ends the waiting.",
            PerdureWarning,
            stacklevel=3,
        )

    def perform(self, jobs: Jobs, folder: Path) -> Outcomes:
        """Perform jobs; see `Executor`."""
        ray = _ray()
        # Attempts are counted here, because Ray repeats tasks that ran out of memory forever.
        task = ray.remote(num_cpus=self.cpus, num_gpus=self.gpus, max_retries=0)(perform)
        waiting = Waiting(jobs)
        running: dict[Any, Job] = {}
        try:
            while True:
                while len(running) < (self.workers or math.inf) and (job := waiting.take()):
                    running[task.remote(job.plain())] = job
                if not running:
                    break
                ready, _ = ray.wait(list(running), timeout=TICK)
                for reference in ready:
                    job = running.pop(reference)
                    outcome = self._outcome(ray, reference, job)
                    if outcome.state == "stopped":
                        how = outcome.reason or "Its task was cancelled"
                        outcome = waiting.lost(job, how)
                    if outcome:
                        yield outcome
                yield None
        finally:
            _stop(ray, list(running))

    def _outcome(self, ray: Any, reference: Any, job: Job) -> Outcome:
        """Return the outcome of a task; `stopped` if its process or its node was lost."""
        try:
            return Outcome(**ray.get(reference))
        except ray.exceptions.RaySystemError as error:
            raise lost(error) from error
        except ray.exceptions.RayError as error:
            # the last line says what went wrong, such as that a node lacks a package
            last = (str(error).strip().splitlines() or [type(error).__name__])[-1]
            return Outcome(job.trial, "stopped", reason=f"Its task was lost ({last[:200]})")


def _ray() -> Any:
    """Import Ray, which is optional.

    Raises
    ------
    InputError
        Ray is not installed.
    """
    try:
        return importlib.import_module("ray")
    except ImportError as error:
        raise InputError("The executor `ray` needs Ray: pip install 'perdure[ray]'.") from error


def check_address(address: str) -> None:
    """Check that a Ray cluster answers under an address, within about a minute.

    Raises
    ------
    InputError
        Nothing listens there, or it does not answer as Ray does.
    """
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if colon and port.isdecimal():
        try:
            socket.create_connection((host, int(port)), timeout=KNOCK).close()
        except OSError as error:
            raise _silent(address, error) from error
    # In a process of its own, because Ray can neither be interrupted nor be trusted to
    # raise an exception while it waits for an address.
    try:
        done = subprocess.run(
            [sys.executable, "-P", "-c", PROBE, address],
            capture_output=True,
            text=True,
            timeout=ANSWER,
        )
    except subprocess.TimeoutExpired as error:
        raise _silent(address, f"there was no answer in {ANSWER:g} seconds") from error
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["no reason was given"]
        raise _silent(address, lines[-1])


def _silent(address: str | None, reason: object) -> InputError:
    where = f"No Ray cluster answers at `{address}`" if address else "Ray cannot be started"
    said = " ".join(str(reason).split())[:200].rstrip(".")
    return InputError(
        f"{where}: {said}. Start one with `ray start --head`, or correct `--address`."
    )


def _stop(ray: Any, running: Sequence[Any]) -> None:
    """Cancel tasks. Ray interrupts their processes, so that the runs save their progress."""
    if not running or not ray.is_initialized():
        return
    for reference in running:
        ray.cancel(reference, force=False, recursive=False)
    ray.wait(list(running), num_returns=len(running), timeout=GRACE)
