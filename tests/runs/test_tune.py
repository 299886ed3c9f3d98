"""Tuning: the same budget for every method, validation data of the first tasks alone,
and it can be stopped.
"""

import json

import pytest
import yaml
from small_runs import recipe

from perdure import InputError, Recipe, RunError, TrainingError
from perdure.methods.ewc import EWC
from perdure.runs import story
from perdure.runs.tune import RATE, Protocol, _asked, searched, tune

NAMES = ("fruit", "colour", "texture")
FEW = Protocol(trials=3)


@pytest.fixture
def values(tmp_path, pico):
    return recipe(tmp_path, NAMES, pico("bert"), method={"name": "ewc", "rank": 2, "strength": 100})


def test_what_is_searched(values):
    found = searched(Recipe.parse(values), Protocol(lowest=0.1, highest=10))
    assert (found[RATE].low, found[RATE].high) == (pytest.approx(0.001), pytest.approx(0.1))
    assert found["method.strength"] == EWC.tuned
    inner = searched(
        Recipe.parse(values | {"method": {"name": "replay", "method": values["method"]}}), FEW
    )
    assert list(inner) == [RATE, "method.method.strength"]
    assert list(searched(Recipe.parse(values | {"method": "lda"}), FEW)) == ["method.shrinkage"]
    with pytest.raises(InputError, match="`ncm` trains nothing: there is nothing to tune"):
        searched(Recipe.parse(values | {"method": "ncm"}), FEW)


def test_trials_and_the_tuned_recipe(values, tmp_path):
    found = tune(Recipe.parse(values), tmp_path / "out", protocol=FEW)
    assert [sorted(trial["settings"]) for trial in found.trials] == [["method.strength", RATE]] * 3
    assert found.trials[0]["settings"] == {
        RATE: 0.01,
        "method.strength": 100,
    }  # the recipe's own comes first
    for trial in found.trials:
        assert 0.01 / 30 <= trial["settings"][RATE] <= 0.1 and 0 <= trial["score"] <= 1
    written = Recipe.read(tmp_path / "out/tuned.yaml")
    assert written.make_training().learning_rate == found.best["settings"][RATE]
    assert written.make_method() == EWC(rank=2, strength=found.best["settings"]["method.strength"])
    assert (
        written.stream == values["stream"]
    )  # all of the tasks: only the search has looked at the first alone
    assert not list((tmp_path / "out").glob("*/"))


def test_test_data_and_later_tasks_are_not_looked_at(values, tmp_path, monkeypatch):
    from perdure.data.task import Task

    seen, rows = [], Task.rows

    def noted(self, split):
        seen.append((self.name, split))
        return rows(self, split)

    monkeypatch.setattr(Task, "rows", noted)
    tune(Recipe.parse(values), tmp_path / "out", protocol=Protocol(trials=1))
    assert {task for task, _ in seen} == {"fruit", "colour"}
    assert {split for _, split in seen} == {"train", "validation"}


def test_a_search_that_was_stopped_goes_on_as_if_it_had_not_been(values, tmp_path):
    recipe = Recipe.parse(values)
    whole = tune(recipe, tmp_path / "whole", protocol=FEW)
    tune(recipe, tmp_path / "part", protocol=Protocol(trials=2))
    path = tmp_path / "part/trials.jsonl"
    path.write_text(path.read_text() + '{"settings": {"tr')  # a kill cuts the last line off
    part = tune(recipe, tmp_path / "part", protocol=FEW)
    bare = [[(t["settings"], t["score"]) for t in found.trials] for found in (whole, part)]
    assert bare[0] == bare[1] and whole.recipe == part.recipe
    with pytest.raises(RunError, match="another recipe or protocol"):
        tune(Recipe.parse(values, ["training.epochs=1"]), tmp_path / "part", protocol=FEW)


def test_what_is_asked_learns_from_the_trials(values):
    """Where only one corner was good, the next trials lie nearer to it than uniform ones would."""
    recipe, protocol = Recipe.parse(values), Protocol(trials=40)
    ranges, trials = searched(recipe, protocol), []
    for number in range(40):
        settings = _asked(recipe, protocol, ranges, trials, number)
        trials.append({"settings": settings, "score": 1 - abs(settings[RATE] - 0.002)})
    late = [trial["settings"][RATE] for trial in trials[20:]]
    assert (
        sum(rate < 0.006 for rate in late) > 10
    )  # half of them: of uniform ones (in the logarithm) 1 in 2


def test_a_trial_that_fails_is_one_that_is_not_taken(values, tmp_path, monkeypatch):
    learn_all = story.run

    def failing(plan, output, **options):
        if plan.training.learning_rate == 0.01:
            raise TrainingError("not finite")
        return learn_all(plan, output, **options)

    monkeypatch.setattr(story, "run", failing)
    found = tune(Recipe.parse(values), tmp_path / "out", protocol=Protocol(trials=2))
    assert found.trials[0]["score"] is None and found.best is found.trials[1]
    assert found.lines()[-1][0] == "failed"
    with pytest.raises(RunError, match="All 1 trials failed"):
        tune(Recipe.parse(values), tmp_path / "none", protocol=Protocol(trials=1))


def test_the_command(values, tmp_path, perdure):  # noqa: F811
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(values))
    status, out, err = perdure(
        "tune", tmp_path / "mine.yaml", "-o", tmp_path / "out", "--trials", "1", "--json"
    )
    assert (status, err) == (0, "") and json.loads(out)["trials"][0]["settings"][RATE] == 0.01
    status, out, err = perdure(
        "tune", tmp_path / "mine.yaml", "-o", tmp_path / "out", "--trials", "2"
    )
    assert (
        (status, err) == (0, "")
        and "2 trials on 2 tasks" in out
        and out.splitlines()[-1].endswith("tuned.yaml")
    )
    assert max(map(len, out.splitlines()[:-1])) <= 80
    status, out, err = perdure(
        "tune", tmp_path / "mine.yaml", "-o", tmp_path / "other", "--tasks", "9"
    )
    assert status == 1 and "`tasks` is 9, but the stream has 3" in err
