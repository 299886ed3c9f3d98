"""Sweeps on Ray: a real cluster of two node processes, and addresses that do not answer."""

import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
import yaml
from in_process import InProcess
from small_runs import differing, recipe

from perdure import InputError, sweep
from perdure.report import markdown, summary
from perdure.sweeps import on_ray
from perdure.sweeps.on_ray import OnRay

needs_ray = pytest.mark.skipif(
    importlib.util.find_spec("ray") is None,
    reason="Ray is not installed: pip install 'perdure[ray]'",
)


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
def cluster(monkeypatch):
    """The address of a Ray cluster of two nodes with one CPU each."""
    # otherwise it depends on what was started on this machine before
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
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


def _wait(reached, seconds=900):
    deadline = time.monotonic() + seconds
    while not reached():
        assert time.monotonic() < deadline
        time.sleep(0.1)


@needs_ray
@pytest.mark.skipif(
    not os.environ.get("PERDURE_SOAK"), reason="two nodes of Ray take minutes: PERDURE_SOAK=1"
)
def test_a_sweep_that_is_killed_and_stopped(cluster, tmp_path, pico):
    """A worker is killed, then the sweep, then it is stopped by Ctrl-C, which saves the runs.

    In the end, the runs are the same, byte for byte, and so is the table.
    """
    values = recipe(tmp_path, ("fruit", "colour"), pico("bert"), training={"epochs": 20})
    values["training"]["checkpoint_steps"] = 5
    grid = {"method.rank": [2, 4], "seed": [0, 1]}
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump({"recipe": values, "grid": grid}))
    output = tmp_path / "out"
    command = ["sweep", str(tmp_path / "sweep.yaml"), "-o", str(output)]
    command = [sys.executable, "-m", "perdure", *command, "--executor", "ray"]
    command += ["--address", cluster]
    first = subprocess.Popen(command, cwd=tmp_path)
    _wait(lambda: list(output.glob("runs/*/unfinished.safetensors")))
    # its lock names the process that performs a trial
    run = next(output.glob("runs/*/unfinished.safetensors")).parent
    holder = yaml.safe_load((run / "lock.json").read_text())["pid"]
    os.kill(holder, signal.SIGKILL)
    _wait(lambda: (output / "trials.jsonl").exists())
    first.kill()
    first.wait()
    before = (output / "trials.jsonl").read_text()
    second = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    _wait(lambda: (output / "trials.jsonl").read_text() != before)
    second.send_signal(signal.SIGINT)
    _, said = second.communicate(timeout=300)
    assert second.returncode == 128 + signal.SIGINT, said
    assert "Finished trials are kept, and running ones have saved their progress." in said
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert "Average accuracy after the last task" in done.stdout
    alone = sweep(tmp_path / "sweep.yaml", tmp_path / "alone", executor=InProcess())
    for name, folder in alone.runs.items():
        assert differing(folder, output / "runs" / name) == []
    tables = [markdown.table(summary.summarise([folder])) for folder in (output, alone.folder)]
    assert tables[0] == tables[1] and len(tables[0].rows) == 6
