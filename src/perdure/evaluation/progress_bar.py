"""Progress reports: a bar on a terminal, or an occasional line elsewhere, such as in a job's log.

Both are printed to standard output before the result. With `--quiet` or `--json`, only
the result is printed.
"""

import time
from types import TracebackType

import rich.progress
from rich.console import Console
from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeElapsedColumn
from rich.table import Column

from perdure.errors import printable

SILENCE = 60.0
"""The number of seconds without output after which a line is printed even without a milestone."""
BAR = 20  # characters


class Progress:
    """Report the progress of a piece of work.

    Parameters
    ----------
    title
        A name for the work, such as "Learning fruit".
    total
        The total number of steps; None if it is unknown.
    done
        The number of steps that an earlier process had completed when it was stopped.
    quiet
        Print nothing, because the user asked for this or because another process reports.
    bar
        Draw a bar on a terminal, inside a `with` block. Set this to False if parts of the
        work draw their own bars; nothing is then printed on a terminal.

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
        self.first = done  # the pace is measured from this step
        console = Console()
        is_terminal = console.is_terminal and not console.is_dumb_terminal
        # A notebook draws bars too, although it is not a terminal.
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
        """Report that `done` steps are complete.

        Parameters
        ----------
        message
            The current state of the work, such as the loss.
        reached
            True at a milestone (an epoch, a task): outside a terminal, a line is then printed.
        """
        # The message may contain names from someone else's run folder.
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
            # Flushed immediately, because the log should show that the process is alive.
            print(f"{self.title}: {', '.join(words)}", flush=True)

    def _silent(self) -> bool:
        return time.monotonic() - self._spoke >= SILENCE

    def _left(self, done: int) -> list[str]:
        """Estimate the time left from the pace so far; return an empty list if it is unknown."""
        # Steps of an earlier process took no time in this process.
        steps = done - self.first
        if self.total is None or steps <= 0:
            return []
        seconds = time.monotonic() - self._began
        if done >= self.total:
            return [f"took {duration(seconds)}"]
        pace = seconds / steps
        return [f"about {duration(pace * (self.total - done))} left"]


def _bar(console: Console) -> rich.progress.Progress:
    # On a narrow terminal, wrap the text and shrink the bar; by default, rich cuts off numbers.
    folded = Column(overflow="fold")
    shrinking = Column(width=BAR)
    percent = Column(min_width=len("100%"), no_wrap=True)
    clock = Column(min_width=len("0:00:00"), no_wrap=True)
    return rich.progress.Progress(
        # Without markup, a title such as "[red]" is shown as it is.
        TextColumn("{task.description}", markup=False, table_column=folded),
        BarColumn(bar_width=None, table_column=shrinking),
        TaskProgressColumn(table_column=percent),
        TimeElapsedColumn(table_column=clock),
        console=console,
        transient=True,
    )


def duration(seconds: float) -> str:
    """Format a duration, with at most two units.

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
