"""Which layers an adapter's configuration names, as peft reads it."""

from collections.abc import Mapping
from typing import Any

from perdure.errors import CheckpointError
from perdure.models.patterns import Patterns

ALL_LINEAR = "all-linear"
LISTS = (
    "target_modules",
    "exclude_modules",
    "layers_pattern",
    "target_parameters",
    "modules_to_save",
)
MAPPINGS = ("rank_pattern", "alpha_pattern")


class Targets:
    """What an adapter's configuration says of layers, by name or by regular expression.

    Parameters
    ----------
    where
        The path of the configuration, for the errors.

    Raises
    ------
    CheckpointError
        A setting is of a type that peft does not write.
    """

    def __init__(self, config: Mapping[str, Any], where: str) -> None:
        self.config = config
        self.where = where
        self._patterns = Patterns(CheckpointError)
        for key in LISTS:
            may_be_text = key not in ("target_parameters", "modules_to_save")
            if not _are_texts(config.get(key), may_be_text):
                raise CheckpointError(
                    f"`{where}`: `{key}` is {str(config[key])[:80]!r}, not a list of names."
                )
        for key in MAPPINGS:
            if not isinstance(config.get(key) or {}, dict):
                raise CheckpointError(
                    f"`{where}`: `{key}` is {str(config[key])[:80]!r}, not a dict."
                )
        blocks = config.get("layers_to_transform")
        if not _are_numbers(blocks):
            raise CheckpointError(
                f"`{where}`: `layers_to_transform` is {str(blocks)[:80]!r}, not a list of numbers."
            )

    def named(self, layer: str) -> bool | None:
        """Return whether the configuration names a layer; None if it leaves that to the model's type.

        Raises
        ------
        CheckpointError
            A pattern is no regular expression, or takes too much time.
        """
        targets = self.config.get("target_modules")
        if targets == ALL_LINEAR or (targets is None and not self.parameters):
            return None
        if targets is None or self._is_excluded(layer):
            return False
        if isinstance(targets, str):
            return bool(self._fullmatch("target_modules", targets, layer))
        return _ends_with(layer, targets) and self._is_in_blocks(layer)

    @property
    def parameters(self) -> list[str]:
        """The single parameters that are targeted, by the ends of their names."""
        return self.config.get("target_parameters") or []

    def value(self, setting: str, layer: str) -> Any:
        """Return what `rank_pattern` or `alpha_pattern` says of a layer; None if it says nothing.

        The first pattern counts that is the end of the layer's name.

        Raises
        ------
        CheckpointError
            A pattern is no regular expression, or takes too much time.
        """
        for pattern, value in (self.config.get(setting) or {}).items():
            if self._match(setting, rf"(.*\.)?({pattern})$", layer):
                return value
        return None

    def _is_excluded(self, layer: str) -> bool:
        excluded = self.config.get("exclude_modules") or []
        if isinstance(excluded, str):
            if self._fullmatch("exclude_modules", excluded, layer):
                return True
        elif _ends_with(layer, excluded):
            return True
        saved = self.config.get("modules_to_save") or []
        return any(
            self._match("modules_to_save", rf"(^|.*\.){name}($|\..*)", layer) for name in saved
        )

    def _is_in_blocks(self, layer: str) -> bool:
        """Return whether a layer's block is among `layers_to_transform`."""
        blocks = self.config.get("layers_to_transform")
        if blocks is None or blocks == []:
            return True
        patterns = self.config.get("layers_pattern") or [r"[^.]*"]
        for pattern in [patterns] if isinstance(patterns, str) else patterns:
            start = r".*?\." if pattern == r"[^.]*" else r"(?:^|.*?\.)"
            # lazy: the first number counts, which is the block's, not that of an expert in it
            found = self._match("layers_pattern", rf"{start}{pattern}\.(?P<idx>\d+)\.", layer)
            if found:
                return int(found["idx"]) in ([blocks] if isinstance(blocks, int) else blocks)
        return False

    def _match(self, setting: str, pattern: str, layer: str) -> Any:
        return self._patterns.match(pattern, layer, f"`{self.where}`: `{setting}`")

    def _fullmatch(self, setting: str, pattern: str, layer: str) -> Any:
        return self._patterns.fullmatch(pattern, layer, f"`{self.where}`: `{setting}`")


def _ends_with(layer: str, names: list[str]) -> bool:
    return layer in names or any(layer.endswith(f".{name}") for name in names)


def _are_texts(value: Any, may_be_text: bool) -> bool:
    if value is None or (may_be_text and isinstance(value, str)):
        return True
    return isinstance(value, list) and all(isinstance(name, str) for name in value)


def _are_numbers(value: Any) -> bool:
    if value is None or type(value) is int:
        return True
    return isinstance(value, list) and all(type(number) is int for number in value)
