"""Record which tasks a file was made from, so that no file about a removed task remains.

A report, a diagnosis, predictions and an export are made without locking the run, and may
be finished after one of their tasks was forgotten. So the code that makes such a file
records the tasks first, and checks them when the file is moved into place. Files in a run
folder also name their tasks, so that it can be checked later whether all of these still
exist.
"""

import contextlib
import hashlib
import html
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from perdure.errors import PerdureError, RunError
from perdure.runs import layout
from perdure.storage import files

META = re.compile(rb'<meta name="perdure-made-of" content="([^"]*)">')
HEAD = 1_000_000
"""The number of bytes at the beginning of an HTML page that are searched for its sources."""


@dataclass(frozen=True)
class Sources:
    """The tasks of a run at one moment, each with the SHA-256 of its manifest.

    The manifest contains the hashes of all files of the task, so its own hash identifies the task.
    """

    folder: Path
    tasks: Mapping[str, str]

    @classmethod
    def of(cls, folder: str | Path) -> "Sources":
        """Record the tasks that a run has now.

        Raises
        ------
        RunError
            The folder is not a run, or its recipe or a manifest cannot be read.
        """
        folder = Path(folder)
        layout.check_run(folder)
        digests = {name: _digest(path) for name, path in _manifests(folder).items()}
        return cls(folder, digests)

    @classmethod
    def readable(cls, folder: str | Path) -> "Sources":
        """Record the tasks that a run has now, as far as its files can be read.

        This is for reports, which also show damaged runs.
        """
        folder = Path(folder)
        digests = {}
        with contextlib.suppress(PerdureError):  # the recipe, or the folder of the tasks
            for name, path in _manifests(folder).items():
                with contextlib.suppress(PerdureError):  # this task alone
                    digests[name] = _digest(path)
        return cls(folder, digests)

    def gone(self, now: "Sources") -> list[str]:
        """Return the recorded tasks that are missing from `now`, or were learned again since."""
        gone = []
        for name, digest in self.tasks.items():
            if now.tasks.get(name) != digest:
                gone.append(name)
        return gone

    def check(self) -> None:
        """Check that all recorded tasks still exist, unchanged.

        Raises
        ------
        RunError
            A task was forgotten, or learned again.
        """
        # a task that cannot be read counts as gone, because it may not be the same
        gone = self.gone(Sources.readable(self.folder))
        if gone:
            raise RunError(
                f"The task `{gone[0]}` of `{self.folder}` was forgotten or learned again "
                "meanwhile, so nothing that was made from it is kept. Run the command again."
            )


def stale(folder: Path) -> dict[str, list[str]]:
    """Return the derived files made from tasks that are now gone, with the names of these tasks."""
    gone_by_file: dict[str, list[str]] = {}
    now = Sources.readable(folder)
    for name in layout.DERIVED:
        noted = Sources(folder, _named_in(folder / name))
        gone = noted.gone(now)
        if gone:
            gone_by_file[name] = gone
    return gone_by_file


def _named_in(path: Path) -> dict[str, str]:
    """Return the tasks that a derived file names.

    A file that is missing, damaged, or from an older version names none, so it is never stale.
    """
    try:
        if path.suffix == ".html":
            return _named_in_page(path)
        return _digests(files.read_json(path).get("made_of"))
    except PerdureError:
        return {}


def _named_in_page(path: Path) -> dict[str, str]:
    """Return the tasks that an HTML page about a single run names.

    A page about several runs does not belong to any of them.
    """
    # the page may be large and come from a stranger: only its beginning is read
    metas = META.findall(files.read_start(path, HEAD))
    if len(metas) != 1:
        return {}
    content = metas[0].decode("utf-8", "replace")
    text = html.unescape(content)
    return _digests(files.parse_json(text, f"the head of `{path}`"))


def _digests(about: object) -> dict[str, str]:
    """Return a file's record of task digests; empty if it is not a mapping of strings."""
    if not isinstance(about, dict):
        return {}
    for digest in about.values():
        if not isinstance(digest, str):
            return {}
    return about


def _manifests(folder: Path) -> dict[str, Path]:
    """Return the path of each task's manifest, by task name."""
    recipe = layout.recipe(folder)
    forgotten = layout.forgotten(recipe)
    folders = layout.task_folders(folder, forgotten)
    return {name: path / "manifest.json" for name, path in folders.items()}


def _digest(manifest: Path) -> str:
    with layout.reading(manifest):
        # a limit, because a manifest in a stranger's folder may be of any size
        content = files.read_bytes(manifest, files.MAX_JSON)
        return hashlib.sha256(content).hexdigest()
