"""Steps of published methods as slow loops, written from their equations; `s` is the cosine of a batch."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from reference import losses_reference as losses
from reference import rectify_reference as labels

ZERO = losses.ZERO


def opinions(s: Tensor, margin: float, mask=None) -> list[float]:
    return labels.hinge_prediction(losses.mean_triplet(s.detach(), margin=margin, mask=mask).tolist(), margin)


def soft(y: float, margin: float, base: float = 10.0) -> float:
    return margin * (base**y - 1) / (base - 1)


def ncr_labels(s, theirs, clean, w, margin, mask) -> list[float]:
    own, other = opinions(s, margin, mask), opinions(theirs, margin, mask)
    return [w[i] + (1 - w[i]) * own[i] if clean[i] else (own[i] + other[i]) / 2 for i in range(len(s))]


def margin_loss(s, y, *, weighted, margin=0.2, mask=None) -> Tensor:
    """Margins and weights of each query's own pair."""
    m = torch.tensor([soft(v, margin) for v in y], dtype=torch.float64)
    loss = losses.hardest_triplet(s, margin=m, mask=mask)
    return loss * torch.tensor(y, dtype=torch.float64) if weighted else loss


def part(s: Tensor, at: list[int]) -> Tensor:
    return torch.stack([torch.stack([s[i, j] for j in at]) for i in at])


def ncr_released(s, theirs, clean, w, margin=0.2) -> Tensor:
    """Clean pairs apart from noisy ones; y_ij = w_i + (1 - w_i) P_j of clean pairs, y_ij = y_j of noisy ones."""
    loss = {}
    for kind in (True, False):
        at = [i for i in range(len(s)) if clean[i] == kind]
        if len(at) < 2:
            continue
        own, other = opinions(part(s, at), margin), opinions(part(theirs, at), margin)
        rows = []
        for i in range(len(at)):
            ys = [w[at[i]] + (1 - w[at[i]]) * own[j] if kind else (own[j] + other[j]) / 2 for j in range(len(at))]
            rows.append([soft(y, margin) for y in ys])
        found = losses.hardest_triplet(part(s, at), margin=torch.tensor(rows, dtype=torch.float64))
        loss |= {place: found[k] for k, place in enumerate(at)}
    return torch.stack([loss.get(i, ZERO) for i in range(len(s))])


def bicro_labels(theirs, image, text, clean, margin, mask) -> list[float]:
    at = [i for i in range(len(clean)) if clean[i]]
    kept = None if mask is None else [[mask[i][j] for j in at] for i in at]
    own = opinions(part(theirs, at), margin, kept)
    best = sorted(range(len(at)), key=lambda k: -own[k])[: len(at) // 10 + 1]
    anchors = [i in {at[k] for k in best} for i in range(len(clean))]
    y = []
    for i, ratio in enumerate(labels.anchor_ratio(image, text, anchors)):
        value = 1.0 if anchors[i] else (1 + ratio) / 2 if clean[i] else ratio
        y.append(0.0 if value < 0.5 else min(value, 1.0))
    return y


def bicro_released(s, y, clean, margin=0.2) -> Tensor:
    """Clean pairs apart from noisy ones; the margin of entry (i, j) is that of text j's pair in both directions."""
    loss = {}
    for kind in (True, False):
        at = [i for i in range(len(s)) if clean[i] == kind]
        if len(at) < 2:
            continue
        matrix = torch.tensor([[soft(y[j], margin) for j in at] for _ in at], dtype=torch.float64)
        found = losses.hardest_triplet(part(s, at), margin=matrix)
        loss |= {place: found[k] for k, place in enumerate(at)}
    return torch.stack([loss.get(i, ZERO) for i in range(len(s))])


def decl(s, clean, *, gain, n, pull, mask=None) -> Tensor:
    y = torch.tensor([float(c) for c in clean], dtype=torch.float64)
    pulls = losses.top_triplet(torch.tanh(gain * s), n=n, margin=0.2, mask=mask)
    return losses.evidential(gain * s, target=y, temperature=0.1, spread=0.1, mask=mask) + pull * y * pulls


def cream_labels(s, theirs, noisy, w, temperature, mask=None) -> list[float]:
    own = losses.match_posterior(s.detach(), temperature=temperature, mask=mask).tolist()
    other = losses.match_posterior(theirs, temperature=temperature, mask=mask).tolist()
    return [(own[i] + other[i]) / 2 if noisy[i] else w[i] + (1 - w[i]) * own[i] for i in range(len(s))]


def cream_released(s, y, early, *, temperature, floor) -> Tensor:
    """Both directions added; the rest 1 - y over the negatives by similarity, entries below the floor excepted."""

    def one(i: int) -> Tensor:
        loss = ZERO
        for way in (0, 1):
            p = losses.posterior(s, None, i, way, temperature)
            scores = {j: max(float(v), 0.0) for j, v in losses.ask(s.detach(), None, i, way).items() if j != i}
            loss = loss - y[i] * torch.log(p[i])
            for j, v in scores.items():
                rest = (1 - y[i]) * v / sum(scores.values())
                if rest >= floor and not early[i] and rest > 0:
                    loss = loss - rest * torch.log(p[j])
        return loss

    return losses.per_pair(len(s), one)


def crcl_label(before: float, now: float, *, keep: float, least: float) -> tuple[float, float]:
    """What is stored, and what is used."""
    y = keep * before + (1 - keep) * now
    return y, y if y >= least else 0.0


def hard_number(b: int, epoch: int, epochs: int, *, share: float, least: int) -> int:
    return max(math.floor(b - b * epoch / (share * epochs)), least)
