"""A method around another: every hook that it does not change is that of the other,
also one that is still to come.
"""

import inspect
from dataclasses import dataclass

import pytest
import torch
from small_runs import small

from perdure import InputError, Method, TaskStream, Training, learn, registry, run
from perdure.checks.models import toy_task
from perdure.learning.wrapper import Wrapper, forwarding
from perdure.methods.ewc import EWC
from perdure.methods.isolated import Isolated
from perdure.methods.lda import LDA
from perdure.methods.replay import Replay
from perdure.models import adapters
from perdure.runs.job import check_needs

FEW = Training(epochs=1, batch_size=8, learning_rate=0.02)
OWN = {"state", "tuned"}
"""What of `Method` a wrapper does not forward."""


@dataclass(kw_only=True)
class Told(Method):
    """Each hook tells its name and what it was given."""

    def __getattribute__(self, name):
        if name in HOOKS:
            return lambda *given, **named: (name, given, named)
        return super().__getattribute__(name)


HOOKS = {
    name
    for name, value in vars(Method).items()
    if inspect.isfunction(value) and not name.startswith("_")
}
SAID = {name for name in vars(Method) if not name.startswith("_")} - HOOKS - OWN


def test_every_hook_is_forwarded():
    assert {
        "beneath",
        "begin",
        "parameters",
        "optimizer",
        "around",
        "examples",
        "loss",
        "update",
        "end",
    } < HOOKS
    wrapper = Wrapper(method=Told())
    for name in HOOKS:
        assert getattr(wrapper, name)(1, two=2) == (name, (1,), {"two": 2})


def test_what_a_method_says_of_itself_is_forwarded():
    @dataclass(kw_only=True)
    class Different(Method):
        def __getattribute__(self, name):
            return f"its {name}" if name in SAID else super().__getattribute__(name)

    assert {
        "usual_rule",
        "needs",
        "isolates",
        "trains",
        "keeps_all",
        "store_bytes",
        "module",
    } <= SAID
    wrapper = Wrapper(method=Different())
    assert {getattr(wrapper, name) for name in SAID} == {f"its {name}" for name in SAID}


def test_a_hook_that_is_added_is_forwarded(monkeypatch):
    monkeypatch.setattr(Method, "measure", lambda self, value: value, raising=False)

    class Doubling(Method):
        def measure(self, value):
            return 2 * value

    @forwarding
    class Around(Wrapper):
        pass

    @forwarding
    class Changed(Wrapper):
        def measure(self, value):
            return 1 + self.method.measure(value)

    assert Around(method=Doubling()).measure(3) == 6
    assert Changed(method=Doubling()).measure(3) == 7


def test_a_hook_that_is_changed_reaches_that_of_the_other(bert, toy):
    whole, half = [], []

    class Plain(EWC):
        def loss(self, backbone, batch):
            whole.append(super().loss(backbone, batch))
            return whole[-1]

    class Half(Wrapper):
        def loss(self, backbone, batch):
            half.append(super().loss(backbone, batch) / 2)
            return half[-1]

    method = Half(method=Plain(rank=2))
    learn(bert, [toy[0]], method, Training(epochs=1))
    assert half and all(torch.equal(one, two / 2) for one, two in zip(half, whole, strict=True))
    names = [
        f"{part}/{name}"
        for name in adapters.trainable(bert.model)
        for part in ("importance", "anchor")
    ]
    assert set(method.state) == {f"method/{name}" for name in names} and set(
        method.method.state
    ) == set(names)


def test_what_both_remember_is_kept_apart():
    wrapper = Wrapper(method=Isolated())
    wrapper.state = {"mine": 1, "method/mine": 2}
    assert (wrapper.remembered, wrapper.method.state) == ({"mine": 1}, {"mine": 2})
    assert wrapper.state == {"mine": 1, "method/mine": 2}


WRAPPERS = ("interpolation", "masked_target", "replay", "slow_adapter")


@pytest.mark.parametrize("wrapper", WRAPPERS)
@pytest.mark.parametrize("inner", ["badam", "lwf", "online_replay", "sd_lora", "vcl"])
def test_any_wrapper_around_methods_with_hooks_of_their_own(wrapper, inner, bert, toy):
    """Among them passes, noise, steps and gradients that `PeftMethod` does not know."""
    settings = {"badam": {"samples": 2}, "vcl": {"sampling": "weights"}}.get(inner, {})
    method = registry.find("method", wrapper)(method=small(inner, **settings))
    adapter = learn(bert, [toy[0]], method, FEW)
    adapter = learn(bert, toy.tasks[:2], method, FEW, earlier=[adapter])
    assert not adapters.same(adapter.parameters, adapter.start)
    assert all(value.isfinite().all() for value in adapter.parameters.values())


@pytest.mark.parametrize(
    ("method", "sentence"),
    [
        (Replay(method=EWC(), source="on-policy"), "method `replay`: `source` is 'on-policy'"),
        (Replay(method=EWC(strength=-1)), "method `ewc`: `strength` is -1, but must be a number"),
    ],
)
def test_settings_from_python_are_checked(method, sentence, bert, toy, tmp_path):
    with pytest.raises(InputError, match=sentence):
        run(toy, bert, method, output=tmp_path / "run")
    assert not (tmp_path / "run").exists()


# -- what a method needs


def test_what_a_method_needs_is_that_of_the_other_and_its_own():
    assert Wrapper(method=EWC(labels="true")).needs == {"classes", "heads"} and EWC().needs == set()
    assert Replay(method=Isolated()).needs == set()  # it keeps answers in words as well
    assert LDA().needs == {"heads", "classes"}


def test_a_backbone_without_heads_is_refused(bert, toy, monkeypatch, tmp_path):
    monkeypatch.setattr(type(bert), "has_heads", False)
    check_needs(Isolated(), bert, toy)
    with pytest.raises(InputError, match="needs a head for each task"):
        run(toy, bert, LDA(), output=tmp_path / "run")
    assert not (tmp_path / "run").exists()  # nothing was begun
    with pytest.raises(
        InputError, match="The method `lda` needs a head for each task, which `.*` does not have"
    ):
        check_needs(LDA(), bert, toy)


def test_tasks_without_classes_are_refused(bert):
    stream = TaskStream("free", (toy_task("colour", ["red", "green"], 1),))
    check_needs(EWC(labels="true"), bert, stream)
    object.__setattr__(stream[0], "classes", ())  # as those of a task of free text are
    check_needs(Replay(method=Isolated()), bert, stream)
    with pytest.raises(InputError, match="`ewc` needs tasks with classes, but `colour` has none"):
        check_needs(EWC(labels="true"), bert, stream)


def test_another_module_than_lora_is_refused(bert, toy, monkeypatch):
    class Mine(Method):
        needs = frozenset({"lora"})

    with pytest.raises(InputError, match="needs `peft: lora`, but has no module"):
        check_needs(Mine(), bert, toy)
    monkeypatch.setattr(Isolated, "needs", frozenset({"lora"}))
    check_needs(Isolated(), bert, toy)
    with pytest.raises(
        InputError, match="`isolated` cannot be learned with `peft: full`: it needs `peft: lora`"
    ):
        Isolated(peft="full")


def test_an_optimizer_that_is_none_is_refused(bert, toy):
    class Mine(Isolated):
        def optimizer(self, groups, training, *, examples):
            return groups

    with pytest.raises(
        InputError, match=r"returned list: it must return a `torch.optim.Optimizer`"
    ):
        learn(bert, [toy[0]], Mine(rank=2), Training(epochs=1))
