"""Prompts and free-text answers, built from the cells of a row.

A cell with a list of texts (in JSON and Parquet) contains several right answers. A model
is trained on the first one, and all of them are accepted in evaluation.
`perdure.data.formats` decides which columns contain prompts and answers.
"""

import difflib
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from perdure.data.rows import Row, check_characters, class_name, described, text
from perdure.errors import DataError

Declared = Mapping[str, Sequence[str]]
"""The class names that a table declares for its integer columns, by column name."""
Turn = dict[str, str]
"""A turn of a conversation, with the keys `role` and `content`."""

CHOICES = "choices"
"""The name of the placeholder that is replaced by a list of the classes."""
UNLISTED = "\0"
"""A character that represents the list of classes until they are known; no cell can contain it."""
PIECES = re.compile(r"\{\{|\}\}|\{[^{}]*\}|[{}]|[^{}]+")
ROLES = ("system", "user", "assistant")


# -- prompts


class Prompt(ABC):
    """The input of a language model, built from the cells of a row."""

    name: ClassVar[str] = "text"
    """The column that contains the prompt in the examples."""

    @property
    @abstractmethod
    def columns(self) -> tuple[str, ...]:
        """The table columns from which the prompt is built."""

    @abstractmethod
    def of(self, row: Row, declared: Declared) -> str | list[Turn]:
        """Return the prompt for a row.

        Raises
        ------
        DataError
            A cell is empty, or has the wrong kind of value for its column.
        """


@dataclass(frozen=True)
class Cell(Prompt):
    """A prompt that is the text of a single column."""

    column: str

    @property
    def columns(self) -> tuple[str, ...]:
        return (self.column,)

    def of(self, row: Row, declared: Declared) -> str:
        return text(row, self.column)


@dataclass(frozen=True)
class Template(Prompt):
    """A prompt with placeholders that are replaced by cells.

    `{{` and `}}` represent literal braces. Numbers, booleans and dates are written in the
    same way as class names (see `perdure.data.rows`).

    Attributes
    ----------
    pieces
        Pairs of a literal text and the column whose cell follows it, or None if none follows.

    Examples
    --------
    >>> template = Template.parse("{{{a}}} is\\n{b}", ["a", "b"], "`t.csv`", "prompt")
    >>> template.of(Row(1, {"a": "x", "b": 7}, "Row 1"), {})
    '{x} is\\n7'
    """

    pieces: tuple[tuple[str, str | None], ...]

    @classmethod
    def parse(
        cls,
        template: str,
        columns: Sequence[str],
        source: str,
        option: str,
        *,
        closed: bool = False,
    ) -> "Template":
        """Parse a template for a table.

        Parameters
        ----------
        columns, source
            The columns of the table, and its name for error messages.
        option
            The name of the setting that contains the template, for error messages.
        closed
            True if the answer is a class. Then `{choices}` is replaced by a list of the
            classes, unless a column has that name.

        Raises
        ------
        DataError
            A brace is unmatched, or a placeholder does not name a column.
        """
        pieces: list[tuple[str, str | None]] = []
        literal = ""
        for piece in PIECES.findall(template):
            name = piece[1:-1]
            if piece in ("{{", "}}"):
                literal += piece[0]
            elif piece in ("{", "}"):
                raise DataError(
                    f"`{option}` has a `{piece}` that is not part of a placeholder: {template!r}. "
                    f"Write `{piece * 2}` for a literal brace."
                )
            elif not piece.startswith("{"):
                literal += piece
            elif name in columns:
                pieces.append((literal, name))
                literal = ""
            elif name == CHOICES and closed:
                literal += UNLISTED
            else:
                raise DataError(_unknown(name, columns, source, option, closed))
        pieces.append((literal, None))
        return cls(tuple(pieces))

    @property
    def columns(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(column for _, column in self.pieces if column is not None))

    def of(self, row: Row, declared: Declared) -> str:
        written = ""
        for literal, column in self.pieces:
            written += literal
            if column is not None:
                written += class_name(row, column, declared.get(column), expected="text")
        return written


@dataclass(frozen=True)
class Instruction(Prompt):
    """A prompt in the Alpaca format: the instruction and, after a blank line, the input, if any."""

    has_input: bool

    @property
    def columns(self) -> tuple[str, ...]:
        return ("instruction", "input") if self.has_input else ("instruction",)

    def of(self, row: Row, declared: Declared) -> str:
        instruction = text(row, "instruction")
        # If a row has no input, the cell is empty or null, or in JSON the key is missing.
        if row.cells.get("input") in (None, ""):
            return instruction
        return f"{instruction}\n\n{text(row, 'input')}"


@dataclass(frozen=True)
class Conversation(Prompt):
    """A conversation as a prompt: a list of turns, each with a `role` and `content`.

    Attributes
    ----------
    answered
        True if the last turn is the answer, which is not part of the prompt.
    """

    name: ClassVar[str] = "messages"
    column: str = "messages"
    answered: bool = True

    @property
    def columns(self) -> tuple[str, ...]:
        return (self.column,)

    def of(self, row: Row, declared: Declared) -> list[Turn]:
        turns = _turns(row, self.column)
        if not self.answered:
            return turns
        _check_last(turns, row, self.column)
        return turns[:-1]


def with_choices(prompt: str, classes: Sequence[str]) -> str:
    """Return a prompt with `{choices}` replaced by the classes of its task."""
    return prompt.replace(UNLISTED, ", ".join(classes))


# -- answers


class Answers(ABC):
    """The right answers to a prompt, built from the cells of the same row."""

    @property
    @abstractmethod
    def columns(self) -> tuple[str, ...]:
        """The table columns from which the answers are built."""

    @abstractmethod
    def of(self, row: Row, declared: Declared) -> list[str]:
        """Return the right answers for a row (at least one); the first one is used for training.

        Raises
        ------
        DataError
            An answer is empty, or has a type that cannot be written as text.
        """


@dataclass(frozen=True)
class AnswerCell(Answers):
    """Answers from a column whose cells contain an answer or a list of right answers."""

    column: str

    @property
    def columns(self) -> tuple[str, ...]:
        return (self.column,)

    def of(self, row: Row, declared: Declared) -> list[str]:
        value = row.cells.get(self.column)
        if not isinstance(value, list):
            return [class_name(row, self.column, declared.get(self.column), expected="text")]
        if not value:
            raise DataError(
                f"{row.where}, has an empty list in column `{self.column}`, where the right "
                "answers are expected. Give at least one, or leave the row out."
            )
        answers = []
        for number, answer in enumerate(value, start=1):
            # Treated as a separate cell, so that the same checks apply.
            one = Row(row.number, {self.column: answer}, f"{row.where}, answer {number}")
            answers.append(class_name(one, self.column, expected="text"))
        return list(dict.fromkeys(answers))


@dataclass(frozen=True)
class AnswerTemplate(Answers):
    """A single answer that is built from a template."""

    template: Template

    @property
    def columns(self) -> tuple[str, ...]:
        return self.template.columns

    def of(self, row: Row, declared: Declared) -> list[str]:
        return [self.template.of(row, declared)]


@dataclass(frozen=True)
class LastTurn(Answers):
    """The answer in the last turn of a conversation, which must be by the assistant."""

    column: str = "messages"

    @property
    def columns(self) -> tuple[str, ...]:
        return (self.column,)

    def of(self, row: Row, declared: Declared) -> list[str]:
        turns = _turns(row, self.column)
        _check_last(turns, row, self.column)
        return [turns[-1]["content"]]


def _turns(row: Row, column: str) -> list[Turn]:
    """Check and return the turns of a conversation."""
    value = row.cells.get(column)
    if value is None or value == []:
        raise DataError(f"{row.where}, has nothing in column `{column}`. Leave the row out.")
    if not isinstance(value, list):
        given = "a text" if isinstance(value, str) else described(value)
        raise DataError(
            f"{row.where}, has {given} in column `{column}`, where a list of turns is expected, "
            'such as {"role": "user", "content": "…"}. Write conversations in JSON or Parquet.'
        )
    turns = []
    for number, turn in enumerate(value, start=1):
        where = f"{row.where}, turn {number} of column `{column}`,"
        if not isinstance(turn, Mapping):
            raise DataError(f"{where} is not an object with `role` and `content`. Write it as one.")
        role = turn.get("role")
        if role not in ROLES:
            raise DataError(
                f"{where} has the role `{str(role)[:60]}`; the known roles are `system`, `user` "
                "and `assistant`. Rename it, or leave the row out."
            )
        content = turn.get("content")
        if not isinstance(content, str):
            given = "no content" if content is None else f"{described(content)} as its content"
            raise DataError(f"{where} has {given}, where a text is expected. Leave the row out.")
        check_characters(content, row, column)
        # Other keys, such as `name`, are dropped: not all chat templates support them.
        turns.append({"role": role, "content": content})
    return turns


def _check_last(turns: Sequence[Turn], row: Row, column: str) -> None:
    """Check that a conversation ends with an answer."""
    last = turns[-1]
    if last["role"] != "assistant":
        raise DataError(
            f"{row.where}, has a conversation in column `{column}` that ends with a turn of the "
            f"{last['role']}. The last turn is the answer, so it must be the assistant's."
        )
    if not last["content"].strip():
        raise DataError(
            f"{row.where}, has an empty answer in column `{column}`: its last turn has no text. "
            "Fill it in, or leave the row out."
        )
    if len(turns) == 1:
        raise DataError(
            f"{row.where}, has a conversation in column `{column}` with a single turn, so there "
            "is no prompt. Add a turn of the user before it, or leave the row out."
        )


def _unknown(name: str, columns: Sequence[str], source: str, option: str, closed: bool) -> str:
    """Return the error message for a placeholder that does not name a column."""
    if name == CHOICES and not closed:
        return (
            f"`{option}` has the placeholder `{{{CHOICES}}}`, which lists the classes, but the "
            f"answer is free text, and {source} has no such column. Name the column of the class "
            "with `label`, or leave the placeholder out."
        )
    similar = difflib.get_close_matches(name, columns, n=1, cutoff=0.5)
    hint = f" Did you mean `{{{similar[0]}}}`?" if similar else ""
    return (
        f"`{option}` has the placeholder `{{{name}}}`, but {source} has no such column.{hint} "
        f"Its columns: {list(columns)}."
    )
