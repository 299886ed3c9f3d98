"""Seeds for random numbers that depend only on their purpose, not on earlier draws.

So a resumed run draws the same numbers as one that was never stopped, and relearning a task, or
measuring it twice, does not shift the numbers of the next.
"""

import hashlib
import random

import numpy as np
import torch


def derived(seed: int, *purpose: str | int) -> int:
    """Return the seed for a purpose: always the same, and different for each purpose.

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
