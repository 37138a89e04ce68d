"""Vectors of length 1."""

from __future__ import annotations

import numpy as np
from numpy.typing import DTypeLike

LEAST = 1e-12


def unit(rows: np.ndarray, dtype: DTypeLike = np.float32) -> np.ndarray:
    """Rows along the last axis scaled to length 1; rows of zeros stay zeros.

    Args:
        rows: (..., d).
        dtype: In which that is computed, and of what comes out.
    """
    rows = np.asarray(rows, dtype)
    return np.asarray(rows / np.maximum(np.linalg.norm(rows, axis=-1, keepdims=True), LEAST))
