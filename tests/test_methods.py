"""Conformance: what every method promises, checked on every method that is found."""

import pytest
import torch

from perdure import Backbone, Training, adapters, learn, names, registry, run

METHODS = names("method")
FEW = Training(epochs=2, batch_size=8, learning_rate=0.01)


def make(name: str):
    return registry.find("method", name)(rank=2)


def fingerprint(folder) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*.safetensors"))}


@pytest.mark.parametrize("name", METHODS)
def test_seeded_runs_are_bitwise_equal(name, pico, toy, tmp_path):
    runs = [
        run(
            toy,
            Backbone.load(pico("bert"), pooling="mean"),
            make(name),
            training=FEW,
            output=tmp_path / str(i),
            seed=3,
        )
        for i in range(2)
    ]
    assert fingerprint(runs[0].folder) == fingerprint(runs[1].folder)
    assert runs[0].scores() == runs[1].scores() and len(runs[0].scores()) == 3 * (1 + 2 + 3)


@pytest.mark.parametrize("name", METHODS)
def test_only_its_parameters_change(name, bert, toy):
    method, seen, earlier = make(name), [], []
    for task in toy:
        seen.append(task)
        before = {key: value.clone() for key, value in bert.state_dict().items()}
        earlier.append(learn(bert, seen, method, FEW, earlier=earlier))
        own = {id(parameter) for parameter in method.parameters(bert)}
        trained = {key for key, value in bert.named_parameters() if id(value) in own}
        heads = {f"heads.task_{part}.{kind}" for part, _ in method.examples(seen) for kind in ("weight", "bias")}
        held = {key.replace(".base_layer", ""): value for key, value in bert.state_dict().items()}
        for key, value in before.items():
            if key not in trained | heads and ".default" not in key:
                assert torch.equal(held[key.replace(".base_layer", "")], value), key
        for layer, (A, B) in adapters.factors(bert.model).items():
            for key, value in ((f"{layer}.lora_A.weight", A), (f"{layer}.lora_B.weight", B)):
                frozen = id(value) not in own
                assert not frozen or torch.equal(value, earlier[-1].start[key]), key


@pytest.mark.parametrize("name", METHODS)
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


@pytest.mark.parametrize("name", METHODS)
def test_past_adapters_stay_as_they_are(name, pico, toy, tmp_path):
    results = run(
        toy.until(1),
        Backbone.load(pico("bert"), pooling="mean"),
        make(name),
        training=FEW,
        output=tmp_path / "one",
    )
    longer = run(toy, Backbone.load(pico("bert"), pooling="mean"), make(name), training=FEW, output=tmp_path / "three")
    first, again = results.load_task("fruit"), longer.load_task("fruit")
    assert adapters.same(first.adapter.parameters, again.adapter.parameters)
    assert adapters.same(first.heads["fruit"], again.heads["fruit"])


@pytest.mark.parametrize("name", METHODS)
def test_a_run_that_stopped_between_tasks_goes_on_bit_for_bit(name, pico, toy, tmp_path):
    def backbone():
        return Backbone.load(pico("bert"), pooling="mean")

    whole = run(toy, backbone(), make(name), training=FEW, output=tmp_path / "whole")
    for stream in (toy.until(2), toy):
        part = run(stream, backbone(), make(name), training=FEW, output=tmp_path / "part")
    assert fingerprint(whole.folder) == fingerprint(part.folder)
    assert whole.scores() == part.scores()


@pytest.mark.parametrize("name", METHODS)
def test_what_was_used_before_is_as_good_as_new(name, pico, toy, tmp_path):
    backbone, method = Backbone.load(pico("bert"), pooling="mean"), make(name)
    runs = [run(toy.until(2), backbone, method, training=FEW, output=tmp_path / str(i)) for i in range(2)]
    assert fingerprint(runs[0].folder) == fingerprint(runs[1].folder) and runs[0].scores() == runs[1].scores()


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
    old = bert.head("fruit").weight.clone()
    learn(bert, toy.tasks[:2], method, FEW)
    assert not torch.equal(bert.head("fruit").weight, old)
