"""What has changed between two recipes, and whether it can touch what was learned."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from perdure.errors import RunError

HARMLESS = ("name", "about", "stream", "evaluation", "rule")
"""Sections that say what is measured, or (the stream) whose effect on the examples is seen in the examples."""
HARMLESS_IN_TRAINING = ("checkpoint_steps", "trackers")


def check_changes(folder: Path, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Whether a run can go on with another recipe.

    Raises
    ------
    RunError
        What differs would touch what was learned; the message shows it.
    """
    found = [line for name, line in differences(before, now) if not is_harmless(name, now)]
    if not (before.get("backbone") or {}).get(
        "revision"
    ):  # older runs keep none: their model's shapes are compared
        found = [line for line in found if not line.startswith("`backbone.revision`")]
    if found:
        raise RunError(
            f"`{folder}` holds a run with other settings, and cannot go on with these: {'; '.join(found)}. "
            f"Give another `--output`; or go on with the run's own settings, by `perdure run {folder}`."
        )


def is_harmless(name: str, recipe: Mapping[str, Any]) -> bool:
    """Whether a setting cannot touch what was learned. Heads that are aligned are aligned on the rule's model."""
    section, _, key = name.partition(".")
    if section == "training":
        return key in HARMLESS_IN_TRAINING
    aligned = bool((recipe.get("training") or {}).get("alignment"))
    return section in HARMLESS and not (section == "rule" and aligned)


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The settings that differ: each by its name, and as a line with both values.

    A setting that one of them lacks is nothing: settings that came later are nothing by default.

    Examples
    --------
    >>> differences({"seed": 0, "method": {"rank": 8}}, {"seed": 0, "method": {"rank": 4, "start": None}})
    [('method.rank', '`method.rank`: 8 before, 4 now')]
    """
    old, new = dict(_flat(before)), dict(_flat(now))
    return [
        (name, f"`{name}`: {_said(old.get(name))} before, {_said(new.get(name))} now")
        for name in dict.fromkeys([*old, *new])
        if old.get(name) != new.get(name)
    ]


def _flat(values: Mapping[str, Any], start: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{start}{name}.")
        else:
            yield f"{start}{name}", value


def _said(value: Any) -> str:
    text = "nothing" if value in (None, [], {}) else str(value)
    return text if len(text) <= 200 else f"{text[:200]}…"
