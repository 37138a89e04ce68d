"""Texts that are classes: the noise of labels against loops, on made noise of every kind, and where it stays out."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given as drawn
from hypothesis import settings
from hypothesis import strategies as st
from reference import classes_reference as slow
from scipy import special

from noisycorr.clean.signals import classes
from noisycorr.clean.signals.pipeline import Score, Scored, score_pairs
from noisycorr.clean.signals.view import PairEmbeddings
from noisycorr.stats.detection import auroc, calibration


def make_classes(
    n: int = 1500, count: int = 12, *, near: float = 0.0, random: float = 0.0, blur: float = 1.0, seed: int = 0
) -> tuple[PairEmbeddings, np.ndarray]:
    """Pictures of `count` classes; of a share `near` the text is the next class, of a share `random` any other."""
    rng = np.random.default_rng(seed)
    centre, word = rng.normal(size=(count, 24)), rng.normal(size=(count, 16))
    right = rng.integers(count, size=n)
    given = right.copy()
    order = rng.permutation(n)
    one, two = order[: round(near * n)], order[round(near * n) : round((near + random) * n)]
    given[one] = (right[one] + 1) % count
    given[two] = (right[two] + rng.integers(1, count, size=len(two))) % count
    image = (centre[right] + blur * rng.normal(size=(n, 24))).astype(np.float16)
    everything = np.ones(n, bool)
    view = PairEmbeddings(image=[image], text=[word[given].astype(np.float16)], text_id=given, image_id=np.arange(n),
                present=everything, seed=seed)  # fmt: skip
    return view, given != right


def scored(view: PairEmbeddings, **choice) -> Scored:
    return score_pairs(view, None, Score(**choice), learn=True)


@pytest.mark.parametrize(("near", "random"), [(0.0, 0.0), (0.3, 0.0), (0.0, 0.4), (0.2, 0.2)])
def test_noise_is_found_whatever_its_kind(near: float, random: float):
    view, wrong = make_classes(near=near, random=random)
    found = scored(view)
    assert found.fit.kind == "classes" and found.facts["calibrated"] == "classes"
    assert found.fit.noise_rate == pytest.approx(near + random, abs=0.05)
    assert found.fit.low <= near + random + 0.02 and found.fit.high >= near + random - 0.02
    p = found.fit(found.columns["pair"]).astype(np.float64)
    assert 1 - p.mean() == pytest.approx(near + random, abs=0.05)
    if wrong.any():
        assert auroc(found.columns["pair"], wrong) > 0.97
        assert calibration(p, wrong).ece < 0.05


def test_random_wrong_pairs_alone_do_not_find_confusions():
    """Why classes are treated on their own: with the null of random pairs the same noise goes unseen."""
    view, _ = make_classes(near=0.3)
    assert scored(view, calibration="null").fit.noise_rate < 0.15
    assert scored(view).fit.noise_rate > 0.25


@pytest.mark.parametrize("case", ["each text once", "too few pairs of a text", "one text"])
def test_other_sets_are_left_alone(case: str):
    view, _ = make_classes(600, 10)
    ids = {"each text once": np.arange(600), "too few pairs of a text": np.arange(600) // 5, "one text": np.zeros(600)}
    view = replace(view, text_id=ids[case].astype(np.int64))
    assert not classes.are_classes(view)
    assert scored(view).fit.kind != "classes"


def test_pictures_that_say_nothing_accuse_nobody():
    view, _ = make_classes(800, 8, near=0.2, blur=0)
    view = replace(view, image=[np.random.default_rng(0).normal(size=(800, 24)).astype(np.float16)])
    found = scored(view)
    assert found.fit.kind == "constant" and "cannot tell" in (found.fit.warning or "")


def test_missing_sides_get_no_score_and_change_nothing_else():
    view, _ = make_classes(900, 9, near=0.2)
    image = view.image[0].copy()
    image[:40] = 0
    found = scored(replace(view, image=[image], present=np.any(image != 0, axis=1)))
    assert np.isnan(found.columns["pair"][:40]).all() and np.isfinite(found.columns["pair"][40:]).all()


def test_same_choice_same_scores():
    view, _ = make_classes(near=0.2)
    assert np.array_equal(scored(view).columns["pair"], scored(view).columns["pair"])


@settings(max_examples=40, deadline=None)
@drawn(st.integers(2, 6), st.integers(0, 1000), st.floats(0.01, 0.9))
def test_score_and_posterior_equal_loops(count: int, seed: int, eta: float):
    rng = np.random.default_rng(seed)
    logits, given = rng.normal(size=(5, count)) * 3, rng.integers(count, size=5)
    spread = rng.random((count, count)) + 0.05
    np.fill_diagonal(spread, 0)
    spread /= spread.sum(1, keepdims=True)
    own, other = classes._posterior(logits, given, spread)
    for i in range(5):
        want = slow.score(logits[i].tolist(), spread.tolist(), int(given[i]))
        assert np.log(own[i]) - np.log(other[i]) == pytest.approx(want, abs=1e-9)
        posterior = special.expit(want + np.log(1 - eta) - np.log(eta))
        assert posterior == pytest.approx(slow.p_clean(logits[i].tolist(), spread.tolist(), int(given[i]), eta))


@settings(max_examples=40, deadline=None)
@drawn(st.integers(2, 5), st.integers(4, 30), st.integers(0, 1000))
def test_confusions_equal_loops(count: int, n: int, seed: int):
    rng = np.random.default_rng(seed)
    label, given, gap = rng.integers(count, size=n), rng.integers(count, size=n), rng.permutation(n).astype(float)
    sizes = np.bincount(given, minlength=count) + 1  # every class stands on some row
    eta, spread = classes.confusions(label, gap, given, sizes, 0.99)
    want = slow.confusions(label.tolist(), gap.tolist(), given.tolist(), sizes.tolist(), classes.SMOOTH)
    np.testing.assert_allclose(spread, want, atol=1e-12)
    assert eta == 0.98


def test_the_surest_are_asked():
    label, given = np.zeros(5000, int), np.zeros(5000, int)
    gap = np.arange(5000.0)
    given[4800:] = 1  # among the surest tenth 200 of 500 are contradicted
    assert classes.contradicted(label, gap, given) == (0.4, 500)
    assert classes.contradicted(label[-100:], gap[-100:], given[-100:]) == (1.0, 30)
