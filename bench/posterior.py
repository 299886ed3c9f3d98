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

SETTINGS = {
    "default": PosteriorSettings(),
    "fitted": PosteriorSettings(features="unit", temperature="fitted"),
}
TRAIN, VALIDATION = 60, 20
"""Examples of each task, in the demo's proportion."""
PREDICTED = 100
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
        training=Training(epochs=2, batch_size=16, learning_rate=3e-3, head_learning_rate=1e-2),
        evaluation=NEVER,
        posterior=posterior,
        output=folder / "run",
    )


def learning(
    make: type[Method], stream: TaskStream, source: str, times: int, *, target: float | None
) -> tuple[Row, Run]:
    """Learning with a fitted temperature beside learning with the defaults."""
    backbones = {side: Backbone.load(source, max_length=64) for side in SETTINGS}
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
        target,
        least=False,
        equal="heads" if same_heads(runs["fitted"], runs["default"]) else "**different**",
    )
    return row, runs["fitted"]


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


def predicting(finished: Run, texts: list[str], times: int) -> Row:
    """`predict` with and without `--unknown`; a new model each time, as in a new process."""
    models = {side: Model(finished) for side in ("with", "without")}

    def predicted(side: str, unknown: float | None) -> list[str]:
        models[side].system.__dict__.pop("known", None)  # what is computed once is counted, too
        return [answer.label for answer in models[side].predict(texts, unknown=unknown)]

    sides = {
        "with": lambda: predicted("with", 0.05),
        "without": lambda: predicted("without", None),
    }
    seconds, labels = in_turn(sides, times)
    withheld = labels["with"].count(UNKNOWN)
    pairs = zip(labels["with"], labels["without"], strict=True)
    equal = all(label in (UNKNOWN, usual) for label, usual in pairs)
    return Row(
        f"`predict --unknown 0.05`, {len(texts)} texts, {len(finished.tasks)} tasks",
        f"with {seconds['with']:.2f} s, without {seconds['without']:.2f} s",
        seconds["with"] / seconds["without"],
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
    stream = demo(train=TRAIN, validation=VALIDATION, test=PREDICTED // 5)
    texts = [text for task in stream for text in task.test["text"]][:PREDICTED]
    with tempfile.TemporaryDirectory() as home:
        tempfile.tempdir = home
        by_isolated, finished = learning(Isolated, stream, source, times, target=MOST)
        by_lda, _ = learning(LDA, stream, source, times, target=None)
        rows = [stored(finished), by_isolated, by_lda, predicting(finished, texts, times)]
    print(table(rows))
    sys.exit(not all(row.met for row in rows) or any("different" in row.equal for row in rows))


if __name__ == "__main__":
    main()
