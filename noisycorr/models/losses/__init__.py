"""Losses of pairs, unreduced: one value per pair, both directions from the query's side. Plain functions of tensors."""

from noisycorr.models.losses.complementary import (
    abs_penalty,
    active_complementary,
    complementary,
    exp_penalty,
    gce_penalty,
    log_penalty,
    tan_penalty,
)
from noisycorr.models.losses.contrastive import (
    generalised_cross_entropy,
    info_nce,
    match_posterior,
    reverse_cross_entropy,
    siglip,
    spread,
    symmetric_cross_entropy,
)
from noisycorr.models.losses.evidential import dirichlet_divergence, evidence, evidential, is_evident, vacuity
from noisycorr.models.losses.flip import flip_aware, flip_logits
from noisycorr.models.losses.prototype import NeighbourRefiner, mean_prototype
from noisycorr.models.losses.pseudo_class import (
    apart,
    balanced_targets,
    batch_entropy,
    choose_partner,
    class_cosine,
    pseudo_class_cross_entropy,
    sample_entropy,
)
from noisycorr.models.losses.rematch import rematch_divergence
from noisycorr.models.losses.structure import asymmetry, structure_agreement, structure_contrast, structure_gap
from noisycorr.models.losses.transport_cost import PairCost, PlaceCost, cost_contrast, known_cost
from noisycorr.models.losses.triplet import (
    exponential_margin,
    hard_count,
    hardest_triplet,
    linear_margin,
    mean_triplet,
    sine_margin,
    small_losses,
    top_triplet,
)

__all__ = [
    "NeighbourRefiner",
    "PairCost",
    "PlaceCost",
    "abs_penalty",
    "active_complementary",
    "apart",
    "asymmetry",
    "balanced_targets",
    "batch_entropy",
    "choose_partner",
    "class_cosine",
    "complementary",
    "cost_contrast",
    "dirichlet_divergence",
    "evidence",
    "evidential",
    "exp_penalty",
    "exponential_margin",
    "flip_aware",
    "flip_logits",
    "gce_penalty",
    "generalised_cross_entropy",
    "hard_count",
    "hardest_triplet",
    "info_nce",
    "is_evident",
    "known_cost",
    "linear_margin",
    "log_penalty",
    "match_posterior",
    "mean_prototype",
    "mean_triplet",
    "pseudo_class_cross_entropy",
    "rematch_divergence",
    "reverse_cross_entropy",
    "sample_entropy",
    "siglip",
    "sine_margin",
    "small_losses",
    "spread",
    "structure_agreement",
    "structure_contrast",
    "structure_gap",
    "symmetric_cross_entropy",
    "tan_penalty",
    "top_triplet",
    "vacuity",
]
