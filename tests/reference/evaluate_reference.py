"""Detection metrics as slow loops, written from their definitions. Wrong pairs are positive; low score = suspicious."""

from __future__ import annotations


def auroc(score: list[float], wrong: list[bool]) -> float:
    won, seen = 0.0, 0
    for a, bad in zip(score, wrong):
        for b, also in zip(score, wrong):
            if bad and not also:
                won += 1.0 if a < b else 0.5 if a == b else 0.0
                seen += 1
    return won / seen


def average_precision(score: list[float], wrong: list[bool]) -> float:
    total, before, area = sum(wrong), 0.0, 0.0
    for threshold in sorted(set(score)):
        taken = [bad for value, bad in zip(score, wrong) if value <= threshold]
        recall = sum(taken) / total
        area += (recall - before) * sum(taken) / len(taken)
        before = recall
    return area


def fpr_at_tpr(score: list[float], wrong: list[bool], tpr: float) -> float:
    best = 1.0
    right = len(wrong) - sum(wrong)
    for threshold in score:
        hits = sum(value <= threshold and bad for value, bad in zip(score, wrong))
        misses = sum(value <= threshold and not bad for value, bad in zip(score, wrong))
        if hits / sum(wrong) >= tpr:
            best = min(best, misses / right)
    return best


def gaps(p_clean: list[float], wrong: list[bool], bins: int) -> tuple[float, float]:
    """Expected and largest calibration error over equal-width bins."""
    expected, largest = 0.0, 0.0
    for b in range(bins):
        inside = [
            (p, not bad)
            for p, bad in zip(p_clean, wrong)
            if b / bins <= p < (b + 1) / bins or (b == bins - 1 and p == 1)
        ]
        if inside:
            gap = abs(sum(p for p, _ in inside) / len(inside) - sum(ok for _, ok in inside) / len(inside))
            expected += gap * len(inside) / len(p_clean)
            largest = max(largest, gap)
    return expected, largest


def adaptive_gap(p_clean: list[float], wrong: list[bool], bins: int) -> float:
    """Bins of equal count: a bin begins at each of the values at places k*n/bins; equal values stay together."""
    order = sorted(p_clean)
    starts = sorted({order[k * len(order) // bins] for k in range(1, bins)})
    groups: dict[int, list[tuple[float, bool]]] = {}
    for p, bad in zip(p_clean, wrong):
        groups.setdefault(sum(start <= p for start in starts), []).append((p, not bad))
    total = 0.0
    for rows in groups.values():
        total += abs(sum(p for p, _ in rows) - sum(ok for _, ok in rows))
    return total / len(p_clean)
