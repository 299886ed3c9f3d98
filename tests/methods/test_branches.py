"""A new branch for each task: IncLoRA, and the penalties that O-LoRA and N-LoRA add,
against plain loops.
"""

import pytest
import torch

from perdure import Backbone, InputError, Training, learn
from perdure.methods.inc_lora import IncLoRA
from perdure.methods.n_lora import NLoRA
from perdure.methods.o_lora import OLoRA
from perdure.methods.sequential import Sequential
from perdure.models import adapters

FEW = Training(epochs=2, batch_size=8, learning_rate=0.01)


def learned(method, pico, stream):
    """What each task has learned, and the heads."""
    backbone, found = Backbone.load(pico("bert"), pooling="mean"), []
    for step in range(1, len(stream) + 1):
        found.append(learn(backbone, stream.until(step).tasks, method, FEW, earlier=found))
    return found, [backbone.own_state(name) for name in stream.names]


def begun(method, backbone, stream):
    """At the beginning of the third task: what the first two have learned,
    and a batch of the third.
    """
    found = []
    for step in (1, 2):
        found.append(learn(backbone, stream.until(step).tasks, method, FEW, earlier=found))
    backbone.open(stream[2])
    method.beneath(found)
    method.begin(backbone, stream[2])
    random = torch.Generator().manual_seed(0)
    for pair in adapters.factors(backbone.model).values():
        for part in pair:
            part.data = torch.randn(part.shape, generator=random)
    backbone.eval()
    return found, backbone.encode(stream[2].rows("train")).batch(range(8))


@pytest.mark.parametrize(
    "plain", [OLoRA(rank=2, orthogonality=0.0), NLoRA(rank=2, sparsity=0.0)], ids=str
)
def test_without_its_penalty_it_is_inc_lora(plain, pico, toy):
    (one, heads), (other, other_heads) = (
        learned(plain, pico, toy),
        learned(IncLoRA(rank=2), pico, toy),
    )
    assert all(adapters.same(a.parameters, b.parameters) for a, b in zip(one, other, strict=True))
    assert all(adapters.same(a, b) for a, b in zip(heads, other_heads, strict=True))


def test_branches_act_together_and_begin_alike(bert, toy):
    """The second task of IncLoRA begins with the model that the first has left."""
    method = IncLoRA(rank=2)
    first, after, before = learn(bert, [toy[0]], method, FEW), [], []
    batch = bert.encode(toy[1].rows("train")).batch(range(8))

    class Spy(IncLoRA):
        def begin(self, backbone, task):
            super().begin(backbone, task)
            before.append(backbone.eval()(batch).detach())

    with torch.no_grad():
        after.append(bert.eval()(batch))
    second = learn(bert, toy.tasks[:2], Spy(rank=2), FEW, earlier=[first])
    torch.testing.assert_close(before, after, rtol=0, atol=1e-5)
    assert not any(value.any() for name, value in second.start.items() if "lora_B" in name)


def test_overlap_is_the_sum_over_layers_tasks_and_rows(bert, toy):
    """Layers of different widths."""
    method = OLoRA(
        rank=2, orthogonality=0.7, target_modules=["query", "intermediate.dense", "output.dense"]
    )
    found, batch = begun(method, bert, toy)
    expected = 0.0
    for layer, (A, _) in adapters.factors(bert.model).items():
        for old in found:
            for a in old.parameters[f"{layer}.lora_A.weight"]:
                for new in A:
                    expected += abs((a * new).sum().item())
    assert {A.shape[1] for A, _ in adapters.factors(bert.model).values()} == {32, 64}
    assert method.overlap(bert).item() == pytest.approx(expected, rel=1e-5)
    penalty = method.loss(bert, batch) - bert.losses(batch).mean()
    assert penalty.item() == pytest.approx(0.7 * expected, rel=1e-5)


def test_orthogonal_directions_cost_nothing(bert, toy):
    method = OLoRA(rank=2)
    found, _ = begun(method, bert, toy)
    for layer, (A, _) in adapters.factors(bert.model).items():
        old = torch.cat([one.parameters[f"{layer}.lora_A.weight"] for one in found])
        inside = torch.linalg.qr(old.T)[0]
        A.data -= A.data @ inside @ inside.T
    assert (
        method.overlap(bert).item() < 1e-4
        and next(iter(adapters.factors(bert.model).values()))[0].norm() > 1
    )


def test_the_penalty_makes_directions_orthogonal(pico, toy):
    def overlap(strength):
        (first, second), _ = learned(OLoRA(rank=2, orthogonality=strength), pico, toy.until(2))
        names = [name for name in first.parameters if "lora_A" in name]
        return sum(
            (first.parameters[name] @ second.parameters[name].T).abs().sum().item()
            for name in names
        )

    assert overlap(5.0) < 0.8 * overlap(0.0)


def test_decay_is_the_sum_of_norms(bert, toy):
    method = OLoRA(rank=2, orthogonality=0.0, decay=0.3)
    _, batch = begun(method, bert, toy)
    parts = [part for pair in adapters.factors(bert.model).values() for part in pair]
    norms = sum(part.square().sum().item() ** 0.5 for part in parts)
    found = method.loss(bert, batch) - bert.losses(batch).mean()
    assert found.item() == pytest.approx(0.3 * norms, rel=1e-5)


def test_sparsity_is_that_of_the_change_of_the_weights(bert, toy):
    """Of s B A as peft itself merges it."""
    method = NLoRA(rank=2, alpha=6.0, sparsity=0.4)
    _, batch = begun(method, bert, toy)
    size = sum(
        layer.get_delta_weight("default").abs().sum().item()
        for layer in adapters.layers(bert.model)
    )
    found = method.loss(bert, batch) - bert.losses(batch).mean()
    assert found.item() == pytest.approx(0.4 * size, rel=1e-5)


def test_the_penalty_makes_changes_small(pico, toy):
    def size(strength):
        (first,), _ = learned(NLoRA(rank=2, sparsity=strength), pico, toy.until(1))
        return sum(
            (B @ A).abs().sum() for B, A in adapters.deltas(first.config, first.parameters).values()
        )

    assert size(0.1) < 0.5 * size(0.0)


@pytest.mark.parametrize("kind", [IncLoRA, OLoRA, NLoRA])
def test_a_bottleneck_has_no_sum(kind):
    with pytest.raises(InputError, match="`peft: "):
        kind(peft="bottleneck")


def test_full_changes_are_summed(pico, toy):
    """IncLoRA's sum, of full fine-tuning: what sequential training would have come to,
    but for the optimizer.
    """
    (first, second), _ = learned(IncLoRA(peft="full"), pico, toy.until(2))
    assert not any(value.any() for value in second.start.values())
    assert not adapters.same(first.parameters, second.parameters)
    (alone, _), _ = learned(Sequential(peft="full"), pico, toy.until(2))
    assert adapters.same(first.parameters, alone.parameters)
