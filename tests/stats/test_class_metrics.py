"""Metrics of classifiers by hand, and noise in labels."""

from __future__ import annotations

import numpy as np
import pytest

from noisycorr.data.noise.labels import diffuse_noise, noisy_texts, semantic_noise
from noisycorr.stats.class_metrics import (
    accuracy,
    by_shots,
    changed_labels,
    open_set,
    per_class,
    tag_metrics,
    top_k,
)


def test_accuracy_and_ties():
    score = np.array([[0.7, 0.2, 0.1], [0.4, 0.4, 0.2], [0.1, 0.2, 0.7], [0.5, 0.3, 0.2]])
    label = np.array([0, 0, 2, 1])
    assert top_k(score, label, 1).tolist() == [True, False, True, False], "a tie counts against the label"
    got = accuracy(score, label)
    assert got["top1"] == 0.5 and got["top5"] == 1.0
    assert got["macro"] == pytest.approx((0.5 + 0 + 1) / 3)
    assert np.isnan(accuracy(score[:0], label[:0])["top1"])


def test_per_class_and_shots():
    score = np.eye(3)[[0, 0, 1, 1]]
    rows = per_class(score, np.array([0, 1, 1, 1]), np.array([200, 50, 5]), ["a", "b", "c"])
    assert rows[0] == {"class": "a", "trained": 200, "tested": 1, "recall": 1.0, "precision": 0.5}
    assert rows[1]["recall"] == pytest.approx(2 / 3) and rows[2]["recall"] is None and rows[2]["precision"] is None
    groups = by_shots(rows)
    assert groups == {"many": {"classes": 1, "recall": 1.0}, "medium": {"classes": 1, "recall": pytest.approx(2 / 3)}}


def test_open_set_by_hand():
    # Six images, two known classes: right and sure, right and unsure, wrong and sure; unknown sure, unsure, unsure.
    confidence = np.array([0.9, 0.3, 0.8, 0.9, 0.2, 0.1])
    guess, label = np.array([0, 0, 0, 1, 0, 1]), np.array([0, 0, 1, 2, 2, 7])
    got = open_set(confidence, guess, label, 2, np.array([0.5]))
    e = 1e-4
    hits, false, missed = np.array([1, 0, 2]), np.array([1, 1, 1]) + e, np.array([1, 1, 1]) + e
    p, r = (hits / (hits + false)).mean(), (hits / (hits + missed)).mean()
    np.testing.assert_allclose(got.curve, [[p, r]])
    assert got.cf1 == pytest.approx(2 * p * r / (p + r))
    all_known = open_set(confidence, guess, label, 2, np.array([0.0]))
    hits, false, missed = np.array([2, 0, 0]), np.array([2, 2, 0]) + e, np.array([0, 1, 3]) + e
    np.testing.assert_allclose(all_known.curve, [[(hits / (hits + false)).mean(), (hits / (hits + missed)).mean()]])


def test_average_precision_of_tags_steps_over_ties_and_leaves_out_what_never_occurs():
    score, tag = np.array([[0.9, 0.5], [0.5, 0.1], [0.5, 0.2], [0.1, 0.3]]), np.zeros((4, 2), bool)
    assert np.isnan(tag_metrics(score, tag)["map"]) and np.isnan(tag_metrics(score, tag)["map_micro"])
    tag[[0, 1], 0] = True  # a right one alone at the top, then a right and a wrong one with equal scores
    assert tag_metrics(score, tag)["map"] == pytest.approx(0.5 * 1 + 0.5 * 2 / 3)


def test_tag_metrics_by_hand():
    score = np.array([[0.9, 0.8, 0.1, 0.2], [0.1, 0.9, 0.8, 0.3]])
    tag = np.array([[1, 0, 0, 1], [0, 1, 1, 0]], bool)
    got = tag_metrics(score, tag, k=2)  # predicted: 0 1 | 1 2; hits 0 | 1 2
    assert got["of1"] == pytest.approx(2 * 0.75 * 0.75 / 1.5)
    class_p, class_r = np.array([1, 0.5, 1, 0]).mean(), np.array([1, 1, 1, 0]).mean()
    assert got["cf1"] == pytest.approx(2 * class_p * class_r / (class_p + class_r))
    sample_p, sample_r = np.array([0.5, 1]).mean(), np.array([0.5, 1]).mean()
    assert got["of1_rel"] == pytest.approx(2 * sample_p * sample_r / (sample_p + sample_r))
    assert got["cf1_rel"] == pytest.approx(got["cf1"], abs=1e-3)
    assert got["map"] == pytest.approx((1 + 1 + 1 + 0.5) / 4)
    assert got["map_micro"] == pytest.approx(2 / 4 * 1 + 1 / 4 * 3 / 4 + 1 / 4 * 4 / 6)


def test_changed_labels():
    given, now, truth = np.array([0, 0, 1, 1, 2]), np.array([0, 1, -1, 2, 2]), np.array([0, 1, -1, 0, 1])
    got = changed_labels(given, now, truth)
    assert got == {"changed": 0.4, "precision": 0.5, "recall": pytest.approx(1 / 3)}
    assert np.isnan(changed_labels(given, given, given)["precision"])


def test_diffuse_noise_stays_in_groups():
    truth = np.arange(2000) % 8
    truth[:200] = -1
    group = np.arange(8) // 4
    got = diffuse_noise(truth, 8, group[:, None] == group, ratio=0.25, inside=0.7, seed=3)
    known = truth >= 0
    wrong = known & (got.label != truth)
    assert wrong.sum() == round(0.25 * known.sum())
    near = group[got.label[wrong]] == group[truth[wrong]]
    assert 0.7 < near.mean() < 0.92, "70 % by choice, and three sevenths of the rest by chance"
    assert len(np.unique(got.label[~known])) == 8
    again = diffuse_noise(truth, 8, group[:, None] == group, ratio=0.25, inside=0.7, seed=3)
    assert np.array_equal(got.label, again.label)


def test_semantic_noise_has_its_shares():
    truth = np.arange(2000) % 10
    got = semantic_noise(truth, 10, pairs=2, share=0.6, flips=0.0, seed=1)
    assert len(got.mixed) == 4
    moved = got.label != truth
    sources = np.unique(truth[moved])
    assert len(sources) == 2 and set(sources) <= set(got.mixed)
    for b in sources:
        assert moved[truth == b].mean() == pytest.approx(0.6) and len(np.unique(got.label[moved & (truth == b)])) == 1
    flipped = semantic_noise(truth, 10, pairs=0, flips=0.1, seed=1)
    assert (flipped.label != truth).mean() == pytest.approx(0.1) and flipped.mixed == ()


def test_semantic_noise_pairs_only_partners():
    truth = np.repeat(np.arange(6), 10)
    partners = np.array([[1, 2], [0, 2], [1, 0], [-1, -1], [-1, -1], [3, -1]])
    got = semantic_noise(truth, 6, pairs=8, share=0.6, flips=0.0, partners=partners, seed=2)
    moved = {(int(a), int(b)) for a, b in zip(got.label, truth) if a != b}
    assert len(moved) == 2 and (5, 3) in moved and all(b in partners[a] for a, b in moved)
    assert len(got.mixed) == 4 and 4 not in got.mixed
    assert all((got.label[truth == b] == a).sum() == 6 for a, b in moved)


def test_noisy_texts():
    source, has = noisy_texts(1000, blank=0.3, other=0.15, seed=0)
    assert has.sum() == 700 and (source != np.arange(1000)).sum() == 150
    assert has[source != np.arange(1000)].all() and np.array_equal(np.sort(source), np.arange(1000))
