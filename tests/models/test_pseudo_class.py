"""Pseudo-classes: where the released entropy comes to rest, classes in use, choice of partners."""

from __future__ import annotations

import math

import pytest
import torch

from noisycorr.models import losses


@pytest.mark.parametrize(
    ("classes", "strength", "top", "other", "cosine", "margin"),
    [(128, 1, 0.262, 0.0058, 0.10, 0.006), (128, 2, 0.158, 0.0066, 0.25, 0.017), (128, 5, 0.082, 0.0072, 0.58, 0.062),
     (128, 10, 0.052, 0.0075, 0.80, 0.118), (64, 10, 0.067, 0.0148, 0.85, 0.136)],
)  # fmt: skip
def test_released_entropy_comes_to_rest_at_flat_predictions(classes, strength, top, other, cosine, margin) -> None:
    """The published table: even two different classes are alike enough for a margin."""
    rows = torch.eye(2, classes, dtype=torch.float64).requires_grad_()
    optimiser = torch.optim.LBFGS([rows], lr=0.5, max_iter=500, tolerance_grad=1e-12, tolerance_change=1e-14)

    def closure() -> torch.Tensor:
        optimiser.zero_grad()
        fit = losses.pseudo_class_cross_entropy(rows, torch.tensor([0, 1]))
        loss = (fit - strength * losses.sample_entropy(rows)).sum()
        loss.backward()
        return loss

    optimiser.step(closure)
    p = rows.detach().softmax(1)
    a, b = float(p[0, 0]), float(p[0, 1:].mean())
    assert math.log(a / b) == pytest.approx(1 / (strength * a), rel=1e-3)
    assert a == pytest.approx(top, abs=1e-3) and b == pytest.approx(other, abs=1e-4)
    likeness = losses.class_cosine(rows.detach()[:1], rows.detach()[1:])[0]
    assert float(likeness) == pytest.approx(cosine, abs=1e-2)
    assert float(losses.exponential_margin(likeness)) == pytest.approx(margin, abs=2e-3)


def test_entropies_tell_flat_predictions_from_balanced_ones() -> None:
    sharp = 50 * torch.eye(4, dtype=torch.float64)
    assert float(losses.batch_entropy(sharp)) == pytest.approx(math.log(4))
    assert losses.sample_entropy(sharp).tolist() == pytest.approx([0] * 4, abs=1e-12)
    one = 500 * torch.eye(4, dtype=torch.float64)[[0, 0, 0]]
    assert float(losses.batch_entropy(one)) == pytest.approx(0, abs=1e-12)
    one.requires_grad_()
    losses.batch_entropy(one).backward()
    assert one.grad is not None and one.grad.isfinite().all()
    assert float(losses.batch_entropy(sharp, weight=torch.tensor([1.0, 0, 0, 0]))) == pytest.approx(0, abs=1e-12)


def test_balanced_targets_use_all_classes_where_the_argmax_uses_one() -> None:
    logits = 0.3 * torch.randn(128, 64, generator=torch.Generator().manual_seed(1))
    logits[:, 0] += 5
    assert losses.balanced_targets(logits).argmax(1).unique().numel() >= 60
    assert float(losses.balanced_targets(logits, reg=0.02).amax(1).mean()) > 0.8, "a small reg makes hard classes"


def test_partners_are_the_most_similar_ones_that_are_allowed() -> None:
    cosine = torch.tensor([[0.9, 0.2, 0.7], [0.1, 0.4, 0.3], [0.8, 0.8, 0.1]])
    index, trust = losses.choose_partner(cosine)
    assert index.tolist()[:2] == [0, 1] and trust.tolist() == pytest.approx([0.9, 0.0, 0.8])
    allowed = torch.tensor([[False, True, True], [True] * 3, [False] * 3])
    index, trust = losses.choose_partner(cosine, allowed=allowed, threshold=0.3)
    assert index.tolist()[:2] == [2, 1] and trust.tolist() == pytest.approx([0.7, 0.4, 0.0])
    assert losses.choose_partner(torch.tensor([[1.0000001]]))[1].tolist() == [1.0]


def test_pairs_of_one_group_are_no_negatives() -> None:
    mask = losses.apart(torch.tensor([5, 7, 5]))
    assert mask.tolist() == [[False, True, False], [True, False, True], [False, True, False]]
    s = torch.tensor([[0.1, 0.0, 0.9], [0.0, 0.5, 0.0], [0.9, 0.0, 0.1]])
    assert losses.hardest_triplet(s)[0] > 1 and float(losses.hardest_triplet(s, negatives=mask)[0]) == pytest.approx(
        0.2
    )


def test_the_same_text_borrowed_twice_is_not_its_own_rival() -> None:
    """Masking duplicates makes the loss of a pair the same whether or not another pair got its text too."""
    text = torch.nn.functional.normalize(torch.rand(3, 4, generator=torch.Generator().manual_seed(0)), dim=1)
    image = torch.nn.functional.normalize(torch.rand(3, 4, generator=torch.Generator().manual_seed(1)), dim=1)
    alone, chosen = torch.tensor([0, 1]), torch.tensor([0, 1, 0])
    few = losses.hardest_triplet(image[:2] @ text[alone].T)
    sims = image[[0, 1, 0]] @ text[chosen].T
    both = losses.hardest_triplet(sims, negatives=losses.apart(chosen))
    torch.testing.assert_close(both[:2], few)
    torch.testing.assert_close(both[2], few[0])
    assert losses.hardest_triplet(sims)[0] >= 0.4, "unmasked, the duplicate is as similar as the partner"
