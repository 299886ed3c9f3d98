"""Fetching: a fake pip, a wrong file, no registry, and the cache."""

import hashlib
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from perdure import FetchError
from perdure.bundled.parts import packages

CONTENT = b"a wheel"
PACKAGE = packages.Package(
    "thing", "1.0", "thing-1.0.whl", len(CONTENT), hashlib.sha256(CONTENT).hexdigest()
)


@pytest.fixture
def pip(tmp_path, monkeypatch):
    """In the place of Python: writes the file that pip would fetch, or fails."""

    def make(works: bool):
        body = (
            'open(f"{dest}/thing-1.0.whl", "wb").write(b"a wheel")'
            if works
            else 'sys.exit("ERROR: No matching distribution")'
        )
        script = tmp_path / "python"
        script.write_text(
            f"#!{sys.executable}\nimport os, sys\n"
            f"dest = sys.argv[sys.argv.index('--dest') + 1]\nos.makedirs(dest)\n{body}\n"
        )
        script.chmod(0o755)
        monkeypatch.setattr(packages.sys, "executable", str(script))

    monkeypatch.setenv("PERDURE_CACHE", str(tmp_path / "cache"))
    return make


def test_fetched_once_and_offline_afterwards(pip, tmp_path):
    pip(works=True)
    assert packages.fetch(PACKAGE).read_bytes() == CONTENT
    pip(works=False)
    assert packages.fetch(PACKAGE) == tmp_path / "cache" / "thing-1.0.whl"
    assert [p.name for p in (tmp_path / "cache").iterdir()] == ["thing-1.0.whl"]


def test_a_file_in_the_cache_is_checked_too(pip, tmp_path):
    pip(works=True)
    packages.fetch(PACKAGE).write_bytes(b"broken")
    with pytest.raises(FetchError, match="thing-1.0.whl` is not the file that was pinned"):
        packages.fetch(PACKAGE)


def test_another_file_than_the_pinned_one(pip, tmp_path):
    pip(works=True)
    with pytest.raises(FetchError, match="is not the file that was pinned"):
        packages.fetch(replace(PACKAGE, sha256="0" * 64))
    assert not list((tmp_path / "cache").iterdir())


def test_without_cache_and_registry_it_says_what_to_do(pip):
    pip(works=False)
    with pytest.raises(
        FetchError,
        match="pip could not fetch it: connect to a package index .* No matching distribution",
    ):
        packages.fetch(PACKAGE)


@pytest.mark.real
def test_the_real_model_and_demo_stream(demo_cache):
    from perdure import Backbone
    from perdure.benchmarks.demo import demo

    backbone = Backbone.load("minilm", max_length=64)
    assert (backbone.pooling, backbone.width) == ("mean", 384)
    stream = demo(train=60, validation=20, test=30)
    assert (
        stream.names == ["reuters", "computers", "recreation", "politics", "films"]
        and len(stream.classes) == 22
    )
    texts = [
        set(getattr(task, split)["text"]) for task in stream for split in ("train", "validation")
    ]
    assert sum(map(len, texts)) == len(set.union(*texts))


@pytest.mark.real
def test_the_real_images_and_their_model(vision_cache):
    """The expected values are of the file's own graph, run by onnxruntime 1.31 on this input."""
    from perdure import Backbone
    from perdure.benchmarks.split_mnist import split_mnist
    from perdure.models.examples import Batch

    backbone = Backbone.load("dinov2", image_size=56).eval()
    assert (backbone.pooling, backbone.width, backbone.kind) == ("stock", 768, "image")
    with torch.no_grad():
        feature = backbone(
            Batch({"pixel_values": torch.linspace(-2, 2, 3 * 56 * 56).reshape(1, 3, 56, 56)})
        )[0]
    expected = [0.225894, -1.598541, -0.105083, -1.833104, 0.594754, -0.918946, 1.039421, 0.507755]
    torch.testing.assert_close(feature[::96], torch.tensor(expected), rtol=0, atol=1e-4)
    assert Backbone.load("dinov2").processor.size == {"height": 98, "width": 98}
    assert packages.cache() in Path(backbone.published).parents

    stream = split_mnist(train=200, validation=40, test=100)
    assert stream.names == ["digits01", "digits23", "digits45", "digits67", "digits89"]
    assert [len(task.train) for task in stream] == [200] * 5
    task = stream[0].train
    ink = [
        np.mean([np.asarray(row["image"]).mean() for row in task if row["label"] == label])
        for label in (0, 1)
    ]
    assert 30 < ink[0] < 60 and 10 < ink[1] < 30  # a zero takes more of it than a one
