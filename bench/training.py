"""What training an encoder costs, beside transformers' Trainer with peft.

MiniLM with LoRA learns newsgroups of the demo, texts of mixed length, in one epoch. The exit status
is 1 when our accuracy is lower by more than ten points, or a target is missed.
"""

import argparse
import random
import sys
from collections.abc import Callable
from typing import Any

import peft
import torch
import trainer
import transformers
from measure import Row, in_turn, table

from perdure import Backbone, Task, Training, learn
from perdure.benchmarks.demo import demo
from perdure.bundled.minilm import minilm
from perdure.methods.isolated import Isolated

BATCH, LENGTH, RANK = 16, 128, 8
RATE, HEAD_RATE = 1e-3, 1e-2
TESTED = 100
Accuracy = Callable[[], float]
TARGETS = {"random batches": 2.3, "length grouping": 1.4}


def newsgroups(texts: int) -> Task:
    """Return the demo's task with five groups on computers, its texts cut to mixed lengths."""
    draw = random.Random(0)

    def cut(row: dict[str, str]) -> dict[str, str]:
        words = row["text"].split()
        # Of a message, a line up to all that the model reads.
        return {"text": " ".join(words[: int(2 ** draw.uniform(2, 7))])}

    whole = demo(train=texts, test=TESTED).task("computers")
    return Task(
        whole.name,
        whole.classes,
        whole.train.map(cut, load_from_cache_file=False),
        whole.validation,
        whole.test,
    )


def usual(task: Task, source: str, *, groups: bool) -> Accuracy:
    """Train as one usually does; return a function that measures the accuracy."""
    torch.manual_seed(0)
    tokenizer = transformers.AutoTokenizer.from_pretrained(source)
    stock = transformers.AutoModelForSequenceClassification.from_pretrained(
        source, num_labels=len(task.classes)
    )
    config = peft.LoraConfig(
        task_type="SEQ_CLS",
        r=RANK,
        lora_alpha=2 * RANK,
        target_modules=["query", "value"],
    )
    model: Any = peft.get_peft_model(stock, config)

    def encoded(data):
        tokens = tokenizer(data["text"][:], truncation=True, max_length=LENGTH)
        names = list(tokens)
        rows = [
            dict(zip(names, values, strict=True)) for values in zip(*tokens.values(), strict=True)
        ]
        return [row | {"labels": label} for row, label in zip(rows, data["label"][:], strict=True)]

    optimizer = torch.optim.AdamW(
        [
            {"params": [p for n, p in model.named_parameters() if "lora" in n], "lr": RATE},
            {"params": list(model.base_model.model.classifier.parameters()), "lr": HEAD_RATE},
        ]
    )
    order = "group_by_length" if groups else "random"
    trainer.epoch(
        model,
        batch_size=BATCH,
        rate=RATE,
        optimizer=optimizer,
        settings={"warmup_steps": 0.1, "train_sampling_strategy": order},
        train_dataset=encoded(task.train),
        processing_class=tokenizer,  # whose collator pads to the longest of a batch
    )

    def accuracy() -> float:
        model.eval()
        right = 0
        for row in encoded(task.test):
            label = row.pop("labels")
            inputs = {name: torch.tensor([values]) for name, values in row.items()}
            right += int(model(**inputs).logits.argmax()) == label
        return right / len(task.test)

    return accuracy


def ours(task: Task, source: str) -> Accuracy:
    """Train with the library; return a function that measures the accuracy."""
    backbone = Backbone.load(source, max_length=LENGTH)
    training = Training(
        epochs=1, batch_size=BATCH, learning_rate=RATE, head_learning_rate=HEAD_RATE
    )
    learn(backbone, [task], Isolated(rank=RANK), training)

    def accuracy() -> float:
        backbone.eval()
        right = 0
        for _, batch in backbone.encode(task.rows("test")).batches(size=1):
            answers = backbone.read(backbone(batch), batch)
            right += int(answers.values.argmax() == answers.targets)
        return right / len(task.test)

    return accuracy


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--texts", type=int, default=1000)
    parser.add_argument("--times", type=int, default=2)
    given = parser.parse_args()
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    source = str(minilm().fetched())
    task = newsgroups(given.texts)
    sides = {
        "random batches": lambda: usual(task, source, groups=False),
        "length grouping": lambda: usual(task, source, groups=True),
        "ours": lambda: ours(task, source),
    }
    seconds, measures = in_turn(sides, given.times)
    with torch.no_grad():
        accuracies = {name: accuracy() for name, accuracy in measures.items()}
    rows = []
    for name, target in TARGETS.items():
        lower = accuracies["ours"] < accuracies[name] - 0.1
        of_test = f"accuracy {accuracies['ours']:.2f}, Trainer's {accuracies[name]:.2f}"
        rows.append(
            Row(
                f"an epoch of {given.texts} texts, Trainer's {name}",
                f"Trainer and peft {seconds[name]:.1f} s, ours {seconds['ours']:.1f} s",
                seconds[name] / seconds["ours"],
                target,
                equal=f"{of_test} **lower**" if lower else of_test,
            )
        )
    print(table(rows))
    sys.exit(not all(row.met for row in rows) or any("lower" in row.equal for row in rows))


if __name__ == "__main__":
    main()
