"""Folders of images: classes are folders, links are followed, and names are names."""

import gc
import hashlib
import os
import shutil
import sys
import warnings

import datasets
import numpy as np
import pytest
from PIL import Image

from perdure import DataError, PerdureWarning, Task, read_tasks
from perdure.data.image_folder import read_image_folder
from perdure.data.task import SPLITS


def fill(folder, *names, start=0):
    """Write an image of one colour, its number, for each name."""
    for number, name in enumerate(names, start=start):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((4, 4, 3), number, dtype=np.uint8)).save(path)
    return folder


def pets(folder, count=6):
    return fill(folder, *(f"{label}/{i}.png" for label in ("cat", "dog") for i in range(count)))


def content(folder):
    """The colours of the images of each class, by split."""
    tables = read_image_folder(folder)
    found = {}
    for split, data in tables.items():
        names = data.features["label"].names
        found[split] = [(names[row["label"]], row["image"].getpixel((0, 0))[0]) for row in data]
    return found


RIGHT = [("cat", i) for i in range(6)] + [("dog", i + 6) for i in range(6)]


def test_links_are_followed(tmp_path):
    store = pets(tmp_path / "store")
    for name in ("files", "folders", "deep"):
        (tmp_path / name).mkdir()
    (tmp_path / "whole").symlink_to(store)
    (tmp_path / "relative").symlink_to("store")
    (tmp_path / "twice").symlink_to("whole")
    for label in ("cat", "dog"):
        (tmp_path / "folders" / label).symlink_to(store / label)
        (tmp_path / "deep" / label).symlink_to(f"../folders/{label}")
        (tmp_path / "files" / label).mkdir()
        for i in range(6):
            (tmp_path / "files" / label / f"{i}.png").symlink_to(store / label / f"{i}.png")
    for name in ("store", "whole", "relative", "twice", "folders", "deep", "files"):
        assert content(tmp_path / name) == {"train": RIGHT}
        (task,) = read_tasks(str(tmp_path / name))
        assert (task.name, task.classes, len(task.test)) == (name, ("cat", "dog"), 2)


def test_links_without_end_are_a_sentence(tmp_path):
    pets(tmp_path / "a")
    (tmp_path / "a" / "cat" / "up").symlink_to(tmp_path / "a")
    with pytest.raises(
        DataError, match=r"a/cat/up` is a link to a folder that contains it, without end. Remove it"
    ):
        read_image_folder(tmp_path / "a")
    fill(tmp_path / "b", "/".join(["x"] * 12) + "/1.png")
    with pytest.raises(DataError, match="is nested too deeply: at most 8 levels of folders"):
        read_image_folder(tmp_path / "b")
    (tmp_path / "c").symlink_to(tmp_path / "c")
    with pytest.raises(DataError):
        read_image_folder(tmp_path / "c")


@pytest.mark.parametrize(
    "name", ["br [v2]", "a*b", "what?", "{x}", "~", "train", "a%20b", "ein Häuschen", "a::b"]
)
def test_names_are_names(name, tmp_path):
    pets(tmp_path / name / name)
    assert content(tmp_path / name / name) == {"train": RIGHT}
    fill(tmp_path / "b", f"c1/{name}.png", f"c2/{name}.png")
    assert content(tmp_path / "b") == {"train": [("c1", 0), ("c2", 1)]}
    if name != "train":
        fill(tmp_path / "c", f"{name}/1.png", "other/1.png")
        assert sorted(content(tmp_path / "c")["train"]) == sorted([(name, 0), ("other", 1)])


def test_splits_are_folders(tmp_path):
    fill(
        tmp_path / "a",
        "train/cat/1.png",
        "train/dog/1.png",
        "val/cat/1.png",
        "Testing/cat/1.png",
        "Testing/dog/1.png",
    )
    right = {
        "train": [("cat", 0), ("dog", 1)],
        "validation": [("cat", 2)],
        "test": [("cat", 3), ("dog", 4)],
    }
    assert content(tmp_path / "a") == right
    fill(tmp_path / "b", "seg_train/seg_train/cat/1.png", "seg_test/seg_test/dog/1.png")
    assert content(tmp_path / "b") == {"train": [("cat", 0)], "test": [("dog", 1)]}
    fill(
        tmp_path / "c", "photos/train/cat/1.png", "photos/test/cat/1.png", "photos/train/dog/1.png"
    )
    assert content(tmp_path / "c") == {"train": [("cat", 0), ("dog", 2)], "test": [("cat", 1)]}
    fill(
        tmp_path / "d", "train/1.png", "bus/1.png", "car/1.png"
    )  # a class that is called like a split
    assert content(tmp_path / "d") == {"train": [("bus", 1), ("car", 2), ("train", 0)]}
    fill(
        tmp_path / "e", "cat/train_1.png", "dog/test.png"
    )  # nor does the name of a file say its split
    assert content(tmp_path / "e") == {"train": [("cat", 0), ("dog", 1)]}


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (
            ["cat/1.png", "cat/more/1.png", "dog/1.png"],
            "are not all at the same depth: `dog/1.png` and `cat/more/1.png`",
        ),
        (["1.png", "2.png"], "The images are directly in `.*`. Put them into one folder per class"),
        (["train/1.png", "test/1.png"], r"are named like splits: \['test', 'train'\]"),
        (["cat/train/1.png", "cat/test/1.png", "dog/train/1.png"], "are named like splits"),
        (
            ["train/cat/1.png", "test/cat/1.png", "extra/cat/1.png"],
            "`test`, which is named like a split, next to `extra`",
        ),
    ],
)
def test_what_is_not_clear_is_refused(names, message, tmp_path):
    with pytest.raises(DataError, match=message):
        read_image_folder(fill(tmp_path / "x", *names))


def test_other_files_are_left_out_and_named(tmp_path):
    pets(tmp_path / "a")
    for name in (
        ".DS_Store",
        "cat/Thumbs.db",
        "cat/._0.png",
        ".cache/cat/1.png",
        "__MACOSX/cat/1.png",
        "README.md",
    ):
        path = tmp_path / "a" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"none")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert content(tmp_path / "a") == {"train": RIGHT}
    (tmp_path / "a" / "dog" / "7.heic").write_bytes(b"none")
    with pytest.warns(
        PerdureWarning,
        match="files without an image extension, which are skipped: 1, such as `dog/7.heic`",
    ):
        assert content(tmp_path / "a") == {"train": RIGHT}


def test_folders_without_images(tmp_path):
    (tmp_path / "cat").mkdir()
    with pytest.raises(DataError, match="contains no images, such as `.jpg` or `.png`"):
        read_tasks(str(tmp_path))
    with pytest.raises(DataError, match="names the folder .* and other paths. Give one folder"):
        read_tasks({"train": str(tmp_path), "test": str(tmp_path)}, name="pets")
    (task_folder := tmp_path / "one").mkdir()
    fill(task_folder, "cat/1.png", "cat/2.png", "cat/3.png")
    with pytest.raises(DataError, match=r"needs at least two different classes, got \['cat'\]"):
        read_tasks(str(task_folder))


@pytest.mark.skipif(
    sys.platform != "linux", reason="other systems know no names that are not UTF-8"
)
def test_names_that_are_not_utf8(tmp_path):
    pets(tmp_path)
    shutil.copy(tmp_path / "cat/0.png", os.fsencode(tmp_path / "cat") + b"/\xff.png")
    with pytest.raises(DataError, match=r"contains a name that is not UTF-8: b'\\xff.png'"):
        read_image_folder(tmp_path)


def test_the_order_is_that_of_datasets(tmp_path):
    labels = ["a", "a-b", "a b", "B", "10", "9", "ä", "a.b"]
    fill(tmp_path, *(f"{label}/{i}.png" for label in labels for i in (10, 9, 1)))
    ours = read_image_folder(tmp_path)["train"].cast_column("image", datasets.Image(decode=False))
    theirs = datasets.load_dataset(
        "imagefolder", data_dir=str(tmp_path), cache_dir=str(tmp_path / ".cache")
    )["train"]
    assert ours.features["label"].names == theirs.features["label"].names
    assert ours[:] == theirs.cast_column("image", datasets.Image(decode=False))[:]


# datasets leaves the file open
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_metadata_is_still_read_by_datasets(tmp_path):
    pets(tmp_path / "train")
    rows = "".join(f"{label}/{i}.png,{i % 3}\n" for label in ("cat", "dog") for i in range(6))
    (tmp_path / "train" / "metadata.csv").write_text(f"file_name,shade\n{rows}")
    (task,) = read_tasks(str(tmp_path), label="shade")
    gc.collect()  # so that the warning is of this test, not of a later one
    assert task.classes == ("0", "1", "2")


def test_digests_are_of_content_and_match_those_of_paths(tmp_path):
    (task,) = read_tasks(str(pets(tmp_path / "pets")))
    shutil.copytree(tmp_path / "pets", tmp_path / "copy")
    (copy,) = read_tasks(str(tmp_path / "copy"), name="pets")
    assert copy.digests() == task.digests() and copy.has_digests(task.digests())
    by_path = {}  # what version 0.1.0 kept
    for split in SPLITS:
        data = getattr(task, split).cast_column("image", datasets.Image(decode=False))
        sums = hashlib.sha256("".join(f"{image['path']}\0" for image in data["image"]).encode())
        sums.update(np.array(data["label"][:], dtype=np.int64).tobytes())
        by_path[split] = sums.hexdigest()
    assert task.has_digests(by_path) and not copy.has_digests(by_path)
    Image.new("RGB", (4, 4), "red").save(tmp_path / "pets/cat/0.png")
    (changed,) = read_tasks(str(tmp_path / "pets"))
    assert not changed.has_digests(task.digests())


def test_the_digest_of_encoded_images_is_that_of_version_0_1_0():
    data = datasets.Dataset.from_dict(
        {"image": [{"bytes": b"one", "path": None}] * 2, "label": [1, 0]}
    )
    data = data.cast_column("image", datasets.Image())
    digest = hashlib.sha256(b"one\0one\0" + np.array([1, 0], dtype=np.int64).tobytes()).hexdigest()
    assert Task("a", ("x", "y"), data, data, data).digests() == dict.fromkeys(SPLITS, digest)
