"""Inputs without classes, from a table or a folder of images."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

from datasets import Dataset

from perdure.data.examples import Columns, from_tables
from perdure.data.image_folder import read_images
from perdure.data.images import image_column
from perdure.data.rows import Table
from perdure.errors import DataError


def read_inputs(
    data: str,
    kind: Literal["text", "image"],
    columns: Callable[[Sequence[str], str], tuple[str, ...]],
    *,
    encoding: str = "utf-8",
    delimiter: str | None = None,
) -> Dataset:
    """Read the inputs in a table, or the images in a folder.

    Parameters
    ----------
    data
        A CSV, TSV, JSON(-lines) or Parquet file, or a folder of images.
    columns
        A function that chooses the input columns of a table, from the names of all of its
        columns and the name of the table in messages.
    encoding, delimiter
        The encoding of a text file, and the separator between the cells of a CSV file.

    Raises
    ------
    DataError
        The file is missing or cannot be read, has no rows, or a cell has no input.

    Examples
    --------
    >>> path = Path(getfixture("tmp_path")) / "mail.csv"
    >>> _ = path.write_text("body\\nhello\\n")
    >>> read_inputs(str(path), "text", lambda names, table: tuple(names))["text"][:]
    ['hello']
    """
    if os.path.isdir(data):
        if kind == "text":
            raise DataError(f"`{data}` is a folder, not a table of texts. Give a file.")
        return read_images(data)
    table = Table.open(data, encoding=encoding, delimiter=delimiter)
    chosen = columns(table.columns, f"`{table.path}`")
    rows = from_tables([table], Columns(kind, chosen, label=None))
    return image_column(rows, "image", Path(data).name) if kind == "image" else rows
