"""Rows of tables as examples: the inputs under one name, the classes as text.

Both ways to read data end in the same columns: `text`, or `text` and `text_pair`, or `image`, or
`messages`; `label` with the name of the class, or `target` with the answer and, if a row has
several right ones, `answers`; `task`, if a column names each row's task; and `row`, the number of
the row in its file, for messages.
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
        The column of the text or the image, or the columns of the two texts of a pair, in order;
        or all columns of the prompt.
    label
        The column of the class; None if the answer is free text.
    task
        The column of each row's task, if there is one.
    prompt
        The prompt that the inputs are combined into, if any.
    answers
        The right answers, if the answer is free text.
    """

    kind: Literal["text", "image"]
    inputs: tuple[str, ...]
    label: str | None
    task: str | None = None
    prompt: Prompt | None = None
    answers: Answers | None = None

    @classmethod
    def of_prompts(cls, reading: Reading, label: str, task: str | None) -> "Columns":
        """Return the columns that make up prompts, and those of their answers or classes."""
        prompt, answers = reading.prompt, reading.answers
        return cls("text", prompt.columns, None if answers else label, task, prompt, answers)

    @property
    def names(self) -> list[str]:
        """All of these columns, without duplicates."""
        names = list(self.inputs)
        names += self.answers.columns if self.answers else ()
        for name in (self.label, self.task):
            if name is not None:
                names.append(name)
        # A caller may name a column twice, for instance as both label and task.
        return list(dict.fromkeys(names))

    @property
    def input_names(self) -> tuple[str, ...]:
        """The names that the inputs have among the examples."""
        if self.prompt:
            return (self.prompt.name,)
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
            if column not in present:
                raise DataError(
                    f"{source} has no column `{column}`. Its columns: {list(present)}. "
                    f"Name the column with {self._option(column)}."
                )

    def _option(self, column: str) -> str:
        """Return what a column holds, and the option that names it."""
        if column == self.task:
            return "the task as `task`"
        if column == self.label:
            return "the class as `label`, or that with a free answer as `answer`"
        if self.prompt and column in self.inputs:
            return "the prompt as `prompt`"
        if self.answers and column in self.answers.columns:
            return "the answer as `answer`"
        return f"the {self.kind} as `{self.kind}`"

    def example(self, row: Row, declared: Declared) -> dict[str, object]:
        """Return a row as an example: its input, its class or right answers, its task and number.

        Raises
        ------
        DataError
            A cell does not hold what its column should.
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
    """Read the rows of tables, one after the other, into memory.

    Nothing is written to the cache of `datasets`: a table is read as it is now, and leaves no
    copy behind.

    Raises
    ------
    DataError
        A table lacks a column or has no rows, or a cell does not hold what its column should.
    """
    examples = _dataset(_examples(tables, columns))
    if not len(examples):
        raise DataError(f"`{tables[0].path}` has no rows, only the names of columns.")
    return examples


def _examples(tables: Sequence[Table], columns: Columns) -> Iterator[dict[str, object]]:
    for table in tables:
        columns.check(f"`{table.path}`", table.columns)
        for row in table.rows(columns.names):
            yield columns.example(row, table.class_names)


def _dataset(examples: Iterable[Mapping[str, object]]) -> Dataset:
    """Put examples together, as columns."""
    # The order of the columns is that of the data set, and so of its fingerprint.
    values: dict[str, list[object]] = {}
    for example in examples:
        for name, value in example.items():
            values.setdefault(name, []).append(value)
    answers = cast("list[list[str]]", values.get("answers", []))
    if answers:
        values["target"] = [right[0] for right in answers]
        # A column of lists with one answer each would say nothing more.
        if all(len(right) == 1 for right in answers):
            del values["answers"]
    return Dataset.from_dict(values)


def from_dataset(data: Dataset, source: str, columns: Columns) -> Dataset:
    """Select the columns of a data set that `datasets` has read; its inputs are not copied.

    An empty text is let through, because nobody can mend a data set of the hub; it is refused later
    if the tokenizer makes no token of it. Prompts are made anew.

    Raises
    ------
    DataError
        A column is missing, or a cell does not hold what its column should.
    """
    columns.check(source, data.column_names)
    if columns.prompt:
        return _dataset(_prompts(data, source, columns))
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
    for name, column in {"label": columns.label, "task": columns.task}.items():
        if column is not None:
            examples = examples.add_column(name, _class_names(data, source, column))
    # Counted from 1, as in tables; filtering and splitting keep the number for messages.
    numbers = list(range(1, len(data) + 1))
    return examples.add_column("row", numbers)


def _prompts(data: Dataset, source: str, columns: Columns) -> Iterator[dict[str, object]]:
    """Yield the examples of a data set whose inputs become prompts."""
    declared: dict[str, list[str]] = {}
    for column in columns.names:
        names = declared_classes(data, column)
        if names:
            declared[column] = names
    for row in _rows(data, source, columns.names):
        yield columns.example(row, declared)


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
