"""Rows of tables as examples: the inputs under one name, the classes as text.

Both ways to read data end in the same columns: `text`, or `text` and `text_pair`, or `image`;
`label` with the name of the class; `task`, where a column names each row's task; and `row`, the
number of the row in its file, for messages.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from datasets import ClassLabel, Dataset

from perdure.data.rows import Row, Table, class_name, text
from perdure.errors import DataError

TEXTS = ("text", "text_pair")


@dataclass(frozen=True)
class Columns:
    """The columns of a table that are to be read.

    Attributes
    ----------
    inputs
        The column of the text or the image, or the columns of the two texts of a pair, in order.
    label
        The column of the class.
    task
        The column of each row's task, if there is one.
    """

    kind: Literal["text", "image"]
    inputs: tuple[str, ...]
    label: str
    task: str | None = None

    @property
    def names(self) -> list[str]:
        """All of these columns, each once."""
        names = [*self.inputs, self.label]
        if self.task:
            names.append(self.task)
        # A caller may name a column twice, for instance as both label and task.
        return list(dict.fromkeys(names))

    @property
    def input_names(self) -> tuple[str, ...]:
        """The names that the inputs have among the examples."""
        if self.kind == "image":
            return ("image",)
        return TEXTS[: len(self.inputs)]

    def check(self, source: str, present: Sequence[str]) -> None:
        """Check that a table has these columns.

        Raises
        ------
        DataError
            A column is missing.
        """
        for column in self.names:
            if column in present:
                continue
            if column == self.task:
                option = "the task as `task`"
            elif column == self.label:
                option = "the class as `label`"
            else:
                option = f"the {self.kind} as `{self.kind}`"
            raise DataError(
                f"{source} has no column `{column}`. Its columns: {list(present)}. "
                f"Name the column with {option}."
            )


def from_tables(tables: Sequence[Table], columns: Columns) -> Dataset:
    """Read the rows of tables, one after the other, into memory.

    Nothing is written to the cache of `datasets`: a table is read as it is now, and leaves no
    copy behind.

    Raises
    ------
    DataError
        A table lacks a column or has no rows, or a cell does not hold what its column should.
    """
    # The order of the columns is that of the data set, and so of its fingerprint.
    names = [*columns.input_names, "label"]
    if columns.task:
        names.append("task")
    names.append("row")

    values: dict[str, list[object]] = {name: [] for name in names}
    read_input = text if columns.kind == "text" else _image
    for table in tables:
        columns.check(f"`{table.path}`", table.columns)
        for row in table.rows(columns.names):
            for name, column in zip(columns.input_names, columns.inputs, strict=True):
                value = read_input(row, column)
                values[name].append(value)
            label = table.class_name(row, columns.label)
            values["label"].append(label)
            if columns.task:
                task = table.class_name(row, columns.task)
                values["task"].append(task)
            values["row"].append(row.number)
    if not values["row"]:
        raise DataError(f"`{tables[0].path}` has no rows, only the names of columns.")
    return Dataset.from_dict(values)


def from_dataset(data: Dataset, source: str, columns: Columns) -> Dataset:
    """Select the columns of a data set that `datasets` has read; its inputs are not copied.

    An empty text is let through, because nobody can mend a data set of the hub; a tokenizer
    that makes no token out of it refuses it later.

    Raises
    ------
    DataError
        A column is missing, or a cell does not hold what its column should.
    """
    columns.check(source, data.column_names)
    if columns.kind == "text":
        # Only to refuse cells that are not texts: the examples are not built from these rows.
        for row in _rows(data, source, columns.inputs):
            for column in columns.inputs:
                text(row, column, empty=True)

    examples = data.select_columns(list(columns.inputs))
    new_names = dict(zip(columns.inputs, columns.input_names, strict=True))
    # Both names of a pair at once: its columns may be called `text_pair` and `text`, in this order.
    examples = examples.rename_columns(new_names)
    # By name, as in tables, so that tasks from both share the classes of the same name.
    labels = _class_names(data, source, columns.label)
    examples = examples.add_column("label", labels)
    if columns.task:
        tasks = _class_names(data, source, columns.task)
        examples = examples.add_column("task", tasks)
    # Counted from 1, as in tables; filtering and splitting keep the number for messages.
    numbers = list(range(1, len(data) + 1))
    return examples.add_column("row", numbers)


def declared_classes(data: Dataset, column: str) -> list[str] | None:
    """Return the names that a data set declares for the numbers in a column, if it does."""
    feature = data.features[column]
    return feature.names if isinstance(feature, ClassLabel) else None


def _rows(data: Dataset, source: str, columns: Sequence[str]) -> Iterator[Row]:
    # A column at a time: whole rows would decode the images in them.
    values = [data[column] for column in columns]
    for number, row in enumerate(zip(*values, strict=True), start=1):
        cells = dict(zip(columns, row, strict=True))
        where = f"{source}, row {number}"
        yield Row(number, cells, where)


def _class_names(data: Dataset, source: str, column: str) -> list[str]:
    names = declared_classes(data, column)
    rows = _rows(data, source, [column])
    return [class_name(row, column, names) for row in rows]


def _image(row: Row, column: str) -> object:
    value = row.cells.get(column)
    if value is None or value == "":
        raise DataError(
            f"{row.where}, has nothing in column `{column}`. Complete it or leave it out."
        )
    return value
