"""What a rule says of itself is believed, and checked where that needs no task vector."""

import pytest
import torch

from perdure import InputError, TaskVector, names, registry
from perdure.merging.combine import check_fits, combine
from perdure.merging.rule import Nature
from perdure.merging.rule_settings import Rule

HEAD = """
from typing import Annotated, Any, Literal
from annotated_types import Gt, Le
from perdure import InputError, TaskVector
from perdure.merging.rule import nature
"""


@pytest.fixture
def mine(tmp_path):
    """Write a rule of one's own; its settings are in the call."""

    def write(code: str, **settings) -> Rule:
        (tmp_path / "mine.py").write_text(HEAD + code)
        return Rule(str(tmp_path / "mine.py"), **settings)

    return write


def test_what_is_not_declared_has_a_default(mine):
    rule = mine("def mine(vectors):\n    return TaskVector({})\n")
    assert rule.nature == Nature() == Nature(order="sequential", state="n task vectors")
    assert not rule.routed and not rule.nature.layerwise


@pytest.mark.parametrize(
    ("code", "message"),
    [
        (
            "def mine(vectors, inputs):\n    ...\n",
            r"takes \['inputs'\] in addition .* needs \[\]: write",
        ),
        (
            "@nature('routed', state='', needs=['x'])\ndef mine(vectors, x):\n    ...\n",
            r"The available statistics are \['inputs'\]",
        ),
        (
            "@nature('routed', state='', needs=['inputs'])\ndef mine(vectors):\n    ...\n",
            r"takes \[\] in addition",
        ),
    ],
)
def test_what_a_rule_takes_has_to_be_declared(mine, code, message):
    with pytest.raises(InputError, match=message):
        mine(code)


SETTINGS = """
def _check(low: float, high: float) -> None:
    if low >= high:
        raise InputError("`low` must be below `high`.")

@nature("order-free", state="one task vector", check=_check)
def mine(
    vectors,
    *,
    share: Annotated[float, Gt(0), Le(1)] = 0.5,
    low: float = 0.0,
    high: float = 1.0,
    how: Literal["mean", "sum"] = "mean",
    about: Annotated[str, "a comment"] = "",
):
    raise AssertionError("it was run")
"""


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"share": 0.0}, "`share` is 0.0, but must be a number of more than 0 and at most 1"),
        ({"share": float("nan")}, "`share`"),
        ({"low": float("inf")}, "`low` must be a finite number"),
        ({"how": "median"}, "`how` is 'median', but must be `mean` or `sum`"),
        ({"low": 2.0}, "`low` must be below `high`"),
        ({"low": 0.5, "high": 0.5}, "`low` must be below `high`"),
        ({"lwo": 0.5}, "Did you mean `low`"),
    ],
)
def test_settings_are_checked_without_running_the_rule(mine, settings, message):
    right = {"share": 1.0, "high": 2.0, "about": "x"}
    assert mine(SETTINGS, **right).options == right
    with pytest.raises(InputError, match=message):
        mine(SETTINGS, **settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"share": 0.0}, r"`share` must be a number in \(0, 1\], got `0.0`"),
        ({"low": float("inf")}, r"`low` must be a number in \(-inf, inf\)"),
        ({"how": "median"}, "`how` must be one of 'mean', 'sum', got `median`"),
        ({"low": 2.0}, "`low` must be below `high`"),
    ],
)
def test_settings_are_checked_at_each_call(mine, settings, message):
    function = registry.find("rule", mine(SETTINGS).name)
    with pytest.raises(InputError, match=message):
        function({}, **settings)
    with pytest.raises(AssertionError, match="it was run"):
        function({})


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        ("int", "`.*mine.py` returned int: it must return a `TaskVector`"),
        ("list[TaskVector]", "returned list: it must return"),
        ("None", "returned NoneType: it must return"),
        ("dict[str, TaskVector]", 'declare it as `@nature\\("routed", …\\)`'),
    ],
)
def test_what_is_said_to_be_returned_is_checked_before_training(mine, returned, message):
    rule = mine(f"def mine(vectors) -> {returned}:\n    return TaskVector({{}})\n")
    with pytest.raises(InputError, match=message):
        check_fits(rule, "lora")


@pytest.mark.parametrize("returned", ["TaskVector", "Any", "object", None])
def test_what_may_be_right_is_left_alone(mine, returned):
    rule = mine(
        f"def mine(vectors){f' -> {returned}' if returned else ''}:\n    return TaskVector({{}})\n"
    )
    check_fits(rule, "lora")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("1", "returned int: it must return a `TaskVector`"),
        ("dict(vectors)", "returned dict, which acts differently for different inputs"),
    ],
)
def test_what_is_returned_is_checked(mine, value, message):
    rule = mine(f"def mine(vectors):\n    return {value}\n")
    check_fits(rule, "lora")
    with pytest.raises(InputError, match=message):
        combine([], rule)


def test_a_rule_that_is_routed_may_return_one_for_each_task(mine):
    rule = mine("@nature('routed', state='n')\ndef mine(vectors):\n    return dict(vectors)\n")
    assert rule.routed and combine([], rule).routed


def test_what_was_kept_is_given_to_what_needs_it(mine):
    code = "@nature('sequential', state='n', needs=['inputs'])\ndef mine(vectors, inputs):\n"
    rule = mine(f"{code}    mine.given = inputs\n    return TaskVector({{}})\n")
    with pytest.raises(
        InputError,
        match="needs statistics of the layers' inputs, which were not saved: .*keep_inputs",
    ):
        rule({"a": TaskVector({})})
    kept = {"inputs": {"a": {"layer": torch.eye(2)}}}
    rule({"a": TaskVector({})}, kept)
    assert registry.find("rule", rule.name).given is kept["inputs"]


@pytest.mark.parametrize("name", names("rule"))
def test_every_rule_is_declared_and_fits_lora(name):
    rule = Rule(name)
    assert getattr(registry.find("rule", name), "nature", None) is rule.nature
    check_fits(rule, "lora")


@pytest.mark.parametrize("name", ["smile", "routed", "slao"])
@pytest.mark.parametrize(
    ("module", "space"), [("full", "delta"), ("lora", "factor"), ("bottleneck", "factor")]
)
def test_what_takes_low_rank_changes_refuses_others(name, module, space):
    with pytest.raises(
        InputError, match=f"The rule `{name}` combines low-rank changes only, .* are not low-rank"
    ):
        check_fits(Rule(name, space=space), module)
    check_fits(Rule("sum", space=space), module)
