"""Ask a combined model about examples: logits, probabilities of classes, and how many answers are right."""

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
"""How the task is known: it is given, by the task posterior, or not at all (all heads' logits under one softmax)."""

TASK_IDS: tuple[TaskId, ...] = get_args(TaskId)


@torch.no_grad()
def task_logits(
    backbone: Backbone,
    combined: Combined,
    examples: Examples,
    tasks: Sequence[str],
    log_weights: Float[Tensor, "examples tasks"] | None = None,
) -> dict[str, Float[Tensor, "examples _"]]:
    """The logits of each task's head. One pass over the examples; a routed model needs one for each task.

    Where the task posterior picks one task for each example, `log_weights` = log p(t | x) make it one pass too.
    """
    if combined.picks and log_weights is not None:
        numbers: list[int] = log_weights.argmax(1).tolist()
        picked = [tasks[i] for i in numbers]
        return _heads(
            backbone, combined, features(backbone, combined, examples, picked=picked), tasks
        )
    if combined.routed:
        return {
            task: _heads(
                backbone, combined, features(backbone, combined, examples, task=task), [task]
            )[task]
            for task in tasks
        }
    return _heads(backbone, combined, features(backbone, combined, examples), tasks)


def _heads(
    backbone: Backbone,
    combined: Combined,
    found: Float[Tensor, "examples width"],
    tasks: Sequence[str],
) -> dict[str, Tensor]:
    """The logits of heads.

    Raises
    ------
    NotFinite
        Some are infinite or not defined: the largest of them would be no answer.
    """
    logits = {task: backbone.own(task)(found).cpu() for task in tasks}
    for task, values in logits.items():
        broken = (~values.isfinite()).any(1)
        if broken.any():
            rule = f"The rule `{combined.label}`" if combined.label else "The combined model"
            raise NotFinite(
                f"{rule} gives no finite number for {int(broken.sum())} of {len(values)} examples (head of task "
                f"`{task}`), so there is no answer. Choose a smaller `scale`, or another rule."
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
    """What the heads get: the combined model's pooled features (of the model for `task`, if it is routed).

    `picked` names the task of each example, for a mixture whose experts are chosen from outside.
    """
    backbone.eval()
    parts = []
    with combined.applied(backbone, task) as choice:
        for rows, batch in examples.batches(device=backbone.device):
            if picked:
                choice.of([picked[row] for row in rows])
            parts.append((rows, backbone(batch)))
    return in_order(parts)


def settled(log_weights: Float[Tensor, "examples tasks"]) -> Float[Tensor, "examples tasks"]:
    """All weight on the likeliest task.

    Examples
    --------
    >>> settled(torch.tensor([[0.3, 0.7]]).log()).tolist()
    [[-inf, 0.0]]
    """
    return (
        torch.nn.functional.one_hot(log_weights.argmax(1), log_weights.shape[1])
        .to(log_weights)
        .log()
    )


def probabilities(
    logits: Mapping[str, Float[Tensor, "examples _"]],
    places: Sequence[Sequence[int]],
    log_weights: Float[Tensor, "examples tasks"] | None = None,
) -> Float[Tensor, "examples classes"]:
    """p(class | x) over all classes; `places` says for each task where its classes are among them.

    With `log_weights` = log p(t | x): sum over t of p(t | x) p(class | t, x). Without: one softmax over all heads, as
    if they were one. A class that several tasks have is added up.

    Examples
    --------
    >>> even = torch.zeros(1, 2)
    >>> probabilities({"a": even, "b": even}, [[0, 1], [0, 2]], torch.tensor([[0.75, 0.25]]).log()).tolist()
    [[0.5, 0.375, 0.125]]
    """
    parts = by_task(logits, log_weights)
    width = max(max(place) for place in places) + 1
    result = torch.zeros(len(parts[0]), width, dtype=parts[0].dtype)
    for place, part in zip(places, parts, strict=True):
        result.index_add_(1, torch.tensor(place), part)
    return result


def by_task(
    logits: Mapping[str, Float[Tensor, "examples _"]],
    log_weights: Float[Tensor, "examples tasks"] | None = None,
) -> list[Float[Tensor, "examples _"]]:
    """p(task, class | x) for each task and its own classes; what `probabilities` adds up."""
    if log_weights is None:
        together = torch.cat(list(logits.values()), dim=1).softmax(1)
        return list(together.split([value.shape[1] for value in logits.values()], dim=1))
    weights = log_weights.exp().to(next(iter(logits.values())))
    return [weights[:, [i]] * value.softmax(1) for i, value in enumerate(logits.values())]


@dataclass(frozen=True)
class Answers:
    """The answers to a task's examples, as places in `classes`.

    Attributes
    ----------
    true
        The right class of each example.
    answered
        For each way to know the task, the class that was answered.
    """

    classes: tuple[str, ...]
    true: Int[Tensor, " examples"]
    answered: dict[TaskId, Int[Tensor, " examples"]]

    def accuracy(self) -> dict[TaskId, float]:
        """Return the share of right answers, for each way to know the task."""
        shares = {}
        for task_id, answered in self.answered.items():
            shares[task_id] = (answered == self.true).double().mean().item()
        return shares

    def counts(self, task_id: TaskId) -> dict[str, dict[str, int]]:
        """Return how often each class was answered with which, by the names of both, in the order of the classes.

        Examples
        --------
        >>> answers = Answers(("no", "yes"), torch.tensor([1, 0, 0]), {"given": torch.tensor([1, 0, 1])})
        >>> answers.accuracy(), answers.counts("given")
        ({'given': 0.666...}, {'no': {'no': 1, 'yes': 1}, 'yes': {'yes': 1}})
        """
        counts: dict[str, dict[str, int]] = {}
        for true, answered in zip(self.true.tolist(), self.answered[task_id].tolist(), strict=True):
            of_class = counts.setdefault(self.classes[true], {})
            of_class[self.classes[answered]] = of_class.get(self.classes[answered], 0) + 1
        return {name: counts[name] for name in self.classes if name in counts}
