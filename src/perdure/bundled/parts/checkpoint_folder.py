"""Write weights and settings as a checkpoint that `from_pretrained` can load."""

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file


def write(
    folder: Path, weights: dict[str, np.ndarray], settings: Mapping[str, Mapping[str, object]]
) -> None:
    """Write `model.safetensors`, and one JSON file per entry of `settings`, named by its key."""
    folder.mkdir(parents=True, exist_ok=True)
    # transformers reads the framework of the weights from this metadata.
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    for name, values in settings.items():
        (folder / name).write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
