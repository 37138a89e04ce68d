"""Labels, partitions and posteriors of an epoch: loops, laws, and known mixtures found again."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from reference import rectify_reference as slow
from scipy import stats

from noisycorr.retrieval import partition, rectify
from noisycorr.retrieval.posterior import beta_posterior, gaussian_posterior

UNIT = st.floats(0, 1)
PAIRS = st.lists(st.tuples(UNIT, UNIT), min_size=1, max_size=40).map(lambda rows: np.array(rows).T)


def drawn(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.floats(0, 2), min_size=1, max_size=45), st.sampled_from([0.2, 0.5]))
def test_hinge_predictions_equal_the_loop(h: list[float], margin: float) -> None:
    got = rectify.hinge_prediction(np.array(h), margin=margin)
    assert got.tolist() == pytest.approx(slow.hinge_prediction(h, margin)) and ((got >= 0) & (got <= 1)).all()
    order = np.argsort(h)
    assert (np.diff(got[order]) <= 1e-12).all(), "the smaller the loss, the better the opinion"


@settings(max_examples=100, deadline=None)
@given(PAIRS)
def test_rectified_labels_are_raised_probabilities(pairs: np.ndarray) -> None:
    w, p = pairs
    for label in (rectify.rectify(w, p), rectify.rectify_stable(w, p), rectify.rectify_stable(w, p, threshold=0.0)):
        assert ((label >= w - 1e-12) & (label <= 1 + 1e-12)).all()
    assert rectify.rectify(w, p).tolist() == pytest.approx([a + (1 - a) * b for a, b in zip(w, p)])
    assert rectify.rectify_stable(w, p).tolist() == pytest.approx(
        [a + (1 - a) * b if b > 0.5 else a for a, b in zip(w, p)]
    )
    assert rectify.rectify_stable(w, 0 * p).tolist() == w.tolist()
    assert rectify.rectify(np.zeros_like(w), p).tolist() == p.tolist()


def test_oscillation_is_the_divergence_of_now_from_before() -> None:
    now, before = (np.exp(drawn(s, 9, 5)) for s in (0, 1))
    now, before = now / now.sum(1, keepdims=True), before / before.sum(1, keepdims=True)
    assert rectify.oscillation(now, before).tolist() == pytest.approx(slow.oscillation(now.tolist(), before.tolist()))
    assert (rectify.oscillation(now, before) > 0).all() and not rectify.oscillation(now, now).any()
    assert rectify.oscillation(now, before) != pytest.approx(rectify.oscillation(before, now))
    sure = np.array([[1.0, 0.0]])
    assert rectify.oscillation(sure, sure[:, ::-1])[0] == pytest.approx(np.log(1e8), rel=1e-6)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 999), st.integers(2, 12))
def test_anchor_ratios_equal_the_loop(seed: int, n: int) -> None:
    image, text = drawn(seed, n, 3), drawn(seed + 1, n, 4)
    anchors = np.random.default_rng(seed).random(n) < 0.4
    anchors[seed % n] = True
    got = rectify.anchor_ratio(image, text, anchors)
    expected = slow.anchor_ratio(image.tolist(), text.tolist(), anchors.tolist())
    assert got.tolist() == pytest.approx(expected, rel=1e-9) and ((got >= 0) & (got <= 1)).all()
    clean = np.random.default_rng(seed + 2).random(n) < 0.5
    label = rectify.rectify_ratio(got, clean)
    for y, r, c in zip(label, got, clean):
        raw = 0.5 + 0.5 * r if c else r
        assert y == pytest.approx(raw if raw >= 0.5 else 0.0)


def test_pairs_that_stand_alike_in_both_modalities_have_ratio_one() -> None:
    image = drawn(0, 8, 3)
    anchors = np.arange(8) < 3
    got = rectify.anchor_ratio(image, 5 * image, anchors)
    nearest = (image @ image[:3].T / np.linalg.norm(image, axis=1)[:, None] / np.linalg.norm(image[:3], axis=1)).max(1)
    assert got[nearest > 0] == pytest.approx(1.0) and (got[nearest <= 0] == 0).all()


def test_anchors_of_a_batch_are_its_best_tenth_and_one() -> None:
    opinion = np.r_[np.linspace(0, 1, 25), 0.5, 0.5]
    chosen = rectify.top_opinions(opinion)
    assert np.flatnonzero(chosen).tolist() == [22, 23, 24]
    assert rectify.top_opinions(np.ones(4)).tolist() == [True, False, False, False]
    assert rectify.top_opinions(np.zeros(0)).tolist() == []


def test_moving_averages_and_proxies() -> None:
    before, now = np.array([1.0, 1.0, 0.0]), np.array([0.0, 1.0, 0.4])
    assert rectify.blend(before, now, keep=0.8).tolist() == pytest.approx([0.8, 1.0, 0.08])
    assert rectify.blend(before, now, keep=0.8, least=0.1).tolist() == pytest.approx([0.8, 1.0, 0.0])
    assert rectify.blend(before, now, keep=0.3).tolist() == pytest.approx([0.3, 1.0, 0.28])
    assert rectify.proxy_label(np.array([0.9, 0.9, 0.9]), np.array([0.9, 0.5, -1])).tolist() == pytest.approx(
        [0.81, 0, 0]
    )


def test_nearest_members_come_best_first() -> None:
    image, bank_image = drawn(0, 4, 3), drawn(1, 9, 3)
    assert rectify.nearest_members(image, bank_image, k=2).shape == (4, 2)
    assert rectify.nearest_members(bank_image, bank_image, k=1)[:, 0].tolist() == list(range(9))


def test_offset_weights_are_zero_for_unrelated_pairs_and_rise_with_cosine() -> None:
    cosine = np.array([-1.0, 0.1, 0.2, 0.3, 0.4])
    weight = rectify.offset_weight(cosine, offset=0.1)
    assert weight.tolist() == pytest.approx([0, 0, 0.01 * 0.9, 0.04 * 0.8, 0.09 * 0.7])
    released = rectify.offset_weight(cosine, offset=0.1, scale=0.5, faithful=True)
    assert released.tolist() == pytest.approx([x**2 * (1 - x**2) for x in (0, 0, 0.2, 0.4, 0.6)])
    grid = rectify.offset_weight(np.linspace(-1, 1, 99), offset=0.1)
    assert (np.diff(grid[np.linspace(-1, 1, 99) < 0.7]) >= 0).all() and grid.max() < 0.25


OPINIONS = st.lists(st.sampled_from([0.0, 0.3, 0.5, 0.500001, 0.61, 0.9, 1.0]), min_size=1, max_size=250).map(np.array)


@settings(max_examples=100, deadline=None)
@given(OPINIONS, st.integers(0, 99))
def test_sets_are_disjoint_and_cover_all_pairs(one: np.ndarray, seed: int) -> None:
    two = np.random.default_rng(seed).permutation(one)
    clean, hard, noisy = partition.split_three(one, two)
    assert (clean.astype(int) + hard + noisy == 1).all()
    if (one <= 0.5).any():
        assert clean.tolist() == [a > 0.5 and b > 0.5 for a, b in zip(one, two)]
        assert noisy.tolist() == [a <= 0.5 and b <= 0.5 for a, b in zip(one, two)]
    assert partition.strictly_clean(one, two).tolist() == [a > 0.6 and b > 0.6 for a, b in zip(one, two)]
    assert not (partition.strictly_clean(one, two) & ~(clean | hard | noisy)).any()
    surer = partition.above_clean_mean(one, clean)
    assert not (surer & ~clean).any() and surer.any() == clean.any()


@pytest.mark.parametrize("n", [1, 99, 100, 250, 1000])
def test_where_all_are_clean_one_in_a_hundred_is_not(n: int) -> None:
    p = np.random.default_rng(0).uniform(0.6, 1.0, n)
    clean = partition.split_two(p)
    assert int((~clean).sum()) == n // 100
    if n >= 100:
        assert p[~clean].max() < p[clean].min()
    assert partition.split_two(p, least=0.0).all()
    p[0] = 0.5  # one is noisy anyway
    assert np.flatnonzero(~partition.split_two(p)).tolist() == [0]
    assert not partition.split_two(np.full(n, np.nan)).any()


def betas(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """The published mixture: 3,000 low losses of clean pairs, 2,000 high ones of wrong pairs."""
    rng = np.random.default_rng(seed)
    return np.r_[rng.beta(2, 8, 3000), rng.beta(6, 3, 2000)], np.arange(5000) >= 3000


def auc(p_clean: np.ndarray, wrong: np.ndarray) -> float:
    return float(stats.mannwhitneyu(p_clean[~wrong], p_clean[wrong]).statistic / ((~wrong).sum() * wrong.sum()))


POSTERIORS = {
    "gaussian": lambda loss: gaussian_posterior(loss, seed=0),
    "released": lambda loss: gaussian_posterior(loss, seed=0, faithful=True),
    "beta": beta_posterior,
    "released beta": lambda loss: beta_posterior(loss, faithful=True),
}


@pytest.mark.parametrize("name", POSTERIORS)
def test_the_published_mixture_is_found(name: str) -> None:
    loss, wrong = betas(0)
    posterior = POSTERIORS[name](loss)
    assert posterior.warning is None and posterior.p_clean.dtype == np.float32
    assert auc(posterior.p_clean, wrong) >= 0.95
    assert float(posterior.p_clean.mean()) == pytest.approx(0.6, abs=0.05)


def test_the_released_betas_equal_the_loop() -> None:
    loss = betas(2)[0][::20]
    got = beta_posterior(loss, faithful=True).p_clean
    assert got.tolist() == pytest.approx(slow.released_beta(loss.tolist()), abs=1e-6)


@pytest.mark.parametrize("name", ["gaussian", "beta"])
def test_one_huge_loss_spoils_nothing(name: str) -> None:
    loss, wrong = betas(1)
    loss[-1] = 1e6
    posterior = POSTERIORS[name](loss)
    assert auc(posterior.p_clean, wrong) >= 0.95 and posterior.p_clean[-1] < 0.05
    assert float(posterior.p_clean.mean()) == pytest.approx(0.6, abs=0.06)


@pytest.mark.parametrize("name", POSTERIORS)
@pytest.mark.parametrize("loss", [np.full(50, 0.3), np.zeros(50), np.array([0.1]), np.full(30, np.nan), np.zeros(0)])
def test_what_cannot_be_split_says_so(name: str, loss: np.ndarray) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        posterior = POSTERIORS[name](loss)
    assert posterior.warning and posterior.p_clean.shape == loss.shape
    assert posterior.p_clean.tolist() == [0.0 if np.isnan(x) else 1.0 for x in loss]


@pytest.mark.parametrize("name", ["gaussian", "beta"])
@settings(max_examples=20, deadline=None)
@given(st.lists(st.floats(0, 50, width=32), min_size=20, max_size=80), st.integers(0, 3))
@example([0.0] * 18 + [1.0, 2.2e-16], 0)
def test_a_higher_loss_never_looks_cleaner(name: str, values: list[float], missing: int) -> None:
    loss = np.array([*values, *[np.nan] * missing])
    p = POSTERIORS[name](loss).p_clean
    known = ~np.isnan(loss)
    assert ((p >= 0) & (p <= 1)).all() and (p[~known] == 0).all()
    order = np.argsort(loss[known], kind="stable")
    assert (np.diff(p[known][order]) <= 1e-6).all()


def test_the_released_fit_can_distrust_its_lowest_losses() -> None:
    """Why ours is monotone: a narrow clean component loses the far low end to the wide one."""
    rng = np.random.default_rng(0)
    loss = np.r_[rng.normal(0.3, 0.02, 3000), rng.normal(0.6, 0.2, 2000).clip(0)]
    released = gaussian_posterior(loss, seed=0, faithful=True).p_clean
    ours = gaussian_posterior(loss, seed=0).p_clean
    lowest = np.argsort(loss)[:20]
    assert released[lowest].mean() < 0.5 < ours[lowest].mean()


def test_bad_input_is_refused() -> None:
    two, three = np.ones(2), np.ones(3)
    for call in (
        lambda: rectify.rectify(two, two[:, None]), lambda: rectify.rectify_stable(two, three),
        lambda: rectify.oscillation(np.ones((2, 3)), np.ones((2, 4))), lambda: rectify.blend(two, three, keep=0.5),
        lambda: rectify.blend(two, two, keep=1.5), lambda: rectify.proxy_label(two, three),
        lambda: rectify.rectify_ratio(two, three > 0), lambda: rectify.offset_weight(two, offset=0.0, scale=0.0),
        lambda: rectify.anchor_ratio(np.ones((2, 2)), np.ones((2, 2)), np.zeros(2, bool)),
        lambda: partition.split_three(two, three), lambda: partition.split_two(two, least=2.0),
        lambda: gaussian_posterior(np.arange(30.0), seed=0, clip=0.5),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=r"must be equal|expected|needed|bank"):
            call()
