"""On what something was run: versions, source revision and hardware."""

import functools
import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import torch


def environment() -> dict[str, Any]:
    """Versions, source revision and hardware."""
    return {
        "python": platform.python_version(),
        "versions": dict(_versions()),
        "revision": _revision(),
        "machine": platform.machine(),
        "system": platform.system(),
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "accelerator": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


@functools.cache
def _versions() -> dict[str, str]:
    packages = ("perdure", "transformers", "peft", "accelerate", "datasets", "tokenizers", "numpy")
    # torch itself says for which accelerator it was built
    return {"torch": torch.__version__} | {
        name: importlib.metadata.version(name) for name in packages
    }


@functools.cache
def _revision() -> str | None:
    """The git revision of perdure's own source, if it is run from a checkout; asked once, as what runs is in memory."""
    here = Path(__file__).parent
    command = ["git", "-C", str(here), "describe", "--always", "--dirty", "--exclude", "*"]
    try:
        tracked = subprocess.run(
            ["git", "-C", str(here), "ls-files", "--error-unmatch", __file__], capture_output=True
        )
        found = subprocess.run(command, capture_output=True, text=True)
    except OSError:
        return None
    return found.stdout.strip() if tracked.returncode == 0 and found.returncode == 0 else None
