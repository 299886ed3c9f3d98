"""Conformance: what every rule promises, checked on every rule that is found."""

import pytest
import torch

from perdure import LowRank, TaskVector, names, registry
from perdure.rule import nature_of

RULES = names("rule")


def apply(name: str, vectors: dict[str, TaskVector]) -> list[TaskVector]:
    merged = registry.find("rule", name)(vectors)
    return list(merged.values()) if isinstance(merged, dict) else [merged]


@pytest.fixture
def vectors():
    torch.manual_seed(0)
    return {t: TaskVector({"w": LowRank(torch.randn(5, 2), torch.randn(2, 4))}) for t in "abc"}


@pytest.mark.parametrize("name", RULES)
def test_shape_and_kind_are_kept_and_inputs_left_alone(name, vectors):
    before = {t: (v["w"].B.clone(), v["w"].A.clone()) for t, v in vectors.items()}
    for merged in apply(name, vectors):
        assert merged["w"].shape == merged.dense("w").shape == (5, 4)
        assert merged.dense("w").dtype == torch.float32
    for t, (B, A) in before.items():
        assert torch.equal(vectors[t]["w"].B, B) and torch.equal(vectors[t]["w"].A, A)


@pytest.mark.parametrize("name", RULES)
def test_one_task_gives_that_task(name, vectors):
    (merged,) = apply(name, {"a": vectors["a"]})
    torch.testing.assert_close(merged.dense("w"), vectors["a"].dense("w"))


@pytest.mark.parametrize("name", RULES)
def test_order_does_not_matter_or_it_says_so(name, vectors):
    backwards = dict(reversed(vectors.items()))
    one, two = apply(name, vectors), apply(name, backwards)
    same = len(one) == len(two) == 1 and torch.allclose(one[0].dense("w"), two[0].dense("w"), atol=1e-5)
    declared = nature_of(registry.find("rule", name))
    assert declared and declared.state
    assert (declared.order == "order-free") == same


@pytest.mark.parametrize("name", sorted(set(RULES) - {"last", "oracle", "task_arithmetic"}))
def test_zeros_are_neutral(name, vectors):
    zero = TaskVector({"w": LowRank(torch.zeros(5, 2), torch.zeros(2, 4))})
    (with_zero,), (without,) = apply(name, vectors | {"zero": zero}), apply(name, vectors)
    torch.testing.assert_close(with_zero.dense("w"), without.dense("w"))


def test_each_by_hand():
    a, b = (TaskVector({"w": torch.tensor(v)}) for v in ([2.0, 0.0], [4.0, -2.0]))
    both = {"a": a, "b": b}
    assert registry.find("rule", "sum")(both)["w"].tolist() == [6.0, -2.0]
    assert registry.find("rule", "last")(both)["w"].tolist() == [4.0, -2.0]
    assert registry.find("rule", "task_arithmetic")(both)["w"].tolist() == [3.0, -1.0]
    assert registry.find("rule", "oracle")(both)["a"] is a
