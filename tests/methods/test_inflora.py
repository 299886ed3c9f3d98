"""InfLoRA on a whole model: what is designed, what training moves, what is left of earlier tasks,
and where it ends.
"""

import warnings

import pytest
import torch
from conftest import IMAGE, TEXT
from datasets import Dataset

from perdure import (
    Backbone,
    BackboneError,
    InputError,
    Model,
    PerdureWarning,
    Rule,
    Task,
    TaskStream,
    Training,
    combine,
    learn,
    run,
    task_vectors,
)
from perdure.checks.models import toy_task
from perdure.evaluation.measure import Evaluation
from perdure.methods.inflora import InfLoRA
from perdure.methods.parts.subspace import Subspace
from perdure.models import adapters
from perdure.models.examples import Examples
from perdure.models.inputs import input_covariances

FEW = Training(epochs=2, batch_size=8, learning_rate=0.05)


def learned(backbone: Backbone, stream: TaskStream, method: InfLoRA) -> list[adapters.Adapter]:
    found: list[adapters.Adapter] = []
    for step in range(1, len(stream) + 1):
        found.append(learn(backbone, stream.until(step).tasks, method, FEW, earlier=found))
    return found


def spaces(state: dict) -> dict[str, Subspace]:
    """By the first layer that has them."""
    names = [key.removeprefix("basis/") for key in state if key.startswith("basis/")]
    return {name: Subspace(state[f"basis/{name}"], state[f"complement/{name}"]) for name in names}


@pytest.mark.parametrize(
    ("settings", "alpha"), [({}, 10), ({"rank": 20}, 20), ({"rank": 20, "alpha": 10}, 10)]
)
def test_the_scale_is_1_unless_alpha_is_given(settings, alpha):
    assert InfLoRA(**settings).alpha == alpha


def test_training_leaves_the_directions_of_earlier_tasks_alone(bert, toy):
    method, before, found = InfLoRA(rank=4, alpha=4.0, epsilon=0.99), {}, []
    for step in range(1, 4):
        found.append(learn(bert, toy.until(step).tasks, method, FEW, earlier=found))
        for layer, (B, A) in adapters.deltas(found[-1].config, found[-1].parameters).items():
            change, rows = (B @ A).double(), A.double()
            assert change.norm() > 1e-3
            inside = torch.linalg.qr(rows.T)[0]
            assert (
                change - change @ inside @ inside.T
            ).norm() <= 1e-6 * change.norm()  # only inside span(B_t)
            torch.testing.assert_close(rows @ rows.T, torch.eye(4).double() / 3, rtol=0, atol=1e-6)
            space = before.get(layer.replace("value", "key"))
            if space is not None:
                assert space.dimension > 0 and not space.complement
                assert (change @ space.basis).norm() <= 1e-6 * change.norm()
        before = spaces(method.state)
        assert len(before) == 2  # one for key and value of each block


def test_only_a_t_is_trained_and_key_and_value_share_b_t(bert, toy):
    first, second = learned(bert, toy.until(2), InfLoRA(rank=3))
    names = [name for name in first.parameters if name.endswith("lora_A.weight")]
    assert len(names) == 4 and all(".key." in name or ".value." in name for name in names)
    for name in names:
        assert torch.equal(first.parameters[name], first.start[name])
        assert torch.equal(first.start[name], first.start[name.replace("value", "key")])
        assert not torch.equal(first.start[name], second.start[name])
        trained = name.replace("lora_A", "lora_B")
        assert not first.start[trained].any() and first.parameters[trained].any()
        other = (
            trained.replace(".key.", ".value.")
            if ".key." in name
            else trained.replace(".value.", ".key.")
        )
        assert not torch.equal(first.parameters[trained], first.parameters[other])


def test_earlier_branches_act_while_a_task_is_learned_and_are_taken_out_again(bert, toy):
    before = {name: value.clone() for name, value in bert.model.state_dict().items()}
    seen = []

    class Spy(InfLoRA):
        def loss(self, backbone, batch):
            name = "encoder.layer.0.attention.self.key"
            seen.append(adapters.base_layer(backbone.model, name).weight.clone())
            return super().loss(backbone, batch)

    method = Spy(rank=3)
    first = learn(bert, toy.until(1).tasks, method, FEW)
    count = len(seen)
    learn(bert, toy.until(2).tasks, method, FEW, earlier=[first])
    name = "encoder.layer.0.attention.self.key"
    change = task_vectors([first])["fruit"].dense(name)
    assert change.any() and torch.equal(seen[0], before[f"{name}.weight"])
    assert torch.equal(seen[count], before[f"{name}.weight"] + change) and torch.equal(
        seen[-1], seen[count]
    )
    held = {
        name.replace(".base_layer", ""): value for name, value in bert.model.state_dict().items()
    }
    assert all(torch.equal(held[name], value) for name, value in before.items())


def test_the_weights_are_put_back_when_training_fails(bert, toy):
    class Broken(InfLoRA):
        def loss(self, backbone, batch):
            raise RuntimeError

    method = InfLoRA(rank=3)
    first = learn(bert, toy.until(1).tasks, method, FEW)
    broken = Broken(rank=3)
    broken.state.update(method.state)
    with pytest.raises(RuntimeError):
        learn(bert, toy.until(2).tasks, broken, FEW, earlier=[first])
    adapters.detach(bert.model)
    fresh = Backbone.load(bert.source, pooling="mean").model.state_dict()
    assert all(torch.equal(fresh[name], value) for name, value in bert.model.state_dict().items())


def test_the_folded_sum_is_the_sum_of_branches(bert, toy):
    """e = W h + A_1 B_1 h + A_2 B_2 h + A_3 B_3 h, at the first block,
    whose input h no branch changes.
    """
    found = learned(bert, toy, InfLoRA(rank=3, alpha=6.0))
    batch = bert.encode(toy[0].rows("test")).batch([0, 1])
    name, seen = "encoder.layer.0.attention.self.value", {}
    layer = bert.model.get_submodule(name)
    handle = layer.register_forward_hook(
        lambda module, arguments, output: seen.update(h=arguments[0], e=output)
    )
    with torch.no_grad(), combine(found, Rule(name="sum")).applied(bert):
        bert(batch)
    handle.remove()
    base = adapters.base_layer(bert.model, name)
    expected = base(seen["h"])
    for adapter in found:
        A, B = (
            adapter.parameters[f"{name}.lora_B.weight"],
            adapter.parameters[f"{name}.lora_A.weight"],
        )
        expected = expected + 2.0 * seen["h"] @ B.T @ A.T
    torch.testing.assert_close(seen["e"], expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", [*TEXT, *IMAGE])
def test_every_architecture(kind, pico, toy, pictures, tmp_path):
    stream = pictures if kind in IMAGE else toy.until(2)
    results = run(
        stream,
        Backbone.load(pico(kind)),
        InfLoRA(rank=2),
        "sum",
        training=FEW,
        output=tmp_path / "run",
    )
    layers = adapters.deltas(
        results.load_task(stream.names[0]).adapter.config,
        results.load_task(stream.names[1]).adapter.parameters,
    )
    assert len(layers) == (
        2 if kind == "modernbert" else 4
    )  # ModernBERT has one layer for query, key and value
    assert all(B.any() for B, _ in layers.values())
    inputs = stream[0].test["image" if kind in IMAGE else "text"][:3]
    assert len(Model(results).predict(inputs)) == 3


def test_blocks_and_targets(bert, toy):
    def layers(**options) -> list[str]:
        adapter = learn(bert, toy.until(1).tasks, InfLoRA(rank=2, **options), FEW)
        return sorted(adapters.deltas(adapter.config, adapter.parameters))

    inner = "encoder.layer.0.attention"
    assert layers(blocks=1) == [f"{inner}.self.key", f"{inner}.self.value"]
    assert layers(blocks=1, target_modules=["query", "output.dense"]) == [
        f"{inner}.output.dense",
        f"{inner}.self.query",
        "encoder.layer.0.output.dense",
    ]
    assert len(layers(target_modules=r".*layer\.\d\.attention\.self\.(query|key|value)")) == 6
    with pytest.raises(BackboneError, match="No layers for a `lora` module"):
        layers(blocks=1, target_modules=r".*layer\.1\.attention\.self\.query")


def rows(bert, toy, **options) -> list[torch.Tensor]:
    """B_t of the first block's key, task by task, in double precision."""
    method = InfLoRA(rank=4, epsilon=0.99, **options)
    found = learned(bert, toy, method)
    return [
        adapter.start["encoder.layer.0.attention.self.key.lora_A.weight"].double()
        for adapter in found
    ], method


def test_designs(bert, toy):
    """The paper's ablation: outside M_t or not, from the new task's inputs or random."""

    def overlap(B: torch.Tensor, space: Subspace) -> float:
        return ((B - space.outside(B.T).T).norm() / B.norm()).item()

    both, method = rows(bert, toy)
    space = spaces(method.state)["encoder.layer.0.attention.self.key"]  # of all three tasks
    orthogonal, other = rows(bert, toy, design="orthogonal")
    taken = spaces(other.state)["encoder.layer.0.attention.self.key"]
    new_task, empty = rows(bert, toy, design="new_task")
    random, nothing = rows(bert, toy, design="random")
    # M_4 holds M_3, outside which B_3 lies, and most of what task 3 brought: so B_3 itself,
    # but not a random B_3
    assert overlap(both[2], space) > 0.8 > overlap(orthogonal[2], taken)
    torch.testing.assert_close(
        both[0].abs(), new_task[0].abs(), rtol=0, atol=1e-6
    )  # nothing is taken before task 1
    assert (
        overlap(new_task[1], Subspace(torch.linalg.qr(both[0].T)[0], complement=False)) > 0.5
    )  # like inputs
    for B in (*both, *orthogonal, *new_task, *random):
        torch.testing.assert_close(B @ B.T, torch.eye(4).double() / 3, rtol=0, atol=1e-6)
    assert not torch.allclose(random[0], random[1]) and not torch.allclose(
        orthogonal[1], orthogonal[2]
    )
    assert not spaces(empty.state) and not spaces(
        nothing.state
    )  # what is not needed is not measured


def test_isolated_inside_designed_subspaces(pico, toy, tmp_path):
    """With `upon="pretrained"` no task sees another: the join with parameter isolation and
    combination.
    """
    backbone, seen = Backbone.load(pico("bert"), pooling="mean"), []

    class Spy(InfLoRA):
        def loss(self, backbone, batch):
            seen.append(
                adapters.base_layer(
                    backbone.model, "encoder.layer.0.attention.self.key"
                ).weight.clone()
            )
            return super().loss(backbone, batch)

    results = run(
        toy,
        backbone,
        Spy(rank=3, upon="pretrained"),
        "task_arithmetic",
        training=FEW,
        output=tmp_path / "run",
    )
    assert all(torch.equal(weight, seen[0]) for weight in seen)
    assert len(results.tasks) == 3 and results.combined()["name"] == "task_arithmetic"
    found = [results.load_task(name).adapter for name in toy.names]
    vectors = task_vectors(found)
    name = "encoder.layer.1.attention.self.value"
    overlap = vectors["fruit"].dense(name) @ vectors["colour"].dense(name).T
    assert (
        overlap.norm()
        < 0.2 * vectors["fruit"].dense(name).norm() * vectors["colour"].dense(name).norm()
    )


def test_epsilon_rises_with_the_tasks(bert, toy):
    def dimensions(**options) -> list[int]:
        method, found, sizes = InfLoRA(rank=2, **options), [], []
        for step in range(1, 4):
            found.append(learn(bert, toy.until(step).tasks, method, FEW, earlier=found))
            sizes.append(sum(space.dimension for space in spaces(method.state).values()))
        return sizes

    flat, steep = (
        dimensions(epsilon=0.9, last_epsilon=0.9),
        dimensions(epsilon=0.9, last_epsilon=0.999, tasks=3),
    )
    early = dimensions(epsilon=0.9, last_epsilon=0.999, tasks=1)
    assert flat[0] == steep[0] and steep[2] > flat[2]
    assert early == flat  # a schedule that ends after one task stays where it began
    assert dimensions(balance=0.001) == [0, 0, 0] and dimensions(balance=20.0)[2] > 0
    assert dimensions(energy="features", epsilon=0.9, last_epsilon=0.9) > flat


def test_statistics_examples(bert, toy, monkeypatch):
    from perdure.models import inputs

    sizes = []
    tokens = inputs.without_padding
    monkeypatch.setattr(
        inputs, "without_padding", lambda x, batch: sizes.append(len(x)) or tokens(x, batch)
    )
    learn(bert, toy.until(1).tasks, InfLoRA(rank=2), FEW)
    assert sum(sizes) == 2 * 2 * 32  # two passes over 32 examples, each at two blocks
    sizes.clear()
    learn(bert, toy.until(1).tasks, InfLoRA(rank=2, statistics_examples=7), FEW)
    assert sum(sizes) == 2 * 2 * 7


def test_the_examples_looked_at_are_of_all_classes(bert, toy, monkeypatch):
    """The classes of the toy tasks alternate: every second example would be of one class."""
    taken = []
    batches = Examples.batches
    monkeypatch.setattr(
        Examples,
        "batches",
        lambda self, rows=None, **o: taken.append(rows) or batches(self, rows, **o),
    )
    examples = bert.encode(toy[0].rows("train"))
    input_covariances(bert, examples, ["encoder.layer.0.attention.self.key"], limit=8)
    assert len(taken[0]) == 8 and {examples.labels[i] for i in taken[0]} == {0, 1}


def test_what_it_cannot_do(bert, toy):
    with pytest.raises(
        InputError, match="`inflora` designs one half of LoRA: it needs `peft: lora`"
    ):
        InfLoRA(peft="bottleneck")
    method = InfLoRA(rank=2)
    learn(bert, toy.until(1).tasks, method, FEW)
    with pytest.raises(
        InputError, match="`inflora` has seen 1 tasks, but got 0 adapters as `earlier`"
    ):
        learn(bert, toy.until(2).tasks, method, FEW)


# -- where there is no room


def test_a_rank_larger_than_the_layer(bert, toy):
    with pytest.warns(
        PerdureWarning,
        match=r"Task `fruit` has fewer than `rank=40` directions .*\(3\d or more\) in 2 of 2",
    ):
        adapter = learn(bert, toy.until(1).tasks, InfLoRA(rank=40, alpha=40.0), FEW)
    for B, A in adapters.deltas(adapter.config, adapter.parameters).values():
        assert A.shape == (40, 32) and not A[32:].any() and not B[:, 32:].any() and B[:, :30].any()


def constant_task() -> Task:
    """The same word over and over, with both labels."""
    data = Dataset.from_dict({"text": ["w1 w1 w1"] * 8, "label": [0, 1] * 4})
    return Task("constant", ("yes", "no"), data, data, data)


def test_constant_inputs(bert):
    with pytest.warns(PerdureWarning, match="Task `constant` has fewer than `rank=6` directions"):
        adapter = learn(bert, [constant_task()], InfLoRA(rank=6, alpha=6.0), FEW)
    for B, A in adapters.deltas(adapter.config, adapter.parameters).values():
        found = int(A.norm(dim=1).count_nonzero())
        assert 1 <= found <= 5 and not B[:, found:].any()  # 5 tokens: [CLS], three words, [SEP]
        assert torch.isfinite(B).all()


def test_fewer_examples_than_the_rank(bert):
    """Directions are of tokens, not of examples: two examples of twelve tokens have room for
    six.
    """
    one = toy_task("tiny", ["a", "b"], 4, size=2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        adapter = learn(bert, [one], InfLoRA(rank=6, alpha=6.0), FEW)
    assert all(
        A.norm(dim=1).all() for _, A in adapters.deltas(adapter.config, adapter.parameters).values()
    )


def test_a_stream_longer_than_the_space(bert):
    stream = TaskStream(
        "long", tuple(toy_task(f"task{i}", ["a", "b"], i, size=16) for i in range(4)), "domain"
    )
    method, found = InfLoRA(rank=8, alpha=8.0, epsilon=1.0 - 1e-12, last_epsilon=1.0 - 1e-12), []
    with pytest.warns(
        PerdureWarning, match="has fewer than `rank=8` directions to learn in"
    ) as seen:
        for step in range(1, 5):
            found.append(learn(bert, stream.until(step).tasks, method, FEW, earlier=found))
    assert "Task `task3`" in str(seen[-1].message) and "(0 or more)" in str(seen[-1].message)
    last = adapters.deltas(found[-1].config, found[-1].parameters)
    assert not any(
        B.any() or A.any() for B, A in last.values()
    )  # nothing is trained, nothing is disturbed
    assert all(space.free <= 1 for space in spaces(method.state).values())


# -- runs


def test_ten_tasks_interrupted_go_on_bit_for_bit(pico, tmp_path):
    classes = ["x", "y"]
    stream = TaskStream(
        "ten", tuple(toy_task(f"t{i}", classes, i, size=16) for i in range(10)), "domain"
    )
    options = {
        "training": Training(epochs=1, batch_size=8, learning_rate=0.02),
        "evaluation": Evaluation(steps="last"),
    }

    def backbone() -> Backbone:
        return Backbone.load(pico("bert"), pooling="mean")

    def method() -> InfLoRA:
        return InfLoRA(rank=2, epsilon=0.9, last_epsilon=0.95)

    whole = run(stream, backbone(), method(), "sum", output=tmp_path / "whole", **options)
    for stop in (3, 7, 10):
        part = run(
            stream.until(stop), backbone(), method(), "sum", output=tmp_path / "part", **options
        )
    for name in stream.names:
        one, two = whole.load_task(name), part.load_task(name)
        assert adapters.same(one.adapter.parameters, two.adapter.parameters)
        assert adapters.same(one.adapter.start, two.adapter.start)
        bases = {key: value for key, value in one.state.items() if isinstance(value, torch.Tensor)}
        assert len(bases) == 2 and adapters.same(bases, {key: two.state[key] for key in bases})
        assert {k: v for k, v in one.state.items() if k not in bases} == {
            k: v for k, v in two.state.items() if k not in bases
        }
    last = [row for row in whole.scores() if row["step"] == 10]
    assert last == [row for row in part.scores() if row["step"] == 10] and len(last) == 30
