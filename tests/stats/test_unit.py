"""Rows of length 1."""

import numpy as np
import pytest

from noisycorr.stats.unit import unit


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_rows_have_length_one_and_zeros_stay(dtype: type):
    rows = np.random.default_rng(0).normal(size=(4, 5, 3)).astype(np.float16)
    rows[1, 2] = 0
    made = unit(rows, dtype)
    assert made.dtype == dtype and not made[1, 2].any()
    lengths = np.linalg.norm(made, axis=-1)
    lengths[1, 2] = 1
    np.testing.assert_allclose(lengths, 1, rtol=1e-6)


def test_what_came_in_is_as_it_was():
    rows = np.ones((2, 2), np.float32)
    unit(rows)
    assert (rows == 1).all()
