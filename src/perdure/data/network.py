"""Forbid downloads for a while, as a dry run does."""

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar

_closed: ContextVar[bool] = ContextVar("closed", default=False)


def is_closed() -> bool:
    """Return True if downloads are forbidden."""
    return _closed.get()


@contextlib.contextmanager
def closed() -> Iterator[None]:
    """Forbid downloads while the block runs. Files in a cache can still be read.

    A missing file then raises `NotHere`.
    """
    # Imported here because they take a second to import, and few commands need them.
    import datasets.config
    import huggingface_hub.constants

    before = huggingface_hub.constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE
    token = _closed.set(True)
    # Both libraries read the environment variable only once, when they are imported.
    huggingface_hub.constants.HF_HUB_OFFLINE = True
    datasets.config.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        huggingface_hub.constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE = before
        _closed.reset(token)
