"""What every method promises, each promise a function that raises `CheckFailed` where it is broken.

A check takes a `MethodUnderTest`; the first sentence of its docstring is the promise. They train a pico BERT on a toy
stream of three tasks, as `perdure.run` and `perdure.learn` do it.
"""

import inspect
import shutil
import signal
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from perdure.checks import models
from perdure.data.task import Task, TaskStream, TaskWithoutData
from perdure.errors import CheckFailed, DataError, Stopped
from perdure.learning.loop import Session, learn
from perdure.learning.method import Method
from perdure.learning.training import Training
from perdure.models import adapters
from perdure.models.adapters import Adapter
from perdure.models.backbone import Backbone, pooled
from perdure.runs.begin import run

FEW = Training(epochs=2, batch_size=8, learning_rate=0.01)
MORE = Training(epochs=6, batch_size=8, learning_rate=0.02)
SEED = 3
LOWER = 0.7
"""The mean loss of the last steps of `MORE`, relative to that of the first steps, is below this."""
ABOVE_CHANCE = 1.3
"""Heads that are computed are right at least this many times as often as a guess."""
STOP_AT = 6
"""The step of the second task after which a run is stopped; the task has eight or more."""


@dataclass
class MethodUnderTest:
    """A method that is checked.

    Parameters
    ----------
    name
        Its name, for what is said of it.
    make
        Makes it anew, with the same settings each time.
    folder
        An empty folder, or one that does not exist yet: the runs of the checks are written there.
    """

    name: str
    make: Callable[[], Method]
    folder: Path
    losses: list[int] = field(default_factory=list, init=False)
    """The number of losses of each task of the run `whole`."""

    @cached_property
    def stream(self) -> TaskStream:
        """The tasks that it learns."""
        return models.toy_stream()

    @cached_property
    def model(self) -> Path:
        """The folder of the pre-trained model."""
        return models.save(self.folder / "model")

    @cached_property
    def trains(self) -> bool:
        """Whether it trains anything by gradients."""
        return self.make().trains

    @cached_property
    def whole(self) -> Path:
        """The folder of a run of all tasks."""
        instance = self.make()
        self.losses = _Losses(instance).of_tasks
        return self.run("whole", method=instance)

    @cached_property
    def alone(self) -> Path:
        """The folder of a run of the first task."""
        return self.run("alone", tasks=1)

    def backbone(self) -> Backbone:
        """Load the pre-trained model."""
        return Backbone.load(self.model, pooling="mean")

    def run(
        self,
        name: str,
        *,
        tasks: int = 3,
        method: Method | None = None,
        backbone: Backbone | None = None,
    ) -> Path:
        """Learn the first tasks, or go on with a run of them; return its folder."""
        folder = self.folder / name
        stream = self.stream.until(tasks)
        backbone = backbone or self.backbone()
        run(stream, backbone, method or self.make(), training=FEW, output=folder, seed=SEED)
        return folder

    def failed(self, what: str) -> CheckFailed:
        """Return the error that says `what` is wrong with it."""
        return CheckFailed(f"`{self.name}` {what}")


Check = Callable[[MethodUnderTest], None]


def checks_of(method: MethodUnderTest) -> tuple[Check, ...]:
    """Return the checks that are for a method: one that trains nothing has no loss."""
    return (*OF_ALL, *(OF_TRAINED if method.trains else OF_FROZEN))


# -- the interface


def hooks_take_what_the_loop_gives(method: MethodUnderTest) -> None:
    """Its hooks take what the training loop gives them."""
    instance = method.make()
    for name, hook in vars(Method).items():
        if name.startswith("_") or not inspect.isfunction(hook):
            continue
        own = getattr(instance, name)
        if not callable(own):
            raise method.failed(
                f"has `{name}` as a {type(own).__name__}, but it is a hook: make it a method."
            )
        if not _takes_the_same(own, hook):
            given = ", ".join(list(inspect.signature(hook).parameters)[1:])
            raise method.failed(
                f"has a hook `{name}{inspect.signature(own)}`, which is called with ({given})."
            )


def _takes_the_same(own: Callable, hook: Callable) -> bool:
    """Return whether a hook can be called as that of the base class."""
    positional, by_name = [], {}
    for name, parameter in list(inspect.signature(hook).parameters.items())[1:]:
        if parameter.kind is parameter.KEYWORD_ONLY:
            by_name[name] = None
        else:
            positional.append(None)
    try:
        inspect.signature(own).bind(*positional, **by_name)
    except TypeError:
        return False
    return True


def loss_is_one_number(method: MethodUnderTest) -> None:
    """Its loss of a batch is one number, with a gradient."""

    def look(loss: Any) -> None:
        if not isinstance(loss, Tensor):
            given = f"that is a {type(loss).__name__}"
        elif loss.dim():
            given = f"of the shape {tuple(loss.shape)}"
        elif not loss.requires_grad:
            given = "without a gradient"
        else:
            return
        raise method.failed(
            f"has a loss {given}: return one number that is computed from its `parameters`."
        )

    instance = method.make()
    losses = _Losses(instance, look)
    _learn(method.backbone(), method.stream.tasks[:1], instance)
    if not losses.of_tasks[0]:
        raise method.failed(
            "was never asked for a loss: let `examples` return rows, or let `trains` be False."
        )


class _Losses:
    """The number of losses that the loop has asked an instance for, by task; `look` is shown each of them first."""

    def __init__(self, method: Method, look: Callable[[Any], None] = lambda loss: None):
        self.of_tasks: list[int] = []
        begin = method.begin
        loss = method.loss

        def counted_begin(*arguments: Any) -> None:
            self.of_tasks.append(0)
            begin(*arguments)

        def counted_loss(*arguments: Any) -> Any:
            self.of_tasks[-1] += 1
            value = loss(*arguments)
            look(value)
            return value

        hooks: Any = method  # on this instance alone
        hooks.begin = counted_begin
        hooks.loss = counted_loss


def _learn(
    backbone: Backbone,
    seen: Sequence[Task],
    method: Method,
    earlier: Sequence[Adapter] = (),
    *,
    training: Training = FEW,
    log: Callable[[dict[str, Any]], None] | None = None,
) -> Adapter:
    return learn(backbone, seen, method, training, earlier=earlier, session=Session(log=log))


# -- training


def only_its_parameters_change(method: MethodUnderTest) -> None:
    """Training changes its `parameters` and the heads of the tasks that it trains on, and nothing else."""
    instance, backbone = method.make(), method.backbone()
    seen: list[Task] = []
    earlier: list[Adapter] = []
    for task in method.stream:
        seen.append(task)
        before = _tensors(backbone)
        earlier.append(_learn(backbone, seen, instance, earlier))
        own = {id(parameter) for parameter in instance.parameters(backbone)}
        names = [name for name, parameter in backbone.named_parameters() if id(parameter) in own]
        allowed = {name.replace(".base_layer", "") for name in names} | _heads_of(
            backbone, instance, seen
        )
        after = _tensors(backbone)
        for name, value in before.items():
            new = ".default" in name  # a module that was put in for this task
            if name not in allowed and not new and not torch.equal(after[name], value):
                raise method.failed(
                    f"changed `{name}` while it learned `{task.name}`: name it in `parameters`, or leave it as it is."
                )
        for layer, (A, B) in adapters.factors(backbone.model).items():
            for name, value in ((f"{layer}.lora_A.weight", A), (f"{layer}.lora_B.weight", B)):
                if id(value) not in own and not torch.equal(value, earlier[-1].start[name]):
                    raise method.failed(
                        f"changed `{name}` of its module while it learned `{task.name}`: name it in `parameters`, or "
                        "leave it as it is."
                    )


def _tensors(backbone: Backbone) -> dict[str, Tensor]:
    """Return a copy of all tensors, by the names that they have without a module in the model."""
    return {
        name.replace(".base_layer", ""): value.clone()
        for name, value in backbone.state_dict().items()
    }


def _heads_of(backbone: Backbone, method: Method, seen: Sequence[Task]) -> set[str]:
    """Return the names of the heads' tensors that may change: of the tasks with examples, or computed ones all."""
    tasks = [task for task, _ in method.examples(seen)] or backbone.heads
    return {f"_heads.task_{task}.{kind}" for task in tasks for kind in ("weight", "bias")}


def training_lowers_the_loss(method: MethodUnderTest) -> None:
    """Training changes its module and lowers the loss."""
    losses: list[float] = []
    adapter = _learn(
        method.backbone(),
        method.stream.tasks[:1],
        method.make(),
        training=MORE,
        log=lambda event: losses.append(event["loss"]),
    )
    if adapters.same(adapter.start, adapter.parameters):
        raise method.failed("left its module as it was: let `parameters` return what is trained.")
    first, last = sum(losses[:4]) / 4, sum(losses[-4:]) / 4
    if not last < LOWER * first:
        raise method.failed(
            f"has a loss of {first:.3g} at first and of {last:.3g} after {len(losses)} steps."
        )


def computed_heads_know_the_classes(method: MethodUnderTest) -> None:
    """It trains nothing, and puts heads into place that know the classes of all tasks."""
    instance, backbone = method.make(), method.backbone()
    steps: list[dict] = []
    for step in range(1, len(method.stream) + 1):
        seen = method.stream.until(step).tasks
        adapter = _learn(backbone, seen, instance, log=steps.append)
        if steps or instance.parameters(backbone) or instance.examples(seen):
            raise method.failed(
                "says by `trains` that it trains nothing, but it has parameters or examples."
            )
        if adapter.config is not None or adapter.parameters or adapters.attached(backbone.model):
            raise method.failed(
                "says by `trains` that it trains nothing, but it put a module into the model."
            )
        for task in seen:
            rows = backbone.encode(task.rows("train"))
            guesses = backbone.own(task.name)(pooled(backbone, rows)).argmax(1)
            right = (guesses == torch.tensor(rows.labels)).double().mean().item()
            if not right > ABOVE_CHANCE / len(task.classes):
                raise method.failed(
                    f"computed a head of `{task.name}` that is right on {right:.0%} of its training examples."
                )


# -- what a method says of itself


def what_it_isolates_is_learned_alone(method: MethodUnderTest) -> None:
    """If it says that it `isolates`, a task is learned as if there were no others."""
    if not method.make().isolates:
        return
    first, second, *_ = method.stream
    alone = method.backbone()
    by_itself = _learn(alone, [second], method.make())
    after, instance = method.backbone(), method.make()
    before = _learn(after, [first], instance)
    behind = _learn(after, [first, second], instance, [before])
    same = adapters.same(by_itself.parameters, behind.parameters)
    if not same or not adapters.same(alone.own_state(second.name), after.own_state(second.name)):
        raise method.failed(
            "says that it `isolates`, but an earlier task changed what it learned of the next."
        )


def it_does_without_old_examples(method: MethodUnderTest) -> None:
    """If it does not say by `keeps_all` that it needs them, it learns without the examples of earlier tasks."""
    instance, backbone = method.make(), method.backbone()
    if instance.keeps_all:
        return
    first, second, *_ = method.stream
    before = _learn(backbone, [first], instance)
    gone = TaskWithoutData(
        first.name, first.classes, digests=first.digests(), missing="They were deleted."
    )
    try:
        _learn(backbone, [gone, second], instance, [before])
    except DataError as error:
        raise method.failed(
            "asks for the examples of an earlier task: let `keeps_all` be True, or keep what it needs in `state`."
        ) from error


# -- runs


def equal_seeds_give_equal_runs(method: MethodUnderTest) -> None:
    """Two runs with the same seed are equal, byte for byte."""
    _same(
        method,
        method.whole,
        method.run("again"),
        "gave another run with the same seed: draw random numbers from torch.",
    )


def past_tasks_stay_as_they_are(method: MethodUnderTest) -> None:
    """What was learned of a task stays as it is when others are learned."""
    first = f"tasks/00-{method.stream[0].name}"
    _same(
        method,
        method.alone / first,
        method.whole / first,
        f"changed `{first}` when it learned other tasks: only the new one may change.",
    )


def a_run_goes_on_between_tasks(method: MethodUnderTest) -> None:
    """A run that stopped between two tasks goes on to the same bytes."""
    shutil.copytree(method.alone, method.folder / "between")
    method.run("between", tasks=2)
    _same(method, method.whole, method.run("between"), _FORGOT.format("between two tasks"))


def a_run_goes_on_inside_a_task(method: MethodUnderTest) -> None:
    """A run that was stopped inside a task goes on to the same bytes."""
    if threading.current_thread() is not threading.main_thread():
        raise method.failed(
            "cannot be stopped here: check it in the main thread, which alone gets signals."
        )

    def stop_in_time(loss: Any) -> None:
        if until_stopped.of_tasks[1:] == [STOP_AT]:
            signal.raise_signal(signal.SIGTERM)

    instance = method.make()
    until_stopped = _Losses(instance, stop_in_time)
    try:
        method.run("inside", method=instance)
    except Stopped:
        pass
    else:
        raise method.failed(
            "was asked to stop inside a task, and did not: let no hook catch every exception."
        )
    instance = method.make()
    rest = _Losses(instance)
    _same(
        method, method.whole, method.run("inside", method=instance), _FORGOT.format("inside a task")
    )
    if until_stopped.of_tasks[1] + rest.of_tasks[0] != method.losses[1]:
        raise method.failed("was stopped inside a task, and began it again.")


_FORGOT = "was stopped {} and did not go on to the same bytes: keep in `state` whatever changes and is needed later."


def what_was_used_is_as_good_as_new(method: MethodUnderTest) -> None:
    """A method and a backbone that served one run serve another as if they were new."""
    instance, backbone = method.make(), method.backbone()
    first, second = (
        method.run(name, tasks=2, method=instance, backbone=backbone)
        for name in ("first", "second")
    )
    _same(
        method,
        first,
        second,
        "gave another run when it was used again: keep in `state` whatever it remembers.",
    )


def _same(method: MethodUnderTest, one: Path, other: Path, otherwise: str) -> None:
    """Compare what two runs have learned and measured."""
    left, right = _bytes(one), _bytes(other)
    if not left:  # then there would be nothing to compare
        raise method.failed(f"wrote no tensors into `{one.name}`.")
    for name in sorted({*left, *right}):
        if left.get(name) != right.get(name):
            raise method.failed(f"{otherwise} `{name}` differs.")


def _bytes(folder: Path) -> dict[str, bytes]:
    """Return the tensors and the scores of a run, by file."""
    files = [*folder.rglob("*.safetensors"), *folder.glob("scores.csv")]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


OF_ALL: tuple[Check, ...] = (
    hooks_take_what_the_loop_gives,
    only_its_parameters_change,
    what_it_isolates_is_learned_alone,
    it_does_without_old_examples,
    equal_seeds_give_equal_runs,
    past_tasks_stay_as_they_are,
    a_run_goes_on_between_tasks,
    what_was_used_is_as_good_as_new,
)
OF_TRAINED: tuple[Check, ...] = (
    loss_is_one_number,
    training_lowers_the_loss,
    a_run_goes_on_inside_a_task,
)
OF_FROZEN: tuple[Check, ...] = (computed_heads_know_the_classes,)
