"""The setting `order` of a sweep, whatever the stream itself calls it.

Benchmarks have an `order` of tasks (`standard_cl`) or an `order_seed` for their classes
(`split_mnist`); the user's own tables are in the order in which a recipe lists them.
"""

import random
from collections.abc import Mapping, Sequence
from pathlib import Path

from perdure import registry
from perdure.errors import InputError
from perdure.settings import named
from perdure.storage import files

Entry = Mapping[str, object]
"""An entry of a recipe's stream: the user's own table, or a benchmark."""


def in_order(stream: object, order: object) -> tuple[str, object]:
    """Return the setting, and its value, that put a recipe's stream into an order.

    Parameters
    ----------
    order
        The name of a benchmark's order; a number that shuffles (0 leaves own tables as
        they are written); or the names of all tasks.

    Raises
    ------
    InputError
        The stream cannot be put into this order.

    Examples
    --------
    >>> in_order("split_mnist", 1)
    ('stream.order_seed', 1)
    >>> in_order([{"data": "a.csv"}, {"data": "b.csv"}], ["b", "a"])
    ('stream', [{'data': 'b.csv'}, {'data': 'a.csv'}])
    """
    if isinstance(stream, list):
        return "stream", _of_tables(stream, order)
    name, _ = named(stream, "stream")
    settings = registry.options(registry.find("benchmark", name))
    is_seed = isinstance(order, int) and not isinstance(order, bool)
    if is_seed and "order_seed" in settings:
        return "stream.order_seed", order
    if not is_seed and "order" in settings:
        return "stream.order", order
    known = ", ".join(f"`{key}`" for key in ("order", "order_seed") if key in settings)
    raise InputError(
        f"`order` is {order!r}, but the stream `{name}` has {known or 'no setting for its order'}. "
        "Names of orders and tasks belong to `order`, whole numbers to `order_seed`."
    )


def _of_tables(entries: Sequence[Entry], order: object) -> list[Entry]:
    """Return the entries of the user's own stream in an order."""
    if isinstance(order, int) and not isinstance(order, bool):
        shuffled = list(entries)
        # order 0 is the one that the user wrote
        if order:
            random.Random(order).shuffle(shuffled)
        return shuffled
    by_name = {_name(entry): entry for entry in entries}
    names = order if isinstance(order, list) else [order]
    if sorted(map(str, names)) != sorted(by_name) or len(by_name) != len(entries):
        raise InputError(
            f"`order` is {files.plain(order)!r}, but must name each table of the stream once "
            f"({', '.join(by_name)}), or be a whole number, which shuffles them."
        )
    return [by_name[str(name)] for name in names]


def _name(entry: Entry) -> str:
    """Return the name of an entry's task, as far as the entry itself tells it."""
    source = entry.get("data")
    if isinstance(source, Mapping):
        source = source.get("train")
    return str(entry.get("name") or entry.get("benchmark") or Path(str(source)).stem)
