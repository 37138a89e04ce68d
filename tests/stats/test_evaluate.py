"""Detection metrics against slow loops and scikit-learn, with ties, NaN and degenerate truths."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import evaluate_reference as slow
from sklearn.metrics import average_precision_score, roc_auc_score, roc_curve

from noisycorr.stats import detection as evaluate

# Coarse values, so that ties and bin edges are common; both kinds always present.
ROWS = st.lists(st.tuples(st.integers(0, 15), st.booleans()), min_size=1, max_size=40).map(
    lambda rows: [*rows, (3, True), (9, False)]
)


@settings(max_examples=150, deadline=None)
@given(ROWS, st.sampled_from([1, 5, 15]))
def test_metrics_equal_loops_and_sklearn(rows, bins):
    score = np.array([value / 15 for value, _ in rows])
    wrong = np.array([bad for _, bad in rows])
    lists = score.tolist(), wrong.tolist()
    assert evaluate.auroc(score, wrong) == pytest.approx(slow.auroc(*lists), abs=1e-12)
    assert evaluate.auroc(score, wrong) == pytest.approx(roc_auc_score(wrong, -score), abs=1e-12)
    assert evaluate.average_precision(score, wrong) == pytest.approx(slow.average_precision(*lists), abs=1e-12)
    assert evaluate.average_precision(score, wrong) == pytest.approx(average_precision_score(wrong, -score), abs=1e-12)
    for tpr in (0.5, 0.95, 1.0):
        assert evaluate.fpr_at_tpr(score, wrong, tpr=tpr) == pytest.approx(slow.fpr_at_tpr(*lists, tpr), abs=1e-12)
    fpr, tpr_curve, _ = roc_curve(wrong, -score, drop_intermediate=False)
    assert evaluate.fpr_at_tpr(score, wrong) == pytest.approx(fpr[tpr_curve >= 0.95 - 1e-12].min(), abs=1e-12)
    result = evaluate.calibration(score, wrong, bins=bins)
    expected, largest = slow.gaps(*lists, bins)
    assert result.ece == pytest.approx(expected, abs=1e-12) and result.mce == pytest.approx(largest, abs=1e-12)
    assert result.ace == pytest.approx(slow.adaptive_gap(*lists, bins), abs=1e-12)
    assert sum(row.count for row in result.table) == len(score) and len(result.table) == bins


@settings(max_examples=50, deadline=None)
@given(ROWS, st.randoms(use_true_random=False))
def test_order_of_rows_and_monotone_maps_do_not_matter(rows, random):
    score, wrong = np.array([value for value, _ in rows], float), np.array([bad for _, bad in rows])
    order = list(range(len(rows)))
    random.shuffle(order)
    for metric in (evaluate.auroc, evaluate.average_precision, evaluate.fpr_at_tpr):
        assert metric(score, wrong) == pytest.approx(metric(np.exp(score[order]), wrong[order]), abs=1e-12)
    assert evaluate.auroc(-score, wrong) == pytest.approx(1 - evaluate.auroc(score, wrong), abs=1e-12)


def test_detection_of_a_worked_case():
    p_clean = np.array([0.1, 0.2, 0.7, 0.9, 0.95, np.nan])
    wrong = np.array([True, False, True, False, False, True])
    result = evaluate.detection(p_clean, wrong, threshold=0.5)
    assert (result.pairs, result.excluded) == (5, 1)
    assert result.noise_rate == pytest.approx(0.4)
    assert result.noise_rate_estimated == pytest.approx(1 - 2.85 / 5)
    assert result.noise_rate_error == pytest.approx(0.03)
    assert result.verdicts == evaluate.Verdicts(
        dropped=2, drop_precision=0.5, drop_recall=0.5, keep_precision=2 / 3, keep_recall=2 / 3
    )
    assert result.ranking.auroc == pytest.approx(5 / 6)
    assert result.ranking.fpr_at_95_tpr == pytest.approx(1 / 3)
    other = evaluate.detection(
        p_clean, wrong, score=np.array([0, 3, 1, 4, np.nan, 2.0]), dropped=wrong, noise_rate=0.25
    )
    assert (other.pairs, other.excluded, other.ranking.auroc) == (4, 2, 1.0)
    assert other.verdicts.drop_precision == other.verdicts.keep_recall == 1.0
    assert other.noise_rate_error == pytest.approx(0.25)


def test_undefined_is_nan_without_warnings():
    clean = evaluate.detection(np.array([0.5, 1.0]), np.array([False, False]))
    assert (
        math.isnan(clean.ranking.auroc) and math.isnan(clean.ranking.auprc) and math.isnan(clean.verdicts.drop_recall)
    )
    assert clean.verdicts.keep_precision == 1.0 and clean.noise_rate == 0.0
    empty = evaluate.detection(np.array([np.nan]), np.array([True]))
    assert (empty.pairs, empty.excluded) == (0, 1)
    assert math.isnan(empty.calibration.ece) and math.isnan(empty.noise_rate)


def test_calibrated_probabilities_have_small_errors_and_shifted_ones_do_not():
    rng = np.random.default_rng(0)
    p_clean = rng.beta(0.6, 0.4, 20000)
    wrong = rng.random(20000) > p_clean
    good, bad = evaluate.calibration(p_clean, wrong), evaluate.calibration(np.clip(p_clean - 0.2, 0, 1), wrong)
    assert good.ece < 0.015 and good.ace < 0.015 and bad.ece > 0.12


def test_constant_scores_are_chance():
    wrong = np.arange(100) < 30
    same = np.full(100, 0.7)
    assert evaluate.auroc(same, wrong) == 0.5
    assert evaluate.average_precision(same, wrong) == pytest.approx(0.3)
    assert evaluate.fpr_at_tpr(same, wrong) == 1.0
    result = evaluate.calibration(same, wrong)
    assert result.ece == result.ace == result.mce == pytest.approx(0, abs=1e-12)


def test_misuse_is_refused():
    with pytest.raises(ValueError, match="shape"):
        evaluate.auroc(np.zeros(3), np.zeros(2, bool))
    with pytest.raises(ValueError, match="expected 0 to 1"):
        evaluate.detection(np.array([1.5]), np.array([True]))
    with pytest.raises(ValueError, match="dropped"):
        evaluate.detection(np.array([0.5]), np.array([True]), dropped=np.zeros(2, bool))
    with pytest.raises(ValueError, match="dropped"):
        evaluate.verdict_quality(np.zeros(2, bool), np.zeros(3, bool))
    with pytest.raises(ValueError, match="bins"):
        evaluate.calibration(np.zeros(2), np.zeros(2, bool), bins=0)
