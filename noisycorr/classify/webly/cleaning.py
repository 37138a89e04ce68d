"""Noise removal: which labels to keep, which to change, and which samples to leave out.

Source: CAPro (Qin et al., NeurIPS 2023), noise removal; MoPro (Li, Xiong and Hoi, ICLR 2021) without anchors.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

UNKNOWN = -1


def mixed_score(class_logits: Float[Tensor, "b c"], prototype_logits: Float[Tensor, "b c"],
                mix: float) -> Float[Tensor, "b c"]:  # fmt: skip
    """Mean of what the classifier and the prototypes say: mix softmax(o) + (1 - mix) softmax(l)."""
    return mix * torch.softmax(class_logits, 1) + (1 - mix) * torch.softmax(prototype_logits, 1)


def remove_noise(
    score: Float[Tensor, "b c"],
    label: Int[Tensor, " b"],
    anchor: Bool[Tensor, " b"],
    *,
    threshold: float = 0.6,
    out_of_set: float = 1.0,
    strict: bool = False,
    allowed: Int[Tensor, " b"] | None = None,
) -> tuple[Bool[Tensor, " b"], Int[Tensor, " b"]]:
    """Keep, relabel or drop each sample.

        ok      = s[y] >= out_of_set / C  or anchor
        fix     = max s >= threshold      and not anchor
        doubted = fix and argmax s is neither y nor allowed
        target  = argmax s if fix and not doubted else y,   keep = (ok or fix) and not doubted

    Args:
        score: Probabilities s, rows that sum to 1.
        label: y, as it came.
        anchor: Never changed, never dropped.
        threshold: From which the likeliest class replaces the label.
        out_of_set: Below this multiple of 1 / C a label is not plausible.
        strict: > instead of >=, as MoPro.
        allowed: The only class that each label may be changed to, -1 = none: where the score says another class and
            this does not, neither is believed. None = any class, as released.

    Returns:
        keep and target.
    """
    own = score.gather(1, label[:, None])[:, 0]
    best, likeliest = score.max(1)
    low = out_of_set / score.shape[1]
    ok = (own > low if strict else own >= low) | anchor
    fix = (best > threshold if strict else best >= threshold) & ~anchor
    doubted = torch.zeros_like(fix) if allowed is None else fix & (likeliest != label) & (likeliest != allowed)
    return (ok | fix) & ~doubted, torch.where(fix & ~doubted, likeliest, label)


def remove_tag_noise(score: Float[Tensor, "b c"], tag: Int[Tensor, "b c"], anchor: Int[Tensor, "b c"], *,
                     threshold: float = 0.9, faithful: bool = False) -> Int[Tensor, "b c"]:  # fmt: skip
    """The same for tags, each by itself.

        clean  = s >= 1/C if y = 1,   1 - s >= 1/C if y = 0
        flip   = 1 if s >= threshold, 0 if 1 - s >= threshold, for entries that are not anchors
        target = flip, else y if clean or anchor, else -1

    Args:
        score: s, probability of each tag.
        tag: y in {0, 1}, as it came.
        anchor: 1 = has the tag for sure, -1 = has it not for sure, 0 = nothing is known.
        threshold: > 1/2.
        faithful: Negative anchors keep the tag that came, as released; else they lose it.

    Returns:
        1, 0, or -1 for entries of which nothing is learned.
    """
    low = 1 / score.shape[1]
    clean = torch.where(tag > 0, score >= low, 1 - score >= low)
    target = torch.where(clean, tag, torch.full_like(tag, UNKNOWN))
    target = torch.where(score >= threshold, torch.ones_like(tag), target)
    target = torch.where(1 - score >= threshold, torch.zeros_like(tag), target)
    return torch.where(anchor != 0, anchored_tags(tag, anchor, faithful=faithful), target)


def anchored_tags(tag: Int[Tensor, "b c"], anchor: Int[Tensor, "b c"], *, faithful: bool = False) -> Int[Tensor, "b c"]:
    """Tags with what the anchors say: a negative anchor loses its tag, unless it is done as released."""
    return tag if faithful else torch.where(anchor < 0, torch.zeros_like(tag), tag)


def collective_targets(anchor: Float[Tensor, "b p"], queue: Float[Tensor, "q p"], beliefs: Float[Tensor, "q c"],
                       own: Bool[Tensor, "b q"], *, temperature: float = 0.1,
                       linear: bool = False) -> Float[Tensor, "b c"]:  # fmt: skip
    """Soft labels from similar samples of the queue: collective bootstrapping.

        w_ij = softmax_j(a_i M_j / temperature),  or  (clamp(a_i M_j, 0, 1) + 1e-7) / sum_j as released
        b_i  = sum_j w_ij q_j

    Args:
        anchor: Unit rows a.
        queue: Unit rows M; at least one.
        beliefs: q, what the heads think of each key, in [0, 1].
        own: True where a key is the sample's own: it has no say.
        temperature: > 0; not used if linear.
        linear: Linear weights over the whole queue.

    Returns:
        (b, c) without gradient; rows of zeros where every key is the sample's own. Where the rows of the beliefs sum to
        1, so do these.

    Source: CAPro (Qin et al., NeurIPS 2023).
    Differs: softmax weights and no own key, unless linear.
    """
    cosine = (anchor @ queue.T).detach()
    if linear:
        weight = (cosine.clamp(0, 1) + 1e-7).masked_fill(own, 0.0)
    else:
        weight = (torch.exp((cosine - 1) / temperature)).masked_fill(own, 0.0)
    weight = weight / weight.sum(1, keepdim=True).clamp(min=1e-30)
    return (weight @ beliefs.detach()).clamp(0, 1)
