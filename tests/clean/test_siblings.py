"""Texts of one picture: the small model against brute force, both units of noise, and sets without siblings."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given as drawn
from hypothesis import settings
from hypothesis import strategies as st
from reference import siblings_reference as slow
from scipy import special

from noisycorr.clean.signals import siblings
from noisycorr.clean.signals.pipeline import Score, Scored, score_pairs
from noisycorr.clean.signals.view import PairEmbeddings, shuffled_pairs
from noisycorr.stats.detection import auroc, calibration


def make_pictures(count: int = 150, each: int = 4, *, noise: float = 0.3, unit: str = "caption",
                  seed: int = 0) -> tuple[PairEmbeddings, np.ndarray]:  # fmt: skip
    """Pictures with several texts; texts are exchanged one by one, or all of a picture together."""
    rng = np.random.default_rng(seed)
    n = count * each
    meaning = rng.normal(size=(count, 10))
    picture = np.repeat(np.arange(count), each)
    said = picture.copy()
    if unit == "caption":
        moved = rng.permutation(n)[: round(noise * n)]
        said[moved] = picture[np.roll(moved, 1)]
    else:
        moved = rng.permutation(count)[: round(noise * count)]
        away = np.arange(count)
        away[moved] = np.roll(moved, 1)
        said = away[picture]
    image = (meaning + 0.7 * rng.normal(size=(count, 10)))[picture]
    text = meaning[said] + 0.7 * rng.normal(size=(n, 10))
    view = PairEmbeddings(image=[image.astype(np.float16)], text=[text.astype(np.float16)], text_id=np.arange(n),
                image_id=picture, present=np.ones(n, bool), seed=seed)  # fmt: skip
    return view, said != picture


def scored(view: PairEmbeddings, **choice) -> Scored:
    return score_pairs(view, None, Score(**choice), learn=True)


@pytest.mark.parametrize(("unit", "together"), [("caption", (0.02, 0.25)), ("image", (0.75, 0.98))])
def test_siblings_help_under_both_units_of_noise(unit: str, together: tuple[float, float]):
    gain = []
    for seed in range(3):
        view, wrong = make_pictures(unit=unit, seed=seed)
        alone, both = scored(view, calibration="null"), scored(view)
        assert both.facts["siblings"]["moved_together"] in together and "siblings" not in alone.facts
        assert both.fit.noise_rate == pytest.approx(wrong.mean(), abs=0.1)
        assert calibration(both.fit(both.columns["pair"]).astype(np.float64), wrong).ece < 0.1
        gain.append(auroc(both.columns["pair"], wrong) - auroc(alone.columns["pair"], wrong))
    assert np.mean(gain) > 0.005


def test_curve_is_the_log_odds():
    found = scored(make_pictures()[0])
    pair = found.columns["pair"]
    np.testing.assert_allclose(found.fit(pair), special.expit(pair.astype(np.float64)), atol=2e-3)
    assert found.fit.low <= found.fit.noise_rate <= found.fit.high


def test_sets_without_siblings_are_left_alone():
    view, _ = make_pictures()
    single = replace(view, image_id=np.arange(view.n))
    space = (list(view.image), list(view.text))
    assert (
        siblings.correct_by_siblings(single, np.full(view.n, 0.5), space, shuffled_pairs(single, np.zeros(view.n, int)))
        is None
    )
    one_text = replace(view, text_id=view.image_id)  # copies of one text are no second opinion
    assert siblings.sibling_groups(one_text) == []


def test_near_duplicates_are_no_witnesses():
    """Flags look alike and mean other things: only copies of one picture say something about each other's texts."""
    view, _ = make_pictures()
    apart = replace(view, picture=np.arange(view.n))
    assert siblings.sibling_groups(apart) == [] and "siblings" not in scored(apart).facts


def test_copies_share_the_verdict_and_missing_sides_have_none():
    view, _ = make_pictures(60, 4)
    ids = view.text_id.copy()
    ids[1::4] = ids[0::4]  # the second text of each picture is the first one again
    present = np.ones(view.n, bool)
    present[3::8] = False
    view = replace(view, text_id=ids, present=present)
    p = np.random.default_rng(0).random(view.n)
    p[~present] = np.nan
    found = siblings.correct_by_siblings(
        view, p, (list(view.image), list(view.text)), shuffled_pairs(view, np.zeros(view.n, int))
    )
    assert found is not None
    assert np.array_equal(found.p_clean[1::4], found.p_clean[0::4])
    assert np.isnan(found.p_clean[~present]).all()
    assert ((found.p_clean >= 0) & (found.p_clean <= 1))[present].all()


def test_at_most_six_texts_are_looked_at_together():
    view, _ = make_pictures(10, 9)
    assert [group.shape for group in siblings.sibling_groups(view)] == [(10, 6)]


@settings(max_examples=50, deadline=None)
@drawn(st.integers(2, 5), st.integers(0, 1000), st.floats(0, 1), st.floats(0.1, 1))
def test_posterior_and_evidence_equal_brute_force(m: int, seed: int, rho: float, temper: float):
    rng = np.random.default_rng(seed)
    p = rng.uniform(0.02, 0.98, m)
    ratio = np.exp(rng.normal(size=(m, m)))
    ratio = (ratio + ratio.T) / 2
    picture = siblings._Pictures(np.arange(m)[None], temper * special.logit(p)[None], ratio[None])
    want = slow.posterior(p.tolist(), ratio.tolist(), rho, temper)
    np.testing.assert_allclose(picture.posterior(rho)[0], want, atol=1e-9)
    plain = siblings._Pictures(np.arange(m)[None], special.logit(p)[None], ratio[None])
    assert plain.evidence(rho) == pytest.approx(slow.evidence(p.tolist(), ratio.tolist(), rho), abs=1e-9)


def test_three_that_agree_outvote_the_fourth():
    odds = np.zeros(4)
    ratio = np.full((4, 4), 5.0)
    ratio[3], ratio[:, 3] = 0.2, 0.2
    p = siblings._Pictures(np.arange(4)[None], odds[None], ratio[None]).posterior(0.02)[0]
    assert (p[:3] > 0.9).all() and p[3] < 0.1
