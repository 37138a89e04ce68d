"""One epoch's opinion: probability that each pair is clean, from a statistic of which higher means worse."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from scipy import stats

from noisycorr.stats.mixture import Fit, fit_beta, fit_gaussian


@dataclass(frozen=True, slots=True, kw_only=True)
class Posterior:
    """What a two-component mixture says about each pair.

    Attributes:
        p_clean: (n,) float32 in [0, 1]; 1 throughout where the statistic cannot be split.
        warning: Why it could not be split, or None.
    """

    p_clean: Float[np.ndarray, " n"]
    warning: str | None


def gaussian_posterior(loss: Float[np.ndarray, " n"], *, seed: int, clip: float = 0.005,
                       faithful: bool = False) -> Posterior:  # fmt: skip
    """Two Gaussians on a loss; the lower one is clean.

    Args:
        loss: Per pair, higher = worse. NaN gets probability 0.
        seed: For the start of the fit.
        clip: Share at either end that is drawn in to its quantile first, in [0, 0.5): one huge loss would else take a
            component for itself.
        faithful: The fit of the released codes: min-max normalised, no clipping, at most 10 rounds, not monotone.

    Returns:
        Probabilities, never rising with the loss unless ``faithful``.

    Source: NCR (Huang et al., NeurIPS 2021); PC2 and CREAM alike.
    Differs: monotone, clipped at quantiles, run to convergence. The released fit may give its lowest losses a
    probability of 0.
    """
    loss = np.asarray(loss, np.float64)
    if faithful:
        return _released_gaussian(loss, seed)
    scaled = _scaled(loss, clip)
    return _read(fit_gaussian(-scaled, seed=seed), scaled)


def beta_posterior(loss: Float[np.ndarray, " n"], *, clip: float = 0.005, faithful: bool = False) -> Posterior:
    """Two Betas on a loss; the lower one is clean.

    Args:
        loss: Per pair, higher = worse. NaN gets probability 0.
        clip: As in ``gaussian_posterior``.
        faithful: The fit of BiCro's released code: min-max normalised, 10 rounds of moment matching from the densities
            Beta(1, 2) and Beta(2, 1), of which the first is clean whatever becomes of it; not monotone.

    Returns:
        Probabilities, never rising with the loss unless ``faithful``.

    Source: BiCro (Yang et al., CVPR 2023) and L2RM (Han et al., CVPR 2024), after Arazo et al. (ICML 2019).
    Differs: components ordered by mean, more rounds, monotone.
    """
    loss = np.asarray(loss, np.float64)
    if faithful:
        return _released_beta(loss)
    scaled = _scaled(loss, clip)
    return _read(fit_beta(-scaled), scaled)


def _scaled(loss: np.ndarray, clip: float) -> np.ndarray:
    """Losses drawn in to their quantiles, from 0 to 1 in steps of 1e-9: closer ones differ by rounding."""
    if not 0 <= clip < 0.5:
        raise ValueError(f"clip is {clip}, expected in [0, 0.5)")
    finite = loss[np.isfinite(loss)]
    if not len(finite):
        return np.where(np.isfinite(loss), 0.0, np.nan)
    low, high = np.quantile(finite, [clip, 1 - clip])
    if not high > low:  # nearly all are equal
        low, high = finite.min(), finite.max()
    return np.round((np.clip(loss, low, high) - low) / max(high - low, np.finfo(np.float64).tiny), 9)


def _read(fit: Fit, scaled: np.ndarray) -> Posterior:
    p_clean = np.where(np.isnan(scaled), 0.0, fit(-scaled)).astype(np.float32)
    return Posterior(p_clean=p_clean, warning=fit.warning)


def _normalised(loss: np.ndarray) -> tuple[np.ndarray, np.ndarray, str | None]:
    """Which losses are known, those from 0 to 1 by least and largest, and why they cannot be split."""
    known = np.isfinite(loss)
    low, high = (float(loss[known].min()), float(loss[known].max())) if known.any() else (0.0, 0.0)
    if known.sum() < 2 or not high > low:
        why = f"{int(known.sum())} losses of spread {high - low:g} cannot be split into two components"
        return known, np.zeros(int(known.sum())), why
    return known, (loss[known] - low) / (high - low), None


def _released_gaussian(loss: np.ndarray, seed: int) -> Posterior:
    from sklearn.mixture import GaussianMixture

    known, scaled, why = _normalised(loss)
    p_clean = known.astype(np.float32)
    if why is None:
        model = GaussianMixture(2, max_iter=10, tol=1e-2, reg_covar=5e-4, random_state=seed).fit(scaled[:, None])
        p_clean[known] = model.predict_proba(scaled[:, None])[:, int(np.argmin(model.means_[:, 0]))]
    return Posterior(p_clean=p_clean, warning=why)


def _released_beta(loss: np.ndarray) -> Posterior:
    known, scaled, why = _normalised(loss)
    p_clean = known.astype(np.float32)
    if why is None:
        x = np.clip(scaled, 1e-4, 1 - 1e-4)
        a, b, weight = np.array([1.0, 2.0]), np.array([2.0, 1.0]), np.full(2, 0.5)
        for _ in range(10):
            share = _shares(x, a, b, weight)
            mean = share @ x / share.sum(1)
            variance = np.maximum((share * (x - mean[:, None]) ** 2).sum(1) / share.sum(1), 1e-6)
            new = mean * (mean * (1 - mean) / variance - 1)
            good = new > 0  # else the moments are no Beta's
            a, b = np.where(good, new, a), np.where(good, new * (1 - mean) / mean, b)
            weight = share.mean(1)
        p_clean[known] = _shares(x, a, b, weight)[0]
    return Posterior(p_clean=p_clean, warning=why)


def _shares(x: np.ndarray, a: np.ndarray, b: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """(2, n) share of each Beta in the density, at least 1e-12."""
    density = weight[:, None] * stats.beta.pdf(x[None], a[:, None], b[:, None])
    share = np.maximum(density / np.maximum(density.sum(0), 1e-300), 1e-12)
    return share / share.sum(0)
