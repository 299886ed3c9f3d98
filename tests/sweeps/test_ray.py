"""Sweeps and tuning on Ray: a cluster of two node processes, and addresses that do not answer."""

import importlib.util
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from in_process import InProcess
from small_runs import differing, recipe

from perdure import InputError, Recipe, sweep
from perdure.report import markdown, summary
from perdure.sweeps import on_ray
from perdure.sweeps.on_ray import OnRay
from perdure.sweeps.tune import tune
from perdure.sweeps.tuning import Protocol

needs_ray = pytest.mark.skipif(
    importlib.util.find_spec("ray") is None,
    reason="Ray is not installed: pip install 'perdure[ray]'",
)
PATIENCE = 900
"""Seconds to wait for what takes a minute on a machine that does nothing else."""


def test_ray_is_an_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(InputError, match=r"pip install 'perdure\[ray\]'"):
        OnRay().connect()


def test_an_address_where_nothing_listens():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    with pytest.raises(InputError, match=f"No Ray cluster answers at `127.0.0.1:{port}`: .*refus"):
        on_ray.check_address(f"127.0.0.1:{port}")


@needs_ray
def test_an_address_that_does_not_answer(monkeypatch):
    monkeypatch.setattr(on_ray, "ANSWER", 5.0)
    started = time.monotonic()
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        with pytest.raises(InputError, match=r"there was no answer in 5 seconds\. Start one with"):
            OnRay(address).connect()
    assert time.monotonic() - started < 20


@pytest.fixture
def of_this_test(monkeypatch):
    """Settings of Ray that do not depend on this machine and on what is done there."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    # otherwise it depends on what was started on this machine before
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    # Ray's processes usually have a low priority, and get little on a busy machine
    monkeypatch.setenv("RAY_worker_niceness", "0")
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")


@pytest.fixture
def cluster(of_this_test):
    """The address of a Ray cluster of two nodes with one CPU each."""
    ray = Path(sys.executable).with_name("ray")
    # a path to a socket can have about a hundred characters
    place = Path(tempfile.mkdtemp(prefix="ray", dir="/tmp"))
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
    common = ("--num-cpus=1", "--object-store-memory=80000000", "--disable-usage-stats", "--block")
    port = f"--port={address.split(':')[1]}"
    head = ("--head", port, "--include-dashboard=false", f"--temp-dir={place}")
    nodes = []
    try:
        for number, options in enumerate((head, (f"--address={address}",))):
            log = place / f"node-{number}.log"
            with log.open("wb") as file:
                command = [str(ray), "start", *options, *common]
                nodes.append(subprocess.Popen(command, stdout=file, stderr=file))
            _wait(lambda log=log: "Ray runtime started" in log.read_text())
        yield address
    finally:
        for node in reversed(nodes):
            node.terminate()
        for node in nodes:
            node.wait(60)
        shutil.rmtree(place, ignore_errors=True)


def _wait(reached):
    deadline = time.monotonic() + PATIENCE
    while not reached():
        assert time.monotonic() < deadline
        time.sleep(0.1)


@needs_ray
def test_a_sweep_on_this_machine(tmp_path, pico, of_this_test):
    """Without an address, Ray is started for the sweep alone; the runs are what they always are."""
    values = recipe(tmp_path, ("fruit",), pico("bert"), training={"epochs": 1})
    sweep_file = written(tmp_path, values, {"seed": [0, 1]})
    options = ("--executor", "ray", "--workers", "1")
    done = finished(tmp_path, command(sweep_file, tmp_path / "out", *options))
    assert "Average accuracy after the last task" in done.stdout
    require_equal(tmp_path / "out", sweep_file, rows=3)


@needs_ray
def test_tuning_on_this_machine(tmp_path, pico, of_this_test):
    """Two trials at a time, which are what this process finds when it performs one at a time."""
    values = recipe(tmp_path, ("fruit",), pico("bert"), training={"epochs": 1})
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(values))
    options = ("--trials", "3", "--tasks", "1", "--workers", "2", "--executor", "ray", "--json")
    start = [sys.executable, "-m", "perdure", "tune", str(path), "-o", str(tmp_path / "out")]
    done = finished(tmp_path, [*start, *options])
    protocol = Protocol(trials=3, tasks=1, parallel=2)
    here = tune(Recipe.parse(values), tmp_path / "here", protocol=protocol)
    found = json.loads(done.stdout)["trials"]
    for name in ("settings", "score"):
        assert [trial[name] for trial in found] == [trial[name] for trial in here.trials]
    assert sorted(os.listdir(tmp_path / "out")) == ["trials.jsonl", "tuned.yaml"]


@needs_ray
@pytest.mark.skipif(
    not os.environ.get("PERDURE_SOAK"), reason="two nodes of Ray take minutes: PERDURE_SOAK=1"
)
def test_a_sweep_that_is_killed_and_stopped(cluster, tmp_path, pico):
    """A worker is killed, then the sweep, then it is stopped by Ctrl-C, which saves the runs.

    In the end, the runs are the same, byte for byte, and so is the table.
    """
    values = recipe(tmp_path, ("fruit", "colour"), pico("bert"), training={"epochs": 8})
    values["training"]["checkpoint_steps"] = 5
    grid = {"method": ["sequential", "isolated", "ewc"], "order": [0, 1], "seed": [0, 1]}
    sweep_file = written(tmp_path, values, grid)
    output = tmp_path / "out"
    on_cluster = command(sweep_file, output, "--executor", "ray", "--address", cluster)

    first = subprocess.Popen(on_cluster, cwd=tmp_path)
    _wait(lambda: list(output.glob("runs/*/unfinished.safetensors")))
    # its lock names the process that performs a trial
    run = next(output.glob("runs/*/unfinished.safetensors")).parent
    holder = yaml.safe_load((run / "lock.json").read_text())["pid"]
    os.kill(holder, signal.SIGKILL)
    _wait(lambda: outcomes(output) >= 2)
    first.kill()
    first.wait()

    before = outcomes(output)
    second = subprocess.Popen(on_cluster, cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    _wait(lambda: outcomes(output) > before)
    second.send_signal(signal.SIGINT)
    _, said = second.communicate(timeout=PATIENCE)
    assert second.returncode == 128 + signal.SIGINT, said
    assert "Finished trials are kept, and running ones have saved their progress." in said
    assert outcomes(output) < 12, "nothing was left to stop"

    done = finished(tmp_path, on_cluster)
    assert "Average accuracy after the last task" in done.stdout
    require_equal(output, sweep_file, rows=18)


def written(folder: Path, values: dict[str, Any], grid: dict[str, Any]) -> Path:
    """Write the file of a sweep."""
    path = folder / "sweep.yaml"
    path.write_text(yaml.safe_dump({"recipe": values, "grid": grid}))
    return path


def command(sweep_file: Path, output: Path, *options: str) -> list[str]:
    """Return a command that performs a sweep."""
    start = [sys.executable, "-m", "perdure", "sweep", str(sweep_file), "-o", str(output)]
    return [*start, *options]


def finished(folder: Path, arguments: list[str]) -> subprocess.CompletedProcess[str]:
    """Execute a command, which must succeed."""
    done = subprocess.run(arguments, cwd=folder, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0, done.stderr
    return done


def outcomes(output: Path) -> int:
    """Return the number of trials of a sweep whose outcome is known."""
    trials = output / "trials.jsonl"
    return len(trials.read_text().splitlines()) if trials.exists() else 0


def require_equal(output: Path, sweep_file: Path, *, rows: int) -> None:
    """Compare the runs and the table of a sweep with those made in this process."""
    alone = sweep(sweep_file, sweep_file.parent / "alone", executor=InProcess())
    for name, folder in alone.runs.items():
        assert differing(folder, output / "runs" / name) == []
    tables = [markdown.table(summary.summarise([folder])) for folder in (output, alone.folder)]
    assert tables[0] == tables[1] and len(tables[0].rows) == rows
