"""A setting of a wrong type is one sentence in the user's own terms."""

import re
from typing import Annotated, Any, Literal

import pytest
from annotated_types import Ge, Gt, Lt

from perdure import InputError, Recipe, Rule, Training, registry
from perdure.data.table import read_tasks
from perdure.evaluation.measure import Evaluation
from perdure.learning.alignment import Alignment
from perdure.models.backbone import Backbone
from perdure.settings import SEEDS, allowed, checked, put
from perdure.storage import files

THINGS = {
    name: registry.find(kind, name) for kind in registry.SHOWN for name in registry.names(kind)
}
THINGS |= {
    "training": Training,
    "evaluation": Evaluation,
    "backbone": Backbone.load,
    "stream": read_tasks,
}
WRONG = [
    None,
    True,
    -1,
    2**32,
    10**400,
    float("nan"),
    float("inf"),
    "",
    "x" * 10_000,
    "\x1b[31m",
    [],
    [1, "x", None],
    {},
    {"a": {"b": [True]}},
    {"a": float("nan")},
    object(),
]
JARGON = (
    r"function-|\[str|input should|pydantic|literal|union|constrained|tuple\[|Annotated|nonetype|"
    r"int_parsing"
)


@pytest.mark.parametrize("name", THINGS)
def test_every_setting_takes_a_wrong_value_or_says_what_is_right(name):
    thing = THINGS[name]
    refused = 0
    for setting in registry.options(thing):
        for value in WRONG:
            try:
                checked(thing, {setting: value}, f"`{name}`")
            except InputError as error:
                said = str(error)
                refused += "needs `" not in said
                if "needs `" not in said:
                    assert f"`{setting}" in said, said
                    assert not re.search(JARGON, said.replace("x" * 100, ""), re.IGNORECASE), said
                    assert len(said) < 600 and "\x1b" not in said
    assert refused or not registry.options(thing)


@pytest.mark.parametrize(
    ("thing", "options", "message"),
    [
        (
            "isolated",
            {"rank": "many"},
            "`it`: .rank. is 'many', but must be a whole number of at least 1.",
        ),
        (
            "isolated",
            {"rank": True},
            "`it`: `rank` must be a number, got True (YAML reads `yes` and `no` as booleans, too).",
        ),
        (
            "isolated",
            {"dropout": 1},
            "`it`: `dropout` is 1, but must be a number of at least 0 and less than 1.",
        ),
        (
            "isolated",
            {"start": 5},
            "`it`: `start` is 5, but must be `fresh`, `previous` or `orthogonal`.",
        ),
        ("isolated", {"target_modules": 5}, "must be a list of strings or a string, or nothing."),
        ("isolated", {"target_modules": ["a", 5]}, "`target_modules.1` is 5, but must be a string"),
        (
            "task_arithmetic",
            {"scale": None},
            "`scale` is None, but must be a number, a string or a mapping.",
        ),
        (
            "task_arithmetic",
            {"scale": {"a": "x"}},
            "`scale.a` is 'x', but must be a number or a list of numbers.",
        ),
        (
            "task_arithmetic",
            {"scale": {"a": [1, "x"]}},
            "`scale.a.1` is 'x', but must be a number.",
        ),
        ("task_arithmetic", {"scale": {"a": float("nan")}}, "`scale`, `a` must be a finite number"),
        ("ties", {"scale": True}, "`scale` must be a number, got True"),
        (
            "dare",
            {"seed": SEEDS},
            f"`seed` must be a whole number from 0 to {SEEDS - 1}, got {SEEDS}.",
        ),
        ("dare", {"seed": -1}, "`seed` must be a whole number from 0"),
        ("demo", {"train": 10**30}, "`train` must be a finite number small enough to compute with"),
        ("training", {"alignment": 5}, "`alignment` is 5, but must be a mapping, or nothing."),
        (
            "training",
            {"alignment": {"epoch": 5}},
            "No setting of `it`: `alignment` named `epoch`. Did you mean `epochs`?",
        ),
        (
            "training",
            {"alignment": {"epochs": 0}},
            "`alignment.epochs` is 0, but must be a whole number of at least 1.",
        ),
        ("training", {"alignment": {"epochs": True}}, "`alignment`, `epochs` must be a number"),
        ("training", {"learning_rate": float("inf")}, "`learning_rate` must be a finite number"),
        (
            "evaluation",
            {"task_ids": ["known"]},
            "`task_ids.0` is 'known', but must be `given`, `posterior` or `none`.",
        ),
        ("training", {"bf16": "perhaps"}, "`bf16` is 'perhaps', but must be true or false."),
    ],
)
def test_the_sentence(thing, options, message):
    with pytest.raises(InputError) as refused:
        checked(THINGS[thing], options, "`it`")
    assert message.replace(".rank.", "`rank`") in str(refused.value)


def test_what_is_right_is_converted():
    assert checked(THINGS["isolated"], {"rank": "8", "dropout": 0}, "it") == {
        "rank": 8,
        "dropout": 0.0,
    }
    assert checked(Training, {"bf16": True, "alignment": {"epochs": 2}}, "it")[
        "alignment"
    ] == Alignment(epochs=2)
    assert checked(THINGS["dare"], {"seed": SEEDS - 1}, "it") == {"seed": SEEDS - 1}
    assert checked(THINGS["task_arithmetic"], {"scale": {"a": [1, 2]}}, "it") == {
        "scale": {"a": [1.0, 2.0]}
    }


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (
            Annotated[float, Gt(0), Lt(0.5)] | None,
            "a number of more than 0 and less than 0.5, or nothing",
        ),
        (Literal["a", "b", "c"], "`a`, `b` or `c`"),
        (tuple[Literal["a"], ...], "a list of `a`"),
        (dict[str, Any] | str, "a mapping or a string"),
        (Annotated[int, Ge(2)], "a whole number of at least 2"),
        (Alignment | None, "a mapping, or nothing"),
        (None, "nothing"),
    ],
)
def test_types_in_words(kind, words):
    assert allowed(kind) == words


# -- recipes


@pytest.mark.parametrize("seed", [-1, 2**32, 2**70, 1.5, True, "x", None, [1]])
def test_a_seed_that_no_generator_takes(seed):
    with pytest.raises(InputError, match="`seed`"):
        Recipe.parse({"stream": "demo", "backbone": "minilm", "seed": seed})
    assert (
        Recipe.parse({"stream": "demo", "backbone": "minilm", "seed": 2**32 - 1}).seed == 2**32 - 1
    )


@pytest.mark.parametrize(
    "section", ["stream", "backbone", "method", "rule", "training", "evaluation", "scenario"]
)
@pytest.mark.parametrize("value", WRONG, ids=lambda value: type(value).__name__)
def test_a_section_of_a_wrong_type(section, value):
    values = {"stream": "demo", "backbone": "minilm", "method": "isolated", "rule": "sum"} | {
        section: value
    }
    try:
        recipe = Recipe.parse(values)
        for make in ("method", "rule", "training", "evaluation"):
            getattr(recipe, f"make_{make}")()
    except InputError as error:
        assert not re.search(JARGON, str(error).replace("x" * 100, ""), re.IGNORECASE), error
        assert len(str(error)) < 1000


# -- rules


def test_a_rule_is_given_in_three_ways():
    rule = Rule("ties", density=0.3)
    assert rule == Rule.of({"name": "ties", "density": 0.3}) == Rule.of(rule) and Rule.of(
        "ties"
    ) == Rule("ties")
    assert Rule.of(rule.section) == rule and rule.label == "ties(density=0.3)"
    searched = Rule("task_arithmetic", scale="search", search={"over": "tasks"}, since="start")
    assert Rule.of(searched.section) == searched and searched.search.over == "tasks"
    assert rule.with_scale(2.0).label == "ties(density=0.3, scale=2.0)"


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        (5, "`rule` must be a name, or a mapping with `name` and settings, got 5"),
        (["ties"], "`rule` must be a name"),
        ({}, "`rule` needs `name`"),
        ({"name": 5}, "`rule`: `name` must be a string, got 5"),
        ("tie", "Did you mean `ties`?"),
        (
            {"name": "ties", "densty": 0.3},
            "No setting of rule `ties` named `densty`. Did you mean `density`?",
        ),
        ({"name": "ties", "density": "x"}, "rule `ties`: `density` is 'x', but must be a number"),
        ({"name": "ties", "self": 1}, "No setting of rule `ties` named `self`"),
        ({"name": "ties", "options": {"density": 1}}, "No setting of rule `ties` named `options`"),
        ({"name": "ties", "space": "x"}, "`space` is 'x', but must be `delta` or `factor`"),
        ({"name": "ties", "search": {}}, "defines how to search for a scale"),
        ({"name": "sum", "scale": "search"}, "No setting of rule `sum` named `scale`"),
    ],
)
def test_a_rule_that_is_none(rule, message):
    with pytest.raises(InputError, match=re.escape(message)):
        Rule.of(rule)


@pytest.mark.parametrize("text", ["1e-3", "1E5", "-2e+1", "1.5e3", "+.5e2", "1.e3"])
def test_powers_of_ten_are_numbers(text):
    values: dict[str, Any] = {}
    put(values, f"rule.scale={text}")
    assert values == {"rule": {"scale": float(text)}}
    assert files.parse_yaml(f"[{text}, '{text}']", "x") == [float(text), text]


@pytest.mark.parametrize(
    "text", ["1e5", "-1e-3", "1.0E5", "e5", "1e", "1e5x", "1e5-b", "0x1e5", "_1e5"]
)
def test_texts_that_look_like_powers_of_ten_stay_texts(text):
    written = files.to_yaml({"name": text, "tasks": [text]})
    assert files.parse_yaml(written, "x") == {"name": text, "tasks": [text]}


def test_what_only_begins_like_a_power_of_ten_is_a_text():
    assert files.parse_yaml("[1e5x, 1e5-b, 1e, 1e5 6]", "x") == ["1e5x", "1e5-b", "1e", "1e5 6"]
