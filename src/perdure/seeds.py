"""Random numbers that depend on what they are for, and on nothing that came before."""

import hashlib
import random

import numpy as np
import torch


def derived(seed: int, *purpose: str | int) -> int:
    """A seed for one purpose: another for each, and always the same.

    Examples
    --------
    >>> derived(0, "reviews", "step", 1), derived(0, "reviews", "step", 2)
    (107241463, 2679054719)
    """
    return int.from_bytes(hashlib.sha256(repr((seed, *purpose)).encode()).digest()[:4], "big")


def plant(seed: int) -> None:
    """Put all random generators (of Python, NumPy, torch and its devices) at the beginning of a seed."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
