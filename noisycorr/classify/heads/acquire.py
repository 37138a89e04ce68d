"""Which images to label next: what a classifier is unsure of, what is unlike all that is known, and even classes.

An acquisition orders a pool; `balance_picks` (PCB) takes from its first candidates so that classes come out even by the
classifier's own opinion. All functions are stateless: the same arguments give the same rows.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from jaxtyping import Float, Int

from noisycorr.stats.index import unit_rows


def entropy(chances: Float[np.ndarray, "n c"]) -> Float[np.ndarray, " n"]:
    """- sum_c p_c ln p_c of each row, in [0, ln c]; higher = less sure."""
    wide = np.asarray(chances, np.float64)
    return -np.where(wide > 0, wide * np.log(np.where(wide > 0, wide, 1)), 0).sum(1)


def order_by_entropy(chances: Float[np.ndarray, "n c"], pool: Int[np.ndarray, " m"], count: int) -> np.ndarray:
    """The `count` rows of the pool with the highest entropy, highest first; of equals the first in the pool."""
    return pool[np.argsort(-entropy(chances[pool]), kind="stable")[:count]]


def order_by_coreset(features: Float[np.ndarray, "n d"], pool: Int[np.ndarray, " m"], count: int,
                     labelled: Int[np.ndarray, " l"]) -> np.ndarray:  # fmt: skip
    """k-center greedy: each next row is the one farthest from all labelled and chosen ones.

    Distances are those of unit features. Without labelled rows the first is the one farthest from the mean.

    Source: Sener and Savarese, Active Learning for Convolutional Neural Networks: A Core-Set Approach, ICLR 2018.
    """
    x = unit_rows(features)
    inside = x[pool]
    if len(labelled):
        gap = np.full(len(pool), np.inf)
        for start in range(0, len(labelled), 512):
            gap = np.minimum(gap, (2 - 2 * inside @ x[labelled[start : start + 512]].T).min(1))
    else:
        gap = 2 - 2 * inside @ unit_rows(inside.mean(0, keepdims=True))[0]
    picked: list[int] = []
    for place in range(min(count, len(pool))):
        one = int(np.argmax(gap))
        picked.append(one)
        near = 2 - 2 * inside @ inside[one]
        gap = near if place == 0 and not len(labelled) else np.minimum(gap, near)
        gap[picked] = -1
    return pool[picked]


def badge_distance(one: tuple[np.ndarray, np.ndarray], two: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    """|a x' - b y'|^2 of outer products, which are never made: |a|^2 |x|^2 + |b|^2 |y|^2 - 2 (a.b)(x.y).

    Args:
        one: a (n, c) and x (n, d).
        two: b (c,) and y (d,).

    Returns:
        (n,), >= 0.
    """
    (a, x), (b, y) = one, two
    out = np.square(a).sum(1) * np.square(x).sum(1) + np.square(b).sum() * np.square(y).sum() - 2 * (a @ b) * (x @ y)
    return np.maximum(out, 0)


def order_by_badge(features: Float[np.ndarray, "n d"], chances: Float[np.ndarray, "n c"], pool: Int[np.ndarray, " m"],
                   count: int, *, seed: int) -> np.ndarray:  # fmt: skip
    """k-means++ over the gradients that each row would give the last layer if its prediction were right.

        g_i = (p_i - onehot(argmax p_i)) x_i'        the first row has the longest g, the others come with chances ~ D^2

    Source: Ash et al., Deep Batch Active Learning by Diverse, Uncertain Gradient Lower Bounds, ICLR 2020.
    """
    x, p = unit_rows(features[pool]).astype(np.float64), np.array(chances[pool], np.float64)
    p[np.arange(len(p)), p.argmax(1)] -= 1
    rng = np.random.default_rng([seed, 61])
    one = int(np.argmax(np.square(p).sum(1) * np.square(x).sum(1)))
    picked, free = [one], np.ones(len(pool), bool)
    free[one] = False
    gap = badge_distance((p, x), (p[one], x[one]))
    while len(picked) < min(count, len(pool)):
        weight = np.where(free, gap, 0.0)
        total = weight.sum()
        one = int(rng.choice(len(pool), p=weight / total)) if total > 0 else int(rng.choice(np.flatnonzero(free)))
        picked.append(one)
        free[one] = False
        gap = np.minimum(gap, badge_distance((p, x), (p[one], x[one])))
    return pool[picked]


def balance_picks(candidates: Int[np.ndarray, " m"], pseudo: Int[np.ndarray, " n"], known: Int[np.ndarray, " c"],
                  budget: int, *, seed: int, on_empty: Literal["next_rarest", "random_stall"] = "next_rarest",
                  ordered: bool = False) -> np.ndarray:  # fmt: skip
    """PCB: pick candidates whose pseudo-label is the class that has the fewest labels so far.

    Args:
        candidates: Rows, best first.
        pseudo: Class of every row by the classifier's opinion.
        known: How many rows of each class are labelled already.
        budget: How many to pick; fewer where there are fewer candidates.
        seed: Of ties and of draws within a class.
        on_empty: Where the rarest class has no candidate: the next rarest, counting every pick; or what the released
            code does, any candidate without counting it, after which the same class stays the rarest.
        ordered: Take the first candidate of a class instead of a random one.

    Returns:
        Rows in the order of picking, each once.

    Source: Bang, Ahn and Lee, Active Prompt Learning in Vision Language Models, CVPR 2024.
    Differs: see on_empty; in the released code one class without a candidate makes all further picks random.
    """
    rng = np.random.default_rng([seed, 67])
    count = np.array(known, np.int64)
    held: dict[int, list[int]] = {}
    for row in candidates.tolist():
        held.setdefault(int(pseudo[row]), []).append(row)
    picked: list[int] = []
    for _ in range(min(budget, len(candidates))):
        order = np.lexsort((rng.random(len(count)), count))
        wanted = order[:1] if on_empty == "random_stall" else order
        one = next((int(c) for c in wanted if held.get(int(c))), None)
        stalled = one is None
        if one is None:  # any candidate
            sizes = np.array([len(rows) for rows in held.values()])
            one = list(held)[int(rng.choice(len(sizes), p=sizes / sizes.sum()))]
        picked.append(held[one].pop(0 if ordered else int(rng.integers(len(held[one])))))
        count[one] += not stalled
    return np.array(picked, np.int64)


def class_balance(count: Int[np.ndarray, " c"]) -> float:
    """Entropy of a histogram over classes divided by ln c, in [0, 1]; 1 = all alike."""
    share = np.asarray(count, np.float64) / max(float(np.sum(count)), 1e-12)
    return float(entropy(share[None])[0] / np.log(max(len(share), 2)))
