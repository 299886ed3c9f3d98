"""The checks that every method must pass; a check raises `CheckFailed` if the method fails it.

A check takes a `MethodUnderTest`; the docstring of the check is the promise that it
checks, in one sentence. The checks train a pico BERT on a toy stream of three tasks, as
`perdure.run` and `perdure.learn` do. Some of them also train pico language models on two
tasks.
"""

import inspect
import shutil
import signal
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from perdure.checks.subject import Losses, MethodUnderTest, learn
from perdure.data.task import Task, TaskWithoutData
from perdure.errors import DataError, InputError, Stopped
from perdure.learning.method import Method
from perdure.learning.training import Training
from perdure.models import adapters
from perdure.models.adapters import Adapter
from perdure.models.backbone import Backbone, pooled

# With six epochs, `bgd` at rank 8 just missed `LOWER` (0.70): it follows the gradient itself, which
# takes more steps than Adam's direction. After eight, its loss is 0.61 to 0.63 of the first.
MORE = Training(epochs=8, batch_size=8, learning_rate=0.02)
"""The training settings to check that the loss falls, which takes more steps than other checks."""
LOWER = 0.7
"""The upper bound of the lowest mean loss in an epoch of `MORE`, relative to the first epoch."""
ABOVE_CHANCE = 1.3
"""Computed heads must be right at least this many times as often as guessing."""
STOP_AT = 6
"""The step of the second task after which a run is stopped; the task has at least eight steps."""

Check = Callable[[MethodUnderTest], None]


def checks_of(method: MethodUnderTest) -> tuple[Check, ...]:
    """Return the checks that apply to a method; one that trains nothing has no loss to check."""
    if method.family != "encoder":
        # `classes` too, because one task of the stream has none.
        has_needs = method.make().needs & {"heads", "classes"}
        return (it_says_what_it_needs,) if has_needs else OF_LANGUAGE
    if method.trains:
        return (*OF_ALL, *OF_TRAINED)
    return (*OF_ALL, *OF_FROZEN)


# -- the interface


def hooks_take_what_the_loop_gives(method: MethodUnderTest) -> None:
    """The method's hooks accept the arguments that the training loop passes."""
    instance = method.make()
    for name, hook in vars(Method).items():
        # Properties and private functions are not hooks.
        if name.startswith("_") or not inspect.isfunction(hook):
            continue
        override = getattr(instance, name)
        if not callable(override):
            kind = type(override).__name__
            raise method.failed(f"has a hook `{name}` of type `{kind}`: make it a method.")
        if not _accepts_the_same(override, hook):
            _, *parameters = inspect.signature(hook).parameters  # without `self`
            given = ", ".join(parameters)
            signature = f"{name}{inspect.signature(override)}"
            raise method.failed(f"has a hook `{signature}`, which is called with ({given}).")


Hook = Callable[..., object]


def _accepts_the_same(override: Hook, hook: Hook) -> bool:
    """Return True if a bound hook can be called with the base class's arguments."""
    # The signatures are not compared, because positional parameters may have other names.
    positional: list[None] = []
    by_name: dict[str, None] = {}
    _, *parameters = inspect.signature(hook).parameters.values()  # without `self`
    for parameter in parameters:
        if parameter.kind is parameter.KEYWORD_ONLY:
            by_name[parameter.name] = None
        else:
            positional.append(None)
    # `None` stands for any argument: only the names and the number of arguments matter.
    try:
        inspect.signature(override).bind(*positional, **by_name)
    except TypeError:
        return False
    return True


def loss_is_one_number(method: MethodUnderTest) -> None:
    """The loss on a batch is a single number with a gradient."""

    def inspect_loss(loss: object) -> None:
        if not isinstance(loss, Tensor):
            problem = f"that is a {type(loss).__name__}"
        elif loss.dim():
            problem = f"of the shape {tuple(loss.shape)}"
        elif not loss.requires_grad:
            problem = "without a gradient"
        else:
            return
        raise method.failed(
            f"has a loss {problem}: return one number that is computed from its `parameters`."
        )

    instance = method.make()
    losses = Losses(instance, inspect_loss)
    learn(method.backbone(), method.stream.tasks[:1], instance)
    if not losses.of_tasks[0]:
        raise method.failed(
            "never computed a loss: return rows from `examples`, or False from `trains`."
        )


# -- training


def only_its_parameters_change(method: MethodUnderTest) -> None:
    """Training changes only the method's `parameters` and the heads of the tasks it trains on."""
    instance = method.make()
    backbone = method.backbone()
    seen: list[Task] = []
    earlier: list[Adapter] = []
    for task in method.stream:
        seen.append(task)
        before = _tensors(backbone)
        adapter = learn(backbone, seen, instance, earlier)
        # The model still contains the task's module, with the trained parameters.
        earlier.append(adapter)
        changed = _changed_in_model(backbone, instance, seen, before)
        if changed is None:
            changed = _changed_in_module(backbone, instance, adapter)
        if changed is not None:
            raise method.failed(
                f"changed {changed} while it learned `{task.name}`: "
                "return it from `parameters`, or do not change it."
            )


def _changed_in_model(
    backbone: Backbone, method: Method, seen: Sequence[Task], before: dict[str, Tensor]
) -> str | None:
    """Return the name of the first tensor of the model that changed but should not have."""
    # By identity: equal values in two tensors are common, such as zeros in biases.
    trained = {id(parameter) for parameter in method.parameters(backbone)}
    allowed = _heads_of(backbone, method, seen)
    for name, parameter in backbone.named_parameters():
        if id(parameter) in trained:
            allowed.add(_plain(name))
    after = _tensors(backbone)
    for name, value in before.items():
        if name in allowed or ".default" in name:  # peft's name for a module added for this task
            continue
        if not torch.equal(after[name], value):
            return f"`{name}`"
    return None


def _changed_in_module(backbone: Backbone, method: Method, adapter: Adapter) -> str | None:
    """Return the name of the first LoRA factor that changed although it is not trained."""
    # Methods such as InfLoRA freeze one factor of the module that they add.
    trained = {id(parameter) for parameter in method.parameters(backbone)}
    for layer, (A, B) in adapters.factors(backbone.model).items():
        factors = {
            f"{layer}.lora_A.weight": A,
            f"{layer}.lora_B.weight": B,
        }
        for name, value in factors.items():
            start = adapter.start[name]
            if id(value) not in trained and not torch.equal(value, start):
                return f"`{name}` of its module"
    return None


def _plain(name: str) -> str:
    """Return the name that a tensor has in the model without a PEFT module."""
    # peft wraps the layer that it adapts, and calls it `base_layer`.
    return name.replace(".base_layer", "")


def _tensors(backbone: Backbone) -> dict[str, Tensor]:
    """Return a copy of each tensor, by its name in the model without a PEFT module."""
    tensors: dict[str, Tensor] = {}
    for name, value in backbone.state_dict().items():
        tensors[_plain(name)] = value.clone()
    return tensors


def _heads_of(backbone: Backbone, method: Method, seen: Sequence[Task]) -> set[str]:
    """Return the names of the tensors of heads that may change.

    These are the heads of the tasks with examples to train on. A method without such
    examples computes its heads, and may recompute all of them.
    """
    with_examples = [rows.task for rows in method.examples(seen)]
    tasks = with_examples or backbone.heads
    names: set[str] = set()
    for task in tasks:
        for key in backbone.own_state(task):
            names.add(f"_heads.task_{task}.{key}")
    return names


def training_lowers_the_loss(method: MethodUnderTest) -> None:
    """Training changes the PEFT module and lowers the loss."""
    losses: list[float] = []

    def log(event: dict[str, object]) -> None:
        loss = event["loss"]
        assert isinstance(loss, float)
        losses.append(loss)

    adapter = learn(
        method.backbone(),
        method.stream.tasks[:1],
        method.make(),
        training=MORE,
        log=log,
    )
    if adapters.same(adapter.start, adapter.parameters):
        raise method.failed("did not change its module: return trained tensors from `parameters`.")
    # Means over four steps, one epoch of this task, because single batches differ too much.
    by_epoch = [sum(losses[step : step + 4]) / 4 for step in range(0, len(losses), 4)]
    first, *others = by_epoch
    # The lowest, not the last: at this rate, full fine-tuning does not fall in every epoch.
    lowest = min(others)
    if not lowest < LOWER * first:
        raise method.failed(
            f"has a mean loss of {first:.3g} in the first epoch, and of {lowest:.3g} at best in "
            f"{len(others)} more."
        )


def computed_heads_know_the_classes(method: MethodUnderTest) -> None:
    """The method trains nothing, and computes heads that recognise the classes of all tasks."""
    instance = method.make()
    backbone = method.backbone()
    steps: list[object] = []
    for step in range(1, len(method.stream) + 1):
        seen = method.stream.until(step).tasks
        adapter = learn(backbone, seen, instance, log=steps.append)
        # A step would have been logged.
        if steps or instance.parameters(backbone) or instance.examples(seen):
            raise method.failed(
                "declares by `trains` that it trains nothing, but has parameters or examples."
            )
        wrote_module = adapter.config is not None or adapter.parameters
        has_module = adapters.attached(backbone.model)
        if wrote_module or has_module:
            raise method.failed(
                "declares by `trains` that it trains nothing, but added a module to the model."
            )
        for task in seen:
            right = _accuracy(backbone, task)
            if not right > ABOVE_CHANCE / len(task.classes):
                raise method.failed(
                    f"computed a head for `{task.name}` that is right on only {right:.0%} of the "
                    "training examples."
                )


def _accuracy(backbone: Backbone, task: Task) -> float:
    """Return the accuracy of a task's head on its training examples."""
    examples = backbone.encode(task.rows("train"))
    head = backbone.own(task.name)
    logits = head(pooled(backbone, examples))
    labels = torch.tensor(examples.labels)
    right = logits.argmax(1) == labels
    return right.double().mean().item()


# -- what a method declares


def what_it_isolates_is_learned_alone(method: MethodUnderTest) -> None:
    """If the method declares `isolates`, a task is learned as if there were no others."""
    if not method.make().isolates:
        return
    first, second, *_ = method.stream
    # New instances and backbones, so that nothing carries over from one case to the other.
    alone = method.backbone()
    learned_alone = learn(alone, [second], method.make())
    after = method.backbone()
    instance = method.make()
    before = learn(after, [first], instance)
    learned_after = learn(after, [first, second], instance, [before])
    same_module = adapters.same(learned_alone.parameters, learned_after.parameters)
    same_head = adapters.same(
        alone.own_state(second.name),
        after.own_state(second.name),
    )
    # Exactly equal, because `perdure forget` relies on it.
    if not (same_module and same_head):
        raise method.failed(
            "declares `isolates`, but an earlier task changed what it learned from the next one."
        )


def it_does_without_old_examples(method: MethodUnderTest) -> None:
    """Unless the method declares `keeps_all`, it learns without the examples of earlier tasks."""
    instance = method.make()
    if instance.keeps_all:
        return
    backbone = method.backbone()
    first, second, *_ = method.stream
    before = learn(backbone, [first], instance)
    # As in a run whose old tables were deleted: reading the examples raises `DataError`.
    gone = TaskWithoutData(
        first.name,
        first.classes,
        digests=first.digests(),
        missing="They were deleted.",
    )
    try:
        learn(backbone, [gone, second], instance, [before])
    except DataError as error:
        raise method.failed(
            "reads the examples of an earlier task: return True from `keeps_all`, "
            "or store what it needs in `state`."
        ) from error


def it_says_what_it_needs(method: MethodUnderTest) -> None:
    """The method is rejected before anything is learned, with an error that says what to use."""
    try:
        folder = method.run("refused")
    except InputError as error:
        sentences = str(error).count(". ") + 1
        if sentences < 2:
            raise method.failed(f"does not say what to do instead: {error}") from error
        if (method.folder / "refused" / "tasks").exists():
            raise method.failed("was rejected only after a task had begun.") from error
        return
    raise method.failed(f"has unmet `needs`, but was not rejected in the run `{folder.name}`.")


# -- runs


def equal_seeds_give_equal_runs(method: MethodUnderTest) -> None:
    """Two runs with the same seed are identical, byte for byte."""
    _require_equal(
        method,
        method.whole,
        method.run("again"),
        "produced a different run with the same seed: draw random numbers from torch.",
    )


def past_tasks_stay_as_they_are(method: MethodUnderTest) -> None:
    """The files of a learned task do not change when other tasks are learned."""
    first = f"tasks/00-{method.stream[0].name}"
    _require_equal(
        method,
        method.alone / first,
        method.whole / first,
        f"changed `{first}` when it learned other tasks: only new folders may change.",
    )


def a_run_goes_on_between_tasks(method: MethodUnderTest) -> None:
    """A run that stopped between two tasks can be resumed, and produces the same bytes."""
    # Each call of `run` creates a new instance, as a new process does: only files carry over.
    between = method.folder / "between"
    shutil.copytree(method.alone, between)
    method.run("between", tasks=2)
    _require_equal(
        method,
        method.whole,
        method.run("between"),
        _FORGOT.format("between two tasks"),
    )


def a_run_goes_on_inside_a_task(method: MethodUnderTest) -> None:
    """A run that stopped in the middle of a task can be resumed, and produces the same bytes."""
    if threading.current_thread() is not threading.main_thread():
        raise method.failed(
            "cannot be stopped here: check it in the main thread, the only one to get signals."
        )
    until_stopped = _run_until_stopped(method)
    instance = method.make()
    rest = Losses(instance)
    _require_equal(
        method,
        method.whole,
        method.run("inside", method=instance),
        _FORGOT.format("in the middle of a task"),
    )
    # Equal bytes alone would not show that the task was not started over.
    if until_stopped.of_tasks[1] + rest.of_tasks[0] != method.losses[1]:
        raise method.failed("was stopped in the middle of a task, and started it over.")


def _run_until_stopped(method: MethodUnderTest) -> Losses:
    """Stop the run `inside` by a signal in its second task; return the counter of its losses."""

    def stop_in_time(loss: object) -> None:
        if losses.of_tasks[1:] == [STOP_AT]:
            signal.raise_signal(signal.SIGTERM)

    # The signal comes in the middle of a step, as it may from a scheduler; the loop stops after it.
    instance = method.make()
    losses = Losses(instance, stop_in_time)
    try:
        method.run("inside", method=instance)
    except Stopped:
        return losses
    raise method.failed(
        "was asked to stop in the middle of a task, and did not: no hook may catch all exceptions."
    )


_FORGOT = (
    "was stopped {} and did not produce the same bytes: "
    "store in `state` whatever changes and is needed later."
)


def what_was_used_is_as_good_as_new(method: MethodUnderTest) -> None:
    """A method and a backbone can be reused for another run as if they were new."""
    instance = method.make()
    backbone = method.backbone()

    def run_again(name: str) -> Path:
        return method.run(
            name,
            tasks=2,
            method=instance,
            backbone=backbone,
        )

    _require_equal(
        method,
        run_again("first"),
        run_again("second"),
        "produced a different run when it was reused: store in `state` whatever it remembers.",
    )


def _require_equal(method: MethodUnderTest, expected: Path, actual: Path, failure: str) -> None:
    """Raise an error with the message `failure` unless two runs have equal tensors and scores."""
    left = _bytes(expected)
    right = _bytes(actual)
    if not left:  # two empty folders are equal, too
        raise method.failed(f"wrote no tensors into `{expected.name}`.")
    for name in sorted({*left, *right}):
        if left.get(name) != right.get(name):
            raise method.failed(f"{failure} `{name}` differs.")


def _bytes(folder: Path) -> dict[str, bytes]:
    """Return the contents of the files with a run's tensors and scores, by file name."""
    # The other files are not compared, because some of them contain times.
    files = [*folder.rglob("*.safetensors"), *folder.glob("scores.csv")]
    contents: dict[str, bytes] = {}
    for path in files:
        name = path.relative_to(folder).as_posix()
        contents[name] = path.read_bytes()
    return contents


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
OF_LANGUAGE: tuple[Check, ...] = (
    loss_is_one_number,
    only_its_parameters_change,
    what_it_isolates_is_learned_alone,
    it_does_without_old_examples,
    a_run_goes_on_inside_a_task,
)
"""The checks on language models, which have no heads and whose answers have several tokens."""
OF_FROZEN: tuple[Check, ...] = (computed_heads_know_the_classes,)
