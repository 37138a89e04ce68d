"""Losses of labelled samples under wrong labels: one value per sample, pure functions of tensors."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

CLAMP = 1e-4


def soft_cross_entropy(logits: Float[Tensor, "b c"], target: Float[Tensor, "b c"]) -> Float[Tensor, " b"]:
    """Cross-entropy against a distribution over classes.

        loss_i = - sum_c target_ic log softmax(logits_i)_c

    Args:
        logits: Any real numbers.
        target: Rows >= 0 that sum to 1; no gradient is asked of them.

    Returns:
        >= 0, higher = worse.
    """
    return -(target * torch.log_softmax(logits, 1)).sum(1)


def over_kept(values: Float[Tensor, " b"], keep: Tensor) -> Float[Tensor, " b"]:
    """Values whose mean over the batch is their mean over the kept samples; zeros, with gradient, if none is kept.

        out_i = values_i keep_i b / sum(keep)

    Args:
        values: One per sample.
        keep: bool (b,), or weights >= 0.
    """
    keep = keep.to(values.dtype)
    return values * keep * (len(values) / keep.sum().clamp(min=1e-12)) if bool(keep.any()) else values * 0


def queue_contrast(anchor: Float[Tensor, "b p"], key: Float[Tensor, "b p"], queue: Float[Tensor, "q p"], *,
                   temperature: float = 0.1) -> Float[Tensor, " b"]:  # fmt: skip
    """Instance contrast: the own key against those of a queue.

        loss_i = CE([a_i k_i, a_i M_1, ..., a_i M_q] / temperature, 0)

    Args:
        anchor: Unit rows.
        key: Unit rows of the other view.
        queue: Unit rows of earlier keys; none gives a loss of 0.
        temperature: > 0.

    Returns:
        >= 0, higher = worse.

    Source: MoCo (He et al., CVPR 2020).
    """
    own = (anchor * key).sum(1, keepdim=True)
    logits = torch.cat([own, anchor @ queue.T], 1) / temperature
    return torch.logsumexp(logits, 1) - logits[:, 0]


def early_learning(logits: Float[Tensor, "b c"], memory: Float[Tensor, "b c"]) -> Float[Tensor, " b"]:
    """Pulls the prediction towards the running mean of the sample's own predictions.

        p_i = clamp(softmax(logits_i), 1e-4, 1 - 1e-4),   loss_i = log(1 - <memory_i, p_i>)

    Args:
        logits: Any real numbers.
        memory: Running mean of predictions, rows that sum to at most 1; no gradient flows into it.

    Returns:
        <= 0; lower = the prediction agrees more with the memory.

    Source: ELR (Liu et al., NeurIPS 2020).
    """
    p = torch.softmax(logits, 1).clamp(CLAMP, 1 - CLAMP)
    return torch.log((1 - (memory.detach() * p).sum(1)).clamp(min=CLAMP))


def mean_prediction_gap(logits: Float[Tensor, "b c"]) -> Float[Tensor, ""]:
    """KL of the uniform distribution from the mean prediction of a batch: keeps all classes in use.

        loss = sum_c 1/C log((1/C) / mean_i softmax(logits_i)_c)

    Returns:
        >= 0, 0 = the mean prediction is uniform.

    Source: PLS (Albert et al., WACV 2023), as DivideMix.
    """
    mean = torch.softmax(logits, 1).mean(0)
    c = logits.shape[1]
    return -(torch.log(mean.clamp(min=1e-12) * c)).mean()


def guided_contrast(one: Float[Tensor, "b p"], two: Float[Tensor, "b p"], label: Float[Tensor, "b c"],
                    weight: Float[Tensor, " b"], *, temperature: float = 0.2) -> Float[Tensor, " b"]:  # fmt: skip
    """Contrast of two views in a batch, supervised as far as each label is trusted.

        same_ij = <label_i, label_j>,   t_i = w_i same_i / sum(same_i) + (1 - w_i) e_i
        loss_i  = CE(one_i two^T / temperature, t_i)

    Args:
        one: Unit rows of the first view.
        two: Unit rows of the second.
        label: One-hot or soft labels, rows that sum to 1.
        weight: Trust in each label, in [0, 1]; 0 = only the own other view is a positive.
        temperature: > 0.

    Returns:
        >= 0, higher = worse.

    Source: PLS (Albert et al., WACV 2023), interpolated contrastive objective.
    """
    same = label @ label.T
    target = weight[:, None] * same / same.sum(1, keepdim=True).clamp(min=1e-12)
    target = target + torch.diag(1 - weight)
    return soft_cross_entropy(one @ two.T / temperature, target.detach())


def masked_tag_loss(logits: Float[Tensor, "b c"], target: Float[Tensor, "b c"],
                    positive: Float[Tensor, " c"]) -> Float[Tensor, " b"]:  # fmt: skip
    """Binary cross-entropy over the tags that are known.

        loss_i = sum_{c: target_ic >= 0} [-positive_c t log sigmoid(o) - (1 - t) log sigmoid(-o)] / #{c: target_ic >= 0}

    Args:
        logits: Any real numbers.
        target: In [0, 1], or below 0 = unknown: such entries have no gradient at all.
        positive: Weight of positives, > 0.

    Returns:
        >= 0, higher = worse; 0 for a sample without a known tag.

    Source: CAPro (Qin et al., NeurIPS 2023), multi-label.
    """
    known = target >= 0
    t = target.clamp(min=0)
    each = -positive * t * functional.logsigmoid(logits) - (1 - t) * functional.logsigmoid(-logits)
    each = torch.where(known, each, torch.zeros_like(each))
    return each.sum(1) / known.sum(1).clamp(min=1)
