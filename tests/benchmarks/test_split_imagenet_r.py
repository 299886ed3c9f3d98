"""Split ImageNet-R, from a folder of images and from a faked hub."""

import datasets
import pytest
from datasets import Dataset, Features, Value
from PIL import Image

from perdure import DataError
from perdure.benchmarks.split_imagenet_r import split_imagenet_r
from perdure.data.task import SPLITS


def picture(number: int) -> Image.Image:
    return Image.new("RGB", (4, 4), (number % 256, number // 256, 0))


def test_a_folder_of_images(tmp_path):
    for label in range(6):
        (tmp_path / f"n0{label}").mkdir()
        for i in range(20):
            picture(20 * label + i).save(tmp_path / f"n0{label}" / f"{i}.png")
    stream = split_imagenet_r(folder=str(tmp_path), tasks=3, seed=1)
    assert [task.classes for task in stream] == [("n00", "n01"), ("n02", "n03"), ("n04", "n05")]
    seen = []
    for number, task in enumerate(stream):
        assert [len(getattr(task, split)) for split in SPLITS] == [28, 4, 8]
        for split in SPLITS:
            for row in getattr(task, split):
                pixel = row["image"].getpixel((0, 0))[0]
                assert pixel // 20 == 2 * number + row["label"]
                seen.append(pixel)
    assert sorted(seen) == list(range(120))
    assert (
        split_imagenet_r(folder=str(tmp_path), tasks=3, order_seed=1993)[0].classes
        != stream[0].classes
    )
    with pytest.raises(DataError, match="`tasks` must divide the 6 classes"):
        split_imagenet_r(folder=str(tmp_path), tasks=4)


def test_the_hub(monkeypatch):
    """As its card says: one split, `test`, with the columns image, wnid and class_name."""

    def load(path):
        assert path == "axiong/imagenet-r"
        features = Features(
            {"image": datasets.Image(), "wnid": Value("string"), "class_name": Value("string")}
        )
        ids = ["n3", "n1", "n2", "n0"] * 10
        rows = {
            "image": [picture(i) for i in range(40)],
            "wnid": ids,
            "class_name": [f"name of {i}" for i in ids],
        }
        return {"test": Dataset.from_dict(rows, features=features)}

    monkeypatch.setattr(datasets, "load_dataset", load)
    stream = split_imagenet_r(tasks=2, train=8)
    assert [task.classes for task in stream] == [
        ("name of n0", "name of n1"),
        ("name of n2", "name of n3"),
    ]
    row = stream[1].test[0]
    assert ["n3", "n1", "n2", "n0"][row["image"].getpixel((0, 0))[0] % 4] == f"n{2 + row['label']}"
    assert len(stream[0].test) == 4 and len(stream[0].train) == 8


def test_no_hub(monkeypatch):
    def load(*args):
        raise ConnectionError("offline")

    monkeypatch.setattr(datasets, "load_dataset", load)
    with pytest.raises(DataError, match="could not be read: offline"):
        split_imagenet_r()
