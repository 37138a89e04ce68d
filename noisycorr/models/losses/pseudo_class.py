"""Pseudo-classes: texts name a class, images predict it, and who has the class of whom finds new partners."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from noisycorr.models.losses.directions import checked, weighted, widened
from noisycorr.stats.transport import balanced_assignment


def pseudo_class_cross_entropy(image_logits: Float[Tensor, "b c"], target: Float[Tensor, "b c"] | Int[Tensor, " b"], *,
                               weight: Float[Tensor, " b"] | None = None) -> Float[Tensor, " b"]:  # fmt: skip
    """Cross-entropy of the image's class prediction to the class that its text names.

        loss_i = - sum_k t_ik ln p_ik,   p_i the softmax of the image's logits

    Args:
        image_logits: Predictions of the images.
        target: The texts' classes: numbers, as ``text_logits.argmax(1)``, or probabilities with rows that sum to 1, as
            ``balanced_targets(text_logits)``. No gradient flows into them.
        weight: Factor of each pair's loss.

    Returns:
        One loss per pair, in nats, >= 0.

    Raises:
        ValueError: If a shape does not fit.

    Source: PC2 (Duan et al., ACM MM 2024), with the text's arg-max as target.
    """
    checked(target, "target", (len(image_logits),), tuple(image_logits.shape))
    goal = widened(target.detach()) if target.is_floating_point() else target
    return weighted(F.cross_entropy(widened(image_logits), goal, reduction="none"), weight)


def balanced_targets(
    text_logits: Float[Tensor, "b c"], *, reg: float = 0.2, iterations: int = 50
) -> Float[Tensor, "b c"]:
    """Classes of texts with every class used alike, so that they cannot all collapse into one.

    Args:
        text_logits: Predictions of the texts.
        reg: > 0: the smaller, the harder the classes.
        iterations: Rounds of scaling, >= 1.

    Returns:
        Class probabilities, rows sum to 1; no gradient. ``argmax(1)`` is the class.

    Source: ``noisycorr.stats.transport.balanced_assignment``; in place of PC2's entropy term.
    """
    return balanced_assignment(text_logits.detach(), reg=reg, iterations=iterations)


def batch_entropy(logits: Float[Tensor, "b c"], *, weight: Float[Tensor, " b"] | None = None) -> Float[Tensor, ""]:
    """Entropy of the batch's mean prediction, to be made large: all classes in use.

        H = - sum_k m_k ln m_k,   m = sum_i w_i p_i / sum_i w_i

    Args:
        logits: Class predictions.
        weight: How much each sample counts, >= 0, not all 0; None = all alike.

    Returns:
        Entropy in nats, in [0, ln c].

    Source: PC2 (Duan et al., ACM MM 2024), as its poster has it; see ``sample_entropy``.
    """
    p = widened(logits).softmax(1)
    share = p.new_ones(len(p)) if weight is None else checked(weight, "weight", (len(logits),))
    mean = (share[:, None] * p).sum(0) / share.sum()
    return -torch.special.xlogy(mean, mean).sum()


def sample_entropy(logits: Float[Tensor, "b c"]) -> Float[Tensor, " b"]:
    """Entropy of each prediction; made large it makes predictions flat.

        H_i = - sum_k p_ik ln p_ik

    Beside cross-entropy to one class with weight lambda, the prediction comes to rest where the top probability a and
    each other one b satisfy ln(a / b) = 1 / (lambda a): a = 0.052 for 128 classes and lambda = 10.

    Args:
        logits: Class predictions.

    Returns:
        Entropies in nats, in [0, ln c].

    Source: the released code of PC2, which maximises its mean where the poster has ``batch_entropy``.
    """
    log_p = widened(logits).log_softmax(1)
    return -(log_p.exp() * log_p).sum(1)


def class_cosine(query: Float[Tensor, "a c"], pool: Float[Tensor, "b c"]) -> Float[Tensor, "a b"]:
    """Cosine of class distributions, softmax of logits, between queries and a pool; in (0, 1].

    Source: PC2 (Duan et al., ACM MM 2024), between noisy images and clean ones.
    """
    return F.normalize(widened(query).softmax(1), dim=1) @ F.normalize(widened(pool).softmax(1), dim=1).T


def choose_partner(
    similarity: Float[Tensor, "a b"], *, threshold: float = 0.5, allowed: Bool[Tensor, "a b"] | None = None
) -> tuple[Int[Tensor, " a"], Float[Tensor, " a"]]:
    """The most similar member of a pool for each query, and how far to trust it.

        j_i = argmax_b c_ib,   y_i = c_ij where it reaches the threshold, else 0

    Args:
        similarity: Of query (row) and member of the pool (column), for example ``class_cosine``.
        threshold: Least similarity of which anything is made.
        allowed: False where a member may not be chosen, as another text of the same image.

    Returns:
        Index of the chosen member, and the soft correspondence, in [0, 1]; 0 where no member is allowed. No gradient.

    Raises:
        ValueError: If a shape does not fit, or the pool is empty.

    Source: PC2 (Duan et al., ACM MM 2024).
    Differs: no gradient flows into the similarity; the released code lets it, which rewards lower cosine.
    """
    similarity = similarity.detach()
    if similarity.shape[1] == 0:
        raise ValueError("the pool is empty: there is no partner to choose")
    if allowed is not None:
        similarity = similarity.masked_fill(~checked(allowed, "allowed", tuple(similarity.shape)), float("-inf"))
    best, index = similarity.max(1)
    return index, torch.where(best >= threshold, best.clamp(0, 1), 0.0)


def apart(groups: Int[Tensor, " b"]) -> Bool[Tensor, "b b"]:
    """Mask for ``negatives``: True where two pairs are in different groups, of one image, one text or one partner."""
    return groups[:, None] != groups[None, :]
