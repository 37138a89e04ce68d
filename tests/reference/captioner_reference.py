"""Slow loops written from the definitions, for the tests of the captioner."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def level_loop(score: float, edges: Sequence[float]) -> int:
    """How many interior edges the score reaches; the number of bins for a score that is not finite."""
    if not math.isfinite(score):
        return len(edges) - 1
    level = 0
    for edge in edges[1:-1]:
        if score >= edge:
            level += 1
    return level


def loss_loop(logits: Tensor, tokens: Tensor, length: Tensor) -> Tensor:
    """(b,) sum over the words that count of the negative log-likelihood of each word given those before."""
    out = []
    for row in range(len(tokens)):
        total = logits.new_zeros(())
        for place in range(1, int(length[row])):
            line = logits[row, place - 1]
            total = total - (line[tokens[row, place]] - torch.log(torch.exp(line).sum()))
        out.append(total)
    return torch.stack(out)


def repeats_loop(tokens: Sequence[int], n: int) -> set[int]:
    """Words that would complete a run of n words that stands in the text already."""
    last = list(tokens[len(tokens) - n + 1 :]) if n > 1 else []
    if len(tokens) < n:
        return set()
    return {tokens[i + n - 1] for i in range(len(tokens) - n + 1) if list(tokens[i : i + n - 1]) == last}
