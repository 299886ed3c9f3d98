"""A run folder read once, the one who writes it, and what a search found,
which is a field and no line of a log.
"""

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
import torch
from small_runs import recipe

from perdure import InputError, Recipe, Run, RunError, diagnose
from perdure.evaluation.measure import measure
from perdure.learning.snapshot import Snapshot
from perdure.runs import layout
from perdure.runs.resume import restored
from perdure.runs.state import read
from perdure.runs.writer import Writer

NAMES = ["fruit", "colour"]


@pytest.fixture(scope="module")
def searched(pico, tmp_path_factory) -> Run:
    home = tmp_path_factory.mktemp("searched")
    rule = {"name": "task_arithmetic", "scale": "search", "search": {"grid": [0.3, 1.0]}}
    values = recipe(home, NAMES, pico("bert"), rule=rule, training={"epochs": 1})
    return Recipe.parse(values).run(home / "run")


@pytest.fixture
def copied(searched, tmp_path):
    return Run(shutil.copytree(searched.folder, tmp_path / "run"))


def files_of(folder) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_it_is_frozen_and_read_once(copied):
    state = read(copied.folder)
    rows = state.scores
    (copied.folder / "scores.csv").unlink()
    assert state.scores is rows and rows and read(copied.folder).scores == []
    with pytest.raises(dataclasses.FrozenInstanceError):
        state.recipe = {}


def test_a_path_that_is_too_long_is_no_run(tmp_path):
    assert not layout.is_run(tmp_path / ("x" * 300))
    assert not layout.is_run(Path("x/" * 5000))


def test_in_other_processes_nothing_is_written(copied, bert):
    state = read(copied.folder)
    recipe = Recipe.parse(state.recipe)
    stream = recipe.make_stream()
    system = restored(state, recipe.make_backbone(), recipe.make_rule(), stream)
    measurement = measure(system, stream, recipe.make_evaluation())
    before = files_of(copied.folder)
    writer = Writer(copied.folder, writes=False)
    writer.task(system)
    writer.unfinished(Snapshot({"step": 1}, {"parameter/0": torch.ones(2)}))
    writer.unfinished(None)
    writer.measurement(measurement)
    writer.event({"event": "evaluation"})
    writer.recipe({"about": "another"})
    writer.forget({**state.recipe, "forgotten": ["fruit"]})
    writer.begin(recipe.plan(stream, system.backbone), None)
    assert files_of(copied.folder) == before


def test_what_a_search_found_is_not_looked_up_in_the_log(copied):
    """Each step's scale is in combined.json: the log can be gone, and the examples too."""
    state = read(copied.folder)
    label = state.combined["label"]
    assert [(search["rule"], search["step"]) for search in state.searches] == [
        (label, 1),
        (label, 2),
    ]
    assert state.found(label, 2)["options"] == state.combined["options"]
    assert state.found(label, 2)["candidates"] == state.combined["candidates"]
    assert state.found(label, 3) is None and state.found("sum", 2) is None
    (copied.folder / "events.jsonl").unlink()
    assert read(copied.folder).searches == state.searches


def test_an_older_folder_says_it_in_its_log(copied, monkeypatch):
    searches = read(copied.folder).searches
    path = copied.folder / "combined.json"
    older = json.loads(path.read_text())
    del older["searches"]
    path.write_text(json.dumps(older))
    assert read(copied.folder).searches == searches

    def refuse(*given, **options):
        raise InputError("nothing is searched again")

    monkeypatch.setattr("perdure.analysis.subject.with_best_scale", refuse)
    assert "cka" in diagnose(copied.folder, only=["cka"], examples=8)["parts"]
    path.write_text(json.dumps(older | {"searches": []}))
    with pytest.raises(InputError, match="nothing is searched again"):
        diagnose(copied.folder, only=["cka"], examples=8)


@pytest.mark.parametrize(
    "searches", ["all", [3], [{"rule": "sum", "step": "1", "options": {}, "candidates": []}]]
)
def test_searches_that_are_damaged(searches, copied):
    path = copied.folder / "combined.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"searches": searches}))
    with pytest.raises(RunError, match="combined.json`: `searches.* is .*, but must be"):
        read(copied.folder).found("sum", 1)
