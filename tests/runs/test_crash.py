"""Kill -9 at any moment: the run goes on, and comes to the same adapters and scores,
bit for bit.
"""

import json
import os
from pathlib import Path

import forked
import pytest

KILLS = int(os.environ.get("PERDURE_KILLS") or ("60" if os.environ.get("PERDURE_SOAK") else "20"))
"""For each method, or a quarter of them."""

# The process that imports everything once; each attempt is a fork of it, so that an attempt takes a
# second. What the attempt does is a real run: nothing in it knows that it will be killed. It is
# killed at the n-th call of a C function (seeded, so that a moment can be found again, and often
# inside training), in a function that writes (the moments that matter most are short),
# or from outside after some time.
SCRIPT = """
import json, os, random, signal, sys, time, warnings
from pathlib import Path
os.environ["HF_HUB_OFFLINE"] = "1"
warnings.filterwarnings("ignore")
warnings.filterwarnings("error", message="A task was being learned with other settings")
import torch
torch.set_num_threads(1)
from conftest import make
from small_runs import small
from perdure import Backbone, Evaluation, Run, TaskStream, Training, run, verify
from perdure.runs import put, writer
from perdure.storage import files, lock, partial, staging
from perdure.checks.models import toy_task

name, kills, folder = sys.argv[1], int(sys.argv[2]), Path(sys.argv[3])
make("bert", folder / "bert")
size = 32 if os.environ.get("PERDURE_SOAK") else 16
fruit = toy_task("fruit", ["apple", "pear"], 1, size)
colour = toy_task("colour", ["red", "green", "blue"], 2, size)
stream = TaskStream("toy", (fruit, colour))
training = Training(
    epochs=2, batch_size=8, learning_rate=0.01, checkpoint_steps=2, best=name == "sequential"
)
WRITING = {module.__file__ for module in (files, lock, partial, staging, put, writer)}
OTHERS = ("read", "_reading", "parse", "check", "_check", "open", "_unique")  # what only reads
READING = {name for name in vars(files) if name.startswith(OTHERS)}
# The reader of YAML, which each recipe is.
READING |= {*vars(files._Reader), "plain", "<genexpr>", "<listcomp>"}

def loaded():
    return Backbone.load(folder / "bert", pooling="mean", max_length=16)

def attempt(place, backbone):
    evaluation = Evaluation(future=True)
    return run(
        stream, backbone, small(name), training=training, evaluation=evaluation, output=place
    )

calls, writes, last = 0, 0, (None, None)
def count(frame, event, argument):
    global calls, writes
    if event == "c_call":
        calls += 1
        writes += frame.f_code.co_filename in WRITING and frame.f_code.co_name not in READING
        if calls == last[0] or writes == last[1]:
            os.kill(os.getpid(), signal.SIGKILL)

def counted(place, backbone, *, call=None, write=None):
    global calls, writes, last
    calls, writes, last = 0, 0, (call, write)
    sys.setprofile(count)
    attempt(place, backbone)
    sys.setprofile(None)
    return calls, writes

def contents(place):
    found = [path for path in place.rglob("*") if path.is_file()]
    times = ("environment.json", "events.jsonl")  # they hold times
    found = [path for path in found if path.name not in times]
    return {str(path.relative_to(place)): path.read_bytes() for path in found}

attempt(folder / "whole", loaded())
whole = contents(folder / "whole")
steps = [event["step"] for event in Run(folder / "whole").events() if event["event"] == "step"]
anywhere, writing = counted(folder / "counted", loaded())
assert contents(folder / "counted") == whole

# by the method's name alone: a path would draw other moments in every checkout
seeded = random.Random(f"{Path(name).stem} {os.environ.get('PERDURE_SEED', '0')}")
places = ("inside a task", "inside evaluation", "before a run", "inside writing")
found = dict.fromkeys(("killed", "runs", *places), 0)
backbone = loaded()
began = time.time(); attempt(folder / "timed", backbone); took = time.time() - began
backbone = loaded()  # for all forks: none of them changes that of another
while found["killed"] < kills or not found["inside a task"]:
    assert found["runs"] < 10 * kills, found
    place = folder / f"part-{found['runs']}"
    found["runs"] += 1
    while True:
        how, moment = seeded.random(), seeded.random()
        child = os.fork()
        if not child:
            if how < 0.4:
                counted(place, backbone, write=1 + int(moment * writing))
            elif how < 0.8:
                counted(place, backbone, call=1 + int(moment * anywhere))
            else:
                attempt(place, backbone)
            os._exit(0)
        if how >= 0.8:
            time.sleep(moment * took)
            os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        if not os.WIFSIGNALED(status):
            assert status == 0, f"the run failed after {found}: {place}"
            break
        found["killed"] += 1
        found["inside a task"] += (place / "unfinished.safetensors").exists()
        found["inside writing"] += bool(list(place.rglob(".*perdure-partial")))
        found["before a run"] += not (place / "recipe.yaml").exists()
        if (place / "recipe.yaml").exists():  # whatever the moment: what is there can be read
            results = Run(place)
            for task in results.tasks:
                results.load_task(task)
            measured = {row["step"] for row in results.scores()}
            found["inside evaluation"] += len(results.tasks) not in measured
            results.events(), results.load_unfinished()
    assert contents(place) == whole, f"{place} differs"
    assert [event["step"] for event in Run(place).events() if event["event"] == "step"] == steps
    assert not verify(place, backbone=False).faults
    assert not list(place.rglob(".*perdure-partial")) and not (place / "lock.json").exists()
print(json.dumps(found | {"calls": anywhere, "calls that write": writing}))
"""


def killed(name: str, kills: int, folder: Path) -> dict[str, int]:
    done = forked.python(SCRIPT, name, kills, folder, timeout=60 * kills)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def short(name: str) -> str:
    return Path(name).stem


MOMENTUM = str(Path(__file__).parents[1] / "momentum.py")
"""A method with an optimizer of its own."""


@pytest.mark.parametrize(
    "name", ["isolated", "sequential", "inflora", "ewc", "si", "replay", MOMENTUM], ids=short
)
def test_kill_9_at_many_moments(name, tmp_path):
    kills = (
        KILLS // 4 if name in ("si", "replay", MOMENTUM) else KILLS
    )  # what they do besides is like what the others do
    found = killed(name, kills, tmp_path)
    print(name, found)
    assert found["killed"] >= kills and found["inside a task"] > 0, found
    assert kills < KILLS or found["inside evaluation"] > 0 and found["inside writing"] > 0, found
