"""All modules of perdure, so that forks of a process that has imported them need not."""

import importlib
import importlib.util
from pathlib import Path

_ROOT = Path(importlib.util.find_spec("perdure").origin).parent
NAMES = [
    ".".join(("perdure", *path.relative_to(_ROOT).with_suffix("").parts)).removesuffix(".__init__")
    for path in sorted(_ROOT.rglob("*.py"))
    if path.stem != "__main__"
]
"""Found without an import: conftest.py has first to see to it that annotations are checked."""


def import_it() -> None:
    """Import them all, which takes longer than most of what a fork does."""
    for name in NAMES:
        importlib.import_module(name)
