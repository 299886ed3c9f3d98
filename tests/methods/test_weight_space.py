"""EWC-LoRA and ELLA: the Fisher information of weights against one example at a time, the penalty
against NumPy, and what is remembered.
"""

import numpy as np
import pytest
import torch
from pico_language import language_model
from text_tasks import uneven

from perdure import Backbone, InputError, Training, learn
from perdure.methods.parts.weight_fisher import weight_fisher
from perdure.methods.weight_space import WeightSpace
from perdure.models import adapters
from perdure.models.matrices import oriented

FEW = Training(epochs=1, batch_size=8, learning_rate=0.01)


def by_hand(backbone, rows, labels="empirical"):
    """The mean over examples of the squared gradient of the frozen weight itself: W and ΔW, which
    are added, have the same gradient.
    """
    layers = {name: adapters.base_layer(backbone.model, name) for name in factors(backbone)}
    for layer in layers.values():
        layer.weight.requires_grad_()
    weights = [layer.weight for layer in layers.values()]
    totals = {name: torch.zeros(()) for name in layers}
    for number in range(len(rows)):
        answers = backbone.read(backbone(batch := rows.batch([number])), batch)
        terms = [(1.0, answers.losses()[0])]
        if labels == "true":
            log_p = answers.values.log_softmax(1)[0]
            terms = [(value.exp().item(), value) for value in log_p]
        for weight, term in terms:
            gradients = torch.autograd.grad(term, weights, retain_graph=True, allow_unused=True)
            for name, gradient in zip(layers, gradients, strict=True):
                if gradient is not None:
                    square = oriented(layers[name], gradient).square()
                    totals[name] = totals[name] + weight * square
    for layer in layers.values():
        layer.weight.requires_grad_(False)
    return {name: total / len(rows) for name, total in totals.items()}


def factors(backbone):
    return adapters.factors(backbone.model)


@pytest.mark.parametrize("labels", ["empirical", "true"])
def test_the_fisher_information_of_an_encoder(labels, bert, toy):
    learn(bert, [toy[1]], WeightSpace(rank=2), FEW)
    rows = bert.eval().encode(toy[1].rows("test"))
    information = weight_fisher(bert, rows, labels)
    expected = by_hand(bert, rows, labels)
    assert information.keys() == expected.keys() == factors(bert).keys()
    for name, value in expected.items():
        assert value.max() > 0
        torch.testing.assert_close(information[name], value, rtol=1e-4, atol=1e-10)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "t5", "bart"])
def test_the_fisher_information_of_a_language_model(kind):
    """With answers of several tokens, `Conv1D`, and keys that read another row than queries."""
    backbone, task = language_model(kind), uneven("one")
    learn(backbone, [task], WeightSpace(rank=2), FEW)
    rows = backbone.eval().encode(task.rows("train"))
    information = weight_fisher(backbone, rows, "empirical")
    for name, value in by_hand(backbone, rows).items():
        assert value.max() > 0
        torch.testing.assert_close(information[name], value, rtol=1e-3, atol=1e-8)


def test_a_layer_that_is_used_several_times(bert, toy):
    """As in ALBERT: the gradient of an example is the sum over the uses."""
    blocks = bert.model.encoder.layer
    blocks[1] = blocks[0]
    learn(bert, [toy[0]], WeightSpace(rank=2), FEW)
    rows = bert.eval().encode(toy[0].rows("test"))
    information = weight_fisher(bert, rows, "empirical")
    for name, value in by_hand(bert, rows).items():
        torch.testing.assert_close(information[name], value, rtol=1e-3, atol=1e-9)


def test_sampled_labels_have_the_true_fisher_as_their_mean(bert, toy):
    learn(bert, [toy[1]], WeightSpace(rank=2), FEW)
    rows = bert.encode(toy[1].rows("test"))
    torch.manual_seed(0)
    drawn = [weight_fisher(bert, rows, "sampled") for _ in range(60)]
    for name, value in weight_fisher(bert, rows, "true").items():
        mean = torch.stack([one[name] for one in drawn]).mean(0).sum()
        assert mean.item() == pytest.approx(value.sum().item(), rel=0.15)


def moved(backbone, seed=1):
    """Move the factors of the branch, and return ΔW of each layer, in double precision."""
    generator = torch.Generator().manual_seed(seed)
    changes = {}
    with torch.no_grad():
        for name, (A, B) in factors(backbone).items():
            B.add_(0.1 * torch.randn(B.shape, generator=generator))
            scale = 16.0 / len(A)
            changes[name] = scale * B.double().numpy() @ A.double().numpy()
    return changes


def penalty_of(method, backbone, task):
    batch = backbone.eval().encode(task.rows("train")).batch([0, 1, 2])
    return (method.loss(backbone, batch) - backbone.losses(batch).mean()).item()


def test_the_penalty_with_the_fisher_information(bert, toy):
    """λ/2 Σ Ω ⊙ (ΔW)², with Ω = γ F_1 + F_2 before the third task."""
    method = WeightSpace(rank=2, strength=3.0, decay=0.25)
    earlier, parts = [], []
    for number in range(2):
        seen = toy.tasks[: number + 1]
        earlier.append(learn(bert, seen, method, FEW, earlier=earlier))
        # `learn` has removed the earlier branch from the weights: read what was remembered
        parts.append({name: value.clone() for name, value in method.state.items()})
    new = {name: parts[1][name] - 0.25 * parts[0][name] for name in parts[0]}
    assert all(value.min() > -1e-7 and value.max() > 0 for value in new.values())

    method.beneath(earlier)
    method.begin(bert, toy[2])
    bert.open(toy[2])
    assert penalty_of(method, bert, toy[2]) == pytest.approx(0.0, abs=1e-6)  # B is zero
    expected = 0.0
    for name, change in moved(bert).items():
        omega = method.state[f"importance/{name}"].double().numpy()
        expected += 3.0 / 2 * (omega * change**2).sum()
    assert penalty_of(method, bert, toy[2]) == pytest.approx(expected, rel=1e-3, abs=1e-5)


def test_the_penalty_with_past_changes(bert, toy):
    """λ/2 Σ (ΔW_1 + ΔW_2)² ⊙ (ΔW)²: half of ELLA's λ ‖ΔW ⊙ W_past‖²."""
    method = WeightSpace(rank=2, strength=2e4, importance="past")
    earlier = []
    for number in range(2):
        earlier.append(learn(bert, toy.tasks[: number + 1], method, FEW, earlier=earlier))
    assert method.state == {}  # Ω comes from the branches
    # Without the first task, which was forgotten, Ω is that of the second alone.
    method.beneath(earlier[1:])
    for name, omega in method._past().items():
        A = earlier[1].parameters[f"{name}.lora_A.weight"]
        B = earlier[1].parameters[f"{name}.lora_B.weight"]
        torch.testing.assert_close(omega, (8.0 * B @ A).square())
    method.beneath(earlier)
    method.begin(bert, toy[2])
    bert.open(toy[2])
    expected = 0.0
    for name, change in moved(bert).items():
        past = 0.0
        for adapter in earlier:
            A = adapter.parameters[f"{name}.lora_A.weight"].double().numpy()
            B = adapter.parameters[f"{name}.lora_B.weight"].double().numpy()
            past = past + 8.0 * B @ A
        expected += 1e4 * np.linalg.norm(change * past) ** 2
    assert expected > 1e-3
    assert penalty_of(method, bert, toy[2]) == pytest.approx(expected, rel=1e-2)


def test_the_first_task_has_no_penalty(bert, toy):
    plain = learn(bert, [toy[0]], WeightSpace(rank=2, strength=0), FEW)
    bert.close("fruit")
    strong = learn(bert, [toy[0]], WeightSpace(rank=2, strength=1e9), FEW)
    assert adapters.same(plain.parameters, strong.parameters)


@pytest.mark.parametrize("importance", ["fisher", "past"])
def test_a_strong_penalty_holds_what_mattered(importance, pico, toy):
    """The change by the second task, weighted by Ω, shrinks when λ grows."""
    sizes = []

    class Measured(WeightSpace):
        def end(self, backbone, task, optimizer):
            sizes.append(self.penalty(backbone).item() if self._omega else 0.0)
            super().end(backbone, task, optimizer)

    def size(strength):
        backbone = Backbone.load(pico("bert"), pooling="mean")
        method = Measured(rank=2, strength=strength, importance=importance)
        first = learn(backbone, [toy[0]], method, FEW)
        learn(backbone, toy.tasks[:2], method, FEW, earlier=[first])
        return sizes[-1]

    assert size(1e9) < 0.2 * size(0.0)


def test_omega_takes_four_bytes_for_each_entry_of_a_weight(bert, toy):
    method = WeightSpace(rank=2)
    learn(bert, [toy[0]], method, FEW)
    layers = factors(bert)
    assert set(method.state) == {f"importance/{name}" for name in layers}
    size = sum(value.numel() * value.element_size() for value in method.state.values())
    assert size == sum(4 * B.shape[0] * A.shape[1] for A, B in layers.values())
    assert method._omega == {}  # no copy stays in memory until the next task


def test_what_is_refused():
    with pytest.raises(InputError, match="protects the weights .* needs `peft: lora`"):
        WeightSpace(peft="full")
    assert WeightSpace(labels="true").needs == {"lora", "classes", "heads"}
    assert WeightSpace(importance="past").needs == {"lora"}
    for settings in ({"labels": "true"}, {"decay": 0.5}):
        with pytest.raises(InputError, match="only with `importance: fisher`: leave them out"):
            WeightSpace(importance="past", **settings)
