"""What is learned of a table, and asked with `predict`, is what is written in it;
or one sentence says why not.
"""

import csv
import json
import os
import socket

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tables import write_rows

from perdure import DataError, read_tasks
from perdure.data.class_names import complaint, in_order
from perdure.data.rows import Table, class_name, texts

FORMATS = ("csv", "semicolon.csv", "tsv", "jsonl", "json", "parquet")
TELLTALE = [
    *("001", "01", "1", "1.0", "1.10", "1.1", "+1", "-1", "1e5", "100000", "1_000", "0x10", "①"),
    *("true", "True", "TRUE", "false", "no", "nan", "NaN", "inf", "-inf", "Infinity"),
    *(
        "NA",
        "N/A",
        "None",
        "null",
        "NULL",
        "#N/A",
        "2020-01-01",
        "2020-01-01T10:00:00",
        "1/2",
        "12:30",
    ),
    *(
        "=1+1",
        " a",
        "a ",
        "'",
        '"',
        '"a"',
        "a,b",
        "a;b",
        "a\tb",
        "a|b",
        "a\nb",
        "a\r\nb",
        "\\N",
        "[]",
        "{}",
    ),
]
CHARACTERS = st.characters(exclude_categories=["Cs"], exclude_characters="\0")
CELLS = st.one_of(st.sampled_from(TELLTALE), st.text(CHARACTERS, min_size=1, max_size=20))
WRITTEN = CELLS.filter(lambda cell: cell.strip())


@pytest.mark.parametrize("ending", FORMATS)
@given(
    cells=st.lists(
        st.tuples(WRITTEN, WRITTEN), min_size=2, max_size=8, unique_by=lambda pair: pair[1]
    )
)
@settings(max_examples=12, deadline=None)
def test_what_is_learned_is_what_is_written(ending, cells, tmp_path_factory):
    rows = [[text, name, "not asked for"] for text, name in cells for _ in range(3)]
    folder = tmp_path_factory.mktemp("property")
    path = str(write_rows(folder / f"t.{ending}", ["text", "label", "note"], rows))
    (task,) = read_tasks({"train": path, "validation": path, "test": path}, name="t")
    learned = [
        [text, task.classes[i]]
        for text, i in zip(task.train["text"], task.train["label"], strict=True)
    ]
    assert learned == [row[:2] for row in rows]
    asked = [texts(row, ["text"], empty=True) for row in Table.open(path).rows()]
    assert asked == task.train["text"][:]


@given(names=st.lists(WRITTEN, unique=True, max_size=12), data=st.data())
@settings(max_examples=100, deadline=None)
def test_the_order_of_classes_depends_on_their_names_alone(names, data):
    shuffled = data.draw(st.permutations(names))
    assert in_order(shuffled) == in_order(names)


@pytest.mark.parametrize(
    ("value", "name"),
    [
        *(
            ("1.10", "1.10"),
            ("1e5", "1e5"),
            ("7", "7"),
            ("true", "true"),
            ("false", "false"),
            ("-0.0", "-0.0"),
        ),
        *(('"true"', "true"), ("12345678901234567890", "12345678901234567890")),
    ],
)
def test_a_class_in_json_is_called_as_it_is_written(value, name, tmp_path):
    path = tmp_path / "t.jsonl"
    path.write_text(f'{{"label": {value}}}\n')
    (row,) = Table.open(path).rows()
    assert class_name(row, "label") == name


def test_a_class_in_parquet_has_one_name_for_each_type(tmp_path):
    from datetime import date, datetime
    from decimal import Decimal

    values = {
        "whole": (pa.array([7]), "7"),
        "small": (pa.array([7], pa.uint8()), "7"),
        "half": (pa.array([0.5]), "0.5"),
        "one": (pa.array([1.0]), "1.0"),
        "truth": (pa.array([True]), "true"),
        "price": (pa.array([Decimal("1.10")]), "1.10"),
        "day": (pa.array([date(2020, 1, 2)]), "2020-01-02"),
        "moment": (pa.array([datetime(2020, 1, 2, 3)]), "2020-01-02T03:00:00"),
        "word": (pa.array(["x"]).dictionary_encode(), "x"),
    }
    pq.write_table(
        pa.table({name: array for name, (array, _) in values.items()}), tmp_path / "t.parquet"
    )
    (row,) = Table.open(tmp_path / "t.parquet").rows()
    assert {name: class_name(row, name) for name in values} == {
        name: text for name, (_, text) in values.items()
    }


def test_classes_that_a_parquet_file_declares(tmp_path):
    features = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["no", "yes"])}
    )
    rows = {"text": [f"w{i}" for i in range(12)], "label": [1, 0] * 6}
    path = tmp_path / "t.parquet"
    datasets.Dataset.from_dict(rows, features=features).to_parquet(path)
    (task,) = read_tasks(str(path))
    assert task.classes == ("no", "yes")
    labels = dict(zip(rows["text"], rows["label"], strict=True))
    assert task.train["label"][:] == [labels[text] for text in task.train["text"]]
    rows["label"][4] = -1
    datasets.Dataset.from_dict(rows, features=features).to_parquet(path)
    with pytest.raises(
        DataError, match="row 5, has the class -1 in column `label`, which declares 2 classes"
    ):
        read_tasks(str(path))


CSV = "text,label\n"
BROKEN = [
    ("t.csv", CSV + "a,x\nb,c,x\n", r"row 2 \(line 3\), has 3 cells, but the header has 2"),
    ("t.csv", CSV + "a,x\n\nb\n", r"row 2 \(line 4\), has 1 cell, but the header has 2"),
    (
        "t.csv",
        CSV + '"a\nb",x\n"c,x\nd,y\n',
        "the row that begins on line 4, is not CSV: unexpected end of data",
    ),
    ("t.csv", CSV + '"a" b,x\n', "the row that begins on line 2, is not CSV"),
    ("t.csv", "text,text,label\na,b,x\n", "several columns named `text`"),
    ("t.csv", "text,label,,\na,x,,\n", "several columns without a name"),
    ("t.csv", CSV, "has no rows"),
    ("t.csv", "", "is empty. Its first line must name the columns"),
    ("t.csv", CSV + "a\0,x\n", "line 2, contains a NUL character"),
    ("t.csv", CSV + ",x\n", r"row 1 \(line 2\), has nothing in column `text`"),
    ("t.csv", CSV + "   ,x\n", "nothing but whitespace in column `text`"),
    ("t.csv", CSV + "a,\n", "has nothing in column `label`"),
    ("t.csv", b"\x1f\x8b\x08\x00", "is compressed with gzip"),
    ("t.csv", b"PK\x03\x04rest", "is a ZIP archive or an Excel workbook"),
    ("t.jsonl", b"PAR1rest", "is a Parquet file. Give it a name that ends in `.parquet`"),
    ("t.csv", CSV.encode("utf-16"), "line 1, is not written in utf-8"),
    ("t.csv", b"text,label\na,x\n" * 9 + b"\xff", "line 19, is not written in utf-8"),
    ("t.parquet", "text,label\na,x\n", "cannot be read as Parquet"),
    ("t.xlsx", "", "its name must end in `.csv`, `.tsv`, `.jsonl`, `.json` or `.parquet`"),
    ("t", "text,label\na,x\n", "its name must end in"),
    ("t.jsonl", '{"text": "a", "label": "x"}\n["b"]\n', "row 2, is not an object with columns"),
    ("t.jsonl", "1\n2\n", "row 1, is not an object with columns"),
    (
        "t.jsonl",
        '\n{"text": "a", "label": "x"}\n{"text"\n',
        "line 3, is not JSON: Expecting ':' delimiter at character 8",
    ),
    ("t.jsonl", '{"text": "a", "text": "b"}\n', "an object has the key `text` twice"),
    (
        "t.jsonl",
        '{"text": "a", "label": "x"}\n{"text": "b"}\n',
        "row 2 .* has nothing in column `label`",
    ),
    ("t.jsonl", '{"text": null, "label": "x"}\n', "has nothing in column `text`"),
    ("t.jsonl", '{"text": "", "label": "x"}\n', "has nothing in column `text`"),
    (
        "t.jsonl",
        '{"text": {"a": 1}, "label": "x"}\n',
        "has an object in column `text`, where a text is expected",
    ),
    ("t.jsonl", '{"text": ["a"], "label": "x"}\n', "has a list in column `text`"),
    ("t.jsonl", '{"text": 1.50, "label": "x"}\n', "has the number `1.50` in column `text`"),
    ("t.jsonl", '{"text": true, "label": "x"}\n', "has the truth value `true` in column `text`"),
    (
        "t.jsonl",
        '{"text": "a", "label": ["x", "y"]}\n',
        "has a list in column `label`, where a class is expected",
    ),
    ("t.jsonl", '{"text": "a", "label": {}}\n', "has an object in column `label`"),
    (
        "t.jsonl",
        '{"text": "a", "label": NaN}\n',
        "has the number `nan` in column `label`, where a class is expected",
    ),
    (
        "t.jsonl",
        '{"text": "a \\ud83d", "label": "x"}\n',
        r"has `\\ud83d` in column `text`: half of a surrogate pair",
    ),
    ("t.jsonl", '{"text": "a", "label": "\\udc00"}\n', r"has `\\udc00` in column `label`"),
    ("t.jsonl", '{"text": "a\\u0000", "label": "x"}\n', "has a NUL character in column `text`"),
    ("t.jsonl", '{"text": ' + "[" * 100_000, "line 1, is not JSON"),
    (
        "t.jsonl",
        '{"text": "a", "label": ' + "9" * 5000 + "}",
        "line 1, is not JSON: Exceeds the limit",
    ),
    ("t.json", "[]", "contains an empty list"),
    ("t.json", '[{"text": "a", "label": "x"}, 3]', "row 2, is not an object"),
    (
        "t.json",
        '[{"text": "a", "label": "x"} {"text": "b"}]',
        "after row 1: the list of objects is incomplete",
    ),
    ("t.json", '[{"text": "a", "label": "x"}', "after row 1: the list of objects is incomplete"),
    ("t.json", '[{"text": "a", "label": "x"}] 3', "continues after its list of 1 objects"),
    ("t.json", '[{"text": "a", "label": "x"}, {"text": "b", "lab', "row 2, is not JSON"),
    ("t.json", json.dumps({"text": ["a"], "label": ["x"]}), "has a list in column `text`"),
]


@pytest.mark.parametrize(("name", "content", "message"), BROKEN)
def test_a_table_that_cannot_be_read(name, content, message, tmp_path):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(DataError, match=message) as error:
        read_tasks(str(path))
    assert str(path) in str(error.value) and "\n" not in str(error.value)


def test_cells_of_parquet_that_are_no_texts(tmp_path):
    columns = {"text": pa.array([b"w0", b"w1"]), "label": pa.array([0.5, float("nan")])}
    pq.write_table(pa.table(columns), tmp_path / "t.parquet")
    with pytest.raises(
        DataError, match="row 1, has bytes in column `text`, where a text is expected"
    ):
        read_tasks(str(tmp_path / "t.parquet"))
    pq.write_table(pa.table(columns | {"text": pa.array(["a", "b"])}), tmp_path / "t.parquet")
    with pytest.raises(DataError, match="row 2, has the number `nan` in column `label`"):
        read_tasks(str(tmp_path / "t.parquet"))


def test_only_columns_that_are_asked_for_are_read(tmp_path):
    rows = [
        {"text": f"w{i}", "label": "ab"[i % 2], "note": None if i < 20 else {"odd": [float("nan")]}}
        for i in range(40)
    ]
    (tmp_path / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert len(read_tasks(str(tmp_path / "t.jsonl"))[0].train) == 28
    more = "".join(f"v{i},{'ab'[i % 2]},{i}\n" for i in range(6))
    (tmp_path / "test.csv").write_text("text,label,note\n" + more)
    (task,) = read_tasks(
        {"train": str(tmp_path / "t.jsonl"), "test": str(tmp_path / "test.csv")}, name="t"
    )
    assert task.test["text"][:] == [f"v{i}" for i in range(6)]


@pytest.mark.parametrize(
    ("name", "header"),
    [
        *(
            ("a.csv", "text;label"),
            ("a.csv", "text\tlabel"),
            ("a.csv", "text|label"),
            ("a.tsv", "text\tlabel"),
        ),
        *(
            ("a.csv", '"text";"label"'),
            ("a.csv", '"a, b, c, d";text;label'),
            ("a.CSV", "text,label"),
        ),
        *(("a.csv", "\ufefftext,label"), ("a.csv", 'text,label,"x;y;z"')),
    ],
)
def test_the_header_decides_what_separates_cells(name, header, tmp_path):
    expected = {"text": "one, two; three", "label": "x"}
    (tmp_path / name).write_text(header + "\n", encoding="utf-8")
    table = Table.open(tmp_path / name)
    assert {"text", "label"} <= set(table.columns)
    with (tmp_path / name).open("a", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, table.columns, delimiter=table.reader.delimiter, restval="-")
        writer.writerow(expected)
    (row,) = table.rows()
    assert {column: row.cells[column] for column in expected} == expected


def test_a_delimiter_can_be_given(tmp_path):
    (tmp_path / "t.csv").write_text(
        "text:label\n" + "".join(f"w{i},w:{'ab'[i % 2]}\n" for i in range(12))
    )
    (task,) = read_tasks(str(tmp_path / "t.csv"), delimiter=":")
    assert task.classes == ("a", "b") and task.train["text"][0].endswith(",w")
    for wrong in ("::", '"', "\n"):
        with pytest.raises(DataError, match="should be one character"):
            read_tasks(str(tmp_path / "t.csv"), delimiter=wrong)


@pytest.mark.parametrize(
    "name",
    ["a[1].csv", "a*.csv", "what?.csv", "a b.csv", "é{1,2}.csv", "a::b.csv", "~.csv", "%20.csv"],
)
def test_names_are_no_patterns(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for other in ("a1.csv", "ab.csv", "whats.csv", name):
        rows = [[f"{other} w{i}", "xy"[i % 2]] for i in range(12)]
        write_rows(tmp_path / other, ["text", "label"], rows)
    (task,) = read_tasks(name, name="t")
    assert all(text.startswith(name) for text in task.train["text"])


def test_what_is_no_regular_file_is_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "pipe.csv")
    (tmp_path / "folder.csv").mkdir()
    server = socket.socket(socket.AF_UNIX)
    server.bind(str(tmp_path / "socket.csv"))
    os.symlink("/dev/zero", tmp_path / "zero.csv")
    for name in ("pipe", "socket", "zero"):
        with pytest.raises(DataError, match="is a pipe, a device or a socket, not a file"):
            read_tasks(str(tmp_path / f"{name}.csv"))
    server.close()
    table = write_rows(tmp_path / "t.csv", ["text", "label"], [["w1", "a"], ["w2", "b"]])
    with pytest.raises(DataError, match="is a folder, not a table"):
        read_tasks({"train": str(table), "test": str(tmp_path / "folder.csv")}, name="t")
    for name in ("nothing.csv", "x\0y.csv", "x" * 300 + ".csv", "nothing.csv/t.csv"):
        with pytest.raises(DataError, match="There is no file|cannot be"):
            read_tasks(str(tmp_path / name))


def test_a_vast_file_is_not_read_whole(tmp_path):
    for name in ("a.csv", "a.jsonl", "a.json", "a.parquet"):
        with (tmp_path / name).open("wb") as file:
            file.write(b"{")
            file.truncate(50_000_000_000)  # sparse: it takes no room on the disk
        with pytest.raises(DataError, match="contains a NUL character|cannot be read as Parquet"):
            read_tasks(str(tmp_path / name))
    (tmp_path / "b.csv").write_text("text,label\n" + "x" * 10_000_001)
    with pytest.raises(DataError, match="line 2, has more than 10,000,000 characters"):
        read_tasks(str(tmp_path / "b.csv"))


def test_a_long_json_list_is_decoded_in_pieces(tmp_path):
    rows = [{"text": f"w{i} " * (9000 if i == 7 else 90), "label": "ab"[i % 2]} for i in range(900)]
    (tmp_path / "t.json").write_text(json.dumps(rows, indent=1))
    assert [row.cells for row in Table.open(tmp_path / "t.json").rows()] == rows


def test_a_table_is_read_as_it_is_now_and_leaves_no_copy(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets, "load_dataset", None)
    path = tmp_path / "t.csv"
    for words in ("old", "new"):
        write_rows(path, ["text", "label"], [[f"{words} {i:02}", "ab"[i % 2]] for i in range(12)])
        os.utime(path, (10**9, 10**9))
        (task,) = read_tasks(str(path))
        assert all(text.startswith(words) for text in task.train["text"])
    assert not (tmp_path / "cache").exists()


def test_a_folder_of_tables(tmp_path):
    names = (
        "train-00000-of-00002.parquet",
        "train-00001-of-00002.parquet",
        "test.csv",
        "dev.jsonl",
    )
    for place in (tmp_path, tmp_path / "inside" / "data"):
        place.mkdir(parents=True, exist_ok=True)
        for name in names:
            write_rows(
                place / name, ["text", "label"], [[f"{name} {i}", "ab"[i % 2]] for i in range(4)]
            )
    for folder in (tmp_path, tmp_path / "inside"):
        (task,) = read_tasks(str(folder), name="t")
        assert len(task.train) == 8 and task.train["row"][:] == [1, 2, 3, 4] * 2
        assert task.test["text"][0] == "test.csv 0" and task.validation["text"][0] == "dev.jsonl 0"
    for name in names[:2]:
        (tmp_path / name).unlink()
    with pytest.raises(
        DataError, match=r"contains the tables \['dev.jsonl', 'test.csv'\]. Give one of them"
    ):
        read_tasks(str(tmp_path))


def test_labels_that_look_like_texts_or_quantities(tmp_path):
    def read(labels):
        write_rows(
            tmp_path / "t.csv",
            ["text", "label"],
            [[f"w{i}", label] for i, label in enumerate(labels)],
        )
        return read_tasks(str(tmp_path / "t.csv"))[0].classes

    sentences = [f"This is what the text number {i} says in a few words" for i in range(30)]
    with pytest.raises(
        DataError, match="`label` has 30 different values in 30 rows, such as .*look like texts"
    ):
        read(sentences)
    with pytest.raises(DataError, match="look like texts, not classes") as error:
        read([sentence * 100 for sentence in sentences])
    assert len(str(error.value)) < 400
    for numbers in (
        [f"{i / 7:.3f}" for i in range(40)],
        [f"{i % 26 / 5}" for i in range(200)],
        [str(7 * i) for i in range(30)],
    ):
        with pytest.raises(
            DataError, match="look like a quantity to be estimated; perdure learns classes"
        ):
            read(numbers)
    for classes in (
        ["0.0", "1.0"],
        ["1", "2", "3", "4", "5"],
        ["0.5", "1.0", "1.5"],
        [str(i) for i in range(30)],
        sentences[:4],
    ):
        assert sorted(read(classes * 4)) == sorted(classes)


@pytest.mark.parametrize(
    "labels",
    [
        *(
            ["a", "b", "c", "d"],
            ["This text has many words in it", "no"],
            ["1", "2", "3"],
            ["5", "1", "9"],
        ),
        *(
            [str(i) for i in range(30)],
            [f"{i}.0" for i in range(1, 30)],
            ["0.5", "x", "1.5", "2.5"],
        ),
    ],
)
def test_one_example_of_each_class(labels):
    """A table of its own for the test may leave the training so few."""
    assert complaint(labels, "label") is None


def test_few_numbers_with_fractions_that_never_repeat():
    assert "look like a quantity" in str(complaint(["0.0", "3.5", "1.25", "4.75"], "label"))
