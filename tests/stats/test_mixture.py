"""Calibration: equations against slow loops, laws on drawn scores, known mixtures found again, labels."""

from __future__ import annotations

import json
import warnings
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import mixture_reference as slow

from noisycorr.stats.detection import calibration
from noisycorr.stats.mixture import Fit, constant_fit, fit_beta, fit_gaussian, fit_labels, fit_null, null_share

NUMBERS = st.floats(-100, 100, width=32).map(lambda x: x + 0.0)
SCORES = st.lists(NUMBERS, min_size=0, max_size=120) | st.lists(st.integers(0, 3).map(float), min_size=20, max_size=90)


def mixture(n: int, noise: float, *, seed: int, gap: float = 3.0, m: int | None = None):
    """Scores of n given pairs, of m re-paired ones, and which of the given are wrong."""
    rng = np.random.default_rng(seed)
    wrong = rng.random(n) < noise
    score = np.where(wrong, rng.normal(0, 1, n), rng.normal(gap, 1.3, n))
    return score.astype(np.float32), rng.normal(0, 1, m or 3 * n).astype(np.float32), wrong


def calibrate(kind: str, scores: np.ndarray, null: np.ndarray) -> Fit:
    if kind == "null":
        return fit_null(scores, null, seed=0, rounds=3)
    return fit_gaussian(scores, seed=0) if kind == "gaussian" else fit_beta(scores)


def check_laws(fit: Fit, scores: np.ndarray) -> None:
    """What holds for every curve, whatever the scores were."""
    assert len(fit.score) == len(fit.p_clean) >= 1
    assert np.isfinite(fit.score).all() and (np.diff(fit.score) > 0).all()
    assert (np.diff(fit.p_clean) >= 0).all() and fit.p_clean.min() >= 0 and fit.p_clean.max() <= 1
    many = np.concatenate([np.sort(scores), np.linspace(-150, 150, 50)]).astype(np.float32)
    p = fit(np.sort(many))
    assert p.dtype == np.float32 and ((p >= 0) & (p <= 1) | np.isnan(np.sort(many))).all()
    assert (np.diff(p[np.isfinite(p)]) >= 0).all()
    assert np.isnan(fit(np.array([np.nan, 0.0])))[0] and np.isfinite(fit(np.array([np.nan, 0.0])))[1]
    if fit.kind == "constant":
        assert fit.warning and (p[np.isfinite(p)] == 1).all() and np.isnan(fit.noise_rate)
    else:
        assert 0 <= fit.low <= fit.noise_rate <= fit.high <= 1
    json.dumps(fit.parameters, allow_nan=False)


@pytest.mark.parametrize("kind", ["null", "gaussian", "beta"])
def test_scores_that_differ_by_rounding_leave_no_gap_in_the_curve(kind):
    scores = np.array([0.0] * 18 + [-1.0, -2.2e-16] + [1.0] * 9 + [1.0 - 1e-16])
    fit = calibrate(kind, scores, np.linspace(-2, 0.5, 40))
    check_laws(fit, scores)


@settings(max_examples=60, deadline=None)
@given(SCORES, SCORES, st.sampled_from(["null", "gaussian", "beta"]), st.integers(0, 5))
def test_curves_are_monotone_probabilities_for_any_scores(one, two, kind, missing):
    scores = np.array([*one, *[np.nan] * missing], np.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        fit = calibrate(kind, scores, np.array(two, np.float32))
    check_laws(fit, scores)


@settings(max_examples=40, deadline=None)
@given(SCORES.filter(lambda rows: len(rows) > 0), st.integers(0, 30), st.randoms(use_true_random=False))
def test_labelled_curves_keep_the_laws(scores, count, random):
    values = np.array([*scores, np.nan], np.float32)
    rows = np.array([random.randrange(len(values)) for _ in range(count)], np.int64)
    right = np.array([random.random() < 0.5 for _ in range(count)], bool)
    base = calibrate("beta", values, values)
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        check_laws(fit_labels(base, values, right, rows), values)


@pytest.mark.parametrize("kind", ["null", "gaussian", "beta"])
def test_constant_scores_give_a_flagged_constant_fit(kind: str):
    for scores in (np.full(100, 0.25, np.float32), np.full(100, np.nan, np.float32), np.zeros(0, np.float32)):
        fit = calibrate(kind, scores, scores)
        assert fit.kind == "constant" and fit.warning
        check_laws(fit, scores)


@pytest.mark.parametrize("kind", ["gaussian", "beta"])
def test_scores_that_mostly_tie_are_survived(kind: str):
    """More than half of all scores are the smallest one, or all but a few are equal."""
    for scores in (
        np.r_[np.zeros(60), np.linspace(1, 2, 40)],
        np.r_[np.zeros(999), 1.0],
        np.r_[np.zeros(40), np.ones(60)],
    ):
        with warnings.catch_warnings():
            warnings.simplefilter("error", RuntimeWarning)
            fit = calibrate(kind, scores, scores)
        check_laws(fit, scores)
        assert fit.kind == kind
        assert fit(np.array([scores.max()])) > fit(np.array([scores.min()]))


@settings(max_examples=40, deadline=None)
@given(st.lists(NUMBERS, min_size=20, max_size=60), st.lists(NUMBERS, min_size=20, max_size=60))
def test_null_share_equals_a_loop(one, two):
    assert null_share(np.array(one), np.array(two)) == pytest.approx(slow.null_share(one, two), abs=1e-9)


@pytest.mark.parametrize("seed", range(8))
def test_null_share_of_few_wrong_pairs_equals_a_loop(seed: int):
    """Far apart, so that often no given pair at all is below the first quantiles."""
    given_scores, null, _ = mixture(80, 0.05, seed=seed, gap=6, m=160)
    want = slow.null_share([float(s) for s in given_scores], [float(s) for s in null])
    assert null_share(given_scores, null) == pytest.approx(want, abs=1e-7)


def test_null_share_of_coarse_scores_is_not_inflated():
    """Scores of a few levels only: most of both sets stands on the lowest."""
    rng = np.random.default_rng(0)
    null = rng.integers(0, 5, 20_000).clip(2) * 1.0
    given_scores = np.where(rng.random(20_000) < 0.3, rng.integers(0, 5, 20_000).clip(2), 5) * 1.0
    assert null_share(given_scores, null) == pytest.approx(0.3, abs=0.02)


@pytest.mark.parametrize("seed", range(3))
def testdensity_ratio_calibration_equals_pooling_in_a_loop(seed: int):
    given_scores, null, _ = mixture(300, 0.4, seed=seed, m=450)
    fit = fit_null(given_scores, null, seed=0, rounds=2)
    lists = [float(s) for s in given_scores], [float(s) for s in null]
    score, p_clean = slow.p_clean_null(*lists, slow.null_share(*lists), bins=750 // 25)
    assert fit.noise_rate == pytest.approx(slow.null_share(*lists), abs=1e-9)
    np.testing.assert_allclose(fit.score, score, atol=1e-7)
    np.testing.assert_allclose(fit.p_clean, p_clean, atol=1e-7)
    ask = np.linspace(-4, 7, 23)
    np.testing.assert_allclose(fit(ask), [slow.interpolate(float(x), score, p_clean) for x in ask], atol=1e-6)


@pytest.mark.parametrize("kind", ["gaussian", "beta"])
def test_posteriors_equal_their_formula(kind: str):
    scores, _, _ = mixture(4000, 0.4, seed=1, gap=5.0)
    fit = calibrate(kind, scores, scores)
    part, clean = fit.parameters, fit.parameters["clean"]
    if kind == "gaussian":
        raw = [slow.gaussian_posterior(x, part["means"], part["deviations"], part["weights"])[clean] for x in fit.score]
        assert part["means"][clean] == pytest.approx(5, abs=0.2) and part["deviations"][clean] == pytest.approx(
            1.3, abs=0.2
        )
    else:
        squeezed = np.clip((fit.score - part["from"]) / (part["to"] - part["from"]), 1e-4, 1 - 1e-4)
        raw = [slow.beta_posterior(float(x), part["a"], part["b"], part["weights"])[clean] for x in squeezed]
    np.testing.assert_allclose(fit.p_clean, slow.pool_adjacent_violators(raw, [1.0] * len(raw)), atol=2e-6)
    assert fit.noise_rate == pytest.approx(0.4, abs=0.06)


def test_a_narrow_clean_component_does_not_fall_again():
    """Law 5: two plain Gaussians give the best scored pairs of a narrow component almost no chance."""
    rng = np.random.default_rng(0)
    scores = np.r_[rng.normal(0.5, 0.5, 3000), rng.normal(1.0, 0.1, 3000), 3.0]
    fit = fit_gaussian(scores, seed=0)
    part, clean = fit.parameters, fit.parameters["clean"]
    assert slow.gaussian_posterior(3.0, part["means"], part["deviations"], part["weights"])[clean] < 0.01
    assert fit(np.array([3.0]))[0] == np.float32(fit.p_clean.max()) > 0.4


@pytest.mark.parametrize("kind", ["null", "gaussian", "beta"])
def test_the_unit_of_the_score_does_not_matter(kind: str):
    scores, null, _ = mixture(2000, 0.35, seed=2, gap=5.0)
    one = calibrate(kind, scores, null)
    two = calibrate(kind, scores * 1e-4 + 0.5, null * 1e-4 + 0.5)
    assert two.noise_rate == pytest.approx(one.noise_rate, abs=2e-3)
    ask = np.linspace(-3, 8, 12)
    np.testing.assert_allclose(two(ask * 1e-4 + 0.5), one(ask), atol=2e-2)


@pytest.mark.parametrize("noise", [0.0, 0.1, 0.2, 0.4, 0.6])
def test_known_noise_is_found_again(noise: float):
    scores, null, wrong = mixture(20_000, noise, seed=3)
    fit = fit_null(scores, null, seed=0)
    assert fit.kind == "null" and fit.warning is None
    assert fit.noise_rate == pytest.approx(wrong.mean(), abs=0.03)
    assert fit.low - 0.03 <= wrong.mean() <= fit.high + 0.03
    p = fit(scores)
    assert calibration(p.astype(np.float64), wrong).ece <= 0.03
    assert 1 - p.mean() == pytest.approx(wrong.mean(), abs=0.03)


def test_the_interval_shrinks_with_more_pairs():
    widths = []
    for n in (500, 5_000, 60_000):
        scores, null, _ = mixture(n, 0.3, seed=4)
        fit = fit_null(scores, null, seed=0)
        widths.append(fit.high - fit.low)
    assert widths[0] > 2 * widths[1] > 3 * widths[2] > 0


def test_scores_that_cannot_be_told_apart_mark_nothing():
    rng = np.random.default_rng(0)
    fit = fit_null(rng.normal(size=5000), rng.normal(size=5000), seed=0)
    assert fit.kind == "constant" and "cannot tell" in (fit.warning or "")
    assert fit.separation == pytest.approx(0.5, abs=0.03)
    assert (fit(rng.normal(size=50)) == 1).all()
    worse = fit_null(rng.normal(-2, 1, 5000), rng.normal(size=5000), seed=0)  # upside down is blind, too
    assert worse.kind == "constant" and worse.separation < 0.2


def test_few_pairs_that_look_separable_by_chance_mark_nothing():
    rng = np.random.default_rng(1)
    kinds = [fit_null(rng.normal(size=n), rng.normal(size=4 * n), seed=0, rounds=2).kind for n in [30, 60, 120] * 70]
    assert kinds.count("constant") >= 204  # 210 draws, 0.6 % false alarms each
    assert fit_null(rng.normal(2, 1, 40), rng.normal(size=160), seed=0).kind == "null"


def test_too_few_scores_are_said():
    for one, two in ((19, 500), (500, 19)):
        fit = fit_null(np.arange(one) + 100.0, np.arange(two) * 1.0, seed=0)
        assert fit.kind == "constant" and "20" in (fit.warning or "")


def test_a_weak_score_with_much_noise_is_called_an_upper_bound():
    scores, null, _ = mixture(5000, 0.5, seed=5, gap=0.7)
    fit = fit_null(scores, null, seed=0, rounds=3)
    assert fit.kind == "null" and "upper bound" in (fit.warning or "")


@settings(max_examples=15, deadline=None)
@given(st.randoms(use_true_random=False))
def test_order_of_rows_does_not_matter(random):
    scores, null, _ = mixture(400, 0.3, seed=6)
    order = list(range(len(scores)))
    random.shuffle(order)
    for kind in ("null", "beta"):
        one, two = calibrate(kind, scores, null), calibrate(kind, scores[order], null[::-1])
        np.testing.assert_allclose(one(scores)[order], two(scores[order]), atol=1e-5)


def test_same_seed_same_curve():
    scores, null, _ = mixture(2000, 0.3, seed=7)
    one, two = (fit_null(scores, null, seed=5) for _ in range(2))
    assert (one.low, one.high, one.noise_rate) == (two.low, two.high, two.noise_rate)
    assert (one.p_clean == two.p_clean).all()


def judged(n: int, count: int, *, seed: int):
    """A curve that is wrong (it believes in 0.5 everywhere near 1), and labels by the true curve."""
    rng = np.random.default_rng(seed)
    scores = rng.uniform(-3, 3, n)
    right = rng.random(n) < 1 / (1 + np.exp(-3 * (scores + 1)))  # the line is at -1
    rows = rng.choice(n, count, replace=False)
    wrong_curve = replace(
        constant_fit("x"), kind="null", score=np.array([-3.0, 3.0]), p_clean=np.array([0.02, 0.98]), noise_rate=0.5
    )
    return wrong_curve, scores, right, rows


def test_many_labels_replace_the_curve_and_few_move_it_little():
    base, scores, right, rows = judged(4000, 600, seed=8)
    truth = 1 / (1 + np.exp(-3 * (scores + 1)))
    many = fit_labels(base, scores, right[rows], rows)
    assert many.kind == "labels" and many.warning is None
    assert np.abs(many(scores) - truth).mean() < 0.04 < np.abs(base(scores) - truth).mean()
    assert many.noise_rate == pytest.approx(1 - truth.mean(), abs=0.05)
    few = fit_labels(base, scores, right[rows[:2]], rows[:2])
    assert np.abs(few(scores) - base(scores)).mean() < 0.1
    assert few.warning and "2 labelled" in few.warning
    none = fit_labels(base, scores, np.zeros(0, bool), np.zeros(0, np.int64))
    np.testing.assert_allclose(none(scores), np.clip(base(scores), 0.01, 0.99), atol=0.01)


@pytest.mark.parametrize("contradicted", [[0], [-1], [0, -1]])
def test_few_labels_that_contradict_the_curve_do_not_overturn_it(contradicted: list[int]):
    """The best scored pair is judged wrong, the worst one right: a slip of the pen must not keep or drop everything."""
    base, scores, _, _ = judged(1000, 1, seed=11)
    rows = np.argsort(scores)[contradicted]
    fit = fit_labels(base, scores, scores[rows] < 0, rows)
    assert fit(np.array([-2.5]))[0] < 0.4 and fit(np.array([2.5]))[0] > 0.6
    assert np.abs((fit(scores) >= 0.5).mean() - (base(scores) >= 0.5).mean()) < 0.2


def test_labels_find_the_minimum_of_their_loss():
    base, scores, right, rows = judged(500, 40, seed=9)
    fit = fit_labels(base, scores, right[rows], rows)
    z = ((scores[rows] - scores.mean()) / scores.std()).tolist()
    p, ok = base(scores[rows]).tolist(), right[rows].tolist()
    best = slow.labels_loss(tuple(fit.parameters["theta"]), p, z, ok)
    assert min(fit.parameters["theta"][:2]) >= 0
    for place in range(3):
        for step in (-0.05, 0.05):
            other = list(fit.parameters["theta"])
            other[place] = other[place] + step if place == 2 else max(0.0, other[place] + step)
            assert slow.labels_loss(tuple(other), p, z, ok) >= best - 1e-6
    assert fit.parameters["labels"] == 40 and fit.parameters["labels_wrong"] == ok.count(False)


def test_labels_cannot_save_scores_that_do_not_exist():
    base, nothing = constant_fit("no pair could be scored"), np.full(5, np.nan)
    fit = fit_labels(base, nothing, np.array([True, False]), np.array([1, 2]))
    assert fit.kind == "constant" and fit.warning == base.warning
    assert np.isnan(fit(nothing)).all()


def test_labels_of_pairs_without_a_score_are_left_out():
    base, scores, right, rows = judged(300, 50, seed=10)
    holes = np.r_[scores, np.nan]
    one = fit_labels(base, holes, np.r_[right[rows], False], np.r_[rows, 300])
    two = fit_labels(base, scores, right[rows], rows)
    np.testing.assert_allclose(one.p_clean, two.p_clean, atol=1e-6)
    assert one.parameters["labels"] == 50


def test_few_labels_keep_the_warning_of_the_curve():
    blind = constant_fit("the score cannot tell")
    fit = fit_labels(blind, np.linspace(0, 1, 50), np.array([True]), np.array([3]))
    assert "the score cannot tell" in (fit.warning or "")
