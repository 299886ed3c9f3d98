"""Predictions for a table: the same rows with the class, its probability and the task added, in a new file."""

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
"""The number of batches whose rows are in memory at a time; of these, rows of like length are read together."""
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
    """Write a table with the columns `label`, `probability` and `task` added; return the number of its rows.

    A column is called `predicted_…` where the table has one of that name. All other cells stay as they are.
    The whole table is checked before anything is predicted; then some rows at a time are in memory. The
    output appears whole or not at all.

    Parameters
    ----------
    output
        A file that ends in `.csv`, `.tsv`, `.jsonl`, `.json` or `.parquet`.
    text, image
        The columns of the input; by default those that the run was trained on, else `text` or `image`. Two
        columns of texts are read as pairs.
    task
        The task of all rows, if it is known; by default the task posterior weighs the tasks.

    Raises
    ------
    DataError
        A row has no input that can be read, or the table has no such column, or no rows.
    OutputError
        There is something at `output`, the disk is full, or writing is not allowed.
    """
    check_output(output)
    columns = model.input_columns(
        table.columns, [image] if image else list(text), f"`{table.path}`"
    )
    types, count = _seen(model, table, columns)
    names = names_of_answers(types.columns)
    made = {names[key]: kind for key, kind in MADE.items()}
    rows = table.rows()
    done = 0
    with (
        files.writing(output, replace=False, check=model.sources.check) as file,
        table_output(file, output, table, types, made) as written,
        Progress("Predicting", count, quiet=quiet) as progress,
    ):
        while chunk := list(islice(rows, BATCHES * batch_size)):
            inputs = [model.input_of(row, columns) for row in chunk]
            answers = model.predict(inputs, task=task, batch_size=batch_size)
            written.write(
                [
                    row.cells | answer.named(names)
                    for row, answer in zip(chunk, answers, strict=True)
                ]
            )
            done += len(chunk)
            progress.to(done, reached=done == count)
    return count


def _seen(model: Model, table: Table, columns: Sequence[str]) -> tuple[Types, int]:
    """Check all rows, so that the last one does not fail after hours; return their types and number."""
    types = Types()
    count = 0
    for row in table.rows():
        model.input_of(row, columns)
        types.see(row.cells)
        count += 1
    if not count:
        raise DataError(f"`{table.path}` has no rows, only the names of columns.")
    return types, count
