"""The training loop: `learn` trains a model on the latest task and returns the task's adapter."""

import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from perdure.data.task import Task
from perdure.errors import TrainingError
from perdure.evaluation.progress_bar import Progress
from perdure.learning import engine
from perdure.learning.engine import Accelerator
from perdure.learning.memory import explained
from perdure.learning.method import Method
from perdure.learning.progress import Course, validation_accuracy
from perdure.learning.snapshot import Snapshot
from perdure.learning.stopping import Stopping
from perdure.learning.training import Training
from perdure.merging.combine import folded, task_vectors
from perdure.models import adapters, placement
from perdure.models.adapters import Adapter
from perdure.models.backbone import Backbone
from perdure.models.examples import Batch
from perdure.models.inputs import input_covariances
from perdure.models.recomputing import keep_recomputing, recomputed
from perdure.seeds import derived, plant
from perdure.vectors.task_vector import total

Log = Callable[[dict[str, object]], None]


@dataclass(frozen=True)
class Session:
    """The context in which a task is trained: the seed, the callbacks and the stop requests.

    Parameters
    ----------
    seed
        The seed of the run. Every task starts from the same random state, so that fresh
        modules are identical. A task's head, its order of examples and its dropout depend
        on `seed` and on the task's name, but not on its position in the stream.
    log
        A function that is called with a dictionary after each step.
    keep
        A function that is called with a snapshot every `checkpoint_steps` steps, before a
        stop, and after the last step.
    resume
        The snapshot to resume from.
    stop
        The handler of stop requests, which take effect after the current step.
    folder
        The folder that trackers write to.
    quiet
        If True, show no progress.
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
    """Learn the last task in `seen`, and add its head to the backbone.

    With several processes (`accelerate launch`), each process computes a share of every batch.

    Parameters
    ----------
    earlier
        The adapters of the earlier tasks, in order; some methods train on top of them.
    session
        The seed, the callbacks for logging and saving, and the stop requests.

    Returns
    -------
    Adapter
        The parameters of the task's PEFT module, before and after training.

    Raises
    ------
    OutOfMemory
        The memory of the device is full; the steps so far are saved.
    TrainingError
        The loss, or a parameter after training, is not a finite number.
    Stopped
        The user or the system requested a stop.
    RunError
        The snapshot in `session.resume` was made with other settings.
    InputError
        A tracker is not installed, or the method's `optimizer` hook did not return an optimizer.
    """
    session = session or Session()
    task = seen[-1]
    seed = session.seed
    accelerator = engine.accelerator(training, session.folder)

    # The seed includes the task's name, so that its head does not depend on other tasks.
    plant(derived(seed, task.name, "head"))
    engine.place(backbone, training)
    give_head(backbone, task, training)

    # Earlier adapters are folded into the weights, so their number does not slow down a step.
    vectors = task_vectors(method.beneath(earlier))
    beneath = total(list(vectors.values()))
    with folded(backbone.model, beneath):
        plant(seed)  # without the task's name, so that fresh modules of all tasks are equal
        method.begin(backbone, task)
        # Read before `load`, which replaces the initial values with the snapshot's.
        start = adapters.read(backbone.model)
        course = Course(
            backbone,
            seen,
            method,
            training,
            seed=seed,
        )
        if session.resume:
            course.load(session.resume)
        recomputing = recomputed(backbone) if training.gradient_checkpointing else nullcontext()
        with session.stop.later(), recomputing:
            _train(accelerator, course, session)
        backbone.eval()
        # The random state after training depends on whether the last step was taken now
        # or before a stop. `end` may draw random numbers, so it gets a fixed state.
        plant(derived(seed, task.name, "end"))
        method.end(backbone, task, course.optimizer)
        kept = {"inputs": _inputs(backbone, task)} if training.keep_inputs else {}

    # `accelerator.end_training` would also destroy the process group, which later tasks may need.
    for tracker in accelerator.trackers:
        tracker.finish()
    return Adapter(
        task.name,
        adapters.config_of(backbone.model),
        start,
        adapters.read(backbone.model),
        kept,
    )


def give_head(backbone: Backbone, task: Task, training: Training) -> None:
    """Give a task a new head, or the existing one if all tasks share it."""
    if training.shares_head and backbone.heads:
        backbone.share(task.name)
    else:
        backbone.open(task)


def _inputs(backbone: Backbone, task: Task) -> dict[str, Tensor]:
    """Return the input covariance of each layer that has an adapter, computed after training.

    Layers with the same input share one tensor, which is saved only once.
    """
    layers = list(adapters.factors(backbone.model))
    examples = backbone.encode(task.rows("train"))
    by_layer = {}
    covariances = input_covariances(backbone, examples, layers)
    for group, covariance in covariances.items():
        single = covariance.float()
        for name in group:
            by_layer[name] = single
    return by_layer


# -- epochs and steps


def _train(accelerator: Accelerator, course: Course, session: Session) -> None:
    """Train for the remaining epochs of a task."""
    training = course.training
    progress = Progress(
        f"Learning {course.task.name}",
        len(course.plan(0)) * training.epochs,
        done=course.step,
        quiet=session.quiet,
    )
    with progress:
        while course.epoch < training.epochs:
            _train_epoch(accelerator, course, session, progress)
            best = course.best
            stops_early = best.watched and best.done(validation_accuracy(course))
            course.epoch = training.epochs if stops_early else course.epoch + 1
            course.batch = 0
    # The work after training may take long, and may be stopped too: save the trained state first.
    if session.keep:
        session.keep(course.snapshot())
    course.best.restore()
    # A broken step shows in the loss of the next step, but the last step has no next one.
    for parameter in course.parameters:
        _check(parameter.sum().item(), course)


def _train_epoch(
    accelerator: Accelerator, course: Course, session: Session, progress: Progress
) -> None:
    """Take the remaining steps of an epoch."""
    task, training = course.task, course.training
    set_dropout(course.backbone, training)
    plan = course.plan(course.epoch)
    for batches in plan[course.batch :]:
        loss, rate, stopped = _step(accelerator, course, batches, session)
        course.step += 1
        course.batch += 1

        tracked = {f"{task.name}/loss": loss, f"{task.name}/learning_rate": rate}
        accelerator.log(tracked, step=course.step)
        if session.log:
            event = {
                "event": "step",
                "task": task.name,
                "epoch": course.epoch,
                "step": course.step,
                "loss": loss,
                "learning_rate": rate,
            }
            session.log(event)
        message = f"epoch {course.epoch + 1} of {training.epochs}, loss {loss:.3f}"
        progress.to(course.step, message, reached=course.batch == len(plan))

        # The log comes before the snapshot: a resumed run trims the lines of later steps,
        # but could not restore missing ones.
        is_due = course.step % training.checkpoint_steps == 0
        if session.keep and (stopped or is_due):
            session.keep(course.snapshot())
        if stopped:
            session.stop.now()


def _step(
    accelerator: Accelerator, course: Course, batches: list[list[int]], session: Session
) -> tuple[float, float, bool]:
    """Take one optimizer step on the mean loss over the examples of the batches.

    Returns the loss, the learning rate, and True if any process was asked to stop.
    """
    # Each step is seeded separately, so that no random state has to be saved; and so is
    # each process, so that dropout differs between the shares of a batch.
    seed = derived(
        course.seed,
        course.task.name,
        "step",
        course.step,
        engine.number(),
    )
    plant(seed)

    def save() -> None:
        if session.keep:
            session.keep(course.snapshot())

    # Until `update`, nothing has changed since the last step, so that its state can be saved.
    with explained(course.backbone, course.training, save):
        loss = _add_gradients(accelerator, course, batches)

    # The stop request is summed along with the gradients, so all processes see it at the
    # same step. A signal may reach only one of them, and the others would wait for it
    # forever.
    asked = torch.tensor(float(bool(session.stop.asked)))
    _add_up_gradients(course.parameters, [loss, asked])
    value = loss.item()
    _check(value, course)

    rates = course.scheduler.get_last_lr()
    rate = float(rates[0])  # of the module; the rate of the heads follows the same schedule
    course.method.update(course.backbone, course.take_step)
    course.scheduler.step()
    course.optimizer.zero_grad()
    return value, rate, asked.item() > 0


def _add_gradients(accelerator: Accelerator, course: Course, batches: list[list[int]]) -> Tensor:
    """Add the gradients of this process's share of a step, and return its share of the loss."""
    examples = sum(map(len, batches))
    loss = torch.zeros((), device=accelerator.device)
    for batch in batches:
        rows = batch[engine.number() :: engine.count()]
        share_of_examples = len(rows) / examples
        if not rows:  # the last batch may have fewer examples than there are processes
            if not placement.is_sharded(course.backbone.model):
                continue
            rows = batch[:1]  # with a share of 0: all processes make every pass together
        # Outside of `around`: the check of the first packed batch compares outputs of the
        # model, which must not be random.
        batch = course.batch_of(rows)
        for _ in range(course.method.passes):
            loss += _pass(accelerator, course, batch, share_of_examples)
    return loss


def _pass(accelerator: Accelerator, course: Course, batch: Batch, weight: float) -> Tensor:
    """Add the gradients of one pass of a batch, and return its share of the loss of the step."""
    method = course.method
    with method.around(course.optimizer):
        with accelerator.autocast():
            mean = method.loss(course.backbone, batch)
            # Weighted by the number of examples: the shares add up to the mean over all.
            share = mean * (weight / method.passes)
        share.backward()
    return share.detach()


def _add_up_gradients(parameters: Sequence[nn.Parameter], scalars: Sequence[Tensor]) -> None:
    """Sum the gradients of the parameters and the given scalars over all processes, in place.

    A parameter that has no gradient in any process still has none afterwards.
    """
    if engine.count() == 1:
        return
    has_gradient = [float(parameter.grad is not None) for parameter in parameters]
    counts = torch.tensor(has_gradient)
    gradients: list[Tensor] = []
    for parameter in parameters:
        # All processes must send the same tensors, even if their share did not use a parameter.
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        gradients.append(parameter.grad)

    device = parameters[0].device
    extra = [counts, *scalars]
    moved = [value.to(device) for value in extra]
    engine.add_up([*gradients, *moved])
    for value, summed in zip(extra, moved, strict=True):
        value.copy_(summed)

    # A zero gradient is not the same as no gradient: AdamW would apply weight decay and momentum.
    for parameter, with_gradient in zip(parameters, counts.tolist(), strict=True):
        if not with_gradient:
            parameter.grad = None


def set_dropout(backbone: Backbone, training: Training) -> None:
    """Enable the dropout of the adapter, and that of the backbone if the settings ask for it."""
    backbone.train(training.backbone_dropout)
    for layer in adapters.layers(backbone.model):
        layer.train()  # pyright: ignore
    if training.gradient_checkpointing:
        keep_recomputing(backbone.model)


def _check(value: float, course: Course) -> None:
    """Raise `TrainingError` if the value is not finite; it is a loss or the sum of a parameter."""
    if not math.isfinite(value):
        raise TrainingError(
            f"Training of task `{course.task.name}` gave {value} at step {course.step + 1}. Lower "
            f"`learning_rate` (now {course.training.learning_rate:g}) or `max_grad_norm`, or look "
            "for broken inputs. Finished tasks are kept."
        )
