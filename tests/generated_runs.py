"""Small runs with replay that generates, on pico models that learn to end their answers.

Started with a source, the folder of a model and an output as arguments, this file makes a run, in
as many processes as a launcher starts, and prints what the method has generated.
"""

import json
import sys
from pathlib import Path

import torch
from datasets import Dataset

import perdure
from perdure import Backbone, Run, Task, TaskStream, Training
from perdure.methods.replay import Replay
from perdure.methods.sequential import Sequential

ANSWERS = {"one": "ab", "two": "cde"}
LEARNED = Training(
    epochs=16,
    batch_size=4,
    learning_rate=0.02,
    backbone_dropout=False,
    checkpoint_steps=3,
)


def short(name: str) -> Task:
    """Return a task with the same short answer to each prompt."""
    texts = [f"say {name} {number}" for number in range(8)]
    rows = Dataset.from_dict({"text": texts, "target": [ANSWERS[name]] * 8})
    return Task(name, (), rows, rows, rows, score="exact_match")


def stream() -> TaskStream:
    return TaskStream("short", tuple(map(short, ANSWERS)))


def replay(source: str) -> Replay:
    """Return a method that generates all examples, and answers that are not all right."""
    if source == "own":
        return Replay(method=Sequential(rank=4), source="own", per_class=3, temperature=0.3)
    return Replay(
        method=Sequential(rank=4),
        source="on_policy",
        per_class=3,
        candidates=2,
        select="likelihood",
        temperature=1.5,
    )


def backbone(model: Path) -> Backbone:
    return Backbone.load(model, max_new_tokens=24)


def make_run(source: str, model: Path, output: Path) -> Run:
    return perdure.run(
        stream(), backbone(model), replay(source), training=LEARNED, output=output, seed=3
    )


def texts_of(run: Run, task: str) -> list[dict[str, list[str]]]:
    """Return the generated answers and prompts after a task, each by the task they are of."""
    answers, prompts, _ = run.load_task(task).state["generated"]
    return [answers, prompts]


if __name__ == "__main__":
    torch.set_num_threads(1)
    run = make_run(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))
    print(json.dumps([texts_of(run, name) for name in ANSWERS]))
    torch.distributed.destroy_process_group()
