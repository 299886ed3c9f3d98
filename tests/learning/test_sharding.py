"""Weights sharded by two or three processes (gloo on the CPU): the run of one process.

Few processes are started, each for many promises, because starting them takes longer than what
they compute.
"""

import json
import random
import time
from pathlib import Path

import forked
import pico_language
import pytest
import sharded_runs
import torch
import yaml
from processes import LOSSES, TRAINING, ended, losses, same, start, stop, together, wait_for
from tables import write

import perdure
from perdure import InputError, Model, Recipe, Run, Training
from perdure.learning import engine
from perdure.models import placement

CODE = Path(sharded_runs.__file__).read_text()
SEARCH = {"name": "task_arithmetic", "scale": "search"}
FACTORS = {"name": "average", "space": "factor"}
BOTTLENECK = {"name": "isolated", "peft": "bottleneck"}
PAIRS = {
    # ranking, generating, routing, a search of the scale, covariances, Fisher information
    "llama": [["isolated", "routed"], ["sequential", None], ["ewc", None], ["isolated", SEARCH]],
    # the encoder is called without its decoder; a transposed weight; features, heads, mixtures
    "t5": [["isolated", None], [{"name": "inflora", "rank": 2}, None]],
    "gpt2": [["sequential", SEARCH]],
    "bert": [["isolated", "smile"], [BOTTLENECK, FACTORS], ["lda", None]],
}


@pytest.mark.parametrize("kind", PAIRS)
def test_the_runs_of_one_process(kind, pico, tmp_path):
    model = pico(kind) if kind == "bert" else pico_language.save(tmp_path / "model", kind)
    arguments = (model, tmp_path / "two", json.dumps(PAIRS[kind]))
    tests = str(Path(sharded_runs.__file__).parent)
    shares = ended(together(CODE, *arguments, PYTHONPATH=tests))
    # The frozen weights are halved; the module and the heads are whole.
    assert all(0.5 <= float(share) <= 0.6 for share in shares)
    runs, share = sharded_runs.make(model, tmp_path / "one", PAIRS[kind])
    assert share == 0, "one process shards nothing"
    for number, one in enumerate(runs):
        two = Run(tmp_path / "two" / str(number))
        same(one, two)
        assert losses(two) == pytest.approx(losses(one), abs=LOSSES)
        assert scores(two) == pytest.approx(scores(one), abs=1e-3)


def scores(run: Run) -> dict[tuple, float]:
    """Return all scores, among them how far probabilities are from what they promise."""
    keys = ("step", "task", "task_id", "rule", "metric")
    return {tuple(row[key] for key in keys): row["value"] for row in run.scores()}


@pytest.fixture(scope="module")
def recipe(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("sharded")
    for name in ("fruit", "tree"):
        rows = [(f"{name} {i} {'x' * (i % 5)}?", ("apple", "a pear")[i % 2]) for i in range(33)]
        write(folder / f"{name}.csv", rows)
    values = {
        "stream": [{"name": n, "data": str(folder / f"{n}.csv")} for n in ("fruit", "tree")],
        "backbone": {"model": str(pico_language.save(folder / "model", "llama"))},
        "method": {"name": "sequential", "rank": 2},
        "training": TRAINING | {"sharding": "fsdp"},
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(values))
    return folder / "recipe.yaml"


def test_killed_and_resumed_by_other_numbers_of_processes(recipe, tmp_path):
    output = tmp_path / "killed"
    moments = random.Random(0)
    for count, how in ((2, "all"), (3, "term")):
        processes = start(recipe, output, count)
        wait_for(output, processes)
        time.sleep(moments.uniform(0, 0.3))
        stop(processes, how)
    alone = Recipe.read(recipe).run(tmp_path / "alone")
    resumed = Recipe.read(recipe).run(output)
    same(alone, resumed)
    ended(together(forked.PERDURE, "evaluate", output, "--last", "--quiet"))
    assert scores(resumed) == pytest.approx(scores(alone), abs=1e-3)
    # What comes after a run does not know how many processes made it.
    texts = ["fruit 3 xx?", "tree 4 x?"]
    expected = [vars(answer)["answer"] for answer in Model(alone).predict(texts)]
    assert [vars(answer)["answer"] for answer in Model(resumed).predict(texts)] == expected
    Model(resumed).export(tmp_path / "exported")
    assert perdure.Backbone.load(tmp_path / "exported")


# -- what cannot be sharded is refused before anything is trained


def test_full_fine_tuning(bert, toy, tmp_path):
    method = perdure.find("method", "isolated")(peft="full")
    with pytest.raises(InputError, match="`peft: full` trains a change of all"):
        perdure.run(toy, bert, method, training=Training(sharding="fsdp"), output=tmp_path / "full")
    assert not (tmp_path / "full").exists()


def test_deepspeed(bert, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    with pytest.raises(InputError, match="does not train with DeepSpeed"):
        engine.place(bert, Training())


def test_weights_in_the_memory_of_the_cpu(bert, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("FSDP_OFFLOAD_PARAMS", "true")
    monkeypatch.setattr(engine, "count", lambda: 2)
    with pytest.raises(InputError, match="fsdp_offload_params"):
        engine.place(bert, Training())


def test_weights_in_4_bits(bert):
    bert.model.is_loaded_in_4bit = True
    with pytest.raises(InputError, match="does not shard weights in 4 bits"):
        placement.shard(bert.model, torch.device("cpu"), processes=2)


def test_a_weight_that_is_not_sharded():
    weight = torch.nn.Parameter(torch.zeros(3, 2))
    before = placement.stored(weight)
    rows = torch.ones(3, 2)
    placement.put(weight, rows)
    assert weight.data.data_ptr() == rows.data_ptr(), "not copied"
    assert placement.like(rows, weight) is rows
    placement.put(weight, before)
    assert not weight.any()
