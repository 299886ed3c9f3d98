"""Small runs of pico language models, made in Python: closed tasks and a task answered with free
text."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pico_language
from datasets import Dataset

import perdure
from perdure import Backbone, Run, Task, TaskStream, Training

WORDS = {"mood": ("bad", "good"), "sky": ("blue", "grey")}


def rows(count: int, first: int, **columns: Sequence[Any]) -> Dataset:
    """Return prompts, with columns whose values take turns."""
    numbers = range(first, first + count)
    texts = [f"{'ab'[number % 2] * 3} {number}:" for number in numbers]
    values = {name: [of[number % 2] for number in numbers] for name, of in columns.items()}
    return Dataset.from_dict({"text": texts, **values})


def closed(name: str) -> Task:
    """Return a task whose answers are two words."""
    splits = [rows(size, first, label=(0, 1)) for size, first in ((16, 0), (4, 16), (6, 20))]
    return Task(name, WORDS[name], *splits)


def free(name: str = "story", **settings: Any) -> Task:
    """Return a task that is answered with free text."""
    texts = ("once upon", "the end")
    splits = [rows(size, first, target=texts) for size, first in ((16, 0), (4, 16), (6, 20))]
    return Task(name, (), *splits, score="exact_match", **settings)


def run(
    folder: Path,
    kind: str,
    tasks: Sequence[Task],
    *,
    rule: Any = "task_arithmetic",
    settings: dict[str, Any] | None = None,
    rate: float = 0.05,
) -> Run:
    """Learn tasks one after the other on a pico model saved beside the run."""
    model = folder / kind
    if not model.exists():
        pico_language.save(model, kind)
    usual = {"max_new_tokens": 12, "max_length": 64}
    backbone = Backbone.load(model, **{**usual, **(settings or {})})
    method = perdure.find("method", "isolated")(rank=2)
    return perdure.run(
        TaskStream("pico", tuple(tasks)),
        backbone,
        method,
        rule=rule,
        training=Training(epochs=3, batch_size=8, learning_rate=rate),
        output=folder / f"run-{kind}",
    )
