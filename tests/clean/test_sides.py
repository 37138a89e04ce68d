"""One search for near-duplicates and neighbourhoods gives each what a search of its own gives."""

from __future__ import annotations

import functools

import numpy as np
import pytest

from noisycorr.clean.signals import sides
from noisycorr.clean.signals.sides import first_neighbors, search_side, whole_neighbors
from noisycorr.stats.index import Neighbors, neighbors


def rows(n: int, copies: int) -> tuple[np.ndarray, np.ndarray]:
    """Features in clusters, the last `copies` rows being copies of others; codes of what is equal; a row is missing."""
    rng = np.random.default_rng(0)
    data = rng.standard_normal((20, 16))[rng.integers(20, size=n)] + rng.standard_normal((n, 16))
    source = np.arange(n)
    source[n - copies :] = rng.integers(5, size=copies)
    data, codes = data[source].astype(np.float16), source.astype(np.int64)
    data[7] = 0
    codes[7] = -1
    return data, codes


def same(one: Neighbors, other: Neighbors) -> bool:
    return np.array_equal(one.ids, other.ids) and np.array_equal(one.similarity, other.similarity, equal_nan=True)


@pytest.mark.parametrize("copies", [0, 60])
def test_small_sets_get_the_same_bits(copies: int):
    data, codes = rows(400, copies)
    parts = [data[:150], data[150:]]
    side = search_side(parts, codes, 20, seed=0)
    skip = side.original != np.arange(400)
    assert skip.sum() == (copies - len(set(codes[400 - copies :]) - set(codes[: 400 - copies])) if copies else 0)
    assert same(first_neighbors(side.distinct, 10), neighbors(parts, 10, seed=0, skip=skip))
    assert same(whole_neighbors(side, parts, 20, seed=0), neighbors(parts, 20, seed=0))


def test_copies_in_a_large_set_stand_where_their_original_stands(monkeypatch: pytest.MonkeyPatch):
    data, codes = rows(1500, 300)
    monkeypatch.setattr(sides, "neighbors", functools.partial(neighbors, exact_below=100))
    monkeypatch.setattr(sides, "BLOCK", 64)
    side = search_side([data], codes, 12, seed=0, target_recall=1.0)
    assert "lists" in side.distinct.method
    found, exact = whole_neighbors(side, [data], 12, seed=0), neighbors(data, 12, seed=0)
    close = np.isclose(found.similarity, exact.similarity, atol=2e-3, equal_nan=True).mean()
    assert close > 0.99, "the same up to ties and what the lists miss"
    assert not (found.ids == np.arange(1500)[:, None]).any()
    some = np.flatnonzero(found.ids[:, -1] >= 0)
    assert len(some) == 1499 and all(len(set(found.ids[row])) == 12 for row in some)
    heap = np.flatnonzero(codes == codes[-1])
    assert len(heap) > 40 and np.isin(found.ids[heap], heap).all()
    assert len(set(found.ids[heap].ravel())) > 30, "of many copies each row is given others"
