"""Wrong labels with known truth: diffuse, as a careless crawl, and semantic, as a name with two senses."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Int


@dataclass(frozen=True, kw_only=True)
class NoisyLabels:
    """Labels after noise.

    Attributes:
        label: int64 (n,) as a crawl would give them.
        mixed: Classes that share a name with another, for semantic noise; else empty.
    """

    label: np.ndarray
    mixed: tuple[int, ...] = ()


def diffuse_noise(truth: Int[np.ndarray, " n"], classes: int, alike: Bool[np.ndarray, "c c"], *, ratio: float = 0.25,
                  inside: float = 0.7, seed: int = 0) -> NoisyLabels:  # fmt: skip
    """Flips, most of them to a class that is alike; what belongs to no class gets any label.

    Args:
        truth: Right class, -1 = none.
        classes: c.
        alike: True where two classes are; the diagonal does not matter.
        ratio: Share of the samples of a class that are flipped.
        inside: Share of the flips that go to a class that is alike, where there is one.
        seed: Of the draw.
    """
    rng = np.random.default_rng([seed, 101])
    label = np.where(truth < 0, rng.integers(0, classes, len(truth)), truth)
    known = np.flatnonzero(truth >= 0)
    for row in rng.permutation(known)[: round(ratio * len(known))]:
        near = np.flatnonzero(alike[truth[row]] & (np.arange(classes) != truth[row]))
        far = np.flatnonzero(np.arange(classes) != truth[row])
        label[row] = rng.choice(near if len(near) and rng.random() < inside else far)
    return NoisyLabels(label=label)


def semantic_noise(truth: Int[np.ndarray, " n"], classes: int, *, pairs: int = 8, share: float = 0.6,
                   flips: float = 0.1, partners: Int[np.ndarray, "c m"] | None = None,
                   seed: int = 0) -> NoisyLabels:  # fmt: skip
    """For pairs (a, b) of classes most samples of b are labelled a, as if a's name meant b, too; and a few flips.

    Args:
        truth: Right class, -1 = none, which gets any label.
        classes: c.
        pairs: Of classes; at most c / 2.
        share: Of b's samples that are labelled a.
        flips: Share of all other samples of a class that get another label.
        partners: Classes that each may be paired with, the likeliest first, -1 = none; None = any class.
        seed: Of the draw.
    """
    rng = np.random.default_rng([seed, 103])
    label = np.where(truth < 0, rng.integers(0, classes, len(truth)), truth)
    order = rng.permutation(classes)
    chosen = (
        order[: 2 * min(pairs, classes // 2)].reshape(-1, 2) if partners is None else _paired(order, partners, pairs)
    )
    taken = np.zeros(len(truth), bool)
    for a, b in chosen:
        mine = rng.permutation(np.flatnonzero(truth == b))
        mine = mine[: round(share * len(mine))]
        label[mine], taken[mine] = a, True
    rest = np.flatnonzero((truth >= 0) & ~taken)
    rest = rng.permutation(rest)[: round(flips * len(rest))]
    label[rest] = (truth[rest] + rng.integers(1, classes, len(rest))) % classes
    return NoisyLabels(label=label, mixed=tuple(sorted(int(c) for c in chosen.ravel())))


def _paired(order: np.ndarray, partners: np.ndarray, pairs: int) -> np.ndarray:
    """At most so many pairs (a, b): each class in its turn with the likeliest partner that is free."""
    free = np.ones(len(order), bool)
    out: list[tuple[int, int]] = []
    for a in order:
        others = [b for b in partners[a] if b >= 0 and b != a and free[b]]
        if free[a] and others and len(out) < pairs:
            out.append((a, others[0]))
            free[[a, others[0]]] = False
    return np.array(out, np.int64).reshape(-1, 2)


def noisy_texts(n: int, *, blank: float = 0.3, other: float = 0.15,
                seed: int = 0) -> tuple[Int[np.ndarray, " n"], Bool[np.ndarray, " n"]]:  # fmt: skip
    """Whose text each sample has, and whether it has one.

    Args:
        n: Samples.
        blank: Share without a text.
        other: Share with the text of another sample.
        seed: Of the draw.
    """
    rng = np.random.default_rng([seed, 107])
    order, source = rng.permutation(n), np.arange(n)
    cut = round(blank * n)
    some = order[cut : cut + round(other * n)]
    source[some] = rng.permutation(some) if len(some) < 2 else np.roll(some, 1)
    has = np.ones(n, bool)
    has[order[:cut]] = False
    return source, has
