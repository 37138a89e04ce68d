"""Scorers that did not propose: how well does a text fit an image, by heads that saw neither, and by the joint space?

A text borrowed from a similar image looks right to whatever knows that image and that text. So the heads that score
image i with a text of pair j were learned without the folds of both; moments of folds add up, so that a head for each
two folds costs no further pass. Old and new text of an image are scored by the same heads and against the same
competitors, and the null pairs that calibrate are, too.

Several scorers are put on one scale, the spread of re-paired pairs, and combined conservatively: who picks the best of
many by one learned score exploits its errors.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from scipy import stats
from scipy.special import logsumexp

from noisycorr.caption.recaption.choice import Aggregate
from noisycorr.clean.signals.crossfit import (
    SAMPLED,
    WIDTH,
    Heads,
    Moments,
    choose_reg,
    deal_folds,
    fold_moments,
    principal,
    project_parts,
    solve_heads,
)
from noisycorr.clean.signals.view import BLOCK, PairEmbeddings, shuffled_pairs, take
from noisycorr.stats.mixture import Fit, fit_null
from noisycorr.stats.unit import unit

RIVALS = 512
TEMPERATURE = 0.05
FEW = 20  # new texts that tell nothing about how many fit
BLIND = 0.6  # scorers that tell given from re-paired pairs no better than this do not vote

Parts = Sequence[np.ndarray]


@dataclass(frozen=True, slots=True)
class Asked:
    """m pairs to score: the image of a row with a text.

    Attributes:
        row: int (m,): whose image.
        text: (m, e) features of the texts, as the encoder gave them.
        text_id: int (m,): as in the view; -2 = a text that no pair has.
        fold: int (m,): the pair that taught the text belongs to it; that of the row if none did.
    """

    row: np.ndarray
    text: np.ndarray
    text_id: np.ndarray
    fold: np.ndarray


Scorer = Callable[[Asked], np.ndarray]


def conservative(scores: Float[np.ndarray, "n q"], *, aggregate: Aggregate = "worst",
                 penalty: float = 0.5) -> Float[np.ndarray, " n"]:  # fmt: skip
    """One score from those of q scorers on one scale.

        mean:        average_q s_q
        worst:       min_q s_q
        uncertainty: mean_q s_q - penalty * var_q s_q      (population variance)

    Args:
        scores: Higher = better matched; NaN = this scorer does not know, and does not count.
        aggregate: One of the three.
        penalty: >= 0, of the variance.

    Returns:
        (n,); NaN where no scorer knows. ``worst`` <= ``mean`` and ``uncertainty`` <= ``mean``.

    Raises:
        ValueError: If there is no such aggregate, or the penalty is negative.

    Source: WCO and UWO (Coste et al., ICLR 2024), the form of best-of-n.
    """
    if aggregate not in ("worst", "uncertainty", "mean") or penalty < 0:
        raise ValueError(f"aggregate is {aggregate!r} and penalty {penalty}")
    known = np.isfinite(scores)
    count = known.sum(1)
    filled = np.where(known, scores, 0.0)
    mean = filled.sum(1) / np.maximum(count, 1)
    if aggregate == "worst":
        out = np.where(known, scores, np.inf).min(1, initial=np.inf)
    elif aggregate == "uncertainty":
        out = mean - penalty * (np.where(known, scores - mean[:, None], 0.0) ** 2).sum(1) / np.maximum(count, 1)
    else:
        out = mean
    return np.where(count > 0, out, np.nan)


def fold_scorer(view: PairEmbeddings, weight: Float[np.ndarray, " n"], fold: Int[np.ndarray, " n"]) -> Scorer:
    """Heads learned on the pairs themselves, for each two folds without both.

    Args:
        view: The pairs.
        weight: Trust in each as a teacher, in [0, 1].
        fold: Of ``deal_folds``; three or more.

    Returns:
        A scorer: log odds against other texts for this image and other images for this text, higher = better matched.
    """
    image_way, text_way = principal(view.image, WIDTH), principal(view.text, WIDTH)
    x, t = project_parts(view.image, *image_way), project_parts(view.text, *text_way)
    taught = np.where(view.present, np.maximum(weight, 0.02), 0).astype(np.float32)
    reg, _ = choose_reg(x, t, taught, fold, shuffled_pairs(view, fold, count=SAMPLED), view)
    sums = fold_moments(x, t, taught, fold)
    ready: dict[tuple[int, int], tuple[Heads, _Rivals]] = {}

    def score(asked: Asked) -> np.ndarray:
        out = np.full(len(asked.row), np.nan, np.float32)
        texts = project_parts([asked.text], *text_way)
        low, high = np.minimum(fold[asked.row], asked.fold), np.maximum(fold[asked.row], asked.fold)
        for one, two in sorted(set(zip(low.tolist(), high.tolist()))):
            if (one, two) not in ready:
                heads = solve_heads(_without(sums, {one, two}), reg)
                rows = _sample(view, np.flatnonzero(view.present & ((fold == one) | (fold == two))))
                ready[one, two] = heads, _Rivals(view, rows, *_project(heads, x[rows], t[rows]))
            heads, rivals = ready[one, two]
            some = np.flatnonzero((low == one) & (high == two))
            out[some] = rivals.margin(*_project(heads, x[asked.row[some]], texts[some]), asked, some)
        return out

    return score


def joint_scorer(
    view: PairEmbeddings, image: Parts, encode: Callable[[np.ndarray], np.ndarray], texts: Parts
) -> Scorer:
    """The encoder's own joint space, which no pair of this set taught.

    Args:
        view: The pairs.
        image: Parts of (n, j) features in that space.
        encode: Features (m, e) of texts to (m, j).
        texts: Parts of (n, j): the texts of the pairs there.
    """
    rows = _sample(view, np.flatnonzero(view.present))
    rivals = _Rivals(view, rows, unit(take(image, rows)), unit(take(texts, rows)))

    def score(asked: Asked) -> np.ndarray:
        return rivals.margin(unit(take(image, asked.row)), unit(encode(asked.text)), asked, np.arange(len(asked.row)))

    return score


@dataclass(frozen=True, slots=True)
class Jury:
    """Scorers with their scales, and the curve from their common score to a probability.

    Attributes:
        scorers: By name, those that vote.
        scale: Mean and spread of each on re-paired pairs.
        fit: From the combined score to the probability that text and image belong together.
        null: Combined scores of re-paired texts.
        aggregate: How they are combined.
        penalty: Of the variance.
        facts: Separation of each scorer, also of those that do not vote.
    """

    scorers: dict[str, Scorer]
    scale: dict[str, tuple[float, float]]
    fit: Fit
    null: Float[np.ndarray, " r"]
    aggregate: Aggregate
    penalty: float
    facts: dict[str, Any]

    def __call__(self, asked: Asked) -> np.ndarray:
        """float32 (m,): probability in [0, 1] that text and image belong together; NaN where nobody knows."""
        return self.fit(self.combined(asked)).astype(np.float32)

    def combined(self, asked: Asked) -> Float[np.ndarray, " m"]:
        """One score of all who vote, on the scale of re-paired pairs; NaN where nobody knows."""
        columns = [(scorer(asked) - self.scale[name][0]) / self.scale[name][1] for name, scorer in self.scorers.items()]
        return conservative(np.stack(columns, 1), aggregate=self.aggregate, penalty=self.penalty).astype(np.float32)


def call_jury(view: PairEmbeddings, scorers: dict[str, Scorer], fold: np.ndarray, *, aggregate: Aggregate = "worst",
              penalty: float = 0.5) -> Jury:  # fmt: skip
    """Scale and calibrate scorers on given and re-paired pairs; no truth is needed.

    Args:
        view: The pairs.
        scorers: By name.
        fold: int (n,): of the heads; given pairs are scored as if their text came from another fold, as the re-paired
            and the proposed ones do.
        aggregate: As in ``conservative``.
        penalty: As there.

    Returns:
        Those that separate; none if none does.
    """
    rng = np.random.default_rng([view.seed, 41])
    rows = np.flatnonzero(view.present)
    rows = np.sort(rng.choice(rows, SAMPLED, replace=False)) if len(rows) > SAMPLED else rows
    pairs = shuffled_pairs(view, np.zeros(view.n, np.int64), count=SAMPLED)
    own = Asked(rows, take(view.text, rows), view.text_id[rows], rng.integers(fold.max() + 1, size=len(rows)))
    null = Asked(pairs.image, take(view.text, pairs.text), view.text_id[pairs.text], fold[pairs.text])
    voting, scale, facts = {}, {}, {}
    for name, scorer in scorers.items():
        one, two = scorer(own), scorer(null)
        one, two = one[np.isfinite(one)], two[np.isfinite(two)]
        if not len(one) or not len(two):
            continue
        facts[name] = round(float(stats.mannwhitneyu(one, two).statistic / (len(one) * len(two))), 4)
        if facts[name] >= BLIND:
            voting[name], scale[name] = scorer, (float(two.mean()), max(float(two.std()), 1e-6))
    empty = Fit(kind="constant", score=np.zeros(1), p_clean=np.ones(1), noise_rate=np.nan, low=np.nan, high=np.nan,
                separation=np.nan, warning="no scorer tells right from wrong pairs", parameters={})  # fmt: skip
    jury = Jury(voting, scale, empty, np.zeros(0), aggregate, penalty, {"separation": facts, "voted": list(voting)})
    if not voting:
        return jury
    wrong = jury.combined(null)
    return replace(jury, fit=fit_null(jury.combined(own), wrong, seed=view.seed), null=wrong)


def judge_new(jury: Jury, asked: Asked, seed: int) -> tuple[Float[np.ndarray, " m"], Fit]:
    """Probability that each new text fits: by the curve of given texts and by that of the new ones; the lower counts.

        p_new(s) = min(p_given(s), 1 - eta f_null(s) / f_new(s)),   f_null: scores of re-paired given texts

    The first knows how many of the *given* texts fit. A captioner, or pictures without a right neighbour, may give
    fewer: eta is the share of new texts that score as texts of other pictures do.

    Args:
        jury: Its scorers, its curve and the scores of re-paired texts.
        asked: m new texts, each with its picture.
        seed: Of the interval of eta.

    Returns:
        float32 (m,) in [0, 1], NaN where nobody knows; and the second curve. With fewer than FEW new texts it is flat
        at 1 and says so; if more of them cannot be told from texts of other pictures, flat at 0, with a share of 1.
    """
    score = jury.combined(asked)
    own = fit_null(score, jury.null, seed=seed)
    if own.kind == "constant" and np.isfinite(score).sum() >= FEW:
        own = replace(own, p_clean=np.zeros_like(own.p_clean), noise_rate=1.0, low=np.nan, high=1.0)
    return np.fmin(jury.fit(score), own(score)).astype(np.float32), own


def judging_folds(view: PairEmbeddings, folds: int) -> np.ndarray:
    """int (n,): folds for ``fold_scorer``; pictures that are the same or near-duplicates stay together."""
    return deal_folds(view.image_id, max(3, folds), view.seed)


class _Rivals:
    """Other texts and other images to set a pair against."""

    def __init__(self, view: PairEmbeddings, rows: np.ndarray, image: np.ndarray, text: np.ndarray) -> None:
        self.view, self.rows, self.image, self.text = view, rows, image, text

    def margin(self, image: np.ndarray, text: np.ndarray, asked: Asked, some: np.ndarray) -> np.ndarray:
        """s / T less the mean of both logarithms of the mean exp of the rivals' s / T; NaN where a side is missing."""
        out = np.full(len(image), np.nan, np.float32)
        for start in range(0, len(image), BLOCK // 4):
            block = slice(start, start + BLOCK // 4)
            one, two, rows = image[block], text[block], asked.row[some[block]]
            same = self.view.image_id[self.rows][None] == self.view.image_id[rows][:, None]
            same |= self.view.text_id[self.rows][None] == asked.text_id[some[block]][:, None]
            both = [one @ self.text.T, two @ self.image.T]
            free = np.maximum((~same).sum(1), 1)
            odds = [logsumexp(np.where(same, -1e9, s / TEMPERATURE), axis=1) - np.log(free) for s in both]
            value = (one * two).sum(1) / TEMPERATURE - 0.5 * (odds[0] + odds[1])
            known = one.any(1) & two.any(1) & ~same.all(1)
            out[block] = np.where(known, value, np.nan)
        return out


def _sample(view: PairEmbeddings, rows: np.ndarray) -> np.ndarray:
    if len(rows) <= RIVALS:
        return rows
    return np.sort(np.random.default_rng([view.seed, 43]).choice(rows, RIVALS, replace=False))


def _without(sums: list[Moments], left_out: set[int]) -> Moments:
    some = [moments for place, moments in enumerate(sums) if place not in left_out]
    return Moments(*(sum(getattr(m, name) for m in some) for name in ("weight", "x", "t", "xx", "tt", "xt")))  # type: ignore[arg-type]


def _project(heads: Heads, image: np.ndarray, text: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    one = unit((image - heads.image_mean) @ heads.image)
    two = unit((text - heads.text_mean) @ heads.text)
    one[~image.any(1)], two[~text.any(1)] = 0, 0
    return one, two
