"""Inputs for a run's model, made from the rows of a table or from prompts."""

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
"""The classes of each learned task, by task name; empty for a task answered with free text."""
Turns = list[dict[str, str]]


@dataclass(frozen=True)
class Asked:
    """The columns that the user has named as the model's input.

    Attributes
    ----------
    text, image
        The input columns. Two `text` columns are read as pairs.
    prompt
        A prompt template for a language model.
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
    """Return a function that makes the prompt for a row of a table.

    Parameters
    ----------
    columns, source
        The columns of the table, and the name of the table in messages.
    stream
        The stream in the recipe, whose entries define how the tasks' own tables are read.

    Raises
    ------
    DataError
        The table does not have the named columns, or the template is invalid.
    InputError
        An option does not apply to language models, or it is unclear which columns form the prompt.
    """
    if asked.image or len(asked.text) > 1:
        given = "`--image`" if asked.image else "two columns of `--text`"
        raise InputError(
            f"The run's model is a language model, which reads a prompt: use `--prompt-template` "
            f"instead of {given}, such as '{{premise}} {{hypothesis}}'."
        )
    if asked.prompt or asked.text:
        given = asked.prompt or asked.text[0]
        prompt = formats.given_prompt(given, columns, source, closed=True)
        return partial(_prompt_of, prompt, _own_classes(asked.task, classes))
    prompt = _as_learned(columns, source, asked.task, stream)
    if prompt is None:
        raise InputError(
            f"{source} has the columns {list(columns)}: name the one that contains the prompt "
            "with `--text`, or describe how to build it with `--prompt-template`."
        )
    return partial(_prompt_of, prompt, _own_classes(asked.task, classes))


def _as_learned(
    columns: Sequence[str], source: str, task: str | None, stream: object
) -> Prompt | None:
    """Return the prompt template used to train the task, or the usual one for these columns.

    If the task is unknown, the templates of all the run's tables that fit these columns
    must agree; otherwise, the usual one is returned.
    """
    # Any other stream is a benchmark or was made in Python, and names no columns.
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
    """Return the name of the task that an entry in a recipe's stream creates."""
    return str(entry.get("name") or Path(str(entry.get("data", ""))).stem)


def _own_classes(task: str | None, classes: Classes) -> tuple[str, ...]:
    return classes.get(task or "", ())


def _prompt_of(prompt: Prompt, classes: tuple[str, ...], row: Row) -> str | Turns:
    """Return the prompt for a row, with `{choices}` replaced by the classes."""
    made = prompt.of(row, {})
    if isinstance(made, str):
        return _with_choices(made, classes)
    # In a table for training, the last turn is the answer, which must not be read here.
    if made[-1]["role"] == "assistant":
        made = made[:-1]
    if not made:
        raise DataError(f"{row.where}, has a conversation without a question. Leave it out.")
    return made


def _with_choices(prompt: str, classes: tuple[str, ...]) -> str:
    listed = with_choices(prompt, classes)
    if listed != prompt and not classes:
        raise InputError(
            "The prompt lists the classes of its task (`{choices}`): name the task with `--task`. "
            "It must be a task with classes."
        )
    return listed


def prompts(inputs: Sequence[object]) -> Dataset:
    """Return prompts, either all texts or all conversations, as a dataset for a language model.

    Raises
    ------
    InputError
        An input is not a prompt, or texts and conversations are mixed.
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
    """Return the columns from which the run's own tables were read, as one tuple per table."""
    # Any other stream is a benchmark or was made in Python, and names no columns.
    entries = stream if isinstance(stream, list) else []
    columns = []
    for entry in entries:
        named_columns = entry.get(kind)
        if isinstance(named_columns, str):
            columns.append((named_columns,))
        elif isinstance(named_columns, list):
            columns.append(tuple(named_columns))
    return columns


def input_columns(
    columns: Sequence[str],
    asked: Sequence[str],
    source: str,
    *,
    stream: object,
    kind: str,
    option: str,
) -> tuple[str, ...]:
    """Return the columns of a table that contain the inputs of a model.

    Parameters
    ----------
    columns, source
        The columns of the table, and the name of the table in messages.
    asked
        The columns that the user has named: one, or two for pairs of texts. If empty, use
        the columns from which a task of the run was read, or otherwise `text` or `image`.
    stream
        The stream in the recipe, whose entries name the columns of the tasks' own tables.
    option
        The option that names the column, for messages.

    Raises
    ------
    InputError
        The table does not have these columns.
    """
    candidates = [tuple(asked)] if asked else [*read_before(stream, kind), (kind,)]
    # The run's own tables may differ: take the first one whose columns this table has.
    for candidate in candidates:
        if set(candidate) <= set(columns):
            return candidate
    missing = next(name for name in candidates[-1] if name not in columns)
    raise InputError(
        f"{source} has no column `{missing}`. Its columns: {list(columns)}. "
        f"Name the one that contains the input with `{option}`."
    )


def texts_or_pairs(inputs: Sequence[object]) -> Dataset:
    """Return texts or pairs of texts as a dataset for the backbone.

    Raises
    ------
    InputError
        An input is not a text or a pair of texts, or texts and pairs are mixed.
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
    """Return an input as the cells of a row: two cells for a pair, otherwise one."""
    if isinstance(value, tuple | list) and len(value) == 2:
        return tuple(value)
    return (value,)
