"""Read run folders after one of their files was changed:
`python fuzz_run_folder.py PLACE SEED FIRST LAST`.

Each input is made from the seed and its number alone. After it everything that reads a run is
called: allowed is that it works, or a `PerdureError`. Memory is limited to what there is before the
first input and `MEMORY` more; an input that takes longer than `SECONDS` hangs. Prints JSON:
what came out how often, and what should not have.

In PLACE there must be the runs of `tests/formats/1` and what they were made from.
"""

import collections
import contextlib
import faulthandler
import json
import os
import resource
import shutil
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import torch
import transformers
from mutations import mutate

from perdure import Model, PerdureError, Recipe, Run, forget, verify
from perdure.learning import engine
from perdure.report.html import to_html
from perdure.report.summary import summarise
from perdure.runs.writer import Writer
from perdure.storage import lock

MEMORY = 500_000_000  # bytes
SECONDS = 10
TEXTS = ["w1 w2", "w3"]
RUNS = ("isolated", "inflora", "stopped", "stopped", "bottleneck", "replayed", "sums")
STEPS = {"epochs": 2, "batch_size": 8, "learning_rate": 0.01}


class Hang(BaseException):
    """An input takes too long."""


def prepare() -> None:
    """Beside the runs of format 1: those of the newest that stopped inside their second task,
    and one of bottlenecks.

    One of them keeps examples and anchors, one sums of features:
    what a method remembers is read when they go on.
    """
    Path("outside").mkdir()
    Path("outside/file").write_text("mine")
    stream = [{"data": "fruit.csv"}, {"data": "colour.csv"}]
    common = {"stream": stream, "backbone": {"model": "backbone", "pooling": "mean"}}
    method = {"name": "isolated", "rank": 2, "target_modules": "bert.*query|.*value"}
    methods: dict[str, Any] = {
        "stopped": method,
        "replayed": {"name": "replay", "method": {"name": "ewc", "rank": 2}, "per_class": 2},
        "sums": {"name": "lda"},
    }
    kept = Writer.unfinished

    def stop(writer: Writer, snapshot: Any) -> None:
        kept(writer, snapshot)
        second = len(Run(writer.folder).tasks) == 1
        if (
            second and snapshot and snapshot.about["step"] in (0, 4)
        ):  # none is made where nothing is trained
            raise KeyboardInterrupt

    Writer.unfinished = stop
    for name, method in methods.items():
        training = {**STEPS, "checkpoint_steps": 1, "best": name == "stopped"}
        with contextlib.suppress(KeyboardInterrupt):
            Recipe.parse({**common, "method": method, "training": training}).run(name)
    Writer.unfinished = kept
    Path("stopped/lock.json").write_text(
        '{"pid": 4000000, "host": "elsewhere", "since": "2026-01-01T00:00:00+00:00"}'
    )
    method = {"name": "isolated", "rank": 2, "peft": "bottleneck"}
    rule = {"name": "task_arithmetic", "space": "factor", "scale": "search"}
    Recipe.parse({**common, "method": method, "rule": rule, "training": STEPS}).run("bottleneck")


def actions(
    folder: Path, random: Random, *, recipe_is_sound: bool
) -> Iterator[tuple[str, Callable[[], Any]]]:
    """Everything that reads a run; what takes longer, or changes it, sometimes."""
    tasks: list[str] = []
    yield "Run", lambda: Run(folder)
    yield "tasks", lambda: tasks.extend(Run(folder).tasks)
    for name in tasks:
        yield "load_task", lambda name=name: Run(folder).load_task(name)
    for name in ("scores", "events", "combined", "matrix", "load_unfinished"):
        yield name, lambda name=name: getattr(Run(folder), name)()
    yield "verify", lambda: verify(folder, backbone=random.random() < 0.3)
    yield "summarise", lambda: summarise([folder])
    yield "holder", lambda: lock.holder(folder)
    if random.random() < 0.03:
        yield "report", lambda: to_html(summarise([folder]))
    if random.random() < 0.4:
        yield "Model", lambda: Model(folder).predict(TEXTS)
    if random.random() < 0.1:
        yield "forget", lambda: forget(folder, "fruit")
    often = 0.7 if (folder / "unfinished.safetensors").exists() else 0.1
    if random.random() < often and recipe_is_sound:  # one that is not may ask for endless training
        yield "go on", lambda: Recipe.read(folder / "recipe.yaml").run(folder)
    elif random.random() < 0.3:
        yield "plan", lambda: Recipe.parse(Run(folder).recipe).plan()


def attempt(number: int, seed: int, found: dict[str, Any]) -> None:
    """One input."""
    random = Random(f"{seed} {number}")
    case = Path("case").absolute()
    shutil.rmtree(case, ignore_errors=True)
    shutil.copytree(random.choice(RUNS), case)
    said = mutate(case, random)
    found["files"][said.split(":")[0].split("/")[-1]] += 1
    sound = not said.startswith("recipe.yaml")
    for name, action in actions(case, random, recipe_is_sound=sound):
        began = time.monotonic()
        signal.alarm(SECONDS)
        faulthandler.dump_traceback_later(6 * SECONDS, exit=True)
        try:
            action()
            found["outcomes"][f"{name}: fine"] += 1
        except PerdureError:
            found["outcomes"][f"{name}: refused"] += 1
        except (Exception, Hang) as error:
            signal.alarm(0)
            frames = [
                frame
                for frame in traceback.extract_tb(error.__traceback__)
                if "/perdure/" in frame.filename
            ]
            where = f"{Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else "?"
            key = f"{name}: {type(error).__name__} at {where}"
            fault = {
                "input": number,
                "said": said,
                "error": str(error)[:200],
                "trace": [
                    f"{Path(frame.filename).name}:{frame.lineno} {frame.name}" for frame in frames
                ],
            }
            found["faults"].setdefault(key, fault)
            found["outcomes"][f"{name}: WRONG"] += 1
        finally:
            signal.alarm(0)
            took = time.monotonic() - began
            if took > found["longest"][0]:
                found["longest"] = [took, number, name, said]
    assert Path("outside/file").read_text() == "mine", f"{number}: {said}"
    engine.wait()


def main() -> None:
    place, seed, first, last = sys.argv[1], *map(int, sys.argv[2:])
    os.chdir(place)
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    transformers.logging.disable_progress_bar()
    transformers.logging.set_verbosity_error()
    prepare()
    began = time.monotonic()
    for run in RUNS:  # everything is imported now
        to_html(summarise([run]))
        Model(run).predict(TEXTS)

    def hang(*_: Any) -> None:
        raise Hang

    signal.signal(signal.SIGALRM, hang)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, resource.RLIM_INFINITY))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found: dict[str, Any] = {
        "inputs": last - first,
        "outcomes": collections.Counter(),
        "files": collections.Counter(),
        "faults": {},
        "longest": [0.0],
    }
    for number in range(first, last):
        attempt(number, seed, found)
    found["seconds"] = round(time.monotonic() - began, 1)
    found["more_memory"] = 1000 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
