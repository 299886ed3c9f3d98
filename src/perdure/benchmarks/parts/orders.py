"""The order of a benchmark's tasks, given by name or as a list of tasks."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from perdure.errors import InputError, UnknownName

F = TypeVar("F", bound=Callable[..., object])


@dataclass(frozen=True)
class Orders:
    """The tasks of a benchmark, as far as they are known without its data.

    Attributes
    ----------
    named
        The names of the tasks in each order, separated by spaces. Together, the orders
        name every task of the benchmark.
    classes
        The class names of each task; empty if the tasks are answered with free text.
    """

    named: Mapping[str, str]
    classes: Mapping[str, tuple[str, ...]]

    @property
    def tasks(self) -> frozenset[str]:
        """The names of all tasks of the benchmark."""
        return frozenset(" ".join(self.named.values()).split())


def ordered(
    orders: Mapping[str, str], classes: Mapping[str, tuple[str, ...]] | None = None
) -> Callable[[F], F]:
    """Declare the task orders of a benchmark, so that a dry run does not need its data."""

    def declare(benchmark: F) -> F:
        # pyright does not know attributes of functions
        benchmark.orders = Orders(orders, classes or {})  # pyright: ignore[reportFunctionMemberAccess, reportAttributeAccessIssue]
        return benchmark

    return declare


def task_names(
    order: str | Sequence[str], orders: Mapping[str, str], known: Collection[str]
) -> list[str]:
    """Return the names of the tasks in an order.

    Parameters
    ----------
    order
        The name of an order, or the names of the tasks themselves.
    orders
        The tasks of each order, separated by spaces.
    known
        All tasks there are, in the benchmark or in the user's folder. Give them, so that a
        wrong name is found before anything is read or downloaded.

    Raises
    ------
    UnknownName
        There is no such order, or no such task.
    InputError
        A task is not named by a string, or is named twice.
    """
    if isinstance(order, str):
        if order not in orders:
            raise UnknownName("order", order, orders)
        names = orders[order].split()
    else:
        names = list(order)
    for name in names:
        if not isinstance(name, str):
            raise InputError(f"`order` names tasks by strings, got `{name!r}` in {names}.")
        if names.count(name) > 1:
            raise InputError(f"`order` names task `{name}` twice. Leave one out.")
        if name not in known:
            raise UnknownName("task", name, known)
    return names
