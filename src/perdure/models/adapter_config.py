"""The configuration of an adapter, read from its file and checked.

A run folder may come from an untrusted source, so only the settings that perdure writes
are read. Any other setting must be unset or have its default value.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import peft
from annotated_types import Ge, Le, Lt
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from perdure.errors import CheckpointError
from perdure.models.bottleneck import BottleneckConfig
from perdure.models.full import FullConfig
from perdure.storage import files

# Keys whose values in the file are ignored or checked separately.
FREE = (
    "target_modules",
    "base_model_name_or_path",
    "inference_mode",
    "modules_to_save",
    "peft_version",
    "task_type",
)

# An absurd width is rejected before parameters of that size are allocated.
_Width = Annotated[int, Ge(1), Lt(10**6)]
_Share = Annotated[float, Ge(0), Le(1)]


class _Written(BaseModel):
    """Settings that `adapter_config.json` contains for every kind of adapter."""

    model_config = ConfigDict(strict=True, extra="allow", allow_inf_nan=False)
    make: ClassVar[Callable[..., peft.PeftConfig]]

    target_modules: Annotated[list[str], Field(fail_fast=True)] | str


class _WrittenLora(_Written):
    make = peft.LoraConfig

    peft_type: Literal["LORA"]
    r: _Width
    lora_alpha: float
    lora_dropout: _Share
    fan_in_fan_out: bool = False
    """True if the target layers store their weights transposed, as in GPT-2."""


class _WrittenBottleneck(_Written):
    make = BottleneckConfig

    peft_type: Literal["BOTTLENECK"]
    width: _Width
    dropout: _Share


class _WrittenFull(_Written):
    make = FullConfig

    peft_type: Literal["FULL"]


_WRITTEN: TypeAdapter[_WrittenLora | _WrittenBottleneck | _WrittenFull] = TypeAdapter(
    Annotated[_WrittenLora | _WrittenBottleneck | _WrittenFull, Field(discriminator="peft_type")]
)


def config_from(path: Path, layers: set[str]) -> peft.PeftConfig:
    """Read the peft configuration of an adapter from a run folder.

    perdure 0.1 wrote `target_modules` as a regular expression. Such a pattern is replaced
    by `layers`, the names of the layers for which the adapter has parameters. It is never
    matched, because matching a pattern from a file could take forever.

    Raises
    ------
    CheckpointError
        The file is damaged, or has settings that perdure does not write.
    """
    values = files.read_json(path)
    foreign = CheckpointError(f"`{path}` is not an adapter configuration written by perdure.")
    try:
        written = _WRITTEN.validate_python(values)
    except ValidationError as error:
        raise foreign from error
    targets = written.target_modules
    if not targets or (isinstance(targets, list) and not _are_targets(targets, layers)):
        raise foreign
    known = type(written).model_fields.keys() - {"peft_type", "target_modules"}
    # Pass only the settings in the file; peft has defaults for the others.
    settings = {name: values[name] for name in known & values.keys()}
    if isinstance(targets, list):
        layers = set(targets)
    config = written.make(target_modules=layers, **settings)
    ignored = {*settings, *FREE}
    usual = config.to_dict()
    for key, value in values.items():
        # Other versions of peft write more settings; those that are off have no effect.
        if key not in ignored and value and value != usual.get(key):
            stated = str(value)[:100]
            raise CheckpointError(f"`{path}`: `{key}` is {stated}, which perdure does not write.")
    return config


def _are_targets(names: list[str], layers: set[str]) -> bool:
    """Return whether each name matches a layer and each layer matches a name.

    As in peft, a name may be the last part of a layer's full name.
    """
    named: set[str] = set()
    for name in names:
        matches = {layer for layer in layers if f".{layer}".endswith(f".{name}")}
        if not matches:
            return False
        named |= matches
    return named == layers
