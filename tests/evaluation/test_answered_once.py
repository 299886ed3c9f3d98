"""A model of one task answers the same examples once in a run, unless it changes."""

import pytest
import torch
from small_runs import small

from perdure import Evaluation, Rule, Task, Training, run
from perdure.evaluation import score
from perdure.evaluation.measure import measure
from perdure.evaluation.system import System
from perdure.runs.resume import restored

TRAINING = Training(epochs=1, batch_size=16, learning_rate=0.01)


@pytest.fixture
def asked(monkeypatch):
    """The tasks whose own models were asked, in order, for each set of examples."""
    tasks = []
    own_logits = score._own_logits

    def recorded(backbone, combined, examples, task, words):
        tasks.append((examples.task_names()[0], task))
        return own_logits(backbone, combined, examples, task, words)

    monkeypatch.setattr(score, "_own_logits", recorded)
    return tasks


@pytest.mark.parametrize("rule", ["routed", "oracle"])
def test_each_model_reads_each_task_once(toy, bert, tmp_path, asked, rule):
    results = run(toy, bert, small("isolated"), rule, training=TRAINING, output=tmp_path / "r")

    names = toy.names
    assert sorted(asked) == sorted((rows, task) for rows in names for task in names)
    assert len(asked) == len(names) ** 2

    # the scores are, to the last bit, those of models that have answered nothing before
    for step in range(1, len(toy) + 1):
        for examples in bert._encoded.values():
            examples.answered.clear()
        system = restored(results.state, bert, Rule(name=rule))
        cold = measure(system.until(step), toy, Evaluation())
        for row in cold.scores:
            kept = [
                other["value"]
                for other in results.scores()
                if (other["step"], other["task"], other["task_id"], other["metric"])
                == (step, row.task, row.task_id, row.metric)
            ]
            assert kept == [row.value]


def given(system: System, task: Task) -> torch.Tensor:
    """The answers to a task's test examples by its own model."""
    answered = system.answer(task, task_ids=["given"]).answered["given"]
    assert isinstance(answered, torch.Tensor)
    return answered


def test_another_head_is_asked(toy, bert, tmp_path, asked):
    results = run(toy.until(2), bert, small("isolated"), training=TRAINING, output=tmp_path / "r")
    system = restored(results.state, bert, Rule(name="oracle"))
    first, second = toy.names[:2]
    asked.clear()

    before = given(system, toy[0])
    again = given(system, toy[0])
    assert asked == [(first, first)] and torch.equal(before, again)

    head = {name: -value for name, value in bert.own_state(first).items()}
    bert.put(first, head)
    after = given(system, toy[0])
    assert asked == [(first, first)] * 2 and not torch.equal(before, after)


def test_the_expert_of_one_task_does_not_depend_on_the_others(toy, bert, tmp_path):
    results = run(toy.until(3), bert, small("isolated"), training=TRAINING, output=tmp_path / "r")
    system = restored(results.state, bert, Rule(name="routed"))
    examples = bert.encode(toy[0].rows("test"))
    alone = score.features(bert, system.until(1).combined, examples, task=toy.names[0])
    among = score.features(bert, system.combined, examples, task=toy.names[0])
    own = score.features(
        bert, system.with_rule(Rule(name="oracle")).combined, examples, task=toy.names[0]
    )
    assert torch.equal(alone, among)
    torch.testing.assert_close(alone, own)
