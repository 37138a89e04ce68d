"""Recaption on arrays: donors, scorers, guards and rule against slow loops; what they promise; odd inputs."""

from __future__ import annotations

import dataclasses
import math
import tracemalloc
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from recaption_run import concept_pairs
from reference import caption_reference as slow

from noisycorr.caption.recaption import propose
from noisycorr.caption.recaption.choice import Recaption
from noisycorr.caption.recaption.guards import (
    WordRates,
    content_words,
    disturb,
    lowest_pmi,
    noun_overlap,
    steadiness,
    word_rates,
)
from noisycorr.caption.recaption.judge import (
    Asked,
    call_jury,
    conservative,
    fold_scorer,
    joint_scorer,
    judge_new,
    judging_folds,
)
from noisycorr.caption.recaption.propose import (
    Donors,
    agreeing_donor,
    class_donor,
    find_donors,
    nearest_donor,
    trusted_rows,
)
from noisycorr.caption.recaption.repair import repair
from noisycorr.caption.recaption.rule import act, fired, merge_texts
from noisycorr.clean.signals.view import PairEmbeddings, take
from noisycorr.runtime.errors import UsageError

RNG = np.random.default_rng(0)
numbers = st.one_of(st.floats(-5, 5), st.just(math.nan))


@pytest.mark.parametrize("same_image", [False, True])
def test_donors_equal_a_slow_search(same_image: bool) -> None:
    image = RNG.normal(size=(40, 6)).astype(np.float32)
    image[7] = image[3]
    group = np.arange(40)
    group[7] = 3
    trust = np.where(np.arange(40) % 3 > 0, 0.9, 0.0)
    rows = np.array([3, 0, 9])
    found = find_donors([image[:11], image[11:]], rows, trust, group, k=5, same_image=same_image, seed=0)
    assert found.ids.tolist() == slow.donors(image, rows.tolist(), trust, group, 5, same_image)
    assert (7 in found.ids[0]) is same_image
    assert (np.diff(found.weight) <= 1e-6).all() and nearest_donor(found).tolist() == found.ids[:, 0].tolist()


def test_few_donors_and_none() -> None:
    image = np.eye(4, dtype=np.float32) + 0.1
    found = find_donors([image], np.array([0]), np.array([0, 0.8, 0, 0]), np.arange(4), k=3, same_image=False, seed=0)
    assert found.ids.tolist() == [[1, -1, -1]] and found.weight[0, 1:].tolist() == [0, 0]
    assert agreeing_donor(found, [image], np.zeros(4, np.float32)).tolist() == [1]
    none = Donors(np.full((2, 3), -1), np.zeros((2, 3), np.float32))
    assert agreeing_donor(none, [image], np.zeros(4, np.float32)).tolist() == [-1, -1]
    assert trusted_rows(np.array([0.9, np.nan, 0.5, 0.9]), np.array([True, True, True, False]), least=0.8).tolist() == [
        np.float32(0.9), 0, 0, 0
    ]  # fmt: skip


def test_the_agreeing_donor_equals_a_slow_loop() -> None:
    text, mean = RNG.normal(size=(30, 5)).astype(np.float32), RNG.normal(size=5).astype(np.float32)
    ids = np.stack([RNG.permutation(30)[:6] for _ in range(8)])
    weight = RNG.random((8, 6)).astype(np.float32)
    found = agreeing_donor(Donors(ids, weight), [text], mean)
    assert found.tolist() == [ids[i, slow.agreeing(weight[i], text[ids[i]], mean)] for i in range(8)]


def test_the_class_donor_takes_the_nearest_image_of_the_same_class() -> None:
    view, _, source, wrong = concept_pairs(240, 0.3)
    trust = np.where(wrong, 0, 1.0).astype(np.float32)
    rows, trusted = np.flatnonzero(wrong), np.flatnonzero(~wrong)
    own, theirs = (find_donors(view.image, r, trust, view.image_id, k=5, same_image=False, seed=0)
                   for r in (rows, trusted))  # fmt: skip
    found = class_donor(own, theirs, trusted, view.text, view.image, rows, view.image_id, classes=12, same_image=False,
                         threshold=0.5, seed=0)  # fmt: skip
    image = np.concatenate(view.image)
    assert (found >= 0).mean() > 0.9 and set(found[found >= 0]) <= set(trusted.tolist())
    near, far = (np.linalg.norm(image[rows] - image[other], axis=1).mean() for other in (found, source[rows]))
    assert near < 0.5 * far
    never = class_donor(own, theirs, trusted, view.text, view.image, rows, view.image_id, classes=12,
                         same_image=False, threshold=1.1, seed=0)  # fmt: skip
    assert (never == -1).all()


def test_the_class_donor_holds_a_few_of_many_trusted_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    rng, m, t = np.random.default_rng(4), 300, 40_000
    n = m + t
    rows, trusted = np.arange(m), np.arange(m, n)
    kind = rng.integers(4, size=n)
    text = (4 * np.eye(4)[kind] + rng.normal(size=(n, 4))).astype(np.float32)
    image, group = rng.normal(size=(n, 4)).astype(np.float32), np.arange(n)
    group[:50] = np.arange(m, m + 50)
    own, theirs = (Donors(m + rng.integers(t, size=(k, 3)), rng.random((k, 3)).astype(np.float32)) for k in (m, t))

    def found() -> np.ndarray:
        return class_donor(own, theirs, trusted, [text], [image], rows, group, classes=4, same_image=False,
                            threshold=0.5, seed=0)  # fmt: skip

    tracemalloc.start()
    blocks = found()
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert most < 150e6, f"{most / 1e6:.0f} MB"
    for size in (n, 1000):
        monkeypatch.setattr(propose, "TRUSTED", size)
        np.testing.assert_array_equal(found(), blocks)
    assert (blocks >= m).all() and (group[blocks] != group[:m]).all()


@pytest.mark.parametrize("count", [1, 2, 3])
def test_a_class_donor_of_few(count: int) -> None:
    view, texts, _, wrong = concept_pairs(120, 0.3)
    trust = np.zeros(120, np.float32)
    trust[np.flatnonzero(~wrong)[:count]] = 1
    found = repair(view, texts, np.flatnonzero(wrong), trust, np.where(wrong, 0.1, 0.9), Recaption(propose="class"))
    assert set(found.donor.tolist()) <= {-1, *np.flatnonzero(trust).tolist()}


@pytest.mark.parametrize("k", [1, 5])
def test_copies_of_a_picture_leave_room_for_others(k: int) -> None:
    rng = np.random.default_rng(0)
    image = rng.normal(size=(140, 6)).astype(np.float32)
    image[1:100] = image[0] + 1e-4 * rng.normal(size=(99, 6))  # more than are looked at beyond k
    image[101] = image[0] + 0.01
    group = np.arange(140)
    group[:100] = 0
    trust = np.where(np.arange(140) > 0, 0.9, 0.0)
    rows = np.array([0, 0, 120])
    trust[rows] = 0
    found = find_donors([image], rows, trust, group, k=k, same_image=False, seed=0)
    assert found.ids.tolist() == slow.donors(image, rows.tolist(), trust, group, k, False)
    assert nearest_donor(found)[0] == 101
    trust[100:] = 0
    none = find_donors([image], rows[:2], trust, group, k=k, same_image=False, seed=0)
    assert (none.ids == -1).all() and (none.weight == 0).all()


@settings(max_examples=80, deadline=None)
@given(st.lists(st.lists(numbers, min_size=3, max_size=3), min_size=1, max_size=6), st.floats(0, 3))
def test_conservative_scores_equal_a_slow_loop(rows: list[list[float]], penalty: float) -> None:
    scores = np.array(rows)
    found = {name: conservative(scores, aggregate=name, penalty=penalty) for name in ("worst", "uncertainty", "mean")}
    for place, row in enumerate(rows):
        known = [value for value in row if not math.isnan(value)]
        if not known:
            assert all(np.isnan(values[place]) for values in found.values())
            continue
        mean = sum(known) / len(known)
        variance = sum((value - mean) ** 2 for value in known) / len(known)
        for name, value in (("worst", min(known)), ("mean", mean), ("uncertainty", mean - penalty * variance)):
            assert found[name][place] == pytest.approx(value, abs=1e-9)
    with pytest.raises(ValueError, match="best"):
        conservative(scores, aggregate="best")  # type: ignore[arg-type]


def asked_of(view: PairEmbeddings, rows: np.ndarray, texts: np.ndarray, fold: np.ndarray) -> Asked:
    return Asked(rows, take(view.text, texts), view.text_id[texts], fold[texts])


def test_heads_that_judge_saw_neither_the_image_nor_the_text() -> None:
    view, _, _, _ = concept_pairs(240, 0.2)
    fold = judging_folds(view, 4)
    one, two = np.flatnonzero(fold == 0), np.flatnonzero(fold == 1)
    rows, texts = one[:8], two[:8]
    before = fold_scorer(view, np.ones(240), fold)(asked_of(view, rows, texts, fold))

    def swapped(inside: tuple[int, ...]) -> PairEmbeddings:
        """The same view, but some folds teach pairs that nobody gave: their images are permuted among each other."""
        image = np.concatenate(view.image)
        some = np.flatnonzero(np.isin(fold, inside) & ~np.isin(np.arange(240), rows))
        image[some] = image[np.roll(some, 1)]
        return dataclasses.replace(view, image=[image])

    unseen = fold_scorer(swapped((0, 1)), np.ones(240), fold)(asked_of(view, rows, texts, fold))
    seen = fold_scorer(swapped((2, 3)), np.ones(240), fold)(asked_of(view, rows, texts, fold))
    assert np.abs(unseen - before).max() < 0.15 * np.abs(seen - before).max()


def test_the_jury_tells_right_from_wrong_texts_and_leaves_blind_scorers_out() -> None:
    view, _, _, wrong = concept_pairs(360, 0.3)
    fold = judging_folds(view, 5)

    def blind(asked: Asked) -> np.ndarray:
        return np.sin(asked.row * 7919.0 + asked.text_id * 104729.0).astype(np.float32)

    jury = call_jury(view, {"heads": fold_scorer(view, np.ones(360), fold), "blind": blind}, fold)
    assert list(jury.scorers) == ["heads"] and jury.facts["separation"]["blind"] < 0.6
    rows = np.arange(360)
    p = jury(asked_of(view, rows, rows, fold))
    assert p[~wrong].mean() - p[wrong].mean() > 0.4 and ((p >= 0) & (p <= 1)).all()
    none = call_jury(view, {"blind": blind}, fold)
    assert not none.scorers and "no scorer" in (none.fit.warning or "")
    missing = Asked(rows[:2], np.zeros((2, 16), np.float32), np.array([-2, -2]), fold[:2])
    assert np.isnan(jury(missing)).all()


def test_new_texts_are_judged_by_how_many_of_them_fit() -> None:
    view, _, _, wrong = concept_pairs(600, 0.3)
    fold = judging_folds(view, 5)
    jury = call_jury(view, {"heads": fold_scorer(view, (~wrong).astype(np.float32), fold)}, fold)
    right, rng = np.flatnonzero(~wrong), np.random.default_rng(5)
    for share in (0.1, 0.7):
        bad = rng.random(len(right)) < share
        asked = asked_of(view, right, np.where(bad, np.roll(right, 50), right), fold)
        p_new, own = judge_new(jury, asked, 0)
        alone = jury(asked)
        assert own.noise_rate == pytest.approx(share, abs=0.12)
        assert (p_new <= alone).all() and p_new.tolist() == np.minimum(alone, own(jury.combined(asked))).tolist()
        assert abs(p_new.mean() - (1 - share)) < abs(alone.mean() - (1 - share)) + 0.02
    few = Asked(asked.row[:10], asked.text[:10], asked.text_id[:10], asked.fold[:10])
    p_new, own = judge_new(jury, few, 0)
    assert p_new.tolist() == jury(few).tolist() and own.kind == "constant"
    assert len(right) > 300
    p_new, own = judge_new(jury, asked_of(view, right, rng.permutation(right), fold), 0)
    assert not p_new.any() and own.noise_rate == 1, "none of them fits"


def test_the_joint_space_is_a_scorer() -> None:
    view, _, _, wrong = concept_pairs(200, 0.3)
    image = [np.eye(200, dtype=np.float32)[np.arange(200)]]
    texts = [np.where(wrong[:, None], np.roll(image[0], 1, 0), image[0])]
    scorer = joint_scorer(view, image, lambda text: text, texts)
    rows = np.arange(200)
    value = scorer(Asked(rows, texts[0], view.text_id, rows * 0))
    assert value[~wrong].min() > value[wrong].max()


def test_guards_equal_slow_loops() -> None:
    texts = ["a red dog runs", "the blue dog", "red cup and saucer", "a green cup", "dog"]
    rates = word_rates(texts)
    near = ["a red dog", "red dogs and a dog"]
    held = [set(content_words(text)) for text in texts]
    for text in ("a red dog flies", "cup", "red red dog"):
        assert lowest_pmi(text, near, rates) == pytest.approx(
            slow.lowest_pmi(content_words(text), [set(content_words(t)) for t in near], held)
        )
    assert noun_overlap("a red dog flies", near) == pytest.approx(2 / 3)
    assert lowest_pmi("dog", near, rates) > 0 > lowest_pmi("cup", near, rates)
    for text, others in (("the a 12", near), ("dog", [])):
        assert math.isnan(noun_overlap(text, others)) and math.isnan(lowest_pmi(text, others, rates))
    assert lowest_pmi("dog", near, WordRates(Counter(), 0)) < 0.1
    mean = np.array([1.0, 1, 1])
    own = np.array([[2.0, 1, 1], [1, 2, 1]])
    found = steadiness(own, [np.array([[2.0, 1, 1], [0, 0, 0]]), np.array([[1, 2.0, 1], [0, 0, 0]])], mean)
    assert found[0] == pytest.approx(0.5) and np.isnan(found[1])
    shaken = disturb(np.array([[3.0, 4, 0, 0]]), noise=0.2, seed=0, turn=1)
    assert np.linalg.norm(shaken - [[3, 4, 0, 0]]) == pytest.approx(1.0, rel=1e-4)
    assert not np.array_equal(shaken, disturb(np.array([[3.0, 4, 0, 0]]), noise=0.2, seed=0, turn=2))
    image = RNG.normal(size=(5, 4)).astype(np.float32)
    many = disturb(image, noise=0.2, seed=0, turn=1, names=[9, 3, 7, 1, 0])
    np.testing.assert_array_equal(disturb(image[2:4], noise=0.2, seed=0, turn=1, names=[7, 1]), many[2:4])
    np.testing.assert_allclose(np.linalg.norm(many - image, axis=1), 0.2 * np.linalg.norm(image, axis=1), rtol=1e-5)
    assert len(np.unique(np.round(many - image, 6), axis=0)) == 5
    assert disturb(image[:0], noise=0.2, seed=0, turn=1, names=[]).shape == (0, 4)


def test_the_rule_in_worked_cases() -> None:
    choice = Recaption(least=0.5, gain=0.3)
    cases = [(0.1, 0.9, None, "replace"), (0.1, 0.45, None, "keep"), (0.6, 0.85, None, "keep"),
             (0.2, 0.5, None, "replace"), (np.nan, 0.7, None, "replace"), (0.1, np.nan, None, "keep"),
             (0.1, 0.9, "unsteady", "flag"), (0.9, 0.9, "unsteady", "keep")]  # fmt: skip
    old, new, guard, action = (list(column) for column in zip(*cases))
    guards = np.array(guard, object)
    assert act(choice, np.array(old), np.array(new), guards).tolist() == action
    merged = act(Recaption(policy="merge", gain=0.3), np.array(old), np.array(new), guards).tolist()
    assert merged == ["merge" if a == "replace" else a for a in action]
    assert "replace" not in act(Recaption(policy="flag", gain=0.3), np.array(old), np.array(new), guards).tolist()
    guarded = Recaption(guard_overlap=0.5, guard_pmi=-1, guard_steady=0.2)
    nan = np.nan
    got = fired(guarded, np.array([0.4, 0.9, nan, 0.1]), np.array([0, -2, nan, -2]), np.array([0.3, 0.3, nan, 0.1]))
    assert got.tolist() == ["unsupported words", "unlikely words", None, "unsteady"]


def test_merged_texts_keep_what_neighbours_confirm() -> None:
    near = ["a red dog", "dog on green grass"]
    assert merge_texts("a dog", "the RED grass, number 7 of Rex", near) == "a dog, red grass"
    assert merge_texts("a dog", "blue boat", near) == "a dog" == merge_texts("a dog", None, near)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("propose", "magic", "nearest, agreement, class"), ("policy", "x", "replace, merge, flag"),
        ("aggregate", "max", "worst, uncertainty, mean"), ("below", 1.5, "0 to 1"), ("gain", -0.1, "0 to 1"),
        ("donors", 0, "1 to 200"), ("classes", 1, "at least 2"), ("penalty", -1.0, "0 or more"),
        ("guard_steady", 2.0, "cosine"),
    ],
)  # fmt: skip
def test_bad_choices_are_refused(field: str, value: object, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Recaption(**{field: value})  # type: ignore[arg-type]


@pytest.mark.parametrize("propose", ["nearest", "agreement", "class"])
def test_wrong_pairs_are_repaired_and_right_ones_are_not(propose: str) -> None:
    view, texts, source, wrong = concept_pairs()
    marked = wrong.copy()
    marked[np.flatnonzero(~wrong)[:40]] = True  # a cleaner that errs
    p_clean = np.where(marked, 0.1, 0.9)
    rows, trust = np.flatnonzero(marked), trusted_rows(p_clean, ~marked, least=0.8)
    found = repair(view, texts, rows, trust, p_clean, Recaption(propose=propose, classes=12))
    taken = found.action == "replace"
    bad = wrong[rows]
    truth = [texts[int(np.flatnonzero(source == row)[0])].split()[2] for row in rows]
    said = [text.split()[2] if text else "" for text in found.texts]
    right = np.array([a == b for a, b in zip(truth, said)])
    assert taken[bad].mean() > 0.6 and right[taken & bad].mean() >= 0.8
    assert (taken & ~bad).sum() <= 0.02 * (~wrong).sum()
    again = repair(view, texts, rows, trust, p_clean, Recaption(propose=propose, classes=12))
    assert again.action.tolist() == found.action.tolist() and again.p_new.tolist() == found.p_new.tolist()


def test_a_captioner_is_judged_like_anybody_else() -> None:
    view, texts, source, wrong = concept_pairs(300, 0.3)
    p_clean = np.where(wrong, 0.1, 0.9)
    rows, trust = np.flatnonzero(wrong), trusted_rows(p_clean, ~wrong, least=0.5)
    true = {row: texts[int(np.flatnonzero(source == row)[0])] for row in rows.tolist()}
    feature = {text: take(view.text, np.array([row]))[0] for row, text in enumerate(texts)}

    class Writer:
        name = "oracle"

        def __call__(self, some: np.ndarray) -> list[str]:
            half = len(some) // 2
            return [true[r] if i < half else " " if i == half else texts[0] for i, r in enumerate(some.tolist())]

        def disturbed(self, some: np.ndarray, turn: int) -> list[str]:
            return [true[r] for r in some.tolist()]

    def encode(new: list[str]) -> np.ndarray:
        return np.stack([feature[text] for text in new])

    found = repair(view, texts, rows, trust, p_clean, Recaption(), write=Writer(), encode=encode)
    half = len(rows) // 2
    assert found.source == "oracle" and (found.donor == -1).all() and found.action[half] == "none"
    assert np.isin(found.action[:half], ("replace", "flag")).mean() > 0.7
    assert (found.action[half + 1 :] == "replace").mean() < 0.2
    assert found.steady[0] == pytest.approx(1, abs=1e-5)
    with pytest.raises(UsageError, match="without a model"):
        repair(view, texts, rows, trust, p_clean, Recaption(policy="merge"))
    with pytest.raises(UsageError, match="lower `trust`"):
        repair(view, texts, rows, np.zeros(300), p_clean, Recaption())
    with pytest.raises(UsageError, match="wrote 1 texts"):
        repair(view, texts, rows, trust, p_clean, Recaption(), write=lambda some: ["x"], encode=encode)


def test_too_few_pairs_are_refused() -> None:
    view, texts, _, wrong = concept_pairs(60, 0.3)
    p_clean = np.where(wrong, 0.1, 0.9)
    with pytest.raises(UsageError, match="too few"):
        repair(view, texts, np.flatnonzero(wrong), trusted_rows(p_clean, ~wrong, least=0.5), p_clean, Recaption())
