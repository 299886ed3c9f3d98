"""The model card of an exported model: what it can do, and what only the run can."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from perdure.checkpoints.card import code

LOST = (
    "A stock model has no task posterior: `perdure predict` weighs the heads of the tasks by "
    "p(task | input), from statistics of the pre-trained model's features; "
    "here the outputs of all heads compete under one softmax."
)


@dataclass(frozen=True, kw_only=True)
class Exported:
    """A model that was exported.

    Attributes
    ----------
    name
        The name of its folder.
    base
        The pre-trained model: its folder, or its hub id.
    kind
        What it reads, `text` or `image`.
    stock
        True if transformers loads all of it; otherwise sentence-transformers does.
    tasks
        The names of the classes, by task.
    accuracy
        The average over the tasks after the last one, by the way in which the task is known;
        empty if it was not measured with this rule.
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
        if len(self.tasks) == 1:  # without a choice between tasks, both answer alike
            return []
        posterior = self.accuracy.get("posterior")
        unknown = self.accuracy.get("none")
        if posterior is None or unknown is None:
            unmeasured = (
                f"How well this folder answers was not measured with the rule `{self.rule}`"
            )
            return [f"{unmeasured}; `perdure evaluate` measures the run.", LOST]
        measured = (
            f"Average accuracy on {len(self.tasks)} tasks: "
            f"{100 * posterior:.1f} % as `perdure predict` answers, "
            f"{100 * unknown:.1f} % as this folder does."
        )
        return [measured, LOST]


def card(exported: Exported) -> str:
    """Return a model card: README.md with its YAML front matter."""
    is_local = Path(exported.base).exists()
    # The card may be published, and the path on this machine is nobody else's business.
    base = Path(exported.base).name if is_local else exported.base
    sentences = []
    for sentence in exported.sentences():
        sentences += [sentence, ""]
    lines = [
        f"# {code(exported.name)}",
        "",
        f"{code(base)} after {_count(len(exported.tasks), 'task')}, "
        f"learned one after the other by the method {code(exported.method)} "
        f"and combined by the rule {code(exported.rule)}, with perdure {version('perdure')}.",
        "",
        "| task | classes |",
        "|---|---|",
        *(_row(task, classes) for task, classes in exported.tasks.items()),
        "",
        *sentences,
        "## Use",
        "",
        "```python",
        *_use(exported),
        "```",
        "",
    ]
    front = _front_matter(exported, base_model=None if is_local else base)
    return "\n".join(["---", *front, "---", "", *lines])


def _front_matter(exported: Exported, *, base_model: str | None) -> list[str]:
    """Return the YAML lines that the hub reads; `base_model` is a hub id."""
    front = [f"library_name: {'transformers' if exported.stock else 'sentence-transformers'}"]
    if base_model is not None:
        # A JSON string is a YAML string, whatever characters are in it.
        front.append(f"base_model: {json.dumps(base_model)}")
    return [
        *front,
        f"pipeline_tag: {exported.kind}-classification",
        "tags:",
        "- perdure",
        "- continual-learning",
    ]


def _row(task: str, classes: tuple[str, ...]) -> str:
    return f"| {code(task)} | {', '.join(map(code, classes))} |"


def _use(exported: Exported) -> list[str]:
    """Return Python code that loads the model and asks it once."""
    name = json.dumps(exported.name)
    if exported.stock:
        example = "a text" if exported.kind == "text" else "photo.jpg"
        return [
            "from transformers import pipeline",
            "",
            f'classify = pipeline("{exported.kind}-classification", {name})',
            f'print(classify("{example}"))',
        ]
    return [
        "from sentence_transformers import SentenceTransformer",
        "from transformers import AutoConfig",
        "",
        f"labels = AutoConfig.from_pretrained({name}).id2label",
        f'logits = SentenceTransformer({name}).encode(["a text"])',
        "print([labels[int(number)] for number in logits.argmax(1)])",
    ]


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
