"""What a prompt learns from a batch of labelled and pseudo-labelled images."""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

Weights = Literal["pooled", "shipped", "ratio"]
LEAST = 1e-6  # probabilities are at least this much


def soft_cross_entropy(logits: Float[Tensor, "b c"], targets: Float[Tensor, "b c"]) -> Float[Tensor, " b"]:
    """- sum_c target_c log p_c, >= 0, p = softmax(logits). Classes of target 0 add nothing, also at logit -inf."""
    log_p = torch.log_softmax(logits, 1)
    return -(targets * log_p.masked_fill(targets == 0, 0)).sum(1)


def set_likelihood(logits: Float[Tensor, "b c"], targets: Float[Tensor, "b c"]) -> Float[Tensor, " b"]:
    """- ln of the probability of all classes with a positive target together, >= 0.

    Source: partial labels as CPL (Zhang et al., ICML 2024) uses them, - ln sum over S of p_c.
    """
    inside = logits.masked_fill(targets <= 0, float("-inf"))
    return torch.logsumexp(logits, 1) - torch.logsumexp(inside, 1)


def generalised_cross_entropy(
    logits: Float[Tensor, "b c"], targets: Float[Tensor, "b c"], *, q: float = 0.7
) -> Float[Tensor, " b"]:
    """sum_c target_c (1 - p_c^q) / q, in [0, 1 / q]: between cross-entropy (q to 0) and mean absolute error (q = 1).

    Args:
        logits: Of any scale.
        targets: Rows sum to 1.
        q: In (0, 1].

    Source: Zhang and Sabuncu, NeurIPS 2018; with q = 0.5 in PTNL (Wu et al., ICCV 2023) for prompts.
    Differs: p is at least 1e-6, so that a hopeless label pulls no harder than one of that probability.
    """
    p = torch.softmax(logits, 1).clamp(min=LEAST)
    return (targets * (1 - p**q) / q).sum(1)


def early_learning(
    logits: Float[Tensor, "b c"], targets: Float[Tensor, "b c"], bank: Float[Tensor, "b c"], *, strength: float = 3.0
) -> Float[Tensor, " b"]:
    """Cross-entropy, less what contradicts the running average of the model's own predictions.

        loss_i = CE_i + strength * ln(1 - <bank_i, p_i>)

    Args:
        logits: Of any scale.
        targets: Rows sum to 1.
        bank: Running averages from `update_bank`; no gradient flows to them.
        strength: >= 0.

    Returns:
        May be negative.

    Source: ELR (Liu et al., NeurIPS 2020), strength 3 and beta 0.7 for CIFAR-10.
    """
    p = torch.softmax(logits, 1)
    p = p.clamp(LEAST, 1 - LEAST)
    agreed = (bank.detach() * p).sum(1).clamp(max=1 - LEAST)
    return soft_cross_entropy(logits, targets) + strength * torch.log1p(-agreed)


@torch.no_grad()
def update_bank(bank: Float[Tensor, "b c"], logits: Float[Tensor, "b c"], *, beta: float = 0.7) -> Float[Tensor, "b c"]:
    """beta * bank + (1 - beta) * p, p renormalised after the clamp. Source: ELR, equation of the targets."""
    p = torch.softmax(logits, 1).clamp(LEAST, 1 - LEAST)
    return beta * bank + (1 - beta) * p / p.sum(1, keepdim=True)


def part_weights(
    weights: Weights, *, labelled: int, pseudo: int, one_round: bool, transductive: bool
) -> tuple[float, float] | None:
    """Weights gamma and lambda of the mean loss on labelled and on pseudo-labelled images; None = one mean over both.

        pooled:  one mean over all
        shipped: SSL gamma = |L| / |U_pl|, lambda = 1;   TRZSL gamma = 1, lambda = |L| / |U_pl|
        ratio:   SSL gamma = |U_pl| / |L|, lambda = 1, as the released FPL has it; it ruins GRIP, which is documented

    Args:
        weights: pooled, shipped or ratio.
        labelled: |L|, images with a label.
        pseudo: |U_pl|, pseudo-labelled images of the round.
        one_round: True for FPL, whose released code has the weights of ratio.
        transductive: True if only unseen classes get pseudo-labels.

    Source: Menghini et al., NeurIPS 2023, released code.
    """
    if weights == "pooled" or labelled == 0 or pseudo == 0:
        return None
    if transductive:
        return 1.0, labelled / pseudo
    if weights == "ratio" or one_round:
        return pseudo / labelled, 1.0
    return labelled / pseudo, 1.0


def combine(
    loss: Float[Tensor, " b"], weight: Float[Tensor, " b"], is_labelled: Bool[Tensor, " b"],
    parts: tuple[float, float] | None,
) -> Float[Tensor, ""]:  # fmt: skip
    """One number from the losses of a batch.

        pooled: sum_i w_i l_i / sum_i w_i;   else gamma * mean over L + lambda * mean over U_pl, 0 for an empty part

    Args:
        loss: Of each image.
        weight: Trust in each label, >= 0.
        is_labelled: True for given labels, false for pseudo-labels.
        parts: gamma and lambda, or None for pooled.
    """
    if parts is None:
        return (weight * loss).sum() / weight.sum().clamp(min=1e-12)
    total = loss.new_zeros(())
    for factor, inside in zip(parts, (is_labelled, ~is_labelled)):
        w = weight * inside
        total = total + factor * (w * loss).sum() / w.sum().clamp(min=1e-12)
    return total


def trust(
    probability: Float[Tensor, " m"], age: Int[Tensor, " m"], *, power: float, decay: float, floor: float
) -> Float[Tensor, " m"]:
    """Weights of pseudo-labels: max(floor, probability^power * decay^age), in [floor, 1].

    Args:
        probability: How sure the model was, in [0, 1].
        age: Rounds since the image first got this label, >= 0.
        power: >= 0; 0 = confidence does not matter.
        decay: In (0, 1]; 1 = labels do not fade.
        floor: In [0, 1].

    Source: CW-BASS (Tarubinga and Kalafatovich, 2025): weights conf^gamma and decay 0.9.
    Differs: a floor, without which a pseudo-label that is stale and unsure counts for nothing.
    """
    return (probability**power * decay ** age.to(probability.dtype)).clamp(floor, 1)


@torch.no_grad()
def transport_clean(logits: Float[Tensor, "m c"], label: Int[Tensor, " m"], *, reg: float = 0.1) -> Bool[Tensor, " m"]:
    """True where balanced transport of the images to the classes gives the label that they have.

    Classes get the mass that their labels have, so that a rare class is not forced to be common.

    Source: NLPrompt (Pan et al., CVPR 2025). Differs: columns hold the counts of the given labels instead of equal
    mass; costs are -log p, where the released code takes the log-softmax of a softmax.
    """
    from noisycorr.stats.transport import sinkhorn

    m, c = logits.shape
    counts = torch.bincount(label, minlength=c).to(torch.float64)
    some = counts > 0
    cost = -torch.log_softmax(logits.double(), 1)[:, some]
    plan = sinkhorn(cost, cost.new_ones(m), counts[some], reg=reg * float(cost.std().clamp(min=1e-6)), iterations=200)
    names = torch.nonzero(some)[:, 0]
    return names[plan.argmax(1)] == label
