"""Runs of language models that are killed, and tasks that are forgotten, to the last bit."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from small_runs import differing, killed_at_step

from perdure import Backbone, Run, TaskStream, Training, run
from perdure.checks.models import save_language_model, text_stream, toy_task
from perdure.methods.isolated import Isolated
from perdure.runs.extend import forget
from perdure.runs.verify import verify

KINDS = ["causal", "seq2seq"]
TRAINING = Training(epochs=1, batch_size=8, learning_rate=0.01, checkpoint_steps=1)


def three() -> TaskStream:
    stream = text_stream()
    third = toy_task("shape", ["w5", "w6"], 3)
    short = {split: getattr(third, split).select(range(4)) for split in ("validation", "test")}
    return TaskStream("text", (*stream.tasks, replace(third, **short)))


def begin(model: Path, output: Path, stream: TaskStream | None = None) -> Run:
    backbone = Backbone.load(model, max_new_tokens=4)
    stream = stream or text_stream()
    return run(stream, backbone, Isolated(rank=2), training=TRAINING, output=output)


@pytest.fixture(scope="module", params=KINDS)
def model(request, tmp_path_factory) -> Path:
    return save_language_model(tmp_path_factory.mktemp(request.param) / "model", request.param)


@pytest.fixture(scope="module")
def whole(model) -> Run:
    return begin(model, model.parent / "whole", three())


@pytest.mark.parametrize("task", ["fruit", "first"])
def test_a_forgotten_task_leaves_nothing(task, model, whole, tmp_path):
    without = TaskStream("text", tuple(t for t in three() if t.name != task))
    never = begin(model, tmp_path / "never", without)
    rest = Run(shutil.copytree(whole.folder, tmp_path / "rest"))
    assert not forget(rest.folder, task).traces
    assert rest.tasks == never.tasks
    # what has to be measured again
    assert set(differing(rest, never)) <= {"scores.csv", "events.jsonl"}
    assert not verify(rest.folder).faults


def test_a_killed_run_goes_on_to_the_same_bytes(model, whole, tmp_path):
    killed_at_step(__file__, 4, model, tmp_path / "killed")  # the second of the second task
    assert Run(tmp_path / "killed").begun() == "first"
    killed = begin(model, tmp_path / "killed")
    expected = begin(model, tmp_path / "two")
    assert differing(killed, expected) == []
