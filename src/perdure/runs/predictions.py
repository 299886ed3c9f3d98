"""Predictions for a table: its rows, with the class, its probability and the task added."""

from collections.abc import Sequence
from itertools import islice
from pathlib import Path

import pyarrow as pa

from perdure.data.rows import Table
from perdure.data.table_output import Types, check_output, table_output
from perdure.errors import DataError
from perdure.evaluation.progress_bar import Progress
from perdure.models.examples import BATCH_SIZE
from perdure.runs.model import Model, names_of_answers
from perdure.storage import files

BATCHES = 8
"""The number of batches whose rows are in memory at a time.

Among these rows, the model reads those of similar length together, which saves padding.
"""
MADE = {"label": pa.string(), "probability": pa.float64(), "task": pa.string()}


def predict_table(
    model: Model,
    table: Table,
    output: Path,
    *,
    text: Sequence[str] = (),
    image: str | None = None,
    task: str | None = None,
    batch_size: int = BATCH_SIZE,
    quiet: bool = True,
) -> int:
    """Write a table with the columns `label`, `probability` and `task` added; return its length.

    An added column is called `predicted_…` if the table has one of its name. All other cells
    stay as they are. The whole table is checked before anything is predicted; after that only
    some rows at a time are in memory. The output appears whole or not at all.

    Parameters
    ----------
    output
        A file that ends in `.csv`, `.tsv`, `.jsonl`, `.json` or `.parquet`.
    text, image
        The columns of the input; by default those that the run was trained on, else `text` or
        `image`. Two columns of texts are read as pairs.
    task
        The task of all rows, if it is known; by default the task posterior weighs the tasks.

    Raises
    ------
    DataError
        The input of a row cannot be read, or the table lacks the column, or has no rows.
    OutputError
        `output` already exists, the disk is full, or writing is not allowed.
    """
    check_output(output)  # the reading below may take an hour
    asked = [image] if image else list(text)
    columns = model.input_columns(table.columns, asked, f"`{table.path}`")
    # a first pass over all rows; their types decide how the output is written
    types, count = _seen(model, table, columns)
    names = names_of_answers(types.columns)
    made = {names[key]: kind for key, kind in MADE.items()}
    rows = table.rows()  # read again: the table need not fit into memory
    done = 0
    # `check`: the file takes its place only if no task was forgotten while it was made
    with (
        files.writing(output, replace=False, check=model.sources.check) as file,
        table_output(file, output, table, types, made) as written,
        Progress("Predicting", count, quiet=quiet) as progress,
    ):
        while chunk := list(islice(rows, BATCHES * batch_size)):
            inputs = [model.input_of(row, columns) for row in chunk]
            answers = model.predict(
                inputs,
                task=task,
                batch_size=batch_size,
            )
            answered = []
            for row, answer in zip(chunk, answers, strict=True):
                cells = row.cells | answer.named(names)
                answered.append(cells)
            written.write(answered)
            done += len(chunk)
            progress.to(done, reached=done == count)
    return count


def _seen(model: Model, table: Table, columns: Sequence[str]) -> tuple[Types, int]:
    """Check all rows, so that the last cannot fail after hours; return their types and number."""
    types = Types()
    count = 0
    for row in table.rows():
        model.input_of(row, columns)
        types.see(row.cells)
        count += 1
    if not count:
        raise DataError(f"`{table.path}` has no rows, only the names of columns.")
    return types, count
