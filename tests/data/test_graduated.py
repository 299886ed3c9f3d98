"""Graduated streams: the weights by hand, the order, the segments, and what is refused."""

from dataclasses import replace

import numpy as np
import pytest
from small_runs import contents, recipe

from perdure import InputError, Recipe, Run
from perdure import forget as forget_task
from perdure.data.graduated import graduated, sequence, weights
from perdure.learning.progress import consecutive
from perdure.runs.extend import learn_more

ONCE = {"epochs": 1, "heads": "shared"}


def test_weights_by_hand():
    # middles at 2, 6 and 10; distances from 3 are 1, 3 and 7
    expected = np.array([6.0, 4.0, 0.0]) / 6
    np.testing.assert_allclose(weights(3, [4, 4, 4], 2), expected**2)
    assert weights(2, [4, 0], 12).tolist() == [1.0, 0.0]
    assert weights(2, [4, 0, 0], 12).tolist() == [1.0, 0.0, 0.0]
    assert weights(5, [10], 12).tolist() == [1.0]


def test_every_example_is_read_once_and_the_tasks_fade():
    sizes = [300, 300, 300]
    order = sequence(sizes, 12, seed=0)
    assert sorted(order) == list(range(900))
    assert order == sequence(sizes, 12, seed=0) != sequence(sizes, 12, seed=1)
    tasks = np.array(order) // 300
    # Pure in the middle of the first and of the last task, mixed in between.
    assert (tasks[100:200] == 0).mean() > 0.95
    assert (tasks[-200:-100] == 2).mean() > 0.95
    assert 0.3 < (tasks[270:330] == 0).mean() < 0.7
    slow = np.array(sequence(sizes, 2, seed=0)) // 300
    assert (slow[100:200] == 0).mean() < (tasks[100:200] == 0).mean()


def test_segments_have_all_classes_and_the_test_examples_of_their_task(toy):
    stream = graduated(toy, 2, seed=3)
    assert stream.scenario == "domain" and stream.fading == 2
    assert stream.names == toy.names
    assert [len(task.train) for task in stream] == [len(task.train) for task in toy]
    assert all(task.classes == toy.classes for task in stream)
    for before, after in zip(toy, stream, strict=True):
        assert after.in_order
        assert after.test["text"] == before.test["text"]
        names = [before.classes[label] for label in before.test["label"]]
        assert [after.classes[label] for label in after.test["label"]] == names
    texts = [text for task in toy for text in task.train["text"]]
    assert sorted(text for task in stream for text in task.train["text"]) == sorted(texts)
    middle = set(stream[1].train["text"])
    assert middle & set(toy[0].train["text"]) and middle & set(toy[2].train["text"])


def test_one_task_and_other_columns_are_refused(toy):
    with pytest.raises(InputError, match="at least two tasks.* has only `fruit`"):
        graduated(toy.until(1))
    with pytest.raises(InputError, match="`graduated` is 0"):
        graduated(toy, 0)
    other = toy[1].train.add_column("text_pair", ["x"] * len(toy[1].train))
    pairs = replace(toy[1], train=other)
    with pytest.raises(InputError, match="same columns: `fruit`"):
        graduated(replace(toy, tasks=(toy[0], pairs)))


def test_stored_examples_are_interleaved_with_those_in_order():
    [*batches] = consecutive([6, 3], 3)
    assert [index for batch in batches for index in batch if index < 6] == list(range(6))
    assert all(sum(index >= 6 for index in batch) == 1 for batch in batches)


# -- in a run


def graduated_recipe(tmp_path, pico, **settings) -> Recipe:
    names = ["fruit", "colour", "texture"]
    training = ONCE | settings.pop("training", {})
    values = recipe(tmp_path, names, pico("bert"), training=training)
    method = {"name": "badam", "rank": 2, "samples": 2}
    return Recipe.parse(values | {"graduated": 12, "method": method, "rule": "last"} | settings)


def test_a_run_goes_on_and_neither_learns_nor_forgets_a_task(tmp_path, pico):
    made = graduated_recipe(tmp_path, pico)
    whole = made.run(tmp_path / "whole")
    assert {row["task"] for row in whole.scores() if row["step"] == 3} == set(whole.tasks)
    assert made.make_method().task_free and whole.recipe["graduated"] == 12
    stopped = made.plan()
    from perdure.runs import story

    plan = replace(stopped, stream=stopped.stream.until(1), recipe=made.resolved(stopped))
    story.run(plan, tmp_path / "parts")
    again = made.run(tmp_path / "parts")
    a, b = contents(whole), contents(again)
    for name in a:
        if name.endswith(("safetensors", "scores.csv")):
            assert a[name] == b[name], name
    with pytest.raises(InputError, match="`forget` needs .* traces of every task remain"):
        forget_task(tmp_path / "whole", "fruit")
    with pytest.raises(InputError, match="`learn` needs"):
        learn_more(tmp_path / "whole", {"data": str(tmp_path / "fruit.csv"), "name": "more"})
    assert Run(tmp_path / "whole").tasks == whole.tasks


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"method": {"name": "ewc", "rank": 2}}, "`ewc` needs to know where a task ends"),
        ({"training": {"heads": "per_task"}}, "heads: shared"),
        ({"training": {"epochs": 2}}, "`training.epochs` is 2"),
        ({"scenario": "class"}, "`scenario: class`"),
    ],
)
def test_what_needs_boundaries_is_refused(settings, message, tmp_path, pico):
    with pytest.raises(InputError, match=message):
        graduated_recipe(tmp_path, pico, **settings).plan()


def test_replay_follows_its_inner_method(tmp_path, pico):
    for inner, free in (("badam", True), ("lwf", False)):
        method = {"name": "replay", "method": {"name": inner}, "per_class": 2}
        assert graduated_recipe(tmp_path, pico, method=method).make_method().task_free == free


def test_a_benchmark_takes_it_in_its_section():
    made = Recipe.parse({"stream": {"name": "demo", "graduated": 2}, "backbone": "minilm"})
    assert made.graduated == 2 and made.stream == {"name": "demo"}
    with pytest.raises(InputError, match="graduated"):
        Recipe.parse({"stream": {"name": "demo", "graduated": 0}, "backbone": "minilm"})
