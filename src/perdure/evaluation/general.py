"""Measurements of a language model outside its tasks: its loss on plain text, and its divergence
from the pre-trained model.

Neither requires a benchmark. The rise of the loss is the measure of forgetting that peft
uses. The divergence predicts forgetting before any old task is measured (Shenfeld et al.,
RL's Razor, arXiv 2509.04259).
"""

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch.nn import functional as F

from perdure import registry
from perdure.data.task import Task
from perdure.errors import DataError, InputError, NotFinite, UnknownName
from perdure.evaluation.answers import Texts
from perdure.evaluation.score import TaskId
from perdure.evaluation.system import System
from perdure.merging.combine import Combined
from perdure.models.backbone import Backbone, evaluating
from perdure.models.examples import Examples
from perdure.vectors.task_vector import TaskVector

GeneralSetting = bool | str | dict[str, object] | None
"""The setting `evaluation.general`: true, the name or file of a text, or a mapping with the keys
`text`, `tokens` and `tasks`.
"""

USUAL = "editorials"
TOKENS = 2048
"""The default number of tokens of plain text to predict; a small model takes seconds on a CPU."""
LENGTH = 128
"""The number of tokens in each piece of the text."""
PROMPTS = 64
"""The maximum number of prompts on which the model is compared with the pre-trained model."""
FEW = 4
"""The batch size, which is small because every token has logits over the entire vocabulary."""
READ = 2**20
"""The maximum number of characters to read from a file, from which pieces are taken evenly."""


@dataclass(frozen=True)
class General:
    """The results of measuring a language model outside the tasks that it learns.

    Attributes
    ----------
    cross_entropy
        The mean of -log p over the tokens of plain text, in nats.
    divergence
        KL(pre-trained ‖ current model) on prompts of the new task, in nats; None before
        the first task, or if the examples of the new task are missing.
    scores
        The name and the value of the score of each task that is never trained, by task name.
    task_id
        How a task's model was chosen: by the task `posterior` if each task has a separate
        model, or `none` if there is a single model.
    """

    cross_entropy: float
    divergence: float | None
    scores: Mapping[str, tuple[str, float]]
    task_id: TaskId


@dataclass(frozen=True)
class Source:
    """The text to predict, and the tasks that are measured but never trained.

    Attributes
    ----------
    text
        The name of a text, or a file.
    tokens
        The number of tokens to predict.
    tasks
        The tasks that are never trained, in the format of a recipe's stream.
    digest
        The SHA-256 of the text with which the run began; empty before the run begins.
    """

    text: str = USUAL
    tokens: int = TOKENS
    tasks: tuple[Mapping[str, object], ...] = ()
    digest: str = ""


def source(setting: GeneralSetting) -> Source | None:
    """Return the text and tasks that a setting specifies, or None if nothing is measured.

    Raises
    ------
    InputError
        The setting has none of the allowed forms.

    Examples
    --------
    >>> source({"text": "mine.txt"})
    Source(text='mine.txt', tokens=2048, tasks=(), digest='')
    >>> source(True), source(None)
    (Source(text='editorials', tokens=2048, tasks=(), digest=''), None)
    """
    if setting is None or setting is False:
        return None
    if setting is True:
        return Source()
    if isinstance(setting, str):
        return Source(setting)
    text = setting.get("text", USUAL)
    tokens = setting.get("tokens", TOKENS)
    tasks = setting.get("tasks", [])
    digest = setting.get("digest", "")
    is_known = setting.keys() <= {"text", "tokens", "tasks", "digest"} and isinstance(digest, str)
    # `true` is a number in Python, but less than LENGTH.
    if is_known and isinstance(text, str) and isinstance(tokens, int) and isinstance(tasks, list):
        are_entries = all(isinstance(entry, Mapping) for entry in tasks)
        if tokens >= LENGTH and are_entries:
            return Source(text, tokens, tuple(tasks), str(digest))
    raise InputError(
        f"`evaluation.general` is {str(setting)[:100]}, but must be true, the name of a text "
        f"file, or a mapping of `text` (a file), `tokens` (at least {LENGTH}) and `tasks` "
        "(a list of entries as in `stream`)."
    )


def with_current_digest(setting: GeneralSetting) -> GeneralSetting:
    """Return the setting with the digest of its text added, if the text is an existing file.

    The digest allows a run to detect later that the text has changed.
    """
    asked = source(setting)
    if asked is None or asked.digest or not Path(asked.text).is_file():
        return setting
    return with_digest(setting, _digest(texts(asked.text)))


def with_digest(setting: GeneralSetting, digest: str) -> GeneralSetting:
    """Return the setting with the given digest, or unchanged if the digest is empty."""
    asked = source(setting)
    if asked is None or not digest:
        return setting
    given: dict[str, object] = dict(setting) if isinstance(setting, dict) else {"text": asked.text}
    return given | {"digest": digest}


def check_name(before: Source, now: Source) -> None:
    """Check that a run still uses the same text, if that text comes with a package.

    Such texts have no digest, so their names are compared.

    Raises
    ------
    DataError
        The run was measured on another text before.
    """
    if not before.digest and before.text != now.text and before.text in registry.names("text"):
        raise DataError(
            f"`{now.text}`, the text of `evaluation.general`, is not `{before.text}`, which the "
            "run was measured on before. The change in its loss would compare two texts. Use "
            f"`{before.text}`, or begin a new run."
        )


def check_text(setting: Source, digest: str) -> None:
    """Check that the text has this digest; an empty digest matches any text.

    Raises
    ------
    DataError
        The digest of the text is different.
    """
    if digest and _digest(texts(setting.text)) != digest:
        raise DataError(
            f"`{setting.text}`, the text of `evaluation.general`, is not the one that the run was "
            "measured on before. The change in its loss would compare two texts. Restore the file, "
            "or begin a new run."
        )


def _digest(parts: Sequence[str]) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def texts(name: str) -> list[str]:
    """Return the plain texts with this name, or the content of the file with this name.

    Raises
    ------
    UnknownName
        There is no such text.
    InputError
        The name looks like a file name, but there is no such file.
    DataError
        The file cannot be read, is not UTF-8 text, or is empty.
    """
    known = registry.names("text")
    if name in known:
        return registry.find("text", name)()
    path = Path(name)
    if not path.is_file():
        if "." in name or "/" in name:
            raise InputError(
                f"`evaluation.general`: there is no file `{name}`. Give a file of plain text, or "
                f"true for the text that comes with a package ({', '.join(known)})."
            )
        raise UnknownName("text", name, known)
    try:
        with path.open(encoding="utf-8") as file:
            content = file.read(READ)
    except UnicodeDecodeError as error:
        raise DataError(f"`{name}` is not text in UTF-8: {error.reason}.") from error
    except OSError as error:
        raise DataError(f"`{name}` cannot be read: {error.strerror}.") from error
    if not content.strip():
        raise DataError(f"`{name}` has no text. `evaluation.general` needs text to predict.")
    return [content]


def pieces(backbone: Backbone, setting: Source) -> Examples:
    """Return pieces of the text, as examples for a language model to predict.

    Raises
    ------
    BackboneError
        The backbone is a classifier, not a language model.
    DataError
        The text is too short for a single piece, or has changed.
    """
    check_text(setting, setting.digest)
    most = setting.tokens // LENGTH
    examples = backbone.pieces(texts(setting.text), length=LENGTH, most=most, batch_size=FEW)
    if not len(examples):
        raise DataError(
            f"`{setting.text}` has fewer than two tokens for `{backbone.source}`. "
            "`evaluation.general` needs a longer text."
        )
    return examples


def measured(
    system: System, setting: Source, new: Task | None, never: Sequence[Task] = ()
) -> General:
    """Measure a language model outside the tasks that it has learned, without changing it.

    Parameters
    ----------
    new
        The task that was learned last; None before the first task.
    never
        The tasks that are never trained.

    Raises
    ------
    NotFinite
        The loss, the divergence or the answers of the model are not finite numbers.
    """
    backbone = system.backbone
    combined = system.combined
    examples = pieces(backbone, setting)
    # A routed rule has no single model, so each piece gets the model of its most likely task.
    picked = system.likeliest(examples) if combined.routed else None
    with evaluating(backbone):
        loss = cross_entropy(backbone, combined, examples, picked)
        divergence = None
        if new is not None and not new.missing:
            divergence = divergence_from_base(backbone, combined, new)
    for value in (loss, divergence):
        if value is not None and not math.isfinite(value):
            raise NotFinite(
                f"The rule `{system.rule.label}` produces a model whose loss is {value}. "
                "Choose a smaller `scale`, or another rule."
            )
    scores = {task.name: (task.score, never_trained(system, task)) for task in never}
    return General(loss, divergence, scores, "posterior" if combined.routed else "none")


def never_trained(system: System, task: Task) -> float:
    """Return the score of the current model on a task that was not learned.

    If the task has classes, the model chooses only among the names of these classes.
    """
    combined = system.combined
    if not combined.routed:
        alone = {task.name: task.classes}
        return system.answer(task, "test", ["given"], among=alone).scores()["given"]
    # Each example is answered by the model of its most likely task, as if it belonged to that task.
    picked = system.likeliest(system.backbone.encode(task.rows("test")))
    texts: list[str] = [""] * len(picked)
    for name, rows in _by_model(picked, len(picked)).items():
        some = replace(task, name=str(name), test=task.test.select(rows))
        answers = system.answer(some, "test", ["given"], among={some.name: task.classes})
        for row, text in zip(rows, answers.worded().answered["given"], strict=True):
            texts[row] = text
    whole = Texts(
        references=task.references("test"),
        answered={"given": texts},
        metric=task.score,
        sources=task.sources("test"),
    )
    return whole.scores()["given"]


@torch.no_grad()
def cross_entropy(
    backbone: Backbone,
    combined: Combined,
    examples: Examples,
    picked: Sequence[str] | None = None,
) -> float:
    """Return CE = -(1/n) sum over n tokens of log p(token | the tokens before it), in nats.

    Parameters
    ----------
    picked
        The task whose model predicts each example, if the combined model is routed.
    """
    total = 0.0
    count = 0
    for task, rows in _by_model(picked, len(examples)).items():
        with combined.applied(backbone, task):
            for _, batch in examples.batches(rows, device=backbone.device):
                logits = backbone.read(backbone(batch), batch)
                loss = F.cross_entropy(logits.values, logits.targets, reduction="sum")
                total += loss.item()
                count += len(logits.targets)
    return total / count


def _by_model(picked: Sequence[str] | None, count: int) -> Mapping[str | None, list[int]]:
    """Return the rows that each task's model reads, by task; a single model has the key None."""
    if picked is None:
        return {None: list(range(count))}
    rows: dict[str | None, list[int]] = {}
    for row, task in enumerate(picked):
        rows.setdefault(task, []).append(row)
    return rows


@torch.no_grad()
def divergence_from_base(backbone: Backbone, combined: Combined, task: Task) -> float:
    """Return KL(p0 ‖ p) = sum over tokens of p0 · (log p0 - log p) on a task's prompts, in nats.

    p0 is the pre-trained model and p is the combined model. Both read at most `PROMPTS`
    validation examples, each a prompt with its correct answer. The divergence is averaged
    over the positions of an example that predict a token of the answer (the last token of
    the prompt, and all tokens of the answer except the last), and then over examples.
    """
    rows = task.limited({"validation": PROMPTS}, 0).rows("validation")
    examples = backbone.prepare(rows, batch_size=FEW)
    base = Combined(TaskVector({}))  # the pre-trained model: every adapter off
    total = 0.0
    for _, batch in examples.batches(device=backbone.device):
        with base.applied(backbone):
            before = backbone.read(backbone(batch), batch)
        with combined.applied(backbone, task.name):
            now = backbone.read(backbone(batch), batch)
        log_before = before.values.log_softmax(1)
        log_now = now.values.log_softmax(1)
        apart = F.kl_div(log_now, log_before, reduction="none", log_target=True)
        total += now.per_example(apart.sum(1)).sum().item()
    return total / len(examples)
