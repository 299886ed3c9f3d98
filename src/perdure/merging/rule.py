"""The interface of a rule, which combines task vectors into one.

A rule is a function in `rules/`, named after its file. It takes `vectors`, a dict that
maps tasks to task vectors in the order they were learned, and its settings as keyword
arguments. It returns a `TaskVector`, or a result that depends on the input: a `dict` with
a task vector for each task, or a `Mixture`. The declaration of a rule (`@nature`) is
trusted; rules are not run to verify it.

As with methods, settings are checked against their type annotations. For example,
`Annotated[float, Gt(0), Le(1)]` is a number in (0, 1].
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
# The statistics that a rule can need in addition to task vectors, and how error messages
# describe them. Training saves them if `keep_NAME` is set.
KEPT = {"inputs": "statistics of the layers' inputs"}
F = TypeVar("F", bound=Callable[..., object])


@dataclass(frozen=True, kw_only=True)
class Nature:
    """The declared properties of a rule.

    Attributes
    ----------
    order
        `order-free`: the order of the tasks does not matter; `sequential`: it does;
        `routed`: the input decides which task vector is used.
    state
        The state to keep for the next task, and how it grows with the number n of tasks.
    needs
        The names of the statistics that the rule needs in addition to task vectors, out
        of those saved with adapters (`Adapter.kept`). Each is passed as the parameter of
        the same name, by task and layer.
    low_rank
        True if the rule accepts only low-rank changes, such as those of LoRA.
    layerwise
        True if each layer of the result depends only on the same layer of the inputs,
        which allows merging a model layer by layer (unless `scale` is a mapping, which
        may depend on the depth of a layer).
    most
        The largest number of tasks that the rule can combine, or None if there is no limit.
    check
        A function that takes some of the settings by name, and raises `InputError` if
        their combination is invalid.
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
    """Declare the properties of a rule (see `Nature`) and check its settings on each call.

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

        # `wraps` copies the rule's signature, from which the registry reads the settings.
        # pyright does not know this, and does not support function attributes.
        checked.nature = declared  # pyright: ignore[reportAttributeAccessIssue]
        return checked  # pyright: ignore[reportReturnType]

    return declare


def nature_of(rule: Callable[..., object]) -> Nature:
    """Return a rule's declaration, or the defaults of `Nature` if it has none.

    Raises
    ------
    InputError
        The rule takes statistics that it does not declare in `needs` (or the reverse), or
        that are not saved with adapters.
    """
    declared = getattr(rule, "nature", None) or Nature()
    parameters = inspect.signature(rule).parameters.values()
    taken = [
        parameter.name
        for parameter in parameters
        if parameter.kind is not inspect.Parameter.KEYWORD_ONLY
    ]
    taken = taken[1:]  # the first parameter is the task vectors
    is_kept = KEPT.keys() >= set(taken)
    if taken != list(declared.needs) or not is_kept:
        raise InputError(
            f"The rule `{rule.__name__}` takes {taken} in addition to task vectors, but declares "
            f"that it needs {list(declared.needs)}: write `@nature(…, needs={taken})`. "
            f"The available statistics are {list(KEPT)}."
        )
    return declared


def check_settings(rule: Callable[..., object], given: Mapping[str, object]) -> None:
    """Check each setting of a rule against its type annotation, then check their combination.

    Raises
    ------
    InputError
        A setting has the wrong type or value, or the combination of settings is invalid.
    """
    parameters = registry.options(rule)
    for name, value in given.items():
        if name in parameters:
            _check_setting(name, value, parameters[name].annotation)
    # Check the combination last, when all types are valid, and with defaults filled in.
    check = nature_of(rule).check
    if check:
        settings: dict[str, object] = {}
        for name, parameter in parameters.items():
            settings[name] = parameter.default
        settings.update(given)
        taken = inspect.signature(check).parameters
        check(**{name: settings[name] for name in taken})


def _check_setting(name: str, value: object, kind: object) -> None:
    # Skip other types, such as mappings. pydantic checks them when a `Rule` is created,
    # and a rule that accepts several types checks them itself.
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
    """Return bounds in interval notation, such as "(0, 1]"."""
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
    """Check that a setting is a number in an interval such as "[0, 1)".

    Examples
    --------
    >>> bounded("alpha", 0.5, "[0, 1)")
    >>> bounded("alpha", 1, "[0, 1)")
    Traceback (most recent call last):
    perdure.errors.InputError: `alpha` must be a number in [0, 1), got `1`.

    Raises
    ------
    InputError
        The setting is not a number, or is outside the interval.
    """
    low, high = map(float, interval[1:-1].split(","))
    inside = False
    if isinstance(value, int | float):
        # NaN is in no interval, because all comparisons with it are false.
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
        The setting is not one of these values.
    """
    allowed = get_args(choices)
    if value not in allowed:
        listed = ", ".join(map(repr, allowed))
        raise InputError(f"`{name}` must be one of {listed}, got `{value}`.")
