"""Make the regression folder of a format: `python tests/formats/make.py NUMBER`, once,
when a format is new.

Small runs, one of them stopped inside its second task; the tables and the pico backbone they were
made from; and what their models predict. They are committed and never made again:
later versions have to read them as they are (`test_formats.py`).
"""

import csv
import json
import os
import random
import signal
import sys
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
import transformers

from perdure import Model, Recipe, Stopped
from perdure.checks.models import WORDS, tokenizer
from perdure.runs.writer import Writer

TABLES = {"fruit": ("apple", "pear"), "colour": ("red", "green", "blue")}
TEXTS = [f"{WORDS[i]} {WORDS[(7 * i) % 60]} {WORDS[(11 * i + 3) % 60]}" for i in range(12)]
TRAINING = {"epochs": 2, "batch_size": 8, "learning_rate": 0.01}
RECIPES = {
    "isolated": {
        "method": {"name": "isolated", "rank": 2},
        "training": {**TRAINING, "keep_inputs": True},
    },
    "inflora": {
        "method": {"name": "inflora", "rank": 2, "tasks": 2},
        "training": {**TRAINING, "alignment": {}},
    },
    "stopped": {
        "method": {"name": "sequential", "rank": 2},
        "training": {**TRAINING, "checkpoint_steps": 2},
    },
}


def main() -> None:
    folder = Path(__file__).parent / sys.argv[1]
    folder.mkdir()
    os.chdir(folder)  # so that no recipe names a place of this machine
    sizes = {
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 32,
    }
    config = transformers.BertConfig(
        vocab_size=len(WORDS) + 4, max_position_embeddings=40, pad_token_id=0, **sizes
    )
    torch.manual_seed(7)
    transformers.AutoModelForSequenceClassification.from_config(config).save_pretrained("backbone")
    tokenizer().save_pretrained("backbone")
    for number, (name, classes) in enumerate(TABLES.items()):
        rng = random.Random(number)
        rows = [
            (" ".join(rng.choices(WORDS[5 * i : 5 * i + 8], k=6)), label)
            for i, label in enumerate(classes)
        ] * 2
        rows += [
            (
                " ".join(rng.choices(WORDS[5 * (i % len(classes)) :][:8], k=6)),
                classes[i % len(classes)],
            )
            for i in range(24)
        ]
        with open(f"{name}.csv", "w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([("text", "label"), *rows])
    stream = [{"data": f"{name}.csv"} for name in TABLES]
    expected = {}
    for name, settings in RECIPES.items():
        recipe = Recipe.parse(
            {"stream": stream, "backbone": {"model": "backbone", "pooling": "mean"}, **settings}
        )
        stop(recipe, name) if name == "stopped" else recipe.run(name)
        found = Model(name).predict(TEXTS)
        expected[name] = [[one.label, one.probability, one.task] for one in found]
    Path("expected.json").write_text(
        json.dumps({"texts": TEXTS, "predictions": expected}, indent=1) + "\n"
    )


def stop(recipe: Recipe, name: str) -> None:
    """Do what a recipe says, and have a signal come in the fourth step of the second task."""
    event = Writer.event

    def noted(self: Writer, values: dict) -> None:
        event(self, values)
        if (values.get("task"), values.get("step")) == ("colour", 3):
            os.kill(os.getpid(), signal.SIGTERM)

    Writer.event = noted
    try:
        recipe.run(name)
    except Stopped:
        return
    finally:
        Writer.event = event


if __name__ == "__main__":
    main()
