"""Conformance: what every method promises, checked on every method that is found."""

import pytest
import torch
from small_runs import small, stopped

from perdure import Backbone, Run, Training, learn, names, registry, run
from perdure.methods.parts.frozen import FrozenMethod
from perdure.models import adapters
from perdure.models.backbone import pooled

FEW = Training(epochs=2, batch_size=8, learning_rate=0.01)
METHODS = names("method")
FROZEN = [name for name in METHODS if issubclass(registry.find("method", name), FrozenMethod)]
"""Those that train nothing."""
TRAINED = [name for name in METHODS if name not in FROZEN]
FULL = ["sequential-full", "joint-full", "ewc-full"]
"""Some with full fine-tuning."""


def make(name: str):
    kind, full, _ = name.partition("-full")
    return small(kind, **({"peft": "full"} if full else {}))


def fingerprint(folder) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*.safetensors"))}


def same(one: Run, other: Run) -> bool:
    return fingerprint(one.folder) == fingerprint(other.folder) and one.scores() == other.scores()


@pytest.fixture(scope="module")
def learned(pico, toy):
    """Learn a stream by a method, in a folder."""

    def begin(name, folder, stream=toy):
        return run(stream, Backbone.load(pico("bert"), pooling="mean"), make(name), training=FEW, output=folder, seed=3)

    return begin


@pytest.fixture(scope="module")
def whole(learned, tmp_path_factory):
    """A function from the name of a method to its run of the toy stream."""
    made: dict[str, Run] = {}

    def of(name):
        if name not in made:
            made[name] = learned(name, tmp_path_factory.mktemp("whole") / name)
        return made[name]

    return of


@pytest.mark.parametrize("name", METHODS + FULL)
def test_seeded_runs_are_bitwise_equal(name, whole, learned, tmp_path):
    again = learned(name, tmp_path / "again")
    assert same(whole(name), again) and len(again.scores()) == 3 * (1 + 2 + 3)


@pytest.mark.parametrize("name", METHODS + FULL)
def test_only_its_parameters_change(name, bert, toy):
    method, seen, earlier = make(name), [], []
    for task in toy:
        seen.append(task)
        before = {key: value.clone() for key, value in bert.state_dict().items()}
        earlier.append(learn(bert, seen, method, FEW, earlier=earlier))
        own = {id(parameter) for parameter in method.parameters(bert)}
        trained = {key for key, value in bert.named_parameters() if id(value) in own}
        changed = [part for part, _ in method.examples(seen)] or bert.heads  # heads that are computed
        heads = {f"_heads.task_{part}.{kind}" for part in changed for kind in ("weight", "bias")}
        held = {key.replace(".base_layer", ""): value for key, value in bert.state_dict().items()}
        for key, value in before.items():
            if key not in trained | heads and ".default" not in key:
                assert torch.equal(held[key.replace(".base_layer", "")], value), key
        for layer, (A, B) in adapters.factors(bert.model).items():
            for key, value in ((f"{layer}.lora_A.weight", A), (f"{layer}.lora_B.weight", B)):
                frozen = id(value) not in own
                assert not frozen or torch.equal(value, earlier[-1].start[key]), key


@pytest.mark.parametrize("name", TRAINED + FULL)
def test_training_changes_the_module_and_lowers_the_loss(name, bert, toy):
    losses = []
    adapter = learn(
        bert,
        [toy[0]],
        make(name),
        Training(epochs=6, batch_size=8, learning_rate=0.02),
        log=lambda e: losses.append(e["loss"]),
    )
    assert not adapters.same(adapter.start, adapter.parameters)
    assert sum(losses[-4:]) < 0.7 * sum(losses[:4])


@pytest.mark.parametrize("name", FROZEN)
def test_what_trains_nothing_puts_heads_in_place(name, bert, toy):
    method = make(name)
    for step in (1, 2, 3):
        adapter = learn(bert, toy.until(step).tasks, method, FEW, log=pytest.fail)
        assert adapter.config is None and not adapter.parameters and not adapters.attached(bert.model)
        for task in toy.tasks[:step]:
            rows = bert.encode(task.rows("train"))
            guesses = bert.own(task.name)(pooled(bert, rows)).argmax(1)
            assert (guesses == torch.tensor(rows.labels)).double().mean() > 1.3 / len(task.classes)
    assert method.parameters(bert) == [] and method.examples(toy.tasks) == []


@pytest.mark.parametrize("name", METHODS)
def test_past_adapters_stay_as_they_are(name, whole, learned, toy, tmp_path):
    first = learned(name, tmp_path / "one", toy.until(1)).load_task("fruit")
    again = whole(name).load_task("fruit")
    assert adapters.same(first.adapter.parameters, again.adapter.parameters)
    assert adapters.same(first.heads["fruit"], again.heads["fruit"])


@pytest.mark.parametrize("name", METHODS)
def test_a_run_that_stopped_between_tasks_goes_on_bit_for_bit(name, whole, learned, toy, tmp_path):
    for stream in (toy.until(2), toy):
        part = learned(name, tmp_path / "part", stream)
    assert same(whole(name), part)


@pytest.mark.parametrize("name", TRAINED + FULL)
def test_a_run_that_stopped_inside_a_task_goes_on_bit_for_bit(name, whole, learned, tmp_path):
    def begin(folder, part):
        return learned(name, folder / part)

    part = stopped(begin, tmp_path, "part", task="colour", step=6, how="Call it again")
    assert part.tasks == ["fruit"] and part.begun() == "colour"
    assert same(whole(name), begin(tmp_path, "part"))


@pytest.mark.parametrize("name", METHODS)
def test_what_was_used_before_is_as_good_as_new(name, pico, toy, tmp_path):
    backbone, method = Backbone.load(pico("bert"), pooling="mean"), make(name)
    runs = [run(toy.until(2), backbone, method, training=FEW, output=tmp_path / str(i)) for i in range(2)]
    assert same(*runs)


def test_starts(pico, toy, tmp_path):
    def starts(name: str, **options) -> list[adapters.Adapter]:
        method = registry.find("method", name)(rank=2, **options)
        backbone = Backbone.load(pico("bert"), pooling="mean")
        return [learn(backbone, toy.tasks[: i + 1], method, FEW) for i in range(3)]

    fresh, previous, sequential = (
        starts("isolated"),
        starts("isolated", start="previous"),
        starts("sequential"),
    )
    assert adapters.same(fresh[0].start, fresh[1].start) and adapters.same(fresh[0].start, fresh[2].start)
    assert adapters.same(previous[1].start, previous[0].parameters)
    assert adapters.same(previous[0].start, fresh[0].start)
    # sequential fine-tuning is the trajectory that modules started from the previous task lie on
    assert all(adapters.same(a.parameters, b.parameters) for a, b in zip(previous, sequential, strict=True))


def test_joint_trains_on_all_tasks_at_once(bert, toy):
    from perdure.methods.joint import Joint

    method = Joint()
    assert [task for task, _ in method.examples(toy.tasks)] == toy.names
    learn(bert, toy.tasks[:1], method, FEW)
    old = bert.own("fruit").weight.clone()
    learn(bert, toy.tasks[:2], method, FEW)
    assert not torch.equal(bert.own("fruit").weight, old)
