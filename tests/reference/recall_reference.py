"""Retrieval ranks as slow loops: every candidate is looked at, ties count against the query."""

from __future__ import annotations

import statistics

import numpy as np


def image_rank(sims: list[list[float]], image_of: list[int], image: int) -> int:
    """Place of the first right text when wrong ones of equal similarity come first; 0 without a text."""
    right = [sims[image][t] for t, owner in enumerate(image_of) if owner == image]
    if not right:
        return 0
    wrong = [sims[image][t] for t, owner in enumerate(image_of) if owner != image]
    return 1 + sum(not value < max(right) for value in wrong)


def text_rank(sims: list[list[float]], image_of: list[int], text: int) -> int:
    own = sims[image_of[text]][text]
    return 1 + sum(not sims[i][text] < own for i in range(len(sims)) if i != image_of[text])


def metrics(sims: list[list[float]], image_of: list[int]) -> dict[str, float]:
    ranks = {
        "text_retrieval": [r for i in range(len(sims)) if (r := image_rank(sims, image_of, i))],
        "image_retrieval": [text_rank(sims, image_of, t) for t in range(len(image_of))],
    }
    result: dict[str, float] = {}
    for name, found in ranks.items():
        for k in (1, 5, 10):
            result[f"{name}_recall@{k}"] = 100 * sum(r <= k for r in found) / len(found)
    result["rSum"] = sum(result.values())
    for name, found in ranks.items():
        result[f"{name}_median_rank"] = statistics.median(found)
    return result


def matrix_blocks(sims):
    """Blocks of a similarity matrix that is at hand."""
    return lambda rows, columns: np.asarray(sims[rows][:, columns])
