"""Runs of pico models whose weights are sharded if several processes make them.

Started with a model, a folder, and pairs of a method and a rule, each as JSON, this file makes a
run of each pair and prints the largest share of the weights that the process has stored. A pair
may have a third value, the sharding.
"""

import json
import sys
from pathlib import Path

import image_tasks
import language_runs
import torch
from torch.distributed.tensor import DTensor

import perdure
from perdure import Backbone, Run, TaskStream, Training
from perdure.checks.models import toy_stream
from perdure.models import placement
from perdure.runs.recipe import make_method


def make(model: Path, output: Path, pairs: list[list]) -> tuple[list[Run], float]:
    """Make the runs, and return the largest share of the weights that this process has stored."""
    runs = []
    shares = [0.0]
    kind = json.loads((model / "config.json").read_text())["model_type"]
    for number, (method, rule, *other) in enumerate(pairs):
        if kind == "bert":
            backbone = Backbone.load(model, max_length=16)
            tasks = toy_stream().tasks[:2]
        elif kind == "vit":
            backbone = Backbone.load(model)
            tasks = image_tasks.stream().tasks
        else:
            backbone = Backbone.load(model, max_length=64, max_new_tokens=12)
            tasks = (language_runs.closed("mood"), language_runs.closed("sky"))
            if method == "isolated":
                tasks = (tasks[0], language_runs.free())
        training = Training(
            epochs=2,
            batch_size=6,
            learning_rate=0.005,
            backbone_dropout=False,
            sharding=other[0] if other else "fsdp",
        )
        stream = TaskStream("pico", tasks)
        made = make_method(method)
        output.mkdir(exist_ok=True)
        run = perdure.run(
            stream, backbone, made, rule, training=training, output=output / str(number)
        )
        runs.append(run)
        if placement.is_sharded(backbone.model):
            shares.append(share(backbone))
    return runs, max(shares)


def share(backbone: Backbone) -> float:
    """Return the share of the model's weights that this process stores."""
    stored = whole = 0
    for value in backbone.parameters():
        whole += value.numel()
        stored += value.to_local().numel() if isinstance(value, DTensor) else value.numel()
    return stored / whole


if __name__ == "__main__":
    torch.set_num_threads(1)
    model, output, pairs = sys.argv[1:]
    _, stored = make(Path(model), Path(output), json.loads(pairs))
    print(stored)
    torch.distributed.destroy_process_group()
