"""What an exported model can do, and what it cannot that the run can: a few lines, and a model card."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from perdure.checkpoints.card import code

LOST = (
    "A stock model has no task posterior: `perdure predict` weighs the heads of the tasks by p(task | input), from "
    "statistics of the pre-trained model's features; here the outputs of all heads compete under one softmax."
)


@dataclass(frozen=True, kw_only=True)
class Exported:
    """A model that was exported.

    Attributes
    ----------
    name
        That of its folder.
    base
        The pre-trained model: its folder, or its hub id.
    kind
        What it reads, `text` or `image`.
    stock
        Whether transformers loads all of it; otherwise sentence-transformers does.
    tasks
        The names of the classes, by task.
    accuracy
        The average over the tasks after the last one, by the way in which the task is known; empty where it was not
        measured with this rule.
    """

    name: str
    base: str
    kind: str
    stock: bool
    method: str
    rule: str
    tasks: Mapping[str, tuple[str, ...]]
    accuracy: Mapping[str, float]

    def sentences(self) -> list[str]:
        """Say how well the folder answers, and what it lacks."""
        if len(self.tasks) == 1:
            return []
        posterior, concatenated = self.accuracy.get("posterior"), self.accuracy.get("concatenated")
        if posterior is None or concatenated is None:
            unknown = f"How well this folder answers was not measured with the rule `{self.rule}`"
            return [f"{unknown}; `perdure evaluate` measures the run.", LOST]
        return [
            f"Average accuracy on {len(self.tasks)} tasks: {100 * posterior:.1f} % as `perdure predict` answers, "
            f"{100 * concatenated:.1f} % as this folder does.",
            LOST,
        ]


def card(exported: Exported) -> str:
    """Return a model card: README.md with its YAML front matter (JSON texts are YAML texts)."""
    is_local = Path(exported.base).exists()
    base = (
        Path(exported.base).name if is_local else exported.base
    )  # where it lies is nobody else's business
    front = [f"library_name: {'transformers' if exported.stock else 'sentence-transformers'}"]
    if not is_local:
        front.append(f"base_model: {json.dumps(base)}")
    front += [
        f"pipeline_tag: {exported.kind}-classification",
        "tags:",
        "- perdure",
        "- continual-learning",
    ]
    rows = [
        f"| {code(task)} | {', '.join(map(code, classes))} |"
        for task, classes in exported.tasks.items()
    ]
    lines = [
        f"# {code(exported.name)}",
        "",
        f"{code(base)} after {_count(len(exported.tasks), 'task')}, learned one after the other by the method "
        f"{code(exported.method)} and combined by the rule {code(exported.rule)}, with perdure {version('perdure')}.",
        "",
        "| task | classes |",
        "|---|---|",
        *rows,
        "",
        *(line for sentence in exported.sentences() for line in (sentence, "")),
        "## Use",
        "",
        "```python",
        *_use(exported),
        "```",
        "",
    ]
    return "\n".join(["---", *front, "---", "", *lines])


def _use(exported: Exported) -> list[str]:
    place = json.dumps(exported.name)
    if exported.stock:
        example = "a text" if exported.kind == "text" else "photo.jpg"
        return [
            "from transformers import pipeline",
            "",
            f'classify = pipeline("{exported.kind}-classification", {place})',
            f'print(classify("{example}"))',
        ]
    return [
        "from sentence_transformers import SentenceTransformer",
        "from transformers import AutoConfig",
        "",
        f"labels = AutoConfig.from_pretrained({place}).id2label",
        f'logits = SentenceTransformer({place}).encode(["a text"])',
        "print([labels[int(number)] for number in logits.argmax(1)])",
    ]


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
