"""Laws of the losses on drawn batches, their limits, the numbers published for them, and what they refuse."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from noisycorr.models import losses
from noisycorr.models.losses.directions import directions


def soft(loss: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """A loss that takes a target, with targets from 0 to 1 that follow the pairs: read off the similarities."""
    return lambda s, **rest: loss(s, target=(s.detach().diagonal() + 1) / 2, **rest)


def margins(loss: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return lambda s, **rest: loss(s, margin=losses.exponential_margin((s.detach().diagonal() + 1) / 2), **rest)


SYMMETRIC: dict[str, Callable[..., Tensor]] = {
    "info_nce": losses.info_nce,
    "info_nce cold": partial(losses.info_nce, temperature=1e-3),
    "info_nce target": soft(losses.info_nce),
    "match": losses.match_posterior,
    "siglip": losses.siglip,
    "reverse": losses.reverse_cross_entropy,
    "symmetric": losses.symmetric_cross_entropy,
    "generalised": losses.generalised_cross_entropy,
    "generalised cold": partial(losses.generalised_cross_entropy, temperature=1e-3, q=0.1),
    "hardest": margins(losses.hardest_triplet),
    "mean": margins(losses.mean_triplet),
    "top": margins(partial(losses.top_triplet, n=2)),
    "evidential": soft(losses.evidential),
    "vacuity": losses.vacuity,
    "asymmetry": losses.asymmetry,
    "active": lambda s, **rest: soft(lambda x, target, **more: losses.active_complementary(x, target, **more))(
        s, **rest
    ),
    "active cold": lambda s, **rest: losses.active_complementary(
        s, (s.detach().diagonal() + 1) / 2, temperature=1e-3, **rest
    ),
    "flip": lambda s, **rest: losses.flip_aware(20 * s, 10 * s - 5, wrong=(s.detach().diagonal() + 1) / 2, **rest),
    "flip released": lambda s, **rest: losses.flip_aware(20 * s, 10 * s - 5, faithful=True, **rest),
    "rematch": lambda s, **rest: losses.rematch_divergence(s, (s.detach() > 0).to(s.dtype) / len(s), **rest),
    "structure": lambda s, **rest: losses.structure_contrast(s @ s.T, s.T @ s, **rest),
    **{
        name: partial(losses.complementary, penalty=getattr(losses, f"{name}_penalty"))
        for name in ("log", "tan", "abs", "exp", "gce")
    },
}
MASKED = [name for name in SYMMETRIC if name != "structure"]


@st.composite
def batches(draw, least: int = 1, extreme: bool = False, dtype: torch.dtype = torch.float64) -> Tensor:
    b = draw(st.integers(least, 7))
    value = st.sampled_from([-1.0, 1.0, 0.0]) if extreme else st.floats(-1, 1, width=32)
    return torch.tensor([[draw(value) for _ in range(b)] for _ in range(b)], dtype=dtype)


def drawn_mask(s: Tensor, seed: int) -> Tensor:
    return torch.rand(s.shape, generator=torch.Generator().manual_seed(seed)) < 0.6


@pytest.mark.parametrize("name", SYMMETRIC)
@settings(max_examples=25, deadline=None)
@given(batches(), st.integers(0, 99))
def test_order_of_pairs_and_exchange_of_directions_change_nothing(name: str, s: Tensor, seed: int) -> None:
    loss, mask = SYMMETRIC[name], drawn_mask(s, seed)
    order = torch.randperm(len(s), generator=torch.Generator().manual_seed(seed))
    values = loss(s, negatives=mask)
    assert values.shape == (len(s),)
    moved = loss(s[order][:, order], negatives=mask[order][:, order])
    torch.testing.assert_close(moved, values[order], rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(loss(s.T, negatives=mask.T), values, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("name", SYMMETRIC)
@settings(max_examples=25, deadline=None)
@given(st.data())
def test_values_and_gradients_are_finite_at_the_extremes(name: str, dtype: torch.dtype, data) -> None:
    s = data.draw(batches(extreme=True, dtype=dtype)).requires_grad_()
    negatives = data.draw(st.sampled_from([None, torch.zeros(s.shape, dtype=torch.bool)]))
    values = SYMMETRIC[name](s, negatives=negatives)
    assert values.isfinite().all() and values.dtype == (dtype if dtype.itemsize > 2 else torch.float32)
    if name not in ("flip released",):
        assert (values >= -(2e-7 if dtype is torch.float64 else 1e-2)).all()
    if values.requires_grad:  # a single pair may leave nothing to learn
        values.sum().backward()
        assert s.grad is None or s.grad.isfinite().all()


@pytest.mark.parametrize("name", MASKED)
@settings(max_examples=25, deadline=None)
@given(batches(least=2), st.integers(0, 99))
def test_masked_negatives_have_no_influence(name: str, s: Tensor, seed: int) -> None:
    loss, mask = SYMMETRIC[name], drawn_mask(s, seed)
    if name == "asymmetry":
        mask = mask & mask.T
    hidden = ~mask & ~torch.eye(len(s), dtype=torch.bool)
    other = torch.where(hidden, -s + 0.3, s).requires_grad_()
    values = loss(other, negatives=mask)
    torch.testing.assert_close(values, loss(s, negatives=mask), rtol=1e-12, atol=1e-12)
    if values.requires_grad:
        values.sum().backward()
        assert other.grad is None or (other.grad[hidden] == 0).all()
    torch.testing.assert_close(
        loss(s, negatives=mask | torch.eye(len(s), dtype=torch.bool)), loss(s, negatives=mask), rtol=0, atol=0
    )
    everything = torch.ones_like(mask)
    torch.testing.assert_close(loss(s, negatives=everything), loss(s), rtol=0, atol=0)


def test_masks_do_have_an_influence() -> None:
    s = torch.rand(6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    mask = drawn_mask(s, 1)
    for name in MASKED:
        assert not torch.equal(SYMMETRIC[name](s, negatives=mask), SYMMETRIC[name](s)), name


@settings(max_examples=50, deadline=None)
@given(batches())
def test_full_trust_is_the_ordinary_loss(s: Tensor) -> None:
    one = torch.ones(len(s), dtype=s.dtype)
    for other, plain in (
        (losses.info_nce(s, target=one), losses.info_nce(s)),
        (losses.info_nce(s, target=torch.eye(len(s), dtype=s.dtype)), losses.info_nce(s)),
        (losses.evidential(s, target=one), losses.evidential(s)),
        (losses.hardest_triplet(s, margin=losses.exponential_margin(one)), losses.hardest_triplet(s, margin=0.2)),
        (losses.hardest_triplet(s, margin=losses.linear_margin(one)), losses.hardest_triplet(s, margin=0.2)),
        (losses.mean_triplet(s, margin=losses.sine_margin(one)), losses.mean_triplet(s, margin=0.2)),
        (losses.top_triplet(s, n=1), losses.hardest_triplet(s)),
        (losses.info_nce(s, weight=one), losses.info_nce(s)),
        (
            losses.active_complementary(s, one),
            2 * losses.info_nce(s, temperature=0.05) + 5 * losses.complementary(s, penalty=losses.tan_penalty),
        ),
        (losses.flip_aware(9 * s, 9 * s, wrong=0 * one), losses.flip_aware(9 * s, 9 * s)),
    ):
        torch.testing.assert_close(other, plain, rtol=1e-9, atol=1e-9)
    never = torch.full_like(s, -80.0)  # no hidden matches: the logistic loss of every combination
    torch.testing.assert_close(losses.flip_aware(10 * s - 10, never), losses.siglip(s), rtol=1e-9, atol=1e-9)


@settings(max_examples=50, deadline=None)
@given(batches(least=2), st.integers(0, 6))
def test_a_margin_acts_on_its_own_pair_in_both_directions(s: Tensor, pair: int) -> None:
    """Raising the margin of one pair changes the loss of that pair alone, through both of its queries."""
    pair = pair % len(s)
    own = torch.full((len(s),), 3.0, dtype=s.dtype)  # every hinge is open
    higher = own.clone()
    higher[pair] += 1
    for loss, rise in (
        (losses.hardest_triplet, 2.0),
        (partial(losses.top_triplet, n=2), 2.0),
        (losses.mean_triplet, 2 * (len(s) - 1) / len(s)),
    ):
        change = loss(s, margin=higher) - loss(s, margin=own)
        expected = torch.zeros(len(s), dtype=s.dtype)
        expected[pair] = rise
        torch.testing.assert_close(change, expected, rtol=1e-9, atol=1e-9)
        with pytest.raises(ValueError, match="margin"):
            loss(s, margin=own[:, None])
        rows = own[:, None].expand(len(s), len(s))
        torch.testing.assert_close(loss(s, margin=rows), loss(s, margin=own), rtol=1e-12, atol=1e-12)


def test_released_margins_differ_where_trust_differs() -> None:
    """Row margins in both directions are another loss: what the broadcasting of released codes computes."""
    s = torch.zeros(2, 2, dtype=torch.float64)
    margin = torch.tensor([0.1, 0.2], dtype=torch.float64)
    assert losses.hardest_triplet(s, margin=margin).tolist() == pytest.approx([0.2, 0.4])
    assert losses.hardest_triplet(s, margin=margin[:, None].expand(2, 2)).tolist() == pytest.approx([0.3, 0.3])


@pytest.mark.parametrize("curve", [losses.exponential_margin, losses.linear_margin, losses.sine_margin])
def test_margins_rise_from_none_to_all(curve: Callable[..., Tensor]) -> None:
    m = curve(torch.linspace(0, 1, 21, dtype=torch.float64), margin=0.3)
    assert float(m[0]) == pytest.approx(0, abs=1e-12) and float(m[-1]) == pytest.approx(0.3)
    assert (m.diff() > 0).all()


def test_margins_have_their_published_values() -> None:
    half = torch.tensor([0.5, 0.25], dtype=torch.float64)
    assert losses.exponential_margin(half).tolist() == pytest.approx(
        [0.2 * (math.sqrt(10) - 1) / 9, 0.2 * (10**0.25 - 1) / 9]
    )
    assert float(losses.exponential_margin(half)[0]) == pytest.approx(0.0481, abs=5e-5)
    assert losses.linear_margin(half).tolist() == pytest.approx([0.1, 0.05])
    assert losses.sine_margin(half).tolist() == pytest.approx([0.1, 0.1 + 0.1 * math.sin(math.pi / 4 - math.pi / 2)])
    assert losses.hard_count(0, 128) == 128 and losses.hard_count(41, 128) == 126
    assert losses.hard_count(10**6, 128) == 5 and losses.hard_count(0, 3) == 5


def test_no_margin_can_still_cost() -> None:
    s = torch.tensor([[0.1, 0.5], [0.0, 0.2]])
    nothing = losses.exponential_margin(torch.zeros(2))
    assert losses.hardest_triplet(s, margin=nothing).tolist() == pytest.approx([0.4, 0.3])


def test_uniform_batches_have_their_published_values() -> None:
    flat = torch.zeros(128, 128, dtype=torch.float64)
    log = losses.complementary(flat)
    torch.testing.assert_close(log, torch.full((128,), -2 * 127 * math.log(1 - 1 / 128), dtype=torch.float64),
                               rtol=1e-5, atol=0)  # fmt: skip
    assert float(log[0]) == pytest.approx(1.9922, abs=5e-5)
    assert float(losses.info_nce(flat)[0]) == pytest.approx(math.log(128))
    assert float(losses.hardest_triplet(flat)[0]) == pytest.approx(0.4), "the trivial value of a collapsed model"
    assert float(losses.mean_triplet(flat)[0]) == pytest.approx(0.4 * 127 / 128)


def test_complementary_loss_lifts_the_partner_and_lowers_the_hardest_negative() -> None:
    for name in ("log", "tan", "abs", "exp", "gce"):
        for scale in (0.1, 1.0):  # at the second, the hardest negative has all of the probability
            s = (scale * torch.eye(5, dtype=torch.float64).roll(1, 0) - 0.2 * scale).requires_grad_()
            SYMMETRIC[name](s).sum().backward()
            assert s.grad is not None
            if scale == 0.1 or name == "log":
                assert (s.grad.diagonal() < 0).all() and (s.grad[s.detach() > 0] > 0).all(), name


@settings(max_examples=50, deadline=None)
@given(batches(), st.sampled_from([0.01, 0.05, 0.5]))
def test_bounded_losses_stay_within_their_bounds(s: Tensor, temperature: float) -> None:
    reverse = losses.reverse_cross_entropy(s, temperature=temperature)
    assert (reverse <= -math.log(1e-7) + 1e-9).all() and (reverse >= -1e-6).all()
    assert (losses.generalised_cross_entropy(s, temperature=temperature, q=0.7) <= 1 / 0.7 + 1e-12).all()
    nothing = losses.active_complementary(s, torch.zeros(len(s), dtype=s.dtype), temperature=temperature)
    assert (nothing <= 10 + 1e-9).all()
    for _, mask in directions(s):
        assert mask.sum() == len(s) * (len(s) - 1)
    p = torch.softmax(s / temperature, 1)
    assert ((torch.tan(p).sum(1) >= 1 - 1e-12) & (torch.tan(p).sum(1) <= math.tan(1) + 1e-12)).all()


def test_generalised_lies_between_cross_entropy_and_absolute_error() -> None:
    s = torch.rand(5, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(losses.generalised_cross_entropy(s, q=1e-7), losses.info_nce(s), rtol=1e-5, atol=0)
    torch.testing.assert_close(losses.generalised_cross_entropy(s, q=1.0), 1 - losses.match_posterior(s))


def test_a_wrong_pair_pulls_less_than_in_cross_entropy() -> None:
    """Where the posterior holds a pair for wrong, the robust losses have (almost) no gradient."""
    pulls = {}
    for name in ("info_nce", "reverse", "generalised", "tan"):
        s = (torch.eye(6, dtype=torch.float64).roll(1, 0) - 0.5 * torch.eye(6, dtype=torch.float64)).requires_grad_()
        SYMMETRIC[name](s).sum().backward()
        pulls[name] = float(-s.grad.diagonal().sum())
    assert pulls["info_nce"] > 50 and max(pulls["reverse"], pulls["generalised"], pulls["tan"]) < 1e-3


@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(1, 2e4), min_size=1, max_size=6))
def test_divergence_from_the_flat_dirichlet_is_none_only_there(values: list[float]) -> None:
    alpha = torch.tensor([values], dtype=torch.float64)
    assert float(losses.dirichlet_divergence(alpha)) >= -1e-9 * alpha.sum().item()
    assert float(losses.dirichlet_divergence(torch.ones_like(alpha))) == pytest.approx(0, abs=1e-12)
    bent = torch.ones(1, 4, dtype=torch.float64)
    bent[0, 0] = 3.0
    assert float(losses.dirichlet_divergence(bent)) > 0.1


def test_divergence_leaves_out_what_is_outside() -> None:
    alpha = torch.tensor([[3.0, 1.5, 2.0]], dtype=torch.float64)
    inside = torch.tensor([[True, False, True]])
    expected = losses.dirichlet_divergence(alpha[:, [0, 2]])
    torch.testing.assert_close(losses.dirichlet_divergence(alpha, inside), expected)


def test_small_losses_are_chosen_to_warm_up() -> None:
    loss = torch.tensor([5.0, 1.0, 3.0, 1.0, 4.0])
    assert losses.small_losses(loss, share=0.4).tolist() == [False, True, False, True, False]
    assert losses.small_losses(loss, share=0.3).tolist() == [False, True, False, False, False]
    assert losses.small_losses(loss, share=0.01).sum() == 1 and losses.small_losses(loss, share=1.0).all()


def test_evidence_of_a_wrong_pair_falls_and_half_precision_is_widened() -> None:
    r = torch.zeros(4, 4, dtype=torch.float64, requires_grad=True)
    losses.evidential(r, target=torch.tensor([0.0, 1, 1, 1], dtype=torch.float64)).sum().backward()
    assert r.grad[0, 0] > 0 > r.grad[1, 1]
    assert losses.evidence(torch.full((2, 2), 9, dtype=torch.bfloat16)).dtype == torch.float32
    far = torch.full((3, 3), 50.0, requires_grad=True)
    losses.evidential(far).sum().backward()
    assert far.grad.isfinite().all()
    assert (losses.vacuity(-far.detach()) > 0.99).all() and (losses.vacuity(far.detach()) < 1e-3).all()


def test_a_learned_temperature_gets_its_gradient() -> None:
    s = torch.rand(5, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert torch.autograd.gradcheck(
        lambda x, t: losses.info_nce(x, temperature=t),
        (s.requires_grad_(), torch.tensor(0.3, dtype=torch.float64, requires_grad=True)),
    )
    scale, bias = (torch.tensor(x, dtype=torch.float64, requires_grad=True) for x in (4.0, -2.0))
    assert torch.autograd.gradcheck(lambda x, a, c: losses.siglip(x, scale=a, bias=c), (s, scale, bias))


def test_no_gradient_flows_into_targets() -> None:
    s = torch.rand(5, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    y, plan = torch.rand(5, dtype=torch.float64, requires_grad=True), torch.rand(5, 5).double().requires_grad_()
    for value in (
        losses.info_nce(s, target=y), losses.info_nce(s, target=plan), losses.active_complementary(s, y),
        losses.evidential(s, target=y), losses.rematch_divergence(s, plan), losses.flip_aware(s, s, wrong=y),
        losses.pseudo_class_cross_entropy(s, plan.softmax(1)), losses.choose_partner(plan)[1],
        losses.balanced_targets(plan),
    ):  # fmt: skip
        assert not value.requires_grad


PERFECT = 0.9 * torch.eye(4)


@pytest.mark.parametrize(
    ("message", "call"),
    [
        ("sims", lambda: losses.info_nce(torch.zeros(3, 4))),
        ("sims", lambda: losses.info_nce(torch.zeros(0, 0))),
        ("negatives", lambda: losses.info_nce(PERFECT, negatives=torch.ones(4, 1, dtype=torch.bool))),
        ("negatives", lambda: losses.info_nce(PERFECT, negatives=torch.ones(4, 4))),
        ("target", lambda: losses.info_nce(PERFECT, target=torch.ones(4, 1))),
        ("target", lambda: losses.active_complementary(PERFECT, torch.ones(4, 1))),
        ("target", lambda: losses.evidential(PERFECT, target=torch.ones(4, 1))),
        ("target", lambda: losses.pseudo_class_cross_entropy(PERFECT, torch.ones(4, 1))),
        ("weight", lambda: losses.batch_entropy(PERFECT, weight=torch.ones(4, 1))),
        ("temperature", lambda: losses.info_nce(PERFECT, temperature=0.0)),
        ("temperature", lambda: losses.evidence(PERFECT, temperature=-1.0)),
        ("q", lambda: losses.generalised_cross_entropy(PERFECT, q=0.0)),
        ("q", lambda: losses.gce_penalty(PERFECT, q=1.5)),
        ("base", lambda: losses.exponential_margin(torch.ones(3), base=1.0)),
        ("n is", lambda: losses.top_triplet(PERFECT, n=0)),
        ("share", lambda: losses.small_losses(torch.ones(3), share=0.0)),
        ("plan", lambda: losses.rematch_divergence(PERFECT, torch.ones(4))),
        ("floor", lambda: losses.rematch_divergence(PERFECT, PERFECT, floor=0.0)),
        ("flips", lambda: losses.flip_aware(PERFECT, torch.zeros(4))),
        ("wrong", lambda: losses.flip_aware(PERFECT, PERFECT, wrong=torch.zeros(4), faithful=True)),
        ("text_sims", lambda: losses.structure_gap(PERFECT, torch.zeros(4))),
        ("anchor", lambda: losses.structure_agreement(PERFECT, PERFECT, anchor=torch.ones(4, 1))),
        ("pool", lambda: losses.choose_partner(torch.zeros(3, 0))),
    ],
)
def test_bad_input_is_refused(message: str, call: Callable[[], object]) -> None:
    with pytest.raises(ValueError, match=message):
        call()
