"""Margin of a pair against everything else: does the image like its own text better than other texts, and the reverse?

Generic texts are similar to every image and hub images to every text; a plain cosine lets them win. Set against the
best competitors that advantage is gone, and a text that is only nearly right loses against the right one.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import logsumexp

from noisycorr.clean.signals.view import BLOCK, ShuffledPairs, Signal, take
from noisycorr.stats.unit import unit

COMPETITORS = 1024


def margin(
    center: np.ndarray,
    partner: Sequence[np.ndarray],
    identity: np.ndarray,
    picture: np.ndarray,
    own: np.ndarray,
    pairs: ShuffledPairs,
    fold: np.ndarray,
    *,
    side: str,
    temperature: float,
    seed: int,
    mean: np.ndarray | None = None,
) -> Signal:
    """Log odds of the given partner against its competitors.

        margin_ij = s_ij / T - log sum_k exp(s_ik / T),   k: other identities than j's, s the cosine

    Competitors are up to 1,024 rows of the same fold, each of another identity, so cost is linear in n and a text that
    stands on many rows counts once. What a row itself came with does not compete with a partner drawn at random, unless
    most folds hold it: a wrong pair among the given ones rarely meets its right partner in its own fold, and random
    pairs that always do would look worse than wrong ones. It does compete with a near miss. Texts of one picture share
    its fate: what belongs to the picture of a partner competes, or is spared, with it.

    Args:
        center: (n, d) unit rows that ask: features of one side, or the consensus of a neighbourhood.
        partner: Parts of (n, d) features that are asked for.
        identity: int (n,): equal where partners are the same; they never compete with each other.
        picture: int (n,): equal where rows show the same picture; their partners do not compete with each other either.
        own: bool (n,): pairs that can be scored and that compete.
        pairs: Re-paired pairs to score in the same way.
        fold: int (n,): only rows of one fold share a space.
        side: `image` if images ask for texts, `text` if texts ask for images.
        temperature: T; smaller looks at the best competitor only.
        seed: For the choice of competitors.
        mean: (d,) taken off the partners first, or None.

    Returns:
        Log odds, higher = better matched; NaN where a side is missing or nobody competes.

    Source: the InfoNCE posterior (van den Oord et al., 2018), here of held-out features, and without the own pair in
    the sum, so that it does not saturate.
    """
    rng = np.random.default_rng([seed, 11])
    rivals = {}
    for part in np.unique(fold[own]):
        rows = np.flatnonzero(own & (fold == part))
        rows = rows[np.unique(identity[rows], return_index=True)[1]]
        rivals[part] = np.sort(rng.choice(rows, COMPETITORS, replace=False)) if len(rows) > COMPETITORS else rows
    offset = np.zeros(center.shape[1], np.float32) if mean is None else mean
    kin = (identity,) if identity is picture else (identity, picture)
    contest = _Contest(center, partner, kin, fold, rivals, offset, temperature)
    rows = np.arange(len(own))
    given = contest.log_odds(rows, rows, rows)
    given[~own] = np.nan
    here, there = (pairs.image, pairs.text) if side == "image" else (pairs.text, pairs.image)
    spared = np.where(_rare(identity, own, fold)[here] & ~pairs.near, here, there)
    return Signal(given, contest.log_odds(here, there, spared))


def _rare(identity: np.ndarray, own: np.ndarray, fold: np.ndarray) -> np.ndarray:
    """bool (n,): at most half of the folds hold this identity; never true of one fold."""
    parts, place = np.unique(fold[own], return_inverse=True)
    names, back = np.unique(identity[own], return_inverse=True)
    held = np.bincount(np.unique(back * len(parts) + place) // max(len(parts), 1), minlength=len(names))
    out = np.zeros(len(own), bool)
    out[own] = 2 * held[back] <= len(parts)
    return out


@dataclass(frozen=True, slots=True)
class _Contest:
    """Who asks, who is asked, and who competes in each fold."""

    center: np.ndarray
    partner: Sequence[np.ndarray]
    kin: tuple[np.ndarray, ...]  # (n,) each: rows that are equal in any of them do not compete
    fold: np.ndarray
    rivals: dict[int, np.ndarray]  # fold -> rows
    offset: np.ndarray
    temperature: float

    def log_odds(self, here: np.ndarray, there: np.ndarray, spared: np.ndarray) -> np.ndarray:
        """float32 (k,): row `here[k]` asks for row `there[k]`; NaN where that cannot be answered.

        Neither what row `there[k]` holds competes, nor what row `spared[k]` holds, nor what their pictures came with.
        """
        out = np.full(len(here), np.nan, np.float32)
        left_out = (there,) if there is spared else (there, spared)
        for part, rows in self.rivals.items():
            others = _partners(self.partner, rows, self.offset)
            mine = np.flatnonzero(self.fold[here] == part)
            for start in range(0, len(mine), BLOCK // 2):
                some = mine[start : start + BLOCK // 2]
                asking = self.center[here[some]].astype(np.float32)
                asked = _partners(self.partner, there[some], self.offset)
                rival = asking @ others.T / self.temperature
                for out_of, same in itertools.product(left_out, self.kin):
                    rival[same[rows][None] == same[out_of[some]][:, None]] = -np.inf
                best = (asking * asked).sum(1) / self.temperature
                known = np.any(asking != 0, 1) & np.any(asked != 0, 1) & np.any(np.isfinite(rival), 1)
                out[some[known]] = (best - _logsumexp(rival))[known]
        return out


def _logsumexp(rows: np.ndarray) -> np.ndarray:
    """Per row; a row without any finite number gives minus infinity without a warning."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(logsumexp(rows, axis=1))


def _partners(partner: Sequence[np.ndarray], rows: np.ndarray, offset: np.ndarray) -> np.ndarray:
    """Unit rows of the partners after the mean was taken off; zero rows stay zero."""
    raw = take(partner, rows).astype(np.float32)
    present = np.any(raw != 0, axis=1, keepdims=True)
    return unit(np.where(present, raw - offset, 0))
