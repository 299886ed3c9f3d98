"""The slow adapter: the mean by hand, what later tasks start from, and what is refused."""

import pytest
import torch

from perdure import Backbone, InputError, Training, learn
from perdure.learning.loop import Session
from perdure.methods.isolated import Isolated
from perdure.methods.lwf import LwF
from perdure.methods.ncm import NCM
from perdure.methods.sequential import Sequential
from perdure.methods.slow_adapter import SlowAdapter
from perdure.models import adapters

FEW = Training(epochs=1, batch_size=8, learning_rate=0.02)


def path_of(backbone, seen, method, training=FEW, earlier=()):
    """The learned adapter, and the parameters of the module after each step."""
    path = []

    def log(event):
        path.append({name: p.detach().clone() for name, p in module(backbone).items()})

    adapter = learn(backbone, seen, method, training, earlier=earlier, session=Session(log=log))
    return adapter, path


def module(backbone):
    return adapters.trainable(backbone.model)


def test_the_mean_by_hand(pico, toy):
    """θ_slow of the same steps that the method takes alone; the head is that of the last step."""
    alone = Backbone.load(pico("bert"), pooling="mean")
    fast, path = path_of(alone, [toy[0]], Sequential(rank=2))
    slow = Backbone.load(pico("bert"), pooling="mean")
    method = SlowAdapter(method=Sequential(rank=2), decay=0.75)
    adapter, again = path_of(slow, [toy[0]], method)
    assert len(path) > 3 and method.state == {}

    start = dict(zip(module(slow), adapter.start.values(), strict=True))
    for name, value in start.items():
        expected = value
        for step in path:
            expected = 0.75 * expected + 0.25 * step[name]
        torch.testing.assert_close(module(slow)[name].data, expected)
        assert torch.equal(again[-1][name], path[-1][name])
    assert not adapters.same(adapter.parameters, fast.parameters)
    assert adapters.same(alone.own_state("fruit"), slow.own_state("fruit"))


def test_the_next_task_starts_from_the_mean(bert, toy):
    method = SlowAdapter(method=Sequential(rank=2), decay=0.9)
    first = learn(bert, [toy[0]], method, FEW)
    second = learn(bert, toy.tasks[:2], method, FEW, earlier=[first])
    assert adapters.same(second.start, first.parameters)


def test_without_a_decay_it_is_the_method_itself(pico, toy):
    adapters_of = []
    for method in (Sequential(rank=2), SlowAdapter(method=Sequential(rank=2), decay=0.0)):
        adapters_of.append(learn(Backbone.load(pico("bert")), [toy[0]], method, FEW))
    assert adapters.same(adapters_of[0].parameters, adapters_of[1].parameters)


def test_old_heads_that_the_method_trains_are_averaged(bert, toy):
    """LwF trains them; the head of the new task is not among the averaged parameters."""
    method = SlowAdapter(method=LwF(rank=2), decay=0.999999)
    learn(bert, [toy[0]], method, FEW)
    before = bert.own_state("fruit")
    learn(bert, toy.tasks[:2], method, FEW)
    for name, value in bert.own_state("fruit").items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=1e-4)
    assert len(method._averaged(bert, toy[1])) == len(module(bert)) + 2


def test_it_isolates_what_the_inner_method_isolates():
    assert SlowAdapter(method=Isolated()).isolates and not SlowAdapter(method=LwF()).isolates


def test_what_is_refused(bert, toy):
    with pytest.raises(InputError, match="averages over training steps, but `ncm` takes none"):
        SlowAdapter(method=NCM())
    for training in (Training(best=True), Training(patience=1)):
        with pytest.raises(InputError, match="leave out `best` and `patience`"):
            learn(bert, [toy[0]], SlowAdapter(method=Sequential()), training)
