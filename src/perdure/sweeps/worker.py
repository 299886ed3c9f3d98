"""A process that performs one trial after another, for the executor `local`.

It reads jobs from standard input and writes outcomes to standard output, each as a line of
JSON. When standard input is closed, because the sweep ends or was killed, the run that is
being trained saves its progress, and the process ends.
"""

import json
import os
import queue
import signal
import sys
import threading

from perdure import garbage

ASK = signal.SIGUSR1
"""The signal by which the process asks itself to stop.

It differs from those that a terminal or a scheduler sends to all processes of a sweep: the
same signal a second time would mean impatience.
"""


def main() -> None:
    """Perform the jobs on standard input."""
    garbage.search_less()
    results = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    # whatever a library prints must not mix with the outcomes
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    jobs: queue.SimpleQueue[str | None] = queue.SimpleQueue()
    busy = threading.Event()
    threading.Thread(target=_read, args=(jobs, busy), daemon=True).start()
    try:
        # imported before the first job arrives, which takes seconds
        from perdure.sweeps.trial import perform

        while line := jobs.get():
            busy.set()
            outcome = perform(json.loads(line))
            busy.clear()
            print(json.dumps(outcome), file=results, flush=True)
    except (KeyboardInterrupt, BrokenPipeError):  # Ctrl-C, or the sweep was killed
        pass


def _read(jobs: "queue.SimpleQueue[str | None]", busy: threading.Event) -> None:
    for line in sys.stdin:
        jobs.put(line)
    jobs.put(None)
    if busy.is_set():
        os.kill(os.getpid(), ASK)


if __name__ == "__main__":
    main()
