"""Write the files of a run folder, each whole or not at all; or remove them."""

import csv
import dataclasses
import io
import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from perdure.errors import OutputError
from perdure.merging.rule_settings import Rule
from perdure.runs import layout
from perdure.storage import files, partial


def recipe(folder: Path, values: Mapping[str, object]) -> None:
    """Write recipe.yaml."""
    files.write(folder / "recipe.yaml", files.to_yaml(values))


def scores(folder: Path, rows: Iterable[Mapping[str, object]]) -> None:
    """Write scores.csv."""
    text = io.StringIO()
    columns: list[str] = list(layout.COLUMNS)
    # the csv module would end lines as Windows does, whatever the system is
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    files.write(folder / "scores.csv", text.getvalue())


def events(folder: Path, lines: Iterable[Mapping[str, object]]) -> None:
    """Write events.jsonl anew."""
    texts = [layout.line(dict(line)) for line in lines]
    content = "".join(texts)
    files.write(folder / "events.jsonl", content)


def combined(folder: Path, rule: Mapping[str, object]) -> None:
    """Write how the adapters are combined now."""
    files.write(folder / "combined.json", files.to_json(rule))


def described(rule: Rule, searches: Sequence[Mapping[str, object]]) -> dict[str, object]:
    """Return a rule as `combined.json` has it, before its own search."""
    return {
        "label": rule.label,
        **dataclasses.asdict(rule),
        "candidates": [],
        "searches": searches,
    }


def removed(path: Path) -> None:
    """Remove a file or a folder; a folder disappears in one step.

    A link is neither followed nor removed: its target may still contain what was to be removed, and
    only the user can decide about it.

    Raises
    ------
    OutputError
        Removing it is not allowed, or it is a link.
    """
    with files.refusing(path, verb="removed"):
        if path.is_symlink():
            raise OutputError(
                f"`{path}` is a link, which is not followed. "
                "Remove it, and what it points to if need be."
            )
        if not path.is_dir():
            path.unlink(missing_ok=True)
            return
        # Removing the files one by one takes time, and a process that ends midway would leave half
        # a task. Under a temporary name the folder counts for nothing, and is swept later.
        hidden = partial.new_path(path.parent)
        os.rename(path, hidden)
        files.sync_names(path.parent)  # the new name is on the disk before anything is removed
        shutil.rmtree(hidden)


def renamed(path: Path, new: Path) -> None:
    """Give a folder another name."""
    with files.refusing(path, verb="renamed"):
        os.rename(path, new)
