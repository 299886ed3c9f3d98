"""Outlines: backbones without weights, on which a dry run counts what would be trained.

An outline is built from `config.json` on torch's `meta` device, where tensors have shapes
but no values. A model of any size takes a few seconds and little memory, and its weights
need not be downloaded. Adapters can be attached to an outline as usual, but it cannot
compute anything.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from perdure.errors import BackboneError
from perdure.models import model_files, pretrained, quantised
from perdure.models.backbone import Backbone
from perdure.models.load import load_with
from perdure.models.model_files import HUB_ID, ModelFiles


def outline(source: str, settings: Mapping[str, Any]) -> Backbone:
    """Create the outline of a backbone from files on this machine.

    The model's folder must contain `config.json`; that of an encoder also needs the
    tokenizer or image processor.

    Parameters
    ----------
    source
        A folder, a hub id or a packaged model.
    settings
        The other arguments of `Backbone.load`.

    Raises
    ------
    BackboneError
        The files are not on this machine, or `Backbone.load` would reject them.
    """
    others = dict(settings)
    files = _files(source, others.pop("revision", None))
    pooling = others.get("pooling", "auto")
    is_encoder = pooling != "auto" or not pretrained.answers_with_text(files)
    if is_encoder and files.has_weights:
        # Which layers are trained depends on the weights, and encoders are small enough to load.
        return load_with(files, others).to("meta")
    return load_with(files, others, outline=True)


def frozen_bytes(backbone: Backbone) -> int:
    """Return the memory that a backbone's parameters take, in bytes; shared ones count once."""
    if quantised.is_quantised(backbone.model):
        return quantised.bytes_in_4_bits(backbone.model)
    return sum(parameter.nbytes for parameter in backbone.model.parameters())


def _files(source: str, revision: str | None) -> ModelFiles:
    try:
        return model_files.find(source, revision, fetch=False)
    except BackboneError as error:
        if Path(source).exists() or not HUB_ID.fullmatch(source):
            raise
        raise BackboneError(
            f"`{source}` is not on this machine, and a dry run downloads nothing. Put its "
            "`config.json` (and the files of its tokenizer, if you have them) into a folder, and "
            "add `--set backbone.model=FOLDER`."
        ) from error
