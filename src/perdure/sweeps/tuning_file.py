"""The file of a search: a line for its recipe and protocol, and one for each trial that ended.

The trials are in the order in which they ended. Where that is not the order in which they
began, a line has the `number` of its trial, counted from 0. If a trial was repeated, its last
line counts.
"""

import json
from pathlib import Path

from perdure.errors import RunError
from perdure.storage import files
from perdure.sweeps.tuning import Protocol, Tried

NAME = "trials.jsonl"

Header = dict[str, dict[str, object]]


class TuningFile:
    """The file `trials.jsonl` of a search, which only one process writes at a time.

    Attributes
    ----------
    parallel
        The number of trials at a time with which the search began.
    tried
        The last outcome of each trial when the file was opened, by its number.
    """

    def __init__(self, path: Path, parallel: int, tried: dict[int, Tried], lines: int):
        self.path = path
        self.parallel = parallel
        self.tried = tried
        self._lines = lines

    def add(self, number: int, trial: Tried) -> None:
        """Record the outcome of a trial."""
        numbered = {} if number == self._lines else {"number": number}
        with files.refusing(self.path):
            files.append(self.path, json.dumps({**trial, **numbered}) + "\n")
        self._lines += 1


def opened(path: Path, recipe: dict[str, object], protocol: Protocol) -> TuningFile:
    """Open the file of an earlier search, or create it.

    Raises
    ------
    RunError
        The file contains trials of another recipe or protocol.
    """
    about = _header(recipe, protocol)
    if not path.exists():
        files.write(path, json.dumps(about) + "\n")
        return TuningFile(path, protocol.parallel, {}, 0)
    lines = []
    whole = []
    for line in files.read_lines(path):
        if line.endswith(b"\n"):  # the last line is incomplete if the process was killed
            lines.append(files.parse_json(line, f"`{path}`"))
            whole.append(line)
    # scores of other settings, data or protocols cannot be compared with new ones
    if not lines or _compared(lines[0]) != _compared(about):
        raise RunError(
            f"`{path.parent}` contains trials of another recipe or protocol. "
            "Choose another `--output`."
        )
    # rewritten without an incomplete line, which would make the file unreadable
    files.write(path, b"".join(whole))
    before, *trials = lines
    tried = {}
    for place, trial in enumerate(trials):
        tried[trial.pop("number", place)] = trial
    return TuningFile(path, before["protocol"].get("parallel", 1), tried, len(trials))


def _header(recipe: dict[str, object], protocol: Protocol) -> Header:
    """Return the first line; folders of older versions have no `parallel`."""
    rules = dict(vars(protocol))
    if protocol.parallel == 1:
        del rules["parallel"]
    return files.plain({"recipe": recipe, "protocol": rules})


def _compared(header: Header) -> Header:
    """Return a header without what may differ when a search continues."""
    rules = dict(header.get("protocol", {}))
    rules.pop("trials", None)  # a search can be extended
    rules.pop("parallel", None)  # it keeps the one with which it began
    return {**header, "protocol": rules}
