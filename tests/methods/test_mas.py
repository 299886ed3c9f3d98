"""MAS: what outputs depend on, against gradients of one example at a time."""

from dataclasses import replace

import pytest
import torch
from small_runs import OPTIMIZER

from perdure import Training, learn
from perdure.methods.mas import MAS
from perdure.models import adapters

FEW = Training(epochs=1, batch_size=8, learning_rate=0.01)


@pytest.mark.parametrize("peft", ["lora", "bottleneck", "full"])
def test_importance_is_that_of_single_examples(peft, bert, toy):
    method = MAS(rank=2, peft=peft)
    learn(bert, [toy[1]], method, FEW)
    parameters = adapters.trainable(bert.model)
    total, rows = (
        {name: torch.zeros_like(p) for name, p in parameters.items()},
        bert.encode(toy[1].rows("train")),
    )
    for i in range(len(rows)):
        logits = bert.own("colour")(bert(rows.batch([i])))
        found = torch.autograd.grad(
            logits.square().sum(), list(parameters.values()), allow_unused=True
        )
        for value, g in zip(total.values(), found, strict=True):
            value += 0.0 if g is None else g.abs()
    for name, value in total.items():
        assert value.max() > 0 or "pooler" in name  # which the mean does not read
        torch.testing.assert_close(
            method.state[f"importance/{name}"], value / len(rows), rtol=1e-4, atol=1e-7
        )
        assert torch.equal(method.state[f"anchor/{name}"], parameters[name])


def test_labels_do_not_matter(bert, toy):
    found = []
    learn(bert, [toy[1]], MAS(rank=2), FEW)
    for shift in (0, 1):
        method = MAS(rank=2)
        train = toy[1].train.map(lambda row, shift=shift: {"label": (row["label"] + shift) % 3})
        method.end(bert, replace(toy[1], train=train), OPTIMIZER)
        found.append(method.state)
    assert adapters.same(*found)


def test_the_loss_is_that_of_the_task_and_the_penalty(bert, toy):
    method = MAS(rank=2, strength=0.7)
    learn(bert, [toy[0]], method, FEW)
    learn(bert, toy.tasks[:2], method, FEW)
    batch, parameters = (
        bert.encode(toy[1].rows("train")).batch(range(8)),
        adapters.trainable(bert.model),
    )
    with torch.no_grad():
        for p in parameters.values():
            p += 0.01
        penalty = sum(
            (
                method.state[f"importance/{name}"] * (p - method.state[f"anchor/{name}"]).square()
            ).sum()
            for name, p in parameters.items()
        )
        plain = torch.nn.functional.cross_entropy(bert.own("colour")(bert(batch)), batch.targets)
        torch.testing.assert_close(method.loss(bert, batch), plain + 0.7 * penalty)


def test_a_strong_penalty_holds_the_module(bert, toy):
    def moved(strength: float) -> float:
        method = MAS(rank=2, strength=strength)
        learn(bert, [toy[0]], method, FEW)
        adapter = learn(bert, [toy[0], toy[1]], method, FEW)
        return sum(
            (adapter.parameters[name] - adapter.start[name]).square().sum().item()
            for name in adapter.start
        )

    assert moved(1e6) < 0.5 * moved(0.0)
