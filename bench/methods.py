"""What a method's own part costs beside training: steps of the newer methods and optimizers,
O-LoRA's penalty at twenty tasks, EWC's Fisher information, VCL's samples and divergences,
the passes of BGD and BAdam, and those of online replay, and LwF with interpolation.

On MiniLM with the demo's texts. Both are compared with a plain version in the same run.
The exit status is 1 when they differ, or a target is missed.
"""

import sys
from collections.abc import Callable, Sequence

import torch
from measure import Row, in_turn, table, temporary_bytes

from perdure import Adapter, Backbone, Training, registry
from perdure.benchmarks.demo import demo
from perdure.data.task import Task
from perdure.learning import optimizers
from perdure.learning.method import Method
from perdure.methods.badam import BAdam
from perdure.methods.bgd import BGD
from perdure.methods.ewc import EWC
from perdure.methods.inc_lora import IncLoRA
from perdure.methods.interpolation import Interpolation
from perdure.methods.lwf import LwF
from perdure.methods.masked_target import MaskedTarget
from perdure.methods.o_lora import OLoRA
from perdure.methods.online_replay import OnlineReplay
from perdure.methods.parts.fisher import Labels, fisher
from perdure.methods.parts.weight_fisher import weight_fisher
from perdure.methods.sequential import Sequential
from perdure.methods.slow_adapter import SlowAdapter
from perdure.methods.td_vcl import TDVCL
from perdure.methods.vcl import VCL
from perdure.methods.weight_space import WeightSpace
from perdure.models import adapters
from perdure.models.examples import Examples

TASKS, BATCH, EXAMPLES, K = 20, 16, 64, 4


def prepared(backbone: Backbone, method: Method, task) -> None:
    """The method's module in the model, with something learned: B of a fresh LoRA is zero."""
    torch.manual_seed(0)
    method.begin(backbone, task)
    for name, value in adapters.trainable(backbone.model).items():
        value.data += 0.02 * torch.randn_like(value) if "lora_B" in name else 0.0
        value.requires_grad_(True)


def penalty(backbone: Backbone, examples: Examples, task) -> Row:
    """The penalty with its gradient, beside a step of the same LoRA without it."""
    earlier = []
    for number in range(TASKS - 1):
        torch.manual_seed(number)
        IncLoRA().begin(backbone, task)
        config, parameters = adapters.config_of(backbone.model), adapters.read(backbone.model)
        earlier.append(Adapter(str(number), config, parameters, parameters))
    method, batch = OLoRA(), examples.batch(range(BATCH))
    method.beneath(earlier)
    prepared(backbone, method, task)

    def own() -> torch.Tensor:
        value = method.overlap(backbone)
        value.backward()
        return value.detach()

    def step() -> None:
        backbone.losses(batch).mean().backward()

    seconds, results = in_turn({"own": own, "step": step}, times=9)
    new = adapters.factors(backbone.model)
    plain = sum(
        (adapter.parameters[f"{name}.lora_A.weight"] @ A.T).abs().sum()
        for adapter in earlier
        for name, (A, _) in new.items()
    )
    error = abs(results["own"] - plain.detach()) / plain.detach()
    assert error < 1e-5, error
    return Row(
        f"O-LoRA's penalty at {TASKS} tasks, % of a step",
        f"penalty {1e3 * seconds['own']:.1f} ms, step of {BATCH} texts "
        f"{1e3 * seconds['step']:.0f} ms",
        100 * seconds["own"] / seconds["step"],
        3.0,
        least=False,
        equal=f"penalty to {error:.0e}",
    )


def passes(backbone: Backbone, examples: Examples, task) -> list[Row]:
    """EWC's pass over a task's examples, beside one epoch's forward and backward passes."""
    prepared(backbone, EWC(), task)

    def epoch() -> None:
        backbone.train(False)
        for start in range(0, len(examples), BATCH):
            backbone.losses(
                examples.batch(range(start, min(start + BATCH, len(examples))))
            ).mean().backward()

    def seen(labels: Labels) -> Callable[[], dict[str, torch.Tensor]]:
        return lambda: fisher(backbone, examples, labels)

    sides = {"sampled": seen("sampled"), "empirical": seen("empirical"), "true": seen("true")}
    seconds, results = in_turn({"epoch": epoch, **sides}, times=2)
    plain = {
        name: torch.zeros_like(value) for name, value in adapters.trainable(backbone.model).items()
    }
    for number in range(len(examples)):
        loss = backbone.losses(examples.batch([number])).mean()
        for name, g in zip(
            plain,
            torch.autograd.grad(loss, list(adapters.trainable(backbone.model).values())),
            strict=True,
        ):
            plain[name] += g.square() / len(examples)
    error = max(
        (results["empirical"][name] - value).norm() / value.norm() for name, value in plain.items()
    )
    assert error < 1e-3, error
    return [
        Row(
            f"EWC's Fisher information, labels {labels}"
            + (f" ({len(task.classes)} classes)" if labels == "true" else ""),
            f"pass {seconds[labels]:.1f} s, an epoch's forward and backward "
            f"{seconds['epoch']:.1f} s",
            seconds[labels] / seconds["epoch"],
            None if labels == "true" else 2.0,
            least=False,
            equal=f"to one example at a time, to {error:.0e}" if labels == "empirical" else "",
        )
        for labels in sides
    ]


def variational(backbone: Backbone, examples: Examples, task) -> list[Row]:
    """A step of VCL and TD-VCL on the same LoRA, beside a step of sequential fine-tuning."""
    prepared(backbone, Sequential(), task)
    batch, heads = examples.batch(range(BATCH)), list(backbone.own(task.name).parameters())
    methods = {
        "sequential": Sequential(),
        "vcl": VCL(initial_sigma=1e-9),
        "vcl, one sample for the batch": VCL(initial_sigma=1e-9, sampling="weights"),
        "td_vcl, n = 3": TDVCL(initial_sigma=1e-9, n=3),
    }
    sides = {}
    for name, method in methods.items():
        method.begin(backbone, task)
        if isinstance(method, TDVCL):
            method.posteriors.push(method.field.normal(), keep=3)
            method.posteriors.push(method.field.normal(), keep=3)
        module = [p for p in method.parameters(backbone) if all(p is not head for head in heads)]
        # With a rate of zero, all sides stay at the same weights.
        groups = [{"params": module, "lr": 0.0}, {"params": heads, "lr": 0.0}]
        optimizer = method.optimizer(groups, Training(), examples=len(examples))

        def step(method=method, optimizer=optimizer) -> torch.Tensor:
            with method.around(optimizer):
                loss = method.loss(backbone, batch)
                loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            return loss.detach()

        sides[name] = step
    seconds, results = in_turn(sides, times=9)
    rows = []
    for name in list(methods)[1:]:
        method = methods[name]
        distance = method.beta / len(examples) * method.divergence().detach()
        error = abs(results[name] - distance - results["sequential"]) / results["sequential"]
        assert error < 1e-4, (name, error)
        rows.append(
            Row(
                f"a step of `{name}`",
                f"{1e3 * seconds[name]:.0f} ms, of `sequential` "
                f"{1e3 * seconds['sequential']:.0f} ms, {BATCH} texts",
                seconds[name] / seconds["sequential"],
                1.6,
                least=False,
                equal=f"loss without σ to {error:.0e}",
            )
        )
    return rows + memories(sides)


def memories(sides: dict[str, Callable[[], object]]) -> list[Row]:
    """The temporary memory of a step of each method, beside that of sequential fine-tuning."""
    used = {name: temporary_bytes(step)[0] for name, step in sides.items()}
    of_sequential = used.pop("sequential")
    rows = []
    for name, size in used.items():
        text = f"{size / 1e6:.0f} MB, of `sequential` {of_sequential / 1e6:.0f} MB"
        rows.append(Row(f"memory of a step of `{name}`", text, size / of_sequential, None))
    return rows


def newer(backbone: Backbone, examples: Examples, task) -> list[Row]:
    """A step of a method or of an optimizer, beside a step of sequential fine-tuning by AdamW."""
    prepared(backbone, Sequential(), task)
    batch, heads = examples.batch(range(BATCH)), list(backbone.own(task.name).parameters())
    module = list(adapters.trainable(backbone.model).values())
    weight_space = WeightSpace(strength=1.0)
    for name, (A, B) in adapters.factors(backbone.model).items():
        weight_space._omega[name] = torch.rand(B.shape[0], A.shape[1])
    methods = {
        "sequential": (Sequential(), None, None),
        "weight_space": (weight_space, None, 1.3),
        "masked_target": (MaskedTarget(method=Sequential(), token_weights="entropy"), None, 1.6),
        "slow_adapter": (SlowAdapter(method=Sequential()), None, None),
        "sgd": (Sequential(), "sgd", None),
        "muon": (Sequential(), "muon", 1.15),
        "lora_muon": (Sequential(), "lora_muon", 1.15),
    }
    sides = {}
    for name, (method, kind, _) in methods.items():
        training = Training(optimizer=kind)
        # With a rate of zero, all sides stay at the same weights.
        groups = [{"params": module, "lr": 0.0}, {"params": heads, "lr": 0.0}]
        optimizer = optimizers.make(optimizers.divided(groups, backbone.model, training), training)
        if name == "slow_adapter":
            method.begin(backbone, task)

        def step(method=method, optimizer=optimizer) -> torch.Tensor:
            loss = method.loss(backbone, batch)
            loss.backward()
            method.update(backbone, optimizer.step)
            optimizer.zero_grad()
            return loss.detach()

        sides[name] = step
    seconds, results = in_turn(sides, times=9)
    plain = sum(
        (omega * (2 * B @ A).square()).sum() / 2
        for omega, (A, B) in zip(
            weight_space._omega.values(), adapters.factors(backbone.model).values(), strict=True
        )
    )
    error = abs(results["weight_space"] - plain.detach() - results["sequential"]) / plain.detach()
    assert error < 1e-4, error
    rows = []
    for name, (_, _, target) in list(methods.items())[1:]:
        kind = "a step of" if name in registry.names("method") else "a step by"
        rows.append(
            Row(
                f"{kind} `{name}`",
                f"{1e3 * seconds[name]:.0f} ms, of `sequential` by AdamW "
                f"{1e3 * seconds['sequential']:.0f} ms, {BATCH} texts",
                seconds[name] / seconds["sequential"],
                target,
                least=False,
                equal=f"penalty to {error:.0e}" if name == "weight_space" else "",
            )
        )
    return [*rows, importance(backbone, examples)]


def importance(backbone: Backbone, examples: Examples) -> Row:
    """EWC-LoRA's pass over a task's examples, beside one epoch's forward and backward passes."""

    def epoch() -> None:
        for start in range(0, len(examples), BATCH):
            numbers = range(start, min(start + BATCH, len(examples)))
            backbone.losses(examples.batch(numbers)).mean().backward()

    def own() -> dict[str, torch.Tensor]:
        return weight_fisher(backbone, examples, "empirical")

    seconds, _ = in_turn({"epoch": epoch, "own": own}, times=2)
    return Row(
        "the Fisher information of weights (`weight_space`)",
        f"pass {seconds['own']:.1f} s, an epoch's forward and backward {seconds['epoch']:.1f} s",
        seconds["own"] / seconds["epoch"],
        2.0,
        least=False,
    )


def sampling(backbone: Backbone, examples: Examples, task) -> list[Row]:
    """A step of BGD and of BAdam with K passes, beside K steps of sequential fine-tuning."""
    batch, sides = examples.batch(range(BATCH)), {}
    training = Training(batch_size=BATCH)
    methods = {"sequential": Sequential(), "bgd": BGD(samples=K), "badam": BAdam(samples=K)}
    torch.manual_seed(0)
    for name, method in methods.items():
        method.begin(backbone, task)
        parameters = [*method.parameters(backbone), *backbone.own(task.name).parameters()]
        groups = [{"params": parameters, "lr": 1e-6}]
        optimizer = method.optimizer(groups, training, examples=len(examples))

        def step(method=method, optimizer=optimizer, parameters=parameters) -> None:
            for parameter in parameters:
                parameter.requires_grad_(True)
            for _ in range(method.passes):
                with method.around(optimizer):
                    (method.loss(backbone, batch) / method.passes).backward()
            method.update(backbone, optimizer.step)
            optimizer.zero_grad()

        sides[name] = step
    seconds, _ = in_turn(sides, times=5)
    rows = [
        Row(
            f"a step of {name} with {K} passes, beside {K} steps of sequential",
            f"{name} {1e3 * seconds[name]:.0f} ms, sequential {1e3 * seconds['sequential']:.0f} ms",
            seconds[name] / (K * seconds["sequential"]),
            1.1,
            least=False,
        )
        for name in ("bgd", "badam")
    ]
    return rows + memories(sides)


def second_task(backbone: Backbone, tasks: Sequence[Task]) -> list[Row]:
    """A step on a second task by methods that look back, beside a step of sequential fine-tuning.

    Interpolation adds nothing to a step; its measurement at the end of a task is a row.
    """
    first, task = tasks
    rows, sides = [], {}
    batch = backbone.encode(task.rows("train")).batch(range(BATCH))
    lwf = LwF(conflict="drop")
    methods = {
        "sequential": Sequential(),
        "online_replay": OnlineReplay(),
        "online_replay, replay alone": OnlineReplay(mixup=0, distillation=0, held_out=0),
        "lwf, conflict: drop, interpolation": Interpolation(method=lwf, per_class=EXAMPLES // 8),
    }
    for name, method in methods.items():
        method.begin(backbone, first)
        method.examples([first])
        groups = [{"params": method.parameters(backbone), "lr": 0.0}]
        method.end(backbone, first, method.optimizer(groups, Training(), examples=EXAMPLES))
        method.begin(backbone, task)
        method.examples(tasks)
        parameters = [*method.parameters(backbone), *backbone.own(task.name).parameters()]
        # With a rate of zero, all sides stay at the same weights.
        groups = [{"params": parameters, "lr": 0.0}]
        optimizer = method.optimizer(groups, Training(), examples=EXAMPLES)

        def step(method=method, optimizer=optimizer, parameters=parameters) -> None:
            for parameter in parameters:
                parameter.requires_grad_(True)
            with method.around(optimizer):
                method.loss(backbone, batch).backward()
            method.update(backbone, optimizer.step)
            optimizer.zero_grad()

        sides[name] = step
    seconds, _ = in_turn(sides, times=5)
    targets = {
        # A step of as many old texts, their teacher's forward pass and that of the new ones, and
        # another step of both after the trial step: 4.7 without what is computed from them.
        "online_replay": 5.5,
        "online_replay, replay alone": 2.2,
        "lwf, conflict: drop, interpolation": 1.6,
    }
    for name, target in targets.items():
        text = f"{1e3 * seconds[name]:.0f} ms, of `sequential` {1e3 * seconds['sequential']:.0f} ms"
        ratio = seconds[name] / seconds["sequential"]
        rows.append(Row(f"a step of `{name}`", text, ratio, target, least=False))
    interpolation = methods["lwf, conflict: drop, interpolation"]
    assert isinstance(interpolation, Interpolation)
    kept = backbone.encode(interpolation._old)

    @torch.no_grad()
    def look() -> None:
        interpolation._go_back_if_unsure(backbone)

    def epoch() -> None:
        for numbers in range(0, len(kept), BATCH):
            chosen = range(numbers, min(numbers + BATCH, len(kept)))
            backbone.losses(kept.batch(chosen)).mean().backward()

    seconds, _ = in_turn({"look": look, "epoch": epoch}, times=3)
    text = f"{seconds['look']:.1f} s for {len(kept)} stored texts, an epoch of them "
    rows.append(
        Row(
            "confidence before and after a task (`interpolation`)",
            f"{text}{seconds['epoch']:.1f} s",
            seconds["look"] / seconds["epoch"],
            1.0,
            least=False,
        )
    )
    return rows


def main() -> int:
    torch.set_num_threads(1)
    tasks = demo(train=EXAMPLES, validation=20, test=20).tasks[:2]
    task = tasks[0]
    backbone = Backbone.load("minilm", max_length=64)
    backbone.open(task)
    examples = backbone.encode(task.rows("train"))
    rows = [
        *newer(backbone, examples, task),
        *variational(backbone, examples, task),
        penalty(backbone, examples, task),
        *passes(backbone, examples, task),
        *sampling(backbone, examples, task),
    ]
    backbone.open(tasks[1])
    rows += second_task(backbone, tasks)
    print(table(rows))
    return 0 if all(row.met for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
