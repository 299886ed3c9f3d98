"""Sweeps: what is missing is made, what fails is a row, and nothing is lost."""

import json
import os
import signal
import threading
import time

import forked
import pytest
import yaml
from in_process import InProcess
from small_runs import differing, recipe

from perdure import InputError, Recipe, RunError, sweep
from perdure.errors import TrainingError
from perdure.report import markdown, summary, terminal
from perdure.sweeps import folder as sweep_folder
from perdure.sweeps import local
from perdure.sweeps.executor import Outcome, WholeRun
from perdure.sweeps.local import Local

NAMES = ("fruit", "colour")


@pytest.fixture
def write(tmp_path, pico):
    """Write a sweep of a small recipe, and return its path."""

    def written(**sections):
        values = recipe(tmp_path, NAMES, pico("bert"), training={"epochs": 1})
        (tmp_path / "mine.yaml").write_text(yaml.safe_dump(values))
        path = tmp_path / "sweep.yaml"
        path.write_text(yaml.safe_dump({"recipe": "mine.yaml", **sections}))
        return path

    return written


SEEDS = {"grid": {"seed": [0, 1]}}


def test_each_trial_is_the_run_of_its_recipe(write, tmp_path):
    path = write(grid={"method.rank": [2, 4], "seed": [0, 1]})
    done = sweep(path, tmp_path / "out", executor=InProcess())
    assert len(done.runs) == 4 and not done.failed
    (name,) = [name for name in done.runs if name.startswith("rank-4-seed-1")]
    alone = Recipe.read(tmp_path / "mine.yaml", ["method.rank=4", "seed=1", "name=rank 4"])
    assert differing(alone.run(tmp_path / "alone"), done.runs[name]) == []


def test_only_what_is_missing_is_made(write, tmp_path):
    first, again, more = InProcess(), InProcess(), InProcess()
    sweep(write(**SEEDS), tmp_path / "out", executor=first)
    sweep(write(**SEEDS), tmp_path / "out", executor=again)
    assert len(first.performed) == 2 and again.performed == []
    done = sweep(write(grid={"seed": [2, 0, 1]}), tmp_path / "out", executor=more)
    assert len(done.runs) == 3 and len(more.performed) == 1
    # a run that somebody has removed is missing, too
    for file in done.runs[first.performed[0]].rglob("*.*"):
        file.unlink()
    third = InProcess()
    sweep(write(**SEEDS), tmp_path / "out", executor=third)
    assert third.performed == first.performed[:1]


def test_a_trial_that_fails_is_a_row_with_its_reason(write, tmp_path, monkeypatch):
    path = write(grid={"rule": ["sum", "regmean"], "seed": [0]})
    done = sweep(path, tmp_path / "out", executor=InProcess())
    assert [name.split("-")[0] for name in done.runs] == ["sum"]
    ((name, reason),) = done.failed.items()
    assert name.startswith("regmean") and "keep_inputs: true" in reason
    # it is tried again
    again = InProcess()
    sweep(path, tmp_path / "out", executor=again)
    assert again.performed == [name]
    measured = summary.summarise([tmp_path / "out"])
    rows = markdown.table(measured).rows
    assert rows[-1][0] == name and "keep_inputs" in rows[-1][2] and rows[-1][3] == "–"
    assert "failed: The rule `regmean`" in markdown.to_markdown(measured).replace("\\", "")


def test_an_unexpected_error_keeps_its_traceback(write, tmp_path, monkeypatch):
    def broken(self, output, features):
        if "seed-0" in str(output):
            raise ValueError("a bug\nin two lines")
        if "seed-1" in str(output):
            raise TrainingError("The loss is nan.")
        return run(self, output, features=features)

    run = Recipe.run
    monkeypatch.setattr(Recipe, "run", broken)
    path = write(grid={"seed": [0, 1, 2]})
    done = sweep(path, tmp_path / "out", executor=InProcess())
    assert list(done.failed.values()) == ["ValueError: a bug in two lines", "The loss is nan."]
    first, second, _ = sweep_folder.entries(tmp_path / "out")
    assert 'raise ValueError("a bug' in first.outcome["traceback"]
    assert "traceback" not in second.outcome
    with pytest.raises(RunError, match="All 2 trials failed; the first one, `seed-0"):
        sweep(write(**SEEDS), tmp_path / "none", executor=InProcess())


def test_seeds_are_put_together(write, tmp_path, capsys):
    path = write(grid={"method.rank": [2, 4], "seed": [0, 1]})
    sweep(path, tmp_path / "out", executor=InProcess())
    measured = summary.summarise([tmp_path / "out"])
    titles = [group["title"] for group in measured["groups"]]
    assert titles == ["rank 2", "rank 4"]
    assert [len(group["runs"]) for group in measured["groups"]] == [2, 2]
    terminal.over_seeds(measured)
    lines = capsys.readouterr().out.splitlines()
    assert sum("±" in line for line in lines) == 2 and "rank 2" in "".join(lines)


def test_runs_are_measured_with_further_rules(write, tmp_path):
    path = write(rules=["sum", {"name": "ties", "density": 0.5}], **SEEDS)
    done = sweep(path, tmp_path / "out", executor=InProcess())
    measured = summary.summarise([tmp_path / "out"])
    rules = {result["rule"] for run in measured["runs"] for result in run["results"]}
    assert rules == {"task_arithmetic", "sum", "ties(density=0.5)"}
    assert measured["runs"][0]["rule"] == "task_arithmetic"  # still the run's own
    # rules that are added later need no training
    before = [(run / "tasks/00-fruit/manifest.json").stat().st_mtime for run in done.runs.values()]
    more = InProcess()
    sweep(write(rules=["average"], **SEEDS), tmp_path / "out", executor=more)
    assert len(more.performed) == 2
    after = [(run / "tasks/00-fruit/manifest.json").stat().st_mtime for run in done.runs.values()]
    assert before == after


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"grid": {"methd": ["ewc"]}}, "No setting.*`methd`.*Did you mean `method`"),
        ({"grid": {"method": ["ewc", "ewcc"]}}, "Trial `ewcc-.*Did you mean `ewc`"),
        ({"grid": {"method.rank": [2, "x"]}}, "must be a whole number"),
        ({"rules": ["tiees"]}, "Did you mean `ties`"),
        ({"grid": {"order": [["fruit"]]}}, "must name each table"),
    ],
)
def test_a_sweep_that_is_not_valid_is_refused_before_anything(write, tmp_path, sections, message):
    with pytest.raises(InputError, match=message):
        sweep(write(**sections), tmp_path / "out", executor=InProcess())
    assert not (tmp_path / "out").exists()


def test_very_many_trials_have_to_be_confirmed(write, tmp_path):
    path = write(grid={"seed": list(range(101)), "training.epochs": list(range(1, 101))})
    with pytest.raises(InputError, match="10,100 trials.*`--yes`"):
        sweep(path, tmp_path / "out", executor=InProcess())


def test_two_sweeps_into_one_folder(write, tmp_path):
    path = write(**SEEDS)
    messages = []

    class Meanwhile(InProcess):
        def perform(self, jobs, folder):
            other = threading.Thread(target=self.other)
            other.start()
            other.join()
            yield from super().perform(jobs, folder)

        def other(self):
            try:
                sweep(path, tmp_path / "out", executor=InProcess())
            except RunError as error:
                messages.append(str(error))

    done = sweep(path, tmp_path / "out", executor=Meanwhile())
    assert f"is being written by process {os.getpid()}" in messages[0] and len(done.runs) == 2


def test_another_recipe_is_refused(write, tmp_path):
    path = write(**SEEDS)
    sweep(path, tmp_path / "out", executor=InProcess())
    with pytest.raises(RunError, match=r"another recipe: `training.epochs`: 1 before, 3 now"):
        sweep(path, tmp_path / "out", executor=InProcess(), settings=["training.epochs=3"])
    (tmp_path / "full").mkdir()
    (tmp_path / "full/notes.txt").write_text("")
    with pytest.raises(RunError, match="not empty, and not a sweep: it contains `notes.txt`"):
        sweep(path, tmp_path / "full", executor=InProcess())


def test_a_line_that_was_cut_off_and_a_folder_that_was_changed(write, tmp_path):
    path, output = write(**SEEDS), tmp_path / "out"
    sweep(path, output, executor=InProcess())
    outcomes = output / sweep_folder.OUTCOMES
    outcomes.write_text(outcomes.read_text()[:-5])  # a kill cuts the last line off
    again = InProcess()
    sweep(path, output, executor=again)
    assert [name.startswith("seed-1") for name in again.performed] == [True]
    for bad in ({"format": 2}, {"trials": [{"name": "../x", "label": "", "settings": {}}]}):
        record = json.loads((output / sweep_folder.SWEEP).read_text()) | bad
        (tmp_path / "bad").mkdir(exist_ok=True)
        (tmp_path / "bad" / sweep_folder.SWEEP).write_text(json.dumps(record))
        with pytest.raises(RunError, match="format 2|damaged"):
            summary.summarise([tmp_path / "bad"])


# -- processes


def job(trial="a"):
    return WholeRun(
        trial=trial, folder="/nowhere", features="/nowhere", recipe={}, settings=[], directory="."
    )


def test_a_trial_whose_process_is_always_killed(tmp_path, monkeypatch):
    begin = local.Worker.begin

    def killed(self, job):
        begin(self, job)
        self.process.kill()

    monkeypatch.setattr(local.Worker, "begin", killed)
    outcomes = [each for each in Local(2).perform([job("a"), job("b")], tmp_path) if each]
    assert {outcome.trial for outcome in outcomes} == {"a", "b"}
    for outcome in outcomes:
        assert outcome.state == "failed" and "killed by SIGKILL, 3 times" in outcome.reason


def test_cores_and_accelerators_are_divided(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,5")
    monkeypatch.delenv("OMP_NUM_THREADS")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    environments = [local.environment(number, 3) for number in range(3)]
    assert [values["CUDA_VISIBLE_DEVICES"] for values in environments] == ["2", "5", "2"]
    assert [values["OMP_NUM_THREADS"] for values in environments] == ["2", "2", "2"]
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert local.environment(0, 2) == dict(os.environ)


def test_processes_that_are_killed_or_stopped_lose_nothing(write, tmp_path):
    """One of two workers is killed, and later the sweep itself is asked to stop."""
    path = write(grid={"seed": [0, 1, 2]})
    settings = ("--set", "training.epochs=30", "--set", "training.checkpoint_steps=5")
    command = ("sweep", path, "-o", tmp_path / "out", "--workers", 2, *settings)
    process = forked.Process(forked.PERDURE, *command)
    runs = tmp_path / "out/runs"
    _wait(lambda: len(list(runs.glob("*/unfinished.safetensors"))) == 2)
    holder = json.loads(next(runs.glob("*/lock.json")).read_text())
    os.kill(holder["pid"], signal.SIGKILL)
    _wait(lambda: (tmp_path / "out/trials.jsonl").exists())
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 128 + signal.SIGTERM, err
    assert "running ones have saved their progress. Continue with the same command." in err
    done = sweep(path, tmp_path / "out", executor=InProcess(), settings=settings[1::2])
    assert len(done.runs) == 3
    whole = sweep(path, tmp_path / "whole", executor=InProcess(), settings=settings[1::2])
    for name, run in whole.runs.items():
        assert differing(run, done.runs[name]) == []


def _wait(reached, seconds=200):
    deadline = time.monotonic() + seconds
    while not reached():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_the_table_of_a_sweep(write, tmp_path, monkeypatch):
    from rich.console import Console

    from perdure.sweeps.progress import SweepProgress
    from perdure.sweeps.sweep_file import read
    from perdure.sweeps.trials import trials

    varied = trials(read(write(grid={"seed": [0, 1, 2, 3]})))
    (tmp_path / "runs" / varied[1].name / "tasks/00-fruit").mkdir(parents=True)
    progress = SweepProgress(tmp_path, varied, {}, quiet=True)
    progress.to(Outcome(varied[0].name, "finished", scores={"given": 0.875}))
    progress.to(Outcome(varied[2].name, "failed", reason="The loss is nan."))
    console = Console(width=100)
    with console.capture() as capture:
        console.print(progress.table())
    lines = capture.get().splitlines()
    assert "failed: The loss is nan." in lines[1] and "1 task learned" in lines[2]
    assert "finished" in lines[3] and "87.5" in lines[3] and "waiting" in lines[4]
    assert lines[5].strip() == "1 failed, 1 running, 1 finished, 1 waiting"
