"""Seeds for random numbers that depend on their purpose, and on nothing that came before.

So a run that was stopped and goes on draws the same numbers as one that was not, and a
task that is learned again, or measured twice, does not shift the numbers of the next.
"""

import hashlib
import random

import numpy as np
import torch


def derived(seed: int, *purpose: str | int) -> int:
    """Return the seed for one purpose: another for each purpose, and always the same.

    Examples
    --------
    >>> derived(0, "reviews", "step", 1), derived(0, "reviews", "step", 2)
    (107241463, 2679054719)
    """
    # not Python's `hash`, which differs from process to process
    text = repr((seed, *purpose))
    digest = hashlib.sha256(text.encode()).digest()
    # four bytes: NumPy takes no larger seeds
    return int.from_bytes(digest[:4], "big")


def plant(seed: int) -> None:
    """Seed all generators of random numbers: those of Python, NumPy, torch and its devices."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
