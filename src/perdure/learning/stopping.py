"""Ctrl-C, SIGTERM and similar signals, handled as requests to stop.

Work that must not be interrupted is finished first; then the run stops and reports how to
resume it. Batch systems send SIGTERM or SIGUSR1 before they end a job; a terminal sends
SIGHUP when it is closed.
"""

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType

from perdure.errors import Stopped

IF_FATAL = ("SIGHUP", "SIGUSR1")
"""Signals that are caught only if they would otherwise end the process.

They are not caught if `nohup` has made the process ignore SIGHUP, so that it outlives its
terminal, or if the program has installed handlers for them.
"""


class Stopping:
    """A signal handler that records a request to stop the run.

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
        # Only a repetition of the same signal means impatience: after SIGINT from the
        # terminal, a launcher sends SIGTERM without being asked.
        again = self.asked == number
        self.asked = number
        if again or not self._waits:
            self.now()

    def now(self) -> None:
        """Stop the run by raising `Stopped`.

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
        """Postpone a stop until the block ends, unless the same signal arrives a second time."""
        self._waits = True
        try:
            yield
        finally:
            self._waits = False
        if self.asked:
            self.now()


@contextlib.contextmanager
def stopping(hint: str) -> Iterator[Stopping]:
    """Handle SIGINT, SIGTERM, SIGHUP and SIGUSR1 as requests to stop while the block runs.

    Only the main thread receives signals, so nothing is caught in any other thread.

    Parameters
    ----------
    hint
        Advice on how to resume, which is added to the error message.
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
    """Return the signals to handle as requests to stop; Windows lacks some of them."""
    numbers = [signal.SIGINT, signal.SIGTERM]
    for name in IF_FATAL:
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) is signal.SIG_DFL:
            numbers.append(number)
    return numbers
