"""Ctrl-C, SIGTERM and the like, taken as a request to stop.

Work that must not be interrupted is finished first; then the run stops and reports how to resume
it. Batch systems send SIGTERM or SIGUSR1 before they end a job; a terminal that closes sends
SIGHUP.
"""

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType

from perdure.errors import Stopped

IF_FATAL = ("SIGHUP", "SIGUSR1")
"""Signals that are caught only if they would otherwise end the process.

`nohup` makes a process ignore SIGHUP, so that it outlives its terminal; and a program's own
handlers stay in place.
"""


class Stopping:
    """A request to stop the run, made by a signal.

    Attributes
    ----------
    asked
        The number of the last signal received; 0 before the first one.
    """

    def __init__(self, hint: str):
        self.asked = 0
        self.hint = hint
        self._waits = False

    def __call__(self, number: int, frame: FrameType | None) -> None:
        # Only the same signal again means impatience: after the terminal's SIGINT, a launcher
        # sends SIGTERM on its own.
        again = self.asked == number
        self.asked = number
        if again or not self._waits:
            self.now()

    def now(self) -> None:
        """Stop the run.

        Raises
        ------
        Stopped
            Always.
        """
        raise Stopped(
            f"Stopped. What was learned is kept. {self.hint}",
            signal=self.asked or signal.SIGINT,
        )

    @contextlib.contextmanager
    def later(self) -> Iterator[None]:
        """Put off a stop until the block ends, unless the same signal comes again."""
        self._waits = True
        try:
            yield
        finally:
            self._waits = False
        if self.asked:
            self.now()


@contextlib.contextmanager
def stopping(hint: str) -> Iterator[Stopping]:
    """Catch SIGINT, SIGTERM, SIGHUP and SIGUSR1 while the block runs.

    Only the main thread gets signals, so in any other thread nothing is caught.

    Parameters
    ----------
    hint
        Advice on how to resume, for the error message.
    """
    stop = Stopping(hint)
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {number: signal.signal(number, stop) for number in _caught()}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _caught() -> list[signal.Signals]:
    """Return the signals that ask the run to stop; Windows lacks some of them."""
    numbers = [signal.SIGINT, signal.SIGTERM]
    for name in IF_FATAL:
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) is signal.SIG_DFL:
            numbers.append(number)
    return numbers
