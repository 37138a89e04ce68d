"""bf16 and fp16: near to single precision, scaled, clipped, resumed bit by bit, and stored as single precision."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from learning import learner, train_set

from noisycorr.models.training.checkpoint import load_latest, save_checkpoint
from noisycorr.models.training.learner import Learner
from noisycorr.models.training.loop import Hooks, backward, fit

HALVES = ("bf16", "fp16")


def gradients(precision: str, parts: int = 1) -> list[torch.Tensor]:
    """Of one batch, as the optimiser gets them."""
    one = learner("plain", train_set(40), model_precision=precision, accum_freq=parts, hidden=32)
    backward(one, 0, torch.arange(24), None, None)
    one.scaler.unscale_(one.optimizer)
    return [p.grad for p in one.networks[0].parameters() if p.grad is not None]


@pytest.mark.parametrize("precision", HALVES)
@pytest.mark.parametrize("parts", [1, 3])
def test_gradients_are_near_to_single_precision(precision: str, parts: int):
    whole, half = torch.cat([g.flatten() for g in gradients("fp32")]), gradients(precision, parts)
    assert all(g.dtype == torch.float32 for g in half)
    found = torch.cat([g.flatten() for g in half])
    assert 0 < float((found - whole).norm() / whole.norm()) < 0.05


@pytest.mark.parametrize("precision", HALVES)
def test_training_in_halves_learns_and_keeps_single_precision(precision: str):
    found = {}
    for kind in ("fp32", precision):
        one = learner("plain", train_set(50), model_precision=kind, epochs=4, lr=5e-3)
        fit(one)
        found[kind] = one.cursor.history[-1]["loss"][0]
        assert all(value.dtype == torch.float32 for value in one.weights().values())
        enc = one.look(0, torch.arange(8))
        assert enc.image.dtype == torch.float32 and torch.allclose(enc.image.norm(dim=1), torch.ones(8))
    assert found[precision] == pytest.approx(found["fp32"], rel=0.05) and found[precision] != found["fp32"]


@pytest.mark.parametrize("precision", HALVES)
def test_halves_go_on_from_a_checkpoint_bit_by_bit(precision: str, tmp_path: Path):
    def make() -> Learner:
        options = {"warm_up": 1}
        return learner("coteach", train_set(50, wrong=10), model_precision=precision, epochs=3, options=options)

    whole, first = make(), make()
    if precision == "fp16":
        for one in (whole, first):
            one.scaler.load_state_dict({**one.scaler.state_dict(), "growth_interval": 2})  # so that it moves
    fit(whole)

    class Stop(Exception):
        pass

    def save(it: Learner) -> None:
        save_checkpoint(it, tmp_path, keep=1)
        if it.cursor.epoch == 2:
            raise Stop

    with pytest.raises(Stop):
        fit(first, Hooks(save=save))
    again = make()
    assert load_latest(again, tmp_path)
    fit(again)
    assert again.scaler.state_dict() == whole.scaler.state_dict()
    assert all(torch.equal(value, again.weights()[name]) for name, value in whole.weights().items())


def test_an_overflow_skips_the_step_and_lowers_the_scale():
    one = learner("plain", train_set(40), model_precision="fp16", epochs=1, batch_size=40)
    one.scaler.load_state_dict({**one.scaler.state_dict(), "scale": 1e38})
    before = {name: value.clone() for name, value in one.weights().items()}
    fit(one)
    assert one.scaler.get_scale() == pytest.approx(0.5e38)
    assert all(torch.equal(value, before[name]) for name, value in one.weights().items())


def test_whole_precision_has_no_scale():
    for precision in ("fp32", "bf16", "fp64"):
        assert learner("plain", model_precision=precision).scaler.state_dict() == {}
