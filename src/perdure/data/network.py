"""Whether anything may be downloaded now: a run that is only counted downloads nothing."""

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar

_closed: ContextVar[bool] = ContextVar("closed", default=False)


def is_closed() -> bool:
    """Return whether nothing may be downloaded."""
    return _closed.get()


@contextlib.contextmanager
def closed() -> Iterator[None]:
    """Let nothing be downloaded while the block runs; what is in a cache is still read.

    What is needed and missing raises `NotHere`.
    """
    # Imported here: they take a second, and most commands close nothing.
    import datasets.config
    import huggingface_hub.constants

    before = huggingface_hub.constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE
    token = _closed.set(True)
    # Both libraries read the environment only once, when they are imported.
    huggingface_hub.constants.HF_HUB_OFFLINE = True
    datasets.config.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        huggingface_hub.constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE = before
        _closed.reset(token)
