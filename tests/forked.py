"""Processes of their own that begin with everything imported: forks of one that does nothing else.

To import what perdure stands on takes seconds, each time. For what is to be shown with one process
more, and not with its imports, a fork of a process that has them is as good: its signals,
exit status, files, limits and kills are real.
"""

import contextlib
import gc
import multiprocessing
import operator
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import everything

PERDURE = "from perdure.cli.app import main; main()"
"""The command line."""
_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(
    everything.NAMES
)  # a name that it cannot import it skips without a word


def do_not_wait_for_the_disk() -> None:
    """A kill loses nothing that was written, and that the power fails is not tested:
    a third of the time is saved.

    What is put in the place of `fsync` is a C function too, since kills come at these.
    """
    if not os.environ.get("PERDURE_SOAK"):
        os.fsync = operator.index


def pass_over_imported_objects() -> None:
    """Search for garbage less often, and not among what is imported: a tenth of the time is saved,
    because that is a million objects.
    """
    gc.set_threshold(10_000)
    gc.freeze()


def _begin(
    code: str, arguments: list[str], environment: dict[str, str], cwd: str, outputs: list[str]
) -> None:
    for number, place in enumerate(outputs, 1):
        file = os.open(place, os.O_WRONLY)
        os.dup2(file, number)
        os.close(file)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = ["-c", *arguments]
    sys.path[:0] = [path for path in environment.get("PYTHONPATH", "").split(os.pathsep) if path]
    do_not_wait_for_the_disk()
    pass_over_imported_objects()
    import torch

    torch.set_num_threads(1)
    exec(compile(code, "<string>", "exec"), {"__name__": "__main__"})


class Process:
    """As `subprocess.Popen` of `python -c CODE ARGUMENTS…`;
    the environment is this one's and what is given.
    """

    def __init__(self, code: str, *arguments: object, cwd: Path | None = None, **environment: str):
        self._outputs = []
        for _ in ("out", "err"):
            number, place = tempfile.mkstemp()
            os.close(number)
            self._outputs.append(place)
        given = [
            code,
            [str(one) for one in arguments],
            {**os.environ, **environment},
            str(cwd or Path.cwd()),
        ]
        self._process = _context.Process(target=_begin, args=(*given, self._outputs), daemon=True)
        self._process.start()

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        return self._process.exitcode

    def send_signal(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, number)

    def communicate(self, timeout: float) -> tuple[str, str]:
        """What it has printed, when it has ended."""
        self._process.join(timeout)
        if self._process.exitcode is None:
            self.send_signal(signal.SIGKILL)
            self._process.join()
            raise subprocess.TimeoutExpired("python", timeout, *self._read())
        return self._read()

    def _read(self) -> tuple[str, str]:
        found = [Path(place).read_text() for place in self._outputs]
        for place in self._outputs:
            os.unlink(place)
        return found[0], found[1]


def python(
    code: str, *arguments: object, cwd: Path | None = None, timeout: float = 300, **environment: str
) -> subprocess.CompletedProcess[str]:
    """As `subprocess.run` of it."""
    process = Process(code, *arguments, cwd=cwd, **environment)
    out, err = process.communicate(timeout)
    return subprocess.CompletedProcess(
        [code, *map(str, arguments)], process.returncode or 0, out, err
    )
