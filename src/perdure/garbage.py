"""The search for garbage in memory, which takes a third of the start and end of a process."""

import atexit
import gc


def search_less() -> None:
    """Search for garbage less often in this process.

    Importing torch and transformers creates a million objects, but next to no garbage. By
    default, Python searches the youngest objects after every 700, and all of them at the end.
    """
    gc.set_threshold(10_000)
    atexit.register(gc.freeze)
