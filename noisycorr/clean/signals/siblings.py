"""Texts of one picture vouch for each other: those that say the same are right together or wrong together.

A picture with several texts (five captions, or near-copies found on several pages) holds more evidence than each pair
alone. Two cases must be told apart without labels: single texts were exchanged, so that the wrong one contradicts its
siblings, or all texts of a picture came from elsewhere, so that wrong ones agree. Both are states of one small model:

    P(z | all) ~ prod_i p_i^(t z_i) (1 - p_i)^(t (1 - z_i)) * prod_{i<j} psi(z_i, z_j, c_ij),      z_i = 1: i is right
    psi(1, 1, c) = r(c),   psi(1, 0, c) = 1,   psi(0, 0, c) = rho r(c) + 1 - rho,   r = f_same / f_different
    t = 1 / (1 + (m - 1) kappa)

p_i comes from the pair alone, c_ij is the cosine of two texts. r(c) is measured on texts of one picture against texts
of any two. rho, how often wrong siblings came together, is the likeliest of a grid. kappa, the correlation of the
scores of one wrong picture with two texts of another, keeps evidence that repeats itself from counting m times.

Source: ours; exact inference in a Markov random field of at most six nodes, t is the design effect of cluster sampling
(Kish 1965).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy import special

from noisycorr.clean.signals.view import BLOCK, PairEmbeddings, ShuffledPairs, pair_cosine, take
from noisycorr.stats.mixture import density_ratio, null_share
from noisycorr.stats.unit import unit

MOST = 6  # texts of a picture that are looked at together
SHARE = 0.05  # of the pairs must have a sibling with another text
RATIO = 20.0  # limit of r and 1 / r
SURE = 0.01  # p_i is kept this far from 0 and 1
RHO = (0.02, 0.25, 0.5, 0.75, 0.98)
PAIRS = 20_000  # pairs of texts that r is measured on


@dataclass(frozen=True, slots=True)
class Vouched:
    """What siblings say.

    Attributes:
        p_clean: float64 (n,) posterior, NaN where `p` was; pairs without siblings keep `p`.
        rho: How often wrong texts of one picture came together, in [0, 1].
        kappa: Correlation of evidence, in [0, 1].
        pictures: Number of pictures with siblings.
    """

    p_clean: np.ndarray
    rho: float
    kappa: float
    pictures: int


def sibling_groups(view: PairEmbeddings) -> list[np.ndarray]:
    """Rows of each picture that holds two or more different texts: one row a text, at most six, drawn at random.

    Returns:
        One int array (g, m) for each number m of texts, m from 2 to 6; arrays of g = 0 are left out.
    """
    rows = np.flatnonzero(view.present)
    rows = rows[np.unique(_key(view)[rows], return_index=True)[1]]
    draw = np.random.default_rng([view.seed, 31]).random(len(rows))
    rows = rows[np.lexsort((draw, _picture(view)[rows]))]
    _, start, size = np.unique(_picture(view)[rows], return_index=True, return_counts=True)
    out = []
    for m in range(2, MOST + 1):
        first = start[size == m] if m < MOST else start[size >= m]
        if len(first):
            out.append(np.sort(rows[first[:, None] + np.arange(m)], axis=1))
    return out


def correct_by_siblings(
    view: PairEmbeddings,
    p: Float[np.ndarray, " n"],
    space: tuple[Sequence[np.ndarray], Sequence[np.ndarray]],
    pairs: ShuffledPairs,
) -> Vouched | None:
    """Let the texts of each picture correct each other.

    Args:
        view: The pairs.
        p: Calibrated probability of each pair by itself, in [0, 1].
        space: Features (image, text) of one space, on which kappa is measured.
        pairs: Re-paired pairs.

    Returns:
        The posterior, or None where fewer than 5 % of the pairs have siblings with other texts.
    """
    groups = sibling_groups(view)
    if sum(rows.size for rows in groups) < max(SHARE * int(view.present.sum()), 1):
        return None
    ratio, kappa = _ratio(view, groups), _kappa(view, space, pairs)
    pictures = [_Pictures.of(view, rows[np.isfinite(p[rows]).all(1)], p, ratio, kappa) for rows in groups]
    rho = RHO[int(np.argmax([sum(some.evidence(value) for some in pictures) for value in RHO]))]
    out = p.astype(np.float64).copy()
    for some in pictures:
        out[some.rows] = some.posterior(rho)
    judged = np.concatenate([some.rows.ravel() for some in pictures])
    return Vouched(_spread(view, out, judged), rho, kappa, sum(len(some.rows) for some in pictures))


@dataclass(frozen=True, slots=True)
class _Pictures:
    """The small models of all pictures with m texts."""

    rows: np.ndarray  # (g, m)
    single: np.ndarray  # (g, m) tempered log odds of each text
    ratio: np.ndarray  # (g, m, m) r of each pair of texts

    @staticmethod
    def of(view: PairEmbeddings, rows: np.ndarray, p: np.ndarray, ratio: _Ratio, kappa: float) -> _Pictures:
        ratios = [np.zeros((0, rows.shape[1], rows.shape[1]))]
        for start in range(0, len(rows), BLOCK // 8):  # features of all texts would not fit
            some = rows[start : start + BLOCK // 8]
            text = unit(take(view.text, some.ravel())).reshape(*some.shape, -1)
            ratios.append(ratio(np.einsum("gid,gjd->gij", text, text)))
        odds = special.logit(np.clip(p[rows].astype(np.float64), SURE, 1 - SURE))
        return _Pictures(rows, odds / (1 + (rows.shape[1] - 1) * kappa), np.concatenate(ratios))

    def evidence(self, rho: float) -> float:
        """Log likelihood of the agreement of their texts."""
        alone = np.logaddexp(0, self.single).sum()
        return float(special.logsumexp(log_weights(self.single, self.ratio, rho), axis=1).sum() - alone)

    def posterior(self, rho: float) -> np.ndarray:
        """(g, m) probability that each text is right."""
        return special.softmax(log_weights(self.single, self.ratio, rho), axis=1) @ states(self.rows.shape[1])


def states(count: int) -> Bool[np.ndarray, "s m"]:
    """All 2^m assignments of right and wrong."""
    return (np.arange(2**count)[:, None] >> np.arange(count)) % 2 == 1


def log_weights(
    single: Float[np.ndarray, "g m"], ratio: Float[np.ndarray, "g m m"], rho: float
) -> Float[np.ndarray, "g s"]:
    """Log of the unnormalised probability of each state of `states(m)`, for g pictures.

    Args:
        single: Log odds of each text by itself, already tempered.
        ratio: r of each pair of texts; symmetric, the diagonal is not used.
        rho: How often wrong siblings came together, in [0, 1].
    """
    right = states(single.shape[1]).astype(np.float64)
    i, j = np.triu_indices(single.shape[1], 1)
    both, neither = right[:, i] * right[:, j], (1 - right[:, i]) * (1 - right[:, j])
    each = ratio[:, i, j]
    return single @ right.T + np.log(each) @ both.T + np.log(rho * each + 1 - rho) @ neither.T


@dataclass(frozen=True, slots=True)
class _Ratio:
    """r as a function of the cosine: linear between knots, flat outside."""

    cosine: np.ndarray
    value: np.ndarray

    def __call__(self, cosine: np.ndarray) -> np.ndarray:
        return np.interp(cosine, self.cosine, self.value)


def _ratio(view: PairEmbeddings, groups: list[np.ndarray]) -> _Ratio:
    """f_same / f_different from texts of one picture, of which a share is different, against texts of two pictures."""
    rng = np.random.default_rng([view.seed, 37])
    one, two = np.concatenate([_each_pair(rows) for rows in groups]).T
    if len(one) > PAIRS:
        some = rng.choice(len(one), PAIRS, replace=False)
        one, two = one[some], two[some]
    rows = np.concatenate([rows.ravel() for rows in groups])
    a, b = rng.choice(rows, (2, 4 * len(one)))
    other = (_picture(view)[a] != _picture(view)[b]) & (view.text_id[a] != view.text_id[b])
    same, different = _cosine(view, one, two), _cosine(view, a[other], b[other])
    if len(same) < 20 or len(different) < 20:
        return _Ratio(np.array([0.0]), np.array([1.0]))
    share = 1 - null_share(same, different)
    cosine, mixed = density_ratio(same, different)
    ratio = (mixed - (1 - share)) / max(share, 1e-3)
    return _Ratio(cosine, np.clip(ratio, 1 / RATIO, RATIO))


def _each_pair(rows: np.ndarray) -> np.ndarray:
    i, j = np.triu_indices(rows.shape[1], 1)
    return np.stack([rows[:, i].ravel(), rows[:, j].ravel()], 1)


def _cosine(view: PairEmbeddings, one: Int[np.ndarray, " k"], two: Int[np.ndarray, " k"]) -> np.ndarray:
    return (unit(take(view.text, one)) * unit(take(view.text, two))).sum(1)


def _kappa(
    view: PairEmbeddings, space: tuple[Sequence[np.ndarray], Sequence[np.ndarray]], pairs: ShuffledPairs
) -> float:
    """Correlation of the cosines of one picture with two texts of another; 1 where it cannot be measured."""
    random = np.flatnonzero(~pairs.near)[:PAIRS]
    image, text = pairs.image[random], pairs.text[random]
    picture = _picture(view)
    order = np.argsort(picture, kind="stable")
    first, after = (np.searchsorted(picture[order], picture[text], end) for end in ("left", "right"))  # type: ignore[call-overload]
    size = after - first
    place = np.random.default_rng([view.seed, 41]).integers(np.maximum(size, 1))
    other = order[first + place]
    good = (view.text_id[other] != view.text_id[text]) & view.present[other]
    if good.sum() < 20:
        return 1.0
    near = np.zeros(int(good.sum()), bool)
    a = pair_cosine(*space, ShuffledPairs(image[good], text[good], near))
    b = pair_cosine(*space, ShuffledPairs(image[good], other[good], near))
    found = np.corrcoef(a, b)[0, 1] if a.std() > 0 and b.std() > 0 else 1.0
    return float(np.clip(found, 0, 1))


def _picture(view: PairEmbeddings) -> np.ndarray:
    """int (n,): equal where the picture is the same."""
    return view.image_id if view.picture is None else view.picture


def _key(view: PairEmbeddings) -> np.ndarray:
    """int64 (n,): equal where picture and text are."""
    width = int(view.text_id.max(initial=0)) + 2  # ids begin at -1
    return _picture(view).astype(np.int64) * width + view.text_id


def _spread(view: PairEmbeddings, p_clean: np.ndarray, judged: np.ndarray) -> np.ndarray:
    """Rows with the same picture and text as a judged one get its probability."""
    out = p_clean.copy()
    if len(judged):
        key = _key(view)
        order = judged[np.argsort(key[judged])]
        place = np.minimum(np.searchsorted(key[order], key), len(order) - 1)
        same = (key[order[place]] == key) & view.present
        out[same] = p_clean[order[place[same]]]
    return out
