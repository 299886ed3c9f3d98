"""The benchmarks: on the real data where it is, on small folders of the same layout,
and on a false hub.
"""

import gzip
import io
import json
from collections import Counter
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import ClassLabel, Dataset, Features, Value
from PIL import Image

from perdure import registry
from perdure.benchmarks.clinc150 import DOMAINS, clinc150
from perdure.benchmarks.permuted_mnist import permuted_mnist
from perdure.benchmarks.split_cifar100 import split_cifar100
from perdure.benchmarks.split_mnist import split_mnist
from perdure.benchmarks.standard_cl import CARDS, ORDERS, standard_cl
from perdure.data.task import SPLITS, Task
from perdure.errors import DataError, InputError, UnknownName

SHARED = Path(__file__).parents[3] / "shared" / "data"
INTENTS = [intent for intents in DOMAINS.values() for intent in intents.split()]

# What the cards on the hub say: the columns that hold the input, and the names of the labels.
NLI = ["entailment", "neutral", "contradiction"]
STARS = ["1 star", "2 star", "3 stars", "4 stars", "5 stars"]
TRUTH = ["False", "True"]
HUB = {
    ("fancyzhx/ag_news", None): (["text"], ["World", "Sports", "Business", "Sci/Tech"]),
    ("SetFit/amazon_reviews_multi_en", None): (["text"], STARS),
    ("Yelp/yelp_review_full", None): (["text"], STARS),
    ("fancyzhx/dbpedia_14", None): (["title", "content"], list("abcdefghijklmn")),
    ("community-datasets/yahoo_answers_topics", None): (
        ["question_title", "question_content", "best_answer"],
        list("abcdefghij"),
    ),
    ("stanfordnlp/imdb", None): (["text"], ["neg", "pos"]),
    ("stanfordnlp/sst2", None): (["sentence"], ["negative", "positive"]),
    ("nyu-mll/glue", "mnli"): (["premise", "hypothesis"], NLI),
    ("nyu-mll/glue", "qqp"): (["question1", "question2"], ["not_duplicate", "duplicate"]),
    ("aps/super_glue", "rte"): (["premise", "hypothesis"], ["entailment", "not_entailment"]),
    ("aps/super_glue", "cb"): (
        ["premise", "hypothesis"],
        ["entailment", "contradiction", "neutral"],
    ),
    ("aps/super_glue", "copa"): (
        ["premise", "choice1", "choice2", "question"],
        ["choice1", "choice2"],
    ),
    ("aps/super_glue", "wic"): (["word", "sentence1", "sentence2"], TRUTH),
    ("aps/super_glue", "boolq"): (["question", "passage"], TRUTH),
    ("aps/super_glue", "multirc"): (["paragraph", "question", "answer"], TRUTH),
}


def png(value: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (4, 4), (value % 256, value // 256, 0)).save(file, "PNG")
    return file.getvalue()


def table(inputs: list, labels: list[int], split: list[str], column: str = "text") -> pa.Table:
    return pa.table({"split": split, "label": pa.array(labels, pa.int16()), column: inputs})


@pytest.fixture
def texts(tmp_path):
    """Three tasks; a has 40 training and 12 test examples of two classes,
    one three times the other.
    """
    classes = {"a": ["no", "yes"], "b": ["no", "yes"], "c": ["red", "green", "blue"]}
    for name in classes:
        labels = [0, 0, 0, 1] * 13 if name != "c" else [0, 1, 2, 2] * 13
        rows = table([f"{name} {i}" for i in range(52)], labels, ["train"] * 40 + ["test"] * 12)
        pq.write_table(rows, tmp_path / f"{name}.parquet")
    manifest = {name: {"labels": labels} for name, labels in classes.items()}
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    return tmp_path


@pytest.fixture
def intents(tmp_path):
    """Two training queries an intent, one of the others, and two that are out of scope."""
    labels = sorted([*INTENTS, "oos"])
    split, numbers = [], []
    for name in ["train", "train", "val", "test"]:
        split += [name] * 150
        numbers += [labels.index(intent) for intent in INTENTS]
    split += ["oos_train", "oos_test"]
    numbers += [labels.index("oos")] * 2
    queries = [f"{i} {labels[number]}" for i, number in enumerate(numbers)]
    pq.write_table(table(queries, numbers, split), tmp_path / "clinc150.parquet")
    (tmp_path / "manifest.json").write_text(json.dumps({"clinc150": {"labels": labels}}))
    return tmp_path


@pytest.fixture
def photos(tmp_path):
    """Six classes with ten training and five test images."""
    labels = list(range(6)) * 15
    rows = table([png(i) for i in range(90)], labels, ["train"] * 60 + ["test"] * 30, "image")
    pq.write_table(rows, tmp_path / "cifar100_small.parquet")
    (tmp_path / "cifar100_classes.json").write_text(json.dumps(list("uvwxyz")))
    return tmp_path


def contents(task: Task) -> dict[str, list]:
    if task.kind == "text":
        return {split: getattr(task, split)["text"][:] for split in SPLITS}
    return {
        split: [image.getpixel((0, 0)) for image in getattr(task, split)["image"][:]]
        for split in SPLITS
    }


def check_splits(make, **settings) -> None:
    """The same seed chooses the same rows, another one others; no row is in two splits."""
    first, again, other = (make(seed=seed, **settings)[0] for seed in (0, 0, 1))
    assert contents(first) == contents(again)
    assert contents(first) != contents(other)
    rows = [row for part in contents(first).values() for row in part]
    assert len(rows) == len(set(rows))


def test_registered():
    names = {"standard_cl", "clinc150", "split_cifar100"}
    assert names <= set(registry.names("benchmark"))
    for name in names:
        settings = registry.options(registry.find("benchmark", name))
        assert {"folder", "train", "validation", "test", "seed", "scenario"} <= set(settings)


# -- standard_cl


def test_orders_are_the_papers():
    assert {name: len(order.split()) for name, order in ORDERS.items()} == {
        **{f"length5-{letter}": 5 for letter in "abcd"},
        **{f"order{i}": 4 for i in (1, 2, 3)},
        **{f"order{i}": 15 for i in (4, 5, 6)},
    }
    assert all(len(set(order.split())) == len(order.split()) for order in ORDERS.values())
    assert set(" ".join(ORDERS.values()).split()) == set(CARDS)


def test_standard_cl_reads_a_folder(texts):
    stream = standard_cl(folder=str(texts), order=["c", "a", "b"])
    assert stream.names == ["c", "a", "b"] and stream.scenario == "class"
    assert stream.classes == ("red", "green", "blue", "no", "yes")
    assert stream.class_index("a") == stream.class_index("b") == [3, 4]
    task = stream.task("a")
    assert [len(getattr(task, split)) for split in SPLITS] == [36, 4, 12]
    assert task.test[0] == {"text": "a 40", "label": 0}


def test_standard_cl_draws_examples(texts):
    task = standard_cl(folder=str(texts), order=["a"], train=20, validation=8, test=4)[0]
    shares = {split: Counter(getattr(task, split)["label"][:]) for split in SPLITS}
    assert shares == {"train": {0: 15, 1: 5}, "validation": {0: 6, 1: 2}, "test": {0: 3, 1: 1}}
    check_splits(standard_cl, folder=str(texts), order=["a"], train=20)


def test_validation_takes_a_fifth_at_most(texts):
    task = standard_cl(folder=str(texts), order=["a"], validation=1000)[0]
    assert [len(getattr(task, split)) for split in SPLITS] == [32, 8, 12]


def test_a_tasks_examples_do_not_depend_on_the_order(texts):
    first = standard_cl(folder=str(texts), order=["a", "b"], train=8)
    second = standard_cl(folder=str(texts), order=["c", "b", "a"], train=8)
    assert contents(first.task("b")) == contents(second.task("b"))


def test_standard_cl_refuses(texts, tmp_path):
    with pytest.raises(UnknownName, match="No order named `order7`. Did you mean `order"):
        standard_cl(folder=str(texts), order="order7")
    with pytest.raises(UnknownName, match="No task named `d`. Available: a, b, c"):
        standard_cl(folder=str(texts), order=["a", "d"])
    with pytest.raises(InputError, match="names task `a` twice"):
        standard_cl(folder=str(texts), order=["a", "a"])
    with pytest.raises(InputError, match="same classes"):
        standard_cl(folder=str(texts), order=["a", "c"], scenario="domain")
    with pytest.raises(DataError, match="`train` must be at least 1"):
        standard_cl(folder=str(texts), order=["a"], train=0)
    with pytest.raises(DataError, match=r"`.*nowhere` must hold `manifest.json` with the `labels`"):
        standard_cl(folder=str(tmp_path / "nowhere"))
    (texts / "b.parquet").unlink()
    with pytest.raises(DataError, match=r"must hold `b.parquet`"):
        standard_cl(folder=str(texts), order=["a", "b"])
    (texts / "a.parquet").write_bytes(b"no table")
    with pytest.raises(DataError, match=r"must hold `a.parquet`"):
        standard_cl(folder=str(texts), order=["a"])


@pytest.mark.parametrize(
    ("rows", "reason"),
    [
        ({"text": ["x"], "label": [0]}, "has no column `split`"),
        ({"text": ["x"], "split": ["train"]}, "has no column `label`"),
        ({"text": ["x"], "label": [0], "split": ["train"]}, "has no rows in split `test`"),
        (
            {"text": ["x", "y", "z"], "label": [0, 1, 0], "split": ["train"] * 2 + ["test"]},
            "single training",
        ),
    ],
)
def test_standard_cl_refuses_a_table(texts, rows, reason):
    pq.write_table(pa.table(rows), texts / "a.parquet")
    with pytest.raises(DataError, match=reason):
        standard_cl(folder=str(texts), order=["a"])


def false_hub(path: str, config: str | None = None) -> dict[str, Dataset]:
    """Two examples a class, in the columns of the card of `path`;
    where labels are secret they are -1.
    """
    columns, names = HUB[path, config]
    label = "topic" if "yahoo" in path else "label"
    features = {name: Value("string") for name in [*columns, "extra"]} | {
        label: ClassLabel(names=names)
    }
    secret = path in ("nyu-mll/glue", "aps/super_glue", "stanfordnlp/sst2")
    held = {"mnli": "validation_matched"}.get(config or "", "validation") if secret else "test"

    def rows(split: str, labels: list[int]) -> Dataset:
        values = {
            name: [f"{split} {name} {i}" for i in range(len(labels))]
            for name in [*columns, "extra"]
        }
        return Dataset.from_dict(values | {label: labels}, features=Features(features))

    labels = [*range(len(names)), *range(len(names))]
    return {"train": rows("train", labels), held: rows("held", labels)} | (
        {"test": rows("secret", [-1])} if secret else {}
    )


def test_standard_cl_reads_the_hub(monkeypatch):
    monkeypatch.setattr(datasets, "load_dataset", false_hub)
    stream = standard_cl(order="order6")
    assert stream.names == ORDERS["order6"].split()
    for task in stream:
        assert task.test.column_names == ["text", "label"]
        assert task.test["label"][:] == [*range(len(task.classes))] * 2
        assert all(text and "extra" not in text and "{" not in text for text in task.test["text"])
    assert {
        name: stream.task(name).classes for name in ("imdb", "rte", "cb", "qqp", "copa", "mnli")
    } == {
        "imdb": ("Bad", "Good"),
        "rte": ("entailment", "contradiction"),
        "cb": ("entailment", "contradiction", "neutral"),
        "qqp": ("False", "True"),
        "copa": ("A", "B"),
        "mnli": ("entailment", "neutral", "contradiction"),
    }
    assert stream.task("yelp").classes == stream.task("amazon").classes
    assert stream.task("yahoo").test[0]["text"] == (
        "held question_title 0 held question_content 0 held best_answer 0"
    )
    assert (
        stream.task("wic").test[1]["text"]
        == "word: held word 1\nheld sentence1 1\nheld sentence2 1"
    )


def test_the_hubs_empty_cells_are_no_text(monkeypatch):
    def load(path, config=None):
        found = false_hub(path, config)
        empty = [None] * len(found["test"])
        cells = (
            found["test"].remove_columns("question_content").add_column("question_content", empty)
        )
        return found | {"test": cells}

    monkeypatch.setattr(datasets, "load_dataset", load)
    text = standard_cl(order=["yahoo"])[0].test[0]["text"]
    assert text == "held question_title 0  held best_answer 0"


@pytest.mark.parametrize("make", [standard_cl, clinc150, split_cifar100])
def test_no_hub(monkeypatch, make):
    def load(*args):
        raise ConnectionError("offline\nat all")

    monkeypatch.setattr(datasets, "load_dataset", load)
    with pytest.raises(DataError, match="could not be read: offline"):
        make()


def test_the_hub_has_other_tasks():
    with pytest.raises(UnknownName, match="No task named `agnew`. Did you mean `agnews`"):
        standard_cl(order=["agnew"])


# -- clinc150


def test_the_domains_are_those_of_the_paper():
    assert len(DOMAINS) == 10 and len(set(INTENTS)) == 150
    assert {len(intents.split()) for intents in DOMAINS.values()} == {15}


def test_clinc150_reads_a_folder(intents):
    stream = clinc150(folder=str(intents))
    assert stream.names == list(DOMAINS) and stream.classes == tuple(INTENTS)
    for task in stream:
        assert [len(getattr(task, split)) for split in SPLITS] == [30, 15, 15]
        for split in SPLITS:
            rows = getattr(task, split)
            assert all(row["text"].split()[1] == task.classes[row["label"]] for row in rows)
    assert len(clinc150(folder=str(intents), train=15)[0].train) == 15
    assert stream.unknown is not None and stream.unknown["text"][:] == ["601 oos"]
    assert stream.until(2).unknown is stream.unknown


def test_clinc150_in_other_tasks(intents):
    stream = clinc150(folder=str(intents), tasks=30)
    assert len(stream) == 30 and stream.classes == tuple(INTENTS) and stream.names[0] == "intents01"
    shuffled = clinc150(folder=str(intents), order_seed=1)
    assert shuffled.names != list(DOMAINS) and set(shuffled.names) == set(DOMAINS)
    assert shuffled.task("work").classes == tuple(DOMAINS["work"].split())


def test_clinc150_refuses(intents):
    for tasks in (0, 7, 150):
        with pytest.raises(DataError, match=f"`tasks` must divide 150 .* got {tasks}"):
            clinc150(folder=str(intents), tasks=tasks)
    (intents / "manifest.json").write_text(json.dumps({"clinc150": {"labels": INTENTS[1:]}}))
    with pytest.raises(DataError, match="lack 1 of its 150 intents, such as `freeze_account`"):
        clinc150(folder=str(intents))
    (intents / "manifest.json").write_text("{}")
    with pytest.raises(DataError, match="must hold `clinc150.parquet`, and `manifest.json`"):
        clinc150(folder=str(intents))


def test_clinc150_may_have_no_queries_out_of_scope(intents):
    rows = pq.read_table(intents / "clinc150.parquet").to_pylist()
    known = [row for row in rows if not row["split"].startswith("oos")]
    pq.write_table(pa.Table.from_pylist(known), intents / "clinc150.parquet")
    assert clinc150(folder=str(intents)).unknown is None


def test_clinc150_reads_the_hub(monkeypatch):
    names = [*reversed(INTENTS), "oos"]

    def load(path, config):
        assert (path, config) == ("clinc/clinc_oos", "plus")
        features = Features({"text": Value("string"), "intent": ClassLabel(names=names)})
        rows = {"text": [f"0 {name}" for name in names], "intent": list(range(151))}
        part = Dataset.from_dict(rows, features=features)
        return {"train": part, "validation": part, "test": part}

    monkeypatch.setattr(datasets, "load_dataset", load)
    stream = clinc150()
    assert stream.names == list(DOMAINS)
    assert stream.unknown is not None and stream.unknown.to_dict() == {"text": ["0 oos"]}
    for task in stream:
        assert len(task.validation) == 15 and "oos" not in task.classes
        assert all(row["text"] == f"0 {task.classes[row['label']]}" for row in task.validation)


# -- split_cifar100


def test_split_cifar100_reads_a_folder(photos):
    stream = split_cifar100(folder=str(photos), tasks=3)
    assert [task.classes for task in stream] == [("u", "v"), ("w", "x"), ("y", "z")]
    assert stream.names == ["part01", "part02", "part03"]
    for task in stream:
        assert task.kind == "image" and task.train[0]["image"].size == (4, 4)
        assert [len(getattr(task, split)) for split in SPLITS] == [18, 2, 10]
    # the images of the third task's classes are those whose number leaves 4 or 5
    task = stream[2]
    assert [row["image"].getpixel((0, 0))[0] % 6 - 4 for row in task.test] == task.test["label"][:]
    check_splits(split_cifar100, folder=str(photos), tasks=3, train=10)


def test_split_cifar100_shuffles_classes(photos):
    stream = split_cifar100(
        folder=str(photos), tasks=2, order_seed=1993, train=6, validation=3, test=3
    )
    order = np.random.RandomState(1993).permutation(6)
    assert stream.classes == tuple("uvwxyz"[i] for i in order)
    for task in stream:
        assert [len(getattr(task, split)) for split in SPLITS] == [6, 3, 3]
        for row in task.test:
            assert "uvwxyz"[row["image"].getpixel((0, 0))[0] % 6] == task.classes[row["label"]]


def test_split_cifar100_refuses(photos, tmp_path):
    for tasks in (0, 4, 6):
        with pytest.raises(DataError, match=f"`tasks` must divide the 6 classes .* got {tasks}"):
            split_cifar100(folder=str(photos), tasks=tasks)
    (photos / "cifar100_classes.json").unlink()
    with pytest.raises(
        DataError, match="must hold `cifar100_small.parquet` and `cifar100_classes.json`"
    ):
        split_cifar100(folder=str(photos), tasks=3)
    with pytest.raises(DataError, match=r"must hold one file `cifar100\*.parquet`, it holds 0"):
        split_cifar100(folder=str(tmp_path / "nowhere"))


def test_split_cifar100_reads_the_hub(monkeypatch):
    def load(path):
        assert path == "uoft-cs/cifar100"
        fine = ClassLabel(names=list("uvwx"))
        features = Features(
            {"img": datasets.Image(), "fine_label": fine, "coarse_label": ClassLabel(num_classes=2)}
        )
        rows = {"img": [{"bytes": png(i)} for i in range(20)], "fine_label": [0, 1, 2, 3] * 5}
        part = Dataset.from_dict(rows | {"coarse_label": [0, 1] * 10}, features=features)
        return {"train": part, "test": part}

    monkeypatch.setattr(datasets, "load_dataset", load)
    stream = split_cifar100(tasks=2)
    assert stream.classes == tuple("uvwx")
    assert stream[1].test.column_names == ["image", "label"]
    assert [row["image"].getpixel((0, 0))[0] % 4 - 2 for row in stream[1].test] == stream[1].test[
        "label"
    ][:]


# -- split_mnist


def test_split_mnist(digits):
    stream = split_mnist()
    assert (
        stream.names == ["digits01", "digits23", "digits45", "digits67", "digits89"]
        and stream.scenario == "class"
    )
    assert stream.classes == tuple("0123456789")
    for task in stream:
        assert task.kind == "image" and task.train[0]["image"].size == (28, 28)
        assert [len(getattr(task, split)) for split in SPLITS] == [14, 2, 4]
        for split in SPLITS:
            for row in getattr(task, split):
                assert row["image"].getpixel((0, 0)) // 10 == int(task.classes[row["label"]])
    check_splits(split_mnist, train=6)
    assert contents(split_mnist(seed=3)[0])["test"] == contents(stream[0])["test"]
    task = split_mnist(tasks=2, train=10, validation=5, test=5)[1]
    assert task.classes == tuple("56789") and [len(getattr(task, split)) for split in SPLITS] == [
        10,
        5,
        5,
    ]
    assert len(split_mnist(tasks=1)) == 1


@pytest.mark.parametrize("tasks", [-5, 0, 3, 10])
def test_split_mnist_refuses(tasks, digits):
    with pytest.raises(DataError, match=f"`tasks` must divide the 10 classes .* got {tasks}"):
        split_mnist(tasks=tasks)


def test_split_mnist_has_no_domains(digits):
    with pytest.raises(InputError, match="same classes"):
        split_mnist(scenario="domain")


def idx(values: np.ndarray) -> bytes:
    """An idx file of bytes: a header with the number of dimensions and the shape."""
    magic = 0x800 + values.ndim
    return np.array([magic, *values.shape], ">u4").tobytes() + values.astype(np.uint8).tobytes()


@pytest.fixture
def mnist(tmp_path) -> Path:
    """A folder with idx files of 40 training and 20 test images, some of them compressed."""
    random = np.random.default_rng(3)
    for start, count in (("train", 40), ("t10k", 20)):
        images = random.integers(0, 256, (count, 28, 28))
        images[:, 0, 0] = labels = np.arange(count) % 10
        (tmp_path / f"{start}-images.idx3-ubyte").write_bytes(idx(images))
        content = gzip.compress(idx(labels))
        (tmp_path / f"{start}-labels-idx1-ubyte.gz").write_bytes(content)
    return tmp_path


def test_split_mnist_from_a_folder(mnist):
    stream = split_mnist(folder=str(mnist), validation=2)
    for task in stream:
        assert [len(getattr(task, split)) for split in SPLITS] == [6, 2, 4]
        for row in [*task.train, *task.test]:
            assert row["image"].getpixel((0, 0)) == int(task.classes[row["label"]])


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("train-images.idx3-ubyte", None, "must contain `train-images-idx3-ubyte`"),
        ("train-images.idx3-ubyte", b"short", "cannot be read as an idx file"),
        ("t10k-images.idx3-ubyte", idx(np.zeros((20, 28))), "cannot be read as an idx file"),
        ("t10k-images.idx3-ubyte", idx(np.zeros((3, 28, 28))), "one image of 28 × 28 pixels"),
        ("t10k-labels-idx1-ubyte.gz", b"not compressed", "cannot be read as an idx file"),
        ("t10k-labels-idx1-ubyte.gz", gzip.compress(idx(np.full(20, 11))), "label 11, not a digit"),
    ],
    # without names pytest would use the content, and gzip writes the time
    ids=["missing", "short", "flat", "shape", "not_compressed", "label"],
)
def test_damaged_idx_files_are_named(name, content, said, mnist):
    (mnist / name).unlink()
    if content is not None:
        (mnist / name).write_bytes(content)
    with pytest.raises(DataError, match=said):
        split_mnist(folder=str(mnist))


# -- permuted_mnist


def test_permutations_by_hand(digits):
    stream = permuted_mnist(tasks=3, seed=4)
    assert stream.scenario == "domain" and stream.classes == tuple("0123456789")
    assert stream.names == ["permutation00", "permutation01", "permutation02"]
    random = np.random.RandomState(4)
    orders = [np.arange(784), random.permutation(784), random.permutation(784)]
    originals = {split: pixels(getattr(stream[0], split)) for split in SPLITS}
    for task, order in zip(stream, orders, strict=True):
        assert [len(getattr(task, split)) for split in SPLITS] == [70, 10, 20]
        for split in SPLITS:
            data = getattr(task, split)
            assert np.array_equal(pixels(data), originals[split][:, order])
            assert data["label"][:] == getattr(stream[0], split)["label"][:]
    # The first pixel of a row of the package is its number, a tenth of which is the digit.
    assert (originals["train"][:, 0] // 10).tolist() == stream[0].train["label"][:]


def test_permuted_mnist_has_a_seed_for_images_and_one_for_orders(digits, mnist):
    first = permuted_mnist(tasks=2, seed=1, permutation_seed=5, train=20)
    second = permuted_mnist(tasks=2, seed=2, permutation_seed=5, train=20)
    third = permuted_mnist(tasks=2, seed=1, permutation_seed=6, train=20)
    assert not np.array_equal(pixels(first[0].train), pixels(second[0].train))
    order = np.random.RandomState(5).permutation(784)
    for stream in (first, second):
        assert np.array_equal(pixels(stream[1].train), pixels(stream[0].train)[:, order])
    assert np.array_equal(pixels(first[0].train), pixels(third[0].train))
    assert not np.array_equal(pixels(first[1].train), pixels(third[1].train))
    whole = permuted_mnist(folder=str(mnist), tasks=1, validation=10)
    assert [len(getattr(whole[0], split)) for split in SPLITS] == [30, 10, 20]


def pixels(data: Dataset) -> np.ndarray:
    return np.stack([np.asarray(image).ravel() for image in data["image"]])


# -- the real data


def shared(name: str) -> str:
    folder = SHARED / name
    if not folder.is_dir():
        pytest.skip(f"there is no folder {folder}")
    return str(folder)


@pytest.mark.real
def test_the_real_texts():
    stream = standard_cl(folder=shared("text15"), order="order4", train=60, validation=30, test=40)
    assert stream.names == ORDERS["order4"].split()
    assert len(stream.classes) == 40  # of 60, the shared ones once
    labels = json.loads((Path(shared("text15")) / "manifest.json").read_text())
    for task in stream:
        assert task.classes == tuple(labels[task.name]["labels"])
        assert set(task.classes) == set(CARDS[task.name].classes.split("|"))
        assert all(
            abs(len(getattr(task, s)) - n) <= 7 for s, n in zip(SPLITS, (60, 30, 40), strict=True)
        )
        texts = contents(task)
        assert not set(texts["train"]) & set(texts["validation"])
        assert set(task.train["label"][:]) == set(range(len(task.classes)))
    assert set(stream.task("yelp").classes) == set(stream.task("amazon").classes)


@pytest.mark.real
def test_the_real_intents():
    folder = shared("intents")
    manifest = json.loads((Path(folder) / "manifest.json").read_text())["clinc150"]
    assert {name: intents.split() for name, intents in DOMAINS.items()} == manifest["domains"]
    stream = clinc150(folder=folder, train=150, validation=150, test=150)
    assert {len(getattr(task, split)) for task in stream for split in SPLITS} == {150}
    assert Counter(stream[0].train["label"][:]) == dict.fromkeys(range(15), 10)


@pytest.mark.real
def test_the_real_photographs():
    stream = split_cifar100(
        folder=shared("vision"), train=50, validation=20, test=30, order_seed=1993
    )
    assert stream.classes[:3] == ("road", "palm_tree", "snake")  # 68, 56, 78 as in PyCIL
    assert {len(task.train) for task in stream} == {50}
    assert stream[0].train[0]["image"].size == (32, 32)
