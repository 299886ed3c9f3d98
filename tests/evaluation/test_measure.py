"""Measuring returns a value, and leaves the backbone as it was."""

import torch
from small_runs import small

from perdure import Evaluation, Rule, Training, run
from perdure.evaluation.measure import measure
from perdure.runs.resume import restored


def test_the_backbone_is_as_it_was(toy, bert, tmp_path):
    """Its heads, also those of later tasks; its weights; and its dropout, where it trains."""
    training = Training(epochs=1, batch_size=16, learning_rate=0.01)
    results = run(toy.until(2), bert, small("sequential"), training=training, output=tmp_path / "r")
    system = restored(results.state, bert, Rule(name="task_arithmetic", scale="search"))
    bert.train()
    bert.model.eval()
    heads = {name: bert.own(name) for name in bert.heads}
    weights = {name: value.clone() for name, value in bert.state_dict().items()}
    training = [module.training for module in bert.modules()]

    first = measure(system.until(1), toy, Evaluation(future=True))
    before = measure(system.until(0), toy, Evaluation(future=True))

    assert {score.task for score in [*first.scores, *before.scores]} == set(toy.names)
    assert first.step == 1 and first.applied.options["scale"] != "search" and first.candidates
    assert {name: bert.own(name) for name in bert.heads} == heads
    assert [module.training for module in bert.modules()] == training
    assert bert.state_dict().keys() == weights.keys()
    assert all(torch.equal(value, weights[name]) for name, value in bert.state_dict().items())


def test_an_earlier_step_has_the_heads_of_then(toy, bert, tmp_path):
    """A method that trains an earlier task's head on has another one after each task."""
    training = Training(epochs=1, batch_size=16, learning_rate=0.01)
    results = run(toy.until(2), bert, small("joint"), training=training, output=tmp_path / "r")
    system = restored(results.state, bert, Rule(name="last"))
    after = bert.own_state("fruit")
    with system.until(1).loaded():
        then = bert.own_state("fruit")
        assert bert.heads == ["fruit"]
    assert all(
        torch.equal(then[key], value) for key, value in system.learned[0].heads["fruit"].items()
    )
    assert not torch.equal(then["weight"], after["weight"])
    assert (
        torch.equal(bert.own_state("fruit")["weight"], after["weight"]) and "colour" in bert.heads
    )
