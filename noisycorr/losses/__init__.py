"""Losses of pairs, unreduced: one value per pair, both directions from the query's side. Plain functions of tensors."""

from noisycorr.losses.contrastive import (
    generalised_cross_entropy,
    info_nce,
    reverse_cross_entropy,
    siglip,
    spread,
    symmetric_cross_entropy,
)

__all__ = [
    "generalised_cross_entropy",
    "info_nce",
    "reverse_cross_entropy",
    "siglip",
    "spread",
    "symmetric_cross_entropy",
]
