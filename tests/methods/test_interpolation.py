"""Interpolation with the previous weights: the gate, what is mixed, and what is refused."""

from dataclasses import replace

import pytest
import torch

from perdure import Backbone, InputError, Training, learn
from perdure.data.exemplars import Exemplars
from perdure.methods.interpolation import Interpolation, confidence
from perdure.methods.isolated import Isolated
from perdure.methods.joint import Joint
from perdure.methods.ncm import NCM
from perdure.methods.replay import Replay
from perdure.methods.sequential import Sequential
from perdure.methods.slow_adapter import SlowAdapter
from perdure.models import adapters

FEW = Training(epochs=3, batch_size=8, learning_rate=0.05)


def after_two(pico, toy, method):
    """The model after two tasks, what the second one learned, and what `fruit`'s head was."""
    backbone = Backbone.load(pico("bert"), pooling="mean")
    first = learn(backbone, [toy[0]], method, FEW)
    head = backbone.own_state("fruit")
    second = learn(backbone, toy.tasks[:2], method, FEW, earlier=[first])
    return backbone, first, second, head


def test_confidence_is_the_probability_of_the_right_class(bert, toy):
    bert.open(toy[0])
    rows = toy[0].rows("train")
    batch = bert.encode(rows).batch(range(32))
    with torch.no_grad():
        p = bert.own("fruit")(bert.eval()(batch)).softmax(1)[range(32), batch.targets]
    assert confidence(bert, rows) == pytest.approx(p.mean().item(), rel=1e-5)


def test_the_gate(pico, toy, monkeypatch):
    """θ is mixed only if the confidence fell by more than the margin."""
    values = iter([0.60, 0.71, 0.60, 0.69])  # after and before the second task, twice
    monkeypatch.setattr(
        "perdure.methods.interpolation.confidence", lambda backbone, rows: next(values)
    )

    def learned(method):
        return after_two(pico, toy, method)[1:3]

    settings = {"method": Sequential(rank=2), "keep": 0.75, "margin": 0.1}
    _, plain = learned(Sequential(rank=2))
    first, mixed = learned(Interpolation(**settings))
    _, unmixed = learned(Interpolation(**settings))
    for name, value in plain.parameters.items():
        expected = 0.75 * value + 0.25 * first.parameters[name]
        torch.testing.assert_close(mixed.parameters[name], expected)
    assert adapters.same(unmixed.parameters, plain.parameters)
    assert not adapters.same(mixed.parameters, plain.parameters)


def test_a_margin_decides(pico, toy):
    """With real confidences: the second task says the opposite about the same texts."""
    rows = toy[0].rows("train")
    opposite = toy[0].train.map(lambda row: {"label": 1 - row["label"]})
    tasks = [toy[0], replace(toy[0], name="opposite", train=opposite)]
    training = replace(FEW, heads="shared")

    def learned(method):
        backbone = Backbone.load(pico("bert"), pooling="mean")
        learn(backbone, tasks[:1], method, training)
        before = confidence(backbone, rows)
        second = learn(backbone, tasks, method, training)
        return before, confidence(backbone, rows), second.parameters

    before, low, plain = learned(Sequential(rank=2))
    assert before - low > 0.2
    _, kept, unmixed = learned(Interpolation(method=Sequential(rank=2), margin=0.99))
    _, higher, mixed = learned(Interpolation(method=Sequential(rank=2), margin=0.2))
    assert kept == low and adapters.same(unmixed, plain)
    assert higher > low and not adapters.same(mixed, plain)


def test_heads(pico, toy, monkeypatch):
    """The head of the old task is mixed if it was trained; that of the new task never is."""
    values = iter([0.0, 1.0])
    monkeypatch.setattr(
        "perdure.methods.interpolation.confidence", lambda backbone, rows: next(values)
    )
    inner = lambda: Replay(method=Sequential(rank=2), per_class=3)  # noqa: E731
    plain, _, _, before = after_two(pico, toy, inner())
    mixed, _, _, _ = after_two(pico, toy, Interpolation(method=inner(), keep=0.5))
    for name, value in plain.own_state("fruit").items():
        assert not torch.equal(value, before[name])
        expected = (value + before[name]) / 2
        torch.testing.assert_close(mixed.own_state("fruit")[name], expected)
    assert adapters.same(mixed.own_state("colour"), plain.own_state("colour"))


def test_what_is_stored(bert, toy):
    method = Interpolation(method=Replay(method=Sequential(rank=2), per_class=2), per_class=3)
    learn(bert, [toy[0]], method, FEW)
    assert len(Exemplars.of(method.remembered)) == 6 and len(Exemplars.of(method.method.state)) == 4
    assert method.store_bytes == Exemplars.of(method.remembered).size + method.method.store_bytes


@pytest.mark.parametrize("method", [NCM(), Joint(), Isolated()])
def test_methods_that_do_not_train_further_are_refused(method):
    with pytest.raises(InputError, match="trains one module further"):
        Interpolation(method=method)


def test_a_slow_adapter_inside_is_refused():
    """At the end of a task its mean would replace the weights between old and new."""
    slow = SlowAdapter(method=Sequential())
    for method in (slow, Replay(method=slow)):
        with pytest.raises(InputError, match="use `slow_adapter` around `interpolation`"):
            Interpolation(method=method)
    SlowAdapter(method=Interpolation(method=Sequential()))
