"""Learning rate over a training: a linear rise, and half a cosine (Loshchilov and Hutter, ICLR 2017, no restarts)."""

from __future__ import annotations

import math


def cosine_share(done: float, least: float = 0.0) -> float:
    """Share of the highest rate, which falls from 1 to `least` along half a cosine.

        least + (1 - least) (1 + cos(pi done)) / 2

    Args:
        done: Share of the training that is done, in [0, 1].
        least: Share at the end, in [0, 1].
    """
    return least + (1 - least) * (0.5 * (1 + math.cos(math.pi * done)))


def rise_share(step: int, warmup: float) -> float:
    """Share of the highest rate while it rises: 1 / (warmup + 1) in the first step, 1 after `warmup` steps.

    Args:
        step: Number of the step, from 0.
        warmup: Steps of the rise, >= 0.
    """
    return min(1.0, (step + 1) / (warmup + 1))
