"""Images at another size than the checkpoint's."""

import pytest
import torch
import transformers

from perdure import Backbone, BackboneError, Model, Training, run
from perdure.methods.isolated import Isolated
from perdure.models.examples import Batch


@pytest.mark.parametrize("kind", ["vit", "dinov2"])
def test_another_size_is_read_saved_and_exported(kind, pico, pictures, tmp_path):
    backbone = Backbone.load(pico(kind), image_size=8)
    example = backbone.encode(pictures[0].rows("test")).batch([0])
    assert example.inputs["pixel_values"].shape == (1, 3, 8, 8)
    embeddings = next(m for m in backbone.model.modules() if hasattr(m, "position_embeddings"))
    assert embeddings.position_embeddings.shape == (1, 1 + 4, 32)
    training = Training(epochs=1, batch_size=8)
    results = run(
        pictures, backbone, Isolated(rank=2), "sum", training=training, output=tmp_path / "run"
    )
    assert results.recipe["backbone"]["image_size"] == 8
    model = Model(results)
    out = model.export(tmp_path / "out", heads="joined")
    stock = transformers.AutoModelForImageClassification.from_pretrained(out).eval()
    images = pictures[0].test["image"][:3]
    inputs = dict(
        transformers.AutoImageProcessor.from_pretrained(out)(images=images, return_tensors="pt")
    )
    assert inputs["pixel_values"].shape[-1] == 8
    model = Model(results)
    with torch.no_grad(), model.combined.applied(model.backbone):
        features = model.backbone.eval()(Batch(inputs))
        ours = torch.cat([model.backbone.own(task)(features) for task in "ab"], dim=1)
        torch.testing.assert_close(stock(**inputs).logits, ours, rtol=0, atol=1e-5)


def test_the_positions_are_those_that_the_model_itself_interpolates(pico, pictures):
    """Stock transformers, told to interpolate at every forward pass, gives the same."""
    stock = transformers.AutoModelForImageClassification.from_pretrained(pico("vit")).eval()
    stock.classifier = torch.nn.Identity()
    backbone = Backbone.load(pico("vit"), image_size=8).eval()
    pixels = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = stock(pixels, interpolate_pos_encoding=True).logits
        torch.testing.assert_close(
            backbone(Batch({"pixel_values": pixels})), expected, rtol=0, atol=1e-6
        )


def test_the_margin_that_is_cut_off_keeps_its_share():
    from perdure.models.resolution import _resize

    processor = transformers.BitImageProcessorPil(
        size={"shortest_edge": 256}, crop_size={"height": 224, "width": 224}, do_center_crop=True
    )
    _resize(processor, 112)
    assert processor.size["shortest_edge"] == 128 and processor.crop_size["height"] == 112
    processor = transformers.BitImageProcessorPil(size={"shortest_edge": 224}, do_center_crop=False)
    _resize(processor, 112)
    assert processor.size["shortest_edge"] == 112


def test_models_that_cannot(pico, tmp_path):
    """Swin's grid of windows is fixed; texts have no size."""
    sizes = {"embed_dim": 8, "depths": [1, 1], "num_heads": [1, 2], "window_size": 2}
    config = transformers.SwinConfig(
        image_size=16, patch_size=4, use_absolute_embeddings=True, **sizes
    )
    transformers.AutoModelForImageClassification.from_config(config).save_pretrained(tmp_path)
    transformers.ViTImageProcessorPil(size={"height": 16, "width": 16}).save_pretrained(tmp_path)
    with pytest.raises(
        BackboneError, match="`SwinForImageClassification` reads only images of its original size"
    ):
        Backbone.load(tmp_path, image_size=8)
    with pytest.raises(BackboneError, match="`image_size` is for images, and"):
        Backbone.load(pico("bert"), image_size=8)


def test_sizes_that_cannot_be(pico, tmp_path):
    with pytest.raises(
        BackboneError, match="`image_size=10` must be a multiple of the model's patch size, 4"
    ):
        Backbone.load(pico("vit"), image_size=10)
    config = transformers.ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic"
    )
    transformers.AutoModelForImageClassification.from_config(config).save_pretrained(tmp_path)
    transformers.ViTImageProcessorPil(size={"height": 16, "width": 16}).save_pretrained(tmp_path)
    with pytest.raises(
        BackboneError, match="`ResNetForImageClassification` has no position embeddings"
    ):
        Backbone.load(tmp_path, image_size=8)
