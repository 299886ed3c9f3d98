"""One's own data: every mistake gets one clear sentence, and nothing is guessed silently."""

import numpy as np
import pytest
from datasets import Dataset
from PIL import Image
from tables import ROWS, read_table, write

from perdure import DataError, InputError, Task, TaskStream, read_tasks
from perdure.data.splits import divided, split_rows


@pytest.mark.parametrize("ending", ["csv", "tsv", "jsonl", "parquet"])
def test_reads_tables(ending, tmp_path):
    path = str(tmp_path / f"mail.{ending}")
    data = Dataset.from_dict({"message": [t for t, _ in ROWS], "queue": [c for _, c in ROWS]})
    save = {"csv": data.to_csv, "jsonl": data.to_json, "parquet": data.to_parquet}
    data.to_csv(path, sep="\t", index=False) if ending == "tsv" else save[ending](path)
    (task,) = read_tasks(path, text="message", label="queue", seed=1)
    assert (task.name, task.classes, task.kind) == ("mail", ("no", "yes"), "text")
    assert (len(task.train), len(task.validation), len(task.test)) == (28, 4, 8)
    texts = [set(getattr(task, split)["text"]) for split in ("train", "validation", "test")]
    assert len(set.union(*texts)) == 40  # no text in two splits
    (again,) = read_tasks(path, text="message", label="queue", seed=1)
    (other,) = read_tasks(path, text="message", label="queue", seed=2)
    assert again.test["text"][:] == task.test["text"][:] != other.test["text"][:]


def test_splits_that_are_there_are_used(tmp_path):
    files = {
        split: write(tmp_path / f"{split}.csv", ROWS[i : i + 6])
        for i, split in ((0, "train"), (6, "test"))
    }
    (task,) = read_tasks(files, name="mail")
    assert len(task.test) == 6 and len(task.train) + len(task.validation) == 6


def test_one_table_with_several_tasks(tmp_path):
    path = write(
        tmp_path / "all.csv",
        [(t, c, n) for n in ("a", "b") for t, c in ROWS],
        ("text", "label", "topic"),
    )
    assert [task.name for task in read_tasks(path, task="topic")] == ["a", "b"]


def test_numbers_as_classes_keep_their_order(tmp_path):
    (task,) = read_tasks(
        write(tmp_path / "stars.csv", [(t, i % 11) for i, (t, _) in enumerate(ROWS)])
    )
    assert task.classes == tuple(str(i) for i in range(11))


def test_a_folder_of_images(tmp_path):
    for i in range(12):
        place = tmp_path / "pets" / ("cat" if i % 2 else "dog")
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((4, 4, 3), i, dtype=np.uint8)).save(place / f"{i}.png")
    (task,) = read_tasks(str(tmp_path / "pets"))
    assert (task.name, task.kind, task.classes) == ("pets", "image", ("cat", "dog"))
    assert task.train[0]["image"].size == (4, 4)


@pytest.mark.parametrize(
    ("rows", "options", "message"),
    [
        (
            ROWS,
            {"label": "class"},
            r"mail.csv` has no column `class`. Its columns: \['text', 'label'\]. Name .* `label`",
        ),
        (ROWS, {"text": "body"}, "has no column `body`.* Name the column with the text as `text`"),
        (
            ROWS,
            {"image": "photo"},
            "has no column `photo`.* Name the column with the image as `image`",
        ),
        (
            ROWS,
            {"task": "topic"},
            "has no column `topic`.* Name the column with the task as `task`",
        ),
        (
            [(t, "same") for t, _ in ROWS],
            {},
            r"needs at least two different classes, got \['same'\]",
        ),
        ([*ROWS, ("w1", "rare")], {}, "class `rare` has too few examples"),
        ([*ROWS, ("w1", "")], {}, r"row 41 \(line 42\), has nothing in column `label`"),
        ([*ROWS, ("", "yes")], {}, r"row 41 \(line 42\), has nothing in column `text`"),
        (
            [*ROWS, ("w1", "")],
            {"task": "label", "text": "text"},
            r"row 41 \(line 42\), has nothing in column `label`",
        ),
    ],
)
def test_mistakes(rows, options, message, tmp_path):
    with pytest.raises(DataError, match=message):
        read_tasks(write(tmp_path / "mail.csv", rows), **options)


def test_more_mistakes(tmp_path):
    with pytest.raises(DataError, match="There is no file"):
        read_tasks(str(tmp_path / "nothing.csv"))
    with pytest.raises(DataError, match="could not be read"):
        read_tasks("nobody/nothing")
    with pytest.raises(DataError, match="empty.csv` has no rows"):
        read_tasks(write(tmp_path / "empty.csv", []), label="label")
    train = write(tmp_path / "train.csv", ROWS)
    with pytest.raises(
        DataError, match="split `test`, has the label `perhaps`, which does not occur in training"
    ):
        read_tasks(
            {"train": train, "test": write(tmp_path / "test.csv", [("w1", "perhaps")])}, name="mail"
        )
    with pytest.raises(DataError, match="names the splits .*'dev'.*it needs `train`"):
        read_tasks({"train": train, "dev": train}, name="mail")
    with pytest.raises(DataError, match="it needs `train`"):
        read_tasks({"test": train}, name="mail")
    with pytest.raises(DataError, match="Give the task a `name`"):
        read_tasks({"train": train, "test": train})
    odd = Dataset.from_dict({"body": ["x"], "label": [0]})
    odd.to_csv(tmp_path / "odd.csv")
    with pytest.raises(DataError, match="say which holds the input"):
        read_tasks(str(tmp_path / "odd.csv"))


def test_bytes_that_are_not_utf8(tmp_path):
    path = tmp_path / "latin.csv"
    path.write_bytes(
        b"text,label\n" + b"".join(f"caf\u00e9 {t},{c}\n".encode("latin-1") for t, c in ROWS)
    )
    with pytest.raises(
        DataError,
        match="line 2, is not written in utf-8. Save the table as UTF-8, or give its `enc",
    ):
        read_tasks(str(path))
    (task,) = read_tasks(str(path), encoding="latin-1")
    assert task.train["text"][0].startswith("caf\u00e9 ")
    with pytest.raises(DataError, match="is not written in utf-8"):
        read_table(path)


def test_json_lines_that_are_not_utf8(tmp_path):
    path = tmp_path / "latin.jsonl"
    path.write_bytes('{"text": "caf\u00e9", "label": "a"}\n'.encode("latin-1"))
    with pytest.raises(DataError, match="is not written in utf-8"):
        read_tasks(str(path))
    with pytest.raises(DataError, match="There is no encoding `klingon`"):
        read_tasks(str(path), encoding="klingon")


def test_words_that_look_like_nothing_and_numbers_that_are_none(tmp_path):
    words = ["NA", "None", "null", "①", "--1"]
    (task,) = read_tasks(write(tmp_path / "odd.csv", [(w, w) for w in words for _ in range(5)]))
    assert sorted(task.classes) == sorted(words)


def test_an_image_column_of_paths(tmp_path):
    for name, value in (("dark", 0), ("light", 200)):
        Image.fromarray(np.full((4, 4, 3), value, dtype=np.uint8)).save(tmp_path / f"{name}.png")
    rows = [(str(tmp_path / f"{name}.png"), name) for name in ("dark", "light") for _ in range(6)]
    (task,) = read_tasks(
        write(tmp_path / "t.csv", rows, ("file", "shade")), image="file", label="shade"
    )
    assert task.kind == "image" and task.train[0]["image"].size == (4, 4)


def test_a_text_of_100_000_characters(tmp_path, bert):
    rows = [(f"w{i} " * 50_000, c) if i == 3 else (t, c) for i, (t, c) in enumerate(ROWS)]
    (task,) = read_tasks(write(tmp_path / "long.csv", rows))
    assert (
        max(max(bert.encode(task.rows(s)).lengths) for s in ("train", "validation", "test")) == 16
    )


def test_tables_that_cannot_be_read(tmp_path):
    with pytest.raises(DataError, match="There is no file"):
        read_table(tmp_path / "nothing.csv")
    with pytest.raises(DataError, match="is a folder"):
        read_table(tmp_path)
    (tmp_path / "x.jsonl").write_text("{]")
    with pytest.raises(DataError, match="line 1, is not JSON"):
        read_table(tmp_path / "x.jsonl")


def rows(labels=(0, 1), **columns):
    return Dataset.from_dict({"text": ["x"] * len(labels), "label": list(labels)} | columns)


def test_tasks_and_streams_check_themselves(toy, pictures):
    good = rows()
    with pytest.raises(DataError, match="cannot be the name of a task"):
        Task("a.b", ("x", "y"), good, good, good)
    with pytest.raises(DataError, match="split `test`, is empty"):
        Task("a", ("x", "y"), good, good, good.select([]))
    with pytest.raises(DataError, match="has label 2, but there are 2 classes"):
        Task("a", ("x", "y"), rows([0, 2]), good, good)
    with pytest.raises(DataError, match="has no column `label`"):
        Task("a", ("x", "y"), good, good.remove_columns("label"), good)
    with pytest.raises(InputError, match="two tasks named `fruit`"):
        TaskStream("s", (toy[0], toy[0]))
    with pytest.raises(InputError, match="same classes"):
        TaskStream("s", toy.tasks, "domain")
    with pytest.raises((InputError, TypeError), match="scenario"):
        TaskStream("s", toy.tasks, "other")
    with pytest.raises(InputError, match="mixes text and images"):
        TaskStream("s", (toy[0], pictures[0]))
    with pytest.raises(InputError, match="has no task"):
        TaskStream("s", ())
    with pytest.raises(InputError, match="No task named `frut`. Did you mean `fruit`?"):
        toy.task("frut")


def test_streams_can_be_cut_and_ordered(toy):
    assert toy.ordered(["shape", "fruit"]).names == ["shape", "fruit"]
    small = toy.limited(train=5, test=7)
    assert [(len(t.train), len(t.validation), len(t.test)) for t in small] == [(5, 12, 7)] * 3
    assert toy.limited(train=5)[0].train["text"][:] == small[0].train["text"][:]


def test_divided_keeps_the_shares_of_classes():
    data = rows([0] * 80 + [1] * 20)
    some, rest = divided(data, 10, seed=0)
    assert sorted(some["label"]) == [0] * 8 + [1] * 2 and len(rest) == 90
    everything, nothing = divided(data, 200, seed=0)
    assert len(everything) == 100 and len(nothing) == 0
    parts = split_rows([0] * 5 + [1] * 5, shares=[0.2, 0.2], seed=0)
    assert sorted(np.concatenate(parts).tolist()) == list(range(10))
