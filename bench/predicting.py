"""What answers cost: `predict` beside a sentence encoder, and measuring a stream after each task.

On MiniLM with the demo's texts. The exit status is 1 when the sides differ, or a target is missed.
"""

import sys
import tempfile
from pathlib import Path

import torch
from measure import Row, in_turn, table
from sentence_transformers import SentenceTransformer

from perdure import Backbone, Evaluation, Model, Run, Task, TaskStream, Training, run
from perdure.benchmarks.demo import demo
from perdure.bundled.minilm import minilm
from perdure.evaluation.measure import measure
from perdure.evaluation.system import System
from perdure.merging.rule_settings import Rule
from perdure.methods.isolated import Isolated
from perdure.runs.resume import restored

TASKS = 20
TEXTS = 2  # of each task: enough, because both sides read the same
PREDICTED = 100
NEVER = Evaluation(steps="none")


def parts(stream: TaskStream, number: int, size: int) -> TaskStream:
    """Return a stream of so many small tasks, cut from the tasks of another stream."""
    tasks: list[Task] = []
    for index in range(number):
        whole = stream[index % len(stream)]
        place = size * (index // len(stream))
        rows = range(place, place + size)
        cut = {
            split: getattr(whole, split).select(rows) for split in ("train", "validation", "test")
        }
        tasks.append(Task(f"part{index:02d}", whole.classes, **cut))
    return TaskStream("parts", tuple(tasks))


def learned(backbone: Backbone, stream: TaskStream, folder: Path) -> Run:
    """Learn a stream in one step a task: what is measured here does not depend on how well."""
    training = Training(epochs=1, batch_size=64, learning_rate=1e-3)
    return run(
        stream,
        backbone,
        Isolated(rank=8),
        training=training,
        evaluation=NEVER,
        output=folder,
    )


def evaluation(backbone: Backbone, stream: TaskStream, finished: Run) -> Row:
    """All steps of a stream under a routed rule, beside the last step alone."""
    system = restored(finished.state, backbone, Rule(name="oracle"))

    def measured(steps: range) -> list[float]:
        backbone._encoded.clear()  # as in a new process
        values: list[float] = []
        for step in steps:
            values = scores(system.until(step), stream)
        return values

    sides = {
        "all": lambda: measured(range(1, TASKS + 1)),
        "last": lambda: measured(range(TASKS, TASKS + 1)),
    }
    seconds, values = in_turn(sides, 1)
    return Row(
        f"measuring {TASKS} tasks after each task, routed",
        f"all steps {seconds['all']:.1f} s, the last {seconds['last']:.1f} s",
        seconds["all"] / seconds["last"],
        6.0,
        least=False,
        equal="scores" if values["all"] == values["last"] else "**different**",
    )


def scores(system: System, stream: TaskStream) -> list[float]:
    return [score.value for score in measure(system, stream, Evaluation()).scores]


def predicting(rule: str, finished: Run, texts: list[str], source: str, target: float) -> Row:
    """`predict` without the task, beside one pass of a sentence encoder and a linear head."""
    model = Model(finished, rule=rule)
    encoder = SentenceTransformer(source, device="cpu")
    encoder.max_seq_length = model.backbone.settings["max_length"]
    classes = sum(len(names) for names in model.classes.values())
    head = torch.nn.Linear(384, classes)

    @torch.inference_mode()
    def encoded() -> list[int]:
        features = encoder.encode(texts, batch_size=64, convert_to_tensor=True)
        return head(features).argmax(1).tolist()

    sides = {
        "predict": lambda: model.predict(texts),
        "encode": encoded,
    }
    seconds, _ = in_turn(sides, 2)
    return Row(
        f"`predict`, rule `{rule}`, {len(model.classes)} adapters",
        f"predict {seconds['predict']:.1f} s, encode {seconds['encode']:.1f} s, {len(texts)} texts",
        seconds["predict"] / seconds["encode"],
        target,
        least=False,
    )


def main() -> None:
    torch.set_num_threads(1)
    source = str(minilm().fetched())
    whole = demo()
    with tempfile.TemporaryDirectory() as folder:
        stream = parts(whole, TASKS, TEXTS)
        ten = learned(Backbone.load(source, max_length=64), stream.until(10), Path(folder) / "ten")
        rows: list[Row] = []
        texts: list[str] = []
        for task in whole:
            texts += task.test["text"][: PREDICTED // len(whole)]
        rows.append(predicting("task_arithmetic", ten, texts, source, 1.3))
        rows.append(predicting("routed", ten, texts, source, 1.5))

        backbone = Backbone.load(source, max_length=16)  # the ratio does not depend on the length
        twenty = learned(backbone, stream, Path(folder) / "twenty")
        rows.append(evaluation(backbone, stream, twenty))
    print(table(rows))
    sys.exit(not all(row.met for row in rows) or any("different" in row.equal for row in rows))


if __name__ == "__main__":
    main()
