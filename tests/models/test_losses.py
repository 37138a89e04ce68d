"""Losses against slow loops: value and gradient, in double precision, with and without masks, targets and weights."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from reference import losses_reference as slow
from torch import Tensor

from noisycorr.models import losses

B = 6
PENALTY = {
    "log": losses.log_penalty,
    "tan": losses.tan_penalty,
    "abs": losses.abs_penalty,
    "exp": losses.exp_penalty,
    "gce": losses.gce_penalty,
}


def drawn(seed: int, *shape: int, low: float = -1.0, high: float = 1.0) -> Tensor:
    rng = np.random.default_rng(seed)
    return torch.tensor(rng.uniform(low, high, shape), dtype=torch.float64)


def masks(seed: int) -> Tensor:
    """Lopsided, its diagonal of no meaning, query 2 without any negative as an image."""
    mask = torch.tensor(np.random.default_rng(seed).random((B, B)) < 0.6)
    mask[2] = False
    return mask


def check(fast: Callable[..., Tensor], loop: Callable[..., Tensor], *inputs: Tensor, seed: int = 0) -> None:
    """Equal values, and equal gradients of a random combination of them."""
    results = []
    for function in (fast, loop):
        leaves = [x.clone().requires_grad_() for x in inputs]
        value = function(*leaves)
        value.backward(drawn(99 + seed, *value.shape))
        results.append((value.detach(), [leaf.grad for leaf in leaves]))
    (value, gradients), (expected, slopes) = results
    assert value.shape == expected.shape
    torch.testing.assert_close(value, expected, rtol=1e-8, atol=1e-9)
    for gradient, slope in zip(gradients, slopes):
        torch.testing.assert_close(gradient, slope, rtol=1e-8, atol=1e-8)
    assert all(bool(slope.abs().sum() > 0) for slope in slopes), "nothing depends on the input"


TARGET = drawn(5, B, low=0, high=1)
MATRIX = drawn(6, B, B, low=0, high=1)
MATRIX[1] = 0  # an image that has no partner
ENTRY = drawn(7, B, B, low=0, high=0.5)
CASES: dict[str, tuple[str, str, dict[str, Any], dict[str, Any]]] = {
    "info_nce": ("info_nce", "info_nce", {"temperature": 0.07}, {}),
    "info_nce pair target": ("info_nce", "info_nce", {"temperature": 0.3, "target": TARGET}, {}),
    "info_nce pair floor": ("info_nce", "info_nce", {"temperature": 0.3, "target": TARGET, "floor": 0.2}, {}),
    "info_nce matrix": ("info_nce", "info_nce", {"temperature": 0.3, "target": MATRIX}, {}),
    "match": ("match_posterior", "match_posterior", {"temperature": 0.3}, {}),
    "reverse": ("reverse_cross_entropy", "reverse_cross_entropy", {"temperature": 0.2}, {}),
    "reverse matrix": ("reverse_cross_entropy", "reverse_cross_entropy", {"temperature": 0.2, "target": MATRIX}, {}),
    "symmetric": (
        "symmetric_cross_entropy", "symmetric_cross_entropy", {"temperature": 0.2, "forward": 0.3, "reverse": 0.9}, {},
    ),
    "generalised": ("generalised_cross_entropy", "generalised_cross_entropy", {"temperature": 0.2, "q": 0.7}, {}),
    "siglip": ("siglip", "siglip", {"scale": 4.0, "bias": -2.0}, {}),
    "hardest": ("hardest_triplet", "hardest_triplet", {"margin": 0.2}, {}),
    "hardest pair margin": ("hardest_triplet", "hardest_triplet", {"margin": TARGET}, {}),
    "hardest entry margin": ("hardest_triplet", "hardest_triplet", {"margin": ENTRY}, {}),
    "mean": ("mean_triplet", "mean_triplet", {"margin": 0.2}, {}),
    "mean pair margin": ("mean_triplet", "mean_triplet", {"margin": TARGET}, {}),
    "mean entry margin": ("mean_triplet", "mean_triplet", {"margin": ENTRY}, {}),
    "top 3": ("top_triplet", "top_triplet", {"n": 3, "margin": TARGET}, {}),
    "top 50": ("top_triplet", "top_triplet", {"n": 50, "margin": 0.2}, {}),
    **{
        f"complementary {name}": ("complementary", "complementary", {"temperature": 0.2},
                                  {"fast": {"penalty": function}, "slow": {"penalty": name}})
        for name, function in PENALTY.items()
    },
    "evidential": ("evidential", "evidential", {"temperature": 0.4, "spread": 0.1}, {}),
    "evidential hard": (
        "evidential", "evidential", {"target": (TARGET > 0.5).double(), "temperature": 0.4, "spread": 0.5}, {},
    ),
    "evidential soft": ("evidential", "evidential", {"target": TARGET, "temperature": 0.4, "spread": 0.5}, {}),
    "asymmetry": ("asymmetry", "asymmetry", {}, {}),
    "vacuity": ("vacuity", "vacuity", {"temperature": 0.4}, {}),
}  # fmt: skip


@pytest.mark.parametrize("masked", [False, True], ids=["all", "masked"])
@pytest.mark.parametrize("name", CASES)
def test_losses_of_similarities_equal_their_loops(name: str, masked: bool) -> None:
    fast, loop, arguments, own = CASES[name]
    mask = masks(3) if masked else None
    check(
        partial(getattr(losses, fast), negatives=mask, **arguments, **own.get("fast", {})),
        partial(getattr(slow, loop), mask=None if mask is None else mask.tolist(), **arguments, **own.get("slow", {})),
        drawn(1, B, B),
    )


@pytest.mark.parametrize("masked", [False, True], ids=["all", "masked"])
def test_losses_of_two_inputs_equal_their_loops(masked: bool) -> None:
    mask = masks(4) if masked else None
    rows = None if mask is None else mask.tolist()
    a, b = drawn(1, B, B), drawn(2, B, B)
    check(
        lambda s: losses.active_complementary(s, TARGET, temperature=0.2, strength=5, negatives=mask),
        lambda s: slow.active_complementary(s, TARGET, temperature=0.2, strength=5, mask=rows),
        a,
    )
    for floor in (1e-10, 0.3):
        check(
            lambda s, floor=floor: losses.rematch_divergence(s, MATRIX, temperature=0.2, floor=floor, negatives=mask),
            lambda s, floor=floor: slow.rematch_divergence(s, MATRIX, temperature=0.2, floor=floor, mask=rows),
            a,
        )
    for wrong in (None, TARGET):
        check(
            lambda r, g, wrong=wrong: losses.flip_aware(r, g, wrong=wrong, negatives=mask),
            lambda r, g, wrong=wrong: slow.flip_aware(r, g, wrong=wrong, mask=rows),
            4 * a,
            3 * b - 1,
        )
    for anchor in (None, TARGET):
        check(
            lambda x, y, v=anchor: losses.structure_contrast(x, y, temperature=0.5, anchor=v, negatives=mask),
            lambda x, y, v=anchor: slow.structure_contrast(x, y, temperature=0.5, anchor=v, mask=rows),
            a,
            b,
        )
        check(
            lambda x, y, v=anchor: losses.structure_contrast(x, y, anchor=v, negatives=mask, faithful=True),
            lambda x, y, v=anchor: slow.structure_contrast(x, y, temperature=1.0, anchor=v, mask=rows, faithful=True),
            a,
            b,
        )
        check(
            lambda x, y, v=anchor: losses.structure_agreement(x, y, anchor=v),
            lambda x, y, v=anchor: slow.structure_agreement(x, y, anchor=v),
            a,
            b,
        )
    check(losses.structure_gap, slow.structure_gap, a, b)


def test_released_flip_rule_has_the_published_ascent_directions() -> None:
    mask = masks(4)
    logits, flips = (3 * drawn(1, B, B)).requires_grad_(), (2 * drawn(2, B, B)).requires_grad_()
    losses.flip_aware(logits, flips, negatives=mask, faithful=True).sum().backward()
    up, over = slow.released_flip_gradients(logits.detach(), flips.detach(), mask.tolist())
    torch.testing.assert_close(-logits.grad, torch.tensor(up, dtype=torch.float64), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(-flips.grad, torch.tensor(over, dtype=torch.float64), rtol=1e-9, atol=1e-12)


def test_flip_logits_are_weighted_cosines() -> None:
    image, text = drawn(1, B, 3), drawn(2, B, 5)
    got = losses.flip_logits(image, text, image_weight=2.0, text_weight=3.0, bias=-5.0)
    for i in range(B):
        for j in range(B):
            v = image[i] @ image[j] / (image[i].norm() * image[j].norm())
            t = text[i] @ text[j] / (text[i].norm() * text[j].norm())
            assert float(got[i, j]) == pytest.approx(float(3 * t + 2 * v - 5), abs=1e-12)


def test_pseudo_class_losses_equal_their_loops() -> None:
    logits, pool = 3 * drawn(1, B, 4), 3 * drawn(2, 3, 4)
    numbers, soft = torch.tensor([0, 3, 1, 1, 2, 0]), drawn(3, B, 4).softmax(1)
    for target in (numbers, soft):
        check(
            lambda x, t=target: losses.pseudo_class_cross_entropy(x, t),
            lambda x, t=target: slow.pseudo_class_cross_entropy(x, t),
            logits,
        )
    check(losses.batch_entropy, slow.batch_entropy, logits)
    check(lambda x: losses.batch_entropy(x, weight=TARGET), lambda x: slow.batch_entropy(x, TARGET), logits)
    check(losses.sample_entropy, slow.sample_entropy, logits)
    check(losses.class_cosine, slow.class_cosine, logits, pool)


def test_spread_equals_its_definition_and_keeps_the_mass() -> None:
    s = drawn(1, B, B)
    s[3] = -s[3].abs()  # nothing is more similar than 0
    mask = masks(3) & ~torch.eye(B, dtype=torch.bool)
    got = losses.spread(s, TARGET, mask)
    for i in range(B):
        goal = slow.soft_targets(s, mask.tolist(), TARGET, i, 0, 0.0)
        for j in range(B):
            assert float(got[i, j]) == pytest.approx(goal.get(j, 0.0), abs=1e-12)
    whole = mask.any(1)
    torch.testing.assert_close(got.sum(1)[whole], torch.ones(int(whole.sum()), dtype=torch.float64))
    assert float(got[2].sum()) == pytest.approx(float(TARGET[2])), "without negatives the rest is dropped"


@pytest.mark.parametrize("name", ["info_nce", "siglip", "reverse_cross_entropy", "symmetric_cross_entropy",
                                  "generalised_cross_entropy", "hardest_triplet", "mean_triplet", "complementary",
                                  "evidential"])  # fmt: skip
def test_weights_multiply_each_pair(name: str) -> None:
    function, s = getattr(losses, name), drawn(1, B, B)
    torch.testing.assert_close(function(s, weight=TARGET), function(s) * TARGET, rtol=1e-12, atol=0)
    with pytest.raises(ValueError, match="weight"):
        function(s, weight=TARGET[:, None])


def test_evident_pairs_have_most_evidence_of_both_directions() -> None:
    r = drawn(1, B, B)
    r.diagonal().add_(torch.tensor([2.0, 0, 0, 2, -2, 0.3]))
    e = torch.exp(torch.tanh(r) / 0.1)
    got, both = losses.is_evident(r), (e + e.T).tolist()
    expected = [all(both[i][i] > both[i][j] for j in range(B) if j != i) for i in range(B)]
    assert got.tolist() == expected and 0 < sum(expected) < B
    mask = torch.rand(B, B, generator=torch.Generator().manual_seed(3)) < 0.3
    rows = [all(both[i][i] > both[i][j] for j in range(B) if j != i and mask[i, j]) for i in range(B)]
    columns = [all(both[i][i] > both[i][j] for j in range(B) if j != i and mask[j, i]) for i in range(B)]
    assert losses.is_evident(r, negatives=mask).tolist() == rows != columns
    assert not losses.is_evident(torch.zeros(4, 4)).any(), "a tie counts against the pair"
    assert losses.is_evident(r, negatives=torch.zeros(B, B, dtype=torch.bool)).all()
