"""Neighbours: equal to a loop, measured recall, missing rows, threads."""

from __future__ import annotations

import tempfile

import faiss
import numpy as np
import pytest
from reference import index_reference as slow

from noisycorr.runtime.errors import UsageError
from noisycorr.stats import index, inverted
from noisycorr.stats.index import neighbors


def clustered(n: int, d: int = 32, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    rows = rng.standard_normal((60, d))[rng.integers(60, size=n)] * 1.5 + rng.standard_normal((n, d))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


@pytest.mark.parametrize("exclude_self", [True, False])
@pytest.mark.parametrize("block", [7, 32768])
def test_equals_a_loop(monkeypatch, exclude_self, block):
    monkeypatch.setattr(index, "BLOCK", block)
    data = clustered(90, 6)
    data[[3, 50]] = 0
    found = neighbors(data, 5, seed=0, exclude_self=exclude_self)
    assert found.method == "exact" and found.recall == 1.0
    for row, expected in enumerate(slow.neighbors(data.astype(float).tolist(), 5, exclude_self)):
        if not expected:
            assert found.ids[row].tolist() == [-1] * 5 and np.isnan(found.similarity[row]).all()
            continue
        assert found.ids[row].tolist() == [other for _, other in expected]
        assert found.similarity[row] == pytest.approx([value for value, _ in expected], abs=1e-5)


def test_parts_float16_and_length_do_not_matter():
    data = clustered(300).astype(np.float16)
    whole = neighbors(data, 4, seed=0)
    parts = neighbors([data[:100], data[100:101], data[101:] * 2], 4, seed=0)
    assert np.array_equal(whole.ids, parts.ids)
    assert np.allclose(whole.similarity, parts.similarity, atol=1e-5)


def test_recall_of_the_inverted_file_is_what_it_says(monkeypatch):
    monkeypatch.setattr(index, "BLOCK", 1024)
    data = clustered(6000).astype(np.float16)
    data[::50] = 0
    exact = neighbors(data, 10, seed=0)
    near = neighbors(data, 10, seed=0, exact_below=500, target_recall=0.95)
    assert "lists" in near.method and near.recall >= 0.95
    some = np.flatnonzero(exact.ids[:, 0] >= 0)
    recall = np.mean([len(set(exact.ids[row]) & set(near.ids[row])) / 10 for row in some])
    assert recall > 0.93 and abs(recall - near.recall) < 0.04
    same = exact.ids[:, 0] == near.ids[:, 0]
    assert np.allclose(exact.similarity[same, 0], near.similarity[same, 0], atol=3e-3, equal_nan=True)
    assert (near.ids[::50] == -1).all() and not np.isin(near.ids, np.arange(0, 6000, 50)).any()
    assert not (near.ids == np.arange(6000)[:, None]).any()
    strict = neighbors(data, 10, seed=0, exact_below=500, target_recall=1.0)
    assert strict.recall >= near.recall and strict.recall > 0.99


def test_probes_are_raised_until_the_target_is_met():
    data = np.random.default_rng(0).standard_normal((4000, 16)).astype(np.float32)  # without clusters: hard to index
    exact = neighbors(data, 10, seed=0)
    probes = []
    for target in (0.3, 0.95):
        near = neighbors(data, 10, seed=0, exact_below=500, target_recall=target)
        recall = np.mean([len(set(exact.ids[row]) & set(near.ids[row])) / 10 for row in range(4000)])
        assert near.recall >= target and abs(recall - near.recall) < 0.03
        probes.append(int(near.method.split(", ")[-1].split()[0]))
    assert probes[0] < probes[1]


def test_eight_bits_keep_similarities(monkeypatch):
    monkeypatch.setattr(inverted, "FULL_PRECISION_BYTES", 1000)
    data = clustered(3000)
    near = neighbors(data, 5, seed=0, exact_below=500)
    exact = neighbors(data, 5, seed=0)
    assert "8 bit" in near.method and near.recall >= 0.95
    same = exact.ids[:, 0] == near.ids[:, 0]
    assert same.mean() > 0.9 and np.abs(exact.similarity[same, 0] - near.similarity[same, 0]).max() < 0.02


@pytest.mark.parametrize("limit", [1000, 10**9])
def test_a_large_store_lies_in_a_file(monkeypatch, tmp_path, limit):
    data = clustered(3000)
    here = neighbors(data, 5, seed=0, exact_below=500)
    monkeypatch.setattr(inverted, "FULL_PRECISION_BYTES", limit)
    less = neighbors(data, 5, seed=0, exact_below=500)
    monkeypatch.setattr(inverted, "IN_MEMORY_BYTES", 1000)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    assert isinstance(inverted._room(3000, data.shape[1], np.int8), np.memmap)
    found = neighbors(data, 5, seed=0, exact_below=500)
    assert np.array_equal(found.ids, less.ids) and np.array_equal(found.similarity, less.similarity)
    assert (limit > 1000) == np.array_equal(found.ids, here.ids)
    assert not list(tmp_path.iterdir())


def test_same_seed_same_result_and_threads_are_restored():
    data = clustered(3000)
    before = faiss.omp_get_max_threads()
    one = neighbors(data, 5, seed=3, exact_below=500, threads=1)
    assert faiss.omp_get_max_threads() == before
    two = neighbors(data, 5, seed=3, exact_below=500, threads=1)
    assert np.array_equal(one.ids, two.ids) and np.array_equal(one.similarity, two.similarity)
    with pytest.raises(UsageError):
        neighbors(data, 0, seed=3, threads=1)
    assert faiss.omp_get_max_threads() == before


@pytest.mark.parametrize("exact_below", [20_000, 100])
def test_copies_find_each_other_and_not_themselves(exact_below):
    data = clustered(1000)
    data[:30] = data[0]
    found = neighbors(data, 5, seed=0, exact_below=exact_below)
    assert not (found.ids == np.arange(1000)[:, None]).any()
    assert (found.ids[:30] < 30).all() and np.allclose(found.similarity[:30], 1, atol=2e-3)


def test_missing_skipped_and_broken_rows():
    data = clustered(10)
    data[1] = 0
    data[2, 0] = np.nan
    found = neighbors(data, 20, seed=0, skip=np.arange(10) == 3)
    assert (found.ids[[1, 2, 3]] == -1).all() and not np.isin(found.ids, [1, 2, 3]).any()
    assert (found.ids[0] >= 0).sum() == 6 and np.isnan(found.similarity[0, 6:]).all()
    nothing = neighbors(np.zeros((4, 3), np.float32), 2, seed=0)
    assert (nothing.ids == -1).all()
    assert neighbors(np.zeros((0, 3), np.float32), 2, seed=0).ids.shape == (0, 2)


@pytest.mark.parametrize("exact_below", [20_000, 100])
def test_other_queries(exact_below):
    data = clustered(2000)
    queries = np.concatenate([data[5:8] * 3, np.zeros((1, 32), np.float32)])
    found = neighbors(data, 2, seed=0, queries=queries, exact_below=exact_below)
    assert found.ids[:, 0].tolist() == [5, 6, 7, -1] and found.ids.shape == (4, 2)
    assert np.allclose(found.similarity[:3, 0], 1, atol=2e-3)


def test_misuse_is_refused():
    with pytest.raises(UsageError, match="one width"):
        neighbors([np.zeros((2, 3)), np.zeros((2, 4))], 1, seed=0)
    with pytest.raises(UsageError, match="one width"):
        neighbors(np.zeros((2, 3)), 1, seed=0, queries=np.zeros((1, 2)))
    with pytest.raises(UsageError, match="one width"):
        neighbors(np.zeros(3), 1, seed=0)
    with pytest.raises(UsageError, match="skip"):
        neighbors(np.zeros((2, 3)), 1, seed=0, skip=np.zeros(3, bool))
