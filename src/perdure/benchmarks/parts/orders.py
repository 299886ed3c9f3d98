"""The order of a benchmark's tasks: one that has a name, or a list of tasks."""

from collections.abc import Mapping, Sequence

from perdure.errors import UnknownName


def task_names(order: str | Sequence[str], orders: Mapping[str, str]) -> list[str]:
    """Return the names of the tasks in an order.

    Parameters
    ----------
    order
        The name of an order, or the names of the tasks themselves.
    orders
        The tasks of each order, separated by spaces.

    Raises
    ------
    UnknownName
        There is no such order.
    """
    if not isinstance(order, str):
        return list(order)
    if order not in orders:
        raise UnknownName("order", order, orders)
    return orders[order].split()
