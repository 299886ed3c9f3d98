"""The training of one task in progress: its parameters, optimizer, plan of steps and position."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from perdure.data.task import Rows, Task
from perdure.errors import InputError, RunError
from perdure.learning import engine, optimizer_state, optimizers
from perdure.learning.method import Group, Method, method_name
from perdure.learning.snapshot import Snapshot, State, alike, part, tensors_of, without_tensors
from perdure.learning.training import Training
from perdure.learning.wrapper import inner_name
from perdure.models import shares
from perdure.models.backbone import Backbone
from perdure.models.examples import Batch, Examples, in_order
from perdure.seeds import derived
from perdure.storage.files import plain


class Course:
    """The training of one task: its parameters, its optimizer, and its position.

    Attributes
    ----------
    epoch, batch
        The numbers of completed epochs, and of completed steps in the current epoch.
    step
        The number of completed steps since the task began.
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
        self.backbone = backbone
        self.seen = seen
        self.method = method
        self.training = training
        self.seed = seed
        self.task = seen[-1]
        examples = method.examples(seen)
        self._sizes = [len(of_task.data) for of_task in examples]
        self.rows = self.encoded(examples) if examples else None

        groups = _trainable(backbone, method, training, self.rows)
        self.parameters: list[nn.Parameter] = []
        for group in groups:
            self.parameters += group["params"]
        if self.parameters:
            # Each process has drawn the initial values itself. They come from the same
            # seed, but may differ between kinds of devices.
            engine.as_the_first(self.parameters)

        count = len(self.rows or ())
        self.optimizer = _optimizer(method, groups, training, count)
        steps = len(self.plan(0)) if method.scheduled else None
        self.scheduler = _scheduler(self.optimizer, training, steps)
        self.best = Best(self.parameters, training)
        self.epoch = self.batch = self.step = 0
        if self.rows is None:  # the method does not train: no epoch is left
            self.epoch = training.epochs

    def encoded(self, rows: Rows) -> Examples:
        """Return the examples to train on, in the form that the model takes."""
        return self.backbone.encode(rows)

    def plan(self, epoch: int) -> list[list[list[int]]]:
        """Return the steps of an epoch: each is a list of batches, which are lists of row numbers.

        The order is drawn with a separate seed, so that a run that resumes in the middle
        of an epoch gets the same plan.
        """
        if self.rows is None:
            return []
        if self.task.in_order:
            batches = consecutive(self._sizes, self.training.batch_size)
        else:
            batches = length_grouped(
                self.rows.lengths,
                self.training.batch_size,
                seed=derived(self.seed, self.task.name, "epoch", epoch),
            )
        steps = []
        size = self.training.gradient_accumulation
        for start in range(0, len(batches), size):
            steps.append(batches[start : start + size])
        return steps

    def batch_of(self, rows: Sequence[int]) -> Batch:
        """Return a training batch of the rows with these numbers."""
        assert self.rows
        if self.training.packing:
            return self.backbone.packed(self.rows, rows)
        return self.rows.batch(rows, self.backbone.device)

    def take_step(self) -> None:
        """Clip the gradients and take one optimizer step."""
        torch.nn.utils.clip_grad_norm_(self.parameters, self.training.max_grad_norm)
        self.optimizer.step()

    # -- saving and resuming

    def snapshot(self) -> Snapshot:
        """Return a snapshot with everything that `load` needs.

        Its tensors are the live ones, not copies.
        """
        # No copies: `Snapshot.save` makes them if the snapshot is written.
        method = self.method.state
        optimizer = optimizer_state.read(self.optimizer)
        # JSON cannot store tensors, and safetensors cannot store anything else.
        tensors = _numbered("parameter", self.parameters)
        tensors |= _numbered("best", self.best.values)
        tensors |= tensors_of(optimizer, "optimizer")
        tensors |= tensors_of(method, "method")
        about = {
            "epoch": self.epoch,
            "batch": self.batch,
            "step": self.step,
            **self._settings(),
            "optimizer": without_tensors(optimizer),
            "method": without_tensors(method),
        }
        return Snapshot(about, tensors)

    def _settings(self) -> State:
        """Return the best score, the schedule and the optimizer's groups as JSON values."""
        return {
            "best": [self.best.score, self.best.waited],
            "scheduler": self.scheduler.state_dict(),
            "groups": optimizer_state.groups(self.optimizer),
        }

    @torch.no_grad()
    def load(self, snapshot: Snapshot) -> None:
        """Restore the state in a snapshot, so that training continues from there.

        Raises
        ------
        RunError
            The snapshot was made with other settings.
        """
        # The file may have been made with other settings, or by someone else. Every
        # mismatch, whichever exception it causes, becomes one error with one remedy.
        try:
            self._load(snapshot)
        except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
            raise RunError(
                f"The saved state of task `{self.task.name}` was made with other settings "
                f"({type(error).__name__}: {error}). Restore the old settings, or remove "
                "`unfinished.safetensors` to start the task again."
            ) from error

    def _load(self, snapshot: Snapshot) -> None:
        about = snapshot.about
        tensors = snapshot.tensors
        self._check_settings(about)

        # The order matters: the empty step may change the parameters, so they are
        # restored after it.
        self.take_empty_step()
        optimizer = about["optimizer"] | part(tensors, "optimizer")
        optimizer_state.write(self.optimizer, optimizer, about["groups"])
        _fill(self.parameters, part(tensors, "parameter"))
        self.scheduler.load_state_dict(about["scheduler"])

        self.best.score, self.best.waited = about["best"]
        best = part(tensors, "best")
        if best:  # otherwise no epoch has been measured yet
            self.best.values = list(map(torch.empty_like, self.parameters))
            _fill(self.best.values, best)

        self.method.state = about["method"] | part(tensors, "method")
        self.epoch = about["epoch"]
        self.batch = about["batch"]
        self.step = about["step"]
        self._check_position()

    def _check_settings(self, about: State) -> None:
        """Raise `ValueError` if a snapshot was made with another optimizer or schedule."""
        expected = plain(self._settings())
        given = {name: about[name] for name in expected}
        # Numbers may differ in the schedule and in the best score, but not in the
        # optimizer's settings, because `optimizer_state.write` would restore the old
        # ones.
        fits = alike(given, expected)
        if fits:
            before = _fixed(given["groups"])
            now = _fixed(expected["groups"])
            fits = before == now
        if not fits:
            raise ValueError("the settings of the optimizer differ")

    def _check_position(self) -> None:
        """Raise `ValueError` if the position is outside the plan of steps."""
        steps = len(self.plan(0))
        epochs = self.training.epochs
        # `in range` also rejects fractions, and values that are not numbers.
        inside = (
            self.epoch in range(epochs + 1)
            and self.batch in range(steps + 1)
            and self.step in range(epochs * steps + 1)
        )
        if not inside:
            raise ValueError(f"step {self.batch} of epoch {self.epoch}")

    def take_empty_step(self) -> None:
        """Take a step with zero gradients, so that the state of a fresh optimizer is complete."""
        # Some optimizers, such as IVON, collect the gradients when this context ends.
        with self.method.around(self.optimizer):
            for parameter in self.parameters:
                parameter.grad = torch.zeros_like(parameter)
        self.optimizer.step()
        self.optimizer.zero_grad()


def _numbered(name: str, values: Sequence[Tensor]) -> dict[str, Tensor]:
    return {f"{name}/{number}": value for number, value in enumerate(values)}


def _fill(tensors: Sequence[Tensor], values: dict[str, Tensor]) -> None:
    """Copy saved values into tensors; each value has the index of its tensor as its key."""
    if len(tensors) != len(values):
        raise ValueError(
            f"{len(values)} tensors for {len(tensors)} parameters",
        )
    for number, tensor in enumerate(tensors):
        value = values[str(number)]
        if tensor.shape != value.shape:
            given = list(value.shape)
            expected = list(tensor.shape)
            raise ValueError(f"shape {given} instead of {expected}")
        tensor.copy_(value)


def _fixed(groups: list[Group]) -> list[Group]:
    """Return the settings of each group without the learning rate, which the schedule changes."""
    fixed = []
    for group in groups:
        settings = dict(group)
        settings.pop("lr", None)
        fixed.append(settings)
    return fixed


def _trainable(
    backbone: Backbone, method: Method, training: Training, rows: Examples | None
) -> list[Group]:
    """Return the parameters to train, in groups, and freeze all others.

    The first group contains the method's parameters, the last the heads of the tasks
    trained on. Some optimizers need the method's parameters in two groups.
    """
    head_parameters: dict[int, nn.Parameter] = {}  # by identity: tasks may share a head
    for task in rows.task_names() if rows else ():
        for parameter in backbone.own(task).parameters():
            head_parameters[id(parameter)] = parameter
    heads = list(head_parameters.values())
    # A method may list heads among its parameters, and an optimizer rejects duplicates.
    module = [value for value in method.parameters(backbone) if id(value) not in head_parameters]
    backbone.requires_grad_(False)
    for parameter in [*module, *heads]:
        parameter.requires_grad_(True)
    groups: list[Group] = [
        {
            "params": module,
            "lr": training.learning_rate,
        },
        {
            "params": heads,
            "lr": training.head_learning_rate,
        },
    ]
    return optimizers.divided(groups, backbone.model, training)


def check_optimizer(method: Method, training: Training) -> None:
    """Check that a method can be trained with the optimizer that the settings choose.

    Raises
    ------
    InputError
        The method brings its own optimizer; it has no LoRA, or keeps a part of its factors,
        although the optimizer moves LoRA as a whole; weight decay would leave nothing of
        LoRA's factors; or torch is too old.
    """
    chosen = training.optimizer
    if chosen is None or not method.trains:
        return
    name = inner_name(method)
    if method.brings_optimizer:
        raise InputError(
            f"`training.optimizer` is `{chosen}`, but the method `{name}` brings its own "
            "optimizer: leave the setting out."
        )
    if chosen == "lora_muon" and method.module != "lora":
        raise InputError(
            f"`optimizer: lora_muon` moves the product of LoRA's factors, but the method `{name}` "
            f"has the module {method.module}: use `peft: lora` or `optimizer: muon`."
        )
    if chosen == "lora_muon" and not method.trains_all:
        raise InputError(
            f"`optimizer: lora_muon` moves LoRA's factors as a whole, but the method `{name}` "
            "keeps what earlier tasks trained of them: use `optimizer: muon`."
        )
    if chosen == "muon" and not hasattr(torch.optim, "Muon"):
        raise InputError(
            f"`optimizer: muon` needs torch 2.9 or newer, but {torch.__version__} is installed: "
            "install a newer one, or use `optimizer: lora_muon`."
        )
    # Each step multiplies the factors by √(1 − η · weight decay).
    if chosen == "lora_muon" and training.learning_rate * training.weight_decay >= 1:
        raise InputError(
            f"`optimizer: lora_muon` shrinks LoRA's product by `learning_rate` times "
            f"`weight_decay`, which must be less than 1, but is {training.learning_rate:g} · "
            f"{training.weight_decay:g}: lower one of them."
        )


def _optimizer(method: Method, groups: list[Group], training: Training, examples: int) -> Optimizer:
    """Return the method's optimizer; raise `InputError` if it is not a torch optimizer."""
    check_optimizer(method, training)
    optimizer = method.optimizer(groups, training, examples=examples)
    if not isinstance(optimizer, Optimizer):
        raise InputError(
            f"`optimizer` of the method `{method_name(method)}` returned "
            f"{type(optimizer).__name__}: it must return a `torch.optim.Optimizer`."
        )
    return optimizer


# -- the learning rate


def _scheduler(optimizer: Optimizer, training: Training, steps: int | None) -> LambdaLR:
    """Return the learning rate schedule for epochs of `steps` steps; with None, it is constant."""
    if steps is None:
        return LambdaLR(optimizer, lambda step: 1.0)
    all_steps = training.epochs * steps
    return LambdaLR(
        optimizer,
        lambda step: _decay(step, all_steps, training),
    )


def _decay(step: int, steps: int, training: Training) -> float:
    """Return the learning rate factor at a step, where `steps` is the total number of steps."""
    warm = round(training.warmup * steps)
    if step < warm:
        # The rate starts above zero, so that the first step is not wasted.
        return (step + 1) / (warm + 1)
    if training.schedule == "constant":
        return 1.0
    # The warm-up may take all steps, and after the last step the scheduler asks for one more rate.
    after_warmup = max(1, steps - warm)
    left = max(0.0, (steps - step) / after_warmup)
    if training.schedule == "cosine":
        return 0.5 * (1 - math.cos(math.pi * left))
    return left


# -- the best epoch


@torch.no_grad()
def validation_accuracy(course: Course) -> float:
    """Return the accuracy on the new task's validation examples, with the task given.

    If the method keeps the examples of all tasks, the validation examples of all of them are used.
    """
    backbone = course.backbone
    tasks = course.seen if course.method.keeps_all else [course.task]
    rows: Rows = []
    for task in tasks:
        rows += task.rows("validation")
    backbone.eval()
    results = []
    examples = backbone.encode(rows)
    for index, batch in shares.batches(examples, backbone.device):
        hidden = backbone(batch)
        answers = backbone.read(hidden, batch)
        chosen = answers.values.argmax(1)
        right = (chosen == answers.targets).double()
        accuracies = answers.per_example(right)
        results.append((index, accuracies))
    return in_order(shares.gathered(results)).mean().item()


class Best:
    """The parameters of the epoch with the best validation accuracy.

    Attributes
    ----------
    watched
        True if the accuracy is measured after each epoch, to keep the best epoch or to stop early.
    score
        The best accuracy so far; -1 before the first measurement.
    waited
        The number of epochs since the best one.
    values
        The parameters after the best epoch; empty before the first measurement.
    """

    def __init__(self, parameters: list[nn.Parameter], training: Training):
        self.parameters = parameters
        self.patience = training.patience
        self.watched = training.best or training.patience is not None
        self.score = -1.0
        self.waited = 0
        self.values: list[Tensor] = []

    def done(self, score: float) -> bool:
        """Record the score of an epoch, and return True if training should stop early."""
        if score > self.score:
            self.score = score
            self.waited = 0
            self.values = []
            for parameter in self.parameters:
                self.values.append(parameter.detach().clone())
        else:
            self.waited += 1
        if self.patience is None:
            return False
        return self.waited >= self.patience

    @torch.no_grad()
    def restore(self) -> None:
        """Restore the parameters of the best epoch; do nothing if no epoch was measured."""
        if not self.values:
            return
        pairs = zip(self.parameters, self.values, strict=True)
        for parameter, value in pairs:
            parameter.copy_(value)


# -- the order of examples


def consecutive(sizes: Sequence[int], batch_size: int) -> list[list[int]]:
    """Return batches of examples in their order.

    If the examples come from several tasks, `sizes` has the number of each; they are
    interleaved evenly.

    Examples
    --------
    >>> consecutive([4, 2], 3)
    [[0, 1, 4], [2, 3, 5]]
    """
    places: list[tuple[float, int]] = []
    for size in sizes:
        first = len(places)
        for number in range(size):
            places.append(((number + 1) / size, first + number))
    order = [index for _, index in sorted(places)]
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]


def length_grouped(lengths: Sequence[int], batch_size: int, *, seed: int) -> list[list[int]]:
    """Return batches of examples with similar lengths, in random order, to save padding.

    The examples are shuffled, sorted by length within groups of 20 batches, and cut into
    batches. Finally the order of the batches is shuffled.
    """
    random = torch.Generator().manual_seed(seed)
    order = torch.randperm(
        len(lengths),
        generator=random,
    ).tolist()
    # If all examples were sorted together, the same ones would share a batch in every epoch.
    group_size = 20 * batch_size
    batches = []
    for start in range(0, len(order), group_size):
        group = order[start : start + group_size]
        group.sort(key=lengths.__getitem__)
        for first in range(0, len(group), batch_size):
            batch = group[first : first + batch_size]
            batches.append(batch)
    order = torch.randperm(
        len(batches),
        generator=random,
    ).tolist()
    return [batches[i] for i in order]
