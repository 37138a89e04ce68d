"""Refined prototypes and learned costs: loops, masks, any size and order of a batch, and that they learn."""

from __future__ import annotations

import math

import pytest
import torch

from noisycorr.models.losses import NeighbourRefiner, PairCost, PlaceCost, cost_contrast, known_cost, mean_prototype

DOUBLE = torch.float64


def test_missing_neighbours_have_no_influence():
    torch.manual_seed(0)
    refiner = NeighbourRefiner(8, plain_start=False).double().eval()
    x = torch.randn(3, 5, 8, dtype=DOUBLE)
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [0, 0, 0, 0, 0]]).bool()
    for make in (refiner, mean_prototype):
        found = make(x, mask)
        other = make(torch.where(mask[..., None], x, 9.0), mask)
        torch.testing.assert_close(found[:2], other[:2], rtol=0, atol=1e-12)
        torch.testing.assert_close(found[1], make(x[1:2, :2], mask[1:2, :2])[0], rtol=0, atol=1e-12)
        torch.testing.assert_close(found[:2].norm(dim=1), torch.ones(2, dtype=DOUBLE))
        assert (found[2] == 0).all()
        torch.testing.assert_close(make(x[:1, [3, 1, 0, 2, 4]], mask[:1])[0], found[0], rtol=0, atol=1e-12)


def test_the_refiner_starts_as_the_mean_of_standardised_neighbours():
    x = torch.randn(2, 4, 6, dtype=DOUBLE)
    found = NeighbourRefiner(6).double().eval()(x, torch.ones(2, 4, dtype=torch.bool))
    z = (x - x.mean(2, keepdim=True)) / torch.sqrt(x.var(2, keepdim=True, correction=0) + 1e-5)
    torch.testing.assert_close(found, mean_prototype(z, torch.ones(2, 4, dtype=torch.bool)))
    assert NeighbourRefiner(6).heads == 2 and NeighbourRefiner(7).heads == 1 and NeighbourRefiner(8).heads == 4


def test_costs_are_the_loop_and_start_as_one_minus_similarity():
    torch.manual_seed(0)
    s = torch.rand(5, 5, dtype=DOUBLE) * 2 - 1
    for layer in (PairCost().double(), PlaceCost(7).double()):
        torch.testing.assert_close(layer(s), 1 - s)
    pair, place = PairCost(0.1).double(), PlaceCost(7, 0.01).double()
    with torch.no_grad():
        for parameter in (*pair.parameters(), *place.parameters()):
            parameter.normal_(0, 4)
    a, b, c = (0.1 * x for x in pair.change.tolist())
    for i in range(5):
        for j in range(5):
            expected = max(1 - (1 + a) * s[i, j] + b * s[i].mean() + c * s[:, j].mean(), torch.tensor(0.0))
            assert pair(s)[i, j].item() == pytest.approx(float(expected.detach()))
            expected = sum((0.01 * place.weight[j, k] - float(j == k)) * s[i, k] for k in range(5))
            expected = max(expected + 1 + 0.01 * place.bias[j], torch.tensor(0.0))
            assert place(s)[i, j].item() == pytest.approx(float(expected.detach()))
    order = torch.tensor([3, 0, 4, 1, 2])
    torch.testing.assert_close(pair(s[order][:, order]), pair(s)[order][:, order])
    with pytest.raises(ValueError, match="raise places"):
        place(torch.zeros(9, 9, dtype=DOUBLE))


def test_the_contrast_of_costs_is_the_loop_in_value_and_gradient():
    torch.manual_seed(0)
    cost = torch.rand(6, 6, dtype=DOUBLE, requires_grad=True)
    allowed = torch.rand(6, 6) > 0.3
    total = cost.new_zeros(())
    for i in range(6):
        row = [j for j in range(6) if allowed[i, j] or i == j]
        column = [j for j in range(6) if allowed[j, i] or i == j]
        total = total + torch.log(sum(torch.exp((cost[i, i] - cost[i, j]) / 0.05) for j in row)) / 12
        total = total + torch.log(sum(torch.exp((cost[i, i] - cost[j, i]) / 0.05) for j in column)) / 12
    found = cost_contrast(cost, reg=0.05, allowed=allowed)
    assert found.item() == pytest.approx(total.item())
    for a, b in zip(torch.autograd.grad(found, cost), torch.autograd.grad(total, cost)):
        torch.testing.assert_close(a, b)
    assert known_cost(cost).item() == pytest.approx(sum(cost[i, i].item() for i in range(6)) / 6)
    assert cost_contrast(torch.zeros(4, 4), reg=1.0).item() == pytest.approx(math.log(4))
    with pytest.raises(ValueError, match="reg is 0"):
        cost_contrast(cost, reg=0.0)


def test_costs_learn_that_some_images_fit_to_everything():
    torch.manual_seed(0)
    s = 0.2 * torch.randn(40, 40, dtype=DOUBLE) + 0.5 * torch.eye(40, dtype=DOUBLE)
    s[:, :8] += 0.6  # texts that every image likes
    layer = PairCost(1.0).double()
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.05)
    start = cost_contrast(layer(s), reg=0.1).item()
    for _ in range(60):
        optimizer.zero_grad()
        loss = cost_contrast(layer(s), reg=0.1)
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.8 * start and layer.change[2] > 0, "a text that all like costs more"
