"""What a model is opened as: padding, limits, families, what may be missing,
and what is never done.
"""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
import transformers
from conftest import make
from datasets import Dataset
from families import edit, family, save_tokenizer
from safetensors.torch import load_file, save_file
from tables import write

from perdure import Backbone, BackboneError, InputError
from perdure.data.task import TaskRows
from perdure.methods.isolated import Isolated
from perdure.models import adapters
from perdure.runs.extend import learn_more

TEXTS = ["w1 w2 w3 w4 w5 w6 w7", "w8", "w9 w10 w11"]


def features(backbone: Backbone, texts: list[str]) -> torch.Tensor:
    rows = Dataset.from_dict({"text": texts})
    examples = backbone.eval().encode([TaskRows("a", rows)])
    with torch.no_grad():
        return backbone(examples.batch(range(len(texts))))


def check_alone_as_together(backbone: Backbone) -> None:
    """A feature is that of the text, whatever stands beside it in a batch."""
    together = features(backbone, TEXTS)
    for text, feature in zip(TEXTS, together, strict=True):
        torch.testing.assert_close(features(backbone, [text])[0], feature, rtol=1e-4, atol=1e-5)


def change_tensors(folder: Path, change) -> Path:
    path = folder / "model.safetensors"
    tensors = load_file(path)
    save_file(change(tensors), path, {"format": "pt"})
    return folder


# -- padding


@pytest.mark.parametrize("kind", ["llama", "gpt2", "phi3"])
@pytest.mark.parametrize(
    "in_config, in_tokenizer",
    [
        (0, "[PAD]"),
        (3, "[PAD]"),
        (-1, "[PAD]"),
        (None, "[PAD]"),
        (0, None),
        (None, None),
        (999, None),
    ],
)
def test_padding_does_not_count(kind, in_config, in_tokenizer, tmp_path):
    folder = edit(family(kind, tmp_path / kind, pad_token=in_tokenizer), pad_token_id=in_config)
    backbone = Backbone.load(folder)
    assert backbone.model.config.pad_token_id == backbone.processor.pad_token_id
    check_alone_as_together(backbone)


def test_a_tokenizer_that_pads_on_the_left(tmp_path):
    check_alone_as_together(Backbone.load(family("gpt2", tmp_path / "gpt2", padding_side="left")))


def test_xlnet_reads_the_last_place(tmp_path):
    backbone = Backbone.load(family("xlnet", tmp_path / "xlnet"))
    assert backbone.processor.padding_side == "left"
    check_alone_as_together(backbone)


def test_positions_that_begin_behind_the_padding(pico, tmp_path):
    folder = Path(shutil.copytree(pico("roberta"), tmp_path / "roberta"))
    stock = features(Backbone.load(folder), TEXTS)
    save_tokenizer(folder, pad_token="[CLS]")  # another one than the model was trained with
    backbone = Backbone.load(folder)
    assert backbone.processor.pad_token == "[PAD]"
    torch.testing.assert_close(features(backbone, TEXTS), stock)


def test_neither_padding_nor_an_end_of_text(tmp_path):
    folder = edit(
        family("llama", tmp_path / "llama", pad_token=None, eos_token=None), pad_token_id=None
    )
    with pytest.raises(
        BackboneError, match="no padding token and no end-of-text token.*Set `pad_token`"
    ):
        Backbone.load(folder)


def test_a_tokenizer_that_gives_no_mask(tmp_path):
    check_alone_as_together(
        Backbone.load(family("llama", tmp_path / "llama", model_input_names=["input_ids"]))
    )


def test_a_model_that_takes_no_mask(tmp_path):
    with pytest.raises(
        BackboneError, match="`FNetForSequenceClassification`, which takes no attention mask"
    ):
        Backbone.load(family("fnet", tmp_path / "fnet"))


def test_more_tokens_than_embeddings(tmp_path):
    folder = family("llama", tmp_path / "llama")
    larger = transformers.AutoTokenizer.from_pretrained(folder)
    larger.add_tokens(["w100"])
    larger.save_pretrained(folder)
    with pytest.raises(BackboneError, match="'w100' has the id 64, but there are 64 embeddings"):
        Backbone.load(folder)
    family("llama", folder)  # one that no text leads to, as some models have for images
    larger = transformers.AutoTokenizer.from_pretrained(folder)
    larger.add_special_tokens({"additional_special_tokens": ["<image>"]})
    larger.save_pretrained(folder)
    assert len(larger) == 65
    check_alone_as_together(Backbone.load(folder))


# -- the longest text


@pytest.mark.parametrize(
    "kind, change, limit",
    [
        # 42 positions, of which the padding's (1) and those before it are not used.
        ("mpnet", {}, 40),
        ("gpt2", {}, 40),
        ("llama", {"max_position_embeddings": 50}, 50),
        ("llama", {"max_position_embeddings": 10**12}, 10**6),
        ("llama", {"max_position_embeddings": -1}, 10**6),
        ("t5", {"n_positions": 5}, 10**6),  # relative positions: the number is a left-over
        ("xlnet", {}, 10**6),
    ],
)
def test_the_longest_text(kind, change, limit, tmp_path):
    folder = edit(family(kind, tmp_path / kind, model_max_length=10**30), **change)
    backbone = Backbone.load(folder, max_length=10**9)
    assert backbone.max_length == limit
    if limit < 100:
        features(backbone, ["w1 " * 200, "w2"])


def test_no_room_for_a_text(tmp_path):
    folder = edit(family("llama", tmp_path / "llama"), max_position_embeddings=2)
    with pytest.raises(BackboneError, match="at most 2 tokens"):
        Backbone.load(folder)


# -- families


@pytest.mark.parametrize("kind", ["t5", "mt5", "umt5"])
def test_t5_is_read_by_its_encoder(kind, tmp_path):
    folder = family(kind, tmp_path / kind)
    backbone = Backbone.load(folder)
    assert backbone.pooling == "mean" and backbone.width == 16
    check_alone_as_together(backbone)
    whole = transformers.AutoModelForSequenceClassification.from_pretrained(folder).eval()
    inputs = backbone.processor(TEXTS[:1], return_tensors="pt")
    hidden = whole.transformer.encoder(inputs["input_ids"]).last_hidden_state
    torch.testing.assert_close(features(backbone, TEXTS[:1]), hidden.mean(1))
    Isolated(rank=2).attach(backbone)
    assert {name.split(".")[-1] for name in adapters.factors(backbone.model)} == {"q", "v"}
    with pytest.raises(BackboneError, match="its decoder is left out"):
        Backbone.load(folder, pooling="stock")


# -- the head, and what else may be missing


@pytest.mark.parametrize(
    "change",
    [
        {"num_labels": 10**9},
        {
            "id2label": {str(i): f"c{i}" for i in range(5)},
            "label2id": {f"c{i}": i for i in range(5)},
        },
        {"id2label": ["a", "b", "c"]},
        {"label2id": {"a": "0", "b": "1"}},
        {"id2label": {"0": "only"}},
        {"id2label": 3, "label2id": None},
        {"problem_type": "nothing"},
    ],
)
def test_a_stored_head_does_not_matter(change, pico, tmp_path):
    folder = edit(Path(shutil.copytree(pico("bert"), tmp_path / "bert")), **change)
    torch.testing.assert_close(
        features(Backbone.load(folder), TEXTS), features(Backbone.load(pico("bert")), TEXTS)
    )


def test_only_a_head_may_be_missing(pico, tmp_path):
    def fresh(name: str) -> Path:
        return Path(shutil.copytree(pico("bert"), tmp_path / name))

    bare = change_tensors(
        fresh("bare"), lambda t: {k: v for k, v in t.items() if not k.startswith("classifier")}
    )
    torch.testing.assert_close(
        features(Backbone.load(bare), TEXTS), features(Backbone.load(pico("bert")), TEXTS)
    )
    query = "bert.encoder.layer.1.attention.self.query.weight"
    cases = {
        "one": lambda t: {k: v for k, v in t.items() if k != query},
        "layer": lambda t: {k: v for k, v in t.items() if "layer.1." not in k},
        "prefix": lambda t: {f"model.{k}": v for k, v in t.items()},
        "shape": lambda t: t | {query: t[query][:, :16].contiguous()},
    }
    for name, change in cases.items():
        for pooling in ("auto", "mean", "stock"):
            folder = tmp_path / name
            folder.exists() or change_tensors(fresh(name), change)
            with pytest.raises(BackboneError, match="have no `.*random values there"):
                Backbone.load(folder, pooling=pooling)
    extra = change_tensors(fresh("extra"), lambda t: t | {"cls.predictions.bias": torch.zeros(64)})
    assert Backbone.load(extra).pooling == "stock"


def test_a_pooler_that_is_missing_is_none_at_random(pico, tmp_path):
    folder = Path(shutil.copytree(pico("bert"), tmp_path / "bert"))
    change_tensors(folder, lambda tensors: {k: v for k, v in tensors.items() if "pooler" not in k})
    backbone = Backbone.load(folder)
    assert backbone.pooling == "mean"
    assert not backbone.model.pooler.dense.weight.any()
    with pytest.raises(BackboneError, match="no trained weights for .*pooler"):
        Backbone.load(folder, pooling="stock")


def test_values_that_are_not_finite(pico, tmp_path):
    folder = Path(shutil.copytree(pico("bert"), tmp_path / "bert"))
    name = "bert.encoder.layer.0.output.dense.weight"
    change_tensors(
        folder, lambda tensors: tensors | {name: torch.full_like(tensors[name], torch.inf)}
    )
    with pytest.raises(BackboneError, match=f"`{name}` of .* holds values that are not finite"):
        Backbone.load(folder)


def test_weights_in_torchs_own_format(pico, tmp_path):
    folder = Path(shutil.copytree(pico("bert"), tmp_path / "bert"))
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(tensors, folder / "pytorch_model.bin")
    torch.testing.assert_close(
        features(Backbone.load(folder), TEXTS), features(Backbone.load(pico("bert")), TEXTS)
    )

    class Harm:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "harm"),)

    torch.save({"x": Harm()}, folder / "pytorch_model.bin")
    with pytest.raises(BackboneError):
        Backbone.load(folder)
    assert not (tmp_path / "harm").exists()
    vast = torch.zeros(1).expand(10**9, 10)
    torch.save(
        tensors | {"bert.embeddings.word_embeddings.weight": vast}, folder / "pytorch_model.bin"
    )
    with pytest.raises(BackboneError, match="more values than the whole file has bytes"):
        Backbone.load(folder)


# -- what is refused before anything is built


@pytest.mark.parametrize(
    "change, said",
    [
        ({"num_hidden_layers": 100_000}, "`num_hidden_layers` is 100000, but no model has more"),
        ({"num_hidden_layers": 9_000}, "far larger than its weight files"),
        ({"hidden_size": 10**6}, "far larger than its weight files"),
        ({"vocab_size": 10**12}, "far larger than its weight files"),
        ({"hidden_size": "x"}, "No model could be loaded"),
        ({"hidden_act": "nothing"}, "No model could be loaded"),
        ({"model_type": ...}, "has no `model_type`"),
        ({"model_type": "nothing"}, "`nothing`, which transformers does not know"),
        (
            {"model_type": "own", "auto_map": {"AutoConfig": "code.Config"}},
            "Python code of its own, which is never run",
        ),
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, r"is quantised \(gptq\)"),
        (
            {"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}},
            r"quantised \(bitsandbytes\)",
        ),
    ],
)
def test_absurd_configurations(change, said, pico, tmp_path):
    folder = edit(Path(shutil.copytree(pico("bert"), tmp_path / "bert")), **change)
    with pytest.raises(BackboneError, match=said):
        Backbone.load(folder)


def test_what_trades_memory_for_time_does_not_count(pico, tmp_path):
    """In chunks of seven a text of eight tokens cannot be read."""
    folder = Path(shutil.copytree(pico("bert"), tmp_path / "bert"))
    edit(folder, chunk_size_feed_forward=7, gradient_checkpointing=True)
    texts = ["w1 w2 w3 w4 w5 w6"]
    torch.testing.assert_close(
        features(Backbone.load(folder), texts), features(Backbone.load(pico("bert")), texts)
    )


@pytest.mark.parametrize(
    "name", ["config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors"]
)
@pytest.mark.parametrize("what", ["empty", "nested", "pointer", "folder", "pipe", "sparse"])
def test_files_that_are_none(name, what, pico, tmp_path):
    folder = Path(shutil.copytree(pico("bert"), tmp_path / "bert"))
    path = folder / name
    if what in ("folder", "pipe"):
        path.unlink()
        path.mkdir() if what == "folder" else os.mkfifo(path)
    elif what == "sparse":
        os.truncate(path, 5_000_000_000)
    else:
        pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"
        path.write_text({"empty": "", "nested": "[" * 100_000, "pointer": pointer}[what])
    with pytest.raises(
        BackboneError, match={"pipe": "is a pipe", "pointer": "git lfs pull"}.get(what, name)
    ):
        Backbone.load(folder)


def test_an_index_that_leads_elsewhere(tmp_path):
    folder = family("gpt2", tmp_path / "gpt2")
    (folder / "model.safetensors").rename(tmp_path / "elsewhere.safetensors")
    index = folder / "model.safetensors.index.json"
    for table in ({"x": "../elsewhere.safetensors"}, {"x": 3}, {}, [], None):
        index.write_text(json.dumps({"weight_map": table}))
        with pytest.raises(BackboneError, match="names the file|names no files"):
            Backbone.load(folder)


def test_code_in_a_folder_is_never_run(pico, tmp_path, monkeypatch):
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("a question was asked"))
    folder = Path(shutil.copytree(pico("bert"), tmp_path / "bert"))
    (folder / "code.py").write_text(f"open({str(tmp_path / 'harm')!r}, 'w')\nclass Own: pass\n")
    own = {
        "AutoConfig": "code.Own",
        "AutoModel": "code.Own",
        "AutoModelForSequenceClassification": "code.Own",
    }
    edit(folder, auto_map=own)
    edit(folder, "tokenizer_config.json", auto_map={"AutoTokenizer": ["code.Own", "code.Own"]})
    torch.testing.assert_close(
        features(Backbone.load(folder), TEXTS), features(Backbone.load(pico("bert")), TEXTS)
    )
    edit(folder, "tokenizer_config.json", tokenizer_class="Own")
    edit(folder, model_type="own")
    with pytest.raises(BackboneError, match="never run"):
        Backbone.load(folder)
    images = Path(shutil.copytree(pico("vit"), tmp_path / "vit"))
    shutil.copy(folder / "code.py", images)
    edit(images, auto_map=own)
    edit(images, "preprocessor_config.json", auto_map={"AutoImageProcessor": "code.Own"})
    assert Backbone.load(images).kind == "image"
    assert not (tmp_path / "harm").exists()


def test_images_of_absurd_sizes(pico, tmp_path):
    folder = Path(shutil.copytree(pico("vit"), tmp_path / "vit"))
    edit(folder, "preprocessor_config.json", size={"height": 10**6, "width": 16})
    with pytest.raises(BackboneError, match="images must have from 1 to 4096 pixels a side"):
        Backbone.load(folder)


# -- where it comes from


def test_a_revision_is_for_the_hub(pico):
    for source in (str(pico("bert")), "minilm"):
        with pytest.raises(InputError, match="`revision: main` is for models on the hub"):
            Backbone.load(source, revision="main")


@pytest.mark.parametrize("name", ["", " "])
def test_an_empty_name(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    data = {"data": write(tmp_path / "a.csv", [("w1 w2", "one"), ("w3 w4", "two")] * 12)}
    with pytest.raises(InputError, match="The name of the backbone is empty"):
        learn_more(tmp_path / "run", data, backbone=name)


def test_a_name_that_is_nowhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        BackboneError,
        match=f"there is no folder `{tmp_path}/bert`, and `bert` could not be fetched",
    ):
        Backbone.load("bert")
    with pytest.raises(BackboneError, match="at the revision `v1` could not be fetched"):
        Backbone.load("some/model", revision="v1")


def test_the_hub_is_asked_for_the_files_that_are_read(pico, tmp_path, monkeypatch):
    commit = "0123456789" * 4
    snapshot = tmp_path / "models--some--model" / "snapshots" / commit
    asked = []

    def download(source, *, revision, allow_patterns, local_files_only):
        asked.append((source, revision, local_files_only))
        shutil.copytree(pico("bert"), snapshot, dirs_exist_ok=True)
        assert "*.safetensors" not in allow_patterns  # there may be other models beside it
        return str(snapshot)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    backbone = Backbone.load("some/model", revision="v1")
    assert set(asked) == {("some/model", "v1", False)}
    assert backbone.revision == commit and backbone.hashes.keys() >= {
        "model.safetensors",
        "tokenizer.json",
    }


# -- an export


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("pooling", ["stock", "mean"])
def test_an_export_keeps_the_type_of_its_base(dtype, pooling, tmp_path):
    folder = make("bert", tmp_path / "bert")
    change_tensors(
        folder, lambda tensors: {name: value.to(dtype) for name, value in tensors.items()}
    )
    backbone = Backbone.load(folder, pooling=pooling)
    before = features(backbone, TEXTS)
    backbone.put("t", torch.nn.Linear(backbone.width, 3).state_dict())
    place = tmp_path / "out"
    place.mkdir()
    backbone.save(place, ["t"], ["a", "b", "c"])
    kept = load_file(place / "model.safetensors")
    assert {value.dtype for value in kept.values()} == {dtype}
    assert json.loads((place / "config.json").read_text())["dtype"] == str(dtype).removeprefix(
        "torch."
    )
    assert torch.equal(
        features(backbone, TEXTS), before
    )  # what is in memory is as precise as it was
    expected = (before @ backbone.own("t").weight.T + backbone.own("t").bias).detach()
    if pooling == "stock":
        stock = transformers.AutoModelForSequenceClassification.from_pretrained(place).eval()
        assert stock.dtype == dtype
        inputs = transformers.AutoTokenizer.from_pretrained(place)(
            TEXTS, padding=True, return_tensors="pt"
        )
        answer = stock(**inputs).logits.detach()
    else:
        from sentence_transformers import SentenceTransformer

        answer = SentenceTransformer(str(place), device="cpu").encode(TEXTS, convert_to_tensor=True)
    torch.testing.assert_close(answer.float(), expected, rtol=0.05, atol=0.05)
