"""The interface of a rule: task vectors by task name, in the order in which they were learned, become one.

A rule is one function in `merging/`, named as its file. It takes `vectors: dict[str, TaskVector]` and its settings by
keyword, and returns a `TaskVector`, or what acts differently for different inputs: a task vector for each task (a
`dict`), or a `Mixture`. A parameter called `inputs` is given the kept statistics of the layers' inputs.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

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
    """

    order: Order
    state: str


def nature(order: Order, *, state: str) -> Callable[[F], F]:
    """Declare what a rule is; `nature_of` reads it.

    Examples
    --------
    >>> @nature("order-free", state="one task vector")
    ... def mine(vectors): ...
    >>> nature_of(mine).state
    'one task vector'
    """

    def declare(rule: F) -> F:
        rule.nature = Nature(order, state)  # pyright: ignore[reportFunctionMemberAccess]
        return rule

    return declare


def nature_of(rule: Callable[..., Any]) -> Nature | None:
    """What a rule declares, if it does."""
    return getattr(rule, "nature", None)
