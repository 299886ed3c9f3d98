"""An adapter's configuration, as its file states it.

A run folder may come from a stranger: only the settings that this library writes are read, and any
other must have its usual value.
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

# Keys whose values in the file are ignored, or are checked by themselves.
FREE = (
    "target_modules",
    "base_model_name_or_path",
    "inference_mode",
    "modules_to_save",
    "peft_version",
    "task_type",
)

# A vast width is refused before parameters of that size are made.
_Width = Annotated[int, Ge(1), Lt(10**6)]
_Share = Annotated[float, Ge(0), Le(1)]


class _Written(BaseModel):
    """The settings in `adapter_config.json` of every kind of adapter."""

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
    """The layers store their weights transposed, as GPT-2's do."""


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
    """Read peft's configuration of an adapter of a run.

    If it has a pattern for `target_modules`, as version 0.1 wrote, the result names the `layers`
    that have parameters instead: a pattern from a file is never matched, because that could take
    forever.

    Raises
    ------
    CheckpointError
        It is damaged, or has settings that no run writes.
    """
    values = files.read_json(path)
    foreign = CheckpointError(f"`{path}` is not a configuration of an adapter that a run wrote.")
    try:
        written = _WRITTEN.validate_python(values)
    except ValidationError as error:
        raise foreign from error
    targets = written.target_modules
    if not targets or (isinstance(targets, list) and not _are_targets(targets, layers)):
        raise foreign
    known = type(written).model_fields.keys() - {"peft_type", "target_modules"}
    # Only what the file states: for other settings peft has the defaults.
    settings = {name: values[name] for name in known & values.keys()}
    if isinstance(targets, list):
        layers = set(targets)
    config = written.make(target_modules=layers, **settings)
    ignored = {*settings, *FREE}
    usual = config.to_dict()
    for key, value in values.items():
        # Other versions of peft write more settings; those that are off change nothing.
        if key not in ignored and value and value != usual.get(key):
            stated = str(value)[:100]
            raise CheckpointError(f"`{path}`: `{key}` is {stated}, which no run writes.")
    return config


def _are_targets(names: list[str], layers: set[str]) -> bool:
    """Return whether each name matches a layer, and each layer a name.

    As in peft, a name may be the end of a layer's name.
    """
    named: set[str] = set()
    for name in names:
        matches = {layer for layer in layers if f".{layer}".endswith(f".{name}")}
        if not matches:
            return False
        named |= matches
    return named == layers
