"""Weights sharded by two or three processes (gloo on the CPU): the run of one process.

Few processes are started, each for many promises, because starting them takes longer than what
they compute.
"""

import json
import random
import time
from pathlib import Path

import forked
import image_tasks
import pico_language
import pytest
import sharded_runs
import torch
import yaml
from processes import (
    LOSSES,
    PARAMETERS,
    TRAINING,
    ended,
    losses,
    same,
    start,
    stop,
    together,
    wait_for,
)
from safetensors.torch import load_file
from tables import read_table, write

import perdure
from perdure import InputError, Model, Recipe, Run, Training
from perdure.learning import engine
from perdure.models import placement
from perdure.runs.answers import Answer

CODE = Path(sharded_runs.__file__).read_text()
ASK = """
import contextlib

import sharded_runs
from perdure.cli.app import main
from perdure.runs.model import Model

placed = []
place = Model._place
Model._place = lambda model, device: placed.append(model.backbone) or place(model, device)
with contextlib.suppress(SystemExit):
    main()
print(sharded_runs.share(placed[0]))
"""
"""The command line, which prints at the end the share of the weights that it has stored."""
SEARCH = {"name": "task_arithmetic", "scale": "search"}
FACTORS = {"name": "average", "space": "factor"}
BOTTLENECK = {"name": "isolated", "peft": "bottleneck"}
INFLORA = {"name": "inflora", "rank": 2}
PAIRS = {
    # ranking, generating, routing, a search of the scale, covariances, Fisher information
    "llama": [["isolated", "routed"], ["sequential", None], ["ewc", None], ["isolated", SEARCH]],
    # the encoder is called without its decoder; a transposed weight; features, heads, mixtures
    "t5": [["isolated", None], [INFLORA, None]],
    "gpt2": [["sequential", SEARCH]],
    "bert": [["isolated", "smile"], [BOTTLENECK, FACTORS], ["lda", None]],
    # a weight that is no matrix, and weights outside of the blocks that are no embeddings of words
    "vit": [["isolated", None], [INFLORA, None], ["isolated", None, "none"]],
}


@pytest.mark.parametrize("kind", PAIRS)
def test_the_runs_of_one_process(kind, pico, tmp_path):
    model = pico(kind) if kind in ("bert", "vit") else pico_language.save(tmp_path / "model", kind)
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
        if kind == "vit":
            same_export(one, two, tmp_path / f"export-{number}")


def same_export(one: Run, two: Run, folder: Path) -> None:
    """Check that the runs answer alike, and are exported with the same weights."""
    images = image_tasks.rows(6, seed=99)["image"][:]
    answers = [[answer.label for answer in Model(run).predict(images)] for run in (one, two)]
    assert answers[0] == answers[1]
    for name, run in (("one", one), ("two", two)):
        Model(run).export(folder / name, heads="joined")
    weights, again = (load_file(folder / name / "model.safetensors") for name in ("one", "two"))
    assert weights.keys() == again.keys()
    for name, value in weights.items():
        torch.testing.assert_close(again[name], value, rtol=0, atol=PARAMETERS)


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
    texts = [
        f"{('fruit', 'tree')[number % 2]} {number} {'x' * (number % 5)}?" for number in range(7)
    ]
    answers = Model(alone).predict(texts)
    expected = [answer.answer for answer in answers]
    assert [answer.answer for answer in Model(resumed).predict(texts)] == expected
    predicted_together(output, texts, answers, tmp_path)
    Model(resumed).export(tmp_path / "exported")
    assert perdure.Backbone.load(tmp_path / "exported")


def predicted_together(run: Path, texts: list[str], answers: list[Answer], folder: Path) -> None:
    """Check that two processes with a sharded model answer as one does with a whole one.

    Each batch has three rows: one of the processes gets one row, or one that both get.
    """
    table = write(folder / "new.csv", [[text] for text in texts], columns=["text"])
    output = folder / "answers.csv"
    options = ("--output", output, "--batch-size", "3")
    tests = str(Path(sharded_runs.__file__).parent)
    started = together(ASK, "predict", run, table, *options, PYTHONPATH=tests)
    printed = ended(started)
    shares = [float(out.splitlines()[-1]) for out in printed]
    assert all(share <= 0.6 for share in shares)
    assert "".join(printed).count("7 rows: ") == 1, "one of them prints"
    rows = read_table(output)
    assert [row["answer"] for row in rows] == [answer.answer for answer in answers]
    scores = [float(row["score"]) for row in rows]
    assert scores == pytest.approx([answer.score for answer in answers], abs=1e-4)
    # All processes refuse to write over it, and say so.
    again = together(forked.PERDURE, "predict", run, table, *options)
    said = [process.communicate(timeout=300)[1] for process in again]
    assert [process.returncode for process in again] == [1, 1]
    assert all("answers.csv` already exists" in error for error in said)
    one = ended(together(forked.PERDURE, "predict", run, "--prompt", texts[0], "--quiet"))
    assert "".join(one) == f"{answers[0].answer}\n"


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
