"""Ask a combined model about examples: logits, class probabilities, and accuracy."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor

from perdure.errors import NotFinite
from perdure.merging.combine import Combined
from perdure.models.backbone import Backbone
from perdure.models.examples import Examples, in_order

TaskId = Literal["given", "posterior", "concatenated"]
"""The way in which the task is known.

It is given, inferred by the task posterior, or unknown: then the logits of all heads are
concatenated under one softmax.
"""

TASK_IDS: tuple[TaskId, ...] = get_args(TaskId)


@torch.no_grad()
def task_logits(
    backbone: Backbone,
    combined: Combined,
    examples: Examples,
    tasks: Sequence[str],
    log_weights: Float[Tensor, "examples tasks"] | None = None,
) -> dict[str, Float[Tensor, "examples _"]]:
    """Return the logits of each task's head.

    This takes one pass over the examples; a routed model takes one for each task. Where the
    task posterior picks one task for each example, `log_weights` = log p(t | x) reduce it to
    one again.
    """
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
    for task, values in logits.items():
        broken = (~values.isfinite()).any(1)
        if broken.any():
            rule = f"The rule `{combined.label}`" if combined.label else "The combined model"
            raise NotFinite(
                f"{rule} gives no finite number for {int(broken.sum())} of {len(values)} examples "
                f"(head of task `{task}`), so there is no answer. "
                "Choose a smaller `scale`, or another rule."
            )
    return logits


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
        The task of each example, for a mixture whose experts are chosen from outside.
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
    """Put all weight on the likeliest task.

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


@dataclass(frozen=True)
class Answers:
    """The answers to a task's examples, as indices into `classes`.

    Attributes
    ----------
    true
        The right class of each example.
    answered
        The class that was answered, for each way to know the task.
    """

    classes: tuple[str, ...]
    true: Int[Tensor, " examples"]
    answered: dict[TaskId, Int[Tensor, " examples"]]

    def accuracy(self) -> dict[TaskId, float]:
        """Return the share of right answers, for each way to know the task."""
        shares = {}
        for task_id, answered in self.answered.items():
            right = answered == self.true
            shares[task_id] = right.double().mean().item()
        return shares

    def counts(self, task_id: TaskId) -> dict[str, dict[str, int]]:
        """Return the confusion matrix: the number of answers by true and by answered class.

        Classes are named, and those that are true come in their order.

        Examples
        --------
        >>> answered = {"given": torch.tensor([1, 0, 1])}
        >>> answers = Answers(("no", "yes"), torch.tensor([1, 0, 0]), answered)
        >>> answers.accuracy(), answers.counts("given")
        ({'given': 0.666...}, {'no': {'no': 1, 'yes': 1}, 'yes': {'yes': 1}})
        """
        counts: dict[str, dict[str, int]] = {}
        pairs = zip(
            self.true.tolist(),
            self.answered[task_id].tolist(),
            strict=True,
        )
        for true, answered in pairs:
            of_class = counts.setdefault(self.classes[true], {})
            name = self.classes[answered]
            of_class[name] = of_class.get(name, 0) + 1
        # In the order of the classes, not in that of the examples.
        in_order: dict[str, dict[str, int]] = {}
        for name in self.classes:
            if name in counts:
                in_order[name] = counts[name]
        return in_order
