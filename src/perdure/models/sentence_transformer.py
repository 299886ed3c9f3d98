"""Save an encoder so that sentence-transformers can load it.

The saved model averages the encoder's hidden states over tokens, and applies a linear head.
"""

import json
from pathlib import Path

from safetensors.torch import save_file
from torch import nn


def save(folder: Path, head: nn.Linear, *, max_length: int) -> None:
    """Add files to the folder of an encoder so that `SentenceTransformer` can load it.

    The output of the loaded model is the output of `head`.
    """
    modules = "sentence_transformers.models"
    files = {
        "modules.json": [
            {"idx": 0, "name": "0", "path": "", "type": f"{modules}.Transformer"},
            {"idx": 1, "name": "1", "path": "1_Pooling", "type": f"{modules}.Pooling"},
            {"idx": 2, "name": "2", "path": "2_Dense", "type": f"{modules}.Dense"},
        ],
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
