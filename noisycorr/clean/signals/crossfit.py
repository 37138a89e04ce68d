"""Two projection heads learned on the user's own noisy pairs; every pair is scored by heads that never saw it.

Works for any image encoder and any text encoder, also where no joint model was ever trained. Pairs are dealt into folds
so that pictures that are the same or near-duplicates stay together; the heads of a fold are learned on the other folds.

The heads are regularised canonical correlation directions, in closed form:

    S_xx' = S_xx + reg * mean(diag S_xx) * I,   S_tt' likewise
    U diag(c) V^T = svd(S_xx'^{-1/2} S_xt S_tt'^{-1/2})
    image head = S_xx'^{-1/2} U diag(c)^{1/2 * power},   text head = S_tt'^{-1/2} V diag(c)^{1/2 * power}

Mismatched pairs add nothing to S_xt in expectation, they only shrink it, which is why a linear estimate with strong
shrinkage withstands heavy noise. Noise-robust in the second step, too: after the first round each pair is weighted
with its held-out probability of being right, and the heads are learned again. A pair is never among those that taught
its own heads; in the second round it still acts, faintly, through the weights of the others. Measured: wrong pairs
against re-paired ones have an AUROC of 0.50 after the first round, and after the second of 0.50 to 0.51 with 40 % noise
and 0.51 to 0.52 with 80 % (600 and 3,000 synthetic pairs); right against wrong ones gain up to 0.03 by it.

Measured on frozen EfficientNet-Lite0 and MiniLM features with 40 % random swaps, AUROC of held-out scores, against
heads of two layers trained with InfoNCE, symmetric cross-entropy, GCE or RCL on the same folds: Caltech 101 0.993
against 0.963 to 0.968, at a tenth of the time.

Source: Vinod (1976) for the ridge in canonical correlation; cross-fitting as in Chernozhukov et al. (2018). The choice
of `reg` by held-out separation from re-paired pairs is ours.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from noisycorr.clean.signals.view import PairEmbeddings, ShuffledPairs, blocks, pair_cosine, shuffled_pairs
from noisycorr.stats.unit import unit

WIDTH = 384  # numbers kept of each side before the heads, by principal components
POWER = 0.7
REGS = (1.0, 3.0, 10.0, 30.0)
SAMPLED = 20_000  # pairs on which `reg` is chosen

Weigh = Callable[[np.ndarray, np.ndarray], np.ndarray]


@dataclass(frozen=True, slots=True)
class Moments:
    """Weighted sums over pairs: all that the heads of a fold need; moments of folds add up."""

    weight: float
    x: np.ndarray  # (d,)
    t: np.ndarray  # (e,)
    xx: np.ndarray  # (d, d)
    tt: np.ndarray  # (e, e)
    xt: np.ndarray  # (d, e)

    def minus(self, other: Moments) -> Moments:
        """The moments without those pairs."""
        return Moments(
            self.weight - other.weight, self.x - other.x, self.t - other.t,
            self.xx - other.xx, self.tt - other.tt, self.xt - other.xt,
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Heads:
    """Affine maps into the common space."""

    image_mean: np.ndarray
    image: np.ndarray  # (d, r)
    text_mean: np.ndarray
    text: np.ndarray  # (e, r)


@dataclass(frozen=True, slots=True)
class CrossFit:
    """Held-out projections of all pairs.

    Attributes:
        image: float16 (n, r), unit rows; zero rows where nothing is known.
        text: float16 (n, r).
        fold: int (n,): rows of one fold were projected by the same heads; only they can be compared.
        reg: The shrinkage chosen.
        separation: Held-out AUROC of given against re-paired pairs at that choice.
    """

    image: np.ndarray
    text: np.ndarray
    fold: np.ndarray
    reg: float
    separation: float


def deal_folds(groups: Int[np.ndarray, " n"], folds: int, seed: int) -> Int[np.ndarray, " n"]:
    """A fold 0..folds-1 for each row; rows of one group share it.

    Sizes differ by at most one row if there are enough groups of a single row to fill the gaps.
    """
    names, inverse, counts = np.unique(groups, return_inverse=True, return_counts=True)
    order = np.random.default_rng([seed, 3]).permutation(len(names))
    order = order[np.argsort(-counts[order], kind="stable")]  # large groups first, then to the smallest fold
    sizes = np.zeros(folds, np.int64)
    fold = np.empty(len(names), np.int64)
    large = int((counts > 1).sum())
    for name in order[:large]:
        fold[name] = int(np.argmin(sizes))
        sizes[fold[name]] += counts[name]
    rest = order[large:]
    fold[rest] = np.repeat(np.arange(folds), _fill(sizes, len(rest)))
    return fold[inverse]


def _fill(sizes: np.ndarray, count: int) -> np.ndarray:
    """How many more each fold gets of `count` rows, so that sizes come out as equal as they can."""
    order = np.argsort(sizes, kind="stable")
    low = sizes[order]
    needed = low * np.arange(1, len(low) + 1) - np.cumsum(low)  # to lift the first k to the size of the k-th
    lifted = int(np.searchsorted(needed, count, side="right"))
    level, extra = divmod(count + int(low[:lifted].sum()), lifted)
    share = np.zeros(len(sizes), np.int64)
    share[order[:lifted]] = level - low[:lifted]
    share[order[:extra]] += 1
    return share


def reduce_width(parts: Sequence[np.ndarray], width: int) -> np.ndarray:
    """Centre, keep the leading principal components, scale to mean squared length 1: float32 (n, min(d, width)).

    Uses each side alone, never the pairing, so that held-out scores stay held out.
    """
    return project_parts(parts, *principal(parts, width))


def principal(parts: Sequence[np.ndarray], width: int) -> tuple[np.ndarray, np.ndarray]:
    """Mean (d,) and scaled leading directions (d, min(d, width)) of the rows that are not zero."""
    total: Any = 0.0
    square: Any = 0.0
    count = 0
    for _, block in blocks(parts):
        block = block[np.any(block != 0, axis=1)]
        total, count = total + block.sum(0, dtype=np.float64), count + len(block)
        square = square + (block.T @ block).astype(np.float64)
    mean = total / max(count, 1)
    covariance = square / max(count, 1) - np.outer(mean, mean)
    values, vectors = np.linalg.eigh(covariance)
    keep = vectors[:, ::-1][:, :width] / np.sqrt(max(values[-width:].sum(), 1e-12))
    return mean, keep * np.where(np.abs(keep).max(0) == keep.max(0), 1, -1)  # a sign that no solver's mood changes


def project_parts(parts: Sequence[np.ndarray], mean: np.ndarray, keep: np.ndarray) -> np.ndarray:
    """float32 (n, width): rows less the mean, along the directions; rows of zeros stay zeros."""
    out = []
    for _, block in blocks(parts):
        moved = ((block - mean) @ keep).astype(np.float32)
        moved[~np.any(block != 0, axis=1)] = 0
        out.append(moved)
    return np.concatenate(out)


def fold_moments(
    x: Float[np.ndarray, "n d"], t: Float[np.ndarray, "n e"], weight: Float[np.ndarray, " n"], fold: np.ndarray
) -> list[Moments]:
    """Moments of every fold, in one pass over the pairs."""
    out = []
    for part in range(int(fold.max()) + 1):
        rows = np.flatnonzero((fold == part) & (weight > 0))
        d, e = x.shape[1], t.shape[1]
        sums = [0.0, np.zeros(d), np.zeros(e), np.zeros((d, d)), np.zeros((e, e)), np.zeros((d, e))]
        for start in range(0, len(rows), 16384):
            some = rows[start : start + 16384]
            w = weight[some].astype(np.float32)[:, None]
            a, b = x[some], t[some]
            for place, value in enumerate(
                (w.sum(dtype=np.float64), (w * a).sum(0), (w * b).sum(0), (w * a).T @ a, (w * b).T @ b, (w * a).T @ b)
            ):
                sums[place] = sums[place] + value
        out.append(Moments(*sums))  # type: ignore[arg-type]
    return out


def solve_heads(moments: Moments, reg: float) -> Heads:
    """The closed form of the module docstring from the moments of the training folds."""
    x, t = moments.x / moments.weight, moments.t / moments.weight
    xx = moments.xx / moments.weight - np.outer(x, x)
    tt = moments.tt / moments.weight - np.outer(t, t)
    xt = moments.xt / moments.weight - np.outer(x, t)
    a, b = _inverse_root(xx, reg), _inverse_root(tt, reg)
    u, c, v = np.linalg.svd(a @ xt @ b, full_matrices=False)
    scale = c ** (POWER / 2)
    return Heads(x, a @ u * scale, t, b @ v.T * scale)


def _inverse_root(covariance: np.ndarray, reg: float) -> np.ndarray:
    values, vectors = np.linalg.eigh(covariance)
    return (vectors * (np.maximum(values, 0) + reg * max(values.mean(), 1e-12)) ** -0.5) @ vectors.T


def cross_fit(view: PairEmbeddings, *, folds: int = 5, rounds: int = 2, weigh: Weigh | None = None) -> CrossFit:
    """Learn heads on all folds but one, project that one; for every fold.

    Args:
        view: Pairs. Rows that are not present are neither learned from nor scored.
        folds: 2 or more.
        rounds: 2 = learn, weight each pair by its held-out probability, learn again.
        weigh: Function (given scores, null scores) -> weights in [0, 1] of the given pairs, for the second round;
            None = no second round. It gets held-out scores only.

    Returns:
        Held-out projections.

    Raises:
        ValueError: If fewer pairs are present than folds.
    """
    if int(view.present.sum()) < 4 * folds:
        raise ValueError(f"{int(view.present.sum())} pairs cannot be dealt into {folds} folds")
    fold = deal_folds(view.image_id, folds, view.seed)
    x, t = reduce_width(view.image, WIDTH), reduce_width(view.text, WIDTH)
    null = shuffled_pairs(view, fold, count=SAMPLED)
    weight = view.present.astype(np.float32)
    reg, separation = choose_reg(x, t, weight, fold, null, view)
    image, text = _project(x, t, weight, fold, reg)
    for _ in range(rounds - 1):
        if weigh is None or not len(null.image):
            break
        given = (image.astype(np.float32) * text.astype(np.float32)).sum(1)
        given[~view.present] = np.nan
        weight = np.nan_to_num(weigh(given, pair_cosine([image], [text], null))).astype(np.float32)
        weight = np.where(view.present, np.maximum(weight, 0.02), 0)
        image, text = _project(x, t, weight, fold, reg)
    return CrossFit(image, text, fold, reg, separation)


def choose_reg(
    x: np.ndarray, t: np.ndarray, weight: np.ndarray, fold: np.ndarray, null: ShuffledPairs, view: PairEmbeddings
) -> tuple[float, float]:
    """The shrinkage whose held-out scores best tell given pairs from re-paired ones; no truth needed."""
    from scipy import stats

    sums = fold_moments(x, t, weight, fold)
    total = _add(sums)
    rows = np.flatnonzero(view.present)
    if len(rows) > SAMPLED:
        rows = np.sort(np.random.default_rng([view.seed, 5]).choice(rows, SAMPLED, replace=False))
    best = (REGS[0], -1.0)
    for reg in REGS:
        given, wrong = [], []
        for part, own in enumerate(sums):
            if own.weight <= 0 or total.weight - own.weight <= 0:
                continue
            heads = solve_heads(total.minus(own), reg)
            mine = rows[fold[rows] == part]
            given.append(_cosine(x[mine], t[mine], heads))
            pick = fold[null.image] == part
            wrong.append(_cosine(x[null.image[pick]], t[null.text[pick]], heads))
        if not sum(map(len, wrong)):  # nothing to compare with, or all pairs are in one fold
            return REGS[1], float("nan")
        one, two = np.concatenate(given), np.concatenate(wrong)
        auc = float(stats.mannwhitneyu(one, two).statistic / (len(one) * len(two)))
        if auc > best[1] + 1e-4:
            best = (reg, auc)
    return best


def _add(sums: list[Moments]) -> Moments:
    return Moments(*(sum(getattr(m, name) for m in sums) for name in ("weight", "x", "t", "xx", "tt", "xt")))  # type: ignore[arg-type]


def _cosine(x: np.ndarray, t: np.ndarray, heads: Heads) -> np.ndarray:
    return (unit((x - heads.image_mean) @ heads.image) * unit((t - heads.text_mean) @ heads.text)).sum(1)


def _project(x: np.ndarray, t: np.ndarray, weight: np.ndarray, fold: np.ndarray, reg: float) -> tuple[np.ndarray, ...]:
    sums = fold_moments(x, t, weight, fold)
    total = _add(sums)
    width = min(x.shape[1], t.shape[1])
    image, text = np.zeros((len(x), width), np.float16), np.zeros((len(t), width), np.float16)
    for part, own in enumerate(sums):
        if total.weight - own.weight <= 0:
            continue
        heads = solve_heads(total.minus(own), reg)
        rows = np.flatnonzero(fold == part)
        for start in range(0, len(rows), 16384):
            some = rows[start : start + 16384]
            image[some] = unit((x[some] - heads.image_mean) @ heads.image)
            text[some] = unit((t[some] - heads.text_mean) @ heads.text)
    image[~np.any(x != 0, axis=1)] = 0
    text[~np.any(t != 0, axis=1)] = 0
    return image, text
