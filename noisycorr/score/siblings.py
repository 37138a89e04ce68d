"""Texts of one picture vouch for each other: those that say the same are right together or wrong together.

A picture with several texts (five captions, or near-copies found on several pages) holds more evidence than each pair
alone. Two cases must be told apart without labels: single texts were exchanged, so that the wrong one contradicts its
siblings, or all texts of a picture came from elsewhere, so that wrong ones agree. Both are states of one small model:

    P(z | all) ~ prod_i p_i^(t z_i) (1 - p_i)^(t (1 - z_i)) * prod_{i<j} psi(z_i, z_j, c_ij),      z_i = 1: i is right
    psi(1, 1, c) = r(c),   psi(1, 0, c) = 1,   psi(0, 0, c) = rho r(c) + 1 - rho,   r = f_same / f_different
    t = 1 / (1 + (m - 1) kappa)

p_i comes from the pair alone, c_ij is the cosine of two texts. r(c) is measured on texts of one picture against texts of
any two. rho, how often wrong siblings came together, is the likeliest of a grid. kappa, the correlation of the scores
of one wrong picture with two texts of another, keeps evidence that repeats itself from counting m times.

Source: ours; exact inference in a Markov random field of at most six nodes, t is the design effect of cluster sampling
(Kish 1965).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy import special

from noisycorr.mixture import density_ratio, null_share
from noisycorr.score.view import Repaired, View, pair_cosine, take, unit

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


def sibling_groups(view: View) -> list[np.ndarray]:
    """Rows of each picture that holds two or more different texts: one row a text, at most six, drawn at random."""
    rng = np.random.default_rng([view.seed, 31])
    rows = np.flatnonzero(view.present)
    _, first = np.unique(np.stack([view.image_id[rows], view.text_id[rows]]), axis=1, return_index=True)
    rows = rows[first]  # ordered by picture
    cuts = np.flatnonzero(np.diff(view.image_id[rows])) + 1
    groups = [group for group in np.split(rows, cuts) if len(group) > 1]
    return [np.sort(rng.choice(group, MOST, replace=False)) if len(group) > MOST else group for group in groups]


def vouch(
    view: View,
    p: Float[np.ndarray, " n"],
    space: tuple[list[np.ndarray], list[np.ndarray]],
    pairs: Repaired,
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
    if sum(map(len, groups)) < SHARE * max(int(view.present.sum()), 1):
        return None
    ratio = _ratio(view, groups)
    kappa = _kappa(view, space, pairs)
    known = [_Picture.of(view, rows, p, ratio, kappa) for rows in groups if np.isfinite(p[rows]).all()]
    rho = RHO[int(np.argmax([sum(picture.evidence(value) for picture in known) for value in RHO]))]
    out = p.astype(np.float64).copy()
    for picture in known:
        out[picture.rows] = picture.posterior(rho)
    return Vouched(_spread(view, out, known), rho, kappa, len(known))


@dataclass(frozen=True, slots=True)
class _Picture:
    """One small model."""

    rows: np.ndarray  # (m,)
    single: np.ndarray  # (m,) tempered log odds of each text
    ratio: np.ndarray  # (m, m) r of each pair of texts

    @staticmethod
    def of(view: View, rows: np.ndarray, p: np.ndarray, ratio: _Ratio, kappa: float) -> _Picture:
        text = unit(take(view.text, rows))
        odds = special.logit(np.clip(p[rows].astype(np.float64), SURE, 1 - SURE))
        return _Picture(rows, odds / (1 + (len(rows) - 1) * kappa), ratio(text @ text.T))

    def energies(self, rho: float) -> tuple[np.ndarray, np.ndarray]:
        """All states (s, m), and the log weight of each."""
        return states(len(self.rows)), log_weights(self.single, self.ratio, rho)

    def evidence(self, rho: float) -> float:
        """Log likelihood of the agreement of its texts."""
        alone = np.logaddexp(0, self.single).sum()
        return float(special.logsumexp(self.energies(rho)[1]) - alone)

    def posterior(self, rho: float) -> np.ndarray:
        """(m,) probability that each text is right."""
        state, weight = self.energies(rho)
        return special.softmax(weight) @ state


def states(count: int) -> Bool[np.ndarray, "s m"]:
    """All 2^m assignments of right and wrong."""
    return (np.arange(2**count)[:, None] >> np.arange(count)) % 2 == 1


def log_weights(
    single: Float[np.ndarray, " m"], ratio: Float[np.ndarray, "m m"], rho: float
) -> Float[np.ndarray, " s"]:
    """Log of the unnormalised probability of each state of `states(m)`.

    Args:
        single: Log odds of each text by itself, already tempered.
        ratio: r of each pair of texts; symmetric, the diagonal is not used.
        rho: How often wrong siblings came together, in [0, 1].
    """
    right = states(len(single)).astype(np.float64)
    both, neither = np.triu(np.log(ratio), 1), np.triu(np.log(rho * ratio + 1 - rho), 1)
    wrong = 1 - right
    return (
        right @ single
        + np.einsum("si,ij,sj->s", right, both, right)
        + np.einsum("si,ij,sj->s", wrong, neither, wrong)
    )


@dataclass(frozen=True, slots=True)
class _Ratio:
    """r as a function of the cosine: linear between knots, flat outside."""

    cosine: np.ndarray
    value: np.ndarray

    def __call__(self, cosine: np.ndarray) -> np.ndarray:
        return np.interp(cosine, self.cosine, self.value)


def _ratio(view: View, groups: list[np.ndarray]) -> _Ratio:
    """f_same / f_different from texts of one picture, of which a share is different, against texts of two pictures."""
    rng = np.random.default_rng([view.seed, 37])
    one, two = np.array([pair for rows in groups for pair in _each_pair(rows)]).T
    if len(one) > PAIRS:
        some = rng.choice(len(one), PAIRS, replace=False)
        one, two = one[some], two[some]
    rows = np.concatenate(groups)
    a, b = rng.choice(rows, (2, 4 * len(one)))
    other = (view.image_id[a] != view.image_id[b]) & (view.text_id[a] != view.text_id[b])
    same, different = _cosine(view, one, two), _cosine(view, a[other], b[other])
    if len(same) < 20 or len(different) < 20:
        return _Ratio(np.array([0.0]), np.array([1.0]))
    share = 1 - null_share(same, different)
    cosine, mixed = density_ratio(same, different)
    ratio = (mixed - (1 - share)) / max(share, 1e-3)
    return _Ratio(cosine, np.clip(ratio, 1 / RATIO, RATIO))


def _each_pair(rows: np.ndarray) -> np.ndarray:
    i, j = np.triu_indices(len(rows), 1)
    return np.stack([rows[i], rows[j]], 1)


def _cosine(view: View, one: Int[np.ndarray, " k"], two: Int[np.ndarray, " k"]) -> np.ndarray:
    return (unit(take(view.text, one)) * unit(take(view.text, two))).sum(1)


def _kappa(view: View, space: tuple[list[np.ndarray], list[np.ndarray]], pairs: Repaired) -> float:
    """Correlation of the cosines of one picture with two texts of another; 1 where it cannot be measured."""
    random = np.flatnonzero(~pairs.near)[:PAIRS]
    image, text = pairs.image[random], pairs.text[random]
    order = np.argsort(view.image_id, kind="stable")
    first = np.searchsorted(view.image_id[order], view.image_id[text])
    size = np.searchsorted(view.image_id[order], view.image_id[text], "right") - first
    place = np.random.default_rng([view.seed, 41]).integers(np.maximum(size, 1))
    other = order[first + place]
    good = (view.text_id[other] != view.text_id[text]) & view.present[other]
    if good.sum() < 20:
        return 1.0
    near = np.zeros(int(good.sum()), bool)
    a = pair_cosine(*space, Repaired(image[good], text[good], near))
    b = pair_cosine(*space, Repaired(image[good], other[good], near))
    found = np.corrcoef(a, b)[0, 1] if a.std() > 0 and b.std() > 0 else 1.0
    return float(np.clip(found, 0, 1))


def _spread(view: View, p_clean: np.ndarray, known: list[_Picture]) -> np.ndarray:
    """Rows with the same picture and text as a row that was judged get its probability."""
    if not known:
        return p_clean
    judged = np.concatenate([picture.rows for picture in known])
    width = int(view.text_id.max()) + 2
    key = view.image_id.astype(np.int64) * width + view.text_id
    order = judged[np.argsort(key[judged])]
    place = np.minimum(np.searchsorted(key[order], key), len(order) - 1)
    same = (key[order[place]] == key) & view.present
    out = p_clean.copy()
    out[same] = p_clean[order[place[same]]]
    return out
