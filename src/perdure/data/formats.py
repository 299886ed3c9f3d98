"""Detection of the columns that contain the prompt and the answer.

The format of a table is recognised by its column names:

    messages                     conversations; the last turn, by the assistant, is the answer
    prompt, completion           a prompt and its answer
    instruction, input, output   the Alpaca format; `input` may be empty or missing
    text, label                  a text or prompt and its class
    any others                   used in templates, such as "Review: {body}\\nStars:"
"""

import difflib
from collections.abc import Sequence
from dataclasses import dataclass, field

from perdure.data.prompts import (
    AnswerCell,
    Answers,
    AnswerTemplate,
    Cell,
    Conversation,
    Instruction,
    LastTurn,
    Prompt,
    Template,
)
from perdure.errors import DataError

LABEL = "label"
"""The default name of the label column."""


@dataclass(frozen=True)
class Request:
    """The columns specified by the caller; `prompt` and `answer` may also be templates."""

    text: Sequence[str] = field(default_factory=list)
    image: str | None = None
    prompt: str | None = None
    answer: str | None = None
    label: str | None = None

    @property
    def label_column(self) -> str:
        """The name of the label column, which exists only if the answer is a class."""
        # An empty name is not replaced: it is an error, for instance an unset variable in a script.
        return LABEL if self.label is None else self.label

    def check(self) -> None:
        """Check that the options are compatible with each other.

        Raises
        ------
        DataError
            Two options exclude each other, `text` names more than two columns or the same
            column twice, or `answer` is combined with an image or a pair of texts.
        """
        if self.text and self.image:
            raise DataError("Give either `text` or `image`: a task has one kind of input.")
        is_repeated = len(set(self.text)) < len(self.text)
        if len(self.text) > 2 or is_repeated:
            raise DataError(
                f"`text` names the columns {list(self.text)}. "
                "Give one column, or two different ones for pairs."
            )
        if self.answer is not None and self.label is not None:
            raise DataError(
                "Give either `answer` or `label`: an answer is free text, a label is one of a set "
                "of classes."
            )
        if self.prompt is not None and (self.text or self.image):
            raise DataError(
                "Give either `prompt`, or `text` or `image`: a prompt is the entire input."
            )
        if self.answer is not None and (self.image or len(self.text) > 1):
            given = "an image" if self.image else "a pair of texts"
            raise DataError(
                f"`answer` is the answer to a prompt, but the input is {given}. "
                "Give the prompt as `prompt`, a column or a template."
            )


@dataclass(frozen=True)
class Reading:
    """The prompt and answers to read from each row; without `answers`, the answer is a class."""

    prompt: Prompt
    answers: Answers | None = None


def reading_of(columns: Sequence[str], source: str, request: Request) -> Reading | None:
    """Return the prompt and the answers to read, or None if texts or images are to be classified.

    Parameters
    ----------
    columns, source
        The columns of the table, and its name for error messages.

    Raises
    ------
    DataError
        Options are incompatible, a column does not exist, a template is invalid, or it is
        not clear which column contains the prompt or the answer.

    Examples
    --------
    >>> reading_of(["id", "prompt", "completion"], "`t.jsonl`", Request())
    Reading(prompt=Cell(column='prompt'), answers=AnswerCell(column='completion'))
    """
    request.check()
    if request.image or (request.text and request.answer is None):
        return None
    if request.prompt is not None:
        return _with_prompt(columns, source, request, request.prompt)
    if request.answer is not None:
        prompt = Cell(request.text[0]) if request.text else usual_prompt(columns)
        if prompt is None:
            raise DataError(
                f"{source} has the columns {list(columns)}: say which holds the prompt, with "
                "`prompt=…` (a column or a template)."
            )
        return Reading(prompt, _answers(columns, source, request.answer))
    has_input = "text" in columns or "image" in columns
    if has_input and request.label_column in columns:
        return None
    if request.label is None:
        for answers in (LastTurn(), AnswerCell("completion"), AnswerCell("output")):
            prompt = _prompt_before(answers, columns)
            if prompt:
                return Reading(prompt, answers)
    prompt = usual_prompt(columns)
    if prompt is None or has_input or request.label_column not in columns:
        return None
    return Reading(prompt)


def usual_prompt(columns: Sequence[str]) -> Prompt | None:
    """Return the prompt that the column names imply, or None."""
    for name in ("text", "prompt"):
        if name in columns:
            return Cell(name)
    if "instruction" in columns:
        return Instruction("input" in columns)
    return Conversation(answered=False) if "messages" in columns else None


def given_prompt(
    prompt: str, columns: Sequence[str], source: str, *, closed: bool = False
) -> Prompt:
    """Return the prompt named by the caller: a template if it contains a brace, otherwise a column.

    Raises
    ------
    DataError
        There is no such column, or the template is invalid.
    """
    if "{" in prompt or "}" in prompt:
        template = Template.parse(prompt, columns, source, "prompt", closed=closed)
        _check_differs("prompt", prompt, template, columns)
        return template
    if prompt not in columns:
        raise DataError(_no_column("prompt", prompt, columns, source))
    return Conversation(prompt, answered=False) if prompt == "messages" else Cell(prompt)


def _prompt_before(answers: Answers, columns: Sequence[str]) -> Prompt | None:
    """Return the prompt that usually accompanies an answer column, or None if either is missing."""
    (column,) = answers.columns
    if column not in columns:
        return None
    if column == "messages":
        return Conversation()
    if column == "completion":
        return Cell("prompt") if "prompt" in columns else None
    return Instruction("input" in columns) if "instruction" in columns else None


def _with_prompt(columns: Sequence[str], source: str, request: Request, prompt: str) -> Reading:
    """Return the prompt that the caller named and, if they are free text, the answers to it."""
    if request.answer is not None:
        answers = _answers(columns, source, request.answer)
        return Reading(given_prompt(prompt, columns, source), answers)
    if request.label is not None or LABEL in columns:
        return Reading(given_prompt(prompt, columns, source, closed=True))
    for name in ("completion", "output"):
        if name in columns:
            return Reading(given_prompt(prompt, columns, source), AnswerCell(name))
    raise DataError(
        f"{source} has the columns {list(columns)}: say which holds the answer, with `answer=…` "
        "(free text: a column or a template) or `label=…` (a class)."
    )


def _answers(columns: Sequence[str], source: str, answer: str) -> Answers:
    """Return the answers that the caller named: a template or a column."""
    if "{" not in answer and "}" not in answer:
        if answer not in columns:
            raise DataError(_no_column("answer", answer, columns, source))
        return AnswerCell(answer)
    template = Template.parse(answer, columns, source, "answer")
    _check_differs("answer", answer, template, columns)
    # A template that is a single placeholder means the cell itself, which may be a list.
    if template.pieces == (("", template.columns[0]), ("", None)):
        return AnswerCell(template.columns[0])
    return AnswerTemplate(template)


def _check_differs(option: str, given: str, template: Template, columns: Sequence[str]) -> None:
    """Check that a template contains a column name; otherwise, it is the same for all rows."""
    if not template.columns:
        raise DataError(
            f"`{option}` is {given!r}, which is the same for all rows. Name a column in it, such "
            f"as `{{{columns[0]}}}`."
        )


def _no_column(option: str, name: str, columns: Sequence[str], source: str) -> str:
    similar = difflib.get_close_matches(name, columns, n=1, cutoff=0.5)
    hint = f" Did you mean `{similar[0]}`?" if similar else ""
    return (
        f"{source} has no column `{name}`, which `{option}` names.{hint} "
        f"Its columns: {list(columns)}."
    )
