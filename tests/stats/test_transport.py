"""Transport: plans against slow loops, marginals, forbidden entries, balanced classes."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import transport_reference as slow
from torch import Tensor

from noisycorr.stats.transport import balanced_assignment, partial_transport, sinkhorn


def costs(seed: int, n: int, m: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.rand(n, m, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).to(dtype)


def test_plans_equal_the_loop() -> None:
    cost, rows, columns = costs(0, 4, 6), torch.rand(4).double() + 0.1, torch.rand(6).double() + 0.1
    columns = columns * rows.sum() / columns.sum()
    got = sinkhorn(cost, rows, columns, reg=0.1, tolerance=0.0, iterations=500)
    expected = slow.scale(slow.gibbs(cost.tolist(), 0.1), rows.tolist(), columns.tolist(), 500)
    torch.testing.assert_close(got, torch.tensor(expected, dtype=torch.float64), rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("hidden", [False, True])
def test_partial_plans_equal_the_loop(hidden: bool) -> None:
    """One more row and column hold what stays, open to all but each other."""
    cost, mass = costs(1, 5, 4), 0.3
    forbidden = torch.eye(5, 4, dtype=torch.bool) if hidden else torch.zeros(5, 4, dtype=torch.bool)
    got = partial_transport(cost, mass=mass, reg=0.2, forbidden=forbidden, tolerance=0.0, iterations=800)
    kernel = slow.gibbs(cost.tolist(), 0.2)
    kernel = [[0.0 if f else k for k, f in zip(*rows)] + [1.0] for rows in zip(kernel, forbidden.tolist())]
    plan = slow.scale([*kernel, [1.0] * 4 + [0.0]], [0.2] * 5 + [1 - mass], [0.25] * 4 + [1 - mass], 800)
    expected = torch.tensor([row[:4] for row in plan[:5]], dtype=torch.float64)
    torch.testing.assert_close(got, expected, rtol=1e-8, atol=1e-12)


def test_partial_plans_come_close_to_the_published_form() -> None:
    cost = costs(1, 5, 5)
    diagonal = torch.eye(5, dtype=torch.bool)
    for reg, tolerance in ((0.3, 0.1), (0.6, 0.4)):  # the published dummies take exp(-c / reg) too much
        got = partial_transport(cost, mass=0.3, reg=reg, forbidden=diagonal, tolerance=0.0, iterations=800)
        plan = torch.tensor(slow.partial_plan(cost.tolist(), 0.3, reg, diagonal.tolist(), 800), dtype=torch.float64)
        assert float((plan - got).abs().sum() / 0.3) < tolerance


def test_assignments_equal_the_loop() -> None:
    logits = 3 * costs(2, 7, 3)
    got = balanced_assignment(logits, reg=0.5, iterations=40, normalise=False)
    torch.testing.assert_close(got, torch.tensor(slow.assignment(logits.tolist(), 0.5, 40)).double(), rtol=1e-3, atol=0)
    same = balanced_assignment(100 * logits - 7, reg=0.5, iterations=40)
    torch.testing.assert_close(same, balanced_assignment(logits, reg=0.5, iterations=40), rtol=1e-9, atol=1e-12)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 8), st.integers(1, 8), st.integers(0, 99), st.sampled_from([0.01, 0.1, 1.0]))
def test_marginals_hold_for_any_cost(n: int, m: int, seed: int, reg: float) -> None:
    rows, columns = costs(seed, 1, n)[0] + 0.05, costs(seed + 1, 1, m)[0] + 0.05
    columns = columns * rows.sum() / columns.sum()
    plan = sinkhorn(costs(seed + 2, n, m), rows, columns, reg=reg, iterations=5000, tolerance=1e-6)
    assert (plan >= 0).all()
    torch.testing.assert_close(plan.sum(0), columns, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(plan.sum(1), rows, rtol=0, atol=2e-3)


@settings(max_examples=40, deadline=None)
@given(
    st.integers(2, 9), st.integers(0, 99), st.sampled_from([0.05, 0.1, 0.5, 0.9]), st.sampled_from([0.01, 0.07, 1.0]),
    st.sampled_from([torch.float32, torch.float64]),
)  # fmt: skip
def test_partial_plans_hold_their_mass_and_avoid_what_is_forbidden(n, seed, mass, reg, dtype) -> None:
    cost = costs(seed, n, n, dtype) * (-1) ** seed  # also negative
    plan = partial_transport(cost, mass=mass, reg=reg, forbidden=torch.eye(n, dtype=torch.bool), iterations=5000)
    assert plan.dtype == dtype and (plan >= 0).all()
    assert (plan.diagonal() == 0).all()
    assert float(plan.sum()) == pytest.approx(mass, abs=2e-3)
    assert (plan.sum(1) <= (1 + 1e-5) / n).all() and (plan.sum(0) <= (1 + 1e-5) / n).all()


def test_partial_plan_of_a_batch_has_its_published_mass() -> None:
    cost = costs(0, 128, 128, torch.float32)
    plans = {
        reg: partial_transport(cost, mass=0.1, reg=reg, forbidden=torch.eye(128).bool()) for reg in (0.01, 0.07, 50.0)
    }
    for plan in plans.values():
        assert float(plan.sum()) == pytest.approx(0.1, abs=1e-3) and float(plan.diagonal().abs().max()) == 0
    entropy = {reg: -float(torch.special.xlogy(p := plan / plan.sum(), p).sum()) for reg, plan in plans.items()}
    assert entropy[0.01] < entropy[0.07] < entropy[50.0] == pytest.approx(2 * math.log(128), abs=0.02)


def test_a_cold_plan_is_the_cheapest_matching() -> None:
    cost = costs(3, 5, 5)
    best = min(itertools.permutations(range(5)), key=lambda order: sum(cost[i, j] for i, j in enumerate(order)))
    plan = partial_transport(cost, mass=1.0, reg=0.005, iterations=20000, tolerance=1e-6)
    assert plan.argmax(1).tolist() == list(best)
    few = partial_transport(cost, mass=0.2, reg=0.001, iterations=20000, tolerance=1e-6)
    assert int(few.argmax()) == int(cost.argmin()) and float(few.max()) == pytest.approx(0.2, abs=1e-2)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 99), st.sampled_from([0.05, 0.2, 1.0]))
def test_classes_are_used_alike(seed: int, reg: float) -> None:
    target = balanced_assignment(costs(seed, 48, 8), reg=reg, iterations=300)
    torch.testing.assert_close(target.sum(1), torch.ones(48, dtype=torch.float64))
    torch.testing.assert_close(target.sum(0), torch.full((8,), 6.0, dtype=torch.float64), rtol=0.02, atol=0)


def test_logits_that_use_one_class_are_spread_over_nearly_all() -> None:
    logits = 0.3 * torch.randn(128, 64, generator=torch.Generator().manual_seed(0))
    logits[:, 7] += 3
    assert logits.argmax(1).unique().numel() == 1
    assert balanced_assignment(logits).argmax(1).unique().numel() >= 60


def test_degenerate_input_stays_finite() -> None:
    for logits in (torch.zeros(6, 3), torch.ones(1, 4), torch.full((4, 2), 1e4), torch.zeros(5, 1)):
        target = balanced_assignment(logits.half())
        assert target.isfinite().all() and target.dtype == torch.float32
        torch.testing.assert_close(target.sum(1), torch.ones(len(logits)))
    assert partial_transport(torch.zeros(4, 4), mass=0.5).isfinite().all()
    closed = torch.full((2, 2), float("inf"))
    closed[0, 0] = 1.0
    plan = sinkhorn(closed, torch.tensor([1.0, 0.0]), torch.tensor([1.0, 0.0]))
    assert plan.tolist() == [[1.0, 0.0], [0.0, 0.0]]


def test_bad_input_is_refused() -> None:
    one = torch.ones(3) / 3
    with pytest.raises(ValueError, match="differ"):
        sinkhorn(torch.zeros(3, 2), one, one)
    with pytest.raises(ValueError, match="totals"):
        sinkhorn(torch.zeros(3, 3), one, 2 * one)
    for arguments in ({"reg": 0.0}, {"iterations": 0}):
        with pytest.raises(ValueError, match="reg"):
            sinkhorn(torch.zeros(3, 3), one, one, **arguments)
    for mass in (0.0, 1.5):
        with pytest.raises(ValueError, match="mass"):
            partial_transport(torch.zeros(3, 3), mass=mass)
    with pytest.raises(ValueError, match="forbidden"):
        partial_transport(torch.zeros(1, 1), mass=0.5, forbidden=torch.ones(1, 1, dtype=torch.bool))
