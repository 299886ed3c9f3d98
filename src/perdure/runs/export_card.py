"""The model card of an exported model: what it can do, and what only the run can."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from perdure.checkpoints.card import code
from perdure.runs.language_card import Asking

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
        The average over the tasks after the last one, by `task_id`; empty if it was not measured
        with this rule.
    asking
        How a language model is asked; None for a model that answers by heads.
    form
        `model`, or `adapter`: what the folder holds.
    left_out
        The share of the change, by its Frobenius norm, that the adapter's rank leaves out.
    """

    name: str
    base: str
    kind: str
    stock: bool
    method: str
    rule: str
    tasks: Mapping[str, tuple[str, ...]]
    accuracy: Mapping[str, float]
    asking: Asking | None = None
    form: str = "model"
    left_out: float = 0.0

    @property
    def is_local(self) -> bool:
        """True if the pre-trained model is a folder of this machine."""
        return Path(self.base).exists()

    @property
    def called(self) -> str:
        """The pre-trained model as the card calls it."""
        # The card may be published, and the path on this machine is nobody else's business.
        return Path(self.base).name if self.is_local else self.base

    def sentences(self) -> list[str]:
        """Describe how well the folder answers, and what it lacks."""
        if self.asking:
            return self._sentences_on_text(self.asking)
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

    def _sentences_on_text(self, asking: Asking) -> list[str]:
        sentences = []
        unknown = self.accuracy.get("none")
        if unknown is None:
            sentences.append(f"How well it answers was not measured with the rule `{self.rule}`.")
        else:
            sentences.append(
                f"Average score on {_count(len(self.tasks), 'task')}, none of which it is told: "
                f"{100 * unknown:.1f} %, as `perdure evaluate` measures it."
            )
        sentences += asking.sentences(closed=any(self.tasks.values()))
        if self.left_out:
            sentences.append(
                f"The adapter leaves out {100 * self.left_out:.2g} % of the change (by its norm), "
                "for it was cut to a rank."
            )
        return sentences


def card(exported: Exported) -> str:
    """Return a model card: README.md with its YAML front matter."""
    sentences = []
    for sentence in exported.sentences():
        sentences += [sentence, ""]
    lines = [
        f"# {code(exported.name)}",
        "",
        f"{code(exported.called)} after {_count(len(exported.tasks), 'task')}, "
        f"learned one after the other by the method {code(exported.method)} "
        f"and combined by the rule {code(exported.rule)}, with perdure {version('perdure')}.",
        "",
        f"| task | {'answers' if exported.asking else 'classes'} |",
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
    front = _front_matter(exported)
    return "\n".join(["---", *front, "---", "", *lines])


def _front_matter(exported: Exported) -> list[str]:
    """Return the YAML lines that the hub reads."""
    library = "transformers" if exported.stock else "sentence-transformers"
    if exported.form == "adapter":
        library = "peft"
    pipeline = f"{exported.kind}-classification"
    if exported.asking:
        pipeline = exported.asking.pipeline
    front = [f"library_name: {library}"]
    if not exported.is_local:  # then it is a hub id
        # A JSON string is a YAML string, whatever characters are in it.
        front.append(f"base_model: {json.dumps(exported.base)}")
    return [
        *front,
        f"pipeline_tag: {pipeline}",
        "tags:",
        "- perdure",
        "- continual-learning",
    ]


def _row(task: str, classes: tuple[str, ...]) -> str:
    answers = ", ".join(map(code, classes)) or "free text"
    return f"| {code(task)} | {answers} |"


def _use(exported: Exported) -> list[str]:
    """Return Python code that loads the model and asks it once."""
    name = json.dumps(exported.name)
    if exported.asking:
        base = exported.called if exported.form == "adapter" else None
        return exported.asking.use(exported.name, base)
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
