"""The logits, class probabilities and free-text answers of a combined model."""

from collections.abc import Callable, Mapping, Sequence
from typing import Literal, TypeVar, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from perdure.errors import NotFinite
from perdure.evaluation.posterior import describe
from perdure.merging.combine import Combined
from perdure.models import shares
from perdure.models.backbone import Backbone
from perdure.models.examples import Batch, Examples, in_order
from perdure.storage.tensors import digest_of
from perdure.vectors.task_vector import TaskVector

TaskId = Literal["given", "posterior", "none"]
"""The way in which the task of an input is determined (`task_id`).

The task is `given`, inferred by the task `posterior`, or unknown (`none`). If it is
unknown, the logits of all heads compete under one softmax, or a language model may answer
with the words of any task.
"""

TASK_IDS: tuple[TaskId, ...] = get_args(TaskId)
T = TypeVar("T")
UNCHANGED = TaskVector({}).digest
"""The digest of a combination that leaves the backbone as it is."""


@torch.no_grad()
def task_logits(
    backbone: Backbone,
    combined: Combined,
    examples: Examples,
    choices: Mapping[str, Sequence[str]],
    log_weights: Float[Tensor, "examples tasks"] | None = None,
) -> dict[str, Float[Tensor, "examples _"]]:
    """Return the logits of each task's head or, without heads, log p of each of its choices.

    `choices` are the classes of each task. This takes one pass over the examples, or one
    pass for each task if the model is routed. If the task posterior picks one task for
    each example, pass `log_weights` = log p(t | x), and one pass is enough even for a
    routed model.
    """
    if not backbone.has_heads:
        return _ranked(backbone, combined, examples, choices, log_weights)
    tasks = list(choices)
    if combined.picks and log_weights is not None:
        # One pass: each example is processed by the expert of its most likely task.
        likeliest: list[int] = log_weights.argmax(1).tolist()
        picked = [tasks[i] for i in likeliest]
        pooled = features(
            backbone,
            combined,
            examples,
            picked=picked,
        )
        return _heads(backbone, combined, pooled, tasks)
    if combined.routed:
        return _one_by_one(backbone, combined, examples, choices)
    pooled = features(backbone, combined, examples)
    return _heads(backbone, combined, pooled, tasks)


def _ranked(
    backbone: Backbone,
    combined: Combined,
    examples: Examples,
    choices: Mapping[str, Sequence[str]],
    log_weights: Float[Tensor, "examples tasks"] | None,
) -> dict[str, Float[Tensor, "examples _"]]:
    """Return log p(choice | prompt) from a model without heads.

    A routed model reads the prompts once for each task, with that task's adapter and
    choices. If the task posterior picks the adapter for each example, one pass covers the
    choices of all tasks.
    """
    if combined.picks and log_weights is not None:
        likeliest: list[int] = log_weights.argmax(1).tolist()
        picked = [list(choices)[i] for i in likeliest]
        return _ranked_by(backbone, combined, examples, choices, picked=picked)
    if not combined.routed:
        return _ranked_by(backbone, combined, examples, choices)
    return _one_by_one(backbone, combined, examples, choices)


def _one_by_one(
    backbone: Backbone,
    combined: Combined,
    examples: Examples,
    choices: Mapping[str, Sequence[str]],
) -> dict[str, Float[Tensor, "examples _"]]:
    """Return the logits of each task from its own model, which only this task's head uses.

    A model that has answered the same examples before is not asked again. Without this,
    the number of passes over a stream measured after each task would be cubic in the
    number of tasks.
    """
    logits: dict[str, Tensor] = {}
    for task, words in choices.items():
        key = _own_model(backbone, combined, task, words)
        values = examples.answered.get(key) if key else None
        if values is None:
            values = _own_logits(backbone, combined, examples, task, words)
        if key:
            examples.answered[key] = values
        logits[task] = values.clone()  # the caller may write into it
    return logits


def _own_logits(
    backbone: Backbone,
    combined: Combined,
    examples: Examples,
    task: str,
    words: Sequence[str],
) -> Float[Tensor, "examples _"]:
    """Return the logits of one task from its own model."""
    if backbone.has_heads:
        pooled = features(backbone, combined, examples, task=task)
        return _heads(backbone, combined, pooled, [task])[task]
    return _ranked_by(backbone, combined, examples, {task: words}, task=task)[task]


def _own_model(
    backbone: Backbone, combined: Combined, task: str, words: Sequence[str]
) -> str | None:
    """Return what identifies a task's own model, its head and its classes; None if unknown."""
    change = combined.digest(task)
    if change is None:
        return None
    head = digest_of(backbone.own_state(task))
    return f"{change} {head} {task!r} {list(words)!r}"


def _ranked_by(
    backbone: Backbone,
    combined: Combined,
    examples: Examples,
    choices: Mapping[str, Sequence[str]],
    *,
    task: str | None = None,
    picked: Sequence[str] | None = None,
) -> dict[str, Float[Tensor, "examples _"]]:
    """Return log p of the choices, using one model or the adapter picked for each example."""
    backbone.eval()
    parts: dict[str, list[tuple[list[int], Tensor]]] = {name: [] for name in choices}
    with combined.applied(backbone, task) as choice:
        for rows, batch in shares.batches(examples, backbone.device):
            if picked:
                choice.of([picked[row] for row in rows])
            for name, values in backbone.rank(batch, choices).items():
                parts[name].append((rows, values.cpu()))
    logits = {name: in_order(shares.gathered(values)) for name, values in parts.items()}
    _check_finite(combined, logits)
    return logits


def generated(
    backbone: Backbone,
    combined: Combined,
    examples: Examples,
    *,
    task: str | None = None,
    picked: Sequence[str] | None = None,
) -> list[str]:
    """Return the free-text answer to each example; the parameters are those of `answered_by`."""
    return answered_by(backbone, combined, examples, backbone.generate, task=task, picked=picked)


@torch.no_grad()
def answered_by(
    backbone: Backbone,
    combined: Combined,
    examples: Examples,
    answer: Callable[[Batch], Sequence[T]],
    *,
    task: str | None = None,
    picked: Sequence[str] | None = None,
) -> list[T]:
    """Return the combined model's answer to each example.

    Parameters
    ----------
    answer
        A function that returns an answer for each example of a batch, using the backbone
        in its current state.
    task
        The task whose model answers all examples, if the combined model is routed.
    picked
        The tasks whose models answer the examples, one task for each example.
    """
    backbone.eval()
    parts: list[tuple[list[int], Sequence[T]]] = []
    if picked and not combined.picks:
        # One task's model after another, because there is no mixture that could answer one batch.
        for name in dict.fromkeys(picked):
            rows = [row for row, other in enumerate(picked) if other == name]
            with combined.applied(backbone, name):
                for numbers, batch in shares.batches(examples, backbone.device, rows):
                    parts.append((numbers, answer(batch)))
    else:
        with combined.applied(backbone, task) as choice:
            for numbers, batch in shares.batches(examples, backbone.device):
                if picked:
                    choice.of([picked[row] for row in numbers])
                parts.append((numbers, answer(batch)))
    answers: dict[int, T] = {}
    for numbers, of_batch in shares.gathered(parts):
        answers |= zip(numbers, of_batch, strict=True)
    return [answers[row] for row in range(len(examples))]


def _heads(
    backbone: Backbone,
    combined: Combined,
    pooled: Float[Tensor, "examples width"],
    tasks: Sequence[str],
) -> dict[str, Tensor]:
    """Return the logits of the heads of the given tasks.

    Raises
    ------
    NotFinite
        Some logits are infinite or nan. Their argmax would look like a valid answer.
    """
    logits: dict[str, Tensor] = {}
    for task in tasks:
        head = backbone.own(task)
        scores = head(pooled)
        logits[task] = scores.cpu()
    _check_finite(combined, logits)
    return logits


def _check_finite(combined: Combined, logits: Mapping[str, Float[Tensor, "examples _"]]) -> None:
    """Raise `NotFinite` if any of the logits is not a finite number."""
    for task, values in logits.items():
        broken = (~values.isfinite()).any(1)
        if broken.any():
            rule = f"The rule `{combined.label}`" if combined.label else "The combined model"
            raise NotFinite(
                f"{rule} gives no finite number for {int(broken.sum())} of {len(values)} examples "
                f"(head of task `{task}`), so there is no answer. "
                "Choose a smaller `scale`, or another rule."
            )


@torch.no_grad()
def features(
    backbone: Backbone,
    combined: Combined,
    examples: Examples,
    *,
    task: str | None = None,
    picked: Sequence[str] | None = None,
) -> Float[Tensor, "examples width"]:
    """Return the pooled features of the combined model, which are the inputs of the heads.

    They are computed once for as long as the model stays as it is, as with methods whose
    backbone is frozen.

    Parameters
    ----------
    task
        The task whose model is used, if the combined model is routed.
    picked
        The task of each example, which chooses its expert in a mixture without a gate.
    """
    key = None if picked else combined.digest(task)
    if key == UNCHANGED and backbone.describes_by_pooling:
        return describe(backbone, examples).to(backbone.device)
    if key in examples.pooled:
        return examples.pooled[key].to(backbone.device)
    backbone.eval()  # without dropout
    pooled: list[tuple[list[int], Tensor]] = []
    with combined.applied(backbone, task) as choice:
        for rows, batch in shares.batches(examples, backbone.device):
            if picked:
                # Batches are sorted by length: `rows` are the numbers of this batch's examples.
                choice.of([picked[row] for row in rows])
            pooled.append((rows, backbone(batch)))
    features = in_order(shares.gathered(pooled))
    if key:
        # The last model only: one that learns does not return to an earlier state.
        examples.pooled = {key: features.cpu()}
    return features.to(backbone.device)


def settled(
    log_weights: Float[Tensor, "examples tasks"],
) -> Float[Tensor, "examples tasks"]:
    """Return log weights that put all weight on the most likely task of each example.

    Examples
    --------
    >>> settled(torch.tensor([[0.3, 0.7]]).log()).tolist()
    [[-inf, 0.0]]
    """
    likeliest = torch.nn.functional.one_hot(
        log_weights.argmax(1),
        log_weights.shape[1],
    )
    return likeliest.to(log_weights).log()


def probabilities(
    logits: Mapping[str, Float[Tensor, "examples _"]],
    columns: Sequence[Sequence[int]],
    log_weights: Float[Tensor, "examples tasks"] | None = None,
) -> Float[Tensor, "examples classes"]:
    """Return p(class | x) over the classes of all tasks.

    With `log_weights` = log p(t | x), this is the sum over t of p(t | x) p(class | t, x).
    Without them, it is a single softmax over the logits of all heads. If several tasks
    have the same class, its probabilities are added.

    Parameters
    ----------
    columns
        For each task, the columns of its classes in the result.

    Examples
    --------
    >>> even = torch.zeros(1, 2)
    >>> log_weights = torch.tensor([[0.75, 0.25]]).log()
    >>> probabilities({"a": even, "b": even}, [[0, 1], [0, 2]], log_weights).tolist()
    [[0.5, 0.375, 0.125]]
    """
    joint = by_task(logits, log_weights)
    # The last column that any task uses; `columns` need not be in order.
    width = max(max(of_task) for of_task in columns) + 1
    result = torch.zeros(
        len(joint[0]),
        width,
        dtype=joint[0].dtype,
    )
    for of_task, values in zip(columns, joint, strict=True):
        # Added, because an assignment would overwrite a class that an earlier task also has.
        result.index_add_(1, torch.tensor(of_task), values)
    return result


def by_task(
    logits: Mapping[str, Float[Tensor, "examples _"]],
    log_weights: Float[Tensor, "examples tasks"] | None = None,
) -> list[Float[Tensor, "examples _"]]:
    """Return p(task, class | x) for the classes of each task, which `probabilities` adds up."""
    if log_weights is None:
        concatenated = torch.cat(list(logits.values()), dim=1)
        chances = concatenated.softmax(1)
        widths = [values.shape[1] for values in logits.values()]
        return list(chances.split(widths, dim=1))
    # Exponentiated in double precision, before the conversion to the dtype of the logits.
    first = next(iter(logits.values()))
    weights = log_weights.exp().to(first)
    joint: list[Tensor] = []
    for i, values in enumerate(logits.values()):
        weight = weights[:, [i]]
        chances = values.softmax(1)
        joint.append(weight * chances)
    return joint


def ranked_words(
    logits: Mapping[str, Float[Tensor, "examples _"]], columns: Sequence[Sequence[int]]
) -> Float[Tensor, "examples words"]:
    """Return log p of the answer words of all tasks, as ranked by a language model.

    A word that several tasks share has a single column. If the tasks have separate
    models, it contains the highest probability.

    Parameters
    ----------
    columns
        For each task, the columns of its words in the result.

    Examples
    --------
    >>> ranked = {"a": torch.tensor([[-1.0, -3.0]]), "b": torch.tensor([[-1.0, -2.0]])}
    >>> ranked_words(ranked, [[0, 1], [0, 2]]).tolist()
    [[-1.0, -3.0, -2.0]]
    """
    width = max(max(of_task) for of_task in columns) + 1
    first = next(iter(logits.values()))
    best = first.new_full((len(first), width), -torch.inf)
    for of_task, values in zip(columns, logits.values(), strict=True):
        best[:, of_task] = torch.maximum(best[:, of_task], values)
    return best
