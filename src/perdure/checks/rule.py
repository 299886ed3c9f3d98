"""The checks that every rule must pass; a check raises `CheckFailed` if the rule fails it.

A check takes a `RuleUnderTest`; the docstring of the check is the promise that it checks,
in one sentence. The checks combine small random task vectors. The second and the third
lack a layer, because tasks may change different layers.
"""

import inspect
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeGuard, get_args

import torch
from torch import Tensor

from perdure.errors import CheckFailed, InputError
from perdure.merging.rule import KEPT, Nature, Order, nature_of
from perdure.models.mixture import Mixture
from perdure.vectors.task_vector import Deferred, Entry, LowRank, TaskVector
from perdure.vectors.task_vector import shapes as shapes_of

TASKS = "abc"
Vectors = dict[str, TaskVector]


@dataclass(frozen=True)
class Case:
    """The sizes, the dtype and the seed of random task vectors.

    The task vectors have two matrices, `w` and `u`, and a bias `b`.
    """

    out: int = 5
    width: int = 4
    rank: int = 2
    seed: int = 0
    dtype: torch.dtype = torch.float64


CASES = (
    Case(),
    Case(out=2, width=6, rank=3, seed=1),  # factors of a higher rank than the matrix can have
    Case(out=6, width=2, rank=1, seed=2),
    Case(out=3, width=3, rank=2, seed=3, dtype=torch.float32),
)


@dataclass
class RuleUnderTest:
    """A rule under test, with its settings and the task vectors to combine.

    Parameters
    ----------
    name
        The name of the rule in messages.
    function
        The function of the rule.
    options
        The settings of the rule.
    cases
        The sizes of the task vectors to combine.
    """

    name: str
    function: Callable[..., object]
    options: Mapping[str, object] = field(default_factory=dict)
    cases: Sequence[Case] = CASES

    @property
    def nature(self) -> Nature:
        """What the rule declares with `@nature`."""
        if not hasattr(self.function, "nature"):
            raise self.failed("does not say what it is: declare it with `@nature(order, state=…)`.")
        try:
            return nature_of(self.function)
        except InputError as error:
            raise self.failed(f"has an invalid declaration. {error}") from error

    def vectors(self, case: Case) -> Vectors:
        """Return the random task vectors of a case, with low-rank matrices."""
        generator = torch.Generator().manual_seed(case.seed)

        def random(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator).to(case.dtype)

        made: Vectors = {}
        for number, task in enumerate(TASKS[: self.nature.most]):
            entries: dict[str, Entry] = {}
            # All entries are drawn before some are deleted, so that later tasks do not change.
            for layer in "wu":
                B = random(case.out, case.rank)
                A = random(case.rank, case.width)
                entries[layer] = LowRank(B, A)
            entries["b"] = random(case.out)
            if number == 1:
                del entries["u"]
            # A bias is not a low-rank matrix.
            if number == 2 or self.nature.low_rank:
                del entries["b"]
            made[task] = TaskVector(entries)
        return made

    def combine(self, vectors: Vectors) -> list[TaskVector]:
        """Apply the rule; return a list of one task vector, or of one per task if it is routed."""
        options = dict(self.options)
        if "inputs" in self.nature.needs:
            options["inputs"] = {task: covariances(task, vectors) for task in vectors}
        merged = self.function(vectors, **options)
        return self._as_list(merged, vectors)

    def _as_list(self, merged: object, vectors: Vectors) -> list[TaskVector]:
        if isinstance(merged, TaskVector):
            return [merged]
        # The experts of a mixture are the task vectors that it applies.
        by_task = merged.experts if isinstance(merged, Mixture) else merged
        if not _are_task_vectors(by_task):
            kind = type(by_task).__name__
            raise self.failed(
                f"returned a {kind}: return a `TaskVector` or, "
                "if it is routed, one for each task or a `Mixture`."
            )
        if set(by_task) != set(vectors):
            raise self.failed(
                f"returned task vectors of {sorted(by_task)} for the tasks {sorted(vectors)}."
            )
        return list(by_task.values())

    def failed(self, problem: str) -> CheckFailed:
        """Return an error whose message starts with the name of the rule."""
        return CheckFailed(f"`{self.name}` {problem}")


Check = Callable[[RuleUnderTest], None]


def _are_task_vectors(merged: object) -> TypeGuard[Mapping[str, TaskVector]]:
    if not isinstance(merged, Mapping):
        return False
    return all(isinstance(value, TaskVector) for value in merged.values())


def covariances(task: str, vectors: Vectors) -> dict[str, Tensor]:
    """Return the covariance of random inputs for each layer that is a matrix."""
    made: dict[str, Tensor] = {}
    for vector in vectors.values():
        for name, entry in vector.items():
            if len(entry.shape) != 2:
                continue
            # The seed is a checksum, not `hash`, which differs from process to process.
            seed = zlib.crc32(f"{task} {name}".encode())
            width = entry.shape[1]
            x = torch.randn(
                3 * width,
                width,
                generator=torch.Generator().manual_seed(seed),
                dtype=torch.float64,
            )
            # With three times as many inputs as dimensions, the covariance can be inverted.
            made[name] = x.T @ x / len(x)
    return made


def full(vectors: Vectors, kind: Callable[[Tensor], Entry] = lambda value: value) -> Vectors:
    """Return the task vectors with full tensors as entries, each of them converted by `kind`."""
    made: Vectors = {}
    for task, vector in vectors.items():
        entries: dict[str, Entry] = {}
        for name in vector.entries:
            entries[name] = kind(vector.dense(name))
        made[task] = TaskVector(entries)
    return made


def _different(
    expected: Sequence[TaskVector], actual: Sequence[TaskVector], dtype: torch.dtype
) -> str:
    """Return the name of the first layer in which two results differ; "" if there is none.

    Rounding errors do not count as a difference.
    """
    if len(expected) != len(actual):
        return "the number of task vectors"
    for left, right in zip(expected, actual, strict=True):
        only_in_one = set(left.entries) ^ set(right.entries)
        if only_in_one:
            return min(only_in_one)
        for name in left.entries:
            if not _close(left.dense(name), right.dense(name), dtype):
                return name
    return ""


def _close(left: Tensor, right: Tensor, dtype: torch.dtype) -> bool:
    if left.shape != right.shape:
        return False
    # The dtype of the case rather than that of the result, which may be wrong.
    exact = dtype == torch.float64
    return torch.allclose(
        left,
        right,
        rtol=1e-6 if exact else 1e-3,
        atol=1e-8 if exact else 1e-4,
    )


# -- the interface


def it_takes_vectors_and_settings(rule: RuleUnderTest) -> None:
    """The rule takes the task vectors as its first argument, and its settings by keyword."""
    parameters = list(inspect.signature(rule.function).parameters.values())
    if not parameters or parameters[0].kind is parameters[0].KEYWORD_ONLY:
        raise rule.failed("takes no task vectors: make `vectors` its first parameter.")
    for parameter in parameters[1:]:
        # Statistics that adapters store for a rule, such as `inputs`, are not settings.
        is_setting = parameter.name not in KEPT
        if is_setting and parameter.kind is not parameter.KEYWORD_ONLY:
            raise rule.failed(
                f"has a setting `{parameter.name}` that is not keyword-only: put `*` before it."
            )


def it_declares_what_it_is(rule: RuleUnderTest) -> None:
    """The rule declares in `@nature` whether order matters and what to store for the next task."""
    order = rule.nature.order
    if order not in get_args(Order):
        known = ", ".join(get_args(Order))
        raise rule.failed(f"says that it is `{order}`, but must be one of {known}.")
    if not rule.nature.state:
        raise rule.failed(
            "does not say what has to be stored for the next task: give `@nature` a `state`."
        )
    for case in rule.cases:
        vectors = rule.vectors(case)
        for merged in _after_each_task(rule, vectors):
            if len(merged) > 1 and order != "routed":
                raise rule.failed(
                    f"returned {len(merged)} task vectors, but says that it is `{order}`."
                )


def _after_each_task(rule: RuleUnderTest, vectors: Vectors) -> Iterator[list[TaskVector]]:
    """Combine the first task, then the first two, and so on, as a run does after each task."""
    learned: Vectors = {}
    for task, vector in vectors.items():
        learned[task] = vector
        yield rule.combine(dict(learned))


# -- what comes out


def shapes_and_dtypes_are_kept(rule: RuleUnderTest) -> None:
    """Each combined layer has the right shape and dtype and is finite, for any number of tasks."""
    for case in rule.cases:
        for vectors in _kinds(rule, case):
            shapes = shapes_of(vectors)
            for merged in _after_each_task(rule, vectors):
                for vector in merged:
                    _check_entries(rule, vector, shapes, case.dtype)


def _kinds(rule: RuleUnderTest, case: Case) -> list[Vectors]:
    """Return the task vectors of a case as factors, and as full tensors if the rule takes them."""
    vectors = rule.vectors(case)
    if rule.nature.low_rank:
        return [vectors]
    return [vectors, full(vectors)]


def _check_entries(
    rule: RuleUnderTest,
    vector: TaskVector,
    shapes: Mapping[str, torch.Size],
    dtype: torch.dtype,
) -> None:
    for name, entry in vector.items():
        if name not in shapes:
            raise rule.failed(f"returned a layer `{name}` that no task changes.")
        value = vector.dense(name)
        expected = tuple(shapes[name])
        # A deferred entry declares its shape before it is computed; both are checked.
        for shape in (tuple(entry.shape), tuple(value.shape)):
            if shape != expected:
                raise rule.failed(f"returned `{name}` with the shape {shape}, not {expected}.")
        if value.dtype != dtype:
            types = f"{value.dtype} for task vectors of {dtype}"
            raise rule.failed(f"returned `{name}` as {types}.")
        if not value.isfinite().all():
            raise rule.failed(f"returned numbers that are infinite or undefined for `{name}`.")


def task_vectors_are_left_alone(rule: RuleUnderTest) -> None:
    """The rule does not change the task vectors that it is given."""
    for case in rule.cases:
        for vectors in _kinds(rule, case):
            before = _copies(vectors)
            for merged in rule.combine(vectors):
                # Deferred entries are computed here, and may change the task vectors only now.
                for name in merged.entries:
                    merged.dense(name)
            for (task, name), value in before.items():
                vector = vectors[task]
                if name not in vector or not torch.equal(vector.dense(name), value):
                    raise rule.failed(
                        f"changed `{name}` of the task vector of `{task}`: make a new tensor."
                    )


def _copies(vectors: Vectors) -> dict[tuple[str, str], Tensor]:
    """Return a copy of each layer of each task, by the names of the task and the layer."""
    copies: dict[tuple[str, str], Tensor] = {}
    for task, vector in vectors.items():
        for name in vector.entries:
            copies[task, name] = vector.dense(name).clone()
    return copies


def the_same_again(rule: RuleUnderTest) -> None:
    """Combining the same task vectors twice gives the same result, to the last bit."""
    for case in rule.cases:
        vectors = rule.vectors(case)
        first = rule.combine(vectors)
        second = rule.combine(vectors)
        for left, right in zip(first, second, strict=True):
            for name in left.entries:
                # Exactly equal, because a resumed run must produce the same bytes.
                if not torch.equal(left.dense(name), right.dense(name)):
                    raise rule.failed(
                        f"computed a different `{name}` when it was called again: "
                        "seed its random numbers."
                    )


def factors_and_full_tensors_give_the_same(rule: RuleUnderTest) -> None:
    """The result is the same for layers given as factors, full tensors or deferred tensors."""
    if rule.nature.low_rank:
        return
    for case in rule.cases:
        vectors = rule.vectors(case)
        expected = rule.combine(vectors)
        in_full = full(vectors)
        first = TASKS[0]
        kinds: dict[str, Vectors] = {
            "full": in_full,
            "deferred": full(vectors, lambda value: Deferred(value.shape, lambda: value)),
            "mixed": {**vectors, first: in_full[first]},
        }
        for kind, others in kinds.items():
            name = _different(rule.combine(others), expected, case.dtype)
            if name:
                raise rule.failed(f"computed a different `{name}` for {kind} layers than factors.")


def different_shapes_are_refused(rule: RuleUnderTest) -> None:
    """A layer of different shapes raises an `InputError` that names it, or is not combined."""
    vectors = rule.vectors(Case())
    if len(vectors) < 2:
        return
    wrong = LowRank(
        torch.ones(5, 2).double(),
        torch.ones(2, 3).double(),
    )
    vectors["b"] = TaskVector({"w": wrong})
    try:
        merged = [vector.dense("w") for vector in rule.combine(vectors)]
    except InputError as error:
        if "`w`" not in str(error):
            raise rule.failed(
                f"rejected a layer of different shapes, but did not name it: {error}"
            ) from error
        return
    # Without an error, each result must be the layer of a single task.
    given: list[Tensor] = []
    for vector in vectors.values():
        given.append(vector.dense("w"))
    for value in merged:
        # This is true of a rule that picks one of the tasks, such as `last`.
        if not any(_identical(value, layer) for layer in given):
            raise rule.failed(
                "combined layers of different shapes: "
                "raise an `InputError` for them, as `shapes` does."
            )


def _identical(left: Tensor, right: Tensor) -> bool:
    return left.shape == right.shape and torch.equal(left, right)


# -- what a rule declares


def order_does_not_matter_if_it_says_so(rule: RuleUnderTest) -> None:
    """If the rule declares that it is order-free, the order of the tasks does not matter."""
    if rule.nature.order != "order-free":
        return
    for case in rule.cases:
        vectors = rule.vectors(case)
        backwards = dict(reversed(vectors.items()))
        name = _different(
            rule.combine(vectors),
            rule.combine(backwards),
            case.dtype,
        )
        if name:
            raise rule.failed(
                f"says that it is order-free, but computed a different `{name}` "
                "for the tasks in another order."
            )


def a_layer_depends_on_itself_if_it_says_so(rule: RuleUnderTest) -> None:
    """If the rule declares that it is layerwise, it combines each layer independently."""
    if not rule.nature.layerwise:
        return
    for case in rule.cases:
        vectors = rule.vectors(case)
        (whole,) = rule.combine(vectors)
        for layer in whole.entries:
            alone: Vectors = {}
            for task, vector in vectors.items():
                # A task that lacks the layer still counts, as an empty vector.
                alone[task] = TaskVector({layer: vector[layer]} if layer in vector else {})
            merged = rule.combine(alone)
            expected = TaskVector({layer: whole[layer]})
            if _different(merged, [expected], case.dtype):
                raise rule.failed(
                    f"says that it is layerwise, but computed a different `{layer}` "
                    "without the other layers."
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
