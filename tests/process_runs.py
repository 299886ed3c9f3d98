"""Runs of pico models by many methods, made by as many processes as a launcher starts.

Started with a kind of model, a folder and settings as JSON, this file makes a run by each method
and prints, for each method that refuses to, why.
"""

import json
import os
import signal
import sys
from pathlib import Path

import torch
from small_runs import small

import perdure
from perdure import Backbone, InputError, Method, TaskStream, Training
from perdure.checks.models import Family, text_stream, toy_stream
from perdure.runs.writer import Writer

BATCH = 10
"""The last batch of an epoch of 32 examples has two: one of three processes gets none."""
STEPS: dict[Family, int] = {"encoder": 8, "causal": 4, "seq2seq": 4}
"""The number of steps of the first task, in two epochs."""
OWN_NOISE = ("vcl", "td_vcl")
"""By default, these draw other noise in each process."""


def make(
    family: Family, folder: Path, methods: list[str], *, sharding: str, suffix: str = ""
) -> dict[str, str]:
    """Make a run by each method, and return why a method refused to."""
    refused = {}
    for name in methods:
        try:
            make_run(family, folder / "model", folder / f"{name}{suffix}", name, sharding)
        except InputError as error:
            refused[name] = str(error)
    return refused


def make_run(family: Family, model: Path, output: Path, name: str, sharding: str) -> None:
    """Make the run of one method, or go on with it."""
    if family == "encoder":
        backbone = Backbone.load(model, pooling="mean", max_length=16)
        stream = TaskStream("toy", toy_stream().tasks[:2])
    else:
        backbone = Backbone.load(model, max_new_tokens=4)
        stream = text_stream()
    training = Training(
        epochs=2,
        batch_size=BATCH,
        learning_rate=0.005,
        backbone_dropout=False,
        checkpoint_steps=3,
        sharding=sharding,
    )
    perdure.run(stream, backbone, method(name), training=training, output=output, seed=3)


def method(name: str) -> Method:
    """Return a small method whose results do not depend on the number of processes."""
    if name in OWN_NOISE:
        return small(name, sampling="weights")
    name, full, _ = name.partition("-full")
    return small(name, peft="full") if full else small(name)


def kill_at(step: int) -> None:
    """Have the process that writes kill itself at a step, counted over all tasks."""
    event = Writer.event
    steps = []

    def noted(self, values):
        event(self, values)
        steps.append(values["event"] == "step")
        if sum(steps) == step:
            os.kill(os.getpid(), signal.SIGKILL)

    Writer.event = noted


if __name__ == "__main__":
    torch.set_num_threads(1)
    settings = json.loads(sys.argv[3])
    if step := settings.pop("kill_at", 0):
        kill_at(step)
    refused = make(sys.argv[1], Path(sys.argv[2]), **settings)
    print(json.dumps(refused))
    torch.distributed.destroy_process_group()
