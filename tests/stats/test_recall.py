"""Retrieval metrics against loops, on models of known quality, and whatever the size of a block."""

from __future__ import annotations

import math
from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import recall_reference as slow
from reference.recall_reference import matrix_blocks

from noisycorr.stats.recall import (
    feature_blocks,
    fold_metrics,
    mean_blocks,
    recall_at,
    retrieval_ranks,
)

retrieval_metrics = partial(fold_metrics, folds=1)


@st.composite
def problems(draw) -> tuple[np.ndarray, np.ndarray]:
    """A matrix with many ties and some NaN, and whose text is whose: some images have none, some many."""
    n, m = draw(st.integers(1, 8)), draw(st.integers(1, 14))
    rng = np.random.default_rng(draw(st.integers(0, 999)))
    levels = draw(st.sampled_from([1, 2, 4, 1000]))
    sims = rng.integers(0, levels, (n, m)) / 7.0
    if draw(st.booleans()):
        sims[rng.random((n, m)) < 0.1] = np.nan
    return sims, rng.integers(0, n, m)


@settings(max_examples=200, deadline=None)
@given(problems(), st.integers(1, 20))
def test_ranks_and_metrics_equal_the_loop_for_any_block_size(problem, chunk: int) -> None:
    sims, image_of = problem
    image_ranks, text_ranks = retrieval_ranks(matrix_blocks(sims), image_of, len(sims), chunk=chunk)
    clean = np.isnan(sims)
    for i in range(len(sims)):
        right = sims[i, image_of == i]
        if len(right) and np.isnan(right).any() and not np.isnan(right).all():
            continue  # the loop's max of NaN depends on order
        assert image_ranks[i] == slow.image_rank(sims.tolist(), image_of.tolist(), i)
    for t in range(len(image_of)):
        assert text_ranks[t] == slow.text_rank(sims.tolist(), image_of.tolist(), t)
    if not clean.any():
        expected = slow.metrics(sims.tolist(), image_of.tolist())
        got = retrieval_metrics(matrix_blocks(sims), image_of, len(sims), chunk=chunk)
        assert got == pytest.approx(expected) and list(got) == list(expected)


def test_a_perfect_model_has_600_and_a_constant_one_nothing() -> None:
    owners = np.repeat(np.arange(40), 5)
    assert retrieval_metrics(matrix_blocks(np.eye(40)), np.arange(40), 40)["rSum"] == 600
    perfect = (np.arange(40)[:, None] == owners[None, :]).astype(np.float32)
    assert retrieval_metrics(matrix_blocks(perfect), owners, 40)["rSum"] == 600
    for constant in (np.zeros((40, 200)), np.ones((40, 200)), np.full((40, 200), np.nan)):
        metrics = retrieval_metrics(matrix_blocks(constant), owners, 40)
        assert metrics["rSum"] == 0 and metrics["image_retrieval_median_rank"] == 40
        assert metrics["text_retrieval_median_rank"] == 1 + 195


def test_constant_features_have_nothing_whatever_the_block() -> None:
    image, text = np.full((37, 33), 0.1, np.float32), np.full((111, 33), 0.3, np.float32)
    for chunk in (1, 7, 64, 1000):
        metrics = retrieval_metrics(feature_blocks(image, text), np.repeat(np.arange(37), 3), 37, chunk=chunk)
        assert metrics["rSum"] == 0


def test_a_random_model_has_chance() -> None:
    """k / n for texts that ask; for images with five texts, what is left after five wrong draws."""
    n, rng = 200, np.random.default_rng(0)
    owners = np.repeat(np.arange(n), 5)
    totals: dict[str, float] = {}
    for _ in range(20):
        for name, value in retrieval_metrics(matrix_blocks(rng.random((n, 5 * n))), owners, n).items():
            totals[name] = totals.get(name, 0) + value / 20
    for k in (1, 5, 10):
        for name, chance, queries in (
            ("image_retrieval", k / n, 20 * 5 * n),
            ("text_retrieval", 1 - math.comb(5 * n - 5, k) / math.comb(5 * n, k), 20 * n),
        ):
            error = 400 * math.sqrt(chance / queries)  # four standard errors
            assert totals[f"{name}_recall@{k}"] == pytest.approx(100 * chance, abs=error)
    assert totals["image_retrieval_median_rank"] == pytest.approx(n / 2, rel=0.1)


def test_noise_on_1000_images_with_5_texts_sums_to_about_3() -> None:
    sims = np.random.default_rng(0).random((1000, 5000), np.float32)
    assert retrieval_metrics(matrix_blocks(sims), np.repeat(np.arange(1000), 5), 1000)["rSum"] == pytest.approx(
        3.2, abs=1
    )


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 20), max_size=30), st.integers(1, 20))
def test_recall_rises_with_k(ranks: list[int], k: int) -> None:
    found, more = recall_at(np.array(ranks, np.int64), k), recall_at(np.array(ranks, np.int64), k + 1)
    if any(ranks):
        assert 0 <= found <= more <= 100
        assert recall_at(np.array(ranks), 20) == 100
    else:
        assert math.isnan(found)


def test_any_of_several_texts_is_right_but_each_text_asks_for_itself() -> None:
    sims = np.array([[0.9, 0.1, 0.5], [0.8, 0.2, 0.6]])
    image_ranks, text_ranks = retrieval_ranks(matrix_blocks(sims), np.array([0, 0, 1]), 2)
    assert image_ranks.tolist() == [1, 2] and text_ranks.tolist() == [1, 2, 1]


def test_similarities_within_the_tolerance_are_tied() -> None:
    sims = np.array([[0.5, 0.5 - 1e-7], [0.0, 1.0]])
    owners = np.array([0, 1])
    assert retrieval_ranks(matrix_blocks(sims), owners, 2)[0].tolist() == [1, 1]
    assert retrieval_ranks(matrix_blocks(sims), owners, 2, tolerance=1e-6)[0].tolist() == [2, 1]


def test_folds_are_means_of_parts_and_not_the_pooled_value() -> None:
    rng = np.random.default_rng(1)
    sims, owners = rng.random((50, 100)), np.repeat(np.arange(50), 2)
    shuffle = rng.permutation(100)  # the texts need not stand in the order of their images
    got = fold_metrics(matrix_blocks(sims[:, shuffle]), owners[shuffle], 50, folds=5, chunk=7)
    parts = [
        retrieval_metrics(
            matrix_blocks(sims[10 * f : 10 * f + 10, 20 * f : 20 * f + 20]), np.repeat(np.arange(10), 2), 10
        )
        for f in range(5)
    ]
    assert got == pytest.approx({name: np.mean([part[name] for part in parts]) for name in got})
    pooled = retrieval_metrics(matrix_blocks(sims), owners, 50)
    assert got["rSum"] > pooled["rSum"]


def test_an_ensemble_ranks_by_the_mean_of_similarities() -> None:
    rng = np.random.default_rng(2)
    truth, noise = np.eye(30), rng.normal(0, 1, (2, 30, 30))
    members = [matrix_blocks(truth + e) for e in noise]
    got = retrieval_metrics(mean_blocks(members), np.arange(30), 30, chunk=11)
    assert got == retrieval_metrics(matrix_blocks(truth + noise.mean(0)), np.arange(30), 30)
    assert got["rSum"] > np.mean([retrieval_metrics(m, np.arange(30), 30)["rSum"] for m in members])
    assert mean_blocks(members)(np.arange(3), np.arange(3)) == pytest.approx((truth + noise.mean(0))[:3, :3])
    assert mean_blocks(members[:1])(np.arange(3), np.arange(3)) == pytest.approx((truth + noise[0])[:3, :3])
    with pytest.raises(ValueError, match="member"):
        mean_blocks([])


def test_features_give_cosines_and_blocks_stay_small() -> None:
    rng = np.random.default_rng(3)
    image, text = rng.normal(size=(45, 8)), rng.normal(size=(90, 8))
    owners, largest = np.repeat(np.arange(45), 2), [0]
    text = text + 3 * image[owners]

    def watched(rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
        largest[0] = max(largest[0], len(rows), len(columns))
        return feature_blocks(image, text)(rows, columns)

    whole = (image / np.linalg.norm(image, axis=1)[:, None]) @ (text / np.linalg.norm(text, axis=1)[:, None]).T
    assert retrieval_metrics(watched, owners, 45, chunk=16) == retrieval_metrics(matrix_blocks(whole), owners, 45)
    assert largest[0] == 16
    image[0] = 0  # a zero vector is like nothing
    assert feature_blocks(image, text)(np.arange(1), np.arange(3)).tolist() == [[0.0, 0.0, 0.0]]


def test_empty_and_bad_input() -> None:
    metrics = retrieval_metrics(matrix_blocks(np.zeros((3, 0))), np.zeros(0, np.int64), 3)
    assert math.isnan(metrics["rSum"]) and math.isnan(metrics["text_retrieval_median_rank"])
    for owners in ([0, 3], [-1, 0], [[0, 1]]):
        with pytest.raises(ValueError, match="image_of"):
            retrieval_ranks(matrix_blocks(np.zeros((3, 2))), np.array(owners), 3)
    with pytest.raises(ValueError, match="block"):
        retrieval_ranks(lambda rows, columns: np.zeros((1, 1)), np.array([0, 1]), 2)
    with pytest.raises(ValueError, match="chunk"):
        retrieval_ranks(matrix_blocks(np.zeros((2, 2))), np.array([0, 1]), 2, chunk=0)
    for folds in (0, 3):
        with pytest.raises(ValueError, match="folds"):
            fold_metrics(matrix_blocks(np.zeros((2, 2))), np.array([0, 1]), 2, folds=folds)
