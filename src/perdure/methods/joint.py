"""Joint training on all tasks together: an upper bound, for which all old data is kept."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from perdure.data.task import Rows, Task
from perdure.learning.method import PeftMethod
from perdure.models.backbone import Backbone


@dataclass(kw_only=True)
class Joint(PeftMethod):
    """Train one fresh PEFT module and fresh heads on all tasks seen so far, mixed (rule `last`).

    Training restarts from scratch at every task, so each row of the accuracy matrix is
    measured on a jointly trained model. The total cost grows with the square of the
    number of tasks.

    References
    ----------
    Caruana, Multitask Learning, Machine Learning 28, 1997.
    """

    usual_rule = "last"

    @property
    def keeps_all(self) -> bool:
        return True

    def begin(self, backbone: Backbone, task: Task) -> None:
        self.attach(backbone)  # a fresh module replaces that of the last joint model
        # The old heads belong to the last joint model, not to this one.
        for name in backbone.heads:
            head = backbone.own(name)
            assert isinstance(head, nn.Linear)
            head.reset_parameters()

    def examples(self, seen: Sequence[Task]) -> Rows:
        rows: Rows = []
        for task in seen:
            rows += task.rows("train")
        return rows
