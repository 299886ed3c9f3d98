"""Add predictions to a table: for each row, the class, its probability and the task.

A language model adds its answer, the answer's log-probability per token, and the task.
"""

import contextlib
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path

import pyarrow as pa

from perdure.data.rows import Row, Table
from perdure.data.table_output import Cells, Types, check_output, table_output
from perdure.errors import DataError, InputError, PerdureWarning
from perdure.evaluation.progress_bar import Progress
from perdure.learning import engine
from perdure.models.examples import BATCH_SIZE
from perdure.runs.inputs import Asked
from perdure.runs.model import Model, names_of_answers
from perdure.runs.prediction import NOTHING, Prediction, Withheld
from perdure.storage import files

BATCHES = 8
"""The number of batches whose rows are in memory at a time.

Within these rows, inputs of similar length are batched together, which reduces padding.
"""
NUMBERS = ("probability", "score")
"""The added columns that contain numbers; the others contain text."""


def predict_table(
    model: Model,
    table: Table,
    output: Path,
    *,
    text: Sequence[str] = (),
    image: str | None = None,
    template: str | None = None,
    task: str | None = None,
    batch_size: int = BATCH_SIZE,
    withheld: Withheld = NOTHING,
    quiet: bool = True,
) -> int:
    """Write a copy of a table with predictions added, and return the number of rows.

    The added columns are `label`, `probability` and `task`; for a language model,
    `answer`, `score` (the answer's log-probability per token) and `task`. If the table
    already has a column of that name, the new one is called `predicted_…`. All other
    cells are copied unchanged. The whole table is checked before anything is predicted;
    after that, only a few rows are in memory at a time. The output file is written
    completely or not at all. Several processes compute a share of the predictions each,
    and the first one writes all of them.

    Parameters
    ----------
    output
        A file name that ends in `.csv`, `.tsv`, `.jsonl`, `.json` or `.parquet`.
    text, image
        The input columns; by default those on which the run was trained, otherwise `text`
        or `image`. Two `text` columns are read as pairs.
    template
        A prompt template for a language model, such as `"Review: {body}"`.
    task
        The task of all rows, if it is known; by default, the task posterior weights the tasks.
    withheld
        The answers that a classifier withholds.

    Raises
    ------
    DataError
        The input of a row cannot be read, a column is missing, or the table has no rows.
    OutputError
        `output` already exists, the disk is full, or writing is not allowed.
    """
    check_output(output)  # first, because reading the table may take an hour
    withheld.check(model.system)
    asked = Asked(text=text, image=image, prompt=template, task=task)
    read = model.reader(table.columns, f"`{table.path}`", asked)
    # a first pass over all rows; their types decide how the output is written
    types, count = _seen(model, table, read)
    names = names_of_answers(types.columns, model.made)
    made = {}
    for key, name in names.items():
        made[name] = pa.float64() if key in NUMBERS else pa.string()
    rows = table.rows()  # read again, because the table may not fit into memory
    done = 0
    stopped = 0
    quiet = quiet or not engine.first()
    with (
        _written(model, table, output, types, made) as write,
        Progress("Predicting", count, quiet=quiet) as progress,
    ):
        while chunk := list(islice(rows, BATCHES * batch_size)):
            inputs = [read(row) for row in chunk]
            answers = model.predict(
                inputs,
                task=task,
                batch_size=batch_size,
                unknown=withheld.unknown,
                min_probability=withheld.min_probability,
            )
            answered = []
            for row, answer in zip(chunk, answers, strict=True):
                stopped += not getattr(answer, "ended", True)
                cells = row.cells | answer.named(names)
                answered.append(cells)
            write(answered)
            done += len(chunk)
            progress.to(done, reached=done == count)
    if stopped and engine.first():
        limit = model.backbone.settings["max_new_tokens"]
        warnings.warn(
            f"{stopped} of {count} answers were cut off after `max_new_tokens: {limit}` tokens.",
            PerdureWarning,
            stacklevel=2,
        )
    return count


@contextlib.contextmanager
def _written(
    model: Model,
    table: Table,
    output: Path,
    types: Types,
    made: Mapping[str, pa.DataType],
) -> Iterator[Callable[[Sequence[Cells]], None]]:
    """Open the output, and yield a function that writes rows; only the first process writes."""
    if not engine.first():
        yield lambda rows: None
        return
    # `check`: the file is moved into place only if no task was forgotten in the meantime
    with (
        files.writing(output, replace=False, check=model.sources.check) as file,
        table_output(file, output, table, types, made) as written,
    ):
        yield written.write


def predict_one(
    model: Model, prompt: str, *, task: str | None = None, withheld: Withheld = NOTHING
) -> tuple[str, str]:
    """Answer one prompt, or classify one text; return the answer and a sentence about it.

    Raises
    ------
    InputError
        The model reads images, or the prompt is empty.
    """
    if model.backbone.kind != "text":
        raise InputError("`--prompt` is for texts, but the run's model reads images. Give a file.")
    if not prompt.strip():
        raise InputError("`--prompt` is empty. Give a text to answer.")
    (answer,) = model.predict(
        [prompt],
        task=task,
        unknown=withheld.unknown,
        min_probability=withheld.min_probability,
    )
    if isinstance(answer, Prediction):
        if not answer.label:
            return "(no answer)", f"The best answer has probability {answer.probability:.2f}."
        if not answer.task:
            return answer.label, f"No task, probability {answer.probability:.2f}."
        return answer.label, f"Task {answer.task}, probability {answer.probability:.2f}."
    about = f"Task {answer.task}, log-probability per token {answer.score:.2f}."
    if model.check_input(prompt, "The prompt"):
        about += f" The prompt was cut to {model.backbone.settings['max_length']} tokens."
    if not answer.ended:
        about += " The answer was cut off at `max_new_tokens`."
    return answer.answer, about


def _seen(model: Model, table: Table, read: Callable[[Row], object]) -> tuple[Types, int]:
    """Check all rows before any prediction is made; return their column types and their number."""
    types = Types()
    count = 0
    cut = 0
    for row in table.rows():
        cut += model.check_input(read(row), row.where)
        types.see(row.cells)
        count += 1
    if not count:
        raise DataError(f"`{table.path}` has no rows, only the names of columns.")
    if cut and engine.first():
        settings = model.backbone.settings
        verb = "is" if cut == 1 else "are"
        warnings.warn(
            f"{cut} of {count} prompts {verb} longer than `max_length: {settings['max_length']}` "
            f"tokens and will be cut (`truncate: {settings['truncate']}`).",
            PerdureWarning,
            stacklevel=3,
        )
    return types, count
