"""THE training loop: learn(backbone, tasks so far, method) → the adapter of the newest task."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.tracking import get_available_trackers
from accelerate.utils import set_seed
from annotated_types import Ge, Gt, Le
from rich.progress import Progress, TextColumn, TimeElapsedColumn
from torch import Tensor, nn

from perdure import adapters
from perdure.adapters import Adapter
from perdure.alignment import Alignment
from perdure.backbone import Backbone, Encoded, in_order
from perdure.errors import InputError, TrainingError
from perdure.merge import folded, task_vectors
from perdure.method import Method
from perdure.stream import Task
from perdure.subspace import input_covariances
from perdure.task_vector import TaskVector, total


@dataclass(frozen=True, kw_only=True)
class Training:
    """How a task is trained: AdamW with warm-up and decay.

    Parameters
    ----------
    epochs
        Passes over the task's examples.
    batch_size
        Examples in a batch; `gradient_accumulation` batches make one step.
    learning_rate
        Of the module; `head_learning_rate` of the heads, which start from nothing and need larger steps.
    schedule
        How the learning rate falls to zero after the warm-up: `linear`, `cosine`, or `constant` (it does not).
    warmup
        The share of steps in which it rises from zero.
    max_grad_norm
        Gradients are clipped to this norm.
    bf16
        Compute in bfloat16 (autocast); parameters stay in float32.
    backbone_dropout
        Whether the frozen backbone's own dropout acts in training. Without it a step is about 1.5 times as fast on a
        CPU; the module's `dropout` acts in any case.
    best
        Keep the epoch with the best validation accuracy (the task given), not the last.
    patience
        Stop after so many epochs without a better one; keeps the best.
    alignment
        After each task, align the heads of all tasks (its settings, or `{}` for the usual ones); by default not.
    keep_inputs
        Keep the covariance of what goes into each layer with an adapter, which the rule `regmean` needs: one more pass
        over a task's examples, and in² numbers for each such input.
    trackers
        accelerate's trackers, such as `tensorboard` or `wandb`.
    """

    epochs: Annotated[int, Ge(1)] = 3
    batch_size: Annotated[int, Ge(1)] = 32
    learning_rate: Annotated[float, Gt(0)] = 1e-3
    head_learning_rate: Annotated[float, Gt(0)] = 1e-2
    weight_decay: Annotated[float, Ge(0)] = 0.01
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    warmup: Annotated[float, Ge(0), Le(1)] = 0.1
    gradient_accumulation: Annotated[int, Ge(1)] = 1
    max_grad_norm: Annotated[float, Gt(0)] = 1.0
    bf16: bool = False
    backbone_dropout: bool = True
    best: bool = False
    patience: Annotated[int, Ge(1)] | None = None
    alignment: Alignment | None = None
    keep_inputs: bool = False
    trackers: tuple[str, ...] = ()


COLUMNS = (TextColumn("{task.description}"), *Progress.get_default_columns()[1:3], TimeElapsedColumn())
Log = Callable[[dict[str, Any]], None]


def learn(
    backbone: Backbone,
    seen: Sequence[Task],
    method: Method,
    training: Training,
    *,
    earlier: Sequence[Adapter] = (),
    seed: int = 0,
    log: Log | None = None,
    folder: Path | None = None,
    quiet: bool = True,
) -> Adapter:
    """Learn the last of the tasks `seen` by a method. The task's head is added to the backbone.

    Parameters
    ----------
    earlier
        What the tasks before it have learned, in order: some methods train on top of it.
    seed
        Of the run. Each task begins with the same random state (so that fresh modules are equal); the order of its
        examples and its dropout follow `seed` and its place in the stream.
    log
        Called with a dictionary for each step and epoch.
    folder
        Where trackers write.
    quiet
        Show no progress bar.

    Returns
    -------
    Adapter
        The module's parameters before and after.

    Raises
    ------
    TrainingError
        The loss is not a finite number.
    """
    task, order = seen[-1], seed + 1000 * len(seen)
    accelerator = _accelerator(training, folder)
    set_seed(order)
    backbone.to(accelerator.device).add_head(task.name, len(task.classes))
    beneath = total([TaskVector({}), *task_vectors(method.beneath(earlier)).values()])
    with folded(backbone.model, beneath):
        set_seed(seed)
        method.begin(backbone, task)
        start = adapters.read(backbone.model)
        set_seed(order)
        _train(accelerator, backbone, seen, method, training, order=order, log=log, quiet=quiet)
        backbone.eval()
        method.end(backbone, task)
        inputs = _inputs(backbone, task) if training.keep_inputs else None
    accelerator.end_training()
    return Adapter(task.name, adapters.config_of(backbone.model), start, adapters.read(backbone.model), inputs)


def _inputs(backbone: Backbone, task: Task) -> dict[str, Tensor]:
    """The covariance of what goes into each layer with an adapter, in the model that has learned the task."""
    layers = list(adapters.factors(backbone.model))
    found = input_covariances(backbone, backbone.encode(task.rows("train")), layers)
    single = {group: covariance.float() for group, covariance in found.items()}
    return {name: covariance for group, covariance in single.items() for name in group}


def _train(
    accelerator: Accelerator,
    backbone: Backbone,
    seen: Sequence[Task],
    method: Method,
    training: Training,
    *,
    order: int,
    log: Log | None,
    quiet: bool,
) -> None:
    """The epochs of one task, over batches in an order that follows the seed `order`."""
    task = seen[-1]
    rows = backbone.encode(method.examples(seen))
    groups = _trainable(backbone, method, training, rows)
    sampler = LengthGroupedBatches(rows.lengths, training.batch_size, seed=order)
    loader = torch.utils.data.DataLoader(rows, batch_sampler=sampler, collate_fn=backbone.collate)  # pyright: ignore
    optimizer, scheduler = _optimizer(groups, training, batches=len(sampler))
    optimizer, loader, scheduler = accelerator.prepare(optimizer, loader, scheduler)
    best, step = Best([parameter for group in groups for parameter in group["params"]], training), 0
    with Progress(*COLUMNS, disable=quiet, transient=True) as progress:
        bar = progress.add_task(f"Learning {task.name}", total=training.epochs * len(sampler))
        for epoch in range(training.epochs):
            _set_dropout(backbone, training)
            for batch in loader:
                with accelerator.accumulate(backbone):
                    with accelerator.autocast():
                        loss = method.loss(backbone, batch)
                    _check(loss, task, step, training)
                    _update(accelerator, loss, optimizer, scheduler, training.max_grad_norm)
                step += 1
                values = {"loss": loss.item(), "learning_rate": scheduler.get_last_lr()[0]}
                accelerator.log({f"{task.name}/{name}": value for name, value in values.items()}, step=step)
                if log:
                    log({"event": "step", "task": task.name, "epoch": epoch, "step": step, **values})
                progress.update(bar, advance=1, description=f"Learning {task.name}  loss {values['loss']:.3f}")
            if best.wanted and best.done(validation_accuracy(backbone, seen, rows)):
                break
    best.restore()
    for parameter in best.parameters:  # the last step's update has no loss that would tell
        _check(parameter.sum(), task, step, training)


def _optimizer(groups: list[dict[str, Any]], training: Training, *, batches: int) -> tuple[Any, Any]:
    """AdamW and its schedule, for `batches` in an epoch."""
    steps = training.epochs * math.ceil(batches / training.gradient_accumulation)
    optimizer = torch.optim.AdamW(groups, lr=training.learning_rate, weight_decay=training.weight_decay)
    return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _decay(step, steps, training))


def _update(accelerator: Accelerator, loss: Tensor, optimizer: Any, scheduler: Any, max_grad_norm: float) -> None:
    """One step down the gradient, or one more batch gathered for it."""
    accelerator.backward(loss)
    if accelerator.sync_gradients:
        accelerator.clip_grad_norm_([p for group in optimizer.param_groups for p in group["params"]], max_grad_norm)
    optimizer.step()
    scheduler.step()
    optimizer.zero_grad()


def _accelerator(training: Training, folder: Path | None) -> Accelerator:
    known = [str(getattr(tracker, "value", tracker)) for tracker in get_available_trackers()]
    for name in training.trackers:
        if name not in known:
            raise InputError(f"No tracker `{name}` is installed: accelerate finds {known or 'none'} here.")
    precision = "bf16" if training.bf16 else "no"
    if AcceleratorState._shared_state and AcceleratorState().mixed_precision != precision:
        AcceleratorState._reset_state()  # an earlier run of this process used another precision
    accelerator = Accelerator(
        mixed_precision=precision,
        gradient_accumulation_steps=training.gradient_accumulation,
        log_with=list(training.trackers) or None,  # pyright: ignore
        project_dir=folder,
    )
    if accelerator.num_processes > 1:
        raise TrainingError("perdure trains in one process for now: start it without `accelerate launch`.")
    accelerator.init_trackers("perdure")
    return accelerator


def _trainable(backbone: Backbone, method: Method, training: Training, rows: Encoded) -> list[dict[str, Any]]:
    """What is trained, and nothing else: the method's parameters, and the heads of the tasks that have examples."""
    own = method.parameters(backbone)
    heads = [p for task in rows.task_names() for p in backbone.head(task).parameters()]
    backbone.requires_grad_(False)
    for parameter in [*own, *heads]:
        parameter.requires_grad_(True)
    return [{"params": own, "lr": training.learning_rate}, {"params": heads, "lr": training.head_learning_rate}]


def _set_dropout(backbone: Backbone, training: Training) -> None:
    backbone.train(training.backbone_dropout)
    for layer in adapters.layers(backbone.model):
        layer.train()  # pyright: ignore


def _decay(step: int, steps: int, training: Training) -> float:
    """The factor on the learning rate at a step."""
    warm = round(training.warmup * steps)
    if step < warm:
        return (step + 1) / (warm + 1)
    left = max(0.0, (steps - step) / max(1, steps - warm))
    return {"linear": left, "cosine": 0.5 * (1 - math.cos(math.pi * left)), "constant": 1.0}[training.schedule]


def _check(value: Tensor, task: Task, step: int, training: Training) -> None:
    """`value`: a loss, or the sum of a parameter."""
    if not torch.isfinite(value):
        raise TrainingError(
            f"Training of task `{task.name}` gave {value.item()} at step {step + 1}. Lower `learning_rate` (now "
            f"{training.learning_rate:g}) or `max_grad_norm`, or look for broken inputs. Finished tasks are kept."
        )


@torch.no_grad()
def validation_accuracy(backbone: Backbone, seen: Sequence[Task], rows: Encoded) -> float:
    """Accuracy, with the task given, on the validation examples of the tasks that are being trained."""
    names = rows.task_names()
    examples = backbone.encode([part for task in seen if task.name in names for part in task.rows("validation")])
    backbone.eval()
    parts = []
    for index, batch in examples.batches():
        features = backbone(batch["inputs"])
        guesses = [
            backbone.head(name)(feature).argmax() for name, feature in zip(batch["tasks"], features, strict=True)
        ]
        parts.append((index, torch.stack(guesses).cpu() == batch["labels"]))
    return in_order(parts).double().mean().item()


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


class LengthGroupedBatches(torch.utils.data.Sampler[list[int]]):
    """Batches of examples of similar length, in random order: little of a batch is padding.

    The examples are shuffled, sorted by length within groups of 20 batches, cut into batches, and these are shuffled.
    """

    def __init__(self, lengths: Sequence[int], batch_size: int, *, seed: int):
        self.lengths, self.batch_size = lengths, batch_size
        self.random = torch.Generator().manual_seed(seed)

    def __len__(self) -> int:
        return math.ceil(len(self.lengths) / self.batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        order = torch.randperm(len(self.lengths), generator=self.random).tolist()
        size = 20 * self.batch_size
        groups = [sorted(order[i : i + size], key=self.lengths.__getitem__) for i in range(0, len(order), size)]
        batches = [group[i : i + self.batch_size] for group in groups for i in range(0, len(group), self.batch_size)]
        for i in torch.randperm(len(batches), generator=self.random).tolist():
            yield batches[i]
