"""Calibration with a null whose scores depend on something else: one curve for each stratum, joined without steps.

    p_clean(s, e) = 1 - eta(e) f_null(s | e) / f_given(s | e)

Labels dealt at random to pictures that resemble no class score higher than those dealt to pictures that resemble one:
where no class fits, no label fits much worse than the others. A single null calls such labels right; within a stratum of
pictures that resemble classes alike (e), given labels and dealt ones can be told apart only if they are right.

Source: covariate-modulated local false discovery rates (Efron, JASA 2008), with strata of equal size.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from noisycorr.mixture import density_ratio, null_share

SIZE, MOST = 400, 10  # rows of a stratum at least, and strata at most


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


def fit_strata(given: Float[np.ndarray, " n"], level: Float[np.ndarray, " n"], null: Float[np.ndarray, " m"],
               null_level: Float[np.ndarray, " m"]) -> Strata:  # fmt: skip
    """Fit the curves.

    Args:
        given: Scores as they came, higher = better matched, all finite.
        level: What the null depends on.
        null: Scores that are wrong for sure, all finite.
        null_level: What those depend on.
    """
    count = int(np.clip(len(given) // SIZE, 1, MOST))
    edges = np.quantile(level, np.linspace(0, 1, count + 1)[1:-1])
    mine, theirs = np.searchsorted(edges, level), np.searchsorted(edges, null_level)
    middles, curves = [], []
    for part in range(count):
        some, other = given[mine == part].astype(np.float64), null[theirs == part].astype(np.float64)
        if len(some) < 20 or len(other) < 20:
            continue  # equal levels leave some strata empty
        score, ratio = density_ratio(some, other)
        p = np.clip(1 - null_share(some, other) / np.maximum(ratio, 1e-12), 0, 1)
        middles.append(float(np.median(level[mine == part])))
        curves.append((score, np.maximum.accumulate(p)))
    if not curves:
        return Strata(level=np.zeros(1), curve=[(np.zeros(1), np.ones(1))])
    return Strata(level=np.array(middles), curve=curves)
