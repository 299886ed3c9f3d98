"""Ask a combined model about examples: logits, class probabilities, and accuracy."""

from collections.abc import Callable, Mapping, Sequence
from typing import Literal, TypeVar, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from perdure.errors import NotFinite
from perdure.merging.combine import Combined
from perdure.models.backbone import Backbone
from perdure.models.examples import Batch, Examples, in_order

TaskId = Literal["given", "posterior", "none"]
"""How the task of an input is known (`task_id`).

It is given, inferred by the task posterior, or not known at all: then the logits of all heads
compete under one softmax, or a language model answers with the words of any task.
"""

TASK_IDS: tuple[TaskId, ...] = get_args(TaskId)
T = TypeVar("T")


@torch.no_grad()
def task_logits(
    backbone: Backbone,
    combined: Combined,
    examples: Examples,
    choices: Mapping[str, Sequence[str]],
    log_weights: Float[Tensor, "examples tasks"] | None = None,
) -> dict[str, Float[Tensor, "examples _"]]:
    """Return the logits of each task's head, or log p of each of its choices.

    `choices` are the classes of each task. This takes one pass over the examples; a routed model
    takes one for each task. Where the task posterior picks one task for each example, `log_weights`
    = log p(t | x) reduce it to one again.
    """
    if not backbone.has_heads:
        return _ranked(backbone, combined, examples, choices, log_weights)
    tasks = list(choices)
    if combined.picks and log_weights is not None:
        # One pass: each example goes to the expert of its likeliest task.
        likeliest: list[int] = log_weights.argmax(1).tolist()
        picked = [tasks[i] for i in likeliest]
        pooled = features(
            backbone,
            combined,
            examples,
            picked=picked,
        )
        return _heads(backbone, combined, pooled, tasks)
    # Each task has a model of its own, and only its own head reads that.
    if combined.routed:
        logits: dict[str, Tensor] = {}
        for task in tasks:
            pooled = features(
                backbone,
                combined,
                examples,
                task=task,
            )
            logits |= _heads(backbone, combined, pooled, [task])
        return logits
    pooled = features(backbone, combined, examples)
    return _heads(backbone, combined, pooled, tasks)


def _ranked(
    backbone: Backbone,
    combined: Combined,
    examples: Examples,
    choices: Mapping[str, Sequence[str]],
    log_weights: Float[Tensor, "examples tasks"] | None,
) -> dict[str, Float[Tensor, "examples _"]]:
    """Return log p(choice | prompt) of a model without heads.

    A routed model reads the prompts once for each task, with that task's adapter and choices; if
    the task posterior picks each example's adapter, once for all classes.
    """
    if combined.picks and log_weights is not None:
        likeliest: list[int] = log_weights.argmax(1).tolist()
        picked = [list(choices)[i] for i in likeliest]
        return _ranked_by(backbone, combined, examples, choices, picked=picked)
    if not combined.routed:
        return _ranked_by(backbone, combined, examples, choices)
    ranked: dict[str, Tensor] = {}
    for task, words in choices.items():
        ranked |= _ranked_by(backbone, combined, examples, {task: words}, task=task)
    return ranked


def _ranked_by(
    backbone: Backbone,
    combined: Combined,
    examples: Examples,
    choices: Mapping[str, Sequence[str]],
    *,
    task: str | None = None,
    picked: Sequence[str] | None = None,
) -> dict[str, Float[Tensor, "examples _"]]:
    """Return log p of the choices, by one model or by the adapter picked for each example."""
    backbone.eval()
    parts: dict[str, list[tuple[list[int], Tensor]]] = {name: [] for name in choices}
    with combined.applied(backbone, task) as choice:
        for rows, batch in examples.batches(device=backbone.device):
            if picked:
                choice.of([picked[row] for row in rows])
            for name, values in backbone.rank(batch, choices).items():
                parts[name].append((rows, values.cpu()))
    logits = {name: in_order(values) for name, values in parts.items()}
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
    """Return the free-text answer to each example; see `answered_by`."""
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
        A function that answers each example of a batch with the backbone in its current state.
    task
        The task whose model answers, if the model is routed.
    picked
        The task of each example, whose model answers it.
    """
    backbone.eval()
    answers: dict[int, T] = {}
    if picked and not combined.picks:
        # Each task's model in turn: there is no mixture that could read them in one batch.
        for name in dict.fromkeys(picked):
            rows = [row for row, other in enumerate(picked) if other == name]
            with combined.applied(backbone, name):
                for numbers, batch in examples.batches(rows, device=backbone.device):
                    answers |= zip(numbers, answer(batch), strict=True)
        return [answers[row] for row in range(len(examples))]
    with combined.applied(backbone, task) as choice:
        for rows, batch in examples.batches(device=backbone.device):
            if picked:
                choice.of([picked[row] for row in rows])
            answers |= zip(rows, answer(batch), strict=True)
    return [answers[row] for row in range(len(examples))]


def _heads(
    backbone: Backbone,
    combined: Combined,
    pooled: Float[Tensor, "examples width"],
    tasks: Sequence[str],
) -> dict[str, Tensor]:
    """Return the logits of the heads of some tasks.

    Raises
    ------
    NotFinite
        Some logits are infinite or nan. An argmax over them would look like an answer.
    """
    logits: dict[str, Tensor] = {}
    for task in tasks:
        head = backbone.own(task)
        scores = head(pooled)
        logits[task] = scores.cpu()
    _check_finite(combined, logits)
    return logits


def _check_finite(combined: Combined, logits: Mapping[str, Float[Tensor, "examples _"]]) -> None:
    """Check that the answers of each task are numbers."""
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
    """Return the input of the heads: the combined model's pooled features.

    Parameters
    ----------
    task
        The task whose model is used, if the model is routed.
    picked
        The task of each example, for a mixture without a gate, whose experts are chosen explicitly.
    """
    backbone.eval()  # without dropout
    pooled: list[tuple[list[int], Tensor]] = []
    with combined.applied(backbone, task) as choice:
        for rows, batch in examples.batches(device=backbone.device):
            if picked:
                # Batches are sorted by length: `rows` says which examples this one holds.
                choice.of([picked[row] for row in rows])
            pooled.append((rows, backbone(batch)))
    return in_order(pooled)


def settled(
    log_weights: Float[Tensor, "examples tasks"],
) -> Float[Tensor, "examples tasks"]:
    """Put all weight on the most likely task.

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

    With `log_weights` = log p(t | x), it is the sum over t of p(t | x) p(class | t, x).
    Without, it is one softmax over all heads, as if they were one. A class that several tasks
    have gets the sum of its probabilities.

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
        # Adds, where plain assignment would overwrite a class that an earlier task has, too.
        result.index_add_(1, torch.tensor(of_task), values)
    return result


def by_task(
    logits: Mapping[str, Float[Tensor, "examples _"]],
    log_weights: Float[Tensor, "examples tasks"] | None = None,
) -> list[Float[Tensor, "examples _"]]:
    """Return p(task, class | x) for each task and its classes; `probabilities` adds them up."""
    if log_weights is None:
        concatenated = torch.cat(list(logits.values()), dim=1)
        chances = concatenated.softmax(1)
        widths = [values.shape[1] for values in logits.values()]
        return list(chances.split(widths, dim=1))
    # Exponentiated in double precision, before they take the logits' type.
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
    """Return log p of each word of any task, as a language model ranks them.

    A word that several tasks share counts once. If each task has its own model, the highest
    probability counts.

    Parameters
    ----------
    columns
        For each task, the columns of its words.

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
