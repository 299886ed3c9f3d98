"""Two processes on one run: the second says who holds it;
what a dead one left is in nobody's way.
"""

import errno
import fcntl
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading

import pytest
from small_runs import TEXTS, make, recipe, table

from perdure import Model, Run, RunError
from perdure.runs.extend import evaluate_run, forget, learn_more
from perdure.runs.verify import verify
from perdure.runs.writer import create, writing
from perdure.storage import lock

HOLD = """
import sys, time
from pathlib import Path
from perdure.storage import lock
with lock.held(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.fixture(scope="module")
def made(pico, tmp_path_factory):
    folder = tmp_path_factory.mktemp("lock")
    return make(
        folder, "r", recipe(folder, ["fruit", "colour"], pico("bert"), training={"epochs": 1})
    )


@pytest.fixture
def results(made, tmp_path):
    return Run(shutil.copytree(made.folder, tmp_path / "r"))


@pytest.fixture
def other(results):
    """Another process that holds the run."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(results.folder)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.communicate()


def test_the_second_process_says_who_holds_it(results, other, made, perdure):  # noqa: F811
    process = f"process {other.pid} on `{socket.gethostname()}`"
    said = f"`{results.folder}` is being written by {process}, since 20"
    data = table(made.folder.parent, "texture")
    commands = [
        ("run", results.folder),
        ("evaluate", results.folder),
        ("forget", results.folder, "fruit"),
        ("learn", results.folder, "--data", data),
    ]
    for command in commands:
        status, out, err = perdure(*command)
        assert status == 1 and said in err and err.count("\n") == 1 and "Traceback" not in err, (
            command
        )
    for call in (
        lambda: evaluate_run(results.folder),
        lambda: forget(results.folder, "fruit"),
        lambda: learn_more(results.folder, {"data": data}),
    ):
        with pytest.raises(RunError, match=f"process {other.pid}"):
            call()
    assert results.tasks == ["fruit", "colour"] and len(results.recipe["stream"]) == 2


def test_reading_needs_no_lock(results, other, made, tmp_path, perdure):  # noqa: F811
    assert len(Model(results).predict(TEXTS)) == len(TEXTS)
    for command in (
        ("show", results.folder),
        ("report", results.folder, "-o", tmp_path / "r.html"),
        ("predict", results.folder, table(made.folder.parent, "fruit"), "-o", tmp_path / "p.csv"),
        ("export", results.folder, "-o", tmp_path / "out"),
    ):
        status, _, err = perdure(*command)
        assert (status, err) == (0, ""), command
    status, out, _ = perdure("verify", results.folder)
    assert (
        status == 0
        and f"Process {other.pid} on `{socket.gethostname()}` is writing it"
        in " ".join(out.split())
    )


def test_what_a_killed_process_left_is_taken_over(results, other):
    assert lock.holder(results.folder)["pid"] == other.pid
    os.kill(other.pid, signal.SIGKILL)
    other.wait()
    assert (results.folder / "lock.json").exists() and lock.holder(results.folder) is None
    with writing(results.folder):
        assert json.loads((results.folder / "lock.json").read_text())["pid"] == os.getpid()
    assert not (results.folder / "lock.json").exists()
    assert verify(results.folder).notes == []


def test_one_of_many_gets_it(results):
    """As many processes as want: at any moment one has it, and the file is gone in the end."""
    script = """
import sys, time
from pathlib import Path
from perdure import RunError
from perdure.storage import lock
folder, got = Path(sys.argv[1]), 0
for _ in range(150):
    try:
        with lock.held(folder):
            (folder / "inside").open("x").close()
            got += 1
            (folder / "inside").unlink()
    except RunError:
        pass
print(got)
"""
    command = [sys.executable, "-c", script, str(results.folder)]
    processes = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in "ab"
    ]
    ends = [process.communicate(timeout=120) for process in processes]
    assert all(not err and int(out) > 0 for out, err in ends), ends
    assert not (results.folder / "lock.json").exists()


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", '{"pid": "1"}', '{"pid": true}', "\0" * 99, "x" * 20_000]
)
def test_a_file_that_says_nothing(text, results):
    (results.folder / "lock.json").write_text(text)
    assert not lock.holder(results.folder)
    with writing(results.folder):
        assert lock._read(results.folder)["pid"] == os.getpid()


def test_a_place_where_no_file_can_be(results):
    (results.folder / "lock.json").mkdir()
    with (
        pytest.raises(Exception, match=r"lock\.json` cannot be written: Is a directory"),
        writing(results.folder),
    ):
        pass
    (results.folder / "lock.json").rmdir()
    (results.folder / "lock.json").symlink_to(results.folder / "recipe.yaml")
    before = (results.folder / "recipe.yaml").read_text()
    with pytest.raises(Exception, match=r"lock\.json` cannot be written"), writing(results.folder):
        pass
    assert (results.folder / "recipe.yaml").read_text() == before and lock.holder(
        results.folder
    ) is None
    (results.folder / "lock.json").unlink()
    os.mkfifo(results.folder / "lock.json")
    assert not lock.holder(results.folder)  # and it does not wait


def test_another_thread_of_this_process(results):
    found = []

    def write():
        try:
            with writing(results.folder):
                found.append("wrote")
        except RunError as error:
            found.append(str(error))

    with writing(results.folder), writing(results.folder):  # one thread may hold it twice over
        thread = threading.Thread(target=write)
        thread.start()
        thread.join()
    assert f"process {os.getpid()} on" in found[0]
    write()
    assert found[1] == "wrote"


# -- a file system that knows no locks


@pytest.fixture
def no_locks(monkeypatch):
    def flock(number, kind):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", flock)


def stated(results, **values):
    about = {
        "pid": os.getppid(),
        "host": socket.gethostname(),
        "since": "2026-01-01",
        "began": None,
    }
    (results.folder / "lock.json").write_text(json.dumps(about | values))


def taken(results):
    try:
        with writing(results.folder):
            return True
    except RunError:
        return False


def test_without_locks_the_process_decides(results, no_locks):
    gone = subprocess.Popen(["true"])
    gone.wait()
    alive = os.getppid()
    assert taken(results)
    stated(results, pid=alive)
    assert not taken(results) and lock.holder(results.folder)["pid"] == alive
    stated(results, pid=alive, began=lock._began(alive))
    assert not taken(results)
    stated(results, pid=gone.pid)
    assert lock.holder(results.folder) is None and taken(results)
    stated(results, pid=alive, began=1)  # another process has its number now
    assert (lock._began(alive) == 1) != taken(results)
    stated(
        results, pid=os.getpid(), began=1
    )  # as in a container, where every first process is number 1
    assert taken(results)
    stated(results, pid=10**30)
    assert not taken(results)  # no process that could be, but who knows


def test_without_locks_another_machine_holds_it_until_a_person_says_otherwise(results, no_locks):
    stated(results, host="elsewhere", pid=2)
    with (
        pytest.raises(RunError, match=r"process 2 on `elsewhere`.* remove `.*lock\.json`"),
        writing(results.folder),
    ):
        pass
    (results.folder / "lock.json").unlink()
    assert taken(results)


def test_other_errors_of_the_file_system_are_said(results, monkeypatch):
    def flock(number, kind):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(fcntl, "flock", flock)
    before = len(os.listdir("/proc/self/fd"))
    with (
        pytest.raises(
            Exception, match="cannot be written: Input/output error. The run is unchanged"
        ),
        writing(results.folder),
    ):
        pass
    assert len(os.listdir("/proc/self/fd")) == before


def test_two_processes_do_not_make_one_run(tmp_path, monkeypatch):
    """The second finds what the first has made while it waited."""
    make_folder = type(tmp_path).mkdir

    def slow(self, *arguments, **options):
        make_folder(self, *arguments, **options)
        if self == tmp_path / "r" and not (self / "recipe.yaml").exists():
            (self / "recipe.yaml").write_text("by: another\n")

    monkeypatch.setattr(type(tmp_path), "mkdir", slow)
    with pytest.raises(Exception, match="already exists and is not empty"):
        create(tmp_path / "r", {"seed": 1})
    assert (tmp_path / "r" / "recipe.yaml").read_text() == "by: another\n"
