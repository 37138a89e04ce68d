"""The spectrum of a feature matrix: how many directions an encoder uses, and how strong the first one is.

Wrong captions or labels in pre-training flatten it: both numbers rise with the share of noise, and with the second the
accuracy on pictures of another kind falls. They depend on the number of rows where that is below the width, so compare
equal numbers of rows, and encoders of equal width, or `sve_norm`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float

from noisycorr.stats.unit import unit

SMALL = 1e-12


@dataclass(frozen=True, slots=True)
class Spectrum:
    """What the singular values of features say.

    Attributes:
        sve: Entropy of the shares of the singular values, in [0, ln d]; higher = flatter.
        lsvr: Minus the logarithm of the largest share, in [0, ln d]; higher = the first direction is weaker.
        sve_norm: sve / ln of the number of singular values, in [0, 1].
        effective_rank: exp(sve), between 1 and d.
        values: float64 (r,) singular values, largest first.
    """

    sve: float
    lsvr: float
    sve_norm: float
    effective_rank: float
    values: np.ndarray

    def numbers(self) -> dict[str, float]:
        """All but the values."""
        return {name: getattr(self, name) for name in ("sve", "lsvr", "sve_norm", "effective_rank")}


def spectrum(features: Float[np.ndarray, "n d"], *,
             center: Literal["none", "dataset", "sample"] = "none") -> Spectrum:  # fmt: skip
    """Singular value entropy (SVE) and largest singular value ratio (LSVR).

        p_j = sigma_j / sum sigma,      SVE = - sum_j p_j ln p_j,      LSVR = - ln p_1

    Args:
        features: Of any scale.
        center: none, as in the term of NMTune; dataset takes off the mean row; sample makes rows unit length and takes
            the mean of its own numbers off each row, as the released scripts do.

    Returns:
        Entropy, ratio and values; all zero for features that are all zero.

    Raises:
        ValueError: If there are no rows, or a value is not finite, or ``center`` is unknown.

    Source: Chen et al., Understanding and Mitigating the Label Noise in Pre-training on Downstream Tasks, ICLR 2024.
    """
    wide = np.asarray(features, np.float64)
    if wide.ndim != 2 or 0 in wide.shape:
        raise ValueError(f"features have shape {wide.shape}, expected (n, d) with rows")
    if not np.isfinite(wide).all():
        raise ValueError("features hold values that are not finite")
    if center == "dataset":
        wide = wide - wide.mean(0)
    elif center == "sample":
        wide = unit(wide, np.float64)
        wide = wide - wide.mean(1, keepdims=True)
    elif center != "none":
        raise ValueError(f"center is {center!r}, expected none, dataset or sample")
    values = np.linalg.svd(wide, compute_uv=False)
    total = values.sum()
    if total <= SMALL:
        return Spectrum(0.0, 0.0, 0.0, 1.0, values)
    share = values / total
    sve = float(max(0.0, -(share * np.log(share + SMALL)).sum()))
    lsvr = float(max(0.0, -np.log(share[0] + SMALL)))
    return Spectrum(sve, lsvr, sve / np.log(len(values)) if len(values) > 1 else 0.0, float(np.exp(sve)), values)


def sampled_spectrum(features: Float[np.ndarray, "n d"], *, rows: int = 2000, draws: int = 3,
                     seed: int = 0) -> dict[str, float]:  # fmt: skip
    """Mean and deviation of the numbers of `spectrum` over draws of equally many rows, so that sets can be compared.

    Args:
        features: Of any scale; read as a whole only where there are no more rows than asked for.
        rows: Of each draw; all of them where there are fewer, then once.
        draws: How many, >= 1.
        seed: Of the draws.

    Returns:
        The numbers by name, `NAME_sd` for their deviation over draws, and `rows`.
    """
    n = len(features)
    if n <= rows:
        found = [spectrum(features).numbers()]
    else:
        rng = np.random.default_rng([seed, 53])
        found = [spectrum(features[np.sort(rng.choice(n, rows, replace=False))]).numbers() for _ in range(draws)]
    out: dict[str, float] = {"rows": min(n, rows)}
    for name in found[0]:
        values = [one[name] for one in found]
        out |= {name: float(np.mean(values)), f"{name}_sd": float(np.std(values))}
    return out
