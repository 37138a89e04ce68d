"""Agreement of neighbourhoods: does the text say what the texts of similar pictures say, and the other way round?

No training and no joint model: image neighbours are found among images, text neighbours among texts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from noisycorr.clean.signals.view import BLOCK, take
from noisycorr.stats.index import Neighbors
from noisycorr.stats.unit import unit

POWER = 4  # similar pictures count much more than vaguely similar ones


@dataclass(frozen=True, slots=True, kw_only=True)
class Neighborhood:
    """Neighbours of every row on one side, and the mean feature of the other side over them.

    Attributes:
        ids: int (n, k) rows; -1 = none.
        consensus: float16 (n, d): unit rows, weighted mean of the partners of the neighbours; zero where none.
    """

    ids: np.ndarray
    consensus: np.ndarray


def consensus(
    near: Neighbors, partner: Sequence[np.ndarray], mean: np.ndarray, weight: np.ndarray, group: np.ndarray
) -> Neighborhood:
    """What the partners of the neighbours have in common.

        c_i = unit( sum_k  w_k * max(s_ik, 0)^4 * (partner_k - mean) )

    Args:
        near: k neighbours of every row on this side.
        partner: Parts of (n, d) features of the other side.
        mean: (d,) their mean, taken off so that what all share does not count as agreement.
        weight: (n,) trust in each pair as a witness, in [0, 1].
        group: int (n,): rows of the same group (the same picture) are no witnesses for each other.

    Returns:
        The neighbourhood; its rows never include the pair itself.
    """
    n = len(near.ids)
    out = np.zeros((n, partner[0].shape[1]), np.float16)
    kept = np.where(group[np.maximum(near.ids, 0)] == group[:, None], -1, near.ids)
    for start in range(0, n, BLOCK // 4):
        rows = slice(start, start + BLOCK // 4)
        ids = kept[rows]
        some = np.maximum(ids, 0)
        share = np.where(ids >= 0, np.maximum(np.nan_to_num(near.similarity[rows]), 0) ** POWER * weight[some], 0)
        witnesses = take(partner, some.ravel()).astype(np.float32).reshape(*some.shape, -1)
        share = np.where(np.any(witnesses != 0, axis=2), share, 0)  # a missing partner says nothing
        out[rows] = unit(np.einsum("nk,nkd->nd", share, witnesses - mean))
    return Neighborhood(ids=kept, consensus=out)


def mean_feature(parts: Sequence[np.ndarray]) -> np.ndarray:
    """float32 (d,): mean of the rows that are not zero."""
    total, count = np.zeros(parts[0].shape[1]), 0
    for part in parts:
        for start in range(0, len(part), BLOCK):
            block = np.asarray(part[start : start + BLOCK], np.float32)
            total += block.sum(0, dtype=np.float64)
            count += int(np.any(block != 0, axis=1).sum())
    return (total / max(count, 1)).astype(np.float32)
