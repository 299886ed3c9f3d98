"""The differences between two recipes, and whether they can affect what was learned."""

from collections.abc import Iterator, Mapping
from pathlib import Path

from perdure.errors import RunError

Sections = Mapping[str, object]
"""The sections of a recipe, by name."""

HARMLESS = ("name", "about", "stream", "evaluation", "rule")
"""Sections that only affect what is measured, and `stream`, whose examples are compared instead."""
HARMLESS_IN_TRAINING = ("checkpoint_steps", "gradient_checkpointing", "sharding", "trackers")
"""Settings of training that do not change what is learned, except by rounding."""


def check_changes(folder: Path, before: Sections, now: Sections) -> None:
    """Check that a run can continue with another recipe.

    Raises
    ------
    RunError
        A difference would affect what was learned; the message lists all such differences.
    """
    changes = dict(differences(before, now))
    # Older runs did not record a revision; for those, the model's shapes are compared instead.
    if not dict(_flat(before)).get("backbone.revision"):
        changes.pop("backbone.revision", None)
    harmful = [line for name, line in changes.items() if not is_harmless(name, now)]
    if harmful:
        raise RunError(
            f"`{folder}` contains a run with other settings, and cannot continue with these: "
            f"{'; '.join(harmful)}. Choose another `--output`, "
            f"or continue with the run's own settings: `perdure run {folder}`."
        )


def is_harmless(name: str, recipe: Sections) -> bool:
    """Return True if a change of this setting cannot affect what was learned."""
    section, _, key = name.partition(".")
    if section == "training":
        return key in HARMLESS_IN_TRAINING
    if section == "rule":
        # Heads are aligned on the features of the rule's model.
        training = recipe.get("training")
        aligned = isinstance(training, Mapping) and bool(training.get("alignment"))
        return not aligned
    return section in HARMLESS


def differences(before: Sections, now: Sections) -> list[tuple[str, str]]:
    """Return the name of each setting that differs, with a line that shows both values.

    A missing setting counts as null, so a new setting whose default is null makes no difference.

    Examples
    --------
    >>> after = {"seed": 0, "method": {"rank": 4, "start": None}}
    >>> differences({"seed": 0, "method": {"rank": 8}}, after)
    [('method.rank', '`method.rank`: 8 before, 4 now')]
    """
    old = dict(_flat(before))
    new = dict(_flat(now))
    lines = []
    # In the order of the older recipe, with new settings at the end.
    for name in dict.fromkeys([*old, *new]):
        if old.get(name) != new.get(name):
            line = f"`{name}`: {_said(old.get(name))} before, {_said(new.get(name))} now"
            lines.append((name, line))
    return lines


def _flat(values: Mapping[str, object], start: str = "") -> Iterator[tuple[str, object]]:
    """Yield the path (such as `method.rank`) and the value of each setting in nested mappings."""
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{start}{name}.")
        else:
            yield f"{start}{name}", value


def _said(value: object) -> str:
    """Format a value for a message, truncated if it is long."""
    # Not a test for truth: 0 and False are valid settings.
    text = "nothing" if value in (None, [], {}) else str(value)
    return text if len(text) <= 200 else f"{text[:200]}…"
