"""Where the training of a task is: what is trained, by which optimizer, in which order, and how far it has come."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from perdure.data.task import Task
from perdure.errors import InputError, RunError
from perdure.learning import engine, optimizer_state
from perdure.learning.method import Method, method_name
from perdure.learning.snapshot import Snapshot, alike, part
from perdure.learning.training import Training
from perdure.models.backbone import Backbone
from perdure.models.examples import Batch, Examples, in_order
from perdure.seeds import derived
from perdure.storage.files import plain


class Course:
    """The training of one task: what is trained and by which optimizer, and how far it has come.

    Attributes
    ----------
    epoch, batch
        Where it is: so many steps of this epoch have been done.
    step
        How many steps have been done since the task began.
    """

    def __init__(
        self,
        backbone: Backbone,
        seen: Sequence[Task],
        method: Method,
        training: Training,
        *,
        seed: int,
    ):
        self.backbone, self.seen, self.method, self.training, self.seed = (
            backbone,
            seen,
            method,
            training,
            seed,
        )
        self.task = seen[-1]
        examples = method.examples(seen)
        self.rows = backbone.encode(examples) if examples else None
        groups = _trainable(backbone, method, training, self.rows)
        self.parameters: list[nn.Parameter] = [
            parameter for group in groups for parameter in group["params"]
        ]
        if self.parameters:
            engine.as_the_first(self.parameters)
        self.optimizer = _optimizer(method, groups, training, len(self.rows or ()))
        self.scheduler = _scheduler(self.optimizer, training, steps=len(self.plan(0)))
        self.best = Best(self.parameters, training)
        self.epoch = self.batch = self.step = 0
        if self.rows is None:  # nothing is trained
            self.epoch = training.epochs

    def plan(self, epoch: int) -> list[list[list[int]]]:
        """The steps of an epoch: the batches of each, as numbers of rows."""
        if self.rows is None:
            return []
        seed, size = (
            derived(self.seed, self.task.name, "epoch", epoch),
            self.training.gradient_accumulation,
        )
        batches = length_grouped(self.rows.lengths, self.training.batch_size, seed=seed)
        return [batches[i : i + size] for i in range(0, len(batches), size)]

    def batch_of(self, rows: Sequence[int]) -> Batch:
        """Some of the examples, by their numbers."""
        assert self.rows
        return self.rows.batch(rows, self.backbone.device)

    def take_step(self) -> None:
        """One step of the optimizer, by the gradients that are there."""
        torch.nn.utils.clip_grad_norm_(self.parameters, self.training.max_grad_norm)
        self.optimizer.step()

    def snapshot(self) -> Snapshot:
        """What `load` needs; the tensors are the ones that are trained, not copies."""
        method, optimizer = self.method.state, optimizer_state.read(self.optimizer)
        tensors = {f"parameter/{i}": value for i, value in enumerate(self.parameters)}
        tensors |= {f"best/{i}": value for i, value in enumerate(self.best.kept)}
        tensors |= {
            f"optimizer/{key}": value
            for key, value in optimizer.items()
            if isinstance(value, Tensor)
        }
        tensors |= {
            f"method/{key}": value for key, value in method.items() if isinstance(value, Tensor)
        }
        about = {
            "epoch": self.epoch,
            "batch": self.batch,
            "step": self.step,
            **self._numbers(),
            "optimizer": {
                key: value for key, value in optimizer.items() if not isinstance(value, Tensor)
            },
            "method": {
                key: value for key, value in method.items() if not isinstance(value, Tensor)
            },
        }
        return Snapshot(about, tensors)

    def _numbers(self) -> dict[str, Any]:
        """Of the best epoch, the schedule, and the optimizer."""
        return {
            "best": [self.best.score, self.best.waited],
            "scheduler": self.scheduler.state_dict(),
            "groups": optimizer_state.groups(self.optimizer),
        }

    @torch.no_grad()
    def load(self, snapshot: Snapshot) -> None:
        """Go to where a snapshot was taken.

        Raises
        ------
        RunError
            It belongs to other settings.
        """
        about, kept = snapshot.about, part(snapshot.tensors, "best")
        try:
            own = plain(self._numbers())
            if not alike({name: about[name] for name in own}, own) or _fixed(
                about["groups"]
            ) != _fixed(own["groups"]):
                raise ValueError("an optimizer with other settings")
            self._take_empty_step()
            values = about["optimizer"] | part(snapshot.tensors, "optimizer")
            optimizer_state.write(self.optimizer, values, about["groups"])
            _fill(self.parameters, part(snapshot.tensors, "parameter"))
            self.scheduler.load_state_dict(about["scheduler"])
            self.best.score, self.best.waited = about["best"]
            self.best.kept = [torch.empty_like(value) for value in self.parameters] if kept else []
            _fill(self.best.kept, kept)
            self.method.state = about["method"] | part(snapshot.tensors, "method")
            self.epoch, self.batch, self.step = (about[name] for name in ("epoch", "batch", "step"))
            steps = len(self.plan(0))
            inside = self.epoch in range(self.training.epochs + 1) and self.batch in range(
                steps + 1
            )
            if not inside or self.step not in range(self.training.epochs * steps + 1):
                raise ValueError(f"step {self.batch} of epoch {self.epoch}")
        except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
            raise RunError(
                f"The saved state of task `{self.task.name}` belongs to other settings ({type(error).__name__}: "
                f"{error}). Put the old ones back, or remove `unfinished.safetensors` to begin the task again."
            ) from error

    def _take_empty_step(self) -> None:
        """Have a fresh optimizer make a step with gradients of zero: then it keeps all that it will.

        It may move the parameters, which are put in their place afterwards.
        """
        with self.method.around(self.optimizer):
            for parameter in self.parameters:
                parameter.grad = torch.zeros_like(parameter)
        self.optimizer.step()
        self.optimizer.zero_grad()


def _fill(places: Sequence[Tensor], values: dict[str, Tensor]) -> None:
    """Give tensors their saved values, by number."""
    if len(places) != len(values):
        raise ValueError(f"{len(values)} tensors for {len(places)} parameters")
    for number, place in enumerate(places):
        if place.shape != values[str(number)].shape:
            raise ValueError(f"the shape {list(values[str(number)].shape)} for {list(place.shape)}")
        place.copy_(values[str(number)])


def _fixed(groups: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of the optimizer's settings those that a schedule does not change."""
    return [{name: value for name, value in group.items() if name != "lr"} for group in groups]


def _trainable(
    backbone: Backbone, method: Method, training: Training, rows: Examples | None
) -> list[dict[str, Any]]:
    """What is trained, and nothing else: the method's parameters, and the heads of the tasks that have examples."""
    every = [
        p for task in (rows.task_names() if rows else ()) for p in backbone.own(task).parameters()
    ]
    of_heads = {id(p): p for p in every}  # tasks may share one
    heads = list(of_heads.values())
    own = [
        p for p in method.parameters(backbone) if id(p) not in of_heads
    ]  # it may train other heads besides
    backbone.requires_grad_(False)
    for parameter in [*own, *heads]:
        parameter.requires_grad_(True)
    return [
        {"params": own, "lr": training.learning_rate},
        {"params": heads, "lr": training.head_learning_rate},
    ]


def _optimizer(
    method: Method, groups: list[dict[str, Any]], training: Training, examples: int
) -> Optimizer:
    """Return the method's optimizer, which may be a user's own."""
    optimizer = method.optimizer(groups, training, examples=examples)
    if not isinstance(optimizer, Optimizer):
        raise InputError(
            f"`optimizer` of the method `{method_name(method)}` returned {type(optimizer).__name__}: it must return a "
            "`torch.optim.Optimizer`."
        )
    return optimizer


def _scheduler(optimizer: Optimizer, training: Training, *, steps: int) -> LambdaLR:
    """Return the schedule of the learning rate, for `steps` steps in an epoch."""
    every = training.epochs * steps
    return LambdaLR(optimizer, lambda step: _decay(step, every, training))


def _decay(step: int, steps: int, training: Training) -> float:
    """The factor on the learning rate at a step."""
    warm = round(training.warmup * steps)
    if step < warm:
        return (step + 1) / (warm + 1)
    left = max(0.0, (steps - step) / max(1, steps - warm))
    return {"linear": left, "cosine": 0.5 * (1 - math.cos(math.pi * left)), "constant": 1.0}[
        training.schedule
    ]


@torch.no_grad()
def validation_accuracy(course: Course) -> float:
    """Accuracy, with the task given, on the new task's validation examples; of all where all examples are kept."""
    backbone = course.backbone
    names = [task.name for task in course.seen] if course.method.keeps_all else [course.task.name]
    examples = backbone.encode(
        [part for task in course.seen if task.name in names for part in task.rows("validation")]
    )
    backbone.eval()
    parts = []
    for index, batch in examples.batches(device=backbone.device):
        answers = backbone.read(backbone(batch), batch)
        right = (answers.values.argmax(1) == answers.targets).double()
        parts.append((index, answers.per_example(right)))
    return in_order(parts).mean().item()


class Best:
    """The parameters of the epoch with the best validation accuracy."""

    def __init__(self, parameters: list[nn.Parameter], training: Training):
        self.parameters, self.patience = parameters, training.patience
        self.wanted = training.best or training.patience is not None
        self.score, self.waited = -1.0, 0
        self.kept: list[Tensor] = []

    def done(self, score: float) -> bool:
        """Take note of an epoch's score; whether it is time to stop."""
        if score > self.score:
            self.score, self.waited = score, 0
            self.kept = [parameter.detach().clone() for parameter in self.parameters]
        else:
            self.waited += 1
        return self.patience is not None and self.waited >= self.patience

    @torch.no_grad()
    def restore(self) -> None:
        for parameter, value in zip(self.parameters, self.kept, strict=False):
            parameter.copy_(value)


def length_grouped(lengths: Sequence[int], batch_size: int, *, seed: int) -> list[list[int]]:
    """Batches of examples of similar length, in random order: little of a batch is padding.

    The examples are shuffled, sorted by length within groups of 20 batches, cut into batches, and these are shuffled.
    """
    random, size = torch.Generator().manual_seed(seed), 20 * batch_size
    order = torch.randperm(len(lengths), generator=random).tolist()
    groups = [
        sorted(order[i : i + size], key=lengths.__getitem__) for i in range(0, len(order), size)
    ]
    batches = [
        group[i : i + batch_size] for group in groups for i in range(0, len(group), batch_size)
    ]
    return [batches[i] for i in torch.randperm(len(batches), generator=random).tolist()]
