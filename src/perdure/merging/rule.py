"""The interface of a rule, which combines task vectors into one.

A rule is one function in `rules/`, named as its file. It takes `vectors`, a dict of task vectors by
task in the order of learning, and its settings by keyword. It returns a `TaskVector`, or something
that acts differently for different inputs: a `dict` with a task vector for each task, or a
`Mixture`. Its declaration (`@nature`) is trusted: no rule is run to check it.

Settings are checked by their types, as those of methods are: `Annotated[float, Gt(0), Le(1)]`
is a number in (0, 1].
"""

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal, TypeVar, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt

from perdure import registry
from perdure.errors import InputError

Order = Literal["order-free", "sequential", "routed"]
# The statistics that a rule can need besides task vectors, with a description for errors.
# Training keeps them where `keep_NAME` says so.
KEPT = {"inputs": "statistics of the layers' inputs"}
F = TypeVar("F", bound=Callable[..., object])


@dataclass(frozen=True, kw_only=True)
class Nature:
    """The declaration of a rule.

    Attributes
    ----------
    order
        `order-free`: the order of the tasks does not matter; `sequential`: it does; `routed`: the
        task vector that acts depends on the input.
    state
        The state that is kept for the next task, and how it grows with the number n of tasks.
    needs
        The things besides task vectors that the rule needs, among those that adapters keep
        (`Adapter.kept`). Each is passed to the parameter of that name, by task and layer.
    low_rank
        Whether it takes only low-rank changes, as LoRA makes them.
    layerwise
        Whether each layer of the result depends on that layer alone, so that a model can be merged
        one layer at a time (unless its `scale` is a mapping, which may treat depths differently).
    most
        The largest number of tasks that it can combine, if that is limited.
    check
        A function of some settings, by name, that raises `InputError` if they are incompatible.
    """

    order: Order = "sequential"
    state: str = "n task vectors"
    needs: Sequence[str] = ()
    low_rank: bool = False
    layerwise: bool = False
    most: int | None = None
    check: Callable[..., None] | None = None


def nature(
    order: Order,
    *,
    state: str,
    needs: Sequence[str] = (),
    low_rank: bool = False,
    layerwise: bool = False,
    most: int | None = None,
    check: Callable[..., None] | None = None,
) -> Callable[[F], F]:
    """Declare a rule's properties, as `Nature` explains; each call then checks its settings.

    Examples
    --------
    >>> @nature("order-free", state="one task vector")
    ... def mine(vectors, *, share: Annotated[float, Gt(0), Le(1)] = 0.5): ...
    >>> nature_of(mine).state
    'one task vector'
    >>> mine({}, share=1.5)
    Traceback (most recent call last):
    perdure.errors.InputError: `share` must be a number in (0, 1], got `1.5`.
    """
    declared = Nature(
        order=order,
        state=state,
        needs=needs,
        low_rank=low_rank,
        layerwise=layerwise,
        most=most,
        check=check,
    )

    def declare(rule: F) -> F:
        @functools.wraps(rule)
        def checked(*given: object, **settings: object) -> object:
            check_settings(checked, settings)
            return rule(*given, **settings)

        # `wraps` gives `checked` the signature of the rule, from which the registry reads the
        # settings. pyright knows neither that nor attributes of functions.
        checked.nature = declared  # pyright: ignore[reportAttributeAccessIssue]
        return checked  # pyright: ignore[reportReturnType]

    return declare


def nature_of(rule: Callable[..., object]) -> Nature:
    """Return the declaration of a rule; by default it is sequential and takes task vectors alone.

    Raises
    ------
    InputError
        The rule takes something that it does not declare, or that adapters do not keep.
    """
    declared = getattr(rule, "nature", None) or Nature()
    parameters = inspect.signature(rule).parameters.values()
    taken = [
        parameter.name
        for parameter in parameters
        if parameter.kind is not inspect.Parameter.KEYWORD_ONLY
    ]
    taken = taken[1:]  # the first are the task vectors
    is_kept = KEPT.keys() >= set(taken)
    if taken != list(declared.needs) or not is_kept:
        raise InputError(
            f"The rule `{rule.__name__}` takes {taken} besides task vectors, but declares that it "
            f"needs {list(declared.needs)}: write `@nature(…, needs={taken})`. "
            f"A rule can need {list(KEPT)}."
        )
    return declared


def check_settings(rule: Callable[..., object], given: Mapping[str, object]) -> None:
    """Check the settings of a rule by the types of its parameters, and with each other.

    Raises
    ------
    InputError
        A setting does not have its type, or settings are incompatible.
    """
    parameters = registry.options(rule)
    for name, value in given.items():
        if name in parameters:
            _check_setting(name, value, parameters[name].annotation)
    # Settings are checked with each other last, when the type of each is right, and together
    # with the defaults of those that are not given.
    check = nature_of(rule).check
    if check:
        settings: dict[str, object] = {}
        for name, parameter in parameters.items():
            settings[name] = parameter.default
        settings.update(given)
        taken = inspect.signature(check).parameters
        check(**{name: settings[name] for name in taken})


def _check_setting(name: str, value: object, kind: object) -> None:
    # Other types, such as mappings, pass: pydantic checks them where a `Rule` is made, and a
    # rule that takes several forms checks them itself.
    origin = get_origin(kind)
    if origin is Literal:
        chosen(name, value, kind)
    elif origin is Annotated:
        number, *bounds = get_args(kind)
        if number in (int, float):
            bounded(name, value, _interval(bounds))
    elif kind is float:
        bounded(name, value, "(-inf, inf)")


def _interval(bounds: Sequence[object]) -> str:
    """Return the bounds of a number in interval notation."""
    low = "(-inf"
    high = "inf)"
    for bound in bounds:
        match bound:
            case Gt(gt=value):
                low = f"({value}"
            case Ge(ge=value):
                low = f"[{value}"
            case Lt(lt=value):
                high = f"{value})"
            case Le(le=value):
                high = f"{value}]"
    return f"{low}, {high}"


def bounded(name: str, value: object, interval: str) -> None:
    """Check that a setting is a number in an interval; messages use interval notation.

    Examples
    --------
    >>> bounded("alpha", 0.5, "[0, 1)")
    >>> bounded("alpha", 1, "[0, 1)")
    Traceback (most recent call last):
    perdure.errors.InputError: `alpha` must be a number in [0, 1), got `1`.

    Raises
    ------
    InputError
        The setting is not a number, or lies outside the interval.
    """
    low, high = map(float, interval[1:-1].split(","))
    inside = False
    if isinstance(value, int | float):
        # All comparisons are false for NaN, which is in no interval.
        inside = low < value < high
        if interval.startswith("["):
            inside |= value == low
        if interval.endswith("]"):
            inside |= value == high
    if not inside:
        raise InputError(f"`{name}` must be a number in {interval}, got `{value}`.")


def chosen(name: str, value: object, choices: object) -> None:
    """Check that a setting is one of the values of a `Literal`.

    Examples
    --------
    >>> chosen("how", "median", Literal["mean", "sum"])
    Traceback (most recent call last):
    perdure.errors.InputError: `how` must be one of 'mean', 'sum', got `median`.

    Raises
    ------
    InputError
        The setting is not one of them.
    """
    allowed = get_args(choices)
    if value not in allowed:
        listed = ", ".join(map(repr, allowed))
        raise InputError(f"`{name}` must be one of {listed}, got `{value}`.")
