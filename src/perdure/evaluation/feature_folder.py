"""Features of frozen encoders on disk, which the runs of a sweep share.

A file belongs to one model and one set of examples. Its name is a digest of everything that
the features depend on: the weights as they are in memory when they are needed, the inputs of
each batch, and the circumstances of the computation. So the features that are read are, bit
by bit, those that would have been computed, and a model that was changed in any way has other
files. The folder may be deleted at any time.
"""

import contextlib
import hashlib
import importlib.metadata
import json
import warnings
from collections.abc import Callable
from pathlib import Path

import safetensors.torch
import torch
from jaxtyping import Float
from torch import Tensor

from perdure.errors import CheckpointError, OutputError, PerdureWarning
from perdure.models import adapters, shares
from perdure.models.backbone import Backbone
from perdure.models.examples import Examples
from perdure.storage import files
from perdure.storage.tensors import TensorFile, digest_of

LIMIT = 2_000_000_000
"""The maximum number of bytes of all files in a folder; the oldest ones are removed."""


def shared(
    backbone: Backbone,
    examples: Examples,
    compute: Callable[[], Float[Tensor, "examples features"]],
) -> Float[Tensor, "examples features"]:
    """Return the features of examples: those in the backbone's folder, or computed and kept there.

    Without a folder (`Backbone.features_in`) they are computed. So they are while the model
    contains adapters, whose weights differ from run to run.
    """
    folder = backbone.features_in
    alone = shares.processes() == 1
    if folder is None or not alone or not backbone.has_heads or adapters.attached(backbone.model):
        return compute()
    path = folder / f"{_key(backbone, examples)}.safetensors"
    features = _read(path)
    if features is None:
        features = compute()
        _keep(path, features)
    return features


def _key(backbone: Backbone, examples: Examples) -> str:
    """Return a digest of everything that the features depend on."""
    model = backbone.model
    circumstances = {
        "backbone": [type(backbone).__name__, backbone.settings],
        # the modules, and settings that they do not show, such as the kind of attention
        "model": [repr(model), vars(model.config) if hasattr(model, "config") else {}],
        "versions": [torch.__version__, importlib.metadata.version("transformers")],
        "device": [str(backbone.device), torch.get_num_threads()],
    }
    digest = hashlib.sha256()
    text = json.dumps(circumstances, sort_keys=True, default=repr)
    digest.update(text.encode())
    # each time anew: a model may have been changed in place since the last time
    weights = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    digest.update(digest_of(weights).encode())
    for rows, batch in examples.batches():
        digest.update(str(rows).encode())
        digest.update(digest_of(batch.inputs).encode())
    return digest.hexdigest()


def _read(path: Path) -> Float[Tensor, "examples features"] | None:
    """Return the features in a file; None if it does not exist, or is damaged."""
    if not path.exists():
        return None
    try:
        tensors = TensorFile(path).read_all()
    except CheckpointError as error:
        # another process may just have removed it
        if path.exists():
            _warn(f"{error} Its features are computed again.")
        return None
    features = tensors.pop("features", None)
    recorded = tensors.pop("sha256", None)
    if features is None or recorded is None or not torch.equal(recorded, _sha256(features)):
        _warn(f"`{path}` is damaged. Its features are computed again.")
        return None
    return features


def _keep(path: Path, features: Float[Tensor, "examples features"]) -> None:
    """Write features to a file, which appears whole, and remove the oldest files."""
    content = safetensors.torch.save({"features": features, "sha256": _sha256(features)})
    try:
        with files.refusing(path):
            path.parent.mkdir(exist_ok=True)
            _make_room(path.parent, LIMIT - len(content))
        files.write(path, content)
    except OutputError as error:
        _warn(f"{error} Features are not kept for other runs.")


def _make_room(folder: Path, limit: int) -> None:
    """Remove the oldest files of a folder until the others have at most `limit` bytes."""
    sizes = {}
    for path in folder.glob("*.safetensors"):
        # another process may remove it at the same time
        with contextlib.suppress(FileNotFoundError):
            status = path.stat()
            sizes[path] = status.st_mtime_ns, status.st_size
    total = sum(size for _, size in sizes.values())
    for path in sorted(sizes, key=sizes.__getitem__):
        if total <= limit:
            return
        path.unlink(missing_ok=True)
        total -= sizes[path][1]


def _sha256(features: Tensor) -> Tensor:
    return torch.tensor(list(bytes.fromhex(digest_of({"features": features}))), dtype=torch.uint8)


def _warn(message: str) -> None:
    warnings.warn(message, PerdureWarning, stacklevel=2)
