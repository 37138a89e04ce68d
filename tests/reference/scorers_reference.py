"""Scorers on arrays as slow loops, written from their equations."""

from __future__ import annotations

import math

from reference.signals_reference import Vector, cosine, dot, unit

Rows = list[Vector]


def distance(a: Vector, b: Vector) -> float:
    return 1 - dot(unit(a), unit(b))


def nearest(rows: Rows, of: Vector, k: int, but: int | None, present: list[bool]) -> list[int]:
    """The k rows most similar to a vector, without one of them and without those that are missing."""
    order = sorted((-dot(unit(of), unit(row)), j) for j, row in enumerate(rows) if j != but and present[j])
    return [j for _, j in order[:k]]


def csls(image: Rows, text: Rows, i: int, k: int) -> float | None:
    present = [any(a) and any(b) for a, b in zip(image, text)]
    if not present[i]:
        return None
    crowd = 0.0
    for here, there in ((image, text), (text, image)):
        near = nearest(there, here[i], k, None, present)
        crowd += sum(dot(unit(here[i]), unit(there[j])) for j in near) / len(near)
    return 2 * dot(unit(image[i]), unit(text[i])) - crowd


def negclip(image: Rows, text: Rows, i: int, batch: list[int], t: float) -> tuple[float, float, float]:
    """Cosine, and how crowded it is around image i and around text i."""
    own = dot(unit(image[i]), unit(text[i]))
    one = t * math.log(sum(math.exp(dot(unit(image[i]), unit(text[j])) / t) for j in batch))
    two = t * math.log(sum(math.exp(dot(unit(image[j]), unit(text[i])) / t) for j in batch))
    return own, one, two


def lemon(image: Rows, text: Rows, i: int, k: int, beta: float, gamma: float, tau1: float, tau2: float) -> float | None:
    """How wrong a pair is; None if a side is missing."""
    present = [cosine(a, b) is not None for a, b in zip(image, text)]
    if not present[i]:
        return None
    total = distance(image[i], text[i])
    for weight, here, there in ((beta, image, text), (gamma, text, image)):
        near = nearest(here, here[i], k, i, present)
        part = 0.0
        for j in near:
            trust = math.exp(-tau1 * distance(here[i], here[j])) * math.exp(-tau2 * distance(image[j], text[j]))
            part += distance(there[i], there[j]) * trust
        total += weight * part / max(len(near), 1)
    return total
