"""Sequential fine-tuning: one module is trained on task after task, the baseline that forgets."""

from dataclasses import dataclass

from perdure.data.task import Task
from perdure.learning.method import PeftMethod
from perdure.models.backbone import Backbone


@dataclass(kw_only=True)
class Sequential(PeftMethod):
    """Train one PEFT module on task after task, and keep its last state (rule `last`).

    References
    ----------
    McCloskey & Cohen, Catastrophic interference in connectionist networks, 1989, which describes
    the forgetting that follows.
    """

    usual_rule = "last"
    task_free = True

    def begin(self, backbone: Backbone, task: Task) -> None:
        self.go_on(backbone)
