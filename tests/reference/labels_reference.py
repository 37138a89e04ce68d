"""Losses and rules of labelled samples as slow loops, written from their equations."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def softmax(row: Tensor) -> list[Tensor]:
    top = max(row.tolist())
    e = [torch.exp(x - top) for x in row]
    return [x / sum(e) for x in e]


def soft_cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    out = []
    for row, t in zip(logits, target):
        p = softmax(row)
        out.append(sum(-t[c] * torch.log(p[c]) for c in range(len(p))))
    return torch.stack(out)


def queue_contrast(anchor: Tensor, key: Tensor, queue: Tensor, temperature: float) -> Tensor:
    out = []
    for i in range(len(anchor)):
        own = torch.exp((anchor[i] * key[i]).sum() / temperature)
        others = sum((torch.exp((anchor[i] * m).sum() / temperature) for m in queue), torch.zeros((), dtype=own.dtype))
        out.append(-torch.log(own / (own + others)))
    return torch.stack(out)


def early_learning(logits: Tensor, memory: Tensor) -> Tensor:
    out = []
    for row, z in zip(logits, memory):
        p = [x.clamp(1e-4, 1 - 1e-4) for x in softmax(row)]
        out.append(torch.log(1 - sum(z[c].detach() * p[c] for c in range(len(p)))))
    return torch.stack(out)


def mean_prediction_gap(logits: Tensor) -> Tensor:
    rows = [softmax(row) for row in logits]
    c = logits.shape[1]
    mean = [sum(row[k] for row in rows) / len(rows) for k in range(c)]
    return sum(torch.log((1 / c) / mean[k]) / c for k in range(c))


def guided_contrast(one: Tensor, two: Tensor, label: Tensor, weight: Tensor, temperature: float) -> Tensor:
    b, out = len(one), []
    for i in range(b):
        same = [float((label[i] * label[j]).sum()) for j in range(b)]
        target = [float(weight[i]) * s / sum(same) + (1 - float(weight[i])) * (i == j) for j, s in enumerate(same)]
        p = softmax(torch.stack([(one[i] * two[j]).sum() / temperature for j in range(b)]))
        out.append(sum(-t * torch.log(q) for t, q in zip(target, p)))
    return torch.stack(out)


def masked_tag_loss(logits: Tensor, target: Tensor, positive: Tensor) -> Tensor:
    out = []
    for row, t in zip(logits, target):
        known = [c for c in range(len(t)) if t[c] >= 0]
        total = torch.zeros((), dtype=logits.dtype)
        for c in known:
            s = 1 / (1 + torch.exp(-row[c]))
            total = total - positive[c] * t[c] * torch.log(s) - (1 - t[c]) * torch.log(1 - s)
        out.append(total / max(len(known), 1))
    return torch.stack(out)


def move(rows: Tensor, z: Tensor, label: Tensor, keep: Tensor, decay: float) -> Tensor:
    rows = rows.clone()
    for i in range(len(z)):
        if keep[i]:
            rows[label[i]] = decay * rows[label[i]] + (1 - decay) * z[i]
    return torch.stack([row / row.norm() if row.norm() > 0 else row for row in rows])


def collective(anchor: Tensor, queue: Tensor, beliefs: Tensor, own: Tensor, temperature: float, linear: bool) -> Tensor:
    out = torch.zeros(len(anchor), beliefs.shape[1], dtype=anchor.dtype)
    for i in range(len(anchor)):
        weight = []
        for j in range(len(queue)):
            cosine = float((anchor[i] * queue[j]).sum())
            w = min(max(cosine, 0), 1) + 1e-7 if linear else math.exp(cosine / temperature)
            weight.append(0.0 if own[i, j] else w)
        for j, w in enumerate(weight):
            out[i] += w / sum(weight) * beliefs[j]
    return out


def remove_noise(score: list[float], label: int, anchor: bool, threshold: float, allowed: int | None = None):
    best = max(score)
    ok = score[label] >= 1 / len(score) or anchor
    fix = best >= threshold and not anchor
    if fix and allowed is not None and score.index(best) not in (label, allowed):
        return False, label
    return ok or fix, score.index(best) if fix else label


def complete(image, text, has, k: int, own: float):
    """Dense text completion, by the definition."""
    import numpy as np

    v = image / np.linalg.norm(image, axis=1, keepdims=True)
    t = text / np.linalg.norm(text, axis=1, keepdims=True) * has[:, None]
    n, cosine = len(v), v @ v.T
    graph = np.zeros((n, n))
    for i in range(n):
        near = sorted((j for j in range(n) if j != i), key=lambda j: -cosine[i, j])[:k]
        for j in near:
            graph[i, j] = min(max(cosine[i, j], 1e-3), 1)
    graph = np.maximum(graph, graph.T)
    graph = graph / graph.sum(1, keepdims=True)
    out = own * t + graph @ t
    size = np.linalg.norm(out, axis=1, keepdims=True)
    return np.divide(out, size, out=np.zeros_like(out), where=size > 0)
