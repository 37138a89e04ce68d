"""What the flip-aware likelihood is for: matches hidden among the negatives of a batch are found again."""

from __future__ import annotations

import pytest
import torch

from noisycorr.models import losses


def train(kind: str, seed: int) -> tuple[float, float, float]:
    """Two linear towers on 200 pairs of 20 concepts, one batch.

    Returns the AUROC of hidden matches against true negatives and the mean predicted probability of each.
    """
    rng = torch.Generator().manual_seed(seed)
    centre, concept = torch.randn(20, 16, generator=rng), torch.arange(200) % 20
    image = centre[concept] + 0.8 * torch.randn(200, 16, generator=rng)
    text = centre[concept] + 0.8 * torch.randn(200, 16, generator=rng)
    towers = [(0.3 * torch.randn(16, 8, generator=rng)).requires_grad_() for _ in range(2)]
    bias = torch.tensor(-3.0, requires_grad=True)
    optimiser = torch.optim.Adam([*towers, bias], lr=0.03)
    flips = losses.flip_logits(image, text, image_weight=6.0, text_weight=6.0, bias=-3.0)
    if kind == "no flips":
        flips = torch.full_like(flips, -80.0)
    for _ in range(150):
        logits = (image @ towers[0]) @ (text @ towers[1]).T + bias
        optimiser.zero_grad()
        losses.flip_aware(logits, flips, faithful=kind == "released").mean().backward()
        optimiser.step()
    match, same = torch.sigmoid(logits.detach()), concept[:, None] == concept[None, :]
    hidden, other = match[same & ~torch.eye(200, dtype=torch.bool)], match[~same]
    return float((hidden[:, None] > other[None, ::7]).float().mean()), float(hidden.mean()), float(other.mean())


@pytest.mark.parametrize("seed", [0, 1])
def test_hidden_matches_are_found_and_true_negatives_stay_low(seed: int) -> None:
    plain, exact, released = (train(kind, seed) for kind in ("no flips", "exact", "released"))
    assert exact[0] >= plain[0] + 0.01, "AUROC of hidden matches"
    assert exact[1] >= plain[1] + 0.1, "probability of hidden matches"
    assert exact[2] <= 1.5 * plain[2], "probability of true negatives"
    assert released[2] >= 5 * exact[2], "the released rule lifts true negatives too"
