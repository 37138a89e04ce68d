"""Who trains as what: clean, hard, noisy and strictly clean pairs from the opinions of one or two networks."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float


def split_two(p_clean: Float[np.ndarray, " n"], *, threshold: float = 0.5,
              least: float = 0.01) -> Bool[np.ndarray, " n"]:  # fmt: skip
    """Clean pairs: those above the threshold. If that is all of them, the least likely ones are noisy all the same.

    Args:
        p_clean: Probability that each pair is right, in [0, 1]. NaN is noisy.
        threshold: Clean is strictly above.
        least: Share, rounded down, that is noisy where no pair is at or below the threshold, in [0, 1]; 0 = none.

    Returns:
        True for clean. All False where nothing is above the threshold: look before you train.

    Raises:
        ValueError: If ``least`` lies outside [0, 1].

    Source: PC2 (Duan et al., ACM MM 2024) and its kin: one in a hundred.
    """
    if not 0 <= least <= 1:
        raise ValueError(f"least is {least}, expected in [0, 1]")
    clean = np.asarray(p_clean) > threshold
    if clean.all():
        clean[np.argsort(p_clean, kind="stable")[: int(least * len(clean) + 1e-9)]] = False
    return clean


def split_three(
    one: Float[np.ndarray, " n"], two: Float[np.ndarray, " n"], *, threshold: float = 0.5, least: float = 0.01
) -> tuple[Bool[np.ndarray, " n"], Bool[np.ndarray, " n"], Bool[np.ndarray, " n"]]:
    """Clean where both networks say so, noisy where neither does, hard where they disagree.

    Args:
        one: Probability that each pair is right, by the first network, in [0, 1].
        two: By the second.
        threshold: Clean is strictly above.
        least: As in ``split_two``, for each network on its own.

    Returns:
        Clean, hard and noisy; each pair is in exactly one.

    Raises:
        ValueError: If the shapes differ.

    Source: CREAM (IEEE TIP 2024).
    """
    if np.shape(one) != np.shape(two):
        raise ValueError(f"the two opinions have shapes {np.shape(one)} and {np.shape(two)}; they must be equal")
    first = split_two(one, threshold=threshold, least=least)
    second = split_two(two, threshold=threshold, least=least)
    return first & second, first ^ second, ~(first | second)


def strictly_clean(one: Float[np.ndarray, " n"], two: Float[np.ndarray, " n"], *,
                   threshold: float = 0.6) -> Bool[np.ndarray, " n"]:  # fmt: skip
    """Pairs that both networks hold for right by a margin. Source: SPS (IJCAI 2025), both above 0.6."""
    return (np.asarray(one) > threshold) & (np.asarray(two) > threshold)


def above_clean_mean(p_clean: Float[np.ndarray, " n"], clean: Bool[np.ndarray, " n"]) -> Bool[np.ndarray, " n"]:
    """Clean pairs that are surer than the mean clean pair: the bank from which others take partners.

    Args:
        p_clean: Probability that each pair is right, in [0, 1].
        clean: From ``split_two``.

    Returns:
        True for members. Where all clean pairs are equally sure, all of them; none without clean pairs.

    Source: IN2R (ICML 2026).
    """
    p_clean, clean = np.asarray(p_clean), np.asarray(clean, bool)
    if not clean.any():
        return clean.copy()
    surer = clean & (p_clean > p_clean[clean].mean(dtype=np.float64))
    return surer if surer.any() else clean.copy()
