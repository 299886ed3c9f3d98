"""The public checks: each finds the method or rule that breaks its promise,
and says so in one sentence.
"""

import json
from pathlib import Path

import pytest

from perdure import CheckFailed, UnknownName
from perdure.checks import method, rule, suite
from perdure.checks.method import MethodUnderTest
from perdure.checks.rule import RuleUnderTest
from perdure.registry import find

HEAD = """
from dataclasses import dataclass
import random
import torch
from perdure import PeftMethod
@dataclass(kw_only=True)
class Broken(PeftMethod):
    rank: int = 2
"""
METHODS = {
    "wrong_hook": (
        "    def begin(self, backbone): ...",
        method.hooks_take_what_the_loop_gives,
        r"has a hook `begin\(backbone\)`, which is called with \(backbone, task\)",
    ),
    "no_hook": (
        "    update = 3",
        method.hooks_take_what_the_loop_gives,
        "has a hook `update` of type `int`: make it a method",
    ),
    "many_losses": (
        "    def loss(self, backbone, batch):\n"
        "        return torch.stack([super().loss(backbone, batch)] * 8)",
        method.loss_is_one_number,
        r"has a loss of the shape \(8,\): return one number",
    ),
    "float_loss": (
        "    def loss(self, backbone, batch):\n        return 0.5",
        method.loss_is_one_number,
        "has a loss that is a float",
    ),
    "no_gradient": (
        "    def loss(self, backbone, batch):\n"
        "        return super().loss(backbone, batch).detach()",
        method.loss_is_one_number,
        "has a loss without a gradient",
    ),
    "thaws": (
        "    def update(self, backbone, step):\n        step()\n"
        "        next(backbone.model.parameters()).data.mul_(1.01)",
        method.only_its_parameters_change,
        r"changed `model\.embeddings\..*` while it learned `fruit`: return it from `parameters`",
    ),
    "trains_the_frozen_factor": (
        "    def parameters(self, backbone):\n"
        "        return [p for n, p in backbone.model.named_parameters() if 'lora_B' in n]\n"
        "    def update(self, backbone, step):\n        step()\n"
        "        names = backbone.model.named_parameters()\n"
        "        [p.data.mul_(1.01) for n, p in names if 'lora_A' in n]",
        method.only_its_parameters_change,
        r"changed `.*lora_A.weight` of its module while it learned `fruit`",
    ),
    "trains_nothing": (
        "    def parameters(self, backbone):\n        return []",
        method.training_lowers_the_loss,
        "did not change its module",
    ),
    "never_lower": (
        "    def loss(self, backbone, batch):\n"
        "        return super().loss(backbone, batch) * 0 + 3",
        method.training_lowers_the_loss,
        "has a mean loss of 3 in the first epoch, and of 3 at best in 7 more",
    ),
    "not_isolated": (
        "    @property\n    def isolates(self):\n        return True\n"
        "    def begin(self, backbone, task):\n        self.go_on(backbone)",
        method.what_it_isolates_is_learned_alone,
        "declares `isolates`, but an earlier task changed",
    ),
    "keeps_data": (
        "    def examples(self, seen):\n"
        "        return [row for task in seen for row in task.rows('train')]",
        method.it_does_without_old_examples,
        "reads the examples of an earlier task: return True from `keeps_all`",
    ),
    "other_randomness": (
        "    def begin(self, backbone, task):\n        super().begin(backbone, task)\n"
        "        for value in self.parameters(backbone):\n"
        "            value.data += 0.1 * random.SystemRandom().random()",
        method.equal_seeds_give_equal_runs,
        # a file of the task if the scores happen to be equal, because these numbers have no seed
        r"produced a different run with the same seed: draw .* from torch. `.*` differs",
    ),
    "looks_ahead": (
        "    count = 0\n    def begin(self, backbone, task):\n"
        "        super().begin(backbone, task)\n"
        "        for value in self.parameters(backbone):\n"
        "            value.data += 0.1 * Broken.count\n"
        "        Broken.count += 1",
        method.past_tasks_stay_as_they_are,
        "changed `tasks/00-fruit` when it learned other tasks",
    ),
    "forgets_between": (
        "    def __post_init__(self):\n        super().__post_init__()\n        self.learned = 0\n"
        "    def loss(self, backbone, batch):\n"
        "        return (1 + self.learned) * super().loss(backbone, batch)\n"
        "    def end(self, *arguments):\n        self.learned += 1",
        method.a_run_goes_on_between_tasks,
        "was stopped between two tasks and did not produce the same bytes: store in `state`",
    ),
    "forgets_inside": (
        "    def begin(self, backbone, task):\n        super().begin(backbone, task)\n"
        "        self.steps = 0\n"
        "    def loss(self, backbone, batch):\n        self.steps += 1\n"
        "        return super().loss(backbone, batch) / self.steps",
        method.a_run_goes_on_inside_a_task,
        "was stopped in the middle of a task and did not produce the same bytes: store in `state`",
    ),
    "goes_stale": (
        "    def __post_init__(self):\n        super().__post_init__()\n        self.learned = 0\n"
        "    def loss(self, backbone, batch):\n"
        "        return (1 + self.learned) * super().loss(backbone, batch)\n"
        "    def end(self, *arguments):\n        self.learned += 1",
        method.what_was_used_is_as_good_as_new,
        "produced a different run when it was reused",
    ),
    "says_that_it_is_frozen": (
        "    @property\n    def trains(self):\n        return False",
        method.computed_heads_know_the_classes,
        "declares by `trains` that it trains nothing, but has parameters or examples",
    ),
}
RULES = {
    "positional": (
        "@nature('order-free', state='n task vectors')\ndef positional(vectors, scale=1.0): ...",
        rule.it_takes_vectors_and_settings,
        "has a setting `scale` that is not keyword-only",
    ),
    "nameless": (
        "def nameless(vectors): return vectors",
        rule.it_declares_what_it_is,
        "does not say what it is: declare it with `@nature",
    ),
    "stateless": (
        "@nature('sequential', state='')\ndef stateless(vectors): ...",
        rule.it_declares_what_it_is,
        "does not say what has to be stored for the next task",
    ),
    "unknown": (
        "@nature('sequential', state='nothing')\ndef unknown(vectors): ...\n"
        "object.__setattr__(unknown.nature, 'order', 'random')",
        rule.it_declares_what_it_is,
        "says that it is `random`, but must be one of order-free, sequential, routed",
    ),
    "several": (
        "@nature('sequential', state='nothing')\ndef several(vectors): return vectors",
        rule.it_declares_what_it_is,
        "returned 2 task vectors, but says that it is `sequential`",
    ),
    "a_list": (
        "@nature('sequential', state='nothing')\n"
        "def a_list(vectors): return list(vectors.values())",
        rule.shapes_and_dtypes_are_kept,
        "returned a list: return a `TaskVector`",
    ),
    "fewer": (
        "@nature('routed', state='n')\ndef fewer(vectors): return {'a': vectors['a']}",
        rule.shapes_and_dtypes_are_kept,
        r"returned task vectors of \['a'\] for the tasks \['a', 'b'\]",
    ),
    "transposed": (
        "@nature('sequential', state='one')\n"
        "def transposed(vectors): return TaskVector({'w': vectors['a'].dense('w').T})",
        rule.shapes_and_dtypes_are_kept,
        r"returned `w` with the shape \(4, 5\), not \(5, 4\)",
    ),
    "widened": (
        "@nature('sequential', state='one')\n"
        "def widened(vectors): return TaskVector({'w': vectors['a'].dense('w').half()})",
        rule.shapes_and_dtypes_are_kept,
        "returned `w` as torch.float16 for task vectors of torch.float64",
    ),
    "unbiased": (
        "@nature('order-free', state='sums')\n"
        "def unbiased(vectors): return sum_of(vectors) * (1 / float(torch.tensor(len(vectors) - "
        "1.0)) "
        "if len(vectors) > 1 else float('nan'))",
        rule.shapes_and_dtypes_are_kept,
        "returned numbers that are infinite or undefined for `",
    ),
    "invents": (
        "@nature('sequential', state='one')\n"
        "def invents(vectors): return TaskVector({'v': torch.ones(2)})",
        rule.shapes_and_dtypes_are_kept,
        "returned a layer `v` that no task changes",
    ),
    "in_place": (
        "@nature('sequential', state='one')\n"
        "def in_place(vectors):\n"
        "    vectors['a']['w'].B.mul_(2) if hasattr(vectors['a']['w'], 'B') else None\n"
        "    return sum_of(vectors)",
        rule.task_vectors_are_left_alone,
        "changed `w` of the task vector of `a`: make a new tensor",
    ),
    "dice": (
        "@nature('sequential', state='one')\n"
        "def dice(vectors): return sum_of(vectors) * float(torch.rand(()))",
        rule.the_same_again,
        "computed a different `w` when it was called again: seed its random numbers",
    ),
    "of_factors": (
        "@nature('sequential', state='one')\n"
        "def of_factors(vectors):\n"
        "    return sum_of(vectors) * (2.0 if isinstance(vectors['a']['w'], LowRank) else 1.0)",
        rule.factors_and_full_tensors_give_the_same,
        "computed a different `w` for full layers than factors",
    ),
    "broadcasts": (
        "@nature('order-free', state='sums')\n"
        "def broadcasts(vectors):\n"
        "    return "
        "TaskVector({'w': sum(v.dense('w').mean().expand(5, 4) for v in vectors.values())})",
        rule.different_shapes_are_refused,
        "combined layers of different shapes",
    ),
    "first": (
        "@nature('order-free', state='one')\n"
        "def first(vectors): return next(iter(vectors.values()))",
        rule.order_does_not_matter_if_it_says_so,
        "says that it is order-free, but computed a different `.` for the tasks in another order",
    ),
    "by_number": (
        "@nature('order-free', state='n', layerwise=True)\n"
        "def by_number(vectors): return sum_of(vectors) * (1 / len(sum_of(vectors).entries))",
        rule.a_layer_depends_on_itself_if_it_says_so,
        "says that it is layerwise, but computed a different `.` without the other layers",
    ),
}
RULE_HEAD = """
import torch
from perdure import LowRank, TaskVector
from perdure.merging.rule import nature
def sum_of(vectors):
    first, *others = vectors.values()
    for other in others:
        first = first + other
    return first
"""


def method_file(folder: Path, name: str) -> str:
    path = folder / f"{name}.py"
    path.write_text(f"{HEAD}{METHODS[name][0]}\n")
    return str(path)


def rule_file(folder: Path, name: str) -> str:
    path = folder / f"{name}.py"
    path.write_text(f"{RULE_HEAD}{RULES[name][0]}\n")
    return str(path)


@pytest.mark.parametrize("name", METHODS)
def test_a_broken_method_fails_its_check(name, tmp_path):
    _, check, message = METHODS[name]
    subject = MethodUnderTest(name, find("method", method_file(tmp_path, name)), tmp_path / "runs")
    with pytest.raises(CheckFailed, match=message) as caught:
        check(subject)
    assert "\n" not in str(caught.value) and str(caught.value).endswith(".")


@pytest.mark.parametrize("name", RULES)
def test_a_broken_rule_fails_its_check(name, tmp_path):
    _, check, message = RULES[name]
    with pytest.raises(CheckFailed, match=message) as caught:
        check(RuleUnderTest(name, find("rule", rule_file(tmp_path, name))))
    assert "\n" not in str(caught.value) and str(caught.value).endswith(".")


def test_every_check_finds_something():
    promised = {*method.OF_ALL, *method.OF_TRAINED, *method.OF_FROZEN, *rule.CHECKS}
    assert promised == {check for _, check, _ in [*METHODS.values(), *RULES.values()]}
    assert len({check.__doc__ for check in promised}) == len(promised)
    assert all(check.__doc__.endswith(".") and "\n" not in check.__doc__ for check in promised)


# -- the command


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("def x(", "is not Python: '(' was never closed"),
        (
            "import nothing_of_the_kind",
            "line 1: ModuleNotFoundError: No module named 'nothing_of_the_kind'.",
        ),
        (
            "class Lone: ...",
            "must define one class derived from `perdure.Method`, or a function `broken`",
        ),
        (f"{HEAD}    strength: float", "method `{path}` needs `strength`."),
        (
            "class Lone:\n    def begin(self, backbone, task): ...",
            "is not derived from `perdure.Method`",
        ),
    ],
)
def test_a_file_that_cannot_be_loaded_is_a_failed_check(text, reason, tmp_path, perdure):
    path = tmp_path / "broken.py"
    path.write_text(text)
    status, out, err = perdure("check", path)
    assert (status, err) == (1, f"Error: `{path}` fails 1 of 1 checks.\n")
    verdict, said = out.splitlines()
    assert verdict == f"failed  {suite.LOADED}" and reason.format(path=path) in said


def test_a_method_of_a_file(tmp_path, perdure):
    path = method_file(tmp_path, "many_losses")
    status, out, err = perdure("check", path, "--json")
    outcomes = json.loads(out)
    count = 1 + len(method.OF_ALL) + len(method.OF_TRAINED) + 2 * len(method.OF_LANGUAGE)
    failures = [outcome["reason"] for outcome in outcomes if not outcome["passed"]]
    assert status == 1 and err == f"Error: `{path}` fails {len(failures)} of {count} checks.\n"
    assert len(outcomes) == count and len(failures) == count - 5
    assert all(reason and "Traceback" not in reason and "\n" not in reason for reason in failures)
    isolates = method.what_it_isolates_is_learned_alone.__doc__  # it does not say so
    assert [outcome["promise"] for outcome in outcomes if not outcome["reason"]] == [
        suite.LOADED,
        method.hooks_take_what_the_loop_gives.__doc__,
        *(f"{where}{isolates}" for where in suite.FAMILIES.values()),
    ]


def test_a_rule_of_a_file_and_debug(tmp_path, perdure):
    path = rule_file(tmp_path, "dice")
    status, out, err = perdure("check", path)
    assert status == 1 and err == f"Error: `{path}` fails 2 of {1 + len(rule.CHECKS)} checks.\n"
    assert out.count("passed  ") == len(rule.CHECKS) - 1 and "Traceback" not in out
    failure = f"failed  {rule.the_same_again.__doc__}\n        `{path}` computed a different `w`"
    assert failure in out
    _, _, err = perdure("check", path, "--debug")
    assert (
        err.count("CheckFailed: ") == 3
        and "ExceptionGroup: checks" in err
        and "in the_same_again" in err
    )


def test_what_is_there_passes(perdure, tmp_path):
    status, out, err = perdure("check", "task_arithmetic", "--set", "scale=0.3")
    assert (status, err) == (0, "") and out.count("passed  ") == len(out.splitlines()) == 1 + len(
        rule.CHECKS
    )
    status, out, err = perdure("check", "ncm", "--json")
    assert (status, err) == (0, "") and all(outcome["passed"] for outcome in json.loads(out))


def test_what_is_not_there(perdure):
    with pytest.raises(
        UnknownName, match="No method or rule named `isolatd`. Did you mean `isolated`?"
    ):
        list(suite.outcomes("isolatd"))
    assert perdure("check", "nowhere.py") == (1, "", "Error: There is no file `nowhere.py`.\n")
    status, out, err = perdure("check", "ties", "--set", "densty=0.3")
    assert (
        status == 1 and "No setting of rule `ties` named `densty`. Did you mean `density`?" in out
    )
