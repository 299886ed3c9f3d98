"""What is written, where, by whom, and what is left of it: names, locks, links, permissions,
and derived files.
"""

import errno
import fcntl
import importlib
import os
import shutil
import stat
import threading
import time
from pathlib import Path

import forked
import pytest
from safetensors import SafetensorError
from small_runs import make, recipe, table

from perdure import InputError, Model, OutputError, Recipe, Run, RunError, forget
from perdure.models.encoder import Encoder
from perdure.report import html, report
from perdure.runs.layout import DERIVED
from perdure.runs.verify import verify
from perdure.runs.writer import writing
from perdure.storage import files, lock, partial, staging
from perdure.sweeps.tune import tune
from perdure.sweeps.tuning import Protocol

diagnosing = importlib.import_module("perdure.analysis.diagnose")  # a function has its name, too
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")


@pytest.fixture(scope="module")
def finished(pico, tmp_path_factory) -> Run:
    folder = tmp_path_factory.mktemp("storage")
    return make(
        folder, "r", recipe(folder, ["fruit", "colour"], pico("bert"), training={"epochs": 1})
    )


@pytest.fixture
def run(finished, tmp_path) -> Run:
    return Run(shutil.copytree(finished.folder, tmp_path / "r"))


def hidden(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if path.name.endswith(partial.ENDING)]


# -- files


def test_a_file_is_there_whole_or_not_at_all(tmp_path):
    path = tmp_path / ("x" * 255)  # the longest name that there is
    with files.writing(path) as file:
        file.write(b"first")
        assert not path.exists() and len(hidden(tmp_path)) == 1
    assert path.read_bytes() == b"first" and os.listdir(tmp_path) == [path.name]
    with pytest.raises(KeyboardInterrupt), files.writing(path) as file:
        file.write(b"second")
        raise KeyboardInterrupt
    assert path.read_bytes() == b"first" and os.listdir(tmp_path) == [path.name]
    with pytest.raises(OutputError, match="already exists"), files.writing(path, replace=False):
        pass


def test_a_file_that_appears_meanwhile_is_not_replaced(tmp_path):
    refused = pytest.raises(OutputError, match="already exists")
    with refused, files.writing(tmp_path / "x", replace=False) as file:
        file.write(b"mine")
        (tmp_path / "x").write_text("theirs")
    assert (tmp_path / "x").read_text() == "theirs" and os.listdir(tmp_path) == ["x"]
    with files.writing(tmp_path / "y", replace=False) as file:
        file.write(b"mine")
    assert (tmp_path / "y").read_bytes() == b"mine"


def test_what_is_written_through_a_link_or_into_a_device(tmp_path):
    (tmp_path / "outside").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / "outside")
    for place in (tmp_path / "link", Path("/dev/null"), tmp_path):
        with pytest.raises(OutputError, match=f"`{place}`"):
            files.write(place, "x")
    with pytest.raises(OSError):
        files.append(tmp_path / "link", "x\n")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="not a regular file"):
        files.append(tmp_path / "pipe", "x\n")
    assert (tmp_path / "outside").read_text() == "mine"


def test_other_names_of_a_file_are_not_written(tmp_path):
    """A hard link, in a folder that somebody else has made or as a backup."""
    (tmp_path / "outside").write_text("mine\n")
    for name in ("events.jsonl", lock.NAME):
        os.link(tmp_path / "outside", tmp_path / name)
    files.append(tmp_path / "events.jsonl", "more\n")
    assert (tmp_path / "events.jsonl").read_text() == "mine\nmore\n"
    with lock.held(tmp_path):
        assert lock.holder(tmp_path)["pid"] == os.getpid()
    assert (tmp_path / "outside").read_text() == "mine\n"


def test_an_error_names_the_file_it_is_about(tmp_path):
    refused = pytest.raises(OutputError, match=f"`{tmp_path / 'x'}` cannot be written: No space")
    with refused, files.writing(tmp_path / "x"):
        raise OSError(errno.ENOSPC, "No space left on device")  # which says no name
    with pytest.raises(FileNotFoundError), files.writing(tmp_path / "x"):
        (tmp_path / "source").read_bytes()  # not about what is written
    with pytest.raises(
        OutputError, match=f"`{tmp_path / 'no' / 'x'}` cannot be written: No such file"
    ):
        files.write(tmp_path / "no" / "x", "")
    assert not os.listdir(tmp_path)


def test_a_file_of_lines_has_an_end(tmp_path):
    with (tmp_path / "lines").open("wb") as file:
        file.write(b"{}\n")
        file.truncate(files.MAX_LINES + 1)  # which takes no room
    with pytest.raises(Exception, match="has more than"):
        list(files.read_lines(tmp_path / "lines"))


# -- left-overs


HOLD = """
import sys, time
from pathlib import Path
from perdure.storage import partial
kept = [partial.new_file(Path(sys.argv[1])), partial.new_folder(Path(sys.argv[1]))]
Path(sys.argv[2]).touch()
time.sleep(600)
"""


def test_only_what_nobody_writes_is_swept(tmp_path):
    place, sign = tmp_path / "place", tmp_path / "sign"
    place.mkdir()
    process = forked.Process(HOLD, place, sign)
    while not sign.exists():
        assert process.poll() is None
        time.sleep(0.02)
    alive = set(hidden(place))
    assert len(alive) == 2
    (place / f".a{partial.ENDING}").symlink_to(tmp_path)  # nothing of ours is a link
    partial.new_path(place).write_text("of a dead process")
    partial.new_path(place).mkdir()
    partial.sweep(place)
    assert set(hidden(place)) == alive | {f".a{partial.ENDING}"}
    process.send_signal(9)
    process.communicate(10)
    files.write(place / "x", "")  # whoever writes there next removes them
    assert hidden(place) == [f".a{partial.ENDING}"]


def test_what_another_machine_writes_is_left_until_it_is_old(tmp_path, monkeypatch):
    with monkeypatch.context() as elsewhere:
        elsewhere.setattr(partial, "_origin", lambda: "01234567")
        path = partial.new_path(tmp_path)
    old = tmp_path / ".report.html.12.perdure-partial"  # as version 0.1 called them
    for place in (path, old):
        place.write_text("theirs")
    partial.sweep(tmp_path)
    assert path.exists() and old.exists()
    for place in (path, old):
        os.utime(place, (0, 0))
    partial.sweep(tmp_path)
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EAGAIN])
def test_without_locks_nothing_hangs(number, tmp_path, monkeypatch):
    def flock(*given):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", flock)
    files.write(tmp_path / "x", "x")
    with staging.new_folder(tmp_path / "folder", size=1) as folder:
        (folder / "y").write_text("y")
    assert sorted(os.listdir(tmp_path)) == ["folder", "x"]
    mine = partial.new_path(tmp_path)
    dead = mine.with_name(mine.name.replace(f".{os.getpid()}.", ".99999999."))
    for place in (mine, dead):
        place.write_text("")
    partial.sweep(tmp_path)
    assert hidden(tmp_path) == [mine.name] or number == errno.EAGAIN


# -- folders


def test_permissions_are_those_of_the_umask(tmp_path):
    before = os.umask(0o027)
    try:
        with staging.new_folder(tmp_path / "out", size=1) as folder:
            (folder / "inside").mkdir(mode=0o700)
            (folder / "inside" / "weights").write_text("")
            (folder / "inside" / "weights").chmod(0o600)  # as some libraries do
        files.write(tmp_path / "file", "")
    finally:
        os.umask(before)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.rglob("*")}
    assert modes == {"out": 0o750, "inside": 0o750, "weights": 0o640, "file": 0o640}


@pytest.mark.parametrize(
    "error",
    [
        SafetensorError(
            "Error while serializing: I/O error: No space left on device (os error 28)"
        ),
        Exception("No space left on device (os error 28)"),  # as tokenizers say it
        OSError(errno.ENOSPC, "No space left on device"),
    ],
)
def test_errors_of_libraries_are_sentences(error, tmp_path):
    refused = pytest.raises(
        OutputError, match=rf"no room for `{tmp_path}/out`.*No space left on device"
    )
    with refused, staging.new_folder(tmp_path / "out", size=1):
        raise error
    with pytest.raises(ZeroDivisionError), staging.new_folder(tmp_path / "out", size=1):
        raise ZeroDivisionError  # a fault of ours stays one
    assert not os.listdir(tmp_path)


# -- runs


def test_tasks_in_another_run(run, finished, tmp_path):
    other = shutil.copytree(finished.folder, tmp_path / "other")
    shutil.rmtree(run.folder / "tasks")
    (run.folder / "tasks").symlink_to(other / "tasks")
    for act in (lambda: forget(run.folder, "fruit"), lambda: Model(run.folder), lambda: run.tasks):
        with pytest.raises(RunError, match=f"`{run.folder / 'tasks'}` is a link"):
            act()
    assert Run(other).tasks == ["fruit", "colour"]


def test_a_run_that_is_a_link_itself(run, tmp_path):
    (tmp_path / "link").symlink_to(run.folder)
    forget(tmp_path / "link", "fruit")
    assert run.tasks == ["colour"] and (tmp_path / "link").is_symlink()


@pytest.mark.parametrize("name", ["recipe.yaml", "events.jsonl", "scores.csv", "report.html"])
def test_a_file_of_a_run_that_is_a_link(name, run, tmp_path):
    (run.folder / name).touch()
    shutil.move(run.folder / name, tmp_path / name)
    before = (tmp_path / name).read_bytes()
    (run.folder / name).symlink_to(tmp_path / name)
    with pytest.raises(RunError, match=f"`{run.folder / name}` is a link"), writing(run.folder):
        pass
    assert (tmp_path / name).read_bytes() == before and (run.folder / name).is_symlink()
    assert run.tasks == ["fruit", "colour"]  # to read is to follow it


@pytest.mark.parametrize("name", ["a.b", "..", b"\xff"])
def test_a_folder_that_can_be_no_task(name, run):
    home = os.fsencode(run.folder / "tasks")
    name = name if isinstance(name, bytes) else name.encode()
    os.rename(home + b"/01-colour", home + b"/01-" + name)
    for act in (lambda: run.tasks, lambda: forget(run.folder, "fruit"), lambda: verify(run.folder)):
        with pytest.raises(RunError, match="cannot be the folder of a task") as error:
            act()
        str(error.value).encode("utf-8")
    report([run.folder], run.folder / "report.html")


@pytest.mark.parametrize(
    ("name", "deep", "said"), [("x" * 253, 0, "shorter name"), ("x", 20, "`--output`")]
)
def test_names_that_are_too_long_are_refused_before_training(name, deep, said, pico, tmp_path):
    entry = {"data": table(tmp_path, "fruit"), "name": name}
    output = tmp_path.joinpath(*["d" * 200] * deep, "r")
    with pytest.raises(InputError, match=said):
        Recipe.parse(recipe(tmp_path, [entry], pico("bert"))).run(output)
    assert [path.name for path in tmp_path.iterdir()] == ["fruit.csv"]


def test_one_process_tunes_in_a_folder(pico, tmp_path):
    out, ready, done = tmp_path / "out", threading.Event(), threading.Event()
    out.mkdir()

    def hold():
        with lock.held(out):
            ready.set()
            done.wait(60)

    thread = threading.Thread(target=hold)
    thread.start()
    ready.wait(60)
    protocol = Protocol(tasks=1, trials=1)
    given = Recipe.parse(recipe(tmp_path, ["fruit"], pico("bert"), training={"epochs": 1}))
    with pytest.raises(RunError, match=f"`{out}` is being written by process {os.getpid()}"):
        tune(given, out, protocol=protocol)
    done.set()
    thread.join()
    assert len(tune(given, out, protocol=protocol).trials) == 1
    assert sorted(os.listdir(out)) == ["trials.jsonl", "tuned.yaml"]


# -- what was made of tasks that are gone


def _report(run: Run) -> Path:
    report([run.folder], run.folder / "report.html")
    return run.folder / "report.html"


def _diagnose(run: Run) -> Path:
    diagnosing.diagnose(run.folder, only=["interference"])
    return run.folder / "diagnostics.json"


def _export(run: Run) -> Path:
    return Model(run.folder).export(run.folder.parent / "out")


MADE = {"report": _report, "diagnose": _diagnose, "export": _export}


def meanwhile(monkeypatch, module, name, act, *, after=False):
    """Have something happen once, before or after a function is called."""
    inner, acts = getattr(module, name), [act]

    def call(*given, **more):
        if not after and acts:
            acts.pop()()
        value = inner(*given, **more)
        if after and acts:
            acts.pop()()
        return value

    monkeypatch.setattr(module, name, call)


@pytest.mark.parametrize("kind", MADE)
def test_what_began_before_a_task_was_forgotten(kind, run, monkeypatch):
    inside = {
        "report": (html, "to_html"),
        "diagnose": (diagnosing, "_with_earlier"),
        "export": (Encoder, "save"),
    }
    meanwhile(monkeypatch, *inside[kind], lambda: forget(run.folder, "fruit"))
    with pytest.raises(RunError, match="`fruit` .* was forgotten or learned again meanwhile"):
        MADE[kind](run)
    assert run.tasks == ["colour"] and not [
        name for name in DERIVED if (run.folder / name).exists()
    ]
    assert os.listdir(run.folder.parent) == ["r"] and not hidden(run.folder)
    assert MADE[kind](run).exists() and not verify(run.folder, backbone=False).faults


@pytest.mark.parametrize("kind", MADE)
def test_a_task_that_is_forgotten_in_the_last_instant(kind, run, monkeypatch):
    """After the sources were checked, and before the file has its name: it is taken back."""
    place = (os, "rename") if kind == "export" else (os, "replace")
    meanwhile(monkeypatch, *place, lambda: forget(run.folder, "fruit"))
    with pytest.raises(RunError, match="was forgotten or learned again meanwhile"):
        MADE[kind](run)
    assert run.tasks == ["colour"] and not [
        name for name in DERIVED if (run.folder / name).exists()
    ]
    assert os.listdir(run.folder.parent) == ["r"] and not hidden(run.folder)


@pytest.mark.parametrize("kind", ["report", "diagnose"])
def test_what_tells_of_a_task_that_is_gone(kind, run):
    """As a process leaves it that was killed in between: `verify` says so,
    and who writes the run next removes it.
    """
    path = MADE[kind](run)
    assert not verify(run.folder, backbone=False).faults
    content = path.read_bytes()
    forget(run.folder, "fruit")
    assert not path.exists()
    path.write_bytes(content)
    (fault,) = verify(run.folder, backbone=False).faults
    assert f"`{path}` was made from the task `fruit`, which was forgotten" in fault
    with writing(run.folder):
        assert not path.exists()


def test_a_report_of_several_runs_is_taken_back_as_well(run, finished, tmp_path, monkeypatch):
    other = shutil.copytree(finished.folder, tmp_path / "other")
    meanwhile(monkeypatch, html, "to_html", lambda: forget(other, "colour"))
    with pytest.raises(RunError, match="`colour` .* was forgotten"):
        report([run.folder, other], tmp_path / "page.html")
    assert not (tmp_path / "page.html").exists()
    report(
        [run.folder, other], run.folder / "report.html"
    )  # names tasks of several runs: nobody's own
    assert not verify(run.folder, backbone=False).faults
