"""Weights from the ledger: finding the column, and dividing a batch by what it weighs."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from noisycorr.models.training.contract import Encoded
from noisycorr.runtime.errors import UsageError, listed


def ledger_column(enc: Encoded, name: str) -> Float[Tensor, " b"]:
    """What `noisycorr clean` says of the pairs of a batch.

    Raises:
        UsageError: If the training set has no such column.
    """
    if name not in enc.columns:
        raise UsageError(
            f"the strategy weighs by the column {name!r}, but the training set has "
            f"{listed(enc.columns)}: run `noisycorr clean` first, name another one, or take "
            "`strategy` coteach."
        )
    return enc.columns[name]


def per_weight(loss: Float[Tensor, " b"], weight: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
    """Weighted losses divided by the mean weight, so that doubted batches do not learn more slowly."""
    return loss * len(weight) / weight.sum().clamp(min=1e-6)
