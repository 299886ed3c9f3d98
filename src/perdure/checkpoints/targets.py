"""The layers that an adapter's configuration names, as peft reads it."""

from collections.abc import Mapping, Sequence
from typing import Any

from perdure.errors import CheckpointError
from perdure.models.patterns import Patterns

ALL_LINEAR = "all-linear"
# peft's default for `layers_pattern`: any name before the number of a block.
ANY_NAME = r"[^.]*"
LISTS = (
    "target_modules",
    "exclude_modules",
    "layers_pattern",
    "target_parameters",
    "modules_to_save",
)
MAPPINGS = ("rank_pattern", "alpha_pattern")


class Targets:
    """The layers that an adapter's configuration names, by their names or by regular expressions.

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
        # All patterns of one file share a time to be matched in.
        self._patterns = Patterns(CheckpointError)
        for key in LISTS:
            may_be_text = key not in ("target_parameters", "modules_to_save")
            if not _are_texts(config.get(key), may_be_text):
                raise self._wrong_type(key, "a list of names")
        for key in MAPPINGS:
            if not isinstance(config.get(key) or {}, dict):
                raise self._wrong_type(key, "a dict")
        if not _are_numbers(config.get("layers_to_transform")):
            raise self._wrong_type("layers_to_transform", "a list of numbers")

    def _wrong_type(self, key: str, allowed: str) -> CheckpointError:
        value = str(self.config[key])[:80]
        return CheckpointError(f"`{self.where}`: `{key}` is {value!r}, not {allowed}.")

    def named(self, layer: str) -> bool | None:
        """Return whether the configuration names a layer; None if the model's type decides.

        Raises
        ------
        CheckpointError
            A pattern is no regular expression, or takes too much time.
        """
        targets = self.config.get("target_modules")
        if targets == ALL_LINEAR:
            return None
        if targets is None:
            # Without either setting peft has a default for each type of model.
            return False if self.parameters else None
        if self._is_excluded(layer):
            return False
        if isinstance(targets, str):
            return bool(self._fullmatch("target_modules", targets, layer))
        return _ends_with(layer, targets) and self._is_in_blocks(layer)

    @property
    def parameters(self) -> list[str]:
        """The single parameters that are targeted, by the ends of their names."""
        return self.config.get("target_parameters") or []

    @property
    def saved_modules(self) -> list[str]:
        """The modules that are trained whole."""
        return self.config.get("modules_to_save") or []

    def value(self, setting: str, layer: str) -> object:
        """Return the value of a layer in `rank_pattern` or `alpha_pattern`; None if it has none.

        The first pattern that matches the end of the layer's name counts.

        Raises
        ------
        CheckpointError
            A pattern is no regular expression, or takes too much time.
        """
        by_pattern = self.config.get(setting) or {}
        for pattern, value in by_pattern.items():
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
        # A module that is trained whole has no factors. Its name is a pattern for peft, too.
        for module in self.saved_modules:
            if self._match("modules_to_save", rf"(^|.*\.){module}($|\..*)", layer):
                return True
        return False

    def _is_in_blocks(self, layer: str) -> bool:
        """Return whether a layer's block is among `layers_to_transform`."""
        blocks = self.config.get("layers_to_transform")
        if blocks is None or blocks == []:
            return True
        if isinstance(blocks, int):
            blocks = [blocks]
        patterns = self.config.get("layers_pattern") or [ANY_NAME]
        if isinstance(patterns, str):
            patterns = [patterns]
        for pattern in patterns:
            # Lazy, so that the first number counts: the block's, not that of an expert in it.
            start = r".*?\." if pattern == ANY_NAME else r"(?:^|.*?\.)"
            block = self._match("layers_pattern", rf"{start}{pattern}\.(?P<idx>\d+)\.", layer)
            if block:
                return int(block["idx"]) in blocks
        return False

    def _match(self, setting: str, pattern: str, layer: str):
        return self._patterns.match(pattern, layer, f"`{self.where}`: `{setting}`")

    def _fullmatch(self, setting: str, pattern: str, layer: str):
        return self._patterns.fullmatch(pattern, layer, f"`{self.where}`: `{setting}`")


def _ends_with(layer: str, names: Sequence[str]) -> bool:
    return layer in names or any(layer.endswith(f".{name}") for name in names)


def _are_texts(value: object, may_be_text: bool) -> bool:
    if value is None:
        return True
    if isinstance(value, str):
        return may_be_text
    return isinstance(value, list) and all(isinstance(name, str) for name in value)


def _are_numbers(value: object) -> bool:
    # `type`, not `isinstance`: for Python `true` is a number.
    if value is None or type(value) is int:
        return True
    return isinstance(value, list) and all(type(number) is int for number in value)
