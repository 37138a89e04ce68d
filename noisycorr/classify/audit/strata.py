"""Calibration with a null whose scores depend on something else: one curve for each stratum, joined without steps.

    p_clean(s, e) = 1 - eta(e) f_null(s | e) / f_given(s | e)

Labels dealt at random to pictures that resemble no class score higher than those dealt to pictures that resemble one:
where no class fits, no label fits much worse than the others. A single null calls such labels right; within a
stratum of pictures that resemble classes alike (e), given labels and dealt ones can be told apart only where they are
right.

eta(e), the share of random labels, is that of a mixture of two known components: the scores of dealt labels, and those
of labels drawn from what is believed of each picture. The lower tail of the null alone would overstate it where classes
are alike, because there right labels score low, too.

Source: covariate-modulated local false discovery rates (Efron, JASA 2008), with strata of equal size.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from noisycorr.stats.mixture import density_ratio

SIZE, MOST = 400, 10  # rows of a stratum at least, and strata at most
BINS, ROUNDS = 24, 200  # of the mixture

Scores = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True, slots=True, kw_only=True)
class Strata:
    """Curves by stratum.

    Attributes:
        level: float64 (k,) rising: the middle of each stratum.
        curve: For each its scores, rising, and the probability at each of them, never falling.
    """

    level: np.ndarray
    curve: list[tuple[np.ndarray, np.ndarray]]

    def __call__(self, score: Float[np.ndarray, " n"], level: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
        """float64 (n,) in [0, 1], linear between strata."""
        every = np.stack([np.interp(score, *one) for one in self.curve])
        place = np.interp(level, self.level, np.arange(len(self.level)))
        low = np.minimum(place.astype(int), max(len(self.level) - 2, 0))
        high = np.minimum(low + 1, len(self.level) - 1)
        one = np.arange(len(score))
        return np.asarray((1 - (place - low)) * every[low, one] + (place - low) * every[high, one])


def mixture_share(
    given: Float[np.ndarray, " n"], null: Float[np.ndarray, " m"], right: Float[np.ndarray, " k"]
) -> float:
    """Share of the null where given scores are a mixture of null and right ones.

        eta = argmax sum_b given_b log( eta null_b + (1 - eta) right_b ),   b = bins of equal mass of all scores

    Args:
        given: Scores as they came.
        null: Of the first component.
        right: Of the second.

    Returns:
        In [0, 1], by expectation maximisation; 0.5 where the components are the same.
    """
    edges = np.unique(np.quantile(np.concatenate([given, null, right]), np.linspace(0, 1, BINS + 1)[1:-1]))
    one, two, three = ((np.bincount(np.searchsorted(edges, x), minlength=len(edges) + 1) + 0.5) / (len(x) + 0.5 * BINS)
                       for x in (given, null, right))  # fmt: skip
    eta = 0.5
    for _ in range(ROUNDS):
        total = eta * two + (1 - eta) * three
        eta = float((one * eta * two / total).sum() / one.sum())
    return eta


def fit_strata(given: Scores, null: Scores, right: Scores) -> Strata:
    """Fit the curves. Each argument is a pair of scores, higher = better matched, and of what they depend on.

    Args:
        given: As the labels came.
        null: Of labels dealt at random.
        right: Of labels drawn from what is believed of each picture.
    """
    level = given[1]
    count = int(np.clip(len(level) // SIZE, 1, MOST))
    edges = np.quantile(level, np.linspace(0, 1, count + 1)[1:-1])
    middles, curves = [], []
    for part in range(count):
        mine, dealt, drawn = (score[np.searchsorted(edges, at) == part].astype(np.float64)
                              for score, at in (given, null, right))  # fmt: skip
        if min(len(mine), len(dealt), len(drawn)) < 20:
            continue  # equal levels leave some strata empty
        score, ratio = density_ratio(mine, dealt)
        p = np.clip(1 - mixture_share(mine, dealt, drawn) / np.maximum(ratio, 1e-12), 0, 1)
        middles.append(float(np.median(level[np.searchsorted(edges, level) == part])))
        curves.append((score, np.maximum.accumulate(p)))
    if not curves:
        return Strata(level=np.zeros(1), curve=[(np.zeros(1), np.ones(1))])
    return Strata(level=np.array(middles), curve=curves)
