"""What the task posterior costs with a fitted temperature and `--unknown`, beside the defaults.

On MiniLM with the demo's texts. The exit status is 1 when the sides differ, or a target is missed.
"""

import argparse
import sys
import tempfile
from pathlib import Path

import torch
from measure import Row, in_turn, table

from perdure import (
    Backbone,
    Evaluation,
    Method,
    Model,
    PosteriorSettings,
    Run,
    TaskStream,
    Training,
    run,
)
from perdure.benchmarks.demo import demo
from perdure.bundled.minilm import minilm
from perdure.methods.isolated import Isolated
from perdure.methods.lda import LDA
from perdure.runs.prediction import UNKNOWN

# The defaults, and the settings that docs/posterior.md recommends.
SETTINGS = {
    "default": PosteriorSettings(),
    "fitted": PosteriorSettings(
        features="unit", shrinkage=0.05, covariance="by_task", temperature="fitted"
    ),
}
TASKS = ("computers", "recreation", "politics", "films")
"""Those of the demo whose classes are all frequent: a fitted temperature needs two of each."""
TRAIN, VALIDATION, TEST = 60, 20, 20
"""Texts of each task, in the demo's proportion."""
LENGTH = 32  # the ratios hardly depend on it
MOST = 1.2
NEVER = Evaluation(steps="none")


def learned(
    backbone: Backbone,
    stream: TaskStream,
    method: Method,
    posterior: PosteriorSettings,
) -> Run:
    """Learn a stream in a folder of its own."""
    backbone._encoded.clear()  # as in a new process
    folder = Path(tempfile.mkdtemp(dir=tempfile.gettempdir()))
    return run(
        stream,
        backbone,
        method,
        training=Training(epochs=1, batch_size=16, learning_rate=3e-3, head_learning_rate=1e-2),
        evaluation=NEVER,
        posterior=posterior,
        output=folder / "run",
    )


def learning(
    make: type[Method], stream: TaskStream, source: str, times: int
) -> tuple[Row, dict[str, Run]]:
    """Learning with a fitted temperature beside learning with the defaults."""
    backbones = {side: Backbone.load(source, max_length=LENGTH) for side in SETTINGS}
    sides = {
        side: lambda side=side: learned(backbones[side], stream, make(), SETTINGS[side])
        for side in SETTINGS
    }
    seconds, runs = in_turn(sides, times)
    row = Row(
        f"learning {len(stream)} tasks by `{make.__name__.lower()}`",
        f"fitted {seconds['fitted']:.1f} s, default {seconds['default']:.1f} s, "
        f"{TRAIN} training and {VALIDATION} validation texts a task",
        seconds["fitted"] / seconds["default"],
        MOST,
        least=False,
        equal="heads" if same_heads(runs["fitted"], runs["default"]) else "**different**",
    )
    return row, runs


def same_heads(one: Run, other: Run) -> bool:
    """Return True if both runs have learned the same heads and adapters, bit for bit."""
    for name, folder in one.task_folders().items():
        other_folder = other.task_folders()[name]
        for path in [*folder.glob("head.safetensors"), *folder.glob("adapter/*.safetensors")]:
            beside = other_folder / path.relative_to(folder)
            if path.read_bytes() != beside.read_bytes():
                return False
    return True


def stored(finished: Run) -> Row:
    """The bytes that the posterior keeps of a task, beside those of the statistics alone."""
    sizes = {"statistics": 0, "validation": 0}
    for folder in finished.task_folders().values():
        for name in sizes:
            sizes[name] += (folder / f"{name}.safetensors").stat().st_size
    tasks = len(finished.tasks)
    kilobytes = {name: size / tasks / 1000 for name, size in sizes.items()}
    return Row(
        "bytes kept of a task, 384 features",
        f"statistics {kilobytes['statistics']:.0f} kB, distances and losses "
        f"{kilobytes['validation']:.1f} kB",
        sum(sizes.values()) / sizes["statistics"],
        MOST,
        least=False,
    )


def predicting(runs: dict[str, Run], texts: list[str], times: int) -> Row:
    """`predict --unknown` with the fitted temperature, beside `predict` with the defaults."""
    models = {side: Model(of_side) for side, of_side in runs.items()}

    def predicted(side: str, unknown: float | None) -> list[str]:
        system = models[side].system
        for name in ("known", "posterior", "temperature"):
            vars(system).pop(name, None)  # what a process computes once is counted, too
        return [answer.label for answer in models[side].predict(texts, unknown=unknown)]

    sides = {
        "default": lambda: predicted("default", None),
        "fitted": lambda: predicted("fitted", None),
        "unknown": lambda: predicted("fitted", 0.05),
    }
    seconds, labels = in_turn(sides, times)
    withheld = labels["unknown"].count(UNKNOWN)
    pairs = zip(labels["unknown"], labels["fitted"], strict=True)
    equal = all(label in (UNKNOWN, usual) for label, usual in pairs)
    return Row(
        f"`predict --unknown 0.05`, {len(texts)} texts, {len(runs['fitted'].tasks)} tasks",
        f"fitted and `--unknown` {seconds['unknown']:.2f} s, fitted {seconds['fitted']:.2f} s, "
        f"default {seconds['default']:.2f} s",
        seconds["unknown"] / seconds["default"],
        MOST,
        least=False,
        equal=f"labels, apart from {withheld} `unknown`" if equal else "**different**",
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--times", type=int, default=3)
    times = parser.parse_args().times
    torch.set_num_threads(1)
    source = str(minilm().fetched())
    stream = demo(train=TRAIN, validation=VALIDATION, test=TEST).ordered(TASKS)
    texts = [text for task in stream for text in task.test["text"]]
    with tempfile.TemporaryDirectory() as home:
        tempfile.tempdir = home
        by_isolated, runs = learning(Isolated, stream, source, times)
        by_lda, _ = learning(LDA, stream, source, times)
        rows = [
            stored(runs["fitted"]),
            by_isolated,
            by_lda,
            predicting(runs, texts, times),
        ]
    print(table(rows))
    sys.exit(not all(row.met for row in rows) or any("different" in row.equal for row in rows))


if __name__ == "__main__":
    main()
