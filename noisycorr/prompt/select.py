"""The pseudo-labels of a round: how many each class gets, and which, from probabilities of unlabelled images.

One loop serves FPL, IFPL and GRIP, which differ only in how many.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

STRATEGIES = ("grip", "ifpl", "fpl")
SELECTORS = ("exclusive", "leaderboard", "argmax", "column", "threshold", "candidates", "balanced")
LEAST = 1e-30  # of what is divided by; float32 holds it
ROWS = 4096  # images whose products with the classes' factors are held at once


@dataclass(frozen=True, slots=True, kw_only=True)
class Selected:
    """Pseudo-labels of one round. Selectors of the field's own code may give one image several of them.

    Attributes:
        rows: int64 (m,): which unlabelled images.
        label: int64 (m,): their classes.
        probability: float32 (m,): how sure the model was, in [0, 1].
        rank: int64 (m,): place among the images of the same label, from 1, the surest first.
        targets: float32 (m, c): soft labels, rows sum to 1; None = the labels are hard.
    """

    rows: np.ndarray
    label: np.ndarray
    probability: np.ndarray
    rank: np.ndarray
    targets: np.ndarray | None = None

    @staticmethod
    def of(p: np.ndarray, rows: np.ndarray, label: np.ndarray, targets: np.ndarray | None = None) -> Selected:
        """Look up probabilities and rank them; of equal ones the smaller row is first."""
        probability = p[rows, label].astype(np.float32)
        order = np.lexsort((rows, -probability, label))
        rank = np.empty(len(rows), np.int64)
        starts = np.searchsorted(label[order], label[order], side="left")
        rank[order] = np.arange(len(rows)) - starts + 1
        return Selected(rows=rows, label=label, probability=probability, rank=rank, targets=targets)

    def __len__(self) -> int:
        return len(self.rows)


def select(
    selector: str, p: Float[np.ndarray, "n c"], capacity: Int[np.ndarray, " c"], *, threshold: float = 0.9,
    alpha: float = 0.6, beta: float = 0.9, prior: Float[np.ndarray, " c"] | None = None,
) -> Selected:  # fmt: skip
    """The pseudo-labels that a selector gives.

    Args:
        selector: One of `SELECTORS`.
        p: Probabilities among the classes that may be given, rows sum to 1.
        capacity: At most so many images of each class.
        threshold: Least probability, for threshold.
        alpha: Quantile of candidates within an image, for candidates.
        beta: Quantile of candidates within a class, for candidates.
        prior: Share of each class, for balanced; None = all alike.

    Raises:
        ValueError: If the selector is unknown.
    """
    if selector == "exclusive":
        return Selected.of(p, *exclusive_greedy(p, capacity))
    if selector == "leaderboard":
        return Selected.of(p, *leaderboard(p, capacity))
    if selector == "argmax":
        return _best_of(p, p.argmax(1), capacity)
    if selector == "column":
        return column_top(p, capacity)
    if selector == "threshold":
        rows = np.flatnonzero(p.max(1) >= threshold)
        return Selected.of(p, rows, p[rows].argmax(1))
    if selector == "candidates":
        return candidate_sets(p, capacity, alpha=alpha, beta=beta)
    if selector == "balanced":
        return balanced(p, capacity, prior)
    raise ValueError(f"selector is {selector!r}, expected one of {', '.join(SELECTORS)}")


def column_top(p: Float[np.ndarray, "n c"], capacity: Int[np.ndarray, " c"]) -> Selected:
    """For each class the images of highest probability, whatever other classes say; one image may get several labels.

    Source: a variant of the specification.
    """
    rows = [np.argsort(-p[:, k], kind="stable")[: capacity[k]] for k in range(p.shape[1])]
    label = np.repeat(np.arange(p.shape[1]), [len(part) for part in rows])
    return Selected.of(p, np.concatenate(rows).astype(np.int64), label)


def candidate_sets(
    p: Float[np.ndarray, "n c"], capacity: Int[np.ndarray, " c"], *, alpha: float, beta: float
) -> Selected:
    """Soft labels over the few classes that both the image and the class find likely.

        a       = the alpha-quantile over images of max_c p_ic (alpha = 0: the mean)
        intra_i = classes in descending p_ic, up to the first where their sum exceeds a
        inter_i = {c: p_ic >= the beta-quantile of column c}
        S_i     = intra_i and inter_i;  targets_ic = p_ic / sum over S_i;  images with an empty S_i are left out

    Args:
        p: Rows sum to 1.
        capacity: The most confident images of each likeliest candidate stay.
        alpha: In [0, 1].
        beta: In [0, 1].

    Source: CPL (Zhang et al., ICML 2024), released code; alpha 0.6 to 0.9 and beta 0.8 to 0.99 there, by data set.
    """
    top = p.max(1)
    level = top.mean() if alpha == 0 else np.quantile(top, alpha)
    order = np.argsort(-p, axis=1, kind="stable")
    before = np.cumsum(np.take_along_axis(p, order, 1), axis=1) - np.take_along_axis(p, order, 1)
    intra = np.zeros(p.shape, bool)
    np.put_along_axis(intra, order, before <= level, axis=1)
    intra[np.arange(len(p)), order[:, 0]] = True
    inside = np.where(intra & (p >= np.quantile(p, beta, axis=0)), p, 0)
    total = inside.sum(1)
    rows = np.flatnonzero(total > 0)
    chosen = _best_of(p[rows], inside[rows].argmax(1), capacity)
    soft = (inside[rows] / total[rows, None]).astype(np.float32)[chosen.rows]
    return Selected.of(p, rows[chosen.rows], chosen.label, soft)


def balanced(
    p: Float[np.ndarray, "n c"], capacity: Int[np.ndarray, " c"], prior: Float[np.ndarray, " c"] | None = None
) -> Selected:
    """Labels by transport, so that classes are used as the prior says; of each the `capacity` surest images stay.

        the plan from n images of mass 1 to classes of mass n * prior_c, at cost -log p_ic; label = its largest entry

    The probability that is told is the model's own, not the plan's.

    Source: Sinkhorn labels of the specification; OTTER (Shin et al., NeurIPS 2024) for a prior that is known.
    """
    n, c = p.shape
    share = np.full(c, 1 / c) if prior is None else np.asarray(prior, np.float64) / np.sum(prior)
    right = class_factors(p, n * share)
    label = np.concatenate([(p[at : at + ROWS] * right).argmax(1) for at in range(0, n, ROWS)] or [np.zeros(0, int)])
    return _best_of(p, label, capacity)


def class_factors(p: Float[np.ndarray, "n c"], mass: Float[np.ndarray, " c"], *, iterations: int = 200,
                  tolerance: float = 1e-3) -> Float[np.ndarray, " c"]:  # fmt: skip
    """v of the plan u_i p_ic v_c whose rows hold 1 and whose columns hold `mass`, which sums to n.

        u_i = 1 / sum_c p_ic v_c,    v_c = mass_c / sum_i u_i p_ic

    That is `stats.transport.sinkhorn` at cost -log p and reg = 1, without logarithms: two products of a matrix and
    a vector a step, so that 60,000 images and 1,000 classes take seconds.

    Args:
        p: Rows sum to 1.
        mass: >= 0.
        iterations: At most so many.
        tolerance: Stop when the rows miss their mass by less than this share of all.

    Source: Cuturi, NeurIPS 2013.
    """
    goal, right = mass.astype(p.dtype), np.ones(p.shape[1], p.dtype)
    for step in range(iterations):
        left = 1 / np.maximum(p @ right, LEAST)
        right = goal / np.maximum(left @ p, LEAST)
        if step % 10 == 9 and np.abs(left * (p @ right) - 1).sum() <= tolerance * len(p):
            break
    return right


def _best_of(p: np.ndarray, label: np.ndarray, capacity: np.ndarray) -> Selected:
    """The surest images of each label, as many as it has places."""
    found = Selected.of(p, np.arange(len(p)), label)
    kept = np.flatnonzero(found.rank <= capacity[label])
    return Selected(rows=kept, label=label[kept], probability=found.probability[kept], rank=found.rank[kept])


BLOCK = 8192  # images that look for a class at once, which bounds the memory


def exclusive_greedy(
    p: Float[np.ndarray, "n c"], capacity: Int[np.ndarray, " c"]
) -> tuple[Int[np.ndarray, " m"], Int[np.ndarray, " m"]]:
    """Walk over all pairs of image and class, the highest p first; take a pair if both still have a place.

    Of equal p the smaller image goes first, then the smaller class. The walk is not done pair by pair: both sides rank
    by the same numbers, so its outcome is the only stable matching, which images find by proposing to the best class
    that would still have them, while classes drop the worst of those they hold (Gale and Shapley, 1962).

    Args:
        p: Probability of each class; NaN and -inf are never taken.
        capacity: Places of each class, >= 0.

    Returns:
        Rows in ascending order and their classes; m = min(n, total of the capacities) where p is finite.

    Source: specification of GRIP's selector without its doubled labels; see the paper index.
    """
    n, c = p.shape
    holder = np.full(n, -1, np.int64)
    worst = np.where(capacity > 0, -np.inf, np.inf)  # p that a newcomer has to beat
    worst_row = np.full(c, n, np.int64)  # and at equal p the row that he has to be before
    free = np.arange(n)
    while len(free):
        asked = np.concatenate([_best(p, free[at : at + BLOCK], worst, worst_row) for at in range(0, len(free), BLOCK)])
        alive = asked >= 0
        holder[free[alive]] = asked[alive]
        dropped = [_trim(p, holder, int(k), int(capacity[k]), worst, worst_row) for k in np.unique(asked[alive])]
        free = np.sort(np.concatenate([np.zeros(0, np.int64), *dropped]))
    rows = np.flatnonzero(holder >= 0)
    return rows, holder[rows]


def _best(p: np.ndarray, rows: np.ndarray, worst: np.ndarray, worst_row: np.ndarray) -> np.ndarray:
    """The best class that would have each row; -1 where none would."""
    mine = p[rows]
    open_to = mine > worst
    ties = mine == worst
    if ties.any():
        open_to |= ties & np.isfinite(mine) & (rows[:, None] < worst_row)
    value = np.where(open_to, mine, -np.inf)
    best = value.argmax(1)
    return np.where(np.isfinite(value[np.arange(len(rows)), best]), best, -1)


def _trim(
    p: np.ndarray, holder: np.ndarray, k: int, places: int, worst: np.ndarray, worst_row: np.ndarray
) -> np.ndarray:
    """Let class k drop those it has no place for; notes what a newcomer has to beat. Returns the dropped rows."""
    mine = np.flatnonzero(holder == k)
    if len(mine) < places:
        return np.zeros(0, np.int64)
    order = mine[np.argsort(-p[mine, k], kind="stable")]
    worst[k], worst_row[k] = p[order[places - 1], k], order[places - 1]
    holder[order[places:]] = -1
    return order[places:]


def leaderboard(
    p: Float[np.ndarray, "n c"], capacity: Int[np.ndarray, " c"]
) -> tuple[Int[np.ndarray, " m"], Int[np.ndarray, " m"]]:
    """Every image is offered to the list of its likeliest class, and if that refuses, to all others.

    A list with room takes what is offered, at its end. A full one takes what beats its *last* entry, is sorted, and
    loses its lowest. So a list is unsorted until it first overflows, an image may stand in several lists with different
    labels, one that fell out of a list is not offered again, and the order of the rows matters.

    Args:
        p: Probability of each class, finite.
        capacity: Places of each list, >= 0.

    Returns:
        Rows and classes of all entries, class by class, in the order of the lists.

    Source: Menghini et al., NeurIPS 2023, released code (its pseudo-label helper, and FPL's assignment).
    """
    n, c = p.shape
    lists: list[list[int]] = [[] for _ in range(c)]
    size = np.zeros(c, np.int64)
    last = np.full(c, -np.inf)
    every = np.arange(c)
    for row in range(n):
        mine = p[row]
        wanted = (size < capacity) | ((last < mine) & (capacity > 0))
        top = int(mine.argmax())
        takers = [top] if wanted[top] else every[wanted].tolist()
        for k in takers:
            entries = lists[k]
            entries.append(row)
            if len(entries) > capacity[k]:
                entries.sort(key=lambda other: -p[other, k])
                entries.pop()
            size[k], last[k] = len(entries), p[entries[-1], k]
    rows = np.array([row for entries in lists for row in entries], np.int64)
    return rows, np.repeat(every, [len(entries) for entries in lists])


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
