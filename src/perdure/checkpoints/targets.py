"""The layers that an adapter's configuration targets, interpreted as in peft."""

from collections.abc import Mapping, Sequence
from typing import Any

from perdure.errors import CheckpointError
from perdure.models.patterns import Patterns

ALL_LINEAR = "all-linear"
# The default of peft for `layers_pattern`, which matches any name before the number of a block.
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
    """The layers that an adapter's configuration targets, by name or regular expression.

    Parameters
    ----------
    where
        The path of the configuration, for error messages.

    Raises
    ------
    CheckpointError
        A setting has an invalid type, which peft never writes.
    """

    def __init__(self, config: Mapping[str, Any], where: str) -> None:
        self.config = config
        self.where = where
        # All patterns in a configuration share one time limit for matching.
        self._patterns = Patterns(CheckpointError)
        for key in LISTS:
            may_be_string = key not in ("target_parameters", "modules_to_save")
            if not _are_strings(config.get(key), may_be_string):
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
        """Return True if the configuration targets a layer, or None if that depends on the model.

        Raises
        ------
        CheckpointError
            A pattern is not a valid regular expression, or takes too long to match.
        """
        targets = self.config.get("target_modules")
        if targets == ALL_LINEAR:
            return None
        if targets is None:
            # Without either setting, peft has a default for each model type.
            return False if self.parameters else None
        if self._is_excluded(layer):
            return False
        if isinstance(targets, str):
            return bool(self._fullmatch("target_modules", targets, layer))
        return _ends_with(layer, targets) and self._is_in_blocks(layer)

    @property
    def parameters(self) -> list[str]:
        """The individual parameters that are targeted, as suffixes of their names."""
        return self.config.get("target_parameters") or []

    @property
    def saved_modules(self) -> list[str]:
        """The modules that are fully trained (`modules_to_save`)."""
        return self.config.get("modules_to_save") or []

    def value(self, setting: str, layer: str) -> object:
        """Return the value for a layer in `rank_pattern` or `alpha_pattern`.

        This is the value of the first pattern that matches the end of the layer's name,
        or None if no pattern matches.

        Raises
        ------
        CheckpointError
            A pattern is not a valid regular expression, or takes too long to match.
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
        # A fully trained module has no factors. peft also interprets its name as a pattern.
        for module in self.saved_modules:
            if self._match("modules_to_save", rf"(^|.*\.){module}($|\..*)", layer):
                return True
        return False

    def _is_in_blocks(self, layer: str) -> bool:
        """Return True if `layers_to_transform` includes a layer's block or is not set."""
        blocks = self.config.get("layers_to_transform")
        if blocks is None or blocks == []:
            return True
        if isinstance(blocks, int):
            blocks = [blocks]
        patterns = self.config.get("layers_pattern") or [ANY_NAME]
        if isinstance(patterns, str):
            patterns = [patterns]
        for pattern in patterns:
            # Match lazily, to use the first number, which is the block's, not an inner expert's.
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


def _are_strings(value: object, may_be_string: bool) -> bool:
    if value is None:
        return True
    if isinstance(value, str):
        return may_be_string
    return isinstance(value, list) and all(isinstance(name, str) for name in value)


def _are_numbers(value: object) -> bool:
    # Use `type`, not `isinstance`, because `True` is an int.
    if value is None or type(value) is int:
        return True
    return isinstance(value, list) and all(type(number) is int for number in value)
