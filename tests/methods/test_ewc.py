"""EWC: the Fisher information against gradients of one example at a time,
and the penalty against its definition.
"""

import pytest
import torch

from perdure import Training, learn
from perdure.methods.ewc import EWC
from perdure.methods.parts import anchor
from perdure.methods.parts.fisher import fisher
from perdure.models import adapters

FEW = Training(epochs=1, batch_size=8, learning_rate=0.01)


def by_hand(backbone, rows, task, labels):
    """Σ over examples of squared gradients, one example and one label at a time."""
    names = adapters.trainable(backbone.model)
    total = {name: torch.zeros_like(p) for name, p in names.items()}
    for i in range(len(rows)):
        batch = rows.batch([i])
        for label in range(backbone.own(task).out_features):
            log_p = backbone.own(task)(backbone(batch)).log_softmax(1)[0]
            weight = (
                log_p[label].exp().item() if labels == "true" else float(label == batch.targets[0])
            )
            gradients = torch.autograd.grad(log_p[label], list(names.values()), allow_unused=True)
            for name, g in zip(names, gradients, strict=True):
                total[name] += 0.0 if g is None else weight * g.square()
    return {name: value / len(rows) for name, value in total.items()}


@pytest.mark.parametrize("peft", ["lora", "bottleneck", "full"])
@pytest.mark.parametrize("labels", ["true", "empirical"])
def test_fisher_is_that_of_single_examples(labels, peft, bert, toy):
    learn(bert, [toy[1]], EWC(rank=2, peft=peft), FEW)
    rows = bert.eval().encode(toy[1].rows("test"))
    found, expected = fisher(bert, rows, labels), by_hand(bert, rows, "colour", labels)
    assert found.keys() == expected.keys()
    assert all(
        value.max() > 0 or "pooler" in name for name, value in found.items()
    )  # which the mean does not read
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-9)


def test_sampled_labels_have_the_true_fisher_as_their_mean(bert, toy):
    learn(bert, [toy[1]], EWC(rank=2), FEW)
    rows = bert.encode(toy[1].rows("test"))
    torch.manual_seed(0)
    drawn = [fisher(bert, rows, "sampled") for _ in range(60)]
    true = fisher(bert, rows, "true")
    for name, value in true.items():
        mean = torch.stack([one[name] for one in drawn]).mean(0).sum()
        assert mean.item() == pytest.approx(value.sum().item(), rel=0.15)


def test_many_penalties_are_one(bert, toy):
    """Offline: ΣF (θ − θ̄)² has the gradient of Σ_t F_t (θ − θ_t)²."""
    method, parts = EWC(rank=2, labels="true"), []
    for number in range(3):
        learn(bert, toy.tasks[: number + 1], method, FEW)
        rows = bert.encode(toy[number].rows("train"))
        F = fisher(bert, rows, "true")
        theta = adapters.trainable(bert.model)
        parts.append({name: (F[name], p.detach().clone()) for name, p in theta.items()})
    with torch.no_grad():
        for p in theta.values():
            p += 0.01 * torch.randn(p.shape, generator=torch.Generator().manual_seed(1))
    naive = sum(
        (F * (theta[name] - old).square()).sum()
        for part in parts
        for name, (F, old) in part.items()
    )
    expected = torch.autograd.grad(naive, list(theta.values()))
    found = torch.autograd.grad(anchor.penalty(theta, method.state), list(theta.values()))
    for one, two in zip(found, expected, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-3, atol=1e-9)


def test_online_decays_and_holds_the_last_state(bert, toy):
    method = EWC(rank=2, memory="online", decay=0.5, labels="true")
    learn(bert, [toy[0]], method, FEW)
    first = dict(method.state)
    learn(bert, [toy[0], toy[1]], method, FEW)
    new = fisher(bert, bert.encode(toy[1].rows("train")), "true")
    for name, value in new.items():
        before = first[f"importance/{name}"]
        torch.testing.assert_close(method.state[f"importance/{name}"], 0.5 * before + value)
    assert anchor.penalty(adapters.trainable(bert.model), method.state).item() == 0.0


@pytest.mark.parametrize("memory", ["online", "offline"])
def test_the_online_penalty_decays_too(memory, bert, toy):
    method = EWC(rank=2, memory=memory, decay=0.25, strength=8.0, labels="true")
    learn(bert, [toy[0]], method, FEW)
    theta = adapters.trainable(bert.model)
    with torch.no_grad():
        for p in theta.values():
            p += 0.01
    batch = bert.encode(toy[0].rows("train")).batch([0, 1, 2])
    factor = 0.25 if memory == "online" else 1.0
    F = [method.state[f"importance/{name}"] for name in theta]
    expected = 8.0 / 2 * factor * sum(value.sum().item() for value in F) * 0.01**2
    bert.eval()
    found = method.loss(bert, batch) - bert.losses(batch).mean()
    assert found.item() == pytest.approx(expected, rel=1e-3)


def test_a_strong_penalty_holds_the_module(bert, toy):
    def moved(strength: float) -> float:
        method = EWC(rank=2, strength=strength)
        learn(bert, [toy[0]], method, FEW)
        adapter = learn(bert, [toy[0], toy[1]], method, FEW)
        return sum(
            (adapter.parameters[name] - adapter.start[name]).square().sum().item()
            for name in adapter.start
        )

    assert moved(1e6) < 0.5 * moved(0.0)


def test_a_layer_that_is_used_twice(bert, toy):
    """The gradients of both uses are added up before they are squared."""
    bert.model.encoder.layer[1] = bert.model.encoder.layer[0]
    learn(bert, [toy[1]], EWC(rank=2), FEW)
    rows = bert.eval().encode(toy[1].rows("test"))
    found, expected = fisher(bert, rows, "empirical"), by_hand(bert, rows, "colour", "empirical")
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-9)
