"""A method under test, with its model, its tasks and its runs, and a counter of its losses."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from torch import Tensor

from perdure.checks import models
from perdure.data.task import Task, TaskStream
from perdure.errors import CheckFailed
from perdure.learning import loop
from perdure.learning.method import Method
from perdure.learning.training import Training
from perdure.models.adapters import Adapter
from perdure.models.backbone import Backbone
from perdure.models.examples import Batch
from perdure.runs.begin import run

# Enough steps to reach the second epoch, and few enough for a check in seconds.
FEW = Training(epochs=2, batch_size=8, learning_rate=0.01)
SEED = 3


@dataclass
class MethodUnderTest:
    """A method under test, with the model, the tasks and the runs that its checks share.

    Parameters
    ----------
    name
        The name of the method in messages.
    make
        A function that returns a new instance, with the same settings each time.
    folder
        A folder for the runs of the checks, empty or not yet existing.
    family
        The kind of pico model that the method is checked with.
    """

    name: str
    make: Callable[[], Method]
    folder: Path
    family: models.Family = "encoder"
    losses: list[int] = field(default_factory=list, init=False)
    """The number of losses computed for each task of the run `whole`."""

    @cached_property
    def stream(self) -> TaskStream:
        """The stream of tasks to learn."""
        return models.toy_stream() if self.family == "encoder" else models.text_stream()

    @cached_property
    def model(self) -> Path:
        """The folder of the pre-trained model, which is created on first use."""
        folder = self.folder / "model"
        if self.family == "encoder":
            return models.save(folder)
        return models.save_language_model(folder, self.family)

    @cached_property
    def trains(self) -> bool:
        """True if the method trains any parameters by gradient descent."""
        return self.make().trains

    @cached_property
    def whole(self) -> Path:
        """The folder of a run over all tasks; the run takes place on first use."""
        instance = self.make()
        # The count is filled while the run goes on.
        self.losses = Losses(instance).of_tasks
        return self.run("whole", method=instance)

    @cached_property
    def alone(self) -> Path:
        """The folder of a run over the first task only; the run takes place on first use."""
        return self.run("alone", tasks=1)

    def backbone(self) -> Backbone:
        """Load the pre-trained model."""
        if self.family == "encoder":
            return Backbone.load(self.model, pooling="mean")
        return Backbone.load(self.model, max_new_tokens=4)

    def run(
        self,
        name: str,
        *,
        tasks: int = 3,
        method: Method | None = None,
        backbone: Backbone | None = None,
    ) -> Path:
        """Learn the first tasks of the stream, or resume the run `name`; return the run folder.

        If the stream has fewer than `tasks` tasks, all of them are learned.
        """
        folder = self.folder / name
        run(
            self.stream.until(tasks),
            backbone or self.backbone(),
            method or self.make(),
            training=FEW,
            output=folder,
            seed=SEED,
        )
        return folder

    def failed(self, problem: str) -> CheckFailed:
        """Return an error whose message starts with the name of the method."""
        return CheckFailed(f"`{self.name}` {problem}")


class Losses:
    """A counter of the losses that a method computes in the training loop, by task.

    `inspect_loss` is called with each loss before the training loop receives it.
    """

    def __init__(
        self,
        method: Method,
        inspect_loss: Callable[[object], None] = lambda loss: None,
    ):
        self.of_tasks: list[int] = []
        begin = method.begin
        loss = method.loss

        def counted_begin(backbone: Backbone, task: Task) -> None:
            self.of_tasks.append(0)
            begin(backbone, task)

        def counted_loss(backbone: Backbone, batch: Batch) -> Tensor:
            self.of_tasks[-1] += 1
            value = loss(backbone, batch)
            inspect_loss(value)
            return value

        # Only this instance is changed, because other checks use instances of the same class.
        vars(method).update(begin=counted_begin, loss=counted_loss)


def learn(
    backbone: Backbone,
    seen: Sequence[Task],
    method: Method,
    earlier: Sequence[Adapter] = (),
    *,
    training: Training = FEW,
    log: loop.Log | None = None,
) -> Adapter:
    """Learn one task, as `perdure.learn` does."""
    return loop.learn(
        backbone,
        seen,
        method,
        training,
        earlier=earlier,
        session=loop.Session(log=log),
    )
