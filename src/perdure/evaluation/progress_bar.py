"""Signs of life: a bar on a terminal; elsewhere, as in a scheduler's log, a line now and then with the time left.

Both are written to standard output, before the result; `--quiet` and `--json` leave the result alone there.
"""

import time
from types import TracebackType

import rich.progress
from rich.console import Console
from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeElapsedColumn
from rich.table import Column

from perdure.errors import printable

SILENCE = 60.0
"""Seconds after which a line is printed outside a terminal although nothing has been reached."""
BAR = 20  # characters


class Progress:
    """How far a piece of work has come, told to whoever waits for it.

    Parameters
    ----------
    title
        The work, such as "Learning fruit".
    total
        The number of steps in which the work is counted; None where it is not known.
    done
        The number of steps that were done before, by a process that was stopped.
    quiet
        Say nothing: as asked, or because another process says it.
    bar
        Draw a bar on a terminal, inside a `with` block. Without one nothing is said there: for work whose
        parts draw bars of their own.

    Examples
    --------
    >>> with Progress("Measuring", 2, quiet=True) as progress:
    ...     progress.to(1, "accuracy 71.2 %", reached=True)
    """

    def __init__(
        self, title: str, total: int | None, *, quiet: bool, done: int = 0, bar: bool = True
    ):
        self.title, self.total, self.first = printable(title), total, done
        console = Console()
        live = console.is_jupyter or (console.is_terminal and not console.is_dumb_terminal)
        self._lines = not quiet and not live
        self._bar = _bar(console) if bar and live and not quiet else None
        self._began = self._spoke = time.monotonic()

    def __enter__(self) -> "Progress":
        if self._bar:
            self._bar.start()
            self._task = self._bar.add_task(self.title, total=self.total, completed=self.first)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar:
            self._bar.stop()

    def to(self, done: int, said: str = "", *, reached: bool = False) -> None:
        """Tell that `done` steps are behind us.

        Parameters
        ----------
        said
            What can be said now, such as the loss.
        reached
            It is a milestone (an epoch, a task): outside a terminal a line is printed.
        """
        said = printable(said)
        if self._bar:
            text = f"{self.title}  {said}" if said else self.title
            self._bar.update(self._task, completed=done, description=text)
        elif self._lines and (reached or time.monotonic() - self._spoke >= SILENCE):
            self._spoke = time.monotonic()
            parts = [said or f"{done:,} done", *self._left(done)]
            # each line at once: who reads a log wants to know that the process lives
            print(f"{self.title}: {', '.join(parts)}", flush=True)

    def _left(self, done: int) -> list[str]:
        """The time that is left if the rest takes as long as what was done; nothing where nobody can know."""
        here = done - self.first
        if self.total is None or here <= 0:
            return []
        if done >= self.total:
            return [f"took {duration(time.monotonic() - self._began)}"]
        seconds = (time.monotonic() - self._began) / here * (self.total - done)
        return [f"about {duration(seconds)} left"]


def _bar(console: Console) -> rich.progress.Progress:
    # Where there is little room the text is folded and the bar gets shorter; by default numbers would be cut.
    columns = (
        TextColumn("{task.description}", markup=False, table_column=Column(overflow="fold")),
        BarColumn(bar_width=None, table_column=Column(width=BAR)),
        TaskProgressColumn(table_column=Column(min_width=len("100%"), no_wrap=True)),
        TimeElapsedColumn(table_column=Column(min_width=len("0:00:00"), no_wrap=True)),
    )
    return rich.progress.Progress(*columns, console=console, transient=True)


def duration(seconds: float) -> str:
    """A time as a person says it.

    Examples
    --------
    >>> duration(0.4), duration(75), duration(7260), duration(200000)
    ('0 s', '1 min 15 s', '2 h 1 min', '2 d 7 h')
    """
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    if whole < 86400:
        return f"{whole // 3600} h {whole % 3600 // 60} min"
    return f"{whole // 86400} d {whole % 86400 // 3600} h"
