"""How many pseudo-labels a class gets in each round: one loop serves FPL, IFPL and GRIP, which differ only in this."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int

STRATEGIES = ("grip", "ifpl", "fpl")


def per_round(
    strategy: str, *, images: int, classes: int, rounds: int = 10, per_class: int = 16, max_fraction: float = 1.0
) -> list[int]:
    """Pseudo-labels of each class, K_t, round by round.

        FPL:  K = [per_class]            IFPL: K_t = per_class for t = 1..rounds
        GRIP: K_t = floor(t * floor(images / rounds) / classes), at most floor(images / classes)

    Args:
        strategy: grip, ifpl or fpl.
        images: Unlabelled images.
        classes: Classes that pseudo-labels may name.
        rounds: Of IFPL and GRIP, >= 1.
        per_class: K of FPL and IFPL, >= 1.
        max_fraction: GRIP grows until this share of the images is labelled, in (0, 1].

    Returns:
        One number >= 1 for each round: where a class would get none, it gets one.

    Raises:
        ValueError: If the strategy is unknown or a number is out of its range.

    Source: Menghini et al., NeurIPS 2023, released code, with rounds = 10 (a step quantile of 10).
    Differs: max_fraction, which is 1 there; and a class always gets one, where the code would label nothing.
    """
    if strategy not in STRATEGIES:
        raise ValueError(f"strategy is {strategy!r}, expected one of {', '.join(STRATEGIES)}")
    if images < 1 or classes < 1 or rounds < 1 or per_class < 1 or not 0 < max_fraction <= 1:
        raise ValueError("images, classes, rounds and per_class must be at least 1, max_fraction in (0, 1]")
    if strategy != "grip":
        return [per_class] * (1 if strategy == "fpl" else rounds)
    step = int(max_fraction * images) // rounds
    return [max(1, min(t * step // classes, images // classes)) for t in range(1, rounds + 1)]


def capacities(count: int, classes: int, prior: Float[np.ndarray, " c"] | None = None) -> Int[np.ndarray, " c"]:
    """Places of each class: `count` for all, or as the prior says with the same total.

    Args:
        count: K of the round, >= 1.
        classes: c.
        prior: Share of each class, >= 0, of any sum; None = all alike.

    Returns:
        int64 (c,), total count * c by largest remainders; a class with a positive share gets one place at least.
    """
    if prior is None:
        return np.full(classes, count, np.int64)
    wanted = count * classes * np.asarray(prior, np.float64) / np.sum(prior)
    places = np.floor(wanted).astype(np.int64)
    rest = count * classes - int(places.sum())
    places[np.argsort(-(wanted - places), kind="stable")[:rest]] += 1
    return np.where(np.asarray(prior) > 0, np.maximum(places, 1), 0)
