"""Examples built from table rows, with standard column names and with classes as text.

Tables and Hugging Face data sets are both converted to the same columns. The input is in
`text`, in `text` and `text_pair`, in `image`, or in `messages`. The answer is in `label`
as a class name, or in `target` as free text; if a row has several right answers, they are
in `answers`. If a column names the task of each row, it becomes `task`. The number of the
row in its file is in `row`, for error messages.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, cast

from datasets import ClassLabel, Dataset

from perdure.data.formats import Reading
from perdure.data.prompts import Answers, Declared, Prompt
from perdure.data.rows import Row, Table, class_name, text
from perdure.errors import DataError

TEXTS = ("text", "text_pair")


@dataclass(frozen=True)
class Columns:
    """The columns to read from a table.

    Attributes
    ----------
    inputs
        The column that contains the text or the image, the two columns of a text pair in
        order, or all columns that the prompt uses.
    label
        The column that contains the class; None if the answer is free text.
    task
        The column that names the task of each row, if there is one.
    prompt
        The prompt that is built from the inputs, if any.
    answers
        The source of the right answers, if the answer is free text.
    """

    kind: Literal["text", "image"]
    inputs: tuple[str, ...]
    label: str | None
    task: str | None = None
    prompt: Prompt | None = None
    answers: Answers | None = None

    @classmethod
    def of_prompts(cls, reading: Reading, label: str, task: str | None) -> "Columns":
        """Return the columns needed to build prompts and to read their answers or classes."""
        prompt, answers = reading.prompt, reading.answers
        return cls("text", prompt.columns, None if answers else label, task, prompt, answers)

    @property
    def names(self) -> list[str]:
        """The names of all columns to read, without duplicates."""
        names = list(self.inputs)
        names += self.answers.columns if self.answers else ()
        for name in (self.label, self.task):
            if name is not None:
                names.append(name)
        # A caller may name a column twice, for instance as both label and task.
        return list(dict.fromkeys(names))

    @property
    def input_names(self) -> tuple[str, ...]:
        """The names of the input columns in the examples."""
        if self.prompt:
            return (self.prompt.name,)
        if self.kind == "image":
            return ("image",)
        return TEXTS[: len(self.inputs)]

    def check(self, source: str, present: Sequence[str]) -> None:
        """Check that a table has all the columns to read.

        Raises
        ------
        DataError
            A column is missing.
        """
        for column in self.names:
            if column not in present:
                raise DataError(
                    f"{source} has no column `{column}`. Its columns: {list(present)}. "
                    f"Name the column with {self._option(column)}."
                )

    def _option(self, column: str) -> str:
        """Describe the content of a column and the option that names it, for an error message."""
        if column == self.task:
            return "the task as `task`"
        if column == self.label:
            return "the class as `label`, or the column with a free-text answer as `answer`"
        if self.prompt and column in self.inputs:
            return "the prompt as `prompt`"
        if self.answers and column in self.answers.columns:
            return "the answer as `answer`"
        return f"the {self.kind} as `{self.kind}`"

    def example(self, row: Row, declared: Declared) -> dict[str, object]:
        """Convert a row to an example with its input, class or right answers, task and row number.

        Raises
        ------
        DataError
            A cell has the wrong kind of value for its column.
        """
        example: dict[str, object] = {}
        if self.prompt:
            example[self.prompt.name] = self.prompt.of(row, declared)
        else:
            read_input = text if self.kind == "text" else _image
            for name, column in zip(self.input_names, self.inputs, strict=True):
                example[name] = read_input(row, column)
        if self.answers:
            example["answers"] = self.answers.of(row, declared)
        if self.label is not None:
            example["label"] = class_name(row, self.label, declared.get(self.label))
        if self.task is not None:
            example["task"] = class_name(row, self.task, declared.get(self.task))
        return example | {"row": row.number}


def from_tables(tables: Sequence[Table], columns: Columns) -> Dataset:
    """Read the rows of all tables, in order, into memory.

    The cache of `datasets` is not used: every table is read in its current state, and no
    copy is left on disk.

    Raises
    ------
    DataError
        A column is missing, there are no rows, or a cell has the wrong kind of value for
        its column.
    """
    examples = _dataset(_examples(tables, columns))
    if not len(examples):
        raise DataError(f"`{tables[0].path}` has no rows, only column names.")
    return examples


def _examples(tables: Sequence[Table], columns: Columns) -> Iterator[dict[str, object]]:
    for table in tables:
        columns.check(f"`{table.path}`", table.columns)
        for row in table.rows(columns.names):
            yield columns.example(row, table.class_names)


def _dataset(examples: Iterable[Mapping[str, object]]) -> Dataset:
    """Convert examples to a data set."""
    # The order of the columns affects the fingerprint of the data set.
    values: dict[str, list[object]] = {}
    for example in examples:
        for name, value in example.items():
            values.setdefault(name, []).append(value)
    answers = cast("list[list[str]]", values.get("answers", []))
    if answers:
        values["target"] = [right[0] for right in answers]
        # If every row has a single answer, `answers` adds nothing to `target`.
        if all(len(right) == 1 for right in answers):
            del values["answers"]
    return Dataset.from_dict(values)


def from_dataset(data: Dataset, source: str, columns: Columns) -> Dataset:
    """Select the columns of a data set that `datasets` has loaded, without copying the inputs.

    Prompts are the exception: they combine columns and are built as new text. An empty
    cell in a prompt is an error. An empty cell in a plain text column is accepted,
    because users cannot correct a data set on the hub; it is rejected later if the
    tokenizer produces no tokens for it.

    Raises
    ------
    DataError
        A column is missing, or a cell has the wrong kind of value for its column.
    """
    columns.check(source, data.column_names)
    if columns.prompt:
        return _dataset(_prompts(data, source, columns))
    if columns.kind == "text":
        # This only rejects cells that are not text; the examples are not built from these rows.
        for row in _rows(data, source, columns.inputs):
            for column in columns.inputs:
                text(row, column, empty=True)

    examples = data.select_columns(list(columns.inputs))
    new_names = dict(zip(columns.inputs, columns.input_names, strict=True))
    # In a single call, because the columns of a pair may be called `text_pair` and `text`.
    examples = examples.rename_columns(new_names)
    # Classes are stored by name, as for tables, so that tasks from both can share classes.
    for name, column in {"label": columns.label, "task": columns.task}.items():
        if column is not None:
            examples = examples.add_column(name, _class_names(data, source, column))
    # Counted from 1, as in tables; filtering and splitting preserve the numbers for messages.
    numbers = list(range(1, len(data) + 1))
    return examples.add_column("row", numbers)


def _prompts(data: Dataset, source: str, columns: Columns) -> Iterator[dict[str, object]]:
    """Yield examples with prompts that are built from the rows of a data set."""
    declared: dict[str, list[str]] = {}
    for column in columns.names:
        names = declared_classes(data, column)
        if names:
            declared[column] = names
    for row in _rows(data, source, columns.names):
        yield columns.example(row, declared)


def declared_classes(data: Dataset, column: str) -> list[str] | None:
    """Return the class names that a data set declares for an integer column, or None."""
    feature = data.features[column]
    return feature.names if isinstance(feature, ClassLabel) else None


def _rows(data: Dataset, source: str, columns: Sequence[str]) -> Iterator[Row]:
    # Read by column, because reading by row would also decode images.
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
            f"{row.where}, has nothing in column `{column}`. Fill it in, or leave the row out."
        )
    return value
