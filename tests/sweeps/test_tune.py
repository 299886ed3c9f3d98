"""Tuning: the same budget for every method, validation data of the first tasks alone,
and it can be stopped.
"""

import json
import math
import os
import random
import signal

import pytest
import yaml
from small_runs import recipe

from perdure import InputError, PerdureWarning, Recipe, RunError, Stopped, TrainingError
from perdure.methods.ewc import EWC
from perdure.runs import story
from perdure.sweeps.executor import Outcome, Waiting
from perdure.sweeps.search_space import RATE, asked, searched
from perdure.sweeps.tune import tune
from perdure.sweeps.tuning import Protocol

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
        settings = asked(recipe, protocol, ranges, trials, number)
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
    assert found.lines()[-1][0] == "failed" and found.trials[0]["reason"] == "not finite"
    # the settings are to blame, so that it is not repeated
    again = tune(Recipe.parse(values), tmp_path / "out", protocol=Protocol(trials=2))
    assert again == found
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


# -- several trials at a time


class Shuffled:
    """An executor that performs nothing: scores are made of settings, and arrive in any order.

    Parameters
    ----------
    workers
        The number of trials at a time.
    seed
        Seed for the order.
    ends
        The number of outcomes after which it is asked to stop.
    broken
        The trials that fail.
    """

    def __init__(self, workers=1, seed=0, ends=1000, broken=()):
        self.workers, self.ends, self.broken = workers, ends, broken
        self.order = random.Random(seed)
        self.performed, self.most = [], 0

    def connect(self):
        pass

    def perform(self, jobs, folder):
        running, waiting = [], Waiting(jobs)
        while True:
            while len(running) < self.workers and (job := waiting.take()):
                running.append(job)
            if not running:
                return
            self.most = max(self.most, len(running))
            job = running.pop(self.order.randrange(len(running)))
            if len(self.performed) == self.ends:
                raise Stopped("", signal=signal.SIGTERM)
            self.performed.append(int(job.trial))
            yield self.outcome(job)

    def outcome(self, job):
        if int(job.trial) in self.broken:
            return Outcome(job.trial, "failed", reason="The memory is full.", traceback="a\nb")
        settings = dict(pair.split("=") for pair in job.settings)
        distance = abs(math.log10(float(settings[RATE]) / 0.002))
        return Outcome(job.trial, "finished", scores={job.task_id: 1 / (1 + distance)})


def tried(tuning):
    return [(trial["settings"], trial["score"]) for trial in tuning.trials]


def search(values, output, executor, trials=12, **rules):
    protocol = Protocol(trials=trials, **rules)
    return tune(Recipe.parse(values), output, protocol=protocol, executor=executor)


def test_one_at_a_time_is_what_it_was_before_there_were_executors(values, tmp_path):
    tuning = search(values, tmp_path / "out", Shuffled(4), trials=4)
    settings = [list(trial["settings"].values()) for trial in tuning.trials]
    assert settings == [[0.01, 100], [0.00749, 581e3], [0.00154, 3820], [0.000665, 14600]]
    header, first, *_ = map(json.loads, (tmp_path / "out/trials.jsonl").read_text().splitlines())
    assert (
        sorted(first) == ["score", "seconds", "settings"] and "parallel" not in header["protocol"]
    )


def test_the_order_in_which_trials_end_does_not_matter(values, tmp_path):
    executors = [Shuffled(1), Shuffled(4, seed=1), Shuffled(4, seed=2), Shuffled(9)]
    results = []
    for number, executor in enumerate(executors):
        results.append(tried(search(values, tmp_path / str(number), executor, parallel=4)))
    assert results[0] == results[1] == results[2] == results[3]
    assert [executor.most for executor in executors] == [1, 4, 4, 4]
    # it is another search than one trial at a time, and looks for the same
    assert results[0] != tried(search(values, tmp_path / "one", Shuffled(1)))
    assert max(score for _, score in results[0]) > results[0][0][1]


def test_a_search_of_several_trials_at_a_time_goes_on(values, tmp_path):
    whole = search(values, tmp_path / "whole", Shuffled(1), parallel=4)
    first, second = Shuffled(4, seed=3, ends=5), Shuffled(2, seed=4)
    with pytest.raises(Stopped, match=r"Finished trials are kept\. Continue") as stopped:
        search(values, tmp_path / "out", first, parallel=4)
    assert stopped.value.signal == signal.SIGTERM and first.performed != sorted(first.performed)
    # with another number of workers, which changes nothing
    found = search(values, tmp_path / "out", second, parallel=2)
    assert tried(found) == tried(whole) and found.recipe == whole.recipe
    assert sorted(first.performed + second.performed) == list(range(12))
    with pytest.warns(PerdureWarning, match="began with `--workers 4`.* choose another `--output`"):
        search(values, tmp_path / "out", Shuffled(8), parallel=8)


def test_a_trial_that_failed_is_a_line_and_is_repeated(values, tmp_path):
    broken = search(values, tmp_path / "out", Shuffled(3, broken=(0, 5)), parallel=3)
    assert broken.trials[5]["reason"] == "The memory is full." and broken.best["score"]
    lines = (tmp_path / "out/trials.jsonl").read_text()
    assert lines.count('"state": "failed"') == 2 and lines.count(r'"traceback": "a\nb"') == 2
    again = Shuffled()
    repeated = search(values, tmp_path / "out", again, parallel=3)
    assert again.performed == [0, 5] and None not in [score for _, score in tried(repeated)]
    assert search(values, tmp_path / "out", Shuffled(ends=0), parallel=3) == repeated
    with pytest.raises(RunError, match="All 2 trials failed; the first one: The memory is full"):
        search(values, tmp_path / "none", Shuffled(broken=(0, 1)), trials=2)


def test_a_signal_stops_the_trial_in_this_process(values, tmp_path, monkeypatch):
    learn_all = story.run

    def stopped(plan, output, **options):
        if plan.training.learning_rate != 0.01:
            os.kill(os.getpid(), signal.SIGTERM)
        return learn_all(plan, output, **options)

    monkeypatch.setattr(story, "run", stopped)
    with pytest.raises(Stopped, match="Finished trials are kept") as stop:
        tune(Recipe.parse(values), tmp_path / "out", protocol=FEW)
    assert stop.value.signal == signal.SIGTERM
    assert os.listdir(tmp_path / "out") == ["trials.jsonl"]


def test_worker_processes(values, tmp_path, perdure):
    """They find what this process finds, and leave nothing but a log."""
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(values))
    options = ("--trials", "3", "--workers", "2", "--json")
    status, out, err = perdure("tune", tmp_path / "mine.yaml", "-o", tmp_path / "out", *options)
    assert (status, err) == (0, "")
    here = tune(Recipe.parse(values), tmp_path / "here", protocol=Protocol(trials=3, parallel=2))
    found = [(trial["settings"], trial["score"]) for trial in json.loads(out)["trials"]]
    assert found == tried(here)
    assert sorted(os.listdir(tmp_path / "out")) == ["log.txt", "trials.jsonl", "tuned.yaml"]
    status, _, err = perdure("tune", tmp_path / "mine.yaml", "--address", "10.0.0.1:6379")
    assert status == 2 and "add `--executor ray`" in err
