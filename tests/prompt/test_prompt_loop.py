"""The loop of FPL, IFPL and GRIP on a small text tower: re-initialisation, guard, resume, paradigms, two processes."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from noisycorr.prompt.choice import Rounds, Steps
from noisycorr.prompt.keep import Rounds as Kept
from noisycorr.prompt.keep import load_prompt, save_prompt
from noisycorr.prompt.loop import State, learn_labels, probabilities, remember, run_round, trips, tune
from noisycorr.prompt.measure import compare, doubts, harmonic
from noisycorr.prompt.model import restore, snapshot
from noisycorr.prompt.posterior import averaged
from noisycorr.prompt.select import Selected
from noisycorr.prompt.task import Task, check_leak
from noisycorr.runtime.errors import UsageError
from noisycorr.runtime.folder import Run

C, D, N = 5, 12, 200


class Bare:
    """Class vectors that are learned directly: a prompt without a tower."""

    def __init__(self, start: Tensor, features: Tensor, scale: float = 10.0) -> None:
        self.context, self._features, self.scale = nn.Parameter(start.clone()), features, scale
        self.pictures_encoded = 0

    def weights(self) -> dict[str, Tensor]:
        return {"context": self.context}

    def classes(self) -> Tensor:
        return nn.functional.normalize(self.context, dim=1)

    def images(self, rows: list[int]) -> Tensor:
        return self._features[rows]


def make(seed: int = 0, *, seen: int = 0, shots: int = 0) -> tuple[Task, Bare, Tensor, np.ndarray]:
    """Clusters, and class vectors that miss their centres."""
    rng = np.random.default_rng(seed)
    centre = rng.normal(size=(C, D))
    truth = rng.integers(0, C, N)
    x = torch.from_numpy(centre[truth] + 1.2 * rng.normal(size=(N, D)))
    x = nn.functional.normalize(x, dim=1)
    start = torch.from_numpy(centre + 1.5 * rng.normal(size=(C, D)))
    label = np.full(N, -1)
    for k in range(seen):
        label[truth == k] = k
    for k in range(C):
        label[np.flatnonzero(truth == k)[:shots]] = k
    held = np.arange(N) >= 150
    label[held] = -1
    task = Task(names=[f"class {k}" for k in range(C)], keys=[f"k{row}" for row in range(N)], usable=np.ones(N, bool),
                label=label, seen=np.arange(C) < seen, held=held)  # fmt: skip
    model = Bare(start, x)
    zero = (model.scale * x @ nn.functional.normalize(start, dim=1).T).detach()
    return task, model, zero, truth


STEPS = Steps(lr=0.1, epochs=10, loss="ce")


def test_grip_gains_and_its_first_prompt_stays_as_it_was():
    gains = []
    for seed in range(5):
        task, model, zero, truth = make(seed)
        start = snapshot(model)
        state = tune(task, model, zero, Rounds(rounds=5, balance="uniform"), STEPS)
        test = np.flatnonzero(task.held)
        after = probabilities(model, task, test, every=True).argmax(1)
        gains.append((after == truth[test]).mean() - (zero[test].argmax(1).numpy() == truth[test]).mean())
        assert start["context"].data_ptr() != model.context.data_ptr()
        assert not torch.equal(start["context"], state.weights["context"])
        assert len(state.history) == 5 and state.selected is not None
    assert np.mean(gains) > 0.05


def test_a_round_starts_from_the_first_prompt_or_from_the_last(monkeypatch: pytest.MonkeyPatch):
    from noisycorr.prompt import loop

    began: list[Tensor] = []

    def watch(model: Any, *args: Any, **named: Any) -> dict[str, float]:
        began.append(model.context.detach().clone())
        with torch.no_grad():
            model.context.add_(0.01)
        return {"loss": 0.0, "steps": 1}

    monkeypatch.setattr(loop, "fit_round", watch)
    for reinit in (True, False):
        began.clear()
        task, model, zero, _ = make()
        first = model.context.detach().clone()
        tune(task, model, zero, Rounds(rounds=3, guard=False), dataclasses.replace(STEPS, reinit=reinit))
        assert torch.equal(began[0], first) and torch.equal(began[2], first) is reinit


def test_the_guard_undoes_a_collapse_and_stops():
    wild = dataclasses.replace(STEPS, lr=3e4, grad_clip_norm=0.0, optimizer="sgd", loss="mae")
    for seed in range(5):
        task, model, zero, truth = make(seed)
        state = tune(task, model, zero, Rounds(rounds=4, balance="uniform"), wild)
        test = np.flatnonzero(task.held)
        after = (probabilities(model, task, test, every=True).argmax(1) == truth[test]).mean()
        assert after >= (zero[test].argmax(1).numpy() == truth[test]).mean() - 0.05
        assert all(record["tripped"] == (number == len(state.history) - 1 and state.stopped)
                   for number, record in enumerate(state.history))  # fmt: skip


def test_what_trips_the_guard():
    rounds = Rounds()
    assert not trips({"fit": 0.8, "agree": 0.9}, 0.9, rounds)
    assert trips({"fit": 0.7, "agree": 0.9}, 0.9, rounds) and trips({"fit": 1.0, "agree": 0.6}, 0.9, rounds)
    assert not trips({"fit": 1.0, "agree": 0.5}, None, rounds, 0.4), "a zero-shot model in doubt may be contradicted"


def test_an_undone_round_leaves_the_weights_of_the_one_before():
    task, model, zero, _ = make()
    state = State(weights=snapshot(model), named=np.full(len(task.unlabelled), -1),
                  since=np.zeros(len(task.unlabelled), np.int64))  # fmt: skip
    before = torch.softmax(zero[task.unlabelled], 1).numpy()
    from noisycorr.prompt.loop import make_lesson, pick

    rounds = Rounds(guard_agree=1.0, guard_fit=0.0)
    selected = pick(before, 10, rounds, None, task)
    train_set = make_lesson(task, selected, state, before, rounds, STEPS, 1)
    state.history.append({"fit": 1.0})
    p = run_round(model, task, train_set, selected, state, before, snapshot(model), rounds, STEPS, 1)
    assert state.stopped and state.selected is None and p is before
    assert torch.equal(model.context, state.weights["context"])
    assert state.history[-1]["retried"] and state.history[-1]["tripped"]


def test_a_killed_loop_continues_to_the_same_bits(tmp_path: Path):
    rounds = Rounds(rounds=5, balance="uniform", decay=0.8, floor=0.2)
    task, model, zero, _ = make()
    whole = tune(task, model, zero, rounds, STEPS, store=Kept(Run(tmp_path / "a"), zero))

    class Killed(Exception):
        pass

    def kill(record: dict[str, Any]) -> None:
        if record["round"] == 3:  # told before the round is kept
            raise Killed

    task, model, zero, _ = make()
    with pytest.raises(Killed):
        tune(task, model, zero, rounds, STEPS, store=Kept(Run(tmp_path / "b"), zero), on_round=kill)
    task, model, zero, _ = make()
    numbers: list[int] = []
    again = tune(task, model, zero, rounds, STEPS, store=Kept(Run(tmp_path / "b"), zero),
                 on_round=lambda record: numbers.append(record["round"]))  # fmt: skip
    assert numbers == [3, 4, 5] and torch.equal(whole.weights["context"], again.weights["context"])
    assert whole.history == again.history and (whole.since == again.since).all()
    for number in range(1, 6):
        for end in ("safetensors", "json"):
            name = f"rounds/{number:03d}.{end}"
            assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_labels_help_and_seen_classes_are_not_pseudo_labelled():
    task, model, zero, _ = make(seen=3)
    assert task.paradigm == "transductive zero-shot" and task.open.tolist() == [3, 4]
    state = tune(task, model, zero, Rounds(rounds=2), STEPS)
    assert state.selected is not None and set(state.selected.label.tolist()) <= {0, 1}
    task, model, zero, truth = make(shots=3)
    assert task.paradigm == "semi-supervised" and len(task.labelled) == 15
    restore(model, {"context": torch.randn(C, D, generator=torch.Generator().manual_seed(0), dtype=torch.float64)})
    learn_labels(task, model, dataclasses.replace(STEPS, epochs=80))
    assert (probabilities(model, task, task.labelled, every=True).argmax(1) == truth[task.labelled]).mean() > 0.9


@pytest.mark.parametrize("selector", ["leaderboard", "column", "threshold", "candidates", "balanced"])
@pytest.mark.parametrize("loss", ["gce", "elr"])
def test_every_selector_goes_through_the_loop(selector: str, loss: str):
    task, model, zero, _ = make(shots=1)
    rounds = Rounds(rounds=2, selector=selector, threshold=0.4, confidence=1.0, decay=0.9)  # type: ignore[arg-type]
    steps = dataclasses.replace(STEPS, loss=loss, batch_size=32, clean="ot", loss_weights="shipped", epochs=2)  # type: ignore[arg-type]
    state = tune(task, model, zero, rounds, steps)
    assert len(state.history) == 2 and all(np.isfinite(record["loss"]) for record in state.history)


def test_labels_get_older_while_they_stay():
    state = State(weights={}, named=np.full(3, -1), since=np.zeros(3, np.int64))
    one = np.zeros(2, np.float32)
    remember(state, Selected(rows=np.array([0, 1]), label=np.array([1, 1]), probability=one, rank=one), 0)
    remember(state, Selected(rows=np.array([0, 1]), label=np.array([1, 0]), probability=one, rank=one), 1)
    assert state.since.tolist() == [1, 2, 0] and state.named.tolist() == [1, 0, -1]


def test_averaging_over_neighbours():
    p = np.array([[1.0, 0.0], [0.0, 1.0], [0.5, 0.5]], np.float32)
    found = averaged(p, np.array([[1, 2], [0, -1], [-1, -1]]))
    assert np.allclose(found, [[0.625, 0.375], [0.5, 0.5], [0.5, 0.5]])
    assert averaged(p, None) is p


def test_measures():
    truth = np.array([0, 0, 1, 1, 2, 2])
    found = compare(np.array([0, 1, 1, 1, 0, 0]), np.array([0, 0, 1, 0, 2, 0]), truth, 4, np.array([1, 0, 0, 0], bool))
    assert found["before"] == 0.5 and found["after"] == pytest.approx(4 / 6)
    assert found["poor"] == 0.5 and found["rich"] == -0.5 and found["losers"] == 1
    assert found["seen"] == 1.0 and found["unseen"] == 0.5 and found["harmonic"] == pytest.approx(2 / 3)
    assert harmonic(0.0, 1.0) == 0.0
    flat = np.full((50, 10), 0.1, np.float32)
    assert "too poor" in doubts(flat)["warning"] and doubts(np.eye(10, dtype=np.float32))["warning"] is None


def test_test_images_among_the_others_are_refused():
    check_leak(["a", "b"], ["h1", "h2"], ["a"], ["h3"])
    for keys, hashes in ((["c"], ["h2"]), (["b"], [None])):
        with pytest.raises(UsageError, match="among the images to learn from"):
            check_leak(["a", "b"], ["h1", None if hashes == [None] else "h2"], keys, hashes)


def test_a_prompt_for_another_tower_is_refused(tmp_path: Path):
    path = tmp_path / "prompt.safetensors"
    save_prompt(path, {"context": torch.ones(2, 3, 4)}, {"encoder": "one", "names": ["a", "b"], "context": "class"})
    weights, facts = load_prompt(path, encoder="one", names=["a", "b"])
    assert torch.equal(weights["context"], torch.ones(2, 3, 4)) and facts["encoder"] == "one"
    with pytest.raises(UsageError, match="for the tower one, not for two"):
        load_prompt(path, encoder="two", names=["a", "b"])
    with pytest.raises(UsageError, match="not these"):
        load_prompt(path, encoder="one", names=["a", "c"])
    (tmp_path / "other").write_bytes(b"junk")
    with pytest.raises(UsageError, match="could not be read"):
        load_prompt(tmp_path / "other", encoder="one", names=[])
