"""Losses of pairs as slow loops over single similarities, written from their equations; autograd gives the gradient."""

from __future__ import annotations

import math

import torch
from torch import Tensor

ZERO = torch.zeros((), dtype=torch.float64)


def allowed(mask: list[list[bool]] | None, i: int, j: int) -> bool:
    """Whether image i and text j, different pairs, are negatives."""
    return i != j and (mask is None or mask[i][j])


def ask(s: Tensor, mask, i: int, way: int) -> dict[int, Tensor]:
    """Similarity of query i to itself and its negatives: image i to texts (way 0), text i to images (way 1)."""
    found = {i: s[i, i]}
    for j in range(len(s)):
        if way == 0 and allowed(mask, i, j):
            found[j] = s[i, j]
        if way == 1 and allowed(mask, j, i):
            found[j] = s[j, i]
    return found


def posterior(s: Tensor, mask, i: int, way: int, temperature: float) -> dict[int, Tensor]:
    scores = ask(s, mask, i, way)
    total = sum((torch.exp(value / temperature) for value in scores.values()), ZERO)
    return {j: torch.exp(value / temperature) / total for j, value in scores.items()}


def soft_targets(s: Tensor, mask, target, i: int, way: int, floor: float) -> dict[int, float]:
    """Of one query: identity, CREAM's spread of one value, or a row or column of a matrix."""
    scores = {j: float(value) for j, value in ask(s.detach(), mask, i, way).items()}
    if target is None:
        return {j: float(i == j) for j in scores}
    if target.ndim == 1:
        negatives = [j for j in scores if j != i]
        total = sum(max(scores[j], 0.0) for j in negatives)
        y = float(target[i])
        goal = {i: y}
        for j in negatives:
            goal[j] = (1 - y) * (max(scores[j], 0.0) / total if total > 0 else 1 / len(negatives))
        return {j: value if value >= floor else 0.0 for j, value in goal.items()}
    goal = {j: float(target[i, j] if way == 0 else target[j, i]) for j in scores}
    total = sum(goal.values())
    return {j: value / total if total > 0 else 0.0 for j, value in goal.items()}


def per_pair(b: int, one) -> Tensor:
    return torch.stack([one(i) for i in range(b)])


def info_nce(s, *, temperature, target=None, floor=0.0, mask=None) -> Tensor:
    def one(i: int) -> Tensor:
        loss = ZERO
        for way in (0, 1):
            p, goal = posterior(s, mask, i, way, temperature), soft_targets(s, mask, target, i, way, floor)
            for j, y in goal.items():
                if y > 0:
                    loss = loss - 0.5 * y * torch.log(p[j])
        return loss

    return per_pair(len(s), one)


def match_posterior(s, *, temperature, mask=None) -> Tensor:
    return per_pair(len(s), lambda i: 0.5 * sum((posterior(s, mask, i, way, temperature)[i] for way in (0, 1)), ZERO))


def reverse_cross_entropy(s, *, temperature, target=None, mask=None) -> Tensor:
    def one(i: int) -> Tensor:
        loss = ZERO
        for way in (0, 1):
            goal = soft_targets(s, mask, target, i, way, 0.0)
            for j, p in posterior(s, mask, i, way, temperature).items():
                loss = loss - 0.5 * p * math.log(goal[j] + 1e-7)
        return loss

    return per_pair(len(s), one)


def symmetric_cross_entropy(s, *, temperature, forward, reverse, target=None, mask=None) -> Tensor:
    ahead = info_nce(s, temperature=temperature, target=target, mask=mask)
    return forward * ahead + reverse * reverse_cross_entropy(s, temperature=temperature, target=target, mask=mask)


def generalised_cross_entropy(s, *, temperature, q, mask=None) -> Tensor:
    def one(i: int) -> Tensor:
        return sum((0.5 * (1 - posterior(s, mask, i, way, temperature)[i] ** q) / q for way in (0, 1)), ZERO)

    return per_pair(len(s), one)


def siglip(s, *, scale, bias, mask=None) -> Tensor:
    def one(i: int) -> Tensor:
        loss = -torch.log(1 / (1 + torch.exp(-(scale * s[i, i] + bias))))
        for way in (0, 1):
            for j, value in ask(s, mask, i, way).items():
                if j != i:
                    loss = loss - 0.5 * torch.log(1 / (1 + torch.exp(scale * value + bias)))
        return loss

    return per_pair(len(s), one)


def hinges(s, margin, mask, i: int, way: int) -> list[Tensor]:
    """Violations of query i; the margin is a number, one per pair, or one per image and text."""
    found = []
    for j, value in ask(s, mask, i, way).items():
        if j != i:
            if isinstance(margin, float):
                m = margin
            elif margin.ndim == 1:
                m = margin[i]
            else:
                m = margin[i, j] if way == 0 else margin[j, i]
            gap = m + value - s[i, i]
            found.append(gap if gap.item() > 0 else ZERO)
    return found


def hardest_triplet(s, *, margin, mask=None) -> Tensor:
    def one(i: int) -> Tensor:
        return sum((max(hinges(s, margin, mask, i, way), key=Tensor.item, default=ZERO) for way in (0, 1)), ZERO)

    return per_pair(len(s), one)


def mean_triplet(s, *, margin, mask=None) -> Tensor:
    def one(i: int) -> Tensor:
        loss = ZERO
        for way in (0, 1):
            found = hinges(s, margin, mask, i, way)
            loss = loss + sum(found, ZERO) / (len(found) + 1)
        return loss

    return per_pair(len(s), one)


def top_triplet(s, *, n, margin, mask=None) -> Tensor:
    def one(i: int) -> Tensor:
        loss = ZERO
        for way in (0, 1):
            found = sorted(hinges(s, margin, mask, i, way), key=Tensor.item, reverse=True)[:n]
            loss = loss + (sum(found, ZERO) / len(found) if found else ZERO)
        return loss

    return per_pair(len(s), one)


PENALTIES = {
    "log": lambda p: -torch.log(1 - (1 - 1e-6) * p),
    "tan": lambda p: torch.sin(p) / torch.cos(p),
    "abs": lambda p: p,
    "exp": lambda p: torch.exp(-(1 - p)),
    "gce": lambda p: (1 - (1 - (1 - 1e-6) * p) ** 0.5) / 0.5,
}


def complementary(s, *, penalty, temperature, mask=None) -> Tensor:
    def one(i: int) -> Tensor:
        loss = ZERO
        for way in (0, 1):
            for j, p in posterior(s, mask, i, way, temperature).items():
                if j != i:
                    loss = loss + PENALTIES[penalty](p)
        return loss

    return per_pair(len(s), one)


def active_complementary(s, target, *, temperature, strength, mask=None) -> Tensor:
    def one(i: int) -> Tensor:
        loss, y = ZERO, float(target[i])
        for way in (0, 1):
            p = posterior(s, mask, i, way, temperature)
            above = sum((torch.tan(value) for j, value in p.items() if j != i), ZERO)
            below = sum((torch.tan(value) for value in p.values()), ZERO)
            loss = loss - y * torch.log(p[i]) + strength * above / below ** (1 - y)
        return loss

    return per_pair(len(s), one)


def dirichlet_divergence(alpha: list[Tensor]) -> Tensor:
    total = sum(alpha, ZERO)
    result = torch.lgamma(total) - math.lgamma(len(alpha))
    for a in alpha:
        result = result - torch.lgamma(a) + (a - 1) * (torch.digamma(a) - torch.digamma(total))
    return result


def evidential(r, *, target=None, temperature, spread, mask=None) -> Tensor:
    def one(i: int) -> Tensor:
        loss = ZERO
        for way in (0, 1):
            scores = ask(r, mask, i, way)
            alpha = {j: torch.exp(torch.tanh(value) / temperature) + 1 for j, value in scores.items()}
            total = sum(alpha.values(), ZERO)
            rest = []
            for j, a in alpha.items():
                y = (1.0 if target is None else float(target[i])) if j == i else 0.0
                loss = loss + (y - a / total) ** 2 + a * (total - a) / (total**2 * (total + 1))
                rest.append((a - 1) * (1 - y) + 1)
            loss = loss + spread * dirichlet_divergence(rest)
        return loss

    return per_pair(len(r), one)


def vacuity(r, *, temperature, mask=None) -> Tensor:
    def one(i: int) -> Tensor:
        result = ZERO
        for way in (0, 1):
            alpha = [torch.exp(torch.tanh(value) / temperature) + 1 for value in ask(r, mask, i, way).values()]
            result = result + 0.5 * len(alpha) / sum(alpha, ZERO)
        return result

    return per_pair(len(r), one)


def structure_agreement(a, b, *, anchor=None) -> Tensor:
    def one(i: int) -> Tensor:
        dot, left, right = ZERO, ZERO, ZERO
        for k in range(len(a)):
            v = 1.0 if anchor is None else float(anchor[k])
            dot = dot + v * a[i, k] * v * b[i, k]
            left, right = left + (v * a[i, k]) ** 2, right + (v * b[i, k]) ** 2
        return dot / (torch.sqrt(left) * torch.sqrt(right))

    return per_pair(len(a), one)


def structure_contrast(a, b, *, temperature, anchor=None, mask=None, faithful=False) -> Tensor:
    n = len(a)
    v = [1.0 if anchor is None else float(x) for x in (anchor if anchor is not None else range(n))]
    rows = [
        torch.stack([sum((v[k] ** 2 * a[i, k] * b[j, k] for k in range(n)), ZERO) for j in range(n)]) for i in range(n)
    ]
    match = torch.stack(rows)
    if not faithful:
        return info_nce(match, temperature=temperature, mask=mask)
    return per_pair(n, lambda i: -torch.log(posterior(match, mask, i, 0, temperature)[i]))


def asymmetry(s, *, mask=None) -> Tensor:
    def one(i: int) -> Tensor:
        mates = [j for j in range(len(s)) if allowed(mask, i, j) and allowed(mask, j, i)]
        return sum(((s[i, j] - s[j, i]) ** 2 for j in mates), ZERO) / (len(mates) + 1)

    return per_pair(len(s), one)


def structure_gap(a, b) -> Tensor:
    n = len(a)
    return per_pair(n, lambda i: sum(((a[i, k] - b[i, k]) ** 2 for k in range(n)), ZERO) / n)


def rematch_divergence(s, plan, *, temperature, floor, mask=None) -> Tensor:
    def one(i: int) -> Tensor:
        loss = ZERO
        for way in (0, 1):
            p = posterior(s, mask, i, way, temperature)
            raw = {j: max(float(plan[i, j] if way == 0 else plan[j, i]), floor) for j in p}
            goal = {j: value / sum(raw.values()) for j, value in raw.items()}
            for j in p:
                loss = loss + 0.5 * goal[j] * (math.log(goal[j]) - torch.log(p[j]))
                loss = loss + 0.5 * p[j] * (torch.log(p[j]) - math.log(goal[j]))
        return loss

    return per_pair(len(s), one)


def flip_aware(logits, flips, *, wrong=None, mask=None) -> Tensor:
    def chance(x: Tensor) -> Tensor:
        return 1 / (1 + torch.exp(-x))

    def one(i: int) -> Tensor:
        h = 0.0 if wrong is None else float(wrong[i])
        r, g = chance(logits[i, i]), chance(flips[i, i])
        loss = -torch.log(r * (1 - g) + h * (1 - r))
        for j in range(len(logits)):
            for row, column in ((i, j), (j, i)):
                if allowed(mask, row, column):
                    r, g = chance(logits[row, column]), chance(flips[row, column])
                    loss = loss - 0.5 * torch.log(1 - r + g * r)
        return loss

    return per_pair(len(logits), one)


def released_flip_gradients(logits, flips, mask=None) -> tuple[list[list[float]], list[list[float]]]:
    """Ascent directions of the released rule, summed over pairs, of R and of G."""
    b = len(logits)
    up, over = [[0.0] * b for _ in range(b)], [[0.0] * b for _ in range(b)]
    for i in range(b):
        for j in range(b):
            r = 1 / (1 + math.exp(-float(logits[i, j])))
            g = 1 / (1 + math.exp(-float(flips[i, j])))
            if i == j:
                up[i][j], over[i][j] = (1 - g) * (1 - r), -g * r
            elif allowed(mask, i, j):
                up[i][j], over[i][j] = g * (1 - r) - r, (1 - g) * r
    return up, over


def pseudo_class_cross_entropy(logits, target) -> Tensor:
    def one(i: int) -> Tensor:
        total = sum((torch.exp(x) for x in logits[i]), ZERO)
        loss = ZERO
        for k in range(logits.shape[1]):
            t = float(target[i, k]) if target.ndim == 2 else float(int(target[i]) == k)
            loss = loss - t * torch.log(torch.exp(logits[i, k]) / total)
        return loss

    return per_pair(len(logits), one)


def softmax(row: Tensor) -> list[Tensor]:
    total = sum((torch.exp(x) for x in row), ZERO)
    return [torch.exp(x) / total for x in row]


def batch_entropy(logits, weight=None) -> Tensor:
    w = [1.0 if weight is None else float(weight[i]) for i in range(len(logits))]
    p = [softmax(row) for row in logits]
    result = ZERO
    for k in range(logits.shape[1]):
        mean = sum((w[i] * p[i][k] for i in range(len(p))), ZERO) / sum(w)
        result = result - mean * torch.log(mean)
    return result


def sample_entropy(logits) -> Tensor:
    return torch.stack([-sum((p * torch.log(p) for p in softmax(row)), ZERO) for row in logits])


def class_cosine(query, pool) -> Tensor:
    rows = []
    for a in query:
        p = softmax(a)
        row = []
        for b in pool:
            q = softmax(b)
            dot = sum((x * y for x, y in zip(p, q)), ZERO)
            lengths = torch.sqrt(sum((x * x for x in p), ZERO)) * torch.sqrt(sum((y * y for y in q), ZERO))
            row.append(dot / lengths)
        rows.append(torch.stack(row))
    return torch.stack(rows)
