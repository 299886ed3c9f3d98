"""The model card of an exported model: what the model can do, and what only the run can do."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from perdure.checkpoints.card import code
from perdure.runs.export_heads import Heads, Measured
from perdure.runs.language_card import Asking

LOST = (
    "A stock model has no task posterior: `perdure predict` weights the heads of the tasks by "
    "p(task | input), estimated from statistics of the pre-trained model's features; "
    "here the outputs of all heads compete under one softmax."
)
CLOSED_FORM = (
    "A stock model has no task posterior, by which `perdure predict` weights the heads of the "
    "tasks. This model has a single head for all classes instead, computed in closed form from the "
    "statistics behind the posterior (linear discriminant analysis). They were carried over to the "
    "features of this model by an affine map that was fitted to random {kind}s, which is an "
    "approximation."
)


@dataclass(frozen=True, kw_only=True)
class Exported:
    """A description of an exported model, for its model card.

    Attributes
    ----------
    name
        The name of the exported folder.
    base
        The pre-trained model: a folder or a hub id.
    kind
        The kind of input, `text` or `image`.
    stock
        True if transformers can load the whole model; otherwise, sentence-transformers is needed.
    tasks
        The names of the classes, by task.
    measured
        The average over all tasks after the last one was learned, if it could be measured.
    heads
        The kind of heads, if the model answers by heads.
    asking
        Information on how to prompt a language model; None for a model that answers by heads.
    form
        The contents of the folder: `model` or `adapter`.
    left_out
        The share of the change's Frobenius norm that is lost because the adapter's rank is limited.
    """

    name: str
    base: str
    kind: str
    stock: bool
    method: str
    rule: str
    tasks: Mapping[str, tuple[str, ...]]
    measured: Measured
    heads: Heads = "joined"
    asking: Asking | None = None
    form: str = "model"
    left_out: float = 0.0

    @property
    def is_local(self) -> bool:
        """True if the pre-trained model is a folder on this machine."""
        return Path(self.base).exists()

    @property
    def called(self) -> str:
        """The name of the pre-trained model, as shown in the card."""
        # The card may be published, so it must not reveal a path on this machine.
        return Path(self.base).name if self.is_local else self.base

    def sentences(self) -> list[str]:
        """Return sentences for the card on how well the model answers and what it lacks."""
        if self.asking:
            return self._sentences_on_text(self.asking)
        if len(self.tasks) == 1:  # there is no choice between tasks, so both answer alike
            return []
        about_heads = LOST
        if self.heads == "closed_form":
            about_heads = CLOSED_FORM.format(kind=self.kind)
        return [*self._accuracies(), about_heads]

    def _accuracies(self) -> list[str]:
        accuracy = self.measured.accuracy
        average = f"Average accuracy on {len(self.tasks)} tasks"
        sentences = []
        if "posterior" in accuracy:
            sentences.append(
                f"{average} with `perdure predict`: {100 * accuracy['posterior']:.1f} %."
            )
        if "none" in accuracy:
            sentences.append(f"{average} with this stock model: {100 * accuracy['none']:.1f} %.")
        else:
            # Without the reason, which may name a path on this machine.
            sentences.append(
                "The accuracy of this stock model was not measured, because the test examples were "
                "not at hand."
            )
        return sentences

    def _sentences_on_text(self, asking: Asking) -> list[str]:
        sentences = []
        unknown = self.measured.accuracy.get("none")
        if unknown is None:
            sentences.append(f"Its score was not measured with the rule `{self.rule}`.")
        else:
            sentences.append(
                f"Average score on {_count(len(self.tasks), 'task')}, without being told the task: "
                f"{100 * unknown:.1f} %, as measured by `perdure evaluate`."
            )
        sentences += asking.sentences(closed=any(self.tasks.values()))
        if self.left_out:
            sentences.append(
                f"The adapter leaves out {100 * self.left_out:.2g} % of the change (by its norm), "
                "because its rank was limited."
            )
        return sentences


def card(exported: Exported) -> str:
    """Return a model card: the text of README.md, with its YAML front matter."""
    sentences = []
    for sentence in exported.sentences():
        sentences += [sentence, ""]
    lines = [
        f"# {code(exported.name)}",
        "",
        f"{code(exported.called)} after {_count(len(exported.tasks), 'task')}, "
        f"learned one after another with the method {code(exported.method)} "
        f"and combined with the rule {code(exported.rule)}, using perdure {version('perdure')}.",
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
    """Return the lines of the YAML front matter that the hub reads."""
    library = "transformers" if exported.stock else "sentence-transformers"
    if exported.form == "adapter":
        library = "peft"
    pipeline = f"{exported.kind}-classification"
    if exported.asking:
        pipeline = exported.asking.pipeline
    front = [f"library_name: {library}"]
    if not exported.is_local:  # then it is a hub id
        # A JSON string is also a YAML string, whatever characters it contains.
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
    """Return Python code that loads the model and runs it once."""
    name = json.dumps(exported.name)
    if exported.asking:
        base = exported.called if exported.form == "adapter" else None
        return exported.asking.use(exported.name, base)
    if exported.stock:
        # The pipeline cuts long texts, as perdure does, only if it is told to.
        call = '"a text", truncation=True' if exported.kind == "text" else '"photo.jpg"'
        return [
            "from transformers import pipeline",
            "",
            f'classify = pipeline("{exported.kind}-classification", {name})',
            f"print(classify({call}))",
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
