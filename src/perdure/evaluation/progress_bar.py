"""Progress: a bar on a terminal; elsewhere, such as in a scheduler's log, an occasional line.

Both go to standard output, before the result; with `--quiet` or `--json` only the result is
printed.
"""

import time
from types import TracebackType

import rich.progress
from rich.console import Console
from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeElapsedColumn
from rich.table import Column

from perdure.errors import printable

SILENCE = 60.0
"""Seconds after which a line is printed outside a terminal even without a milestone."""
BAR = 20  # characters


class Progress:
    """Report the progress of a piece of work.

    Parameters
    ----------
    title
        The work, such as "Learning fruit".
    total
        The number of steps of the work; None if it is unknown.
    done
        The number of steps that an earlier process had done when it was stopped.
    quiet
        Print nothing, because the user asked for it or another process reports.
    bar
        Draw a bar on a terminal, inside a `with` block. Set it to False for work whose parts draw
        bars of their own: nothing is then printed on a terminal.

    Examples
    --------
    >>> with Progress("Measuring", 2, quiet=True) as progress:
    ...     progress.to(1, "accuracy 71.2 %", reached=True)
    """

    def __init__(
        self, title: str, total: int | None, *, quiet: bool, done: int = 0, bar: bool = True
    ):
        self.title = printable(title)
        self.total = total
        self.first = done  # the pace is measured from here
        console = Console()
        is_terminal = console.is_terminal and not console.is_dumb_terminal
        # A notebook draws bars, too, although it is no terminal.
        live = console.is_jupyter or is_terminal
        self._lines = not quiet and not live
        self._bar = _bar(console) if bar and live and not quiet else None
        self._began = time.monotonic()
        self._spoke = self._began

    def __enter__(self) -> "Progress":
        if self._bar:
            self._bar.start()
            self._task = self._bar.add_task(
                self.title,
                total=self.total,
                completed=self.first,
            )
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar:
            self._bar.stop()

    def to(self, done: int, message: str = "", *, reached: bool = False) -> None:
        """Report that `done` steps have been made.

        Parameters
        ----------
        message
            The state of the work, such as the loss.
        reached
            Mark a milestone (an epoch, a task): outside a terminal a line is printed.
        """
        # It may hold names from a stranger's folder.
        message = printable(message)
        if self._bar:
            text = f"{self.title}  {message}" if message else self.title
            self._bar.update(
                self._task,
                completed=done,
                description=text,
            )
        elif self._lines and (reached or self._silent()):
            self._spoke = time.monotonic()
            state = message or f"{done:,} done"
            words = [state, *self._left(done)]
            # Flushed at once: the reader of a log wants to know that the process is alive.
            print(f"{self.title}: {', '.join(words)}", flush=True)

    def _silent(self) -> bool:
        return time.monotonic() - self._spoke >= SILENCE

    def _left(self, done: int) -> list[str]:
        """Estimate the time left from the pace so far; empty if there is no pace yet."""
        # Steps of an earlier process took none of this one's time.
        steps = done - self.first
        if self.total is None or steps <= 0:
            return []
        seconds = time.monotonic() - self._began
        if done >= self.total:
            return [f"took {duration(seconds)}"]
        pace = seconds / steps
        return [f"about {duration(pace * (self.total - done))} left"]


def _bar(console: Console) -> rich.progress.Progress:
    # On a narrow terminal the text folds and the bar shrinks; by default, numbers are cut.
    folded = Column(overflow="fold")
    shrinking = Column(width=BAR)
    percent = Column(min_width=len("100%"), no_wrap=True)
    clock = Column(min_width=len("0:00:00"), no_wrap=True)
    return rich.progress.Progress(
        # Without markup: a title such as "[red]" is text.
        TextColumn("{task.description}", markup=False, table_column=folded),
        BarColumn(bar_width=None, table_column=shrinking),
        TaskProgressColumn(table_column=percent),
        TimeElapsedColumn(table_column=clock),
        console=console,
        transient=True,
    )


def duration(seconds: float) -> str:
    """Return a time in words.

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
