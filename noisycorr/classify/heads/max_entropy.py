"""A small set that shows all there is: greedy choice of items whose properties are as many and as even as they can be.

For audit sets and queues of human review: a hundred pairs picked so that sources, classes, lengths and clusters all
occur, and none floods the others, tell more of a set than a hundred random ones.

Source: GME-sampler of Delmas et al., Relation Extraction in Underexplored Biomedical Domains, 2024. Differs: entropies
are updated from the counts that change; ties go to the first item.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np


def max_entropy_picks(properties: Sequence[Sequence[Sequence[int]]], sizes: Sequence[int], budget: int, *,
                      aim: Literal["nearest", "sum"] = "nearest", sampled: int = 0,
                      seed: int = 0) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """Pick items one by one, each the one after which the entropies are best.

        H_j = entropy of the counts of variable j over the picked items
        nearest: least |(H_1, ...) - (ln V_1, ...)|;      sum: largest H_1 + ...

    Args:
        properties: For each of v variables, for each of n items, the values in [0, V_j) that it has, also several.
        sizes: V_j, number of values of each variable.
        budget: How many to pick, at most n.
        aim: What "best" means.
        sampled: Try this many random items at each step instead of all; 0 = all.
        seed: Of the samples.

    Returns:
        int64 (budget,) items in the order of picking; float64 (budget, v) entropies after each. Where they fall, more
        items only repeat what is there: a natural size.

    Raises:
        ValueError: If a value is out of its range.
    """
    n = len(properties[0]) if properties else 0
    bags = [[np.unique(np.asarray(one, np.int64), return_counts=True) for one in variable] for variable in properties]
    for variable, size in zip(bags, sizes):
        if any(len(values) and (values[0] < 0 or values[-1] >= size) for values, _ in variable):
            raise ValueError(f"a value lies outside [0, {size})")
    counts = [np.zeros(size) for size in sizes]
    best = np.log(np.maximum(np.asarray(sizes, np.float64), 1))
    rng = np.random.default_rng([seed, 71])
    free = np.ones(n, bool)
    picked: list[int] = []
    path: list[np.ndarray] = []
    for _ in range(min(budget, n)):
        tried = np.flatnonzero(free)
        if sampled and sampled < len(tried):
            tried = np.sort(rng.choice(tried, sampled, replace=False))
        after = np.stack([_after(count, [variable[row] for row in tried]) for count, variable in zip(counts, bags)], 1)
        gap = np.linalg.norm(after - best, axis=1) if aim == "nearest" else -after.sum(1)
        place = int(np.argmin(np.round(gap, 9)))  # equal but for rounding: the first
        row = int(tried[place])
        picked.append(row)
        path.append(after[place])
        free[row] = False
        for count, variable in zip(counts, bags):
            count[variable[row][0]] += variable[row][1]
    return np.array(picked, np.int64), np.array(path).reshape(len(picked), len(sizes))


def _after(count: np.ndarray, items: Sequence[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    """Entropy of the counts with each item added: ln T - (sum_v c_v ln c_v) / T, where only its own c_v change."""
    base, total = _log_sum(count), count.sum()
    out = np.empty(len(items))
    for place, (values, more) in enumerate(items):
        old = count[values]
        all_of = total + more.sum()
        out[place] = np.log(all_of) - (base - _log_sum(old) + _log_sum(old + more)) / all_of if all_of > 0 else 0.0
    return np.maximum(out, 0)


def _log_sum(count: np.ndarray) -> float:
    some = count[count > 0]
    return float((some * np.log(some)).sum())
