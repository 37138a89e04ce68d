"""Signals: cosine, margin, agreement of neighbourhoods and their combination, against loops; the pipeline of all."""

from __future__ import annotations

import warnings
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given as drawn
from hypothesis import settings
from hypothesis import strategies as st
from reference import signals_reference as slow
from test_crossfit import make_view

from noisycorr.clean.signals import trained_heads as module
from noisycorr.clean.signals.combine import PENALTY, combine, logistic_loss
from noisycorr.clean.signals.neighbors import consensus, mean_feature
from noisycorr.clean.signals.pipeline import Score, score_pairs
from noisycorr.clean.signals.similarity import margin
from noisycorr.clean.signals.trained_heads import trained_heads
from noisycorr.clean.signals.view import (
    PairEmbeddings,
    ShuffledPairs,
    blocks,
    own_cosine,
    pair_cosine,
    shuffled_pairs,
    take,
    with_near_misses,
)
from noisycorr.runtime.errors import UsageError
from noisycorr.stats.detection import auroc, calibration
from noisycorr.stats.index import neighbors

Features = tuple[np.ndarray, np.ndarray]


def small(n: int = 30, d: int = 5, *, holes: tuple[int, ...] = (4, 17), seed: int = 0) -> Features:
    """Features of both sides; some images and the row before each of them lack one side."""
    rng = np.random.default_rng(seed)
    image, text = rng.normal(size=(n, d)).astype(np.float32), rng.normal(size=(n, d)).astype(np.float32)
    for row in holes:
        image[row], text[row - 1] = 0, 0
    return image, text


def lists(array: np.ndarray) -> list[list[float]]:
    return array.astype(np.float64).tolist()


def none_as_nan(values: list[float | None]) -> np.ndarray:
    return np.array([np.nan if value is None else value for value in values])


@pytest.mark.parametrize("cuts", [(30,), (0, 7, 7, 30)])
def test_cosines_equal_loops_over_any_parts(cuts: tuple[int, ...]):
    image, text = small()
    parts = [np.split(side, cuts[:-1]) for side in (image, text)]
    want = none_as_nan([slow.cosine(a, b) for a, b in zip(lists(image), lists(text))])
    np.testing.assert_allclose(own_cosine(*parts), want, atol=1e-6)
    assert np.isnan(own_cosine(*parts)).sum() == 4
    pairs = ShuffledPairs(np.array([0, 29, 8, 7]), np.array([1, 28, 8, 0]), np.zeros(4, bool))
    want = none_as_nan([slow.cosine(lists(image)[i], lists(text)[j]) for i, j in zip(pairs.image, pairs.text)])
    np.testing.assert_allclose(pair_cosine(*parts, pairs), want, atol=1e-6)
    rows = np.array([29, 0, 7, 7, 6, 13])
    assert (take(parts[0], rows) == image[rows]).all()
    assert [start for start, _ in blocks(parts[0])] == ([0] if len(cuts) == 1 else [0, 7])


def test_long_sides_are_worked_through_in_blocks():
    rng = np.random.default_rng(1)
    image, text = (rng.normal(size=(40_000, 3)).astype(np.float16) for _ in range(2))
    starts = [(start, len(block)) for start, block in blocks([image[:20_000], image[20_000:]])]
    assert starts == [(0, 16_384), (16_384, 3_616), (20_000, 16_384), (36_384, 3_616)]
    rows = rng.integers(40_000, size=35_000)
    pairs = ShuffledPairs(rows, rows[::-1], np.zeros(len(rows), bool))
    assert np.array_equal(
        pair_cosine([image], [text], pairs)[:5],
        pair_cosine([image], [text], ShuffledPairs(rows[:5], rows[::-1][:5], pairs.near[:5])),
    )
    np.testing.assert_allclose(
        own_cosine([image], [text])[-1], slow.cosine(lists(image)[-1], lists(text)[-1]), atol=1e-5
    )


@pytest.mark.parametrize("side", ["image", "text"])
@pytest.mark.parametrize("centred", [False, True])
def test_margin_equals_loops(side: str, centred: bool):
    image, text = small(40)
    here, there = (image, text) if side == "image" else (text, image)
    fold, identity = np.arange(40) % 2, np.where(np.arange(40) < 20, np.arange(40) // 3, np.arange(40))
    picture = np.where(np.arange(40) >= 30, np.arange(40) // 4, np.arange(40) + 100)
    own = np.any(image != 0, 1) & np.any(text != 0, 1)
    pairs = ShuffledPairs(np.array([0, 2, 11, 24, 31, 26]), np.array([6, 8, 5, 36, 5, 30]), np.arange(6) == 5)
    mean = mean_feature([there]) if centred else None
    center = (here / np.maximum(np.linalg.norm(here, axis=1, keepdims=True), 1e-9)).astype(np.float32)
    signal = margin(center, [there[:9], there[9:]], identity, picture, own, pairs, fold, side=side, temperature=0.1,
                    seed=0, mean=mean)  # fmt: skip

    def partner(k: int) -> list[float]:
        row = lists(there)[k]
        return slow.unit([x - m for x, m in zip(row, mean.tolist())]) if centred and any(row) else slow.unit(row)

    def expected(i: int, j: int, spared: bool = False) -> float:
        rivals, seen = [], set()
        for k in range(40):
            if own[k] and fold[k] == fold[i] and identity[k] not in seen:
                seen.add(identity[k])
                left_out = [j, i] if spared else [j]
                if all(identity[k] != identity[m] and picture[k] != picture[m] for m in left_out):
                    rivals.append(partner(k))
        value = slow.margin(lists(center)[i], partner(j), rivals, 0.1)
        return np.nan if value is None else value

    for i in range(40):
        want = expected(i, i) if own[i] else np.nan
        assert signal.given[i] == pytest.approx(want, abs=1e-3, nan_ok=True)
    for k in range(6):
        i, j = (int(x[k]) for x in ((pairs.image, pairs.text) if side == "image" else (pairs.text, pairs.image)))
        spared = not pairs.near[k] and len({fold[m] for m in range(40) if own[m] and identity[m] == identity[i]}) == 1
        assert signal.null[k] == pytest.approx(expected(i, j, spared), abs=1e-3, nan_ok=True)
        assert not spared or identity[i] == identity[j] or expected(i, j, True) > expected(i, j, False)


def against(image: np.ndarray, text: np.ndarray, fold: np.ndarray, side: str = "text") -> np.ndarray:
    """Margins of the own pairs only."""
    none = ShuffledPairs(np.zeros(0, int), np.zeros(0, int), np.zeros(0, bool))
    n, asking, asked = len(image), *((image, text) if side == "image" else (text, image))
    asking = asking / np.linalg.norm(asking, axis=1, keepdims=True)
    known = np.ones(n, bool)
    rows = np.arange(n)
    return margin(asking, [asked], rows, rows, known, none, fold, side=side, temperature=0.1, seed=0).given


def test_margin_takes_the_advantage_of_hubs_away():
    """A text that is like every image has a high cosine with its wrong image, but no margin."""
    rng = np.random.default_rng(2)
    image = rng.normal(size=(300, 8)) + 2
    text = image + rng.normal(size=(300, 8))
    wrong = np.arange(300) < 60
    text[wrong] = 2 + 0.1 * rng.normal(size=(60, 8))
    assert auroc(against(image, text, np.zeros(300, int)), wrong) > auroc(own_cosine([image], [text]), wrong) + 0.1


def test_margin_of_a_fold_of_one_is_unknown():
    image, text = small(10, holes=())
    found = against(image, text, np.array([1] + [0] * 9), "image")
    assert np.isnan(found[0]) and np.isfinite(found[1:]).all()


@pytest.mark.parametrize("side", ["image", "text"])
def test_consensus_equals_loops(side: str):
    image, text = small(40, seed=3)
    here, there = (image, text) if side == "image" else (text, image)
    group = np.arange(40)
    group[5:9] = 5
    trust = np.random.default_rng(4).random(40).astype(np.float32)
    trust[20:25] = 0
    found = neighbors(here, 6, seed=0)
    mean = mean_feature([there[:10], there[10:]])
    np.testing.assert_allclose(mean, slow.mean_present(lists(there)), atol=1e-5)
    hood = consensus(found, [there[:10], there[10:]], mean, trust, group)
    want = [slow.consensus(lists(here), lists(there), i, 6, trust.tolist(), group.tolist()) for i in range(40)]
    for row, center in zip(hood.consensus, want):
        np.testing.assert_allclose(row.astype(np.float32), center or np.zeros(5), atol=2e-3)
    for i in range(40):
        assert i not in hood.ids[i] and not (
            set(hood.ids[i][hood.ids[i] >= 0]) & set(np.flatnonzero(group == group[i]))
        )


def test_a_neighbour_without_a_partner_is_no_witness():
    """Two images that are alike; the other one has no text, and there is nobody else."""
    image = np.array([[1, 0], [1, 0.1], [-1, 0]], np.float32)
    text = np.array([[0, 1], [0, 0], [1, 1]], np.float32)
    hood = consensus(neighbors(image, 1, seed=0), [text], mean_feature([text]), np.ones(3, np.float32), np.arange(3))
    assert (hood.consensus[0] == 0).all()


SIGNALS = st.integers(1, 3).flatmap(
    lambda q: st.tuples(
        *[st.lists(st.lists(st.floats(-3, 3), min_size=q, max_size=q), min_size=2, max_size=12) for _ in range(2)]
    )
)


@settings(max_examples=60, deadline=None)
@drawn(SIGNALS, st.lists(st.floats(0, 2), min_size=4, max_size=4))
def test_combined_loss_and_gradient_equal_loops(rows, weights):
    one, two = rows
    w = np.array(weights[: len(one[0]) + 1])
    x = np.array([[*row, 1.0] for row in one + two])
    sign = np.array([1.0] * len(one) + [-1.0] * len(two))
    mass = np.array([0.5 / len(one)] * len(one) + [0.5 / len(two)] * len(two))
    value, slope = logistic_loss(w, x, sign, mass)
    assert value == pytest.approx(slow.combined_loss(w.tolist(), one, two, PENALTY), abs=1e-9)
    want = slow.gradient(lambda v: slow.combined_loss(v, one, two, PENALTY), w.tolist())
    np.testing.assert_allclose(slope, want, atol=1e-6)


def test_combined_weights_are_the_constrained_optimum():
    rng = np.random.default_rng(5)
    given, null = rng.normal([1.5, 0.5, -1.0], size=(200, 3)), rng.normal(size=(400, 3))
    found = combine(given, null, np.zeros(200, int), np.zeros(400, int))
    one, two = ((side - null.mean(0)) / null.std(0) for side in (given, null))
    offset = float((found.given - one @ found.weights).mean())
    np.testing.assert_allclose(found.given, one @ found.weights + offset, atol=1e-5)
    np.testing.assert_allclose(found.null, two @ found.weights + offset, atol=1e-5)
    w = [*found.weights.tolist(), offset]
    slope = slow.gradient(lambda v: slow.combined_loss(v, one.tolist(), two.tolist(), PENALTY), w)
    assert found.weights[2] == 0 and slope[2] > 0  # this signal points the wrong way: out, not negative
    np.testing.assert_allclose([slope[0], slope[1], slope[3]], 0, atol=1e-3)


def test_each_fold_is_scored_with_weights_of_the_others():
    rng = np.random.default_rng(6)
    given, null = rng.normal(size=(300, 2)) + 1, rng.normal(size=(300, 2))
    fold = np.arange(300) % 3
    before = combine(given, null, fold, fold)
    changed = given.copy()
    changed[fold == 1] = rng.normal(size=(100, 2)) * 3 - 5
    after = combine(changed, null, fold, fold)
    np.testing.assert_allclose(after.null[fold == 1], before.null[fold == 1], atol=1e-6)
    assert np.abs(after.null[fold != 1] - before.null[fold != 1]).min() > 1e-3


@settings(max_examples=40, deadline=None)
@drawn(st.integers(0, 10_000), st.integers(1, 3))
def test_a_pair_that_looks_better_never_scores_lower(seed, q):
    rng = np.random.default_rng(seed)
    given, null = rng.normal(size=(60, q)) + rng.normal(size=q), rng.normal(size=(60, q))
    given[rng.random((60, q)) < 0.1] = np.nan
    given[30:] = given[:30] + rng.random((30, q))  # each row again, better everywhere
    fold = np.tile(np.arange(30) % 2, 2)
    found = combine(given, null, fold, np.arange(60) % 2)
    known = np.isfinite(given[:30]).any(1)
    assert (np.isfinite(found.given[:30]) == known).all()
    assert (found.given[30:][known] >= found.given[:30][known] - 1e-6).all()


def test_a_missing_signal_counts_as_that_of_a_random_pair_and_none_at_all_as_unknown():
    rng = np.random.default_rng(7)
    given, null = rng.normal(size=(100, 2)) + 1, rng.normal(size=(200, 2))
    given[0], given[1], null[5] = [np.nan, 2.0], [np.nan, np.nan], np.nan
    given[2] = [np.nanmean(null[:, 0]), 2.0]
    found = combine(given, null, np.zeros(100, int), np.zeros(200, int))
    assert found.given[0] == pytest.approx(found.given[2], abs=1e-6)
    assert np.isnan(found.given[1]) and np.isnan(found.null[5]) and np.isnan(found.null).sum() == 1


def test_near_misses_are_neighbours_of_the_own_text_that_nobody_claimed():
    view, _ = make_view(200)
    view = replace(view, text_id=np.arange(200) // 2, image_id=np.arange(200) // 3)
    fold = np.arange(200) % 2
    random = shuffled_pairs(view, fold, count=100)
    pairs = with_near_misses(random, view, fold)
    assert (pairs.near == (np.arange(len(pairs.near)) >= len(random.image))).all() and 50 < pairs.near.sum() <= 400
    own = set(zip(view.image_id.tolist(), view.text_id.tolist()))
    texts = np.concatenate(view.text).astype(np.float64)
    texts /= np.linalg.norm(texts, axis=1, keepdims=True)
    for i, j in zip(pairs.image[pairs.near], pairs.text[pairs.near]):
        firsts = [k for k in range(0, 200, 2) if view.text_id[k] != view.text_id[i]]
        best = sorted(firsts, key=lambda k: -texts[k] @ texts[i])[:11]  # one more: float32 ties
        assert view.text_id[j] in view.text_id[best] and fold[i] == fold[j]
        assert (view.image_id[i], view.text_id[j]) not in own


def test_near_misses_share_a_part_of_the_weight():
    """Signal 1 tells near misses, signal 0 random ones; without near misses signal 1 is not worth much."""
    rng = np.random.default_rng(0)
    given, null = rng.normal(2, 1, (400, 2)), rng.normal(0, 1, (400, 2))
    near = np.arange(400) < 40
    null[near, 0] += 2
    null[~near, 1] += 2
    fold, null_fold = np.arange(400) % 2, np.arange(400) % 2
    plain, taught = combine(given, null, fold, null_fold), combine(given, null, fold, null_fold, near)
    assert taught.weights[1] > 1.3 * plain.weights[1]


def scored(view: PairEmbeddings, *, learn: bool, joint: bool = False, **choice):
    """All signals, with warnings as errors."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        features = ([side[:, :16] for side in view.image], view.text) if joint else None
        return score_pairs(view, features, Score(**choice), learn=learn)


@pytest.mark.parametrize("noise", [0.2, 0.5])
def test_learned_signals_find_wrong_pairs_and_are_calibrated(noise: float):
    view, wrong = make_view(3000, noise, seed=8)
    found = scored(view, learn=True, neighbors=10)
    assert set(found.columns) == {
        "crossfit",
        "text_margin",
        "image_margin",
        "image_neighbors",
        "text_neighbors",
        "pair",
    }
    assert all(values.dtype == np.float32 and values.shape == (3000,) for values in found.columns.values())
    assert auroc(found.columns["pair"], wrong) > 0.97
    assert found.fit.noise_rate == pytest.approx(wrong.mean(), abs=0.04)
    assert calibration(found.fit(found.columns["pair"]).astype(np.float64), wrong).ece < 0.04
    assert min(found.facts["weights"].values()) >= 0


def test_trained_heads_join_and_never_see_their_own_fold(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "FEWEST", 60)
    view, wrong = make_view(300, 0.3, seed=8)
    asked: list[np.ndarray] = []

    def heads_of(view: PairEmbeddings, fold: np.ndarray):
        asked.append(fold)
        return trained_heads(view, fold)

    found = score_pairs(view, None, Score(neighbors=10, folds=2, align="trained"), learn=True, heads_of=heads_of)
    assert {"trained_text_margin", "trained_image_margin"} <= set(found.columns)
    assert auroc(found.columns["trained_text_margin"], wrong) > 0.75
    assert set(found.facts["weights"]) > {"trained_text_margin", "trained_image_margin"}
    image, text = trained_heads(view, asked[0])
    held = asked[0] == 0
    text_feature = np.concatenate(view.text)
    text_feature[held] = text_feature[held][::-1]  # the pairing of this fold is torn, each side stays as it was
    again = trained_heads(replace(view, text=[text_feature], text_id=np.arange(300)), asked[0])
    np.testing.assert_allclose(again[0][held], image[held], atol=1e-3)
    np.testing.assert_allclose(again[1][held], text[held][::-1], atol=1e-3)
    assert np.abs(again[0][~held] - image[~held]).max() > 0.01
    with pytest.raises(UsageError, match="`margin` is false"):
        Score(align="trained", margin=False)


def test_random_pairs_look_like_wrong_ones():
    """The premise of the calibration, on small sets, where it is easily broken: 0.5 if nothing tells them apart."""
    found = []
    for seed in range(6):
        view, wrong = make_view(400, 0.3, seed=seed)
        pair = scored(view, learn=True, neighbors=10).pair
        both = np.concatenate([pair.given[wrong], pair.null])
        found.append(auroc(both, np.arange(len(both)) >= wrong.sum()))
    assert np.mean(found) == pytest.approx(0.5, abs=0.03)


def test_without_learning_the_joint_space_is_calibrated():
    rng = np.random.default_rng(9)
    view, wrong = make_view(3000, 0.4, seed=9)
    both = rng.normal(size=(3000, 16))
    rows = np.where(wrong, rng.permutation(3000), np.arange(3000))
    view = replace(
        view, image=[both.astype(np.float16)], text=[(both[rows] + rng.normal(size=both.shape)).astype(np.float16)]
    )
    found = scored(view, learn=False, joint=True)
    assert found.facts["calibrated"] == "similarity" and "crossfit" not in found.columns
    assert (found.columns["pair"] == found.columns["similarity"]).all()
    assert found.fit.noise_rate == pytest.approx((rows != np.arange(3000)).mean(), abs=0.05)
    other = scored(view, learn=False, joint=True, neighbors=0, margin=False)
    assert set(other.columns) == {"similarity", "pair"}


@pytest.mark.parametrize("kind", ["gaussian", "beta"])
def test_other_calibrations_are_used(kind: str):
    view, wrong = make_view(1200, 0.4, seed=10)
    found = scored(view, learn=True, calibration=kind, neighbors=0)
    assert found.fit.kind == kind and found.fit.noise_rate == pytest.approx(wrong.mean(), abs=0.15)
    assert auroc(found.fit(found.columns["pair"]), wrong) > 0.95


def test_near_misses_never_calibrate():
    """Few pairs, so that heads are not learned though they were asked for: only random pairs are the null."""
    view, _ = make_view(90, 0.2, seed=11)
    found = scored(view, learn=True, joint=True)
    assert "heads were not learned" in found.facts["note"]
    fold = np.zeros(90, int)
    assert len(found.pair.null) == len(shuffled_pairs(view, fold).image)
    assert len(scored(make_view(150)[0], learn=True).pair.null) <= 4 * 150


@pytest.mark.parametrize(
    "case",
    ["nothing", "one pair", "two pairs", "no image", "no text", "one text", "one image", "many holes", "constant"],
)
@pytest.mark.parametrize("learn", [True, False])
def test_hard_sets_are_scored_without_an_exception(case: str, learn: bool):
    n = {"nothing": 0, "one pair": 1, "two pairs": 2}.get(case, 150)
    view, _ = make_view(max(n, 3))
    image, text = (np.concatenate(side)[:n] for side in (view.image, view.text))
    if case == "no image":
        image = np.zeros_like(image)
    if case == "no text":
        text = np.zeros_like(text)
    if case == "many holes":
        image[::2], text[::3] = 0, 0
    if case == "constant":
        image[:], text[:] = 1, 1
    same = np.zeros(n, int)
    view = PairEmbeddings(
        image=[image], text=[text], seed=0, present=np.any(image != 0, 1) & np.any(text != 0, 1),
        text_id=same if case == "one text" else np.arange(n), image_id=same if case == "one image" else np.arange(n),
    )  # fmt: skip
    for joint in (True, False):
        found = scored(view, learn=learn, joint=joint)
        assert found.columns["pair"].shape == (n,) and not np.isfinite(found.columns["pair"][~view.present]).any()
        p = found.fit(found.columns["pair"])
        assert ((p >= 0) & (p <= 1) | np.isnan(p)).all()
        if case not in ("many holes",):
            assert found.fit.kind == "constant" or found.fit.separation >= 0.55
        if case in ("nothing", "one pair", "no image", "no text", "one text", "one image"):
            assert found.fit.kind == "constant" and found.fit.warning


def test_order_of_rows_does_not_matter_where_nothing_is_drawn():
    """Signals without folds or samples are functions of the set, not of its order."""
    view, _ = make_view(200)
    order = np.random.default_rng(0).permutation(200)
    image, text = (np.concatenate(side)[order] for side in (view.image, view.text))
    turned = replace(view, image=[image], text=[text], text_id=view.text_id[order], image_id=view.image_id[order])
    one, two = (scored(v, learn=False, joint=True) for v in (view, turned))
    for name in ("similarity", "text_margin", "image_margin", "image_neighbors", "text_neighbors"):
        np.testing.assert_allclose(two.columns[name], one.columns[name][order], atol=5e-3)


def test_same_choice_same_scores():
    view, _ = make_view(300)
    one, two, other = (
        scored(view, learn=True),
        scored(view, learn=True),
        scored(replace(view, seed=1), learn=True, seed=1),
    )
    for name, values in one.columns.items():
        assert np.array_equal(values, two.columns[name], equal_nan=True)
    assert not np.array_equal(one.columns["pair"], other.columns["pair"])


@pytest.mark.parametrize(
    ("choice", "flag"),
    [({"align": "none "}, "`align`"), ({"calibration": "gmm"}, "`calibration`"), ({"folds": 1}, "`folds`"),
     ({"neighbors": -1}, "`neighbors`"), ({"target_recall": 0.2}, "`target_recall`")],
)  # fmt: skip
def test_what_is_out_of_range_is_refused(choice: dict, flag: str):
    with pytest.raises(UsageError, match=flag):
        Score(**choice)
