"""Searches find the maximum, keep every candidate and their budget;
scales move in a model as if folded anew.
"""

import pytest
import torch
from torch import nn

from perdure import InputError, LowRank, Rule, TaskVector
from perdure.merging.scaled import Scaled
from perdure.merging.search import GRID, Search, best, candidates, named, start_of
from perdure.models import adapters
from perdure.rules.task_arithmetic import task_arithmetic
from perdure.vectors.task_vector import by_depth


def bowl(*centre: float):
    return lambda scales: -sum((scale - c) ** 2 for scale, c in zip(scales, centre, strict=True))


def test_one_scale_is_looked_up_on_the_grid():
    tried = candidates(bowl(0.5), (1 / 3,), Search())
    assert [scales for (scales,) in tried] == sorted({*GRID, 1 / 3})
    assert best(tried) == (0.5,)


def test_of_equal_scores_the_smallest_wins_or_the_first():
    assert best({(0.5,): 1.0, (0.1,): 1.0, (0.0,): 0.9}) == (0.1,)
    assert best({(0.5, 0.5): 1.0, (0.0, 0.5): 1.0, (0.0, 0.0): 0.9}) == (
        0.5,
        0.5,
    )  # no task is switched off by a tie


@pytest.mark.parametrize("by", ["coordinate", "tpe", "cma-es"])
def test_each_search_comes_near_the_maximum_within_its_budget(by):
    asked = []
    score = bowl(0.9, 0.1, 1.4)
    settings = Search(over="tasks", by=by, budget=120)
    tried = candidates(
        lambda scales: asked.append(scales) or score(scales), start_of(3, settings), settings
    )
    assert asked == list(tried) and len(tried) <= 120 and asked[0] == (1 / 3,) * 3
    assert all(0 <= scale <= 2 for scales in tried for scale in scales)
    assert score(best(tried)) > {"coordinate": -0.01, "tpe": -0.15, "cma-es": -0.05}[by]
    again = candidates(score, start_of(3, settings), settings)
    assert again == tried


def test_coordinate_search_moves_one_scale_at_a_time_and_stops_when_nothing_helps():
    settings = Search(over="tasks", budget=1000)
    tried = list(candidates(lambda scales: 0.0, (0.5, 0.5), settings))
    assert all(
        sum(a != b for a, b in zip(scales, (0.5, 0.5), strict=True)) <= 1 for scales in tried
    )
    steps = sorted({round(abs(a - 0.5), 4) for scales in tried for a in scales} - {0.0})
    assert steps == [0.0625, 0.125, 0.25, 0.5]


def test_a_bound_is_kept():
    tried = candidates(lambda scales: scales[0], (1.0, 1.0), Search(over="tasks", highest=1.5))
    assert best(tried)[0] == 1.5 and max(max(scales) for scales in tried) == 1.5


def test_names_of_scales():
    assert named((0.4,), ["a", "b"], Search()) == 0.4
    assert named((0.4, 0.5), ["a", "b"], Search(over="tasks")) == {"a": 0.4, "b": 0.5}
    layers = Search(over="layers", groups=2)
    assert start_of(2, layers) == (0.5,) * 4
    assert named((1.0, 2.0, 3.0, 4.0), ["a", "b"], layers) == {"a": [1.0, 2.0], "b": [3.0, 4.0]}


def test_without_optuna_it_says_what_to_do(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "optuna", None)
    with pytest.raises(
        InputError, match=r"`search.by: tpe` needs `optuna`: pip install 'perdure\[search\]'"
    ):
        candidates(bowl(0.0), (1.0,), Search(over="tasks", by="tpe"))


def test_only_task_arithmetic_has_scales_per_task():
    with pytest.raises(
        InputError, match="`search.over: tasks` is for `task_arithmetic`, not for `ties`"
    ):
        Rule("ties", scale="search", search=Search(over="tasks"))


# -- scales in a model


NAMES = ["0.0", "1.0", "2.0", "3.0"]


def model_and_vectors(tasks: int = 3):
    torch.manual_seed(0)
    model = nn.Sequential(*[nn.Sequential(nn.Linear(6, 6)) for _ in NAMES])
    vectors = [
        TaskVector(
            {name: LowRank(torch.randn(6, 2), torch.randn(2, 6)) for name in NAMES[: 4 - task]}
        )
        for task in range(tasks)
    ]
    return model, vectors


@pytest.mark.parametrize("parts", [1, 2])
def test_moved_scales_are_those_of_task_arithmetic(parts):
    model, vectors = model_and_vectors()
    before = {name: adapters.base_layer(model, name).weight.clone() for name in NAMES}
    by_task = {str(t): vector for t, vector in enumerate(vectors)}
    random = torch.Generator().manual_seed(1)
    scales = torch.rand(3, parts, generator=random).tolist()
    with Scaled.on(model, vectors) as folded:
        for i in range(20):
            if i % 7 == 6:  # all at once
                scales = torch.rand(3, parts, generator=random).tolist()
            else:
                scales = [list(part) for part in scales]
                scales[i % 3 if i % 2 else 0][i % parts] = torch.rand(1, generator=random).item()
            folded.move(scales)
            merged = task_arithmetic(by_task, scale={str(t): part for t, part in enumerate(scales)})
            for name in NAMES:
                weight = adapters.base_layer(model, name).weight
                torch.testing.assert_close(
                    weight, before[name] + merged.dense(name), rtol=0, atol=1e-5
                )
    assert all(torch.equal(adapters.base_layer(model, name).weight, before[name]) for name in NAMES)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_errors_do_not_add_up(dtype):
    """After a thousand moves and back the model is what folding anew gives,
    but for single precision's rounding.
    """
    model, vectors = model_and_vectors()
    model.to(dtype)
    with Scaled.on(model, vectors) as folded:
        folded.move([[0.3], [0.5], [0.3]])
        first = adapters.base_layer(model, "0.0").weight.clone()
        for i in range(1000):
            folded.move([[0.3], [(i % 17) / 8], [0.3]])
        folded.move([[0.3], [0.5], [0.3]])
        after = adapters.base_layer(model, "0.0").weight
        assert after.dtype == dtype
        torch.testing.assert_close(
            after, first, rtol=0, atol=3e-6 if dtype == torch.float32 else 2**-6
        )


def test_layers_that_a_move_does_not_touch_are_left_alone():
    model, vectors = model_and_vectors()
    with Scaled.on(model, vectors) as folded:
        folded.move([[0.3], [0.3], [0.3]])
        before = {name: adapters.base_layer(model, name).weight.data_ptr() for name in NAMES}
        folded.move([[0.3], [0.3], [0.3]])
        assert all(
            adapters.base_layer(model, name).weight.data_ptr() == before[name] for name in NAMES
        )


def test_scales_of_parts_of_the_depth():
    names = [f"encoder.layer.{i}.query" for i in range(12)]
    parts = by_depth(names, 3)
    assert [parts[name] for name in names] == [0] * 4 + [1] * 4 + [2] * 4
    assert by_depth(["head", "a.7.x", "a.9.x"], 2) == {"head": 0, "a.7.x": 0, "a.9.x": 1}
    assert set(by_depth(names[:2], 3).values()) == {0, 1}


def test_scale_of_a_task_is_missing():
    _, vectors = model_and_vectors()
    with pytest.raises(InputError, match="needs a number for the task `1`, got None"):
        task_arithmetic({"0": vectors[0], "1": vectors[1]}, scale={"0": 1.0})


@pytest.mark.parametrize("by", ["coordinate", "tpe", "cma-es"])
def test_bounds_and_small_budgets(by):
    settings = Search(over="tasks", by=by, highest=0.3, budget=5)
    tried = candidates(bowl(0.2, 0.1), start_of(2, settings), settings)
    assert 2 < len(tried) <= 5 and all(0 <= scale <= 0.3 for scales in tried for scale in scales)
