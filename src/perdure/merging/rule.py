"""The interface of a rule: task vectors by task name, in the order in which they were learned, become one.

A rule is one function in `rules/`, named as its file. It takes `vectors: dict[str, TaskVector]` and its settings by
keyword, and returns a `TaskVector`, or what acts differently for different inputs: a task vector for each task (a
`dict`), or a `Mixture`. What it says of itself (`@nature`) is believed: nothing is run to find it out.

Settings are checked by their types, as those of methods are: `Annotated[float, Gt(0), Le(1)]` is a number in (0, 1].
"""

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt

from perdure import registry
from perdure.errors import InputError

Order = Literal["order-free", "sequential", "routed"]
KEPT = {"inputs": "statistics of the layers' inputs"}
"""What a rule can need besides task vectors, and what it is. Training keeps it where `keep_NAME` says so."""
F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True, kw_only=True)
class Nature:
    """What a rule says of itself.

    Attributes
    ----------
    order
        `order-free`: the order of the tasks does not matter; `sequential`: it does; `routed`: what acts depends on the
        input.
    state
        What has to be kept for the next task, and how it grows with the number n of tasks.
    needs
        What it needs besides task vectors, of what adapters keep (`Adapter.kept`): each is given to the parameter of
        that name, by task and layer.
    low_rank
        Whether it takes low-rank changes only, as LoRA makes them.
    layerwise
        Whether what a layer becomes depends on that layer alone, so that a model can be merged one layer at a time
        (unless its `scale` is a mapping, which may speak of depth).
    most
        How many tasks it can combine, if that is limited.
    check
        Raises `InputError` if settings do not go together, which it takes by name.
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
    """Declare what a rule is, as `Nature` explains; at each call its settings are checked.

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
        def checked(*given: Any, **settings: Any) -> Any:
            check_settings(checked, settings)
            return rule(*given, **settings)

        checked.nature = declared  # pyright: ignore[reportAttributeAccessIssue]
        return checked  # pyright: ignore[reportReturnType]

    return declare


def nature_of(rule: Callable[..., Any]) -> Nature:
    """Return what a rule declares. One that declares nothing is sequential, and takes task vectors alone.

    Raises
    ------
    InputError
        It takes what it does not declare, or what adapters do not keep.
    """
    declared = getattr(rule, "nature", None) or Nature()
    parameters = inspect.signature(rule).parameters.values()
    taken = [each.name for each in parameters if each.kind is not inspect.Parameter.KEYWORD_ONLY][
        1:
    ]
    if taken != list(declared.needs) or not KEPT.keys() >= set(taken):
        raise InputError(
            f"The rule `{rule.__name__}` takes {taken} besides task vectors, but declares that it needs "
            f"{list(declared.needs)}: write `@nature(…, needs={taken})`. What can be had is {list(KEPT)}."
        )
    return declared


def check_settings(rule: Callable[..., Any], given: Mapping[str, Any]) -> None:
    """Check settings of a rule by the types of its parameters, and with each other.

    Raises
    ------
    InputError
        One is not what it may be, or they do not go together.
    """
    parameters = registry.options(rule)
    for name, value in given.items():
        if name in parameters:
            _check_setting(name, value, parameters[name].annotation)
    check = nature_of(rule).check
    if check:
        settings = {name: parameter.default for name, parameter in parameters.items()} | dict(given)
        check(**{name: settings[name] for name in inspect.signature(check).parameters})


def _check_setting(name: str, value: Any, kind: Any) -> None:
    if get_origin(kind) is Literal:
        chosen(name, value, kind)
    elif get_origin(kind) is Annotated and get_args(kind)[0] in (int, float):
        bounded(name, value, _interval(get_args(kind)[1:]))
    elif kind is float:
        bounded(name, value, "(-inf, inf)")


def _interval(bounds: Sequence[Any]) -> str:
    """Return the bounds of a number as mathematics writes them."""
    low, high = "(-inf", "inf)"
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


def bounded(name: str, value: float, interval: str) -> None:
    """Check that a setting is a number of an interval, written as in mathematics.

    Examples
    --------
    >>> bounded("alpha", 0.5, "[0, 1)")
    >>> bounded("alpha", 1, "[0, 1)")
    Traceback (most recent call last):
    perdure.errors.InputError: `alpha` must be a number in [0, 1), got `1`.

    Raises
    ------
    InputError
        It is not.
    """
    low, high = map(float, interval[1:-1].split(","))
    number = isinstance(value, int | float)
    above = number and (low <= value if interval[0] == "[" else low < value)
    below = number and (value <= high if interval[-1] == "]" else value < high)
    if not (above and below):
        raise InputError(f"`{name}` must be a number in {interval}, got `{value}`.")


def chosen(name: str, value: str, choices: Any) -> None:
    """Check that a setting is one of the values of a `Literal`.

    Examples
    --------
    >>> chosen("how", "median", Literal["mean", "sum"])
    Traceback (most recent call last):
    perdure.errors.InputError: `how` must be one of 'mean', 'sum', got `median`.

    Raises
    ------
    InputError
        It is not.
    """
    if value not in get_args(choices):
        raise InputError(
            f"`{name}` must be one of {', '.join(map(repr, get_args(choices)))}, got `{value}`."
        )
