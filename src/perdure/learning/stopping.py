"""Ctrl-C, SIGTERM and the like as a wish: what must not be broken off is finished, then the run stops and says how to
go on.

Batch systems send SIGTERM or SIGUSR1 before they end a job; a terminal that closes sends SIGHUP.
"""

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType

from perdure.errors import Stopped

IF_FATAL = ("SIGHUP", "SIGUSR1")
"""These only where they would end the process. `nohup` has SIGHUP ignored, so that the process outlives its terminal;
and a program that has a handler of its own for one of them keeps it."""


class Stopping:
    """Whether the run is to stop.

    Attributes
    ----------
    asked
        The number of the signal that came; 0 as long as none did.
    """

    def __init__(self, hint: str):
        self.asked, self.hint = 0, hint
        self._waits = False

    def __call__(self, number: int, frame: FrameType | None) -> None:
        again, self.asked = (
            self.asked == number,
            number,
        )  # a launcher sends SIGTERM after the terminal's SIGINT
        if again or not self._waits:
            self.now()

    def now(self) -> None:
        """Stop.

        Raises
        ------
        Stopped
            Always.
        """
        raise Stopped(
            f"Stopped. What was learned is kept. {self.hint}", signal=self.asked or signal.SIGINT
        )

    @contextlib.contextmanager
    def later(self) -> Iterator[None]:
        """Only note a first signal while the block runs, and stop after it; a second of the same kind stops at once."""
        self._waits = True
        try:
            yield
        finally:
            self._waits = False
        if self.asked:
            self.now()


@contextlib.contextmanager
def stopping(hint: str) -> Iterator[Stopping]:
    """Catch SIGINT, SIGTERM, SIGHUP and SIGUSR1 while the block runs (in the main thread: no other gets signals).

    Parameters
    ----------
    hint
        How to go on, for the error.
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
