"""Online replay: each of its parts by hand, and that each can be switched off."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from pico_language import language_model
from torch.nn import functional as F

from perdure import Backbone, InputError, Training, learn
from perdure.data.exemplars import Exemplars
from perdure.learning import engine
from perdure.methods.online_replay import OnlineReplay
from perdure.methods.parts.depths import blocks_at, distance_at_depths, run_watched
from perdure.methods.parts.lookahead import add_gradient_ahead
from perdure.methods.parts.mixup import Pairs, beta
from perdure.methods.parts.reservoir import add_sample
from perdure.methods.sequential import Sequential
from perdure.models import adapters

FEW = Training(epochs=1, batch_size=8, learning_rate=0.01)
PLAIN = {"mixup": 0, "distillation": 0, "held_out": 0}
"""All parts switched off, except for replay."""


# -- the reservoir


def test_every_example_is_as_likely_to_be_in_the_reservoir(toy):
    """Over three tasks of 32 examples each, with room for 12."""
    seeds, counts = 400, np.zeros((3, 32))
    for seed in range(seeds):
        random, kept = np.random.default_rng(seed), Exemplars()
        for task in toy:
            add_sample(kept, task, 32, 12, random)
            # To tell the examples apart, their labels are their numbers.
            if len(kept.labels[task.name]):
                texts = {text.encode(): i for i, text in enumerate(task.train["text"])}
                kept.labels[task.name] = [texts[text] for text in kept.inputs[task.name]]
        assert len(kept) == 12
        for number, labels in enumerate(kept.labels.values()):
            counts[number, labels] += 1
    # Each of the 96 examples is expected in 1 of 8 reservoirs, 50 ± 7 times.
    assert counts.sum() == 12 * seeds
    assert counts.sum(1) == pytest.approx([4 * seeds] * 3, rel=0.1)
    assert counts.min() > 20 and counts.max() < 85


def test_the_store(bert, toy):
    method = OnlineReplay(rank=2, memory=10)
    for step in (1, 2, 3):
        learn(bert, toy.until(step).tasks, method, FEW)
        kept = Exemplars.of(method.state)
        assert len(kept) == 10 and set(kept.labels) <= set(toy.names[:step])
        assert method.store_bytes == kept.size > 0
    method.examples(toy.tasks[1:])  # `fruit` was forgotten
    assert "fruit" not in [rows.task for rows in method._old]


# -- mixup


def test_text_encoders_mix_their_features(bert, toy):
    bert.open(toy[0])
    bert.open(toy[1])
    new = bert.encode(toy[1].rows("train")).batch(range(4))
    old = bert.encode(toy[0].rows("train")).batch([7, 7, 3, 1])
    pairs = Pairs(new, old, 0.3, mixes=True)
    outputs = [bert(batch) for batch in pairs.inputs(bert)]
    feature = 0.3 * bert(new) + 0.7 * bert(old)
    expected = 0.3 * F.cross_entropy(bert.own("colour")(feature), new.targets, reduction="none")
    expected += 0.7 * F.cross_entropy(bert.own("fruit")(feature), old.targets, reduction="none")
    torch.testing.assert_close(pairs.losses(bert, outputs), expected)
    unmixed = 0.3 * bert.losses(new) + 0.7 * bert.losses(old)
    torch.testing.assert_close(replace(pairs, mixes=False).losses(bert, outputs), unmixed)


def test_images_mix_their_pixels(pico, pictures):
    backbone = Backbone.load(pico("vit")).eval()
    for task in pictures:
        backbone.open(task)
    new = backbone.encode(pictures[1].rows("train")).batch(range(3))
    old = backbone.encode(pictures[0].rows("train")).batch([2, 0, 1])
    pairs = Pairs(new, old, 0.25, mixes=True)
    (mixed,) = pairs.inputs(backbone)
    pixels = 0.25 * new.inputs["pixel_values"] + 0.75 * old.inputs["pixel_values"]
    torch.testing.assert_close(mixed.inputs["pixel_values"], pixels)
    hidden = backbone(mixed)
    expected = 0.25 * backbone.losses(new, hidden) + 0.75 * backbone.losses(old, hidden)
    torch.testing.assert_close(pairs.losses(backbone, [hidden]), expected)


def test_language_models_mix_their_losses(toy):
    backbone = language_model("llama").eval()
    new = backbone.encode(toy[1].rows("train")).batch(range(4))
    old = backbone.encode(toy[0].rows("train")).batch(range(4))
    pairs = Pairs(new, old, 0.3, mixes=True)
    outputs = [backbone(batch) for batch in pairs.inputs(backbone)]
    expected = 0.3 * backbone.losses(new) + 0.7 * backbone.losses(old)
    torch.testing.assert_close(pairs.losses(backbone, outputs), expected)


def test_the_weights_are_drawn_from_beta():
    """Beta(a, a) has the mean 1/2 and the variance 1 / (4 (2a + 1))."""
    torch.manual_seed(0)
    weights = np.array([beta(0.4) for _ in range(4000)])
    assert weights.mean() == pytest.approx(0.5, abs=0.02)
    assert weights.var() == pytest.approx(1 / (4 * 1.8), rel=0.05)


# -- distillation at several depths


def test_distance_by_hand():
    student = torch.tensor([[3.0, 0.0], [0.0, 2.0]])
    teacher = torch.tensor([[0.0, 5.0], [0.0, 1.0]])
    # At the first depth, tokens at a right angle (distance² 2) and equal ones; then opposite ones.
    found = distance_at_depths([student, student], [teacher, -student])
    assert found.item() == pytest.approx((1.0 + 4.0) / 2)


def test_blocks_are_evenly_spaced(bert):
    blocks = blocks_at(bert, 99)
    assert len(blocks) > 1 and blocks_at(bert, 1) == [blocks[-1]]
    assert blocks_at(bert, len(blocks) - 1)[-1] is blocks[-1]


def test_hidden_states_are_those_of_the_blocks_without_padding(bert, toy):
    batch = bert.encode(toy[0].rows("train")).batch(range(6))
    mask = batch.inputs["attention_mask"].bool()
    output, states = run_watched(bert, batch, blocks_at(bert, 99))
    expected = bert.model(**batch.inputs, output_hidden_states=True).hidden_states[1:]
    assert torch.equal(output, bert(batch)) and len(states) == len(expected)
    for state, hidden in zip(states, expected, strict=True):
        torch.testing.assert_close(state, hidden[mask])


def test_a_model_without_blocks_is_refused(bert, monkeypatch):
    monkeypatch.setattr(bert, "model", torch.nn.Linear(2, 2))
    with pytest.raises(InputError, match="Set `distillation: 0`"):
        blocks_at(bert, 1)


def drift(pico, toy, **settings):
    """How far the hidden states move from what they were before the second task."""
    backbone = Backbone.load(pico("bert"), pooling="mean")
    method = OnlineReplay(rank=2, memory=1, **{**PLAIN, **settings})
    training = Training(epochs=4, batch_size=8, learning_rate=0.02, backbone_dropout=False)
    learn(backbone, [toy[0]], method, training)
    batch, blocks = backbone.encode(toy[1].rows("train")).batch(range(32)), blocks_at(backbone, 9)
    before = [state.detach() for state in run_watched(backbone.eval(), batch, blocks)[1]]
    learn(backbone, toy.tasks[:2], method, training)
    return distance_at_depths(run_watched(backbone.eval(), batch, blocks)[1], before).item()


def test_distilled_states_move_less(pico, toy):
    assert drift(pico, toy, distillation=50.0) < 0.5 * drift(pico, toy)


# -- the step that is judged by held-out examples


def test_gradient_ahead_by_hand():
    """For losses a x² / 2 and b x² / 2, it is a x + b (x − r a x)."""
    x = torch.nn.Parameter(torch.tensor(2.0))
    other = torch.nn.Parameter(torch.tensor(7.0))
    x.grad = 3.0 * x.detach()
    add_gradient_ahead([x, other], 0.1, [lambda: 2.0 * x**2, lambda: 0.5 * x**2])
    assert x.item() == 2.0 and other.item() == 7.0 and other.grad is None
    assert x.grad.item() == pytest.approx(6.0 + 5.0 * (2.0 - 0.1 * 6.0))


def gradients(bert, toy, **settings):
    """The gradients of one step of the second task with a given draw, and the loss."""
    method = OnlineReplay(rank=2, **{"mixup": 0.4, "distillation": 1.0, **settings})
    kept = Exemplars()
    kept.add(toy[0], range(16))
    method.state = kept.state()
    for task in toy.tasks[:2]:
        torch.manual_seed(3)
        bert.open(task)
    torch.manual_seed(3)
    method.begin(bert, toy[1])
    method.examples(toy.tasks[:2])
    bert.requires_grad_(False).eval()
    for parameter in (*method.parameters(bert), *bert.own("colour").parameters()):
        parameter.requires_grad_()
    batch = bert.encode(toy[1].rows("train")).batch(range(8))
    torch.manual_seed(4)
    loss = method.loss(bert, batch)
    loss.backward()
    method.update(bert, lambda: None)
    values = [one.grad.clone() for one in bert.parameters() if one.grad is not None]
    bert.zero_grad()
    adapters.detach(bert.model)
    return loss.item(), values


def test_with_a_trial_step_of_no_length_nothing_is_held_out(bert, toy):
    value, expected = gradients(bert, toy, held_out=0)
    same, found = gradients(bert, toy, held_out=0.25, inner_rate=0.0)
    _, moved = gradients(bert, toy, held_out=0.25, inner_rate=1.0)
    assert same == pytest.approx(value, rel=1e-5) and len(found) == len(expected) > 0
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-7)
    assert any(not torch.allclose(a, b) for a, b in zip(moved, expected, strict=True))


def test_some_but_not_all_are_held_out():
    method = OnlineReplay(held_out=0.25)
    assert [method._hold_out(n).sum().item() for n in (1, 2, 3, 8, 16)] == [0, 1, 1, 2, 4]
    assert OnlineReplay(held_out=0.99)._hold_out(4).sum().item() == 3
    assert not OnlineReplay(held_out=0)._hold_out(8).any()


# -- all together


def test_with_everything_off_the_first_task_is_sequential(pico, toy):
    def learned(method):
        return learn(Backbone.load(pico("bert"), pooling="mean"), [toy[0]], method, FEW)

    one, other = learned(OnlineReplay(rank=2, **PLAIN)), learned(Sequential(rank=2))
    for name, value in other.parameters.items():
        torch.testing.assert_close(one.parameters[name], value, rtol=1e-4, atol=1e-6)


def test_several_processes_are_refused(bert, toy, monkeypatch):
    monkeypatch.setattr(engine, "count", lambda: 2)
    with pytest.raises(InputError, match="runs in one process"):
        OnlineReplay(rank=2).begin(bert, toy[0])
