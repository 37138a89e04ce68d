"""Unpaired is not unmatched: a likelihood in which a true match may have been observed as a negative."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

from noisycorr.models.losses.directions import checked, directions, weighted, widened


def flip_aware(logits: Float[Tensor, "b b"], flips: Float[Tensor, "b b"], *, wrong: Float[Tensor, " b"] | None = None,
               weight: Float[Tensor, " b"] | None = None, negatives: Bool[Tensor, "b b"] | None = None,
               faithful: bool = False) -> Float[Tensor, " b"]:  # fmt: skip
    """Negative log-likelihood of which pairs were given, when matches can hide among the others.

        r = sigmoid(R), the probability of a match;  g = sigmoid(G), that a match was not given;  h, that a pair was
        given though it is no match
        loss_i = - ln(r_ii (1 - g_ii) + h_i (1 - r_ii))
                 - 1/2 sum_{j != i} (ln(1 - r_ij + g_ij r_ij) + ln(1 - r_ji + g_ji r_ji))

    Args:
        logits: R, log-odds that image i (row) and text j (column) match, e.g. (similarity - bias) / temperature.
        flips: G, log-odds that they were not given to each other although they match. Strongly negative = never; keep
            it almost constant by decay, since r and g trade off.
        wrong: h of each given pair, in [0, 1]; None = 0. No gradient flows into it.
        weight: Factor of each pair's loss.
        negatives: True where image i and text j count as not given.
        faithful: The update rule of the released code: (1 - g) ln r + r ln(1 - g) of given pairs and ln(1 - r) +
            g ln r + r ln g of the others, with all factors held fixed. It needs ``wrong`` to be None.

    Returns:
        One loss per pair, in nats, >= 0.

    Raises:
        ValueError: If a shape does not fit, or ``faithful`` comes with ``wrong``.

    Source: NBPO (Yu and Qin, SIGIR 2020), there for users and items; the contrastive form is ours.
    Differs: the released update is not the gradient of that likelihood; here it is.
    """
    checked(flips, "flips", tuple(logits.shape))
    (logits, mask), _ = directions(logits, negatives)
    flips = widened(flips)
    yes, no = F.logsigmoid(logits), F.logsigmoid(-logits)
    flip, stay = F.logsigmoid(flips), F.logsigmoid(-flips)
    if faithful:
        if wrong is not None:
            raise ValueError("the released rule knows no wrong pairs: leave out wrong, or faithful")
        r, g = yes.exp().detach(), flip.exp().detach()
        own = ((1 - g) * yes + r * stay).diagonal()
        other = no + g * yes + r * flip
    else:
        own = (yes + stay).diagonal()
        if wrong is not None:
            rate = checked(wrong, "wrong", (len(logits),)).detach()
            own = torch.logaddexp(own, torch.log(rate.clamp(min=torch.finfo(rate.dtype).tiny)) + no.diagonal())
        other = torch.logaddexp(no, flip + yes)
    other = other.masked_fill(~mask, 0.0)
    return weighted(-own - 0.5 * (other.sum(1) + other.sum(0)), weight)


def flip_logits(image: Float[Tensor, "b d"], text: Float[Tensor, "b e"], *, image_weight: float | Tensor,
                text_weight: float | Tensor, bias: float | Tensor) -> Float[Tensor, "b b"]:  # fmt: skip
    """Log-odds of a hidden match from likeness: pairs with like texts or like images are likely to match crosswise.

        G_ij = text_weight * cos(t_i, t_j) + image_weight * cos(v_i, v_j) + bias

    Args:
        image: Features of the images.
        text: Features of the texts.
        image_weight: Of the likeness of images; a tensor may be learned.
        text_weight: Of the likeness of texts.
        bias: Strongly negative to start from "no hidden matches".

    Returns:
        Symmetric log-odds for ``flip_aware``.

    Source: ours; NBPO (Yu and Qin, SIGIR 2020) has such log-odds of users and items by their own factors.
    """
    images, texts = F.normalize(image, dim=1), F.normalize(text, dim=1)
    return text_weight * (texts @ texts.T) + image_weight * (images @ images.T) + bias
