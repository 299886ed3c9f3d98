"""Answers averaged over the posterior of a run: where σ is nothing, they are those of the means."""

import pytest
import torch
from small_runs import make, recipe

from perdure import InputError
from perdure.analysis.subject import subject_of
from perdure.analysis.uncertainty import _heads, _sampled_adapter, loaded_sample, uncertainty
from perdure.runs.state import read


@pytest.fixture(scope="module")
def runs(pico, tmp_path_factory):
    """A function from settings of `vcl` to a run of two tasks."""
    folder, made = tmp_path_factory.mktemp("uncertainty"), {}

    def run(name="vcl", **settings):
        key = str((name, settings))
        if key not in made:
            values = recipe(folder, ["fruit", "colour"], pico("bert"))
            values["method"] = {"name": name, "rank": 2, **settings}
            values["rule"] = {"name": "last", "space": "factor"}
            made[key] = make(folder, f"run{len(made)}", values).folder
        return made[key]

    return run


def test_without_noise_it_is_the_answer_of_the_means(runs):
    compared = uncertainty(runs(initial_sigma=1e-7), samples=2)
    assert list(compared) == ["fruit", "colour"]
    for of_task in compared.values():
        assert of_task.averaged_accuracy == of_task.accuracy > 0
        assert of_task.averaged_error == pytest.approx(of_task.error, abs=1e-4)


def test_the_average_is_less_confident_than_the_means(runs):
    folder = runs(initial_sigma=0.5, beta=0.0)
    few, again = (uncertainty(folder, samples=4) for _ in range(2))
    assert few == again != uncertainty(folder, samples=4, seed=9)
    assert any(value.averaged_error != value.error for value in few.values())


@pytest.mark.parametrize("peft", ["lora", "bottleneck", "full"])
def test_all_of_the_module_and_the_heads_are_sampled(peft, runs):
    subject = subject_of(read(runs(peft=peft)), None, None, 20)
    last, generator = subject.learned[-1], torch.Generator().manual_seed(0)
    for name, value in _sampled_adapter(last, generator).items():
        assert (value != last.adapter.parameters[name]).any(), name
    names = [name for name, _ in _heads(subject.system)]
    assert names == [f"head/{t}/{k}" for t in ("fruit", "colour") for k in ("weight", "bias")]


def test_what_has_no_posterior(runs):
    with pytest.raises(InputError, match="learned with a method that has no posterior"):
        uncertainty(runs("sequential"))
    with pytest.raises(InputError, match="`samples` must be at least 1, got 0"):
        uncertainty(runs(), samples=0)


def test_a_sample_is_gone_after_the_block(runs):
    system = subject_of(read(runs()), None, None, 20).system
    before = {name: value.clone() for name, value in system.backbone.named_parameters()}
    with loaded_sample(system, None) as same:
        assert same is system
    with loaded_sample(system, torch.Generator().manual_seed(0)) as sample:
        inside = dict(system.backbone.named_parameters())
        for name, value in before.items():
            assert name.startswith("_heads") == (not torch.equal(inside[name], value)), name
        changed = sample.learned[-1].adapter.parameters
        for name, value in system.learned[-1].adapter.parameters.items():
            assert not torch.equal(changed[name], value)
    for name, value in system.backbone.named_parameters():
        assert torch.equal(value, before[name])
