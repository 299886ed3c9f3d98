"""Predictions for tables: every format in and out, cells as they were written,
all of the output or nothing.
"""

import csv
import json
import os
import signal
import stat
from pathlib import Path
from types import SimpleNamespace

import forked
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from tables import read_table
from tokenizers.processors import TemplateProcessing

from perdure import DataError, InputError, Model, OutputError, Recipe, RunError
from perdure.checks.models import WORDS
from perdure.data.rows import Table
from perdure.data.table_output import safe_in_spreadsheets
from perdure.runs.predictions import predict_table

CLASSES = ("-1", "=1+1", "+plus", "plain")


@pytest.fixture(scope="module")
def run(pico, tmp_path_factory) -> Path:
    """A run that has learned one task, whose classes look like numbers and formulas."""
    folder = tmp_path_factory.mktemp("predictions")
    rows = [
        [f"{WORDS[13 * (i % 4)]} {WORDS[13 * (i % 4) + i % 3]} {WORDS[i % 7]}", CLASSES[i % 4]]
        for i in range(40)
    ]
    with (folder / "signs.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("body", "label"), *rows])
    recipe = {
        "backbone": {"model": str(pico("bert")), "max_length": 8},
        "stream": [{"data": str(folder / "signs.csv"), "text": "body"}],
        "method": "ncm",
        "evaluation": {"steps": "none"},
    }
    Recipe.parse(recipe).run(folder / "run")
    return folder / "run"


@pytest.fixture
def model(run) -> Model:
    return Model(run)


def write(path: Path, rows: list[dict]) -> Path:
    """Write a small table by other means than ours."""
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows, indent=1))
    else:
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, rows[0], delimiter="\t" if path.suffix == ".tsv" else ";")
            writer.writeheader()
            writer.writerows(rows)
    return path


def predicted(model: Model, source: Path, output: Path, **options) -> list[dict]:
    """Predict a table; return the rows of the output."""
    table = Table.open(source)
    count = predict_table(model, table, output, **options)
    rows = read_table(output)
    assert len(rows) == count
    return rows


ENDINGS = (".csv", ".tsv", ".jsonl", ".json", ".parquet")
TEXT_ROWS = [
    {"body": "w0 w1", "code": "007", "note": 'a, "b"; c\td\ne'},
    {"body": "w13 w14", "code": "1.10", "note": ""},
    {"body": "w26 ä 日本", "code": "true", "note": "=HYPERLINK(1)"},
]


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("written", ENDINGS)
def test_rows_keep_their_cells(ending, written, model, tmp_path):
    rows = predicted(model, write(tmp_path / f"new{ending}", TEXT_ROWS), tmp_path / f"out{written}")
    assert [{name: row[name] for name in ("body", "code", "note")} for row in rows] == TEXT_ROWS
    assert list(rows[0]) == ["body", "code", "note", "label", "probability", "task"]
    answers = model.predict([row["body"] for row in TEXT_ROWS])
    assert [float(row["probability"]) for row in rows] == [answer.probability for answer in answers]
    assert {row["task"] for row in rows} == {"signs"}


def test_values_keep_their_types(model, tmp_path):
    source = tmp_path / "new.jsonl"
    lines = [
        '{"body": "w1", "n": 1.10, "big": 12345678901234567890, '
        '"tags": ["a", {"b": 1e5}], "gone": null}',
        '{"body": "w2", "n": 2, "big": 3, "more": true, "half": "\\ud83d"}',
    ]
    source.write_text("\n".join(lines))
    predict_table(model, Table.open(source), tmp_path / "out.jsonl")
    written = (tmp_path / "out.jsonl").read_text().splitlines()
    assert [line.split(', "label"')[0] + "}" for line in written] == lines
    row = predicted(model, source, tmp_path / "out.csv")[0]
    assert (row["n"], row["tags"], row["gone"], row["more"]) == (
        "1.10",
        '["a", {"b": 1e5}]',
        "",
        "",
    )
    source.write_text(lines[0])
    (row,) = predicted(model, source, tmp_path / "out.parquet")
    assert row["n"] == 1.1 and row["big"] == "12345678901234567890" and row["gone"] is None


def test_parquet_keeps_its_schema(model, tmp_path):
    columns = {
        "body": pa.array(["w1", "w2"], pa.large_string()),
        "stars": pa.array([5, None], pa.int8()),
        "day": pa.array([0, 1], pa.date32()),
        "image": pa.array([b"\xff", b""], pa.binary()),
        "kind": pa.array(["a", "b"]).dictionary_encode(),
    }
    pq.write_table(pa.table(columns), tmp_path / "new.parquet")
    table = Table.open(tmp_path / "new.parquet")
    predict_table(model, table, tmp_path / "out.parquet")
    schema = pq.read_schema(tmp_path / "out.parquet")
    assert {name: schema.field(name).type for name in columns} == {
        name: value.type for name, value in columns.items()
    }
    assert schema.field("probability").type == pa.float64()
    with pytest.raises(DataError, match="can only be written as Parquet"):
        predict_table(model, table, tmp_path / "out.csv")
    assert not (tmp_path / "out.csv").exists()


def test_a_class_is_no_formula_in_a_spreadsheet(model, tmp_path):
    source = write(tmp_path / "new.csv", [{"body": f"w{13 * i} w{13 * i}"} for i in range(4)])
    exact = {row["label"] for row in predicted(model, source, tmp_path / "out.jsonl")}
    assert exact == set(CLASSES)
    for ending in (".csv", ".tsv"):
        shown = {row["label"] for row in predicted(model, source, tmp_path / f"out{ending}")}
        assert shown == {"-1", "'=1+1", "'+plus", "plain"}


@pytest.mark.parametrize("text", ["-1", "+1.5", "-.5", "-1e5", "1", "a=b", "", "x\ty"])
def test_numbers_and_words_are_no_formulas(text):
    assert safe_in_spreadsheets(text) == text


@pytest.mark.parametrize(
    "text", ["=A1", "-1+1", "+1-1", "@SUM(A1)", "\t=A1", "\r=A1", "-", "+-1", "-inf", "－1", "-１"]
)
def test_formulas(text):
    assert safe_in_spreadsheets(text) == f"'{text}"


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ('{"body": null}', r"row 3 \(line 3\), has nothing in column `body`"),
        ('{"body": 5}', r"row 3 .*the number `5`"),
        ('{"body": ["w1"]}', "row 3 .*a list"),
        ('{"other": "w1"}', "row 3 .*has nothing in column `body`"),
        ('["w1"]', "row 3, is not an object"),
        ("{", "line 3, is not JSON"),
        ('{"body": "w1 \\ud83d"}', "row 3 .*half of a surrogate pair"),
    ],
)
def test_a_row_that_cannot_be_read_is_named_before_anything_is_predicted(
    row, reason, model, tmp_path, monkeypatch
):
    source = tmp_path / "new.jsonl"
    source.write_text(f'{{"body": "w1"}}\n{{"body": ""}}\n{row}\n')
    monkeypatch.setattr(
        Model, "predict", lambda *given, **options: pytest.fail("something was predicted")
    )
    with pytest.raises(DataError, match=reason):
        predict_table(model, Table.open(source), tmp_path / "out.jsonl")
    assert os.listdir(tmp_path) == ["new.jsonl"]


def test_an_empty_text_is_answered_by_what_is_usual(model, tmp_path):
    source = write(tmp_path / "new.jsonl", [{"body": "w1"}, {"body": ""}])
    rows = predicted(model, source, tmp_path / "out.jsonl")
    assert (
        0 < float(rows[1]["probability"]) <= 1 and "NaN" not in (tmp_path / "out.jsonl").read_text()
    )


def rows_of(count: int) -> list[dict]:
    return [{"body": " ".join(WORDS[i % 50 : i % 50 + i % 6 + 1])} for i in range(count)]


@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_batches_do_not_matter(batch_size, model, tmp_path, monkeypatch):
    source = write(tmp_path / "new.csv", rows_of(70))
    sizes = []
    predict = Model.predict
    monkeypatch.setattr(
        Model,
        "predict",
        lambda self, rows, **given: sizes.append(len(rows)) or predict(self, rows, **given),
    )
    rows = predicted(model, source, tmp_path / "out.csv", batch_size=batch_size)
    whole = predict(model, [row["body"] for row in rows_of(70)])
    assert [row["label"].lstrip("'") for row in rows] == [answer.label for answer in whole]
    assert [float(row["probability"]) for row in rows] == pytest.approx(
        [a.probability for a in whole], abs=1e-5
    )
    assert max(sizes) <= 8 * batch_size and sum(sizes) == 70


@pytest.mark.parametrize(
    "error", [OSError(28, "No space left on device"), DataError("`x.png` is damaged.")]
)
def test_what_fails_half_way_leaves_nothing(error, model, tmp_path, monkeypatch):
    source = write(tmp_path / "new.csv", rows_of(20))
    for ending in ENDINGS:
        calls = []
        predict = Model.predict

        def fail(self, rows, calls=calls, predict=predict, **given):
            calls.append(rows)
            if len(calls) == 2:
                raise error
            return predict(self, rows, **given)

        with monkeypatch.context() as patch, pytest.raises((OutputError, DataError)) as raised:
            patch.setattr(Model, "predict", fail)
            predict_table(model, Table.open(source), tmp_path / f"out{ending}", batch_size=1)
        assert "None" not in str(raised.value) and os.listdir(tmp_path) == ["new.csv"]
    assert len(predicted(model, source, tmp_path / "out.csv")) == 20


KILLED = """
import os, sys
from pathlib import Path
from types import SimpleNamespace
from perdure.runs.model import Model
from perdure.runs.predictions import predict_table
from perdure.data.rows import Table
predict, calls = Model.predict, []
def kill(self, rows, **given):
    calls.append(rows)
    return predict(self, rows, **given) if len(calls) < 2 else os.kill(os.getpid(), 9)
Model.predict = kill
predict_table(Model(sys.argv[1]), Table.open(sys.argv[2]), Path(sys.argv[3]), batch_size=1)
"""


def test_a_kill_leaves_nothing_that_the_next_start_does_not_remove(run, model, tmp_path):
    source = write(tmp_path / "new.csv", rows_of(20))
    done = forked.python(KILLED, run, source, tmp_path / "out.csv")
    assert done.returncode == -signal.SIGKILL and not (tmp_path / "out.csv").exists()
    assert len(predicted(model, source, tmp_path / "out.csv")) == 20
    assert sorted(os.listdir(tmp_path)) == ["new.csv", "out.csv"]


def test_the_output_has_the_permissions_of_the_umask(model, tmp_path):
    source = write(tmp_path / "new.csv", rows_of(1))
    before = os.umask(0o027)
    try:
        predict_table(model, Table.open(source), tmp_path / "out.csv")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "out.csv").stat().st_mode) == 0o640


@pytest.mark.parametrize(
    ("output", "message"),
    [
        ("out.xlsx", r"must end in one of `.csv`, `.tsv`, `.jsonl`, `.json`, `.parquet`"),
        ("out", "must end in one of"),
        ("nowhere/out.csv", "There is no folder"),
        ("new.csv", "already exists"),
        ("folder.csv", "is not a regular file"),
        ("link.csv", "is a link"),
    ],
)
def test_places_that_are_not_written(output, message, model, tmp_path):
    source = write(tmp_path / "new.csv", rows_of(1))
    (tmp_path / "folder.csv").mkdir()
    (tmp_path / "link.csv").symlink_to(tmp_path / "elsewhere.csv")
    with pytest.raises((DataError, OutputError), match=message):
        predict_table(model, Table.open(source), tmp_path / output)
    assert not (tmp_path / "elsewhere.csv").exists()


def test_a_task_that_is_forgotten_meanwhile_is_not_written_down(model, tmp_path, monkeypatch):
    source = write(tmp_path / "new.csv", rows_of(1))
    monkeypatch.setattr("perdure.runs.sources.Sources.gone", lambda self, now: ["signs"])
    with pytest.raises(
        RunError, match="The task `signs` .* was forgotten or learned again meanwhile"
    ):
        predict_table(model, Table.open(source), tmp_path / "out.csv")
    assert os.listdir(tmp_path) == ["new.csv"]


def test_which_column_is_read(model, tmp_path):
    rows = [{"text": "w0 w0", "body": "w13 w13", "third": "w26 w26"}]
    source = write(tmp_path / "new.jsonl", rows)
    answers = [model.predict([text])[0].label for text in rows[0].values()]
    assert (
        predicted(model, source, tmp_path / "a.jsonl")[0]["label"] == answers[1]
    )  # as it was learned
    assert predicted(model, source, tmp_path / "b.jsonl", text=["third"])[0]["label"] == answers[2]
    other = write(tmp_path / "other.jsonl", [{"text": "w0 w0"}])
    assert predicted(model, other, tmp_path / "c.jsonl")[0]["label"] == answers[0]
    with pytest.raises(
        InputError, match=r"no column `missing`. Its columns: \['text', 'body', 'third'\]"
    ):
        predict_table(model, Table.open(source), tmp_path / "d.jsonl", text=["missing"])


def test_pairs(model, tmp_path):
    model.backbone.processor.backend_tokenizer.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B [SEP]",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    source = write(tmp_path / "new.jsonl", [{"premise": "w0 w0", "hypothesis": "w13"}])
    (row,) = predicted(model, source, tmp_path / "out.jsonl", text=["premise", "hypothesis"])
    (answer,) = model.predict([("w0 w0", "w13")])
    assert (row["label"], row["probability"]) == (answer.label, answer.probability)


def test_columns_that_are_there_already_stay(model, tmp_path):
    source = write(
        tmp_path / "new.jsonl", [{"body": "w0", "label": "x"}, {"body": "w1", "task": "y"}]
    )
    rows = predicted(model, source, tmp_path / "out.jsonl")
    assert list(rows[0]) == ["body", "label", "predicted_label", "probability", "predicted_task"]
    assert rows[1]["task"] == "y"


def test_a_device_that_is_not_here(run):
    with pytest.raises(
        InputError, match="There is no device `cuda:99` here. Give one of: auto, cpu"
    ):
        Model(run, device="cuda:99")
    with pytest.raises(InputError, match="There is no device `tpu` here"):
        Model(run, device="tpu")
    assert Model(run, device="cpu").backbone.device.type == "cpu"


def test_a_model_goes_to_the_accelerator_that_is_here(run, monkeypatch):
    asked = []
    monkeypatch.setattr(
        "perdure.models.backbone.Backbone.to",
        lambda self, device: asked.append(str(device)) or self,
    )
    alone = SimpleNamespace(device=torch.device("cuda:3"), num_processes=1)
    monkeypatch.setattr("perdure.learning.engine.state", lambda: alone)
    Model(run)
    Recipe.parse({"backbone": str(Model(run).backbone.source), "stream": "demo"}).make_backbone()
    assert asked == ["cuda:3"] * 3


def test_the_command(run, tmp_path, monkeypatch, perdure):  # noqa: F811
    monkeypatch.chdir(tmp_path)
    (tmp_path / "latin.csv").write_bytes("body;n\ncaf\u00e9 w1;1\nw2;2\n".encode("latin-1"))
    assert "is not written in utf-8" in perdure("predict", run, "latin.csv")[2]
    options = (
        "--encoding",
        "latin-1",
        "--delimiter",
        ";",
        "--batch-size",
        "1",
        "--device",
        "cpu",
        "--quiet",
    )
    assert perdure("predict", run, "latin.csv", *options) == (
        0,
        "2 rows: latin.predicted.csv\n",
        "",
    )
    assert (
        (tmp_path / "latin.predicted.csv")
        .read_text()
        .startswith("body;n;label;probability;task\ncaf\u00e9 w1;1;")
    )
    status, out, err = perdure("predict", run, "latin.csv", *options[:-1], "-o", "x.parquet")
    assert (status, err) == (0, "") and "Predicting: 2 done, took" in out
    assert pq.read_table(tmp_path / "x.parquet").num_rows == 2
    assert perdure("predict", run, "x.parquet", "--batch-size", "0")[0] == 2
    assert "There is no device" in perdure("predict", run, "x.parquet", "--device", "nothing")[2]
    (tmp_path / "head.csv").write_text("body,n\n")
    assert "`head.csv` has no rows" in perdure("predict", run, "head.csv")[2]
    (tmp_path / "twice.csv").write_text("body,body\nw1,w2\n")
    assert "several columns named `body`" in perdure("predict", run, "twice.csv")[2]
    assert not list(tmp_path.glob("*.predicted.csv"))[1:]
