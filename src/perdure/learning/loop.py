"""THE training loop: learn(backbone, tasks so far, method) → the adapter of the newest task."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.tracking import get_available_trackers
from torch import Tensor, nn

from perdure.data.task import Task
from perdure.errors import InputError, TrainingError
from perdure.evaluation.progress_bar import Progress
from perdure.learning import engine
from perdure.learning.method import Method
from perdure.learning.progress import Course, validation_accuracy
from perdure.learning.snapshot import Snapshot
from perdure.learning.stopping import Stopping
from perdure.learning.training import Training
from perdure.merging.combine import folded, task_vectors
from perdure.models import adapters
from perdure.models.adapters import Adapter
from perdure.models.backbone import Backbone
from perdure.models.inputs import input_covariances
from perdure.seeds import derived, plant
from perdure.vectors.task_vector import TaskVector, total

Log = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class Session:
    """The surroundings of a task's training: where it begins, what is told of it, and what may end it.

    Parameters
    ----------
    seed
        Seed of the run. Each task begins with the same random state (so that fresh modules are equal); its head, the
        order of its examples and its dropout follow `seed` and the task's name, not its place in the stream.
    log
        Called with a dictionary for each step.
    keep
        Called every `checkpoint_steps` steps, before a stop, and after the last step, with what `resume` needs.
    resume
        Go on from here, in place of the beginning.
    stop
        Whether to stop, which is done after a step.
    folder
        Where trackers write.
    quiet
        Do not tell how far it is.
    """

    seed: int = 0
    log: Log | None = None
    keep: Callable[[Snapshot], None] | None = None
    resume: Snapshot | None = None
    stop: Stopping = field(default_factory=lambda: Stopping(""))
    folder: Path | None = None
    quiet: bool = True


def learn(
    backbone: Backbone,
    seen: Sequence[Task],
    method: Method,
    training: Training,
    *,
    earlier: Sequence[Adapter] = (),
    session: Session | None = None,
) -> Adapter:
    """Learn the last of the tasks `seen` by a method. The task's head is added to the backbone.

    With several processes (`accelerate launch`) each computes its share of every batch.

    Parameters
    ----------
    earlier
        What the tasks before it have learned, in order: some methods train on top of it.
    session
        The seed, where steps are logged and kept, and what may stop them.

    Returns
    -------
    Adapter
        The module's parameters before and after.

    Raises
    ------
    TrainingError
        The loss is not a finite number.
    Stopped
        It was asked to stop.
    RunError
        The state to `resume` belongs to other settings.
    """
    session = session or Session()
    task, seed = seen[-1], session.seed
    accelerator = _accelerator(training, session.folder)
    plant(derived(seed, task.name, "head"))
    backbone.to(accelerator.device)
    if training.shares_head and backbone.heads:
        backbone.share(task.name)
    else:
        backbone.open(task)
    beneath = total([TaskVector({}), *task_vectors(method.beneath(earlier)).values()])
    with folded(backbone.model, beneath):
        plant(seed)
        method.begin(backbone, task)
        start = adapters.read(backbone.model)
        course = Course(backbone, seen, method, training, seed=seed)
        if session.resume:
            course.load(session.resume)
        with session.stop.later():
            _train(accelerator, course, session)
        backbone.eval()
        plant(
            derived(seed, task.name, "end")
        )  # the same whether the last step was made now or before a stop
        method.end(backbone, task, course.optimizer)
        kept = {"inputs": _inputs(backbone, task)} if training.keep_inputs else {}
    for tracker in (
        accelerator.trackers
    ):  # `end_training` would also part the processes, which have more tasks to learn
        tracker.finish()
    return Adapter(
        task.name, adapters.config_of(backbone.model), start, adapters.read(backbone.model), kept
    )


def _inputs(backbone: Backbone, task: Task) -> dict[str, Tensor]:
    """The covariance of what goes into each layer with an adapter, in the model that has learned the task."""
    layers = list(adapters.factors(backbone.model))
    found = input_covariances(backbone, backbone.encode(task.rows("train")), layers)
    single = {group: covariance.float() for group, covariance in found.items()}
    return {name: covariance for group, covariance in single.items() for name in group}


def _train(accelerator: Accelerator, course: Course, session: Session) -> None:
    """The epochs that are left of a task."""
    task, training = course.task, course.training
    log, stop, quiet = session.log, session.stop, session.quiet
    keep = session.keep or (lambda snapshot: None)
    steps = len(course.plan(0))
    with Progress(
        f"Learning {task.name}", steps * training.epochs, done=course.step, quiet=quiet
    ) as progress:
        while course.epoch < training.epochs:
            _set_dropout(course.backbone, training)
            for batches in course.plan(course.epoch)[course.batch :]:
                loss, rate, stopped = _step(accelerator, course, batches, stop)
                course.step, course.batch = course.step + 1, course.batch + 1
                values = {"loss": loss, "learning_rate": rate}
                accelerator.log(
                    {f"{task.name}/{name}": value for name, value in values.items()},
                    step=course.step,
                )
                if log:
                    log(
                        {
                            "event": "step",
                            "task": task.name,
                            "epoch": course.epoch,
                            "step": course.step,
                            **values,
                        }
                    )
                said = f"epoch {course.epoch + 1} of {training.epochs}, loss {loss:.3f}"
                progress.to(course.step, said, reached=course.batch == steps)
                if stopped or course.step % training.checkpoint_steps == 0:
                    keep(course.snapshot())
                if stopped:
                    stop.now()
            ended = course.best.wanted and course.best.done(validation_accuracy(course))
            course.epoch, course.batch = training.epochs if ended else course.epoch + 1, 0
    keep(course.snapshot())  # what comes now may take long, and be stopped too
    course.best.restore()
    for parameter in course.parameters:  # the last step's update has no loss that would tell
        _check(parameter.sum().item(), course)


def _step(
    accelerator: Accelerator, course: Course, batches: list[list[int]], stop: Stopping
) -> tuple[float, float, bool]:
    """One step down the gradient of the mean loss: that loss, the learning rate, and whether any process is to stop."""
    plant(derived(course.seed, course.task.name, "step", course.step, engine.number()))
    examples, loss = sum(map(len, batches)), torch.zeros((), device=accelerator.device)
    for batch in batches:
        if own := batch[engine.number() :: engine.count()]:
            with course.method.around(course.optimizer):
                with accelerator.autocast():
                    share = course.method.loss(course.backbone, course.batch_of(own)) * (
                        len(own) / examples
                    )
                share.backward()
            loss += share.detach()
    asked = torch.tensor(float(bool(stop.asked)))
    _add_up_gradients(course.parameters, [loss, asked])
    value = loss.item()
    _check(value, course)
    rate = float(course.scheduler.get_last_lr()[0])
    course.method.update(course.backbone, course.take_step)
    course.scheduler.step()
    course.optimizer.zero_grad()
    return value, rate, asked.item() > 0


def _add_up_gradients(parameters: Sequence[nn.Parameter], beside: Sequence[Tensor]) -> None:
    """Add up the gradients of all processes, and what is beside. What has none in any of them keeps none."""
    if engine.count() == 1:
        return
    has = torch.tensor([float(parameter.grad is not None) for parameter in parameters])
    for parameter in parameters:
        parameter.grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
    device = parameters[0].device
    moved = [value.to(device) for value in (has, *beside)]
    engine.add_up(
        [*(parameter.grad for parameter in parameters if parameter.grad is not None), *moved]
    )
    for value, new in zip((has, *beside), moved, strict=True):
        value.copy_(new)
    for parameter, number in zip(parameters, has.tolist(), strict=True):
        parameter.grad = parameter.grad if number else None


def _accelerator(training: Training, folder: Path | None) -> Accelerator:
    known = [str(getattr(tracker, "value", tracker)) for tracker in get_available_trackers()]
    for name in training.trackers:
        if name not in known:
            raise InputError(
                f"No tracker `{name}` is installed: accelerate finds {known or 'none'} here."
            )
    precision = "bf16" if training.bf16 else "no"
    engine.state()  # with our patience, before accelerate makes its own
    if AcceleratorState._shared_state and AcceleratorState().mixed_precision != precision:
        AcceleratorState._reset_state()  # an earlier run of this process used another precision
    accelerator = Accelerator(
        mixed_precision=precision,
        log_with=list(training.trackers) or None,  # pyright: ignore
        project_dir=folder,
    )
    accelerator.init_trackers("perdure")
    return accelerator


def _set_dropout(backbone: Backbone, training: Training) -> None:
    backbone.train(training.backbone_dropout)
    for layer in adapters.layers(backbone.model):
        layer.train()  # pyright: ignore


def _check(value: float, course: Course) -> None:
    """`value`: a loss, or the sum of a parameter."""
    if not math.isfinite(value):
        raise TrainingError(
            f"Training of task `{course.task.name}` gave {value} at step {course.step + 1}. Lower `learning_rate` "
            f"(now {course.training.learning_rate:g}) or `max_grad_norm`, or look for broken inputs. Finished tasks "
            "are kept."
        )
