"""How good a classifier is: in all, by class, for poor and rich classes, and for seen and unseen ones."""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Float, Int

LOSES = 0.05  # a class that loses more is counted
SURE = 0.2  # below it zero-shot is too poor to build on; sets that gain have 0.34 or more
SPREAD = 0.3  # the same; sets that gain have 0.45 or more


def accuracy(predicted: Int[np.ndarray, " n"], truth: Int[np.ndarray, " n"]) -> float:
    """Share of right predictions in [0, 1]; NaN for none."""
    return float(np.mean(predicted == truth)) if len(truth) else float("nan")


def by_class(predicted: Int[np.ndarray, " n"], truth: Int[np.ndarray, " n"], classes: int) -> Float[np.ndarray, " c"]:
    """Share of right predictions of each class; NaN for classes without an image."""
    hits = np.bincount(truth[predicted == truth], minlength=classes).astype(np.float64)
    count = np.bincount(truth, minlength=classes)
    return np.where(count > 0, hits / np.maximum(count, 1), np.nan)


def harmonic(seen: float, unseen: float) -> float:
    """2 s u / (s + u); 0 if either is 0."""
    return 0.0 if min(seen, unseen) <= 0 else 2 * seen * unseen / (seen + unseen)


def compare(before: Int[np.ndarray, " n"], after: Int[np.ndarray, " n"], truth: Int[np.ndarray, " n"], classes: int,
            seen: np.ndarray | None = None) -> dict[str, Any]:  # fmt: skip
    """Two classifiers on the same images.

    Returns:
        `before` and `after` in [0, 1], `poor` and `rich`: mean gain of the half of the classes that was worse, and of
        the half that was better before; `spread_before` and `spread_after`: standard deviation of class accuracy;
        `losers`: classes that lose more than 5 points; with seen classes also `seen`, `unseen` and `harmonic` after,
        and `harmonic_before`.

    Source: the specification's reading of GRIP's "Robin Hood" effect.
    """
    a, b = by_class(before, truth, classes), by_class(after, truth, classes)
    known = np.flatnonzero(np.isfinite(a))
    order = known[np.argsort(a[known], kind="stable")]
    half = len(order) // 2
    gain = b - a
    out: dict[str, Any] = {
        "before": accuracy(before, truth), "after": accuracy(after, truth),
        "poor": float(gain[order[:half]].mean()) if half else None,
        "rich": float(gain[order[len(order) - half :]].mean()) if half else None,
        "spread_before": float(a[known].std()), "spread_after": float(b[known].std()),
        "losers": int((gain[known] < -LOSES).sum()),
    }  # fmt: skip
    if seen is not None and seen.any():
        inside = seen[truth]
        s, u = accuracy(after[inside], truth[inside]), accuracy(after[~inside], truth[~inside])
        s0, u0 = accuracy(before[inside], truth[inside]), accuracy(before[~inside], truth[~inside])
        out |= {"seen": s, "unseen": u, "harmonic": harmonic(s, u), "harmonic_before": harmonic(s0, u0)}
    return out


def doubts(p: Float[np.ndarray, "n c"]) -> dict[str, Any]:
    """Signs that the zero-shot model knows too little to teach itself.

    Returns:
        `sureness`: mean of (max_c p_ic - 1 / c) / (1 - 1 / c), in [0, 1]; `spread`: exp(entropy of the predicted
        classes) / c, in (0, 1], small if few classes are ever predicted; `never`: classes that are never predicted;
        `warning`: a sentence, or None.
    """
    n, c = p.shape
    share = np.bincount(p.argmax(1), minlength=c) / max(n, 1)
    positive = share[share > 0]
    spread = float(np.exp(-(positive * np.log(positive)).sum()) / c)
    sureness = float(np.mean((p.max(1) - 1 / c) / (1 - 1 / c)))
    warning = None
    if sureness < SURE or spread < SPREAD:
        warning = (
            f"zero-shot looks too poor to adapt from: it is {sureness:.0%} sure on average, and "
            f"{int((share == 0).sum())} of {c} classes are never predicted; pseudo-labels would mostly be wrong. "
            "Give some labels with `labels`; without them zero-shot stays as it is, unless `guard` is false."
        )
    return {"sureness": sureness, "spread": spread, "never": int((share == 0).sum()), "warning": warning}
