"""The learning rate over a training."""

import pytest
import torch

from noisycorr.models.training.rate import cosine_share, rise_share


@pytest.mark.parametrize("least", [0.0, 0.1])
def test_the_cosine_is_that_of_torch(least: float) -> None:
    steps = 20
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps, eta_min=least)
    for step in range(steps + 1):
        assert optimizer.param_groups[0]["lr"] == pytest.approx(cosine_share(step / steps, least), abs=1e-12)
        optimizer.step()
        schedule.step()


def test_the_cosine_begins_at_one_and_ends_at_least() -> None:
    assert cosine_share(0.0, 0.1) == 1.0
    assert cosine_share(1.0, 0.1) == pytest.approx(0.1)
    assert cosine_share(0.5) == pytest.approx(0.5)


def test_the_rise_is_linear_and_ends() -> None:
    assert [rise_share(step, 3) for step in range(5)] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert rise_share(0, 0) == 1.0
