"""Whatever happens while a merger is written: its folder is there whole, or not at all,
and nothing else is left.
"""

import errno
import os
import subprocess
import sys
from pathlib import Path

import forked
import pytest
from peft_folders import adapter, base

import perdure
from perdure import OutputError, merge_checkpoint
from perdure.checkpoints import fold
from perdure.storage import partial, staging

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")


@pytest.fixture
def made(tmp_path):
    folder = base("llama", tmp_path, max_shard_size="8KB")
    return folder, adapter(folder, tmp_path / "one", seed=1)


def beside(made) -> list[str]:
    return sorted(path.name for path in made[0].parent.iterdir())


KILLED = """
import os, random, signal, sys, time
from pathlib import Path
from perdure import merge_checkpoint
base, one, out = map(Path, sys.argv[1:4])
many = int(sys.argv[4])
def merge(place): merge_checkpoint(base, [one], "sum", place)
def content(place):
    return {p.name: p.read_bytes() for p in place.iterdir() if p.name != "README.md"}
calls = 0
def count(frame, event, argument):
    global calls
    calls += event == "c_call"
    if calls == last:
        os.kill(os.getpid(), signal.SIGKILL)
last = None
merge(out.with_name("whole"))  # everything is imported now
whole = content(out.with_name("whole"))
sys.setprofile(count); began = time.time()
merge(out.with_name("counted")); took = time.time() - began
sys.setprofile(None); total, calls = calls, 0
seeded, found = random.Random(0), {"none": 0, "whole": 0, "left": 0}
moments = [("call", n) for n in seeded.sample(range(1, total), many // 2)]
moments += [("call", total - n) for n in range(2, 12)]
moments += [("time", seeded.uniform(0, took)) for _ in range(many // 6)]
for kind, moment in moments:
    child = os.fork()
    if not child:
        if kind == "call":
            last = moment
            sys.setprofile(count)
        merge(out)
        os._exit(0)
    if kind == "time":
        time.sleep(moment)
        os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    found["left"] += bool(list(out.parent.glob(".*perdure-partial")))
    if out.exists():
        found["whole"] += 1
        assert content(out) == whole and (out / "README.md").stat().st_size > 100, moment
        for path in out.iterdir():
            path.unlink()
        out.rmdir()
    else:
        found["none"] += 1
merge(out)
assert content(out) == whole
print(found["none"], found["whole"], found["left"], total)
"""


def test_kill_9_at_many_moments(made):
    out = made[0].parent / "out"
    many = 180 if os.environ.get("PERDURE_SOAK") else 60
    done = forked.python(KILLED, *made, out, str(many))
    assert done.returncode == 0, done.stderr
    none, whole, left, total = map(int, done.stdout.split())
    assert none > many / 4 and left > many / 20 and total > 500, done.stdout
    assert none + whole == many // 2 + 10 + many // 6
    assert beside(made) == ["counted", "llama", "one", "out", "whole"]


def test_two_processes_do_not_disturb_each_other(made):
    """The folder of a living process is not swept; that of a dead one is."""
    out = made[0].parent / "out"
    dead = partial.new_path(made[0].parent)
    dead.mkdir()
    with staging.new_folder(made[0].parent / "other", size=10) as folder:
        assert not dead.exists()
        (folder / "file").write_text("mine")
        merge_checkpoint(made[0], [made[1]], "sum", out)
        assert folder.is_dir()
    assert (made[0].parent / "other" / "file").read_text() == "mine"
    with (
        pytest.raises(OutputError, match="Another process has written"),
        staging.new_folder(out / "x", size=1) as folder,
    ):
        (folder / "a").write_text("a")
        (out / "x").mkdir()
        (out / "x" / "b").write_text("b")
    assert [path.name for path in (out / "x").iterdir()] == ["b"]
    assert beside(made) == ["llama", "one", "other", "out"]


@pytest.mark.parametrize(
    ("number", "message"), [(errno.ENOSPC, "no room"), (errno.EACCES, "cannot be written")]
)
@pytest.mark.parametrize("form", ["model", "adapter"])
def test_errors_of_the_system(number, message, form, made, monkeypatch):
    def refuse(*given, **more):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fold, "_write", refuse)
    monkeypatch.setattr("perdure.checkpoints.export.as_bytes", refuse)
    out = made[0].parent / "deep" / "er" / "out"
    with pytest.raises(OutputError, match=message) as error:
        merge_checkpoint(*made[:1], [made[1]], "sum", out, form=form)
    assert ".safetensors" in str(error.value) and os.strerror(number) in str(error.value)
    assert beside(made) == ["llama", "one"]


def test_no_room_is_said_before_anything_is_written(made, monkeypatch):
    monkeypatch.setattr(staging, "room", lambda output: 1000)
    with pytest.raises(
        OutputError, match=r"needs 0\.\d MB, and there is no room .* 0.0 MB are free"
    ):
        merge_checkpoint(made[0], [made[1]], "sum", made[0].parent / "out")
    assert beside(made) == ["llama", "one"]


LIMITED = """
import resource, sys
from perdure import OutputError, merge_checkpoint
resource.setrlimit(resource.RLIMIT_FSIZE, (6000, 6000))
try:
    merge_checkpoint(sys.argv[1], [sys.argv[2]], "sum", sys.argv[3])
except OutputError as error:
    sys.exit(f"refused: {error}")
"""


def test_a_limit_of_the_system(made):
    done = forked.python(LIMITED, *made, made[0].parent / "out")
    assert done.returncode == 1 and "refused" in done.stderr and ".safetensors`" in done.stderr, (
        done.stderr
    )
    assert beside(made) == ["llama", "one"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_may_not_be_written(made):
    locked = made[0].parent / "locked"
    locked.mkdir(mode=0o555)
    with pytest.raises(OutputError, match="Permission denied"):
        merge_checkpoint(made[0], [made[1]], "sum", locked / "out")
    assert not list(locked.iterdir())


def test_an_output_that_is_a_file_or_below_one(made):
    (made[0].parent / "file").write_text("x")
    for place in (made[0].parent / "file", made[0].parent / "file" / "out", made[0]):
        with pytest.raises(OutputError):
            merge_checkpoint(made[0], [made[1]], "sum", place)
    (made[0].parent / "empty").mkdir()
    assert merge_checkpoint(made[0], [made[1]], "sum", made[0].parent / "empty").written
    assert beside(made) == ["empty", "file", "llama", "one"]


MEASURED = """
import resource, sys
from perdure import merge_checkpoint
import torch
def written():
    return int(next(l for l in open("/proc/self/io") if l.startswith("wchar")).split()[1])
before = written(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
merge_checkpoint(sys.argv[1], [sys.argv[2]], "sum", sys.argv[3])
print(written() - before[0], resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before[1])
"""


@pytest.mark.skipif(not Path("/proc/self/io").exists(), reason="needs Linux")
def test_bytes_written_and_memory(tmp_path):
    """Of a model of 84 MB each byte is written once, and little of it is in memory at a time.

    By a new process, none that was forked, so that its memory is its own.
    """
    folder = base("llama", tmp_path, vocab_size=8000, hidden_size=512, intermediate_size=2048)
    one = adapter(folder, tmp_path / "one", seed=1)
    environment = os.environ | {"PYTHONPATH": str(Path(perdure.__file__).parents[1])}
    command = [sys.executable, "-c", MEASURED, str(folder), str(one), str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr
    written, memory = map(int, done.stdout.split())
    size = sum(path.stat().st_size for path in (tmp_path / "out").iterdir())
    assert size > 60e6 and size <= written <= 1.1 * size
    assert memory < 40_000, f"{memory} KB more than after `import torch`"
