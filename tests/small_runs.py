"""Small methods, small tables, recipes on them, runs that are stopped,
and the comparison of two run folders.
"""

import json
import os
import random
import signal
from pathlib import Path
from typing import Any

import forked
import pytest
import torch
import yaml
from tables import write

from perdure import Method, Model, PeftMethod, Recipe, Run, Stopped, registry
from perdure.checks.models import WORDS
from perdure.runs.writer import Writer

TABLES = {
    "fruit": ("apple", "pear"),
    "colour": ("red", "green", "blue"),
    "texture": ("round", "square"),
    "size": ("big", "small"),
}
TEXTS = [f"{WORDS[i]} {WORDS[(7 * i) % 60]} {WORDS[(11 * i + 3) % 60]}" for i in range(30)]
TRAINING = {"epochs": 2, "batch_size": 8, "learning_rate": 0.01}
RANDOM_FEATURES = ("anacp", "klda", "ranpac")
"""The methods on random features, of which tests need few."""
OPTIMIZER = torch.optim.AdamW([torch.zeros(1)])
"""For a method's `end` that asks nothing of it."""


def small(name: str, **settings: Any) -> Method:
    """A method with settings that are quick; one that wraps another wraps LwF."""
    found = registry.find("method", name)
    if "method" in registry.options(found):
        few = {"per_class": 3} if "per_class" in registry.options(found) else {}
        return found(method=small("lwf"), **few, **settings)
    if issubclass(found, PeftMethod):
        return found(rank=2, **settings)
    return found(**({"features": 50} if name in RANDOM_FEATURES else {}), **settings)


def table(folder: Path, name: str, size: int = 30) -> str:
    """Texts of six words, the first of which tell the class; written once."""
    path, classes = folder / f"{name}.csv", TABLES[name]
    if not path.exists():
        rng, first = random.Random(name), 13 * list(TABLES).index(name)
        rows = [
            (
                " ".join(
                    rng.choices(WORDS[(first + 4 * (i % len(classes))) % 56 :][:4], k=4)
                    + rng.choices(WORDS, k=2)
                ),
                classes[i % len(classes)],
            )
            for i in range(size)
        ]
        write(path, rows)
    return str(path)


def recipe(folder: Path, names: Any, backbone: Path, **settings: Any) -> dict[str, Any]:
    """A recipe on tables: by their names, or as entries of its stream."""
    stream = [{"data": table(folder, name)} if isinstance(name, str) else name for name in names]
    training = TRAINING | settings.pop("training", {})
    method = {"name": "isolated", "rank": 2}
    return {
        "stream": stream,
        "backbone": {"model": str(backbone), "pooling": "mean", "max_length": 8},
        "method": method,
        **settings,
        "training": training,
    }


def contents(run: Run | Path) -> dict[str, Any]:
    """What two runs that are the same have in common, by file: all but hardware, times,
    and what was forgotten.
    """
    folder = Path(run.folder if isinstance(run, Run) else run)
    found: dict[str, Any] = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_file() and name not in (
            "environment.json",
            "report.html",
            "events.jsonl",
            "recipe.yaml",
        ):
            found[name] = path.read_bytes()
    found["recipe.yaml"] = yaml.safe_load((folder / "recipe.yaml").read_text())
    found["recipe.yaml"].pop("forgotten", None)
    events = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    events = [
        event for event in events if event["event"] != "environment"
    ]  # threads, the state of the sources, …
    found["events.jsonl"] = [
        {key: value for key, value in e.items() if key != "seconds"} for e in events
    ]
    return found


def differing(one: Run | Path, other: Run | Path) -> list[str]:
    """The files in which two runs differ.

    What may be deleted, and is when a task is forgotten, may be missing.
    """
    a, b = contents(one), contents(other)
    if not (a.keys() & b.keys()) >= {"answers.json"}:
        a.pop("answers.json", None)
        b.pop("answers.json", None)
    return [name for name in sorted({*a, *b}) if a.get(name) != b.get(name)]


def answers(run: Run | Path) -> list[tuple[str, float, str]]:
    """What a run's model says, with probabilities to the last bit."""
    return [(found.label, found.probability, found.task) for found in Model(run).predict(TEXTS)]


def make(folder: Path, name: str, values: dict[str, Any], settings: tuple[str, ...] = ()) -> Run:
    return Recipe.parse(values, settings).run(folder / name)


def stopped(
    begin: Any,
    folder: Path,
    name: str,
    *arguments: Any,
    task: str,
    step: int,
    how: str = "Go on with",
) -> Run:
    """Do `begin`, and have a signal come at a step of a task."""
    event = Writer.event

    def noted(self, values):
        event(self, values)
        if values.get("task") == task and values.get("step") == step:
            os.kill(os.getpid(), signal.SIGTERM)

    with (
        pytest.MonkeyPatch.context() as patch,
        pytest.raises(Stopped, match=f"What was learned is kept. {how}"),
    ):
        patch.setattr(Writer, "event", noted)
        begin(folder, name, *arguments)
    return Run(folder / name)


KILLED = """
import os, signal, sys
sys.path.insert(0, sys.argv[1])
from importlib import import_module
from pathlib import Path
from perdure.runs.writer import Writer

event, steps = Writer.event, []

def noted(self, values):
    event(self, values)
    steps.append(values["event"] == "step")
    if sum(steps) == int(sys.argv[3]):
        os.kill(os.getpid(), signal.SIGKILL)

Writer.event = noted
import_module(sys.argv[2]).begin(Path(sys.argv[4]), Path(sys.argv[5]))
"""


def killed_at_step(test_file: str, number: int, model: Path, output: Path) -> None:
    """Call a test module's `begin(model, output)` in a process that is killed at a step."""
    path = Path(test_file)
    done = forked.python(KILLED, path.parent, path.stem, number, model, output, timeout=120)
    assert done.returncode == -signal.SIGKILL, done.stderr
