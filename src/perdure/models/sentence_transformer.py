"""Save an encoder so that sentence-transformers can load it.

The saved model averages the encoder's hidden states over tokens, and applies a linear head.
"""

import json
from pathlib import Path

from safetensors.torch import save_file
from torch import nn


def save(folder: Path, head: nn.Linear, *, max_length: int, normalise: bool = False) -> None:
    """Add files to the folder of an encoder so that `SentenceTransformer` can load it.

    The output of the loaded model is the output of `head`.

    Parameters
    ----------
    normalise
        Scale the averaged hidden state to unit length before it reaches the head.
    """
    # The folder of each module; a module without files needs none.
    paths = {"Transformer": "", "Pooling": "1_Pooling"}
    if normalise:
        paths["Normalize"] = "2_Normalize"
    paths["Dense"] = "2_Dense"
    modules: list[dict[str, object]] = []
    for number, (kind, path) in enumerate(paths.items()):
        module = {
            "idx": number,
            "name": str(number),
            "path": path,
            "type": f"sentence_transformers.models.{kind}",
        }
        modules.append(module)
    files = {
        "modules.json": modules,
        "sentence_bert_config.json": {"max_seq_length": max_length, "do_lower_case": False},
        "1_Pooling/config.json": {
            "word_embedding_dimension": head.in_features,
            "pooling_mode_mean_tokens": True,
        },
        "2_Dense/config.json": {
            "in_features": head.in_features,
            "out_features": head.out_features,
            "bias": True,
            "activation_function": "torch.nn.modules.linear.Identity",
        },
    }
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(content, indent=2), encoding="utf-8")
    # `Dense` has one layer, called `linear`. The activation must be given: the default is tanh.
    tensors = {f"linear.{name}": value.cpu() for name, value in head.state_dict().items()}
    save_file(tensors, folder / "2_Dense" / "model.safetensors")
