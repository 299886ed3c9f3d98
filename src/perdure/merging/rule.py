"""The interface of a rule: task vectors by task name, in the order in which they were learned, become one.

A rule is one function in `merging/`, named as its file. It takes `vectors: dict[str, TaskVector]` and its settings by
keyword, and returns a `TaskVector`, or what acts differently for different inputs: a task vector for each task (a
`dict`), or a `Mixture`. A parameter called `inputs` is given the kept statistics of the layers' inputs.
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, TypeVar, get_args

from perdure.errors import InputError

Order = Literal["order-free", "sequential", "routed"]
F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True)
class Nature:
    """What a rule says of itself.

    Attributes
    ----------
    order
        `order-free`: the order of the tasks does not matter; `sequential`: it does; `routed`: what acts depends on the
        input.
    state
        What has to be kept for the next task, and how it grows with the number n of tasks.
    layerwise
        Whether what a layer becomes depends on that layer alone, so that a model can be merged one layer at a time
        (unless its `scale` is a mapping, which may speak of depth).
    most
        How many tasks it can combine, if that is limited.
    """

    order: Order
    state: str
    layerwise: bool = False
    most: int | None = None


def nature(order: Order, *, state: str, layerwise: bool = False, most: int | None = None) -> Callable[[F], F]:
    """Declare what a rule is; `nature_of` reads it.

    Examples
    --------
    >>> @nature("order-free", state="one task vector")
    ... def mine(vectors): ...
    >>> nature_of(mine).state
    'one task vector'
    """

    def declare(rule: F) -> F:
        rule.nature = Nature(order, state, layerwise, most)  # pyright: ignore[reportFunctionMemberAccess]
        return rule

    return declare


def nature_of(rule: Callable[..., Any]) -> Nature | None:
    """What a rule declares, if it does."""
    return getattr(rule, "nature", None)


def takes_inputs(rule: Callable[..., Any]) -> bool:
    """Whether a rule takes statistics of the layers' inputs."""
    return "inputs" in inspect.signature(rule).parameters


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
        raise InputError(f"`{name}` must be one of {', '.join(map(repr, get_args(choices)))}, got `{value}`.")
