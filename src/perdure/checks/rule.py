"""What every rule promises, each promise a function that raises `CheckFailed` where it is broken.

A check takes a `RuleUnderTest`; the first sentence of its docstring is the promise. They combine small random task
vectors, of which each but the first lacks a layer, as tasks do that change different layers.
"""

import inspect
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, get_args

import torch
from torch import Tensor

from perdure.errors import CheckFailed, InputError
from perdure.merging.rule import KEPT, Nature, Order, nature_of
from perdure.models.mixture import Mixture
from perdure.vectors.task_vector import Deferred, Entry, LowRank, TaskVector

TASKS = "abc"
Vectors = dict[str, TaskVector]


@dataclass(frozen=True)
class Case:
    """The size, the type and the seed of random task vectors: two matrices `w` and `u`, and a bias `b`."""

    out: int = 5
    width: int = 4
    rank: int = 2
    seed: int = 0
    dtype: torch.dtype = torch.float64


CASES = (
    Case(),
    Case(out=2, width=6, rank=3, seed=1),  # of a rank above that of the matrix
    Case(out=6, width=2, rank=1, seed=2),
    Case(out=3, width=3, rank=2, seed=3, dtype=torch.float32),
)


@dataclass
class RuleUnderTest:
    """A rule that is checked.

    Parameters
    ----------
    name
        Its name, for what is said of it.
    function
        The rule.
    options
        Its settings.
    cases
        The task vectors on which it is tried.
    """

    name: str
    function: Callable[..., Any]
    options: Mapping[str, Any] = field(default_factory=dict)
    cases: Sequence[Case] = CASES

    @property
    def nature(self) -> Nature:
        """What the rule declares of itself."""
        if not hasattr(self.function, "nature"):
            raise self.failed("does not say what it is: declare it with `@nature(order, state=…)`.")
        try:
            return nature_of(self.function)
        except InputError as error:
            raise self.failed(f"declares what is not so. {error}") from error

    def vectors(self, case: Case) -> Vectors:
        """Make the task vectors of a case: low-rank, but for the bias."""
        generator = torch.Generator().manual_seed(case.seed)

        def random(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator).to(case.dtype)

        made: Vectors = {}
        for number, task in enumerate(TASKS[: self.nature.most]):
            entries: dict[str, Entry] = {}
            for layer in "wu":
                entries[layer] = LowRank(random(case.out, case.rank), random(case.rank, case.width))
            entries["b"] = random(case.out)
            if number == 1:
                del entries["u"]
            if number == 2 or self.nature.low_rank:
                del entries["b"]
            made[task] = TaskVector(entries)
        return made

    def combine(self, vectors: Vectors) -> list[TaskVector]:
        """Return what the rule makes of task vectors: one, or of a routed rule one for each task."""
        options = dict(self.options)
        if "inputs" in self.nature.needs:
            options["inputs"] = {task: covariances(task, vectors) for task in vectors}
        return self._as_list(self.function(vectors, **options), vectors)

    def _as_list(self, merged: Any, vectors: Vectors) -> list[TaskVector]:
        if isinstance(merged, TaskVector):
            return [merged]
        merged = merged.experts if isinstance(merged, Mixture) else merged
        if not isinstance(merged, Mapping) or not all(
            isinstance(value, TaskVector) for value in merged.values()
        ):
            raise self.failed(
                f"returned a {type(merged).__name__}: return a `TaskVector`, or if it is routed one for each task or a "
                "`Mixture`."
            )
        if set(merged) != set(vectors):
            raise self.failed(
                f"returned task vectors of {sorted(merged)} for the tasks {sorted(vectors)}."
            )
        return list(merged.values())

    def failed(self, what: str) -> CheckFailed:
        """Return the error that says `what` is wrong with it."""
        return CheckFailed(f"`{self.name}` {what}")


Check = Callable[[RuleUnderTest], None]


def covariances(task: str, vectors: Vectors) -> dict[str, Tensor]:
    """Return the covariance of random inputs of each layer that is a matrix."""
    made = {}
    for vector in vectors.values():
        for name, entry in vector.items():
            if len(entry.shape) == 2:
                generator = torch.Generator().manual_seed(zlib.crc32(f"{task} {name}".encode()))
                width = entry.shape[1]
                x = torch.randn(3 * width, width, generator=generator, dtype=torch.float64)
                made[name] = x.T @ x / len(x)
    return made


def full(vectors: Vectors, kind: Callable[[Tensor], Entry] = lambda value: value) -> Vectors:
    """Return task vectors with full tensors as entries, or with what `kind` makes of them."""
    made: Vectors = {}
    for task, vector in vectors.items():
        made[task] = TaskVector({name: kind(vector.dense(name)) for name in vector.entries})
    return made


def _different(one: Sequence[TaskVector], other: Sequence[TaskVector], dtype: torch.dtype) -> str:
    """Return the first layer in which two results differ by more than rounding; empty where there is none."""
    rtol, atol = (1e-6, 1e-8) if dtype == torch.float64 else (1e-3, 1e-4)
    if len(one) != len(other):
        return "the number of task vectors"
    for left, right in zip(one, other, strict=True):
        if set(left.entries) != set(right.entries):
            return min(set(left.entries) ^ set(right.entries))
        for name in left.entries:
            a, b = left.dense(name), right.dense(name)
            if a.shape != b.shape or not torch.allclose(a, b, rtol=rtol, atol=atol):
                return name
    return ""


# -- the interface


def it_takes_vectors_and_settings(rule: RuleUnderTest) -> None:
    """It takes the task vectors, and its settings by keyword."""
    parameters = list(inspect.signature(rule.function).parameters.values())
    if not parameters or parameters[0].kind is parameters[0].KEYWORD_ONLY:
        raise rule.failed("takes no task vectors: its first parameter is `vectors`.")
    for parameter in parameters[1:]:
        if parameter.name not in KEPT and parameter.kind is not parameter.KEYWORD_ONLY:
            raise rule.failed(
                f"has a setting `{parameter.name}` that is not by keyword only: put `*` before it."
            )


def it_declares_what_it_is(rule: RuleUnderTest) -> None:
    """It declares with `@nature` whether the order matters, and what has to be kept for the next task."""
    if rule.nature.order not in get_args(Order):
        raise rule.failed(
            f"says that it is `{rule.nature.order}`: {', '.join(get_args(Order))} are known."
        )
    if not rule.nature.state:
        raise rule.failed(
            "does not say what has to be kept for the next task: give `@nature` a `state`."
        )
    for case in rule.cases:
        vectors = rule.vectors(case)
        for count, merged in _of_each_number(rule, vectors):
            if count > 1 and len(merged) > 1 and rule.nature.order != "routed":
                raise rule.failed(
                    f"returned {len(merged)} task vectors, but says that it is `{rule.nature.order}`."
                )


def _of_each_number(
    rule: RuleUnderTest, vectors: Vectors
) -> Iterator[tuple[int, list[TaskVector]]]:
    """Combine the first task, the first two and so on, as a run does after each task."""
    for count in range(1, len(vectors) + 1):
        yield count, rule.combine(dict(list(vectors.items())[:count]))


# -- what comes out


def shapes_and_dtypes_are_kept(rule: RuleUnderTest) -> None:
    """Of any number of tasks, each layer comes out with its shape and its type, and with finite numbers."""
    for case in rule.cases:
        given = rule.vectors(case)
        for vectors in (given,) if rule.nature.low_rank else (given, full(given)):
            shapes = {
                name: entry.shape for vector in vectors.values() for name, entry in vector.items()
            }
            for _, merged in _of_each_number(rule, vectors):
                for vector in merged:
                    _check_entries(rule, vector, shapes, case.dtype)


def _check_entries(
    rule: RuleUnderTest, vector: TaskVector, shapes: Mapping[str, Any], dtype: torch.dtype
) -> None:
    for name, entry in vector.items():
        if name not in shapes:
            raise rule.failed(f"returned a layer `{name}` that no task changes.")
        value = vector.dense(name)
        for shape in (entry.shape, value.shape):
            if tuple(shape) != tuple(shapes[name]):
                raise rule.failed(
                    f"returned `{name}` with the shape {tuple(shape)}, not {tuple(shapes[name])}."
                )
        if value.dtype != dtype:
            raise rule.failed(f"returned `{name}` as {value.dtype} for task vectors of {dtype}.")
        if not value.isfinite().all():
            raise rule.failed(f"returned numbers that are infinite or not defined for `{name}`.")


def task_vectors_are_left_alone(rule: RuleUnderTest) -> None:
    """It leaves the task vectors that it is given as they are."""
    for case in rule.cases:
        given = rule.vectors(case)
        for vectors in (given,) if rule.nature.low_rank else (given, full(given)):
            before = {
                task: {name: v.dense(name).clone() for name in v.entries}
                for task, v in vectors.items()
            }
            for merged in rule.combine(vectors):
                for name in merged.entries:
                    merged.dense(name)
            for task, entries in before.items():
                for name, value in entries.items():
                    if name not in vectors[task] or not torch.equal(
                        vectors[task].dense(name), value
                    ):
                        raise rule.failed(
                            f"changed `{name}` of the task vector of `{task}`: make a new tensor."
                        )


def the_same_again(rule: RuleUnderTest) -> None:
    """Of the same task vectors it makes the same again, to the last bit."""
    for case in rule.cases:
        vectors = rule.vectors(case)
        for one, other in zip(rule.combine(vectors), rule.combine(vectors), strict=True):
            for name in one.entries:
                if not torch.equal(one.dense(name), other.dense(name)):
                    raise rule.failed(
                        f"made another `{name}` when it was called again: seed its random numbers."
                    )


def factors_and_full_tensors_give_the_same(rule: RuleUnderTest) -> None:
    """Whether a layer is given in factors, in full, or made when it is asked for does not matter."""
    if rule.nature.low_rank:
        return
    for case in rule.cases:
        vectors = rule.vectors(case)
        dense, expected = full(vectors), rule.combine(vectors)
        mixed = {**vectors, TASKS[0]: dense[TASKS[0]]}
        deferred = full(vectors, lambda value: Deferred(value.shape, lambda: value))
        for kind, others in {
            "in full": dense,
            "made when asked for": deferred,
            "of both kinds": mixed,
        }.items():
            if name := _different(rule.combine(others), expected, case.dtype):
                raise rule.failed(f"made another `{name}` of layers {kind} than of factors.")


def different_shapes_are_refused(rule: RuleUnderTest) -> None:
    """A layer that has different shapes is refused with an `InputError` that names it, or is not combined."""
    vectors = rule.vectors(Case())
    if len(vectors) < 2:
        return
    vectors["b"] = TaskVector({"w": LowRank(torch.ones(5, 2).double(), torch.ones(2, 3).double())})
    try:
        merged = [vector.dense("w") for vector in rule.combine(vectors)]
    except InputError as error:
        if "`w`" not in str(error):
            raise rule.failed(
                f"refused a layer of different shapes, but did not name it: {error}"
            ) from error
        return
    given = [vector.dense("w") for vector in vectors.values()]
    for value in merged:
        if not any(value.shape == each.shape and torch.equal(value, each) for each in given):
            raise rule.failed(
                "combined layers of different shapes: refuse them with an `InputError` (`shapes` does)."
            )


# -- what a rule says of itself


def order_does_not_matter_if_it_says_so(rule: RuleUnderTest) -> None:
    """If it says that it is order-free, the order of the tasks does not matter."""
    if rule.nature.order != "order-free":
        return
    for case in rule.cases:
        vectors = rule.vectors(case)
        backwards = dict(reversed(vectors.items()))
        if name := _different(rule.combine(vectors), rule.combine(backwards), case.dtype):
            raise rule.failed(
                f"says that it is order-free, but made another `{name}` of the tasks in another order."
            )


def a_layer_depends_on_itself_if_it_says_so(rule: RuleUnderTest) -> None:
    """If it says that it is layerwise, what a layer becomes depends on that layer alone."""
    if not rule.nature.layerwise:
        return
    for case in rule.cases:
        vectors = rule.vectors(case)
        (whole,) = rule.combine(vectors)
        for layer in whole.entries:
            alone = {
                task: TaskVector({layer: v[layer]} if layer in v else {})
                for task, v in vectors.items()
            }
            (merged,) = rule.combine(alone)
            expected = TaskVector({layer: whole[layer]})
            if _different([merged], [expected], case.dtype):
                raise rule.failed(
                    f"says that it is layerwise, but made another `{layer}` without the other layers."
                )


CHECKS: tuple[Check, ...] = (
    it_takes_vectors_and_settings,
    it_declares_what_it_is,
    shapes_and_dtypes_are_kept,
    task_vectors_are_left_alone,
    the_same_again,
    factors_and_full_tensors_give_the_same,
    different_shapes_are_refused,
    order_does_not_matter_if_it_says_so,
    a_layer_depends_on_itself_if_it_says_so,
)
