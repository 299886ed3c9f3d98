"""Several processes that compute one run, started as a launcher starts them."""

import contextlib
import signal
import socket
import subprocess
import time
from pathlib import Path

import forked
import pytest
import torch

from perdure import Run, verify

PARAMETERS = 1e-4  # each, where values are of the size of 0.1
LOSSES = 1e-4  # each, where few steps are taken
ACCURACY = 0.05  # one of the 20 test examples of a task
TRAINING = {
    "epochs": 6,
    "batch_size": 8,
    "learning_rate": 0.01,
    "checkpoint_steps": 3,
    "backbone_dropout": False,
}


def start(recipe: Path, output: Path, count: int = 2) -> list[forked.Process]:
    """Start processes that run a recipe by the command line."""
    return together(forked.PERDURE, "run", recipe, "--output", output, "--quiet", count=count)


def together(code: str, *arguments: object, count: int = 2, **other: str) -> list[forked.Process]:
    """Start processes that run the same code; a launcher tells them by the environment."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {
        "WORLD_SIZE": str(count),
        "LOCAL_WORLD_SIZE": str(count),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        **other,
    }
    started = []
    for number in range(count):
        place = {"RANK": str(number), "LOCAL_RANK": str(number)}
        started.append(forked.Process(code, *arguments, cwd=None, **place, **common))
    return started


def ended(started: list[forked.Process]) -> list[str]:
    """Return what each process has printed; all of them must have succeeded."""
    printed = [process.communicate(timeout=600) for process in started]
    errors = [error[-3000:] for _, error in printed]
    assert [process.returncode for process in started] == [0] * len(started), errors
    return [out for out, _ in printed]


def same(one: Run, other: Run) -> None:
    """Within the tolerances that are promised."""
    assert one.tasks == other.tasks
    for name in one.tasks:
        left, right = one.load_task(name), other.load_task(name)
        assert left.digests == right.digests
        for key, value in left.adapter.parameters.items():
            torch.testing.assert_close(
                right.adapter.parameters[key], value, rtol=0, atol=PARAMETERS
            )
    rows = {
        tuple(row[key] for key in ("step", "task", "task_id", "rule")): row["value"]
        for row in one.scores()
    }
    again = {
        tuple(row[key] for key in ("step", "task", "task_id", "rule")): row["value"]
        for row in other.scores()
    }
    assert again == pytest.approx(rows, abs=ACCURACY + 1e-9)
    assert losses(other) == pytest.approx(losses(one), abs=1e-3)
    assert not verify(other.folder).faults


def losses(run: Run) -> list[float]:
    """Return the loss of each step."""
    return [event["loss"] for event in run.events() if event["event"] == "step"]


def wait_for(output: Path, processes: list[forked.Process]) -> None:
    """Until training goes on: an event that was not there before."""
    events, end = output / "events.jsonl", time.monotonic() + 60
    before = events.stat().st_mtime_ns if events.exists() else 0
    while time.monotonic() < end and (not events.exists() or events.stat().st_mtime_ns == before):
        if all(process.poll() is not None for process in processes):
            return  # nothing was left to do
        time.sleep(0.01)


def stop(processes: list[forked.Process], how: str) -> None:
    """When one has ended, the launcher ends the other: by SIGTERM,
    and by SIGKILL if that is not enough.
    """
    for process in processes[: 1 if how == "first" else 2]:
        process.send_signal(signal.SIGTERM if how == "term" else signal.SIGKILL)
    if how == "first":
        processes[1].send_signal(signal.SIGTERM)
    for process in processes:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.communicate(timeout=30)
