"""Conformance: what every rule promises, checked on every rule that is found."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from perdure import LowRank, TaskVector, names, registry
from perdure.checks.rule import (
    CHECKS,
    Case,
    RuleUnderTest,
    covariances,
    factors_and_full_tensors_give_the_same,
)
from perdure.errors import InputError
from perdure.merging.rule import nature_of
from perdure.vectors.task_vector import Deferred

NATURES = {name: nature_of(registry.find("rule", name)) for name in names("rule")}
MIXTURES = {"smile", "routed"}  # see test_mixture
RULES = sorted(set(NATURES) - MIXTURES)
FACTORS = {"slao"}
"""Rules of factors, not of what the factors make."""
# Where nothing is left out and the scale is 1. Iso's spectrum is flat whatever its settings.
WHOLE = {
    "ties": {"density": 1.0},
    "continual_ties": {"density": 1.0},
    "knots": {"density": 1.0},
    "dare": {"p": 0.0},
    "della": {"p": 0.0, "epsilon": 0.0},
    "magmax": {"scale": 1.0},
    "breadcrumbs": {"beta": 0.0, "gamma": 1.0, "scale": 1.0},
}
# At its usual settings slerp does not show that the order matters.
ORDERED = {"slerp": {"t": 0.25}}
NEUTRAL = {"sum", "ties", "della", "magmax", "breadcrumbs", "knots", "tsv", "iso"}
NEUTRAL_WITH = {
    "dare": {"then": "sum"},
    "task_arithmetic": {"scale": 0.3},
    "della": {"then": "sum"},
}
LAZY = {
    "dare": {},
    "della": {},
    "magmax": {},
    "breadcrumbs": {},
    "ties": {"per": "layer"},
    "tsv": {},
    "iso": {},
}
OTHERS = [  # settings whose result must not depend on the kind of the entries either
    ("ties", {"how": "sum", "per": "layer"}),
    ("dare", {"then": "ties"}),
    ("della", {"then": "average"}),
    ("knots", {"then": "sum"}),
    ("knots", {"per": "layer", "how": "sum"}),
    ("iso", {"mode": "cts", "common": 0.5}),
    ("tsv", {"rank": 1}),
    ("opcm", {"block": "both"}),
    ("continual_ties", {"mode": "reference"}),
    ("slerp", {"per": "model", "t": 0.3}),
]
few = settings(max_examples=4, deadline=None, derandomize=True)
sizes = st.fixed_dictionaries(
    {"out": st.integers(2, 6), "width": st.integers(2, 6), "rank": st.integers(1, 3)}
)


def subject(name: str, **options) -> RuleUnderTest:
    return RuleUnderTest(name, registry.find("rule", name), options)


def apply(name: str, vectors: dict[str, TaskVector], **options) -> list[TaskVector]:
    """What a rule makes: one task vector or several."""
    return subject(name, **options).combine(vectors)


def made(name: str, *, dtype=torch.float32, **sizes) -> dict[str, TaskVector]:
    """Task vectors of two matrices and a bias, of which each task but the first lacks something."""
    return subject(name).vectors(Case(dtype=dtype, **sizes))


def cast(entry, dtype):
    return (
        LowRank(entry.B.to(dtype), entry.A.to(dtype))
        if isinstance(entry, LowRank)
        else entry.to(dtype)
    )


def assert_same(one: list[TaskVector], two: list[TaskVector], **tolerance):
    assert len(one) == len(two)
    for left, right in zip(one, two, strict=True):
        assert set(left.entries) == set(right.entries)
        for name in left.entries:
            torch.testing.assert_close(left.dense(name), right.dense(name), **tolerance)


@pytest.mark.parametrize("name", NATURES)
@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_rule(check, name):
    check(subject(name))


@pytest.mark.parametrize(("name", "options"), OTHERS, ids=str)
def test_factors_and_full_tensors_give_the_same_with_other_settings(name, options):
    factors_and_full_tensors_give_the_same(subject(name, **options))


def test_which_rules_take_factors_alone():
    full = {"a": TaskVector({"w": torch.ones(2, 2)})}
    refusing = set()
    for name in NATURES:
        try:
            subject(name).combine(full)
        except InputError:
            refusing.add(name)
    assert (
        refusing
        == {name for name, nature in NATURES.items() if nature.low_rank}
        == FACTORS | MIXTURES
    )


@pytest.mark.parametrize("name", RULES)
def test_the_result_of_lora_is_kept_in_factors_where_that_is_exact(name):
    entrywise = {"ties", "dare", "della", "magmax", "breadcrumbs", "continual_ties"}
    for merged in apply(name, made(name)):
        assert isinstance(merged["w"], LowRank) == (name not in entrywise)


def test_every_rule_declares_what_it_is():
    assert all(nature and nature.state for nature in NATURES.values())
    assert {name for name, nature in NATURES.items() if nature.order == "routed"} == MIXTURES | {
        "oracle"
    }


@pytest.mark.parametrize("name", sorted(set(RULES) - {"iso"}))
@given(size=sizes, seed=st.integers(0, 9))
@few
def test_one_task_gives_that_task(name, size, seed):
    vectors = {"a": made(name, **size, seed=seed, dtype=torch.float64)["a"]}
    assert_same(apply(name, vectors, **WHOLE.get(name, {})), [vectors["a"]])


@pytest.mark.parametrize("mode", ["c", "cts"])
def test_one_task_of_iso_keeps_its_singular_vectors_and_their_mean_value(mode):
    vectors = {"a": made("iso", dtype=torch.float64)["a"]}
    (merged,) = apply("iso", vectors, mode=mode, scale=2.0)
    U, S, Vh = torch.linalg.svd(vectors["a"].dense("w"), full_matrices=False)
    torch.testing.assert_close(merged.dense("w"), 2.0 * S[:2].mean() * U[:, :2] @ Vh[:2])


@pytest.mark.parametrize("name", RULES)
def test_what_a_rule_says_of_itself_is_so(name):
    declared = nature_of(registry.find("rule", name))
    assert declared and declared.state
    vectors, options = made(name, dtype=torch.float64), ORDERED.get(name, {})
    one, two = (
        apply(name, vectors, **options),
        apply(name, dict(reversed(vectors.items())), **options),
    )
    same = len(one) == len(two) == 1 and torch.allclose(
        one[0].dense("w"), two[0].dense("w"), atol=1e-6
    )
    assert (declared.order == "order-free") == same


@pytest.mark.parametrize("name", sorted(NEUTRAL | set(NEUTRAL_WITH)))
@given(size=sizes, seed=st.integers(0, 9))
@few
def test_zeros_are_neutral(name, size, seed):
    vectors = {
        t: TaskVector({"w": v["w"]})
        for t, v in made(name, **size, seed=seed, dtype=torch.float64).items()
    }
    options = NEUTRAL_WITH.get(name, {}) | (
        {"rank": 1} if name == "tsv" else {}
    )  # the usual rank is that of n tasks
    zero = TaskVector({"w": 0.0 * vectors["a"]["w"]})
    assert_same(apply(name, vectors | {"zero": zero}, **options), apply(name, vectors, **options))


@pytest.mark.parametrize(("name", "options"), LAZY.items())
def test_one_layer_at_a_time_is_made(name, options):
    count = {"w": 0, "u": 0}

    def counted(key, value):
        def make():
            count[key] += 1
            return value

        return Deferred(value.shape, make)

    torch.manual_seed(0)
    vectors = {t: TaskVector({k: counted(k, torch.randn(3, 3)) for k in "wu"}) for t in "ab"}
    (merged,) = apply(name, vectors, **options)
    assert count == {"w": 0, "u": 0}
    merged.dense("w")
    assert count["w"] >= 2 and count["u"] == 0


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("ties", {"density": 0.0}, r"`density` must be a number in \(0, 1\], got `0.0`"),
        ("ties", {"density": 1.5}, "density"),
        ("ties", {"scale": math.nan}, "scale"),
        ("ties", {"how": "median"}, "`how` must be one of 'mean', 'sum', got `median`"),
        ("ties", {"per": "row"}, "per"),
        ("dare", {"p": 1.0}, r"`p` must be a number in \[0, 1\)"),
        ("dare", {"p": -0.1}, "p"),
        ("dare", {"scale": math.inf}, "scale"),
        ("dare", {"then": "magmax"}, "then"),
        ("della", {"p": 0.9, "epsilon": 0.1}, "`p` - `epsilon`"),
        ("della", {"p": 0.1, "epsilon": 0.2}, "`p` - `epsilon`"),
        ("della", {"epsilon": -0.1}, "epsilon"),
        ("della", {"then": "magmax"}, "then"),
        ("magmax", {"scale": math.nan}, "scale"),
        ("breadcrumbs", {"beta": 1.0}, "beta"),
        ("breadcrumbs", {"gamma": 0.9, "beta": 0.9}, "`gamma` must be above `beta`"),
        ("breadcrumbs", {"gamma": 1.1}, "gamma"),
        ("slerp", {"t": 1.1}, "t"),
        ("slerp", {"per": "row"}, "per"),
        ("knots", {"density": 0.0}, "density"),
        ("knots", {"then": "mean"}, "then"),
        ("knots", {"how": "median"}, "how"),
        ("knots", {"per": "row"}, "per"),
        ("tsv", {"rank": -1}, "rank"),
        ("iso", {"mode": "d"}, "mode"),
        ("iso", {"common": 0.0}, "common"),
        ("regmean", {"alpha": 1.1}, "alpha"),
        ("opcm", {"alpha": 1.0}, r"`alpha` must be a number in \[0, 1\), got `1.0`"),
        ("opcm", {"alpha": -0.1}, "alpha"),
        ("opcm", {"block": "diagonal"}, "block"),
        ("continual_ties", {"mode": "running"}, "mode"),
        ("continual_ties", {"density": 2.0}, "density"),
    ],
)
def test_settings_that_cannot_be_are_refused(name, options, message):
    rule = registry.find("rule", name)
    given = {"inputs": {}} if name == "regmean" else {}
    with pytest.raises(InputError, match=message):
        rule({"a": TaskVector({"w": torch.ones(2, 2)})}, **given, **options)


def test_slerp_takes_two():
    with pytest.raises(InputError, match="two task vectors, got 3: a, b, c"):
        apply("slerp", made("sum"))


def test_slao_needs_factors_of_one_rank():
    with pytest.raises(InputError, match="`w` of `a` is a full tensor"):
        apply("slao", {"a": TaskVector({"w": torch.ones(2, 2)})})
    one, two = (TaskVector({"w": LowRank(torch.ones(3, r), torch.ones(r, 3))}) for r in (1, 2))
    with pytest.raises(InputError, match="`w` has rank 2 for `b` and 1 before"):
        apply("slao", {"a": one, "b": two})


def test_regmean_needs_statistics_of_every_task():
    vectors = made("regmean")
    inputs = {task: covariances(task, vectors) for task in vectors}
    del inputs["c"]["u"]
    rule = registry.find("rule", "regmean")
    with pytest.raises(InputError, match="no input statistics of `u` for task `c`"):
        rule(vectors, inputs)
    with pytest.raises(InputError, match="no input statistics"):
        rule(vectors, {})
    with pytest.raises(InputError, match=r"`w` for `a` must have the shape \(4, 4\), not \(3, 3\)"):
        rule(vectors, inputs | {"a": {"w": torch.eye(3)}})


@given(size=sizes, seed=st.integers(0, 99))
@few
def test_adding_and_taking_away_again_leaves_the_same(size, seed):
    vectors = made("sum", **size, seed=seed)
    for a, b in [("a", "b"), ("b", "c"), ("c", "a")]:
        there_and_back = vectors[a] + vectors[b] - vectors[b]
        for name in vectors[a].entries:
            torch.testing.assert_close(
                there_and_back.dense(name), vectors[a].dense(name), atol=1e-5, rtol=1e-5
            )


def test_each_by_hand():
    a, b = (TaskVector({"w": torch.tensor(v)}) for v in ([2.0, 0.0], [4.0, -2.0]))
    both = {"a": a, "b": b}
    assert registry.find("rule", "sum")(both)["w"].tolist() == [6.0, -2.0]
    assert registry.find("rule", "last")(both)["w"].tolist() == [4.0, -2.0]
    assert registry.find("rule", "task_arithmetic")(both)["w"].tolist() == [3.0, -1.0]
    assert registry.find("rule", "average")(both)["w"].tolist() == [3.0, -1.0]
    assert registry.find("rule", "running_average")(both)["w"].tolist() == [3.0, -1.0]
    assert registry.find("rule", "oracle")(both)["a"] is a


@given(
    common=st.floats(0.01, 1.0),
    tasks=st.integers(1, 4),
    size=st.integers(2, 6),
    seed=st.integers(0, 9),
)
@settings(max_examples=20, deadline=None, derandomize=True)
def test_all_singular_values_of_iso_are_equal_whatever_is_common(common, tasks, size, seed):
    torch.manual_seed(seed)
    vectors = {
        str(t): TaskVector({"w": torch.randn(size, size, dtype=torch.float64)})
        for t in range(tasks)
    }
    (merged,) = apply("iso", vectors, mode="cts", common=common)
    S = torch.linalg.svdvals(merged.dense("w"))
    torch.testing.assert_close(S, S.mean().expand(size), rtol=1e-6, atol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_truncated_in_single(dtype):
    vector = TaskVector({"w": cast(LowRank(torch.randn(8, 4), torch.randn(4, 6)), dtype)})
    cut = vector.truncate(2)
    exact = TaskVector({"w": cast(vector["w"], torch.float32)}).truncate(2).dense("w")
    assert cut["w"].B.dtype == dtype
    torch.testing.assert_close(cut.dense("w").float(), exact, rtol=0.05, atol=0.1)


def test_inner_products_need_equal_shapes():
    a, b = TaskVector({"w": torch.ones(3)}), TaskVector({"w": torch.ones(1)})
    with pytest.raises(InputError, match=r"equal shapes, got \(3,\) and \(1,\)"):
        a.inner(b)
