"""The environment of a run: versions, source revision and hardware."""

import functools
import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path

import torch

PACKAGES = ("perdure", "transformers", "peft", "accelerate", "datasets", "tokenizers", "numpy")


def environment() -> dict[str, object]:
    """Return the versions, the source revision and the hardware of this process."""
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
    # torch's `__version__` also says for which accelerator it was built.
    versions: dict[str, str] = {"torch": torch.__version__}
    for package in PACKAGES:
        versions[package] = importlib.metadata.version(package)
    return versions


@functools.cache
def _revision() -> str | None:
    """Return the git revision of perdure's source if it runs from a checkout, otherwise None."""
    # Cached, because the running code is already in memory, whatever is checked out later.
    git = ["git", "-C", str(Path(__file__).parent)]
    try:
        # An installed copy may be inside an unrelated repository, whose revision says nothing.
        tracked = subprocess.run(
            [*git, "ls-files", "--error-unmatch", __file__], capture_output=True
        )
        described = subprocess.run(
            [*git, "describe", "--always", "--dirty", "--exclude", "*"],
            capture_output=True,
            text=True,
        )
    except OSError:  # git is not installed
        return None
    if tracked.returncode or described.returncode:
        return None
    return described.stdout.strip()
