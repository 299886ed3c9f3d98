"""Write the files of a run folder, each whole or not at all; or remove them."""

import csv
import dataclasses
import io
import os
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from perdure.errors import OutputError
from perdure.merging.rule_settings import Rule
from perdure.runs import layout
from perdure.storage import files, partial


def recipe(folder: Path, values: Mapping[str, Any]) -> None:
    """Write recipe.yaml."""
    files.write(folder / "recipe.yaml", files.to_yaml(values))


def scores(folder: Path, rows: Iterable[Mapping[Any, Any]]) -> None:
    """Write scores.csv."""
    text = io.StringIO()
    writer = csv.DictWriter(text, layout.COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    files.write(folder / "scores.csv", text.getvalue())


def events(folder: Path, lines: Iterable[Mapping[str, Any]]) -> None:
    """Write events.jsonl anew."""
    files.write(folder / "events.jsonl", "".join(layout.line(dict(line)) for line in lines))


def combined(folder: Path, rule: Mapping[str, Any]) -> None:
    """Write how the adapters are combined now."""
    files.write(folder / "combined.json", files.to_json(rule))


def described(rule: Rule, searches: list[dict[str, Any]]) -> dict[str, Any]:
    """Return a rule as `combined.json` holds it, before its own search."""
    return {"label": rule.label, **dataclasses.asdict(rule), "candidates": [], "searches": searches}


def removed(path: Path) -> None:
    """Remove a file or a folder; a folder disappears at once, under a name that counts for nothing.

    A link is not followed, and not removed either: what it points to may tell of what was to be removed.

    Raises
    ------
    OutputError
        It is not allowed, or it is a link.
    """
    with files.refusing(path, verb="removed"):
        if path.is_symlink():
            raise OutputError(
                f"`{path}` is a link, which is not followed. Remove it, and what it points to if need be."
            )
        if not path.is_dir():
            path.unlink(missing_ok=True)
            return
        hidden = partial.new_path(path.parent)
        os.rename(path, hidden)
        files.sync_names(path.parent)
        shutil.rmtree(hidden)


def renamed(path: Path, place: Path) -> None:
    """Give a folder another name."""
    with files.refusing(path, verb="renamed"):
        os.rename(path, place)
