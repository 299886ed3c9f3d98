"""A T5 out of 8-bit ONNX files: a pico model, put into files of the package's layout, comes back
to within half a step of its rounding.
"""

import sys
from pathlib import Path

import numpy as np
import pytest
import transformers
from conftest import need
from datasets import Dataset
from safetensors.numpy import load_file

from perdure import Backbone, FetchError
from perdure.bundled import flan_t5
from perdure.data.task import TaskRows

onnx = pytest.importorskip("onnx", reason="onnx is not installed")

PICO = {"vocab_size": 40, "d_model": 16, "d_kv": 4, "d_ff": 24, "num_heads": 2}
LAYERS = {"num_layers": 2, "num_decoder_layers": 2}


def rounded(weight: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The weight in 8 bits, its scale and its zero point."""
    zero_point = np.uint8(127)
    scale = np.float32(np.abs(weight).max() / 127)
    return (np.round(weight / scale) + zero_point).astype(np.uint8), scale, np.asarray(zero_point)


def write_onnx(file: Path, weights: dict[str, np.ndarray], root: str) -> None:
    """As the package has it: matrices anonymous and transposed, all but the norms in 8 bits."""
    tensors, nodes = [], []

    def add(name: str, value: np.ndarray) -> None:
        for end, part in zip(("quantized", "scale", "zero_point"), rounded(value), strict=True):
            tensors.append(
                onnx.numpy_helper.from_array(np.ascontiguousarray(part), f"{name}_{end}")
            )

    for i, (name, value) in enumerate(weights.items()):
        if value.ndim == 1:
            tensors.append(onnx.numpy_helper.from_array(value, f"{root}.{name}"))
        elif "shared" in name or "embed_tokens" in name or "relative" in name:
            add(f"{root}.{name}", value)
        else:
            add(f"onnx::MatMul_{i}", value.T)
            path = name.removesuffix(".weight").replace(".", "/")
            for index in range(9):  # a module's own dots stay: `block.0`, `layer.1`
                path = path.replace(f"/{index}", f".{index}")
            node = f"/{root}/{path}/MatMul_quant"
            inputs = ["x", f"onnx::MatMul_{i}_quantized", "y", f"onnx::MatMul_{i}_zero_point"]
            nodes.append(onnx.helper.make_node("MatMulInteger", inputs, [node], name=node))
    onnx.save(onnx.helper.make_model(onnx.helper.make_graph(nodes, "pico", [], [], tensors)), file)


@pytest.fixture
def source(tmp_path, monkeypatch):
    """A folder as the package has it, and the weights that were put in."""
    monkeypatch.setattr(flan_t5, "CONFIG", flan_t5.CONFIG | PICO | LAYERS)
    model = transformers.T5ForConditionalGeneration(transformers.T5Config(**flan_t5.CONFIG))
    weights = {name: value.numpy() for name, value in model.state_dict().items()}
    for name in ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight"):
        del weights[name]
    # This model ties its output layer to the embedding, and the package's does not.
    weights["lm_head.weight"] = np.flip(weights["shared.weight"], 0).copy()
    folder = tmp_path / "span"
    folder.mkdir()
    (folder / "tokenizer.json").write_text("{}")
    encoder = {"embed_tokens.weight": weights["shared.weight"]}
    decoder = {}
    for name, value in weights.items():
        if name.startswith("encoder."):
            encoder[name.removeprefix("encoder.")] = value
        else:
            decoder[name] = value
    write_onnx(folder / "encoder.onnx", encoder, "enc")
    write_onnx(folder / "decoder.onnx", decoder, "m")
    return folder, weights


def test_a_pico_model_there_and_back(source, tmp_path):
    folder, weights = source
    flan_t5.write(folder, tmp_path / "model")
    read = load_file(tmp_path / "model" / "model.safetensors")
    assert read.keys() == weights.keys()
    for name, weight in weights.items():
        step = 0 if weight.ndim == 1 else np.abs(weight).max() / 127
        assert np.abs(read[name] - weight).max() <= step / 2 * 1.001, name


def test_the_output_layer_is_not_the_embedding(source, tmp_path):
    """transformers unties them when it sees that the checkpoint has both, with other values."""
    folder, weights = source
    flan_t5.write(folder, tmp_path / "model")
    model = transformers.T5ForConditionalGeneration.from_pretrained(tmp_path / "model")
    embedding = model.get_input_embeddings().weight.detach().numpy()
    assert np.allclose(model.lm_head.weight.detach().numpy(), embedding[::-1])


def test_other_files(source, tmp_path, monkeypatch):
    folder, _ = source
    monkeypatch.setattr(flan_t5, "CONFIG", flan_t5.CONFIG | {"num_layers": 3})
    with pytest.raises(FetchError, match="`span` does not contain the T5 that was expected"):
        flan_t5.write(folder, tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_without_onnx(source, tmp_path, monkeypatch):
    folder, _ = source
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(FetchError, match=r"`flan_t5` is read .* Install `perdure\[demo\]`, or"):
        flan_t5.write(folder, tmp_path / "model")


@pytest.mark.real
def test_the_real_model():
    """It still translates, as wrong weights would not."""
    need(flan_t5.PACKAGE)
    backbone = Backbone.load("flan_t5", max_new_tokens=12)
    rows = Dataset.from_dict({"text": ["translate English to German: The house is wonderful."]})
    [(_, batch)] = backbone.encode([TaskRows("translations", rows)]).batches()
    assert backbone.generate(batch) == ["Das Haus ist wunderbar."]
