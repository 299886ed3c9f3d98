"""Yes or no, task by task, with an exit status."""

import json

import pytest
from test_report import make_run, rows

from perdure.errors import InputError, RunError
from perdure.report.gate import gate

R = [[0.9, None], [0.87, 0.7]]


def elsewhere(*losses):
    """Rows of the loss on plain text, from before the first task on."""
    return [
        (step, "general:text", "class", "none", "sum", "cross_entropy", loss)
        for step, loss in enumerate(losses)
    ]


def test_what_a_task_has_lost_since_it_was_learned(tmp_path):
    run = make_run(tmp_path / "run", rows(R, "ab"))
    kept = gate(run, forgetting=3)
    first, last = kept.tasks
    assert kept.passes and first.drop == pytest.approx(3) and last.drop == 0
    assert (first.learned, first.now, first.score) == (0.9, 0.87, "accuracy")
    lost = gate(run, forgetting=2.9)
    assert not lost.passes and [task.passes for task in lost.tasks] == [False, True]


def test_what_is_compared_is_said(tmp_path):
    given = rows([[0.9, None], [0.9, 0.7]], "ab", task_id="given")
    run = make_run(tmp_path / "run", rows(R, "ab") + given)
    assert gate(run).task_id == "posterior" and not gate(run).passes
    assert gate(run, task_id="given").passes
    with pytest.raises(InputError, match="It was measured with: given, posterior"):
        gate(run, task_id="none")


def test_the_loss_on_plain_text(tmp_path):
    run = make_run(tmp_path / "run", rows(R, "ab") + elsewhere(3.0, 3.5, 3.05))
    assert gate(run, forgetting=5, drift=0.05).passes
    verdict = gate(run, forgetting=5, drift=0.04)
    assert not verdict.passes and verdict.rise == pytest.approx(0.05)
    assert gate(run, forgetting=5).rise is None


def test_what_was_not_measured_does_not_pass(tmp_path):
    run = make_run(tmp_path / "run", rows([[None, None], [0.9, 0.7]], "ab"))
    verdict = gate(run)
    assert not verdict.passes and verdict.tasks[0].drop is None
    with pytest.raises(RunError, match="evaluation.general=true"):
        gate(run, drift=0.1)
    with pytest.raises(RunError, match="cannot be judged"):
        gate(make_run(tmp_path / "nothing", []))


@pytest.mark.parametrize("limit", [-1.0, float("nan"), float("inf")])
def test_a_limit_is_a_number(limit, tmp_path):
    run = make_run(tmp_path / "run", rows(R, "ab"))
    with pytest.raises(InputError, match="must be 0 or more"):
        gate(run, forgetting=limit)


def test_the_command(tmp_path, perdure):
    run = make_run(tmp_path / "run", rows(R, "ab") + elsewhere(3.0, 3.5, 3.25))
    status, out, err = perdure("gate", run, "--forgetting", "4", "--drift", "0.3")
    assert (status, err) == (0, "") and "Yes: no task has lost more than 4 points" in out
    status, out, err = perdure("gate", run, "--drift", "0.1")
    assert (status, err) == (1, "") and "No: more than 2 points lost on `a`" in out
    assert "+0.250 nats per token, more than 0.1" in " ".join(out.split())
    status, out, err = perdure("gate", run, "--json")
    verdict = json.loads(out)
    assert status == 1 and verdict["passes"] is False and verdict["tasks"][0]["task"] == "a"
    status, out, err = perdure("gate", tmp_path / "none")
    assert status == 1 and out == "" and "is not a run" in err
