"""Both directions of retrieval as one: a batch seen by its images, and the same batch seen by its texts."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

Direction = tuple[Float[Tensor, "b b"], Bool[Tensor, "b b"]]


def directions(sims: Float[Tensor, "b b"], negatives: Bool[Tensor, "b b"] | None = None) -> tuple[Direction, Direction]:
    """The batch as its images see it and as its texts see it; in both, row i is the query of pair i.

    Args:
        sims: Similarity of image i (row) and text j (column); the diagonal holds the given pairs.
        negatives: True where image i and text j may serve as each other's negative; None = everywhere. The diagonal
            is never a negative, whatever stands there.

    Returns:
        ``(sims, mask)`` of the image queries and ``(sims.T, mask.T)`` of the text queries, in at least single
        precision. ``mask`` is True at candidates that count as negatives of the row's query.

    Raises:
        ValueError: If ``sims`` is not square, or ``negatives`` is not a bool matrix of the same shape.
    """
    if sims.ndim != 2 or sims.shape[0] != sims.shape[1] or not len(sims):
        raise ValueError(f"sims has shape {tuple(sims.shape)}, expected (b, b) with b >= 1")
    sims = widened(sims)
    mask = ~torch.eye(len(sims), dtype=torch.bool, device=sims.device)
    if negatives is not None:
        if negatives.shape != sims.shape or negatives.dtype != torch.bool:
            raise ValueError(f"negatives is {negatives.dtype} {tuple(negatives.shape)}, expected bool like sims")
        mask = mask & negatives
    return (sims, mask), (sims.T, mask.T)


def log_posterior(
    sims: Float[Tensor, "b b"], mask: Bool[Tensor, "b b"], temperature: float | Tensor
) -> Float[Tensor, "b b"]:
    """Log-probability of each candidate given the query of its row, over the query's own partner and its negatives.

        ln P_ij = s_ij / temperature - ln sum_{k = i or mask_ik} exp(s_ik / temperature)

    Args:
        sims: Rows are queries; the diagonal holds their own partners.
        mask: True at negatives, False on the diagonal, as ``directions`` gives it.
        temperature: > 0, in units of similarity; a tensor is not checked, which would wait for its device.

    Returns:
        Log-probabilities <= 0, each row over its candidates; -inf at entries that are no candidates, which get no
        gradient either.

    Raises:
        ValueError: If ``temperature`` is a number that is not positive.
    """
    if not isinstance(temperature, Tensor) and temperature <= 0:
        raise ValueError(f"temperature is {temperature}, expected > 0")
    candidate = mask | torch.eye(len(sims), dtype=torch.bool, device=sims.device)
    return torch.log_softmax((sims / temperature).masked_fill(~candidate, float("-inf")), dim=1)


def widened(values: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """The same values in at least single precision: half holds neither exponentials nor logarithms of losses."""
    return values.float() if values.dtype in (torch.float16, torch.bfloat16) else values


def checked(values: Float[Tensor, "..."], name: str, *shapes: tuple[int, ...]) -> Float[Tensor, "..."]:
    """The same tensor, once its shape is one of those expected: nothing broadcasts silently.

    Raises:
        ValueError: If it is another one.
    """
    if tuple(values.shape) not in shapes:
        raise ValueError(f"{name} has shape {tuple(values.shape)}, expected {' or '.join(map(str, shapes))}")
    return values


def weighted(loss: Float[Tensor, " b"], weight: Float[Tensor, " b"] | None) -> Float[Tensor, " b"]:
    """Losses times weights of the same shape, or as they are."""
    return loss if weight is None else loss * checked(weight, "weight", tuple(loss.shape))
