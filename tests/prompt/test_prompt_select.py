"""Schedules, selectors and losses of prompt tuning against slow loops and the numbers of the specification."""

from __future__ import annotations

import collections

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import prompt_reference as slow
from scipy import special

from noisycorr.prompt import objective
from noisycorr.prompt.posterior import neighbor_clean
from noisycorr.prompt.select import (
    SELECTORS,
    candidate_sets,
    capacities,
    class_factors,
    exclusive_greedy,
    leaderboard,
    per_round,
    select,
)
from noisycorr.stats.transport import sinkhorn

SCHEDULES = [
    (800, 10, [8, 16, 24, 32, 40, 48, 56, 64, 72, 80]),
    (1836, 102, [1, 3, 5, 7, 8, 10, 12, 14, 16, 17]),
    (2040, 102, [2, 4, 6, 8, 10, 12, 14, 16, 18, 20]),
    (3666, 47, [7, 15, 23, 31, 38, 46, 54, 62, 70, 77]),
    (3760, 47, [8, 16, 24, 32, 40, 48, 56, 64, 72, 80]),
    (6210, 45, [13, 27, 41, 55, 69, 82, 96, 110, 124, 138]),
    (6467, 100, [6, 12, 19, 25, 32, 38, 45, 51, 58, 64]),
    (59980, 10, [599, 1199, 1799, 2399, 2999, 3598, 4198, 4798, 5398, 5998]),
]


def random_p(n: int, c: int, seed: int, *, ties: bool = False) -> np.ndarray:
    p = np.random.default_rng(seed).dirichlet(np.ones(c) * 0.5, n)
    return np.round(p, 1).astype(np.float32) if ties else p.astype(np.float32)


@pytest.mark.parametrize(("images", "classes", "expected"), SCHEDULES)
def test_grip_grows_as_released(images: int, classes: int, expected: list[int]):
    assert per_round("grip", images=images, classes=classes) == expected


def test_fpl_has_one_round_and_ifpl_the_same_number_in_each():
    assert per_round("fpl", images=99, classes=3, per_class=16) == [16]
    assert per_round("ifpl", images=99, classes=3, rounds=4, per_class=5) == [5] * 4
    assert per_round("grip", images=800, classes=10, max_fraction=0.5)[-1] == 40
    assert per_round("grip", images=5, classes=10) == [1] * 10 or max(per_round("grip", images=5, classes=10)) == 1
    with pytest.raises(ValueError, match="strategy"):
        per_round("other", images=5, classes=2)


def test_capacities_follow_a_prior_and_keep_the_total():
    assert capacities(3, 4).tolist() == [3, 3, 3, 3]
    places = capacities(10, 3, np.array([0.5, 0.3, 0.2]))
    assert places.sum() == 30 and places.tolist() == [15, 9, 6]
    assert capacities(1, 3, np.array([1.0, 1e-6, 0.0])).tolist() == [3, 1, 0]


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 40), st.integers(1, 6), st.integers(0, 99), st.booleans(), st.integers(0, 12))
def test_exclusive_equals_the_walk_over_all_pairs(n: int, c: int, seed: int, ties: bool, most: int):
    p = random_p(n, c, seed, ties=ties)
    capacity = np.random.default_rng(seed + 1).integers(0, most + 1, c)
    rows, label = exclusive_greedy(p, capacity)
    assert list(zip(rows.tolist(), label.tolist())) == slow.exclusive(p, capacity)
    assert len(np.unique(rows)) == len(rows) == min(n, capacity.sum())
    assert (np.bincount(label, minlength=c) <= capacity).all()


@pytest.mark.parametrize("k", [1, 3, 8])
@pytest.mark.parametrize("ties", [False, True])
def test_leaderboard_equals_the_slow_one(k: int, ties: bool):
    for seed in range(10):
        p = random_p(50, 5, seed, ties=ties)
        rows, label = leaderboard(p, np.full(5, k))
        assert [rows[label == c].tolist() for c in range(5)] == slow.leaderboard(p, k)


def test_leaderboard_may_give_an_image_two_labels_and_depends_on_the_order():
    p = np.array([[0.9, 0.1], [0.8, 0.2], [0.7, 0.3]], np.float32)
    rows, label = leaderboard(p, np.array([1, 1]))
    assert sorted(zip(rows.tolist(), label.tolist())) == [(0, 0), (2, 1)]
    turned = leaderboard(p[::-1], np.array([2, 2]))
    assert len(turned[0]) != len(leaderboard(p, np.array([2, 2]))[0]) or set(turned[0]) != set(rows)


@pytest.mark.parametrize("selector", SELECTORS)
def test_every_selector_ranks_and_says_the_model_s_own_probability(selector: str):
    p = random_p(60, 4, 3)
    found = select(selector, p, np.full(4, 5), threshold=0.5)
    assert len(found) and (found.probability == p[found.rows, found.label]).all()
    for k in range(4):
        mine = found.label == k
        assert sorted(found.rank[mine].tolist()) == list(range(1, mine.sum() + 1))
        order = np.argsort(found.rank[mine])
        assert (np.diff(found.probability[mine][order]) <= 0).all()
    if selector != "threshold":
        assert (np.bincount(found.label, minlength=4) <= 5).all()
    if selector == "argmax":
        assert (p[found.rows].argmax(1) == found.label).all()
    if selector == "threshold":
        assert (found.probability >= 0.5).all() and len(found) == (p.max(1) >= 0.5).sum()


def test_candidate_sets_are_those_of_the_slow_loop():
    p = random_p(30, 5, 1)
    found = candidate_sets(p, np.full(5, 30), alpha=0.6, beta=0.5)
    expected = slow.candidates(p, 0.6, 0.5)
    assert found.rows.tolist() == [row for row, inside in enumerate(expected) if inside]
    assert found.targets is not None
    for row, target in zip(found.rows, found.targets):
        assert set(np.flatnonzero(target).tolist()) == expected[row]
        assert target.sum() == pytest.approx(1, abs=1e-6)


def test_balanced_follows_the_prior_though_one_class_is_liked_best():
    rng = np.random.default_rng(0)
    logits = 4 * rng.normal(size=(300, 3)) + np.array([8.0, 0, 0])
    p = (np.exp(logits) / np.exp(logits).sum(1, keepdims=True)).astype(np.float32)
    assert np.bincount(p.argmax(1), minlength=3)[0] > 230
    found = select("balanced", p, np.full(3, 300), prior=np.array([0.5, 0.25, 0.25]))
    assert np.abs(np.bincount(found.label, minlength=3) / 300 - [0.5, 0.25, 0.25]).max() < 0.08


def test_losses_equal_their_equations_and_gradients():
    rng = torch.Generator().manual_seed(0)
    logits = torch.randn(6, 4, generator=rng, dtype=torch.float64, requires_grad=True)
    targets = torch.softmax(torch.randn(6, 4, generator=rng, dtype=torch.float64), 1)
    bank = 0.5 * torch.softmax(torch.randn(6, 4, generator=rng, dtype=torch.float64), 1)
    rows, t, b = logits.tolist(), targets.tolist(), bank.tolist()
    for q in (0.3, 0.7, 1.0):
        value = objective.generalised_cross_entropy(logits, targets, q=q)
        assert value.tolist() == pytest.approx([slow.gce(r, x, q) for r, x in zip(rows, t)], abs=1e-12)
    value = objective.early_learning(logits, targets, bank, strength=3.0)
    assert value.tolist() == pytest.approx([slow.elr(r, x, y, 3.0) for r, x, y in zip(rows, t, b)], abs=1e-12)
    assert torch.autograd.gradcheck(lambda x: objective.generalised_cross_entropy(x, targets), logits)
    assert torch.autograd.gradcheck(lambda x: objective.early_learning(x, targets, bank), logits)
    inside = (targets > 0.25).double()
    value = objective.set_likelihood(logits, inside)
    expected = -(torch.softmax(logits, 1) * inside).sum(1).log()
    assert torch.allclose(value, expected, atol=1e-12)


def test_elr_pulls_towards_what_the_bank_says():
    logits = torch.zeros(1, 3, dtype=torch.float64, requires_grad=True)
    bank = torch.tensor([[0.0, 0.0, 1.0]], dtype=torch.float64)
    term = objective.early_learning(logits, torch.zeros(1, 3, dtype=torch.float64), bank).sum()
    assert torch.autograd.grad(term, logits)[0][0, 2] < 0
    moved = objective.update_bank(bank, torch.zeros(1, 3))
    assert torch.allclose(moved, torch.tensor([[0.1, 0.1, 0.8]], dtype=torch.float64), atol=1e-6)


def test_weights_of_the_parts():
    weights = {name: objective.part_weights(name, labelled=10, pseudo=40, one_round=False, transductive=False)
               for name in ("pooled", "shipped", "ratio")}  # fmt: skip
    assert weights == {"pooled": None, "shipped": (0.25, 1.0), "ratio": (4.0, 1.0)}
    assert objective.part_weights("shipped", labelled=10, pseudo=40, one_round=True, transductive=False) == (4.0, 1.0)
    assert objective.part_weights("ratio", labelled=10, pseudo=40, one_round=False, transductive=True) == (1.0, 0.25)
    assert objective.part_weights("ratio", labelled=0, pseudo=40, one_round=False, transductive=False) is None
    loss, is_labelled = torch.tensor([1.0, 3.0, 5.0]), torch.tensor([True, False, False])
    assert float(objective.combine(loss, torch.ones(3), is_labelled, None)) == 3.0
    assert float(objective.combine(loss, torch.ones(3), is_labelled, (2.0, 1.0))) == 6.0
    assert float(objective.combine(loss, torch.tensor([1.0, 1.0, 0.0]), is_labelled, (2.0, 1.0))) == 5.0
    assert float(objective.combine(loss[1:], torch.ones(2), is_labelled[1:], (2.0, 1.0))) == 4.0, "an empty part is 0"


def test_trust_fades_but_not_below_the_floor():
    found = objective.trust(torch.tensor([1.0, 0.5, 0.5]), torch.tensor([0, 0, 3]), power=1.0, decay=0.5, floor=0.1)
    assert found.tolist() == pytest.approx([1.0, 0.5, 0.1])


@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_balanced_labels_are_those_of_the_transport_plan(kind):
    rng = np.random.default_rng(0)
    p = special.softmax(rng.normal(size=(300, 7)) * 2 + np.arange(7) * 0.5, axis=1).astype(kind)
    p[0] = np.eye(7)[3]  # sure of everything
    share = np.array([0.3, 0.2, 0.2, 0.1, 0.1, 0.05, 0.05])
    cost = -torch.from_numpy(np.log(np.maximum(p.astype(np.float64), 1e-30)))
    plan = sinkhorn(cost, torch.ones(300, dtype=torch.float64), torch.from_numpy(300 * share), reg=1.0, iterations=200)
    found = select("balanced", p, np.full(7, 300), prior=share)
    assert (found.rows == np.arange(300)).all() and (found.label == plan.numpy().argmax(1)).all()
    factors = class_factors(p, 300 * share)
    made = p * factors / (p @ factors)[:, None]
    assert np.allclose(made, plan.numpy(), atol=1e-3) and np.allclose(made.sum(0), 300 * share, atol=0.5)


def test_votes_of_similar_images_find_most_wrong_labels_where_most_are_wrong():
    rng = np.random.default_rng(0)
    truth = np.repeat(np.arange(6), 60)
    image = np.eye(6)[truth] * 4 + rng.normal(size=(360, 6))
    label = truth.copy()
    wrong = rng.permutation(360)[:216]
    label[wrong] = (label[wrong] + rng.integers(1, 6, 216)) % 6
    near = np.argsort(((image[:, None] - image[None]) ** 2).sum(2) + 1e9 * np.eye(360), axis=1)[:, :20]
    near[::7, 15:] = -1
    clean = neighbor_clean(label, near)
    for row in range(0, 360, 3):
        votes = collections.Counter(label[j] for j in near[row] if j >= 0)
        assert clean[row] == (votes[label[row]] > 0 and votes[label[row]] == max(votes.values()))
    assert (label == truth)[clean].mean() > 0.85 and clean[label == truth].mean() > 0.8
    assert not neighbor_clean(np.arange(3), np.full((3, 2), -1)).any(), "nobody bears them out"
    assert neighbor_clean(np.arange(3), np.zeros((3, 0), np.int64)).all(), "nobody was asked"


def test_transport_finds_most_wrong_labels():
    rng = np.random.default_rng(0)
    truth = np.repeat(np.arange(4), 50)
    logits = torch.from_numpy(np.eye(4)[truth] * 3 + rng.normal(size=(200, 4)))
    label = truth.copy()
    wrong = rng.permutation(200)[:80]
    label[wrong] = (label[wrong] + rng.integers(1, 4, 80)) % 4
    clean = objective.transport_clean(logits, torch.from_numpy(label)).numpy()
    assert (label == truth)[clean].mean() > 0.93 and clean[label == truth].mean() > 0.8
