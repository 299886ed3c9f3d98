"""What classifiers on the frozen backbone share: nothing is trained, heads are computed from sums of features."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from perdure.backbone import Backbone, pooled
from perdure.errors import InputError
from perdure.method import Method
from perdure.statistics import Statistics
from perdure.stream import Rows, Task


@dataclass(kw_only=True)
class FrozenMethod(Method):
    """A method that trains nothing; after each task it puts the heads in place that follow from the features."""

    usual_rule: ClassVar[str] = "last"

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
    if missing := [name for name, count in zip(task.classes, statistics.counts.tolist(), strict=True) if not count]:
        raise InputError(f"Task `{task.name}` has no training example of class `{missing[0]}`, so it has no mean.")


class Accumulated:
    """Statistics of all tasks so far, in a method's state: `counts`, `sums` and `products`, and the tasks' `sizes`."""

    def __init__(self, state: Mapping[str, object]):
        self.sizes: dict[str, int] = dict(state.get("sizes", {}))  # pyright: ignore
        self.total = Statistics(*(state[name] for name in NAMES)) if self.sizes else None  # pyright: ignore

    def with_task(self, name: str, new: Statistics) -> Statistics:
        """All, with one more task."""
        self.sizes[name] = len(new.counts)
        old = self.total
        self.total = new if old is None else Statistics(
            torch.cat([old.counts, new.counts]), torch.cat([old.sums, new.sums]), old.products + new.products
        )  # fmt: skip
        return self.total

    def state(self) -> dict[str, object]:
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
        parts = zip(weight.float().split(list(self.sizes.values())), bias.float().split(list(self.sizes.values())),
                    strict=True)  # fmt: skip
        for name, (W, b) in zip(self.sizes, parts, strict=True):
            if name in backbone.head_names:  # not that of a task that was forgotten
                backbone.put_head(name, {"weight": W, "bias": b, **(more or {})})


NAMES = ("counts", "sums", "products")
