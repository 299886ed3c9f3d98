"""What classifiers on the frozen backbone share: nothing is trained, heads are computed from sums of features."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from perdure.data.task import Rows, Task
from perdure.errors import InputError, RunError
from perdure.learning.method import Method, Need
from perdure.models.backbone import Backbone, pooled
from perdure.vectors.statistics import Statistics


@dataclass(kw_only=True)
class FrozenMethod(Method):
    """A method that trains nothing; after each task it puts the heads in place that follow from the features."""

    usual_rule: ClassVar[str] = "last"
    needs: ClassVar[frozenset[Need]] = frozenset({"heads", "classes"})

    @property
    def trains(self) -> bool:
        return False

    def parameters(self, backbone: Backbone) -> list[nn.Parameter]:
        return []

    def examples(self, seen: Sequence[Task]) -> Rows:
        """None: there is no training, only one pass over the new task's examples after it."""
        return []


def statistics_of(backbone: Backbone, task: Task) -> Statistics:
    """Of the features of a task's training examples, as heads get them."""
    rows = backbone.encode(task.rows("train"))
    return Statistics.of(pooled(backbone, rows), torch.tensor(rows.labels), len(task.classes))


def check_present(statistics: Statistics, task: Task) -> None:
    """Raise `InputError` if a class has no training example: nothing is known of it."""
    if missing := [
        name
        for name, count in zip(task.classes, statistics.counts.tolist(), strict=True)
        if not count
    ]:
        raise InputError(
            f"Task `{task.name}` has no training example of class `{missing[0]}`, so it has no mean: drop it."
        )


class Accumulated:
    """Statistics of all tasks so far, in a method's state: `counts`, `sums` and `products`, and the tasks' `sizes`.

    A task that was forgotten and learned again is there twice.
    """

    def __init__(self, state: Mapping[str, Any]):
        try:
            self.sizes = [(str(name), int(size)) for name, size in state.get("sizes", [])]
            self.total = Statistics(*(state[name] for name in NAMES)) if self.sizes else None
            rows, d = (
                sum(size for _, size in self.sizes),
                self.total.sums.shape[1] if self.total else 0,
            )
            shapes = (
                [tuple(value.shape) for value in self.total.tensors().values()]
                if self.total
                else []
            )
            if shapes and (
                shapes != [(rows,), (rows, d), (d, d)] or min(size for _, size in self.sizes) < 1
            ):
                raise ValueError(f"{shapes} of {self.sizes}")
        except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
            raise RunError(f"The sums that the run keeps are damaged ({error}).") from error

    def with_task(self, name: str, new: Statistics) -> Statistics:
        """All, with one more task."""
        old = self.total
        if old and old.sums.shape[1:] != new.sums.shape[1:]:
            raise RunError(
                f"The sums that the run keeps, of shape {list(old.sums.shape)}, do not fit the model."
            )
        self.sizes.append((name, len(new.counts)))
        self.total = new if old is None else Statistics(
            torch.cat([old.counts, new.counts]), torch.cat([old.sums, new.sums]), old.products + new.products
        )  # fmt: skip
        return self.total

    def state(self) -> dict[str, Any]:
        """As a method's state."""
        assert self.total
        return {"sizes": self.sizes, **self.total.tensors()}

    def put_heads(
        self,
        backbone: Backbone,
        weight: Float[Tensor, "classes features"],
        bias: Float[Tensor, " classes"],
        more: Mapping[str, Tensor] | None = None,
    ) -> None:
        """Give each task that the backbone has a head for its rows of one classifier."""
        sizes = [size for _, size in self.sizes]
        parts = zip(self.sizes, weight.float().split(sizes), bias.float().split(sizes), strict=True)
        newest = {name: (W, b) for (name, _), W, b in parts}
        for name, (W, b) in newest.items():
            if name in backbone.heads:  # not that of a task that was forgotten
                backbone.put(name, {"weight": W, "bias": b, **(more or {})})


NAMES = ("counts", "sums", "products")
