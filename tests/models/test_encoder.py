"""An encoder as a backbone: its heads, answers of mixed batches,
and examples that hold no model.
"""

import math
import pickle
from dataclasses import replace

import pytest
import torch
from torch.nn.functional import cross_entropy

from perdure import Backbone, BackboneError
from perdure.models.encoder import Encoder
from perdure.models.examples import Batch


@pytest.fixture
def opened(bert, toy) -> Backbone:
    """With heads of two, three and two classes."""
    torch.manual_seed(0)
    for task in toy:
        bert.open(task)
    return bert.eval()


@pytest.fixture
def mixed(opened, toy) -> Batch:
    """Examples of three tasks, none beside another of its own."""
    rows = opened.encode([part for task in toy for part in task.rows("test")])
    return rows.batch([0, 20, 40, 1, 21, 41, 2])


def test_load_picks_the_leaf(bert):
    assert type(bert) is Encoder
    with pytest.raises(TypeError, match="abstract"):
        Backbone(torch.nn.Linear(1, 1), None, source="", files=None)


def test_what_an_answer_of_a_mixed_batch_is(opened, mixed):
    """Each example by its own head: the same as head by head."""
    with torch.no_grad():
        hidden = opened(mixed)
        found = opened.read(hidden, mixed)
    assert found.values.shape == (7, 3) and found.examples == 7
    assert sorted(found.rows.tolist()) == list(range(7))
    for place, row in enumerate(found.rows.tolist()):
        head = opened.own(mixed.tasks[row])
        expected = head(hidden[[row]])[0].detach()
        torch.testing.assert_close(
            found.values[place, : head.out_features], expected, rtol=0, atol=1e-6
        )
        assert found.values[place, head.out_features :].isneginf().all()
        assert found.targets[place] == mixed.targets[row]


def test_losses_of_a_mixed_batch_are_in_its_order(opened, mixed):
    hidden = opened(mixed).detach()
    expected = [
        cross_entropy(opened.own(task)(hidden[row]), mixed.targets[row]).item()
        for row, task in enumerate(mixed.tasks)
    ]
    assert opened.losses(mixed).tolist() == pytest.approx(expected, rel=1e-5)
    assert opened.losses(mixed, 0 * hidden).tolist() != pytest.approx(expected, rel=1e-2)


def test_gradients_of_a_mixed_batch_are_those_of_its_heads(opened, mixed):
    """To the last bit: what is filled up takes no part."""
    opened.losses(mixed).mean().backward()
    found = {name: opened.own(name).weight.grad.clone() for name in opened.heads}
    opened.zero_grad()
    hidden = opened(mixed).detach()
    for name in opened.heads:
        rows = [row for row, task in enumerate(mixed.tasks) if task == name]
        loss = cross_entropy(
            opened.own(name)(hidden[rows]), mixed.targets[rows], reduction="sum"
        ) / len(mixed)
        loss.backward()
        assert torch.equal(found[name], opened.own(name).weight.grad)


def test_a_head_that_is_named_answers_for_all(opened, mixed):
    with torch.no_grad():
        hidden = opened(mixed)
        found = opened.read(hidden, mixed, "colour")
    assert torch.equal(found.values, opened.own("colour")(hidden))
    assert found.rows.tolist() == list(range(7))
    known = [task == "colour" for task in mixed.tasks]
    expected = [
        target if own else -1 for target, own in zip(mixed.targets.tolist(), known, strict=True)
    ]
    assert found.targets.tolist() == expected
    with pytest.raises(IndexError):  # no other task's class is taken for one of this head
        found.losses()


def test_rank_gives_log_probabilities_of_each_task(opened, mixed, toy):
    with torch.no_grad():
        found = opened.rank(mixed, {task.name: task.classes for task in toy})
    shapes = {name: tuple(value.shape) for name, value in found.items()}
    assert shapes == {"fruit": (7, 2), "colour": (7, 3), "shape": (7, 2)}
    for value in found.values():
        torch.testing.assert_close(value.exp().sum(1), torch.ones(7))


def test_an_encoder_writes_no_text(opened, mixed):
    with pytest.raises(BackboneError, match="answers with classes"):
        opened.generate(mixed)


def test_heads_are_opened_shared_put_and_closed(bert, toy):
    for task in toy:
        bert.open(task)
    assert bert.heads == toy.names
    assert [bert.own(task.name).out_features for task in toy] == [2, 3, 2]
    before = bert.own("fruit")
    bert.open(toy[0])
    assert bert.own("fruit") is not before  # a fresh one in its place
    bert.share("again")
    assert bert.own("again") is bert.own("shape")
    state = bert.own_state("colour")
    bert.own("colour").weight.data.zero_()
    assert state["weight"].any()  # a copy
    bert.put("colour", state)
    assert torch.equal(bert.own("colour").weight, state["weight"])
    bert.close("colour")
    assert bert.heads == ["fruit", "shape", "again"]


def test_heads_may_have_the_names_of_a_modules_attributes(bert, toy):
    bert.open(replace(toy[0], name="forward"))
    assert bert.heads == ["forward"] and bert.own("forward").out_features == 2


def test_examples_hold_no_backbone(bert, toy):
    rows = toy[0].rows("test")
    examples = bert.encode(rows)
    assert bert.encode(rows) is examples  # tokenized once
    assert bert.prepare(rows) is not examples
    size = sum(value.numel() for value in bert.model.parameters())
    content = pickle.dumps(examples)
    assert b"Encoder" not in content and b"BertModel" not in content and len(content) < 4 * size
    again = pickle.loads(content).batch([3, 1])
    expected = examples.batch([3, 1])
    assert again.tasks == expected.tasks == ("fruit", "fruit")
    assert torch.equal(again.inputs["input_ids"], expected.inputs["input_ids"])
    assert again.targets.tolist() == [toy[0].test[3]["label"], toy[0].test[1]["label"]]


def test_batches_hold_every_row_once_the_short_ones_first(bert, toy):
    examples = bert.encode(toy[0].rows("train"))
    numbers, lengths = [], []
    for rows, batch in examples.batches(size=5):
        assert len(batch) == len(rows) == len(batch.targets) <= 5
        assert batch.inputs["attention_mask"].sum(1).tolist() == [
            examples.lengths[row] for row in rows
        ]
        numbers += rows
        lengths += [examples.lengths[row] for row in rows]
    assert sorted(numbers) == list(range(32)) and lengths == sorted(lengths)


def test_a_batch_of_an_untrained_head_has_the_loss_of_a_guess(opened, toy):
    batch = opened.encode(toy[1].rows("test")).batch(range(20))
    assert opened.losses(batch).mean().item() == pytest.approx(math.log(3), abs=0.3)
