"""Rows of tables as examples: the inputs under one name, the classes as text.

Both ways to read data end in the same columns: `text`, or `text` and `text_pair`, or `image`; `label`
with the name of the class; `task`, where a column names each row's task; and `row`, the number of the
row in its file, for messages.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from datasets import ClassLabel, Dataset

from perdure.data.rows import Row, Table, class_name, text
from perdure.errors import DataError

TEXTS = ("text", "text_pair")


@dataclass(frozen=True)
class Columns:
    """The columns of a table that are asked for.

    Attributes
    ----------
    inputs
        That of the text or the image, or those of the two texts of a pair, in order.
    label
        That of the class.
    task
        That of each row's task, if it has one.
    """

    kind: Literal["text", "image"]
    inputs: tuple[str, ...]
    label: str
    task: str | None = None

    @property
    def names(self) -> list[str]:
        """All of them, each once."""
        optional = [self.task] if self.task else []
        return list(dict.fromkeys([*self.inputs, self.label, *optional]))

    @property
    def input_names(self) -> tuple[str, ...]:
        """The names that the inputs have among the examples."""
        return TEXTS[: len(self.inputs)] if self.kind == "text" else ("image",)

    def check(self, source: str, present: Sequence[str]) -> None:
        """Check that a table has these columns.

        Raises
        ------
        DataError
            It lacks one.
        """
        for column in self.names:
            if column in present:
                continue
            options = {self.label: "the class as `label`", self.task: "the task as `task`"}
            option = options.get(column, f"the {self.kind} as `{self.kind}`")
            raise DataError(
                f"{source} has no column `{column}`. Its columns: {list(present)}. Name the column with {option}."
            )


def from_tables(tables: Sequence[Table], columns: Columns) -> Dataset:
    """Read the rows of tables, one after the other, into memory.

    Nothing is written to the cache of `datasets`: a table is read as it is now, and leaves no copy behind.

    Raises
    ------
    DataError
        A table lacks a column or has no rows, or a cell is not what its column is asked for.
    """
    names = [*columns.input_names, "label", *(["task"] if columns.task else []), "row"]
    values: dict[str, list[Any]] = {name: [] for name in names}
    for table in tables:
        columns.check(f"`{table.path}`", table.columns)
        for row in table.rows(columns.names):
            for name, column in zip(columns.input_names, columns.inputs, strict=True):
                cell = text(row, column) if columns.kind == "text" else _image(row, column)
                values[name].append(cell)
            values["label"].append(table.class_name(row, columns.label))
            if columns.task:
                values["task"].append(table.class_name(row, columns.task))
            values["row"].append(row.number)
    if not values["row"]:
        raise DataError(f"`{tables[0].path}` has no rows, only the names of columns.")
    return Dataset.from_dict(values)


def from_dataset(data: Dataset, source: str, columns: Columns) -> Dataset:
    """Take what is asked for out of a data set that `datasets` has read; its inputs stay where they are.

    An empty text is let through, because nobody can mend a data set of the hub; a tokenizer that makes no
    token of it refuses it later.

    Raises
    ------
    DataError
        A column is missing, or a cell is not what its column is asked for.
    """
    columns.check(source, data.column_names)
    if columns.kind == "text":
        for row in _rows(data, source, columns.inputs):
            for column in columns.inputs:
                text(row, column, empty=True)
    examples = data.select_columns(list(columns.inputs))
    renamed = dict(zip(columns.inputs, columns.input_names, strict=True))
    examples = examples.rename_columns({old: new for old, new in renamed.items() if old != new})
    examples = examples.add_column("label", _class_names(data, source, columns.label))
    if columns.task:
        examples = examples.add_column("task", _class_names(data, source, columns.task))
    return examples.add_column("row", list(range(1, len(data) + 1)))


def declared_classes(data: Dataset, column: str) -> list[str] | None:
    """Return the names that a data set declares for the numbers in a column, if it does."""
    feature = data.features[column]
    return feature.names if isinstance(feature, ClassLabel) else None


def _rows(data: Dataset, source: str, columns: Sequence[str]) -> Iterator[Row]:
    # A column at a time: whole rows would decode the images in them.
    cells = zip(*(data[column] for column in columns), strict=True)
    for number, values in enumerate(cells, start=1):
        yield Row(number, dict(zip(columns, values, strict=True)), f"{source}, row {number}")


def _class_names(data: Dataset, source: str, column: str) -> list[str]:
    names = declared_classes(data, column)
    return [class_name(row, column, names) for row in _rows(data, source, [column])]


def _image(row: Row, column: str) -> Any:
    value = row.cells.get(column)
    if value is None or value == "":
        raise DataError(
            f"{row.where}, has nothing in column `{column}`. Complete it or leave it out."
        )
    return value
