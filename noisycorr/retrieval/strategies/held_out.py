"""How many pairs are wrong, from pairs that the warm-up left out: mixtures of losses find two kinds on clean data, too.

A wrong pair that no network has learned is like a re-paired one. So the losses of left-out pairs, set beside those of
re-paired pairs, bound the share that a mixture may call wrong. A network that has learned a wrong pair by heart finds
it right, so that the same count over training pairs says that nothing is wrong.
"""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from scipy import optimize, special
from torch import Tensor

from noisycorr.stats.mixture import null_share

FEWEST = 20  # left-out and re-paired pairs below which nothing is said
MIXER = 2654435761  # Knuth's multiplier: neighbouring numbers land far apart
LARGEST = 60.0  # in log odds: enough to make any probability of float64 that is not 0 or 1 certain


def held_rows(n: int, share: float) -> Bool[Tensor, " n"]:
    """The pairs that are left out, the same ones whatever the seed of the training; none if they were too few."""
    held = torch.zeros(n, dtype=torch.bool)
    count = int(share * n)
    if count >= FEWEST:
        held[torch.from_numpy(np.random.default_rng(1).permutation(n)[:count])] = True
    return held


def strangers(sims: Float[Tensor, "b b"], negatives: Bool[Tensor, "b b"],
              rows: Int[Tensor, " b"]) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """The batch with each image paired with the text of the next pair, in an order of all pairs that mixes neighbours.

    Sets are often sorted, and a text from next door would fit half.

    Args:
        sims: Similarity of image i and text j.
        negatives: True where they may serve as each other's negative.
        rows: Which pairs these are.

    Returns:
        Similarities (b, b) and negatives (b, b) of the new pairs, and bool (b,) where these are wrong for sure. No
        image has its own text among its negatives: against it a re-paired pair would look worse than a wrong pair whose
        right text is elsewhere.
    """
    order = (rows * MIXER % 2**32).argsort()
    turn = torch.empty_like(order)
    turn[order] = order.roll(-1)
    return sims[:, turn], negatives[:, turn], negatives[:, turn].diagonal()


def wrong_share(loss: Float[np.ndarray, " n"], null: Float[np.ndarray, " n"], held: Bool[np.ndarray, " n"]) -> float:
    """Largest likely share of wrong pairs, from those that the warm-up left out.

        eta + 2 sqrt((eta + 1 / n) (1 - eta) / n),   eta the share of n left-out pairs that look re-paired

    Args:
        loss: Of the given pairs, higher = worse.
        null: Of re-paired pairs, which are wrong for sure; negative = there is none.
        held: The pairs that no network has learned.

    Returns:
        In [0, 1]; 1, which bounds nothing, where too few are known.

    Source: ``null_share`` (Storey, Taylor and Siegmund, JRSS B 2004).
    """
    given, null = loss[held & np.isfinite(loss)], null[null >= 0]
    if min(len(given), len(null)) < FEWEST:
        return 1.0
    share, n = null_share(-given.astype(np.float64), -null.astype(np.float64)), len(given)
    return min(1.0, share + 2 * float(np.sqrt((share + 1 / n) * (1 - share) / n)))


def level_held(loss: Float[np.ndarray, " n"], held: Bool[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """Losses of left-out pairs on the scale of the learned ones: the q-quantile of these for the q-quantile of those.

    Both are random draws of the same pairs, so that they differ by what the networks have learned alone; the ranks
    among the left-out ones are kept.
    """
    out = np.array(loss, np.float64)
    rows = np.flatnonzero(held & np.isfinite(out))
    learned = out[~held & np.isfinite(out)]
    if len(rows) and len(learned):
        order = rows[np.argsort(out[rows], kind="stable")]
        out[order] = np.quantile(learned, (np.arange(len(rows)) + 0.5) / len(rows))
    return out


def bounded(p_clean: Float[np.ndarray, " n"], share: float) -> Float[np.ndarray, " n"]:
    """Probabilities with all odds raised by one factor, so that in the mean no more than a share is wrong.

        logit(q_i) = logit(p_i) + m,   the least m >= 0 with mean(1 - q) <= share

    Args:
        p_clean: In [0, 1]; the order is kept.
        share: In [0, 1].

    Returns:
        float64 (n,), never below ``p_clean``.
    """
    p = np.asarray(p_clean, np.float64)
    if not len(p) or (1 - p).mean() <= share:
        return p
    odds = special.logit(np.clip(p, 1e-12, 1 - 1e-12))
    excess = lambda m: float(special.expit(-(odds + m)).mean() - share)  # noqa: E731
    if excess(LARGEST) > 0:
        return np.ones_like(p)
    return np.maximum(p, special.expit(odds + optimize.brentq(excess, 0.0, LARGEST, xtol=1e-10)))
