"""Random seeds that depend only on their purpose, not on earlier draws.

A resumed run therefore draws the same numbers as one that was never stopped, and learning
or evaluating a task twice does not change the numbers drawn for the next task.
"""

import hashlib
import random

import numpy as np
import torch


def derived(seed: int, *purpose: str | int) -> int:
    """Derive a seed from a base seed and a purpose.

    The result is always the same for the same purpose, and differs between purposes.

    Examples
    --------
    >>> derived(0, "reviews", "step", 1), derived(0, "reviews", "step", 2)
    (107241463, 2679054719)
    """
    # not Python's `hash`, which differs from process to process
    text = repr((seed, *purpose))
    digest = hashlib.sha256(text.encode()).digest()
    # four bytes: NumPy does not accept larger seeds
    return int.from_bytes(digest[:4], "big")


def plant(seed: int) -> None:
    """Seed the random number generators of Python, NumPy and torch, on all devices."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
