"""Conformance: what every method promises, checked on every method that is found."""

import functools
import itertools

import pytest
import torch
from small_runs import small

from perdure import Backbone, Run, Training, learn, names, registry
from perdure.checks import method
from perdure.checks.method import (
    OF_ALL,
    OF_FROZEN,
    OF_LANGUAGE,
    OF_TRAINED,
    MethodUnderTest,
    checks_of,
)
from perdure.methods.parts.frozen import FrozenMethod
from perdure.models import adapters

FEW = Training(epochs=2, batch_size=8, learning_rate=0.01)
METHODS = names("method")
FROZEN = [name for name in METHODS if issubclass(registry.find("method", name), FrozenMethod)]
"""Those that train nothing."""
TRAINED = [name for name in METHODS if name not in FROZEN]
FULL = ["sequential-full", "joint-full", "ewc-full"]
"""Some with full fine-tuning."""
OF_FULL = (method.only_its_parameters_change, method.equal_seeds_give_equal_runs, *OF_TRAINED)
"""The checks in which full fine-tuning is another matter."""


def make(name: str):
    kind, full, _ = name.partition("-full")
    return small(kind, **({"peft": "full"} if full else {}))


@pytest.fixture(scope="module")
def subject(tmp_path_factory):
    """A function from the name of a method to what the checks take;
    its run of the toy stream is made once.
    """
    return functools.cache(
        lambda name: MethodUnderTest(
            name, lambda: make(name), tmp_path_factory.mktemp("checks") / name
        )
    )


@pytest.fixture(scope="module")
def on_language(tmp_path_factory):
    """The same on a language model."""
    return functools.cache(
        lambda name, family: MethodUnderTest(
            name, lambda: make(name), tmp_path_factory.mktemp("checks") / name, family
        )
    )


CHECKS = [
    *itertools.product(OF_ALL, METHODS),
    *itertools.product(OF_TRAINED, TRAINED),
    *itertools.product(OF_FROZEN, FROZEN),
    *itertools.product(OF_FULL, FULL),
]


@pytest.mark.parametrize(
    ("check", "name"), CHECKS, ids=lambda value: getattr(value, "__name__", value)
)
def test_method(check, name, subject):
    check(subject(name))


@pytest.mark.parametrize("name", METHODS)
def test_the_checks_of_a_method_are_those_above(name, subject):
    assert checks_of(subject(name)) == OF_ALL + (OF_FROZEN if name in FROZEN else OF_TRAINED)
    assert len(Run(subject(name).whole).scores()) == 3 * (
        1 + 2 + 3
    )  # what they compare is not empty


LANGUAGE = [
    *itertools.product(OF_LANGUAGE, TRAINED, ["causal"]),
    *itertools.product(
        [method.only_its_parameters_change, method.a_run_goes_on_inside_a_task],
        TRAINED,
        ["seq2seq"],
    ),
    *itertools.product([method.it_says_what_it_needs], FROZEN, ["causal", "seq2seq"]),
]


@pytest.mark.parametrize(
    ("check", "name", "family"), LANGUAGE, ids=lambda value: getattr(value, "__name__", value)
)
def test_method_on_language_models(check, name, family, on_language):
    subject = on_language(name, family)
    assert check in checks_of(subject)
    check(subject)


def test_starts(pico, toy, tmp_path):
    def starts(name: str, **options) -> list[adapters.Adapter]:
        method = registry.find("method", name)(rank=2, **options)
        backbone = Backbone.load(pico("bert"), pooling="mean")
        return [learn(backbone, toy.tasks[: i + 1], method, FEW) for i in range(3)]

    fresh, previous, sequential = (
        starts("isolated"),
        starts("isolated", start="previous"),
        starts("sequential"),
    )
    assert adapters.same(fresh[0].start, fresh[1].start) and adapters.same(
        fresh[0].start, fresh[2].start
    )
    assert adapters.same(previous[1].start, previous[0].parameters)
    assert adapters.same(previous[0].start, fresh[0].start)
    # sequential fine-tuning is the trajectory that modules started from the previous task lie on
    assert all(
        adapters.same(a.parameters, b.parameters) for a, b in zip(previous, sequential, strict=True)
    )


def test_joint_trains_on_all_tasks_at_once(bert, toy):
    from perdure.methods.joint import Joint

    method = Joint()
    assert [rows.task for rows in method.examples(toy.tasks)] == toy.names
    learn(bert, toy.tasks[:1], method, FEW)
    old = bert.own("fruit").weight.clone()
    learn(bert, toy.tasks[:2], method, FEW)
    assert not torch.equal(bert.own("fruit").weight, old)
