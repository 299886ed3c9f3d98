"""Ctrl-C and SIGTERM as a wish: what must not be broken off is finished, then the run stops and says how to go on."""

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType

from perdure.errors import Stopped


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
        again, self.asked = self.asked == number, number  # a launcher sends SIGTERM after the terminal's SIGINT
        if again or not self._waits:
            self.now()

    def now(self) -> None:
        """Stop.

        Raises
        ------
        Stopped
            Always.
        """
        raise Stopped(f"Stopped. What was learned is kept. {self.hint}", signal=self.asked or signal.SIGINT)

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
    """Catch SIGINT and SIGTERM while the block runs (in the main thread: no other gets signals).

    Parameters
    ----------
    hint
        How to go on, for the error.
    """
    stop = Stopping(hint)
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
