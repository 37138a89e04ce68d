"""From several signals about classes to what is probably true, with the given label as the noisy end of a channel.

    p(c | x)  = softmax_c( sum_q a_q s_q(x, c) ),   a_q >= 0
    P(y | x)  = (1 - o) [ (1 - e) p(y | x) + e sum_c p(c | x) T(c, y) ] + o / c
    score     = log of the first part (right) against the rest (wrong): confusion or out of the set

Every signal is held out from the row's own label, so the weights a can maximise the likelihood of the given labels, in
which wrong labels count little: no truth is needed. e is how often the surest predictions are contradicted, T by which
class, o the share of pictures of no class at all, whose labels are any, which must be told.

Source: label noise as a channel, Goldberger and Ben-Reuven (ICLR 2017), as in `score/classes.py`; the third way to be
wrong, and several signals, are ours.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from scipy import optimize, special

from noisycorr.clean.signals.classes import confusions, contradicted

PENALTY = 1e-4
ROUNDS = 3
TINY = 1e-12


@dataclass(frozen=True, slots=True, kw_only=True)
class Channel:
    """How labels come about.

    Attributes:
        weight: (q,) of the signals, >= 0.
        confused: e, share of labels of pictures in the set that name another class.
        spread: (c, c) T: which class is named instead; zero diagonal, rows sum to 1.
        outside: o, share of pictures out of the set.
        likelihood: Mean log P(y | x) where it was fitted.
        sure: Predictions that e was counted on.
    """

    weight: np.ndarray
    confused: float
    spread: np.ndarray
    outside: float
    likelihood: float
    sure: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgement:
    """Of k rows, from signals and the given label.

    Attributes:
        score: (k,) log odds that the label is right, higher = better.
        wrong_odds: (k, c) share of each other class in what is wrong, and in `outside` of none; together they sum to 1.
        outside: (k,) see above.
        energy: (k,) log sum of exponentials of the logits: how much the picture looks like any class.
    """

    score: np.ndarray
    wrong_odds: np.ndarray
    outside: np.ndarray
    energy: np.ndarray


def fit_channel(signals: Float[np.ndarray, "q k c"], labels: Int[np.ndarray, " k"], *, outside: float) -> Channel:
    """Weights and channel of greatest likelihood.

    Args:
        signals: Held out from the labels, each of about unit scale; 0 = says nothing.
        labels: Given classes.
        outside: Share of pictures of no class, in [0, 1).
    """
    c = signals.shape[2]
    count = np.bincount(labels, minlength=c)
    prior = (count + 1) / (len(labels) + c)
    weight, value = _blind(signals, labels, prior)
    confused, spread, sure = 0.0, np.zeros((c, c)), 0
    for turn in range(ROUNDS):
        logits = mixed(signals, weight)
        label, lead = _predicted(logits)
        share, sure = contradicted(label, lead, labels)
        confused, spread = confusions(label, lead, labels, count, share)
        if turn < ROUNDS - 1:
            weight, value = _through(signals, labels, (1 - confused) * np.eye(c) + confused * spread, weight)
    return Channel(weight=weight, confused=confused, spread=spread, outside=outside, likelihood=-value, sure=sure)


def judge(signals: Float[np.ndarray, "q k c"], labels: Int[np.ndarray, " k"], channel: Channel) -> Judgement:
    """What the channel says of rows; a label of -1 means that none was given: then `score` is NaN.

    Args:
        signals: As of `fit_channel`.
        labels: (k,) given classes, -1 = none.
        channel: Fitted.
    """
    logits = mixed(signals, channel.weight)
    p = special.softmax(logits.astype(np.float64), axis=1)
    each, known, y = np.arange(len(p)), labels >= 0, np.maximum(labels, 0)
    inside, e = 1 - channel.outside, channel.confused
    own = inside * (1 - e) * p[each, y] + TINY
    others = inside * e * p * channel.spread.T[y]
    others[~known] = inside * p[~known]
    none = np.full(len(p), max(channel.outside, TINY) / p.shape[1])
    wrong = others.sum(axis=1) + none
    score = np.where(known, np.log(own) - np.log(wrong), np.nan)
    energy = special.logsumexp(logits.astype(np.float64), axis=1)
    return Judgement(score=score.astype(np.float32), wrong_odds=(others / wrong[:, None]).astype(np.float32),
                     outside=(none / wrong).astype(np.float32), energy=energy.astype(np.float32))  # fmt: skip


def mixed(signals: Float[np.ndarray, "q k c"], weight: Float[np.ndarray, " q"]) -> Float[np.ndarray, "k c"]:
    """Weighted sum of the signals."""
    return np.asarray(np.tensordot(weight.astype(np.float32), signals, axes=1))


def blind_loss(
    theta: Float[np.ndarray, " q1"], signals: Float[np.ndarray, "q k c"], labels: np.ndarray, prior: np.ndarray
) -> tuple[float, Float[np.ndarray, " q1"]]:
    """Negative mean log likelihood where wrong labels follow the frequencies of classes, and its gradient.

    P(y | x) = (1 - eta) p(y | x) + eta prior(y);   theta = (a, logit eta)
    """
    eta = special.expit(theta[-1])
    p = special.softmax(mixed(signals, theta[:-1]).astype(np.float64), axis=1)
    one = np.arange(len(labels))
    own = p[one, labels]
    total = (1 - eta) * own + eta * prior[labels]
    right = (1 - eta) * own / total
    slope = [-(right * (s[one, labels] - (p * s).sum(axis=1))).mean() for s in signals]
    last = -((prior[labels] - own) / total).mean() * eta * (1 - eta)
    penalty = PENALTY * (theta[:-1] ** 2).sum()
    return float(-np.log(total).mean() + penalty), np.array([*(slope + 2 * PENALTY * theta[:-1]), last])


def channel_loss(
    theta: Float[np.ndarray, " q"], signals: Float[np.ndarray, "q k c"], labels: np.ndarray, matrix: np.ndarray
) -> tuple[float, Float[np.ndarray, " q"]]:
    """Negative mean log likelihood of labels through a channel (c, c), P(given | true), and its gradient."""
    p = special.softmax(mixed(signals, theta).astype(np.float64), axis=1)
    joint = p * matrix.T[labels]
    total = joint.sum(axis=1)
    away = joint / total[:, None] - p
    slope = np.array([-(away * s).sum(axis=1).mean() for s in signals])
    return float(-np.log(total).mean() + PENALTY * (theta**2).sum()), slope + 2 * PENALTY * theta


def _blind(signals: np.ndarray, labels: np.ndarray, prior: np.ndarray) -> tuple[np.ndarray, float]:
    start = np.append(np.full(len(signals), 0.3), -1.0)
    bounds = [(0.0, None)] * len(signals) + [(-5.0, 2.0)]
    found = optimize.minimize(blind_loss, start, (signals, labels, prior), jac=True, bounds=bounds, method="L-BFGS-B",
                              options={"maxiter": 40})  # fmt: skip
    return np.asarray(found.x[:-1]), float(found.fun)


def _through(
    signals: np.ndarray, labels: np.ndarray, matrix: np.ndarray, start: np.ndarray
) -> tuple[np.ndarray, float]:
    bounds = [(0.0, None)] * len(signals)
    found = optimize.minimize(channel_loss, start, (signals, labels, matrix), jac=True, bounds=bounds,
                              method="L-BFGS-B", options={"maxiter": 40})  # fmt: skip
    return np.asarray(found.x), float(found.fun)


def _predicted(logits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The likeliest class, and its lead in log odds over the next."""
    best = np.argpartition(-logits, 1, axis=1)[:, :2]
    value = np.take_along_axis(logits, best, 1)
    first, one = value.argmax(axis=1), np.arange(len(logits))
    return best[one, first], value[one, first] - value[one, 1 - first]
