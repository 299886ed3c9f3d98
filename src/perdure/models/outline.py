"""A backbone of shapes, without values: what a run would train is counted on it.

It is built on torch's `meta` device from `config.json`, so a model of any size takes seconds and
little memory, and its weights need not be here. Adapters are attached to it as to any model; it
computes nothing.
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
    """Make the outline of a backbone, from files that are on this machine.

    A folder needs `config.json`, and an encoder its tokenizer or image processor as well.

    Parameters
    ----------
    source
        A folder, a hub id or a packaged model.
    settings
        The other arguments of `Backbone.load`.

    Raises
    ------
    BackboneError
        The files are not on this machine, or `Backbone.load` would refuse them.
    """
    others = dict(settings)
    files = _files(source, others.pop("revision", None))
    pooling = others.get("pooling", "auto")
    is_encoder = pooling != "auto" or not pretrained.answers_with_text(files)
    if is_encoder and files.has_weights:
        # The weights say which of its layers are trained. Encoders are small enough to be loaded.
        return load_with(files, others).to("meta")
    return load_with(files, others, outline=True)


def frozen_bytes(backbone: Backbone) -> int:
    """Return the size in memory of a backbone's values; those that layers share count once."""
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
            "`config.json`, and its tokenizer's files if you have them, into a folder, and say "
            "`--set backbone.model=FOLDER`."
        ) from error
