"""What to label next: orders against slow loops, balance of classes, and audit sets against known numbers."""

from __future__ import annotations

import math

import numpy as np
import pytest

from noisycorr.classify.heads.acquire import (
    badge_distance,
    balance_picks,
    class_balance,
    entropy,
    order_by_badge,
    order_by_coreset,
    order_by_entropy,
)
from noisycorr.classify.heads.max_entropy import max_entropy_picks


def made_up(n: int = 40, c: int = 4, d: int = 5, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, d)).astype(np.float32), rng.dirichlet(np.ones(c), n)


def test_entropy():
    found = entropy(np.array([[1.0, 0, 0], [0.5, 0.5, 0], [1 / 3] * 3]))
    assert found == pytest.approx([0, math.log(2), math.log(3)])
    _, chances = made_up()
    pool = np.arange(5, 40)
    slow = sorted(pool, key=lambda i: sum(p * math.log(p) for p in chances[i]))
    assert order_by_entropy(chances, pool, 7).tolist() == slow[:7]


@pytest.mark.parametrize("labelled", [[0, 3], []])
def test_coreset_equals_the_loop(labelled: list[int]):
    features, _ = made_up()
    x = features / np.linalg.norm(features, axis=1, keepdims=True)
    pool = np.setdiff1d(np.arange(40), labelled)
    chosen: list[int] = []
    for _ in range(6):
        centres = [x[i] for i in [*labelled, *chosen]]
        if not centres:
            mean = x[pool].mean(0)
            centres = [mean / np.linalg.norm(mean)]
        rest = [i for i in pool if i not in chosen]
        chosen.append(max(rest, key=lambda i: min(np.sum((x[i] - centre) ** 2) for centre in centres)))
    assert order_by_coreset(features, pool, 6, np.array(labelled, int)).tolist() == chosen


def test_badge_never_makes_the_outer_product_but_equals_it():
    rng = np.random.default_rng(1)
    a, x = rng.normal(size=(9, 4)), rng.normal(size=(9, 6))
    b, y = rng.normal(size=4), rng.normal(size=6)
    slow = [np.sum((np.outer(a[i], x[i]) - np.outer(b, y)) ** 2) for i in range(9)]
    assert badge_distance((a, x), (b, y)) == pytest.approx(slow)
    features, chances = made_up()
    pool = np.arange(3, 40)
    found = order_by_badge(features, chances, pool, 10, seed=0)
    assert len(set(found.tolist())) == 10 and set(found) <= set(pool)
    gradient = [np.sum((chances[i] - np.eye(4)[chances[i].argmax()]) ** 2) for i in pool]
    assert found[0] == pool[int(np.argmax(gradient))]
    assert np.array_equal(found, order_by_badge(features, chances, pool, 10, seed=0))
    assert len(order_by_badge(features, chances, pool, 99, seed=0)) == len(pool)
    same = np.tile([1.0, 0, 0, 0], (5, 1))  # sure of everything: no gradient at all
    assert len(set(order_by_badge(features[:5], same, np.arange(5), 4, seed=0).tolist())) == 4


def test_with_perfect_opinions_the_labels_are_even():
    truth = np.repeat(np.arange(5), [30, 20, 10, 8, 8])
    picked = balance_picks(np.arange(76), truth, np.zeros(5, int), 27, seed=0)
    count = np.bincount(truth[picked], minlength=5)
    assert len(set(picked.tolist())) == 27 and count.max() - count.min() <= 1
    known = np.array([9, 0, 0, 9, 9])
    more = balance_picks(np.arange(76), truth, known, 16, seed=0)
    assert np.bincount(truth[more], minlength=5).tolist() == [0, 8, 8, 0, 0]
    assert np.array_equal(more, balance_picks(np.arange(76), truth, known, 16, seed=0))
    first = balance_picks(np.arange(76), truth, np.zeros(5, int), 5, seed=0, ordered=True)
    assert sorted(first.tolist()) == [0, 30, 50, 60, 68]


def test_a_class_without_candidates_does_not_make_the_rest_random():
    pseudo = np.repeat([0, 1, 2], [100, 8, 8])  # nobody is of class 3, which stays the rarest
    balance = {}
    for rule in ("next_rarest", "random_stall"):
        counts = []
        for seed in range(5):
            picked = balance_picks(np.arange(116), pseudo, np.zeros(4, int), 20, seed=seed, on_empty=rule)
            counts.append(np.bincount(pseudo[picked], minlength=4))
        balance[rule] = float(np.mean([class_balance(count) for count in counts]))
    assert balance["next_rarest"] > balance["random_stall"] + 0.1
    assert len(balance_picks(np.arange(3), pseudo, np.zeros(4, int), 9, seed=0)) == 3


def test_class_balance():
    assert class_balance(np.array([5, 5, 5])) == pytest.approx(1)
    assert class_balance(np.array([7, 0, 0])) == 0 and class_balance(np.zeros(3)) == 0


@pytest.mark.parametrize(
    ("start", "added", "wanted"),
    [([2, 3, 3], [1, 2, 3, 4], 1.27703), ([2, 3, 3], [1, 2], 1.05492), ([1, 1, 2], [4, 3, 2, 1], 1.27703),
     ([1, 1, 2], [2, 1], 0.67301)],
)  # fmt: skip
def test_entropies_of_the_released_sampler(start: list[int], added: list[int], wanted: float):
    first = max_entropy_picks([[start, added]], [5], 2)
    assert set(first[0].tolist()) == {0, 1}
    assert first[1][-1, 0] == pytest.approx(wanted, abs=1e-5)


def slow_picks(properties: list[list[list[int]]], sizes: list[int], budget: int, aim: str) -> list[int]:
    chosen: list[int] = []

    def entropies(items: list[int]) -> list[float]:
        out = []
        for variable in properties:
            bag = [value for item in items for value in variable[item]]
            share = [bag.count(value) / len(bag) for value in set(bag)]
            out.append(-sum(p * math.log(p) for p in share))
        return out

    for _ in range(budget):

        def cost(item: int) -> float:
            found = entropies([*chosen, item])
            if aim == "sum":
                return round(-sum(found), 9)
            return round(math.sqrt(sum((h - math.log(size)) ** 2 for h, size in zip(found, sizes))), 9)

        chosen.append(min((i for i in range(len(properties[0])) if i not in chosen), key=cost))
    return chosen


@pytest.mark.parametrize("aim", ["nearest", "sum"])
def test_audit_picks_equal_the_loop(aim: str):
    rng = np.random.default_rng(3)
    properties = [[rng.integers(0, size, rng.integers(1, 4)).tolist() for _ in range(25)] for size in (4, 6)]
    found, path = max_entropy_picks(properties, [4, 6], 8, aim=aim)  # type: ignore[arg-type]
    assert found.tolist() == slow_picks(properties, [4, 6], 8, aim)
    assert path.shape == (8, 2) and (path <= np.log([4, 6]) + 1e-9).all()


def test_audit_sets_are_evener_than_random_ones_and_bounded():
    rng = np.random.default_rng(0)
    kind = rng.choice(6, 200, p=[0.7, 0.2, 0.04, 0.03, 0.02, 0.01])
    found, _ = max_entropy_picks([[[one] for one in kind]], [6], 18)
    random = kind[rng.choice(200, 18, replace=False)]
    assert class_balance(np.bincount(kind[found], minlength=6)) > 0.9 > class_balance(np.bincount(random, minlength=6))
    some, _ = max_entropy_picks([[[one] for one in kind]], [6], 5, sampled=20, seed=1)
    assert len(set(some.tolist())) == 5
    assert len(max_entropy_picks([[[0], []]], [2], 9)[0]) == 2
    with pytest.raises(ValueError, match="outside"):
        max_entropy_picks([[[7]]], [5], 1)
