"""The inputs of a run's model, made from the rows of a table or from prompts."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from datasets import Dataset

from perdure.data import formats
from perdure.data.examples import TEXTS
from perdure.data.prompts import Conversation, Prompt, with_choices
from perdure.data.rows import HALF, Row, half_of_a_pair
from perdure.errors import DataError, InputError

Classes = Mapping[str, tuple[str, ...]]
"""The classes of each task learned, by its name; empty if the answer is free text."""
Turns = list[dict[str, str]]


@dataclass(frozen=True)
class Asked:
    """The columns of a table that hold the input, as a user names them.

    Attributes
    ----------
    text, image
        Columns: two of `text` are read as pairs.
    prompt
        A template of a language model's prompt.
    task
        The task of all rows, if it is known.
    """

    text: Sequence[str] = ()
    image: str | None = None
    prompt: str | None = None
    task: str | None = None


def prompt_reader(
    columns: Sequence[str], source: str, asked: Asked, stream: object, classes: Classes
) -> Callable[[Row], str | Turns]:
    """Return the function that makes the prompt of a row.

    Parameters
    ----------
    columns, source
        The columns of the table, and the table as messages name it.
    stream
        The recipe's stream, whose entries say how the tasks' own tables were read.

    Raises
    ------
    DataError
        The table has no such columns, or the template is wrong.
    InputError
        An option is only for language models, or it is unknown where the prompt is.
    """
    if asked.image or len(asked.text) > 1:
        given = "`--image`" if asked.image else "two columns of `--text`"
        raise InputError(
            f"The run's model is a language model, which reads a prompt: give `--prompt-template` "
            f"in place of {given}, such as '{{premise}} {{hypothesis}}'."
        )
    if asked.prompt or asked.text:
        given = asked.prompt or asked.text[0]
        prompt = formats.given_prompt(given, columns, source, closed=True)
        return partial(_prompt_of, prompt, _own_classes(asked.task, classes))
    prompt = _as_learned(columns, source, asked.task, stream)
    if prompt is None:
        raise InputError(
            f"{source} has the columns {list(columns)}: say which holds the prompt, with `--text`, "
            "or how it is made of them, with `--prompt-template`."
        )
    return partial(_prompt_of, prompt, _own_classes(asked.task, classes))


def _as_learned(
    columns: Sequence[str], source: str, task: str | None, stream: object
) -> Prompt | None:
    """Return the prompt as it was read from the task's own table, or as the column names suggest.

    Without a task, all tables whose columns this one has must agree.
    """
    # Any other stream is a benchmark, or was made in Python: it names no columns.
    named = stream if isinstance(stream, list) else []
    entries = [entry for entry in named if isinstance(entry, Mapping)]
    own = [entry for entry in entries if _title(entry) == task]
    usual = formats.usual_prompt(columns)
    fitting: list[Prompt] = []
    for entry in own or entries:
        given = entry.get("prompt") or entry.get("text")
        try:
            if isinstance(given, str):
                fitting.append(formats.given_prompt(given, columns, source, closed=True))
            elif usual:
                fitting.append(usual)
        except DataError:  # another task's table has other columns
            continue
    if fitting and all(prompt == fitting[0] for prompt in fitting):
        return fitting[0]
    return usual


def _title(entry: Mapping[str, Any]) -> str:
    """Return the name of the task that an entry of a recipe makes."""
    return str(entry.get("name") or Path(str(entry.get("data", ""))).stem)


def _own_classes(task: str | None, classes: Classes) -> tuple[str, ...]:
    return classes.get(task or "", ())


def _prompt_of(prompt: Prompt, classes: tuple[str, ...], row: Row) -> str | Turns:
    """Return the prompt of a row; `classes` replace `{choices}`."""
    made = prompt.of(row, {})
    if isinstance(made, str):
        return _with_choices(made, classes)
    # A table that was learned has the answer as its last turn, which is not to be read here.
    if made[-1]["role"] == "assistant":
        made = made[:-1]
    if not made:
        raise DataError(f"{row.where}, has a conversation in which nothing is asked. Leave it out.")
    return made


def _with_choices(prompt: str, classes: tuple[str, ...]) -> str:
    listed = with_choices(prompt, classes)
    if listed != prompt and not classes:
        raise InputError(
            "The prompt lists the classes of its task (`{choices}`): say with `--task` which "
            "task that is. It needs to have classes."
        )
    return listed


def prompts(inputs: Sequence[object]) -> Dataset:
    """Return prompts, all texts or all conversations, as rows that a language model reads.

    Raises
    ------
    InputError
        An input is no prompt, or not all are of one kind.
    DataError
        A conversation is not valid.
    """
    is_text = isinstance(inputs[0], str)
    conversation = Conversation(answered=False)
    rows: list[str | Turns] = []
    for number, value in enumerate(inputs, start=1):
        if isinstance(value, str) != is_text:
            kind = "text" if isinstance(value, str) else "conversation"
            raise InputError(f"Input {number} is a {kind}, unlike the first one.")
        if not isinstance(value, str | list):
            raise InputError(
                f"Input {number} is {value!r}, but should be a prompt: a text, or the list of a "
                "conversation's turns."
            )
        if isinstance(value, str):
            if half := half_of_a_pair(value):
                raise InputError(f"Input {number} has `{half}`: {HALF}")
            rows.append(value)
            continue
        row = Row(number, {"messages": value}, f"Input {number}")
        rows.append(conversation.of(row, {}))
    return Dataset.from_dict({"text" if is_text else "messages": rows})


# -- models that answer by heads


def read_before(stream: object, kind: str) -> list[tuple[str, ...]]:
    """Return the columns that the tasks of a run's own tables were read from."""
    # Any other stream is a benchmark, or was made in Python: it names no columns.
    entries = stream if isinstance(stream, list) else []
    columns = []
    for entry in entries:
        named_columns = entry.get(kind)
        if isinstance(named_columns, str):
            columns.append((named_columns,))
        elif isinstance(named_columns, list):
            columns.append(tuple(named_columns))
    return columns


def texts_or_pairs(inputs: Sequence[object]) -> Dataset:
    """Return texts, or pairs of texts, as rows that the backbone reads.

    Raises
    ------
    InputError
        An input is not a text, or not all are of one kind.
    """
    # The first input decides whether all are texts or pairs.
    rows = [_columns(value) for value in inputs]
    size = len(rows[0])
    for number, row in enumerate(rows, start=1):
        if not all(isinstance(text, str) for text in row):
            raise InputError(
                f"Input {number} is {inputs[number - 1]!r}, "
                "but should be a text or a pair of texts."
            )
        if half := half_of_a_pair("".join(row)):
            raise InputError(f"Input {number} has `{half}`: {HALF}")
        if len(row) != size:
            kind = "pair" if size == 1 else "single text"
            raise InputError(f"Input {number} is a {kind}, unlike the first one.")
    columns = {}
    for i, name in enumerate(TEXTS[:size]):
        columns[name] = [row[i] for row in rows]
    return Dataset.from_dict(columns)


def _columns(value: object) -> tuple[Any, ...]:
    """Return an input as the cells of a row: two for a pair, otherwise one."""
    if isinstance(value, tuple | list) and len(value) == 2:
        return tuple(value)
    return (value,)
