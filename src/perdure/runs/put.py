"""Write files of a run folder, each completely or not at all; or remove files and folders."""

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
    # by default, the csv module writes Windows line endings on every system
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    files.write(folder / "scores.csv", text.getvalue())


def events(folder: Path, lines: Iterable[Mapping[str, object]]) -> None:
    """Replace events.jsonl with these events."""
    texts = [layout.line(dict(line)) for line in lines]
    content = "".join(texts)
    files.write(folder / "events.jsonl", content)


def combined(folder: Path, rule: Mapping[str, object]) -> None:
    """Write combined.json, which records how the adapters are combined."""
    files.write(folder / "combined.json", files.to_json(rule))


def described(rule: Rule, searches: Sequence[Mapping[str, object]]) -> dict[str, object]:
    """Return a rule in the format of `combined.json`, with an empty list of candidates."""
    return {
        "label": rule.label,
        **dataclasses.asdict(rule),
        "candidates": [],
        "searches": searches,
    }


def removed(path: Path) -> None:
    """Remove a file or a folder; a folder disappears in a single step.

    A symbolic link is neither followed nor removed: its target may still contain the data
    that should be removed, and only the user can decide what to do with it.

    Raises
    ------
    OutputError
        The path is a symbolic link, or the system does not allow removing it.
    """
    with files.refusing(path, verb="removed"):
        if path.is_symlink():
            raise OutputError(
                f"`{path}` is a link, which is not followed. "
                "Remove it, and its target if necessary."
            )
        if not path.is_dir():
            path.unlink(missing_ok=True)
            return
        # Removing the files one by one takes time, and a process that dies midway would
        # leave half a task. Under a temporary name, the folder is ignored, and removed
        # later if necessary.
        hidden = partial.new_path(path.parent)
        os.rename(path, hidden)
        files.sync_names(path.parent)  # the new name is on the disk before anything is removed
        shutil.rmtree(hidden)


def renamed(path: Path, new: Path) -> None:
    """Rename a folder."""
    with files.refusing(path, verb="renamed"):
        os.rename(path, new)
