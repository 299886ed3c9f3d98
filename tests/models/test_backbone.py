"""Every architecture loads, is adapted, gives features, and is exported as the stock model that it
came from.
"""

import pytest
import torch
import transformers
from conftest import IMAGE, TEXT
from PIL import Image
from torch import nn

from perdure import Backbone, BackboneError, InputError
from perdure.data.task import TaskRows
from perdure.methods.isolated import Isolated
from perdure.models import adapters
from perdure.models.examples import Batch


def inputs(backbone: Backbone) -> Batch:
    if backbone.kind == "text":
        return Batch(
            dict(backbone.processor(["w1 w2 w3", "w4"], padding=True, return_tensors="pt"))
        )
    pictures = [Image.new("RGB", (20, 20), c) for c in ("red", "blue")]
    return Batch(dict(backbone.processor(images=pictures, return_tensors="pt")))


@pytest.mark.parametrize("kind", [*TEXT, *IMAGE])
def test_every_architecture(kind, pico):
    backbone = Backbone.load(pico(kind)).eval()
    assert backbone.pooling == "stock"
    batch = inputs(backbone)
    with torch.no_grad():
        before = backbone(batch)
        assert before.shape == (2, backbone.width)
        assert backbone.features(batch).shape == (2, 32 if kind in TEXT else 64)
        for peft in ("lora", "bottleneck"):
            Isolated(peft=peft, rank=2).attach(backbone)
            held = adapters.layers(backbone.model)
            assert len(held) == (2 if peft == "lora" and kind == "modernbert" else 4)
            torch.testing.assert_close(backbone(batch), before, rtol=0, atol=0)
            adapters.write(
                backbone.model,
                {k: v + torch.randn_like(v) for k, v in adapters.read(backbone.model).items()},
            )
            assert not torch.allclose(backbone(batch), before)
            with adapters.disabled(backbone.model):
                assert torch.equal(backbone(batch), before)
        adapters.detach(backbone.model)
        assert torch.equal(backbone(batch), before)


@pytest.mark.parametrize("kind", [*TEXT, *IMAGE])
def test_the_feature_is_the_input_of_the_stock_head(kind, pico):
    backbone = Backbone.load(pico(kind)).eval()
    auto = (
        transformers.AutoModelForSequenceClassification
        if kind in TEXT
        else transformers.AutoModelForImageClassification
    )
    stock = auto.from_pretrained(pico(kind)).eval()
    head = stock.get_submodule(backbone.head_name)
    batch = inputs(backbone)
    with torch.no_grad():
        torch.testing.assert_close(head(backbone(batch)), stock(**batch.inputs).logits)


def test_mean_pooling_leaves_padding_out(bert):
    bert.eval()
    with torch.no_grad():
        together = bert(
            Batch(dict(bert.processor(["w1 w2 w3 w4 w5", "w6"], padding=True, return_tensors="pt")))
        )
        alone = bert(Batch(dict(bert.processor(["w6"], return_tensors="pt"))))
    torch.testing.assert_close(together[1:], alone)


def test_auto_pooling(pico, tmp_path):
    made = tmp_path / "sentence"
    transformers.AutoModel.from_pretrained(pico("bert")).save_pretrained(made)
    transformers.AutoTokenizer.from_pretrained(pico("bert")).save_pretrained(made)
    assert Backbone.load(made).pooling == "stock"  # BERT's pooler is in the checkpoint
    (made / "modules.json").write_text("[]")
    assert Backbone.load(made).pooling == "mean"
    bare = tmp_path / "bare"
    transformers.AutoModel.from_pretrained(pico("roberta")).save_pretrained(bare)
    transformers.AutoTokenizer.from_pretrained(pico("roberta")).save_pretrained(bare)
    assert Backbone.load(bare).pooling == "mean"  # RoBERTa's dense layer before the head is not
    with pytest.raises(
        BackboneError, match="no trained weights for .*classifier.dense.*Use `pooling='mean'`"
    ):
        Backbone.load(bare, pooling="stock")


def test_errors_say_what_to_set(pico, tmp_path, toy):
    with pytest.raises(BackboneError, match="No model could be loaded from"):
        Backbone.load(tmp_path / "nothing")
    with pytest.raises(BackboneError, match="`head=bert.nothing` is not a linear layer"):
        Backbone.load(pico("bert"), head="bert.nothing")
    with pytest.raises(BackboneError, match="for texts"):
        Backbone.load(pico("vit"), pooling="mean")
    backbone = Backbone.load(pico("bert"))
    with pytest.raises(BackboneError, match="Give `target_modules`, for example from: .*'dense'"):
        Isolated(target_modules=["nowhere"]).attach(backbone)
    with pytest.raises(
        InputError, match="reads images, but the examples are texts. Use a text model"
    ):
        Backbone.load(pico("vit")).encode(toy[0].rows("test"))


def test_a_head_that_is_not_found(pico, monkeypatch):
    stock = transformers.AutoModelForSequenceClassification.from_pretrained(pico("bert"))
    stock.classifier = nn.Bilinear(2, 2, 2)
    from perdure.models.pretrained import _find_head

    with pytest.raises(BackboneError, match="Give its last linear layer as `head=…`"):
        _find_head(stock)


def test_incomplete_checkpoints(pico, tmp_path):
    import shutil

    shutil.copytree(pico("bert"), tmp_path / "bert")
    (tmp_path / "bert" / "model.safetensors").write_bytes(b"x" * 100)
    with pytest.raises(
        BackboneError, match="`.*model.safetensors` is not a safetensors file, or was cut"
    ):
        Backbone.load(tmp_path / "bert")
    (tmp_path / "bert" / "model.safetensors").unlink()
    with pytest.raises(BackboneError, match="has no weights"):
        Backbone.load(tmp_path / "bert")


def test_a_folder_without_a_tokenizer(pico, tmp_path):
    transformers.AutoModelForSequenceClassification.from_pretrained(pico("bert")).save_pretrained(
        tmp_path
    )
    with pytest.raises(BackboneError, match="tokenizer"):
        Backbone.load(tmp_path)


def test_causal_models_are_refused(tmp_path):
    transformers.ClvpConfig().save_pretrained(tmp_path)
    with pytest.raises(BackboneError, match="for which transformers has no classification model"):
        Backbone.load(tmp_path)


def test_long_texts_are_cut(bert, pico):
    from datasets import Dataset

    rows = Dataset.from_dict({"text": ["w1 " * 50_000, "w2"], "label": [0, 1]})
    assert bert.encode([TaskRows("t", rows)]).lengths == [16, 3]
    assert Backbone.load(pico("roberta"), max_length=10**9).max_length == 32
    assert Backbone.load(pico("bert"), max_length=10**9).max_length == 32
    assert (
        Backbone.load(pico("vit"), max_length=16).max_length == 16
    )  # as given, so that a run's recipe can be read
