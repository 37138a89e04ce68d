"""From scores to probabilities: how much of the data is wrong, and how likely each pair is right.

Three ways to the same result, a monotone curve from score to `p_clean`:

* `fit_null`: the wrong component is *known*, by scoring pairs that were re-paired at random on purpose. The default.
* `fit_gaussian`, `fit_beta`: two components are guessed from the shape of the scores alone, as the field does.
* `fit_labels`: a few pairs that a person judged bend any of these curves.

Every curve is monotone (law 5): a higher score never gets a lower probability.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Bool, Float
from scipy import special

KNOTS = 512  # points of the stored curve
PRIOR = 5.0  # how hard it is for labels to bend a curve
BLIND = 0.55  # below this AUROC of given against re-paired pairs a score says nothing
SURE = 2.5  # nor if the AUROC is less than this many standard errors above chance: few pairs easily look separable


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """A monotone curve from score to probability, and what it says about the whole.

    Attributes:
        kind: `null`, `gaussian`, `beta`, `labels` or `constant`.
        score: (m,) increasing scores.
        p_clean: (m,) probability at each of them, in [0, 1], never decreasing.
        noise_rate: Estimated share of wrong pairs, in [0, 1].
        low: Lower end of its 95 % interval, of sampling error alone.
        high: Upper end.
        separation: AUROC of given pairs against re-paired ones, 0.5 = blind; NaN where no null was at hand.
        warning: What the reader must know, or None.
        parameters: Of the components, for the report.
    """

    kind: str
    score: np.ndarray
    p_clean: np.ndarray
    noise_rate: float
    low: float
    high: float
    separation: float
    warning: str | None
    parameters: dict[str, Any]

    def __call__(self, score: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
        """Probability in [0, 1] for each score; NaN stays NaN. Linear between the points, flat outside."""
        out = np.interp(score, self.score, self.p_clean).astype(np.float32)
        out[np.isnan(score)] = np.nan
        return out


def null_share(given: Float[np.ndarray, " n"], null: Float[np.ndarray, " m"]) -> float:
    """Share of the null component in the given scores.

        eta(q) = F_given(t_q) / F_null(t_q),   t_q the q-quantile of the null scores

    The given scores are a mixture, F_given = eta F_null + (1 - eta) F_clean, so eta(q) is too large by
    (1 - eta) F_clean(t_q) / q, which vanishes for small q, while its variance grows there. q is the one with the least
    estimated mean squared error: binomial variance plus squared distance to the 10 % quantile of all eta(q), among q of
    5 % to 95 % at which 20 given pairs would be expected if all were wrong. Where no scores tie, F_null(t_q) is q.

    Args:
        given: Scores of the pairs as they came.
        null: Scores of pairs that are wrong for sure, from the same scorer.

    Returns:
        Share in [0, 1]; too high where clean pairs score as low as wrong ones everywhere.

    Source: Storey, Taylor and Siegmund (JRSS B 2004), the share of true null hypotheses; with q = 1 - lambda and
    p-values taken from the empirical null.
    """
    null = np.sort(null)
    limit = np.quantile(null, np.linspace(min(max(0.05, 20 / len(given)), 0.5), 0.95, 37))
    below = np.searchsorted(np.sort(given), limit, side="right") / len(given)
    smooth = (below * len(given) + 1) / (len(given) + 2)  # none below is no proof that there are none
    q = np.searchsorted(null, limit, side="right") / len(null)
    share = below / q
    variance = smooth * (1 - smooth) / (len(given) * q**2) + share**2 * (1 - q) / (q * len(null))
    error = variance + (share - np.quantile(share, 0.1)) ** 2
    return float(np.clip(share[int(np.argmin(error))], 0.0, 1.0))


def fit_null(given: Float[np.ndarray, " n"], null: Float[np.ndarray, " m"], *, seed: int, rounds: int = 40) -> Fit:
    """Calibrate with a known null component.

        p_clean(s) = 1 - eta * f_null(s) / f_given(s),   made monotone

    The density ratio comes from isotonic regression of "given" (1) against "re-paired" (0) with both classes at equal
    weight, so it rises with the score by construction, and so does `p_clean`.

    Args:
        given: Scores of the pairs as they came, higher = better matched; NaN is left out.
        null: Scores of re-paired pairs by the same scorer.
        seed: For the bootstrap interval of the noise rate.
        rounds: Bootstrap rounds.

    Returns:
        The curve. If the two sets of scores cannot be told apart (AUROC below 0.55, or within chance for so few pairs)
        the curve is flat at 1, that nothing is known against any pair, and `warning` says so.

    Source: local false discovery rate with an empirical null (Efron, JASA 2004); the null here is made, not fitted.
    """
    from scipy import stats  # here, because it takes longer to load than most verbs to start

    given, null = given[np.isfinite(given)].astype(np.float64), null[np.isfinite(null)].astype(np.float64)
    if len(given) < 20 or len(null) < 20:
        return constant_fit(f"only {len(given)} pairs could be scored; at least 20 are needed for an estimate")
    rng = np.random.default_rng(seed)
    separation = float(stats.mannwhitneyu(given, null).statistic / (len(given) * len(null)))
    chance = np.sqrt((len(given) + len(null) + 1) / (12 * len(given) * len(null)))
    if separation < max(BLIND, 0.5 + SURE * chance):
        flat = constant_fit(
            f"the score cannot tell given pairs from random ones (AUROC {separation:.2f} on {len(given):,} pairs, "
            "0.50 = blind): nothing is marked as mismatched; try another encoder, `align` cross-fit, or label some "
            "pairs (`labels`)"
        )
        return replace(flat, separation=separation)
    eta = null_share(given, null)
    size = min(len(given), 20_000), min(len(null), 20_000)
    draws = [null_share(rng.choice(given, size[0]), rng.choice(null, size[1])) for _ in range(rounds)]
    spread = float(np.std(draws)) * np.sqrt(max(size[0] / len(given), size[1] / len(null)))
    score, ratio = density_ratio(given, null)
    p_clean = np.maximum.accumulate(np.clip(1 - eta / np.maximum(ratio, 1e-12), 0.0, 1.0))
    return Fit(
        kind="null",
        score=score,
        p_clean=p_clean,
        noise_rate=eta,
        low=max(0.0, eta - 1.96 * spread),
        high=min(1.0, eta + max(1.96 * spread, 3 / (0.05 * len(given)))),  # none seen in the tail is no proof
        separation=separation,
        warning=_doubt(separation, eta),
        parameters={"null_pairs": len(null)},
    )


def odds_fit(fit: Fit, odds: Float[np.ndarray, " n"], p_clean: Float[np.ndarray, " n"]) -> Fit:
    """The curve of scores that are log odds already; its noise rate is the mean over all pairs.

    Args:
        fit: The curve that the probabilities started from; gives kind, separation, warning and width of the interval.
        odds: Log odds of each pair.
        p_clean: The probability of each pair; NaN is left out.
    """
    knots = np.linspace(float(np.nanmin(odds)), float(np.nanmax(odds)), KNOTS)
    rate = float(np.clip(1 - np.nanmean(p_clean), 0, 1))
    return replace(
        fit,
        score=knots,
        p_clean=special.expit(knots),
        noise_rate=rate,
        low=max(0.0, rate - (fit.noise_rate - fit.low)),
        high=min(1.0, rate + (fit.high - fit.noise_rate)),
    )


def _doubt(separation: float, eta: float) -> str | None:
    if separation < 0.65 and eta > 0.5:
        return (
            f"the score tells given pairs from random ones only weakly (AUROC {separation:.2f}): the noise rate of "
            f"{eta:.0%} is an upper bound, because right pairs that look random count into it"
        )
    return None


def density_ratio(
    given: Float[np.ndarray, " n"], null: Float[np.ndarray, " m"]
) -> tuple[Float[np.ndarray, " k"], Float[np.ndarray, " k"]]:
    """Increasing estimate of f_given / f_null: scores, and the ratio (> 0) at each of them, by isotonic regression."""
    from sklearn.isotonic import IsotonicRegression  # here, because it brings pandas and a second of start

    score = np.concatenate([given, null])
    label = np.concatenate([np.ones(len(given)), np.zeros(len(null))])
    weight = np.concatenate([np.full(len(given), 0.5 / len(given)), np.full(len(null), 0.5 / len(null))])
    order = np.argsort(score, kind="stable")
    score, label, weight = score[order], label[order], weight[order]
    # At most 2,000 bins of at least 25 points first: single points at the ends would be certain of themselves.
    edges = np.unique(np.linspace(0, len(score), min(max(len(score) // 25, 4), 2000) + 1).astype(int))[:-1]
    total = np.add.reduceat(weight, edges)
    share = np.add.reduceat(weight * label, edges) / total
    centre = np.add.reduceat(weight * score, edges) / total
    rising = IsotonicRegression(y_min=1e-6, y_max=1 - 1e-6, out_of_bounds="clip")
    share = rising.fit_transform(centre, share, sample_weight=total)
    starts = np.flatnonzero(np.r_[True, np.diff(share) > 1e-9])  # beyond rounding
    mass = np.add.reduceat(total, starts)
    middle = np.add.reduceat(total * centre, starts) / mass
    return middle, share[starts] / (1 - share[starts])


def fit_gaussian(scores: Float[np.ndarray, " n"], *, seed: int) -> Fit:
    """Two Gaussians by expectation maximisation; the one with the higher mean is clean. Posterior made monotone.

    Args:
        scores: Higher = better matched; NaN is left out.
        seed: For the k-means start.

    Source: NCR (Huang et al., NeurIPS 2021) fits two Gaussians to the per-pair loss.
    Differs: the plain posterior falls again beyond the narrower component; here it is made monotone by pooling
    adjacent violators.
    """
    from sklearn.mixture import GaussianMixture

    values = scores[np.isfinite(scores)].astype(np.float64)
    if _cannot_split(values):
        return constant_fit(_cannot_split(values))
    centre, scale = float(values.mean()), float(values.std())  # the model's own floor of variance has a unit

    def standard(x: np.ndarray) -> np.ndarray:
        return ((x - centre) / scale)[:, None]

    model = GaussianMixture(2, random_state=seed, n_init=3, max_iter=200).fit(standard(values))
    clean = int(np.argmax(model.means_[:, 0]))
    parameters = {
        "weights": model.weights_.tolist(),
        "means": (centre + scale * model.means_[:, 0]).tolist(),
        "deviations": (scale * np.sqrt(model.covariances_[:, 0, 0])).tolist(),
        "clean": clean,
    }
    return _posterior_fit("gaussian", values, lambda x: model.predict_proba(standard(x))[:, clean], parameters)


def fit_beta(scores: Float[np.ndarray, " n"], *, rounds: int = 100) -> Fit:
    """Two Beta components by expectation maximisation with moment matching; the higher mean is clean.

    Scores are squeezed linearly into (0, 1) between their 0.5 % and 99.5 % quantiles, so that one outlier cannot
    flatten the rest. Posterior made monotone.

    Args:
        scores: Higher = better matched; NaN is left out.
        rounds: Steps of expectation maximisation.

    Source: Arazo et al. (ICML 2019), used by BiCro on pair losses.
    Differs: components are ordered by their mean, not by their index; quantile clipping; monotone posterior.
    """
    values = scores[np.isfinite(scores)].astype(np.float64)
    if _cannot_split(values):
        return constant_fit(_cannot_split(values))
    low, high = (float(x) for x in np.quantile(values, [0.005, 0.995]))
    if not high > low:  # nearly all scores are equal
        low, high = float(values.min()), float(values.max())

    def squeeze(x: np.ndarray) -> np.ndarray:
        return np.clip((x - low) / (high - low), 1e-4, 1 - 1e-4)

    x = squeeze(values)
    upper = x >= np.median(x) if np.median(x) > x.min() else x > x.min()
    share = np.stack([~upper, upper]).astype(np.float64)
    a, b, weight = np.ones(2), np.ones(2), np.full(2, 0.5)
    for _ in range(rounds):
        weight, mass = share.mean(1), np.maximum(share.sum(1), 1e-9)  # a component may die
        mean = np.clip((share @ x) / mass, 1e-4, 1 - 1e-4)
        variance = np.maximum((share * (x - mean[:, None]) ** 2).sum(1) / mass, 1e-6)
        common = mean * (1 - mean) / variance - 1
        good = common > 0
        a, b = np.where(good, mean * common, a), np.where(good, (1 - mean) * common, b)
        share = _beta_posterior(x, a, b, weight)
    clean = int(np.argmax(a / (a + b)))
    parameters = {"a": a.tolist(), "b": b.tolist(), "weights": weight.tolist(), "clean": clean, "from": low, "to": high}
    return _posterior_fit("beta", values, lambda s: _beta_posterior(squeeze(s), a, b, weight)[clean], parameters)


def _beta_posterior(x: np.ndarray, a: np.ndarray, b: np.ndarray, weight: np.ndarray) -> np.ndarray:
    from scipy import stats

    log = np.log(np.maximum(weight, 1e-12))[:, None] + stats.beta.logpdf(x[None], a[:, None], b[:, None])
    return special.softmax(log, axis=0)


def _cannot_split(values: np.ndarray) -> str:
    """Why two components cannot be fitted to these scores; empty if they can."""
    if len(values) >= 20 and np.std(values) > 1e-12 * np.abs(values).max():
        return ""
    return (
        f"{len(values)} scores of spread {np.ptp(values) if len(values) else 0:g} cannot be split into two components"
    )


def _posterior_fit(kind: str, values: np.ndarray, posterior: Callable[[np.ndarray], np.ndarray],
                   parameters: dict[str, Any]) -> Fit:  # fmt: skip
    from sklearn.isotonic import IsotonicRegression

    knots, counts = np.unique(np.quantile(values, np.linspace(0, 1, KNOTS)), return_counts=True)
    # Knots that differ by rounding are merged, which may cut off the ends: hence clip.
    rising = IsotonicRegression(out_of_bounds="clip")
    p_clean = np.clip(rising.fit_transform(knots, posterior(knots), sample_weight=counts), 0.0, 1.0)
    noise = float(1 - np.interp(values, knots, p_clean).mean())
    error = 1.96 * float(np.sqrt(noise * (1 - noise) / len(values)))
    return Fit(
        kind=kind,
        score=knots,
        p_clean=p_clean,
        noise_rate=noise,
        low=max(0.0, noise - error),
        high=min(1.0, noise + error),
        separation=float("nan"),
        warning=None,
        parameters=parameters,
    )


def fit_labels(fit: Fit, scores: Float[np.ndarray, " n"], right: Bool[np.ndarray, " k"], rows: np.ndarray) -> Fit:
    """Bend a curve with pairs that a person judged.

        logit p'(s) = a * logit p(s) + b * standardised s + c,   a, b >= 0

    fitted by cross-entropy plus 5 * ((a - 1)^2 + b^2 + c^2 / 4), which keeps (a, b, c) near (1, 0, 0): few labels move
    the curve little, even if they contradict it where it is surest; many replace it.

    Args:
        fit: The curve without labels.
        scores: (n,) of all pairs.
        right: (k,) True where the person found that image and text belong together.
        rows: (k,) rows of the judged pairs.

    Returns:
        A curve of kind `labels`; its noise rate is the mean over all pairs. Labels of pairs without a score are left
        out; the curve itself, if no pair has a score.
    """
    from scipy import optimize

    known = np.isfinite(scores[rows])
    right, rows = right[known], rows[known]
    finite = scores[np.isfinite(scores)].astype(np.float64)
    if not len(finite):
        return fit
    centre, spread = float(finite.mean()), max(float(finite.std()), 1e-9)

    def inputs(s: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return special.logit(np.clip(fit(s).astype(np.float64), 0.01, 0.99)), (s - centre) / spread

    before, z = inputs(scores[rows].astype(np.float64))

    def loss(theta: np.ndarray) -> float:
        x = theta[0] * before + theta[1] * z + theta[2]
        penalty = PRIOR * ((theta[0] - 1) ** 2 + theta[1] ** 2 + 0.25 * theta[2] ** 2)
        return float(np.logaddexp(0, np.where(right, -x, x)).sum() + penalty)

    theta = optimize.minimize(loss, np.array([1.0, 0.0, 0.0]), bounds=[(0, None), (0, None), (None, None)]).x
    knots = np.unique(np.quantile(finite, np.linspace(0, 1, KNOTS)))
    before, z = inputs(knots)
    p_clean = np.maximum.accumulate(special.expit(theta[0] * before + theta[1] * z + theta[2]))
    noise = float(1 - np.interp(finite, knots, p_clean).mean())
    error = 1.96 * float(np.sqrt(max(noise * (1 - noise), 0.01) / max(len(rows), 1)))
    few, wrong = f"only {len(rows)} labelled pairs: 30 or more make a steady curve", int((~right).sum())
    return replace(
        fit,
        kind="labels",
        score=knots,
        p_clean=p_clean,
        noise_rate=noise,
        low=max(0.0, noise - error),
        high=min(1.0, noise + error),
        warning=None if len(rows) >= 30 else "; ".join(filter(None, [few, fit.warning])),
        parameters={"before": fit.kind, "labels": len(rows), "labels_wrong": wrong, "theta": theta.tolist()},
    )


def constant_fit(warning: str) -> Fit:
    """A flat curve at 1: nothing is known against any pair. `warning` says why."""
    return Fit(
        kind="constant",
        score=np.array([0.0]),
        p_clean=np.array([1.0]),
        noise_rate=float("nan"),
        low=0.0,
        high=1.0,
        separation=float("nan"),
        warning=warning,
        parameters={},
    )
