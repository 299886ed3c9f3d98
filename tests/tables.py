"""Tables as tests write and read them, by other means than perdure's where that can be."""

import csv
import io
import json
import random
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from perdure.data.rows import Table


def write(path, rows, columns=("text", "label")):
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([columns, *rows])
    return str(path)


ROWS = [(f"w{i} w{i + 1}", "yes" if i % 2 else "no") for i in range(40)]


def read_table(path):
    """The cells of all rows of a table."""
    return [row.cells for row in Table.open(path).rows()]


def write_rows(path: Path, columns: list[str], rows: list[list[str]]) -> Path:
    """Write texts in the format that the name says, by other means than perdure's."""
    objects = [dict(zip(columns, row, strict=True)) for row in rows]
    if path.suffix == ".parquet":
        cells = {name: pa.array([each[name] for each in objects], pa.string()) for name in columns}
        pq.write_table(pa.table(cells), path, row_group_size=2)
        return path
    text = io.StringIO(newline="")
    if path.suffix == ".json":
        json.dump(objects, text, indent=random.choice([None, 1]))
    elif path.suffix == ".jsonl":
        text.writelines(json.dumps(each, ensure_ascii=False) + "\n" for each in objects)
    else:
        delimiter = {".semicolon": ";"}.get(
            Path(path.stem).suffix, "\t" if path.suffix == ".tsv" else ","
        )
        csv.writer(text, delimiter=delimiter).writerows([columns, *rows])
    path.write_bytes(text.getvalue().encode())
    return path
