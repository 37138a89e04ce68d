"""Optimal transport in the log domain: whole, partial with forbidden entries, and balanced assignment to classes.

Plans are targets: no gradient flows through them.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor


@torch.no_grad()
def sinkhorn(cost: Float[Tensor, "n m"], rows: Float[Tensor, " n"], columns: Float[Tensor, " m"], *, reg: float = 0.01,
             iterations: int = 1000, tolerance: float = 1e-3) -> Float[Tensor, "n m"]:  # fmt: skip
    """Entropic transport plan with given marginals.

        min_T sum_ij T_ij c_ij + reg sum_ij T_ij (ln T_ij - 1),   sum_j T_ij = rows_i,   sum_i T_ij = columns_j

    Args:
        cost: Cost of each unit of mass; infinite = forbidden.
        rows: Mass that leaves each row, >= 0.
        columns: Mass that reaches each column, >= 0, with the same total.
        reg: > 0, in units of cost: the larger, the more diffuse.
        iterations: At most so many, >= 1.
        tolerance: Stop when the rows miss their mass by less than this share of the total.

    Returns:
        A plan whose columns hold exactly their mass and whose rows nearly do; exactly 0 where forbidden, and 0
        throughout a row or column of which everything is forbidden.

    Raises:
        ValueError: If a shape does not fit, the totals differ, or ``reg`` or ``iterations`` is not positive.

    Source: Sinkhorn scaling for entropic transport (Cuturi, NeurIPS 2013).
    """
    if rows.shape != cost.shape[:1] or columns.shape != cost.shape[1:] or cost.ndim != 2:
        raise ValueError(f"cost {tuple(cost.shape)}, rows {tuple(rows.shape)}, columns {tuple(columns.shape)} differ")
    if reg <= 0 or iterations < 1:
        raise ValueError(f"reg is {reg} and iterations {iterations}, expected > 0 and >= 1")
    total = float(rows.sum())
    if abs(total - float(columns.sum())) > 1e-4 * max(total, 1e-12):
        raise ValueError(f"rows hold {total:g}, columns {float(columns.sum()):g}: the totals must be equal")
    kernel = -cost / reg
    to, of = rows.log(), columns.log()
    left = torch.zeros_like(to)
    right = torch.zeros_like(of)
    for step in range(iterations):
        left = _reach(to, torch.logsumexp(kernel + right[None, :], 1))
        right = _reach(of, torch.logsumexp(kernel + left[:, None], 0))
        if step % 10 == 9:  # looking costs as much as half a round
            held = (kernel + left[:, None] + right[None, :]).exp().sum(1)
            if float((held - rows).abs().sum()) <= tolerance * total:
                break
    return (kernel + left[:, None] + right[None, :]).exp()


@torch.no_grad()
def partial_transport(cost: Float[Tensor, "n m"], *, mass: float = 0.1, reg: float = 0.01,
                      forbidden: Bool[Tensor, "n m"] | None = None, iterations: int = 1000,
                      tolerance: float = 1e-3) -> Float[Tensor, "n m"]:  # fmt: skip
    """Move only part of the mass, the cheapest part: rows hold 1 / n each, columns 1 / m, and ``mass`` of the 1 moves.

    What stays goes to a dummy column and comes from a dummy row, at equal cost from everywhere, never from one to the
    other.

    Args:
        cost: Cost of each unit of mass, of any finite values.
        mass: Share that moves, in (0, 1].
        reg: > 0, in units of cost.
        forbidden: True where nothing may move, as from an image to its own wrong text.
        iterations: At most so many, >= 1.
        tolerance: As in ``sinkhorn``.

    Returns:
        A plan with rows <= 1 / n, columns <= 1 / m and total ``mass`` within ``tolerance``; exactly 0 where forbidden.

    Raises:
        ValueError: If ``mass`` lies outside (0, 1], or more should move than the allowed entries can.

    Source: partial transport by dummy points (Chapel et al., NeurIPS 2020) as L2RM (Han et al., CVPR 2024) uses it.
    Differs: dummies cost nothing and may never serve each other, instead of costing 100 times the largest cost c and
    201 c between them. Scaling absorbs the 100 c, so the plans differ by about exp(-c / reg), and numbers stay small.
    """
    n, m = cost.shape
    if not 0 < mass <= 1:
        raise ValueError(f"mass is {mass}, expected in (0, 1]")
    open_to = torch.ones_like(cost, dtype=torch.bool) if forbidden is None else ~forbidden
    reach = min(float(open_to.any(1).sum()) / n, float(open_to.any(0).sum()) / m)
    if mass > reach + 1e-6:
        raise ValueError(f"{mass:g} of the mass should move, but at most {reach:g} may: too much is forbidden")
    whole = cost.new_zeros(n + 1, m + 1)
    whole[:n, :m] = cost.masked_fill(~open_to, float("inf"))
    whole[n, m] = float("inf")
    rest = max(1 - mass, 1e-9)
    rows = torch.cat([cost.new_full((n,), 1 / n), cost.new_tensor([rest])])
    columns = torch.cat([cost.new_full((m,), 1 / m), cost.new_tensor([rest])])
    plan = sinkhorn(whole, rows, columns, reg=reg, iterations=iterations, tolerance=tolerance)[:n, :m]
    plan = plan * (1 / n / plan.sum(1, keepdim=True).clamp(min=1 / n))
    return plan * (1 / m / plan.sum(0, keepdim=True).clamp(min=1 / m))


@torch.no_grad()
def balanced_assignment(logits: Float[Tensor, "b c"], *, reg: float = 0.2, iterations: int = 50,
                        normalise: bool = True) -> Float[Tensor, "b c"]:  # fmt: skip
    """Soft classes of a batch with every class used alike.

        the plan of transport from b samples of mass 1 to c classes of mass b / c, at cost -logits

    Args:
        logits: Of any scale.
        reg: > 0; in units of the logits' spread within a class if ``normalise``, else of the logits.
        iterations: Rounds of scaling, >= 1; few leave classes less balanced.
        normalise: Divide by the mean standard deviation of each class over the batch first, so that ``reg`` does not
            depend on the scale, and logits that hardly differ between samples are still told apart.

    Returns:
        Class probabilities of each sample, rows sum to 1; columns sum to b / c as nearly as the rounds reached.
        ``argmax(1)`` is the balanced class.

    Raises:
        ValueError: If ``reg`` or ``iterations`` is not positive.

    Source: self-labelling by transport (Asano et al., ICLR 2020; SwAV, Caron et al., NeurIPS 2020).
    """
    b, c = logits.shape
    wide = logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits  # half holds no kernels
    if normalise:
        wide = wide - wide.mean(0)
        wide = wide / wide.std(0, correction=0).mean().clamp(min=torch.finfo(wide.dtype).tiny)
    plan = sinkhorn(-wide, wide.new_ones(b), wide.new_full((c,), b / c), reg=reg, iterations=iterations, tolerance=1e-4)
    return plan / plan.sum(1, keepdim=True)


def _reach(goal: Tensor, now: Tensor) -> Tensor:
    """Potential that brings the mass to its goal; none where no entry is open or no mass is wanted."""
    return torch.where(torch.isfinite(now), goal - now, float("-inf"))
