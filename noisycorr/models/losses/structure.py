"""Structure: a right pair's image stands among the images of a batch as its text stands among the texts."""

from __future__ import annotations

from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

from noisycorr.models.losses.contrastive import info_nce
from noisycorr.models.losses.directions import checked, directions, log_posterior, weighted


def structure_agreement(image_sims: Float[Tensor, "b b"], text_sims: Float[Tensor, "b b"], *,
                        anchor: Float[Tensor, " b"] | None = None) -> Float[Tensor, " b"]:  # fmt: skip
    """Cosine between a pair's similarities to the batch's images and to its texts.

        a_i = cos((v_k A_ik)_k, (v_k B_ik)_k)

    Args:
        image_sims: A, similarity of image i and image k.
        text_sims: B, similarity of text i and text k.
        anchor: v, how much each batch mate counts, >= 0; None = all alike.

    Returns:
        One agreement per pair, in [-1, 1], higher = better matched.

    Raises:
        ValueError: If a shape does not fit.

    Source: GSC (Zhao et al., CVPR 2024).
    Differs: the released code takes as anchor the soft correspondence of the batch mates, by broadcasting; here it is
    an argument.
    """
    rows, columns = _anchored(image_sims, text_sims, anchor)
    return F.cosine_similarity(rows, columns, dim=1)


def structure_contrast(image_sims: Float[Tensor, "b b"], text_sims: Float[Tensor, "b b"], *,
                       temperature: float | Tensor = 1.0, anchor: Float[Tensor, " b"] | None = None,
                       weight: Float[Tensor, " b"] | None = None, negatives: Bool[Tensor, "b b"] | None = None,
                       faithful: bool = False) -> Float[Tensor, " b"]:  # fmt: skip
    """InfoNCE between the structure of images and the structure of texts.

        loss_i = info_nce_i(M),   M_ij = sum_k v_k^2 A_ik B_jk

    Args:
        image_sims: A, similarity of image i and image k.
        text_sims: B, similarity of text i and text k.
        temperature: > 0.
        anchor: v, how much each batch mate counts, >= 0; None = all alike.
        weight: Factor of each pair's loss.
        negatives: True where image i and text j may serve as negatives.
        faithful: Only images as queries, as in the released code.

    Returns:
        One loss per pair, in nats, >= 0.

    Raises:
        ValueError: If a shape does not fit, or ``temperature`` <= 0.

    Source: GSC (Zhao et al., CVPR 2024), temperature 1, weight 0.01 beside InfoNCE.
    Differs: mean of both directions; the released code has the image queries alone.
    """
    rows, columns = _anchored(image_sims, text_sims, anchor)
    match = rows @ columns.T
    if not faithful:
        return info_nce(match, temperature=temperature, weight=weight, negatives=negatives)
    (scores, mask), _ = directions(match, negatives)
    return weighted(-log_posterior(scores, mask, temperature).diagonal(), weight)


def asymmetry(sims: Float[Tensor, "b b"], *, negatives: Bool[Tensor, "b b"] | None = None) -> Float[Tensor, " b"]:
    """Mean squared difference between image i with text j and image j with text i: 0 for perfect clean pairs.

        loss_i = 1/n_i sum_j (s_ij - s_ji)^2         n_i = number of negatives and 1

    Args:
        sims: Similarity of image i (row) and text j (column).
        negatives: True where image i and text j may be compared; both (i, j) and (j, i) must be.

    Returns:
        One penalty per pair, >= 0; its mean is the mean over the matrix where nothing is masked.

    Source: ESC (CVPR 2024) in words; SPS (IJCAI 2025) with weight 25 on strictly clean pairs.
    """
    (scores, mask), (turned, other) = directions(sims, negatives)
    both = mask & other
    return ((scores - turned) ** 2).masked_fill(~both, 0.0).sum(1) / (1 + both.sum(1))


def structure_gap(image_sims: Float[Tensor, "b b"], text_sims: Float[Tensor, "b b"]) -> Float[Tensor, " b"]:
    """Mean squared difference of a pair's similarities to the batch's images and to its texts.

        loss_i = 1/b sum_k (A_ik - B_ik)^2

    Args:
        image_sims: A, similarity of image i and image k.
        text_sims: B, similarity of text i and text k.

    Returns:
        One penalty per pair, >= 0.

    Raises:
        ValueError: If the shapes differ.

    Source: SPS (IJCAI 2025), weight 25 on strictly clean pairs.
    """
    rows, columns = _anchored(image_sims, text_sims, None)
    return ((rows - columns) ** 2).mean(1)


def _anchored(image_sims: Tensor, text_sims: Tensor, anchor: Tensor | None) -> tuple[Tensor, Tensor]:
    b = len(image_sims)
    checked(image_sims, "image_sims", (b, b))
    checked(text_sims, "text_sims", (b, b))
    if anchor is None:
        return image_sims, text_sims
    share = checked(anchor, "anchor", (b,)).detach()[None, :]
    return image_sims * share, text_sims * share
