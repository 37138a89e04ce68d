"""The loop: order, sets, twins, gradients of parts, guards, and continuing from any checkpoint bit by bit."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from learning import SMALL, features, learner, train_set

from noisycorr import Loss, Strategy, Trust
from noisycorr.models.losses import info_nce
from noisycorr.models.training.batches import epoch_order, split_batches
from noisycorr.models.training.checkpoint import checkpoints, load_checkpoint, load_latest, save_checkpoint, sweep
from noisycorr.models.training.contract import Encoded
from noisycorr.models.training.learner import Learner, TrainSet
from noisycorr.models.training.loop import Hooks, backward, fit, plan_epoch
from noisycorr.models.training.memory import Memory
from noisycorr.stats.detection import auroc


def state(one: Learner) -> dict[str, Any]:
    """Everything that must be equal bit by bit."""
    moments = one.optimizer.state_dict()["state"]
    return {
        "weights": {k: v.numpy().tobytes() for k, v in one.weights().items()},
        "best": {k: v.numpy().tobytes() for k, v in one.best.items()},
        "moments": {(n, k): v.numpy().tobytes() for n, values in moments.items() for k, v in values.items()},
        "memory": [{k: v.numpy().tobytes() for k, v in memory.columns.items()} for memory in one.memories],
        "trust": [None if t is None else t.p_clean.tobytes() for t in one.trusts],
        "cursor": json.loads(json.dumps(vars(one.cursor))),
    }


# ---- order


@pytest.mark.parametrize("n", [2, 3, 5, 31, 32, 33, 64])
@pytest.mark.parametrize("size", [2, 3, 16, 100])
def test_batches_leave_nobody_out_and_nobody_alone(n: int, size: int):
    batches = split_batches(np.arange(n), size)
    assert np.concatenate(batches).tolist() == list(range(n))
    assert all(2 <= len(batch) <= size + 1 for batch in batches)
    assert max(map(len, batches)) - min(map(len, batches)) <= 1


def test_a_batch_of_one_is_refused():
    with pytest.raises(ValueError, match="at least 2"):
        split_batches(np.arange(4), 1)
    with pytest.raises(ValueError, match="one pair alone"):
        split_batches(np.arange(1), 4)
    assert split_batches(np.arange(0), 4) == []


def test_the_order_depends_on_seed_and_epoch_alone():
    one = epoch_order(100, seed=1, epoch=2)
    np.random.seed(7)
    torch.manual_seed(7)
    assert (one == epoch_order(100, seed=1, epoch=2)).all() and sorted(one) == list(range(100))
    others = [epoch_order(100, seed=1, epoch=3), epoch_order(100, seed=2, epoch=2),
              epoch_order(100, seed=1, epoch=2, stream="x")]  # fmt: skip
    assert all((one != other).any() for other in others)


# ---- sets


@dataclass(frozen=True, kw_only=True)
class Sets(Strategy):
    """The first pairs are clean, the next noisy from epoch 2 on, the rest is never trained on."""

    clean: int = 10
    judges = True
    warm_up = 1
    curriculum = {"clean": 0, "noisy": 2}  # noqa: RUF012

    def memory(self, n: int) -> Memory:
        return Memory(n, seen=torch.zeros(n, dtype=torch.int64))

    def decide(self, signals: Mapping[str, np.ndarray], memory: Memory) -> Trust:
        place = np.arange(memory.n)
        noisy = (place >= self.clean) & (place < self.clean + 10)
        return Trust(p_clean=(place < self.clean).astype(float), clean=place < self.clean, sets={"noisy": noisy})

    def step(self, enc: Encoded, memory: Memory, trust: Trust | None, peer: Encoded | None) -> Loss:
        memory.write("seen", enc.rows, memory.read("seen", enc.rows) + 10**enc.epoch)
        if trust is not None:
            assert (trust.holds("noisy", enc) == (enc.rows >= self.clean)).all()
            assert (trust.chance(enc) == (enc.rows < self.clean)).all()
        return Loss(per_pair=info_nce(enc.sims, temperature=enc.temperature, negatives=enc.negatives))


def test_sets_are_trained_on_when_their_time_has_come():
    one = learner(Sets())
    fit(one)
    assert one.memories[0].columns["seen"].tolist() == [111] * 10 + [101] * 10 + [1] * 30
    assert [record["pairs"] for record in one.cursor.history] == [[50], [10], [20]]


def test_an_empty_clean_set_falls_back_to_all_pairs_and_says_so():
    one = learner(Sets(clean=1), epochs=2)
    fit(one)
    assert one.cursor.history[0].get("fall_back") is None
    assert one.cursor.history[1]["fall_back"] == 50 and one.cursor.history[1]["pairs"] == [50]


def test_a_constant_statistic_trusts_everybody_and_says_so():
    data = train_set(40)
    one = learner("coteach", data, options={"warm_up": 0})
    trust = one.strategy.decide({"loss": np.full(40, 0.5)}, one.memories[0])
    assert trust.clean.all() and trust.note and "cannot be split" in trust.note


def test_pairs_of_one_picture_or_text_are_no_negatives():
    data = train_set(6)
    data = TrainSet(towers=data.towers, rows=data.rows, image_group=np.array([0, 0, 2, 3, 4, 5]),
                    text_group=np.array([0, 1, 2, 2, 4, 5]))  # fmt: skip
    enc = learner("plain", data).look(0, torch.arange(6))
    allowed = enc.negatives.numpy()
    expected = ~np.eye(6, dtype=bool)
    expected[0, 1] = expected[1, 0] = expected[2, 3] = expected[3, 2] = False
    assert (allowed == expected).all()


def test_hidden_truth_is_refused():
    with pytest.raises(ValueError, match="hidden truth"):
        train_set(5, truth_wrong=np.zeros(5))


# ---- learning


def test_coteaching_finds_the_wrong_pairs():
    _, _, wrong = features(600, wrong=240)
    one = learner("coteach", train_set(600, wrong=240), epochs=8, batch_size=64, hidden=32, lr=5e-3)
    fit(one)
    for trust in one.trusts:
        assert trust is not None and auroc(trust.p_clean, wrong) > 0.95
    assert 200 < one.cursor.history[-1]["pairs"][0] < 440


def test_what_is_watched_changes_nothing():
    one, two = (learner("coteach", train_set(60, wrong=20), options={"warm_up": 1}) for _ in range(2))
    seen = []
    fit(one)
    fit(two, Hooks(watch=lambda number, signals, trust: seen.append(number) or {"auroc": 1.0}, watches=True))
    assert seen
    assert state(one)["weights"] == state(two)["weights"]


def test_exchanging_the_names_of_the_twins_exchanges_their_results(monkeypatch: pytest.MonkeyPatch):
    import noisycorr.models.training.loop as loop

    data = train_set(60, wrong=20)
    one, two = learner("coteach", data, options={"warm_up": 1}), learner("coteach", data, options={"warm_up": 1})
    two.load_weights({f"{1 - int(k[0])}{k[1:]}": v for k, v in one.snapshot().items()})
    fit(one)
    other = {"train 0": "train 1", "train 1": "train 0", "judge 0": "judge 1", "judge 1": "judge 0"}
    for module in (loop, __import__("noisycorr.models.training.learner", fromlist=["x"])):
        monkeypatch.setattr(module, "epoch_order",
                            lambda n, *, seed, epoch, stream: epoch_order(n, seed=seed, epoch=epoch,
                                                                          stream=other[stream]))  # fmt: skip
    fit(two)
    for name, value in one.weights().items():
        swapped = two.weights()[f"{1 - int(name[0])}{name[1:]}"]
        torch.testing.assert_close(value, swapped, rtol=0, atol=0)


def test_without_exchange_each_follows_itself():
    @dataclass(frozen=True, kw_only=True)
    class Alone(Sets):
        peer = "twin"
        exchange = False

    one = learner(Alone())
    assert [one.guide(number) for number in (0, 1)] == [0, 1]
    assert [learner("coteach").guide(number) for number in (0, 1)] == [1, 0]


def test_a_slow_copy_follows_and_judges():
    @dataclass(frozen=True, kw_only=True)
    class Slow(Sets):
        peer = "ema"
        sees_peer = True

        def step(self, enc: Encoded, memory: Memory, trust: Trust | None, peer: Encoded | None) -> Loss:
            assert peer is not None and not peer.sims.requires_grad and (peer.rows == enc.rows).all()
            return Sets.step(self, enc, memory, trust, peer)

    one = learner(Slow())
    before = copy.deepcopy(one.networks)
    fit(one)
    assert one.trusts[1] is not None and one.trusts[0] is None
    start, fast, slow = (x.image_head[0].weight for x in (before[0], *one.networks))
    assert 0 < (slow - start).norm() < (fast - start).norm()


def test_a_loss_that_is_nan_stops_the_training_and_leaves_the_checkpoint(tmp_path: Path):
    @dataclass(frozen=True, kw_only=True)
    class Bad(Strategy):
        def step(self, enc: Encoded, memory: Memory, trust: Trust | None, peer: Encoded | None) -> Loss:
            loss = info_nce(enc.sims, temperature=enc.temperature)
            return Loss(per_pair=loss * (float("nan") if enc.epoch == 1 else 1.0))

    one = learner(Bad())
    with pytest.raises(FloatingPointError, match=r"epoch 2, step 1.*lower `lr`"):
        fit(one, Hooks(save=lambda it: save_checkpoint(it, tmp_path)))
    assert len(checkpoints(tmp_path)) == 1
    two = learner(Bad())
    load_latest(two, tmp_path)
    assert two.cursor.epoch == 1


@pytest.mark.parametrize("parts", [2, 3, 7])
def test_a_batch_in_parts_has_the_gradient_of_the_whole(parts: int):
    def gradients(accum_freq: int) -> list[torch.Tensor]:
        one = learner("plain", model_precision="fp64", accum_freq=accum_freq, dropout=0.5)
        backward(one, 0, torch.arange(30), None, None)
        return [p.grad for p in one.networks[0].parameters()]  # type: ignore[misc]

    for whole, apart in zip(gradients(1), gradients(parts)):
        torch.testing.assert_close(apart, whole, rtol=0, atol=1e-12)


def test_dropout_is_the_same_when_a_part_is_encoded_again():
    one = learner("plain", model_precision="fp64", accum_freq=3, dropout=0.5)
    one.networks[0].temperature  # noqa: B018
    backward(one, 0, torch.arange(30), None, None)
    found = one.networks[0].image_head[0].weight.grad.clone()  # type: ignore[union-attr,operator]
    one.optimizer.zero_grad()
    backward(one, 0, torch.arange(30), None, None)
    torch.testing.assert_close(one.networks[0].image_head[0].weight.grad, found, rtol=0, atol=0)


def test_the_best_epoch_is_kept_not_the_last():
    values = iter([1.0, 5.0, 2.0])
    one, kept = learner(), []
    fit(one, Hooks(validate=lambda it: kept.append(it.snapshot()) or {"select": next(values)}))
    assert one.cursor.best == [5.0, 1]
    assert all(torch.equal(one.best[k], v) for k, v in kept[1].items())


# ---- checkpoints


class Killed(Exception):
    """As a kill would, from inside."""


@pytest.mark.parametrize("strategy", ["plain", "coteach"])
@pytest.mark.parametrize("stop", [1, 4, 6, 9])
def test_continued_from_any_step_is_bitwise_the_same(strategy: str, stop: int, tmp_path: Path):
    options = {"warm_up": 1} if strategy == "coteach" else {}
    data = train_set(60, wrong=20)
    choice = {"save_every": 1e-9, "dropout": 0.2, "epochs": 4}
    alone = learner(strategy, data, options=options, **choice)
    fit(alone)
    killed, seen = learner(strategy, data, options=options, **choice), []

    def progress(_: int) -> None:
        seen.append(1)
        if len(seen) == stop:
            raise Killed

    hooks = Hooks(save=lambda it: save_checkpoint(it, tmp_path), progress=progress)
    with pytest.raises(Killed):
        fit(killed, hooks)
    again = learner(strategy, data, options=options, **choice)
    assert (load_latest(again, tmp_path) is None) == (stop == 1)
    assert again.cursor.steps == stop - 1
    fit(again)
    assert state(again) == state(alone)


def test_half_a_checkpoint_is_none(tmp_path: Path):
    one = learner()
    fit(one, Hooks(save=lambda it: save_checkpoint(it, tmp_path, keep=2)))
    found = checkpoints(tmp_path)
    assert [path.name for path in found] == ["step-00000008", "step-00000012"]
    (found[-1] / "COMPLETE").unlink()
    (tmp_path / ".step-00000099.1.tmp").mkdir()
    two = learner()
    assert load_latest(two, tmp_path) == found[0]
    sweep(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000008"]


def test_a_full_disk_leaves_the_checkpoint_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    import noisycorr.models.training.checkpoint as module

    one = learner()
    save_checkpoint(one, tmp_path)
    one.cursor.steps = 5
    store = module.store

    def full(path: Path, data: bytes) -> None:
        if path.name.startswith("optimizer"):
            raise OSError(28, "No space left on device")
        store(path, data)

    monkeypatch.setattr(module, "store", full)
    with pytest.raises(OSError, match="No space"):
        save_checkpoint(one, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000000"]


def test_weights_of_other_networks_are_refused(tmp_path: Path):
    path = save_checkpoint(learner(), tmp_path)
    with pytest.raises(ValueError, match="other networks"):
        load_checkpoint(learner(embed_dim=9), path)
    with pytest.raises(ValueError, match="other networks"):
        load_checkpoint(learner("coteach"), path)
    with pytest.raises(ValueError, match="stored memory holds"):
        load_checkpoint(learner(Sets()), path)


def test_batches_do_not_depend_on_who_was_dropped():
    one = learner(Sets(), epochs=3)
    one.cursor.epoch = 1
    one.judge(lambda *_: None)
    batches, fallen = plan_epoch(one, 0)
    order = epoch_order(50, seed=0, epoch=1, stream="train 0")
    assert not fallen and np.concatenate(batches).tolist() == [row for row in order if row < 10]
    assert SMALL["batch_size"] == 16
