"""Conversion of the numbers in diagnostics.json to arrays, and back."""

import numpy as np
from jaxtyping import Float
from numpy import ndarray
from numpy.typing import ArrayLike


def array(values: ArrayLike) -> Float[ndarray, "..."]:
    """Convert nested lists of numbers to an array; None becomes nan."""
    return np.array(values, dtype=float)


def mean(values: Float[ndarray, " n"]) -> float | None:
    """Return the mean of the values that are finite, or None if there are none."""
    # NumPy's `nanmean` would warn where no value is defined.
    known = values[np.isfinite(values)]
    if not len(known):
        return None
    return float(known.mean())


def none(value: float) -> float | None:
    """Return the value, or None if it is infinite or undefined, as for JSON and tables."""
    return float(value) if np.isfinite(value) else None


def shares(confusion: ArrayLike) -> Float[ndarray, "true predicted"]:
    """Divide each row of a confusion matrix by its sum; a row without examples becomes nan."""
    counts = array(confusion)
    # A row without examples is 0 / 0, which is intended.
    with np.errstate(invalid="ignore", divide="ignore"):
        return counts / counts.sum(1, keepdims=True)
