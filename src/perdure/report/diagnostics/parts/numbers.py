"""The numbers of diagnostics.json as arrays: None is nan."""

from typing import Any

import numpy as np
from jaxtyping import Float
from numpy import ndarray


def array(values: Any) -> Float[ndarray, "..."]:
    """Lists of numbers; None is nan."""
    return np.array(values, dtype=float)


def mean(values: Float[ndarray, " n"]) -> float | None:
    """The mean of those that are defined."""
    known = values[np.isfinite(values)]
    return float(known.mean()) if len(known) else None


def none(value: float) -> float | None:
    """None for nan."""
    return float(value) if np.isfinite(value) else None


def shares(confusion: Any) -> Float[ndarray, "true found"]:
    """Each row of a confusion matrix, divided by its sum; nan where a row is empty."""
    counts = array(confusion)
    with np.errstate(invalid="ignore", divide="ignore"):
        return counts / counts.sum(1, keepdims=True)
