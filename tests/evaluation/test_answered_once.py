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


@pytest.fixture
def read(bert):
    """The number of examples in each pass through the transformer."""
    sizes = []

    def record(_model, _arguments, inputs, _output):
        sizes.append(len(inputs["input_ids"]))

    handle = bert.model.register_forward_hook(record, with_kwargs=True)
    yield sizes
    handle.remove()


def forget_answers(backbone):
    for examples in backbone._encoded.values():
        examples.answered.clear()
        examples.pooled.clear()


@pytest.mark.parametrize("name", ["ncm", "lda"])
def test_a_frozen_backbone_reads_each_example_once(toy, bert, tmp_path, read, name):
    """For heads, statistics, the task posterior and all measurements."""
    results = run(toy, bert, small(name), output=tmp_path / "r")
    assert sum(read) == sum(len(task.train) + len(task.test) for task in toy)

    # the scores are, to the last bit, those of a model that reads everything again
    system = restored(results.state, bert, Rule(name="last"))
    for step in range(1, len(toy) + 1):
        bert._encoded.clear()
        cold = measure(system.until(step), toy, Evaluation())
        assert [row.value for row in cold.scores] == [
            row["value"] for row in results.scores() if row["step"] == step
        ]


def test_an_adapted_backbone_reads_test_examples_twice(toy, bert, tmp_path, read):
    """Once with the module, for the heads, and once without, for the task posterior."""
    run(toy, bert, small("ncm", adapt="first"), training=TRAINING, output=tmp_path / "r")
    train = [len(task.train) for task in toy]
    # the first task is also trained on, for one epoch
    assert sum(read) == train[0] + 2 * sum(train) + 2 * sum(len(task.test) for task in toy)


def test_another_module_is_read_again(toy, bert, tmp_path, read):
    learned = run(toy.until(2), bert, small("sequential"), training=TRAINING, output=tmp_path / "r")
    second = restored(learned.state, bert, Rule(name="last"))
    first = second.until(1)
    examples = bert.encode(toy[0].rows("test"))
    before = score.features(bert, first.combined, examples)
    read.clear()
    again = score.features(bert, first.combined, examples)
    assert read == [] and torch.equal(before, again)
    after = score.features(bert, second.combined, examples)
    assert sum(read) == len(examples) and not torch.equal(before, after)


@pytest.mark.parametrize("rule", ["routed", "oracle"])
def test_each_model_reads_each_task_once(toy, bert, tmp_path, asked, rule):
    results = run(toy, bert, small("isolated"), rule, training=TRAINING, output=tmp_path / "r")

    names = toy.names
    assert sorted(asked) == sorted((rows, task) for rows in names for task in names)
    assert len(asked) == len(names) ** 2

    # the scores are, to the last bit, those of models that have answered nothing before
    for step in range(1, len(toy) + 1):
        forget_answers(bert)
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


def test_experts_behind_a_gate_are_not_taken_for_the_unchanged_model(toy, bert, tmp_path):
    results = run(toy.until(2), bert, small("isolated"), training=TRAINING, output=tmp_path / "r")
    system = restored(results.state, bert, Rule(name="smile"))
    assert system.combined.digest(None) is None
    examples = bert.encode(toy[0].rows("test"))
    mixed = score.features(bert, system.combined, examples)
    assert not torch.equal(mixed, score.features(bert, system.until(0).combined, examples))
