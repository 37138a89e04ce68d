"""Cross-fitted heads: folds, moments and heads against loops and an eigenproblem, leaks, hard cases."""

from __future__ import annotations

from dataclasses import fields, replace

import numpy as np
import pytest
from hypothesis import given as drawn
from hypothesis import settings
from hypothesis import strategies as st
from reference import crossfit_reference as slow
from scipy.stats import mannwhitneyu

from noisycorr.clean.signals import crossfit
from noisycorr.clean.signals.crossfit import choose_reg, cross_fit, deal_folds, fold_moments, reduce_width, solve_heads
from noisycorr.clean.signals.view import PairEmbeddings, ShuffledPairs, own_cosine, pair_cosine, shuffled_pairs
from noisycorr.data.pairs import is_truth
from noisycorr.stats.mixture import fit_null


def make_view(
    n: int = 600, noise: float = 0.3, *, seed: int = 0, latent: int = 6, strength: float = 1.0
) -> tuple[PairEmbeddings, np.ndarray]:
    """Pairs with something in common, of which a share has another row's text; and which those are."""
    rng = np.random.default_rng(seed)
    z = rng.normal(size=(n, latent)) * strength
    wrong = rng.random(n) < noise
    rows = np.arange(n)
    rows[wrong] = rng.permutation(rows[wrong])
    image = (z @ rng.normal(size=(latent, 24)) + rng.normal(size=(n, 24)) + 1).astype(np.float16)
    text = (z @ rng.normal(size=(latent, 16)) + rng.normal(size=(n, 16)) - 2)[rows].astype(np.float16)
    half = n // 3
    view = PairEmbeddings(
        image=[image[:half], image[half:]], text=[text[:half], text[half:]], text_id=rows, image_id=np.arange(n),
        present=np.ones(n, bool), seed=seed,
    )  # fmt: skip
    return view, rows != np.arange(n)


def test_a_view_has_no_place_for_truth():
    """Law 4: what scorers are given holds features and identities, nothing of the columns that came in."""
    assert [field.name for field in fields(PairEmbeddings)] == [
        "image", "text", "text_id", "image_id", "present", "seed", "picture",
    ]  # fmt: skip
    assert not any(is_truth(field.name) for field in fields(PairEmbeddings))
    with pytest.raises(TypeError):
        PairEmbeddings(**{field.name: None for field in fields(PairEmbeddings)}, truth_wrong=None)  # type: ignore[call-arg, arg-type]


@settings(max_examples=100, deadline=None)
@drawn(st.lists(st.integers(0, 30), min_size=1, max_size=80), st.integers(2, 20), st.integers(0, 5))
def test_groups_never_split_over_folds(groups, folds, seed):
    fold = deal_folds(np.array(groups), folds, seed)
    assert len(fold) == len(groups) and fold.min() >= 0 and fold.max() < folds
    for name in set(groups):
        assert len({int(f) for f, g in zip(fold, groups) if g == name}) == 1
    assert (fold == deal_folds(np.array(groups) * 7 + 3, folds, seed)).all()  # names do not matter
    sizes = np.bincount(fold, minlength=folds)
    largest = max(groups.count(name) for name in groups)
    assert sizes.max() - sizes.min() <= largest


@settings(max_examples=60, deadline=None)
@drawn(st.integers(0, 200), st.integers(2, 20), st.lists(st.integers(2, 6), max_size=5))
def test_single_rows_level_the_folds(single, folds, large):
    groups = [*range(single), *[1000 + i for i, size in enumerate(large) for _ in range(size)]]
    if not groups:
        return
    sizes = np.bincount(deal_folds(np.array(groups), folds, 0), minlength=folds)
    before = (
        np.sort(np.bincount(deal_folds(np.array(groups[single:]), folds, 0), minlength=folds))
        if large
        else np.zeros(folds)
    )
    if single >= (before.max() - before).sum():
        assert sizes.max() - sizes.min() <= 1


def test_folds_differ_with_the_seed_only():
    groups = np.arange(500) // 2
    assert (deal_folds(groups, 5, 1) == deal_folds(groups, 5, 1)).all()
    assert (deal_folds(groups, 5, 1) != deal_folds(groups, 5, 2)).any()


@pytest.mark.parametrize("width", [5, 24, 100])
def test_reduced_width_equals_principal_components(width: int):
    view, _ = make_view(300)
    out = reduce_width(view.image, width)
    want = slow.principal(np.concatenate(view.image).astype(np.float64), width)
    assert out.shape == want.shape and out.dtype == np.float32
    np.testing.assert_allclose(out @ out.T, want @ want.T, atol=2e-3 * np.abs(want @ want.T).max())  # signs are free
    np.testing.assert_allclose((out.astype(np.float64) ** 2).sum(1).mean(), 1, rtol=1e-3)


def test_reduced_width_leaves_missing_rows_out():
    view, _ = make_view(300)
    whole = np.concatenate(view.image)
    holes = np.concatenate([whole[:100], np.zeros((7, 24), np.float16), whole[100:]])
    out = reduce_width([holes[:50], holes[50:]], 10)
    assert (out[100:107] == 0).all()
    np.testing.assert_allclose(np.delete(out, range(100, 107), 0), reduce_width([whole], 10), atol=1e-5)


def test_moments_equal_loops_and_add_up():
    rng = np.random.default_rng(0)
    x, t = rng.normal(size=(60, 4)).astype(np.float32), rng.normal(size=(60, 3)).astype(np.float32)
    weight = np.where(rng.random(60) < 0.3, 0, rng.random(60)).astype(np.float32)
    fold = rng.integers(0, 3, 60)
    sums = fold_moments(x, t, weight, fold)
    for part, own in enumerate(sums):
        want = slow.moments(x.tolist(), t.tolist(), weight.tolist(), fold.tolist(), part)
        for name in ("weight", "x", "t", "xx", "tt", "xt"):
            np.testing.assert_allclose(getattr(own, name), want[name], rtol=1e-5, atol=1e-5)
    whole = fold_moments(x, t, weight, np.zeros(60, int))[0]
    rest = whole.minus(sums[1])
    other = fold_moments(x, t, np.where(fold == 1, 0, weight), np.zeros(60, int))[0]
    np.testing.assert_allclose(rest.xt, other.xt, atol=1e-5)
    assert rest.weight == pytest.approx(other.weight, rel=1e-6)


@pytest.mark.parametrize("reg", [0.01, 1.0, 30.0])
@pytest.mark.parametrize("shape", [(6, 6), (9, 4), (3, 8)])
def test_heads_solve_the_eigenproblem(reg: float, shape: tuple[int, int]):
    rng = np.random.default_rng(1)
    z = rng.normal(size=(400, 3))
    x = (z @ rng.normal(size=(3, shape[0])) + rng.normal(size=(400, shape[0]))).astype(np.float32)
    t = (z @ rng.normal(size=(3, shape[1])) + rng.normal(size=(400, shape[1])) + 5).astype(np.float32)
    weight = rng.random(400).astype(np.float32)
    heads = solve_heads(fold_moments(x, t, weight, np.zeros(400, int))[0], reg)
    want = slow.similarity_kernel(
        x.astype(np.float64), t.astype(np.float64), weight.astype(np.float64), reg, crossfit.POWER
    )
    np.testing.assert_allclose(heads.image @ heads.text.T, want, atol=2e-4 * np.abs(want).max())
    np.testing.assert_allclose(heads.image_mean, np.average(x, axis=0, weights=weight), atol=1e-5)
    np.testing.assert_allclose(heads.text_mean, np.average(t, axis=0, weights=weight), atol=1e-5)


def test_weights_mean_repeats():
    """A pair of weight 2 counts like two pairs of weight 1, a pair of weight 0 not at all."""
    rng = np.random.default_rng(2)
    x, t = rng.normal(size=(50, 4)).astype(np.float32), rng.normal(size=(50, 4)).astype(np.float32)
    times = rng.integers(0, 3, 50)
    one = solve_heads(fold_moments(x, t, times.astype(np.float32), np.zeros(50, int))[0], 1.0)
    again = np.repeat(np.arange(50), times)
    two = solve_heads(
        fold_moments(x[again], t[again], np.ones(len(again), np.float32), np.zeros(len(again), int))[0], 1.0
    )
    np.testing.assert_allclose(one.image @ one.text.T, two.image @ two.text.T, atol=1e-4)


def test_the_chosen_shrinkage_is_the_one_that_separates_best():
    view, _ = make_view(300, 0.2, strength=0.4)
    fold = deal_folds(view.image_id, 4, 0)
    x, t = reduce_width(view.image, 24), reduce_width(view.text, 24)
    null = shuffled_pairs(view, fold, count=500)
    weight = np.ones(300, np.float32)
    found = {}
    for reg in crossfit.REGS:
        given_scores, wrong = np.zeros(300), np.zeros(len(null.image))
        for part in range(4):
            sums = fold_moments(x, t, np.where(fold == part, 0, weight), np.zeros(300, int))[0]
            heads = solve_heads(sums, reg)
            a, b = (x - heads.image_mean) @ heads.image, (t - heads.text_mean) @ heads.text
            cosine = (a / np.linalg.norm(a, axis=1, keepdims=True)) @ (b / np.linalg.norm(b, axis=1, keepdims=True)).T
            given_scores[fold == part] = np.diag(cosine)[fold == part]
            mine = fold[null.image] == part
            wrong[mine] = cosine[null.image[mine], null.text[mine]]
        found[reg] = slow.auroc(given_scores, wrong)
    reg, separation = choose_reg(x, t, weight, fold, null, view)
    assert found[reg] == pytest.approx(max(found.values()), abs=2e-4)
    assert separation == pytest.approx(found[reg], abs=1e-4)


def test_a_fold_never_teaches_its_own_heads(monkeypatch: pytest.MonkeyPatch):
    """Scramble the pairing inside one fold: its own projections must not move, those of the other folds must."""
    monkeypatch.setattr(crossfit, "REGS", (3.0,))
    view, _ = make_view(500)
    before = cross_fit(view, rounds=1)
    mine = np.flatnonzero(before.fold == 2)
    order = np.arange(view.n)
    order[mine] = np.roll(mine, 1)
    text = np.concatenate(view.text)[order]
    after = cross_fit(replace(view, text=[text], text_id=view.text_id[order]), rounds=1)
    assert (before.fold == after.fold).all()
    np.testing.assert_allclose(after.image[mine].astype(np.float32), before.image[mine].astype(np.float32), atol=2e-3)
    np.testing.assert_allclose(
        after.text[mine].astype(np.float32), before.text[order][mine].astype(np.float32), atol=2e-3
    )
    others = before.fold != 2
    moved = np.abs(after.image[others].astype(np.float32) - before.image[others].astype(np.float32)).max()
    assert moved > 0.02


@pytest.mark.parametrize("rounds", [1, 2])
def test_pure_noise_is_not_learned(rounds: int):
    """If nothing belongs together, held-out scores of given pairs are those of random ones."""
    view, _ = make_view(3000, 1.0, seed=3)
    heads = cross_fit(view, rounds=rounds, weigh=lambda given, null: fit_null(given, null, seed=0, rounds=2)(given))
    null = pair_cosine([heads.image], [heads.text], shuffled_pairs(view, heads.fold))
    score = own_cosine([heads.image], [heads.text])
    assert mannwhitneyu(score, null).statistic / len(score) / len(null) == pytest.approx(0.5, abs=0.03)
    assert fit_null(score, null, seed=0).kind == "constant"


def test_held_out_scores_tell_right_from_wrong_and_weights_help():
    view, wrong = make_view(900, 0.5, seed=4)
    truth = (~wrong).astype(np.float32)
    found = []
    for weigh in (None, lambda given, null: truth):
        heads = cross_fit(view, weigh=weigh)
        score = own_cosine([heads.image], [heads.text])
        found.append(slow.auroc(score[~wrong], score[wrong]))
        lengths = np.linalg.norm(heads.image.astype(np.float32), axis=1)
        assert heads.image.dtype == np.float16 and np.allclose(lengths, 1, atol=5e-3)
    assert found[0] > 0.9 and found[1] > found[0]


def test_scores_given_to_the_weights_are_held_out_and_finite_where_present():
    view, _ = make_view(400)
    present = np.ones(400, bool)
    present[::10] = False
    seen: list[tuple[np.ndarray, np.ndarray]] = []

    def weigh(given: np.ndarray, null: np.ndarray) -> np.ndarray:
        seen.append((given, null))
        return np.where(np.isfinite(given), 1.0, np.nan)

    text = np.concatenate(view.text)
    text[~present] = 0
    heads = cross_fit(replace(view, text=[text], present=present), weigh=weigh)
    assert len(seen) == 1 and (np.isfinite(seen[0][0]) == present).all() and np.isfinite(seen[0][1]).all()
    assert (heads.text[~present] == 0).all() and (heads.image[~present] != 0).any()


@pytest.mark.parametrize("rounds", [1, 2])
def test_absent_rows_are_never_learned_from(rounds: int):
    view, _ = make_view(300)
    absent = np.zeros(300, bool)
    absent[200:] = True
    image = np.concatenate(view.image)
    odd = image.copy()
    odd[absent] = 0

    def learned(text: np.ndarray):
        one = replace(view, image=[odd], text=[text], present=~absent)
        return cross_fit(one, rounds=rounds, weigh=lambda given, null: np.full(300, 0.03))

    text = np.concatenate(view.text)
    heads = learned(text)
    order = np.arange(300)
    order[absent] = np.roll(order[absent], 1)
    again = learned(text[order])
    np.testing.assert_allclose(again.image.astype(np.float32), heads.image.astype(np.float32), atol=2e-3)


@pytest.mark.parametrize("case", ["one group", "two groups", "one text", "constant images", "constant both"])
def test_degenerate_sets_are_survived(case: str):
    view, _ = make_view(120)
    n, flat = view.n, [np.full((view.n, 24), 0.5, np.float16)]
    changed = {
        "one group": {"image_id": np.zeros(n, int)},
        "two groups": {"image_id": np.arange(n) % 2},
        "one text": {"text_id": np.zeros(n, int), "text": [np.repeat(np.concatenate(view.text)[:1], n, 0)]},
        "constant images": {"image": flat},
        "constant both": {"image": flat, "text": flat},
    }[case]
    heads = cross_fit(replace(view, **changed), weigh=lambda given, null: np.ones(n))
    assert np.isfinite(heads.image).all() and np.isfinite(heads.text).all()
    assert heads.image.shape == (n, heads.text.shape[1])
    if case in ("one group", "one text"):
        assert np.isnan(heads.separation)


def test_too_few_pairs_are_refused():
    view, _ = make_view(30)
    with pytest.raises(ValueError, match="folds"):
        cross_fit(replace(view, present=np.arange(30) < 19), folds=5)


def test_same_seed_same_heads_and_parts_do_not_matter():
    view, _ = make_view(400)
    one, two = cross_fit(view), cross_fit(view)
    assert (one.image == two.image).all() and (one.text == two.text).all() and one.reg == two.reg
    joined = cross_fit(replace(view, image=[np.concatenate(view.image)], text=[np.concatenate(view.text)]))
    np.testing.assert_allclose(joined.image.astype(np.float32), one.image.astype(np.float32), atol=3e-3)


def claimed(view: PairEmbeddings) -> set[tuple[int, int]]:
    return set(zip(view.image_id.tolist(), view.text_id.tolist()))


@settings(max_examples=60, deadline=None)
@drawn(
    st.lists(
        st.tuples(st.integers(0, 6), st.integers(-1, 6), st.integers(0, 2), st.booleans()), min_size=0, max_size=40
    ),
    st.integers(1, 300),
)
def test_repaired_pairs_are_claimed_by_nobody(rows, count):
    image_id, text_id, fold = (np.array([row[i] for row in rows], np.int64) for i in range(3))
    present = np.array([row[3] for row in rows], bool)
    features = [np.ones((len(rows), 2), np.float16)]
    view = PairEmbeddings(image=features, text=features, text_id=text_id, image_id=image_id, present=present, seed=1)
    pairs = shuffled_pairs(view, fold, count=count)
    assert isinstance(pairs, ShuffledPairs) and len(pairs.image) == len(pairs.text) == len(pairs.near)
    assert not pairs.near.any() and len(pairs.image) <= 4 * len(rows)
    for image, text in zip(pairs.image.tolist(), pairs.text.tolist()):
        assert present[image] and present[text] and fold[image] == fold[text]
        assert (image_id[image], text_id[text]) not in claimed(view)


def test_about_as_many_are_repaired_as_asked_and_folds_share_them_fairly():
    view, _ = make_view(1000)
    fold = np.arange(1000) % 4
    pairs = shuffled_pairs(view, fold, count=2000)
    assert 1900 <= len(pairs.image) <= 2000
    assert np.bincount(fold[pairs.image]).tolist() == pytest.approx([500] * 4, abs=15)
    assert 3900 <= len(shuffled_pairs(view, fold).image) <= 4000  # never more than four a row
