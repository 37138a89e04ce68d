"""Checks for classes of your own: `check_strategy(Mine())` says in one sentence what is wrong with a method."""

from __future__ import annotations

import copy
import dataclasses
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from noisycorr.models.training.batches import stream_seed
from noisycorr.models.training.choice import Train
from noisycorr.models.training.contract import Encoded, Strategy, Trust
from noisycorr.models.training.heads import StoredTowers
from noisycorr.models.training.learner import Learner, TrainSet
from noisycorr.models.training.loop import backward, fit
from noisycorr.retrieval.strategies import load_strategy
from noisycorr.runtime import dist

COLUMNS = ("p_clean", "sample_weight", "score_pair", "score_similarity")
CPU = torch.device("cpu")


class _Watched(dict):  # type: ignore[type-arg]
    """Columns that notice who asks for truth."""

    def __init__(self, values: dict[str, Tensor]) -> None:
        super().__init__(values)
        self.asked: list[str] = []

    def __getitem__(self, name: str) -> Tensor:
        self.asked.append(name)
        value: Tensor = super().__getitem__(name)
        return value

    def __contains__(self, name: object) -> bool:
        self.asked.append(str(name))
        return super().__contains__(name)

    def get(self, name: str, default: object = None) -> object:
        """As of a dict."""
        self.asked.append(name)
        return super().get(name, default)


def tiny_learner(strategy: Strategy, *, n: int = 60, seed: int = 0, epochs: int = 3) -> Learner:
    """A learner on 60 made-up pairs, a third of them wrong, in double precision.

    Args:
        strategy: The method.
        n: Number of pairs.
        seed: Of the pairs and the training.
        epochs: Passes.
    """
    rng = np.random.default_rng(stream_seed(seed, "tiny"))
    things = rng.normal(size=(n, 6))
    image, text = things @ rng.normal(size=(6, 12)), things @ rng.normal(size=(6, 10))
    wrong = n // 3
    text[:wrong] = np.roll(text[:wrong], 1, axis=0)
    columns = {name: rng.uniform(0.1, 1, n).astype(np.float32) for name in COLUMNS}
    towers = StoredTowers(image, text, device=CPU, dtype=torch.float64)
    data = TrainSet(towers=towers, rows=np.arange(n), image_group=np.arange(n) // 2 * 2, text_group=np.arange(n),
                    columns=columns)  # fmt: skip
    choice = Train(epochs=epochs, batch_size=16, embed_dim=8, hidden=12, model_precision="fp64", seed=seed,
                   save_every=0, dropout=0.3, lr=1e-3)  # fmt: skip
    return Learner(data, strategy, choice, device=CPU)


def check_strategy(strategy: Strategy, *, processes: bool = False) -> None:
    """Everything that the loop relies on, in a few seconds.

    Losses and gradients are finite; a permuted batch permutes `per_pair` and the signals; `decide` gives probabilities
    and sets; memory changes only in the rows of the batch; no hidden truth is asked for; the options stay as they are;
    two trainings agree bit by bit; and two processes agree with one.

    Args:
        strategy: The method with its options.
        processes: Compare two processes with one, too; takes 15 seconds more.

    Raises:
        AssertionError: With one sentence that says what is wrong.
    """
    before = copy.deepcopy(strategy)
    for with_trust in (False, True):
        _check_batch(strategy, with_trust)
    _check_decide(strategy)
    assert strategy == before, "the strategy changed its own fields: what is learned over time belongs into memory"
    one, two = (_trained(strategy) for _ in range(2))
    same = all(torch.equal(value, two.weights()[name]) for name, value in one.weights().items())
    assert same, "two equal trainings differ: take random numbers from torch inside step, and none that the clock seeds"
    differences = [line for a, b in zip(one.memories, two.memories) for line in a.differences(b)]
    assert not differences, f"two equal trainings end with different memories: {differences[0]}"
    if processes:
        check_processes(strategy)


def check_processes(strategy: Strategy) -> None:
    """Two processes have the gradients of one in the first step, and its parameters in the end, to 1e-10.

    The gradients are compared by themselves because AdamW hides a factor.

    Raises:
        AssertionError: If they do not.
    """
    import torch.multiprocessing as multiprocessing

    alone = outcome(strategy)
    kind = type(strategy)
    place = kind.__module__
    if place.startswith("noisycorr_user_"):  # the class is in no module that Python would find
        place = str(sys.modules[place].__file__)
    options = {field.name: getattr(strategy, field.name) for field in dataclasses.fields(strategy)}  # type: ignore[arg-type]
    with tempfile.TemporaryDirectory() as folder:
        multiprocessing.spawn(_one_of_two, (f"{place}:{kind.__qualname__}", options, folder), nprocs=2, join=True)
        for rank in range(2):
            shared = torch.load(Path(folder) / f"{rank}.pt", weights_only=True)
            for name, value in alone.items():
                gap = float((shared[name] - value).abs().max()) if value.numel() else 0.0
                assert gap < 1e-10, f"two processes differ from one by {gap:.1e} in {name}"


def outcome(strategy: Strategy) -> dict[str, Tensor]:
    """Gradients of one batch and the weights after a short training, the same for any number of processes.

    Args:
        strategy: The method with its options.
    """
    return _first_gradients(strategy) | _trained(strategy).weights()


def _one_of_two(rank: int, name: str, options: dict[str, Any], folder: str) -> None:
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "ACCELERATE_USE_CPU": "true"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(20000 + stream_seed(folder) % 20000)}
    torch.set_num_threads(1)
    assert dist.count() == 2
    torch.save(outcome(load_strategy(name, options)), Path(folder) / f"{rank}.pt")
    dist.wait()
    dist.leave()


def _first_gradients(strategy: Strategy) -> dict[str, Tensor]:
    """Of the first network on one batch of uneven parts, encoded in one go and in two."""
    found = {}
    for parts in (1, 2):
        learner = tiny_learner(strategy)
        learner.choice = Train(**{**vars(learner.choice), "accum_freq": parts})
        backward(learner, 0, torch.arange(3, 20), None, None)
        dist.average_gradients(learner.networks[0].parameters())
        for name, parameter in learner.networks[0].named_parameters():
            if parameter.grad is not None:
                found[f"gradient of {name}, {parts} parts"] = parameter.grad
    return found


def _trained(strategy: Strategy) -> Learner:
    learner = tiny_learner(strategy, epochs=max(2, min(strategy.warm_up, 2) + 2))
    if strategy.warm_up > 2:  # long warm-ups would hide everything else
        learner.cursor.epoch = strategy.warm_up - 1
        learner.choice = Train(**{**vars(learner.choice), "epochs": strategy.warm_up + 2})
    fit(learner)
    return learner


def _check_batch(strategy: Strategy, with_trust: bool) -> None:
    learner = tiny_learner(strategy)
    trust = _some_trust(learner) if with_trust else None
    rows = torch.arange(5, 21)
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))
    peers = [learner.look(1, part) for part in (rows, rows[order])] if len(learner.networks) > 1 else [None, None]
    other = tiny_learner(strategy)
    other.memories = [memory.clone() for memory in learner.memories]  # what judging wrote
    straight = _one_step(learner, rows, trust, peers[0])
    permuted = _one_step(other, rows[order], trust, peers[1])
    gap = float((permuted - straight[order]).abs().max().detach())
    assert gap < 1e-8, f"per_pair does not follow a permutation of the batch (off by {gap:.1e}): something broadcasts"
    one, two = (_signals(tiny_learner(strategy), part) for part in (rows, rows[order]))
    for name, value in one.items():
        gap = float((two[name] - value[order]).abs().max())
        assert gap < 1e-8, f"signal {name!r} does not follow a permutation of the batch (off by {gap:.1e})"


def _one_step(learner: Learner, rows: Tensor, trust: Trust | None, peer: Encoded | None) -> Tensor:
    strategy, memory, network = learner.strategy, learner.memories[0], learner.networks[0]
    before = memory.clone()
    network.eval()  # dropout belongs to the place in the batch
    image, text = learner.encode_local(0, rows)
    watched = _Watched({name: column[rows].double() for name, column in learner.columns.items()})
    enc = learner.encoded(0, rows, image, text)
    object.__setattr__(enc, "columns", watched)
    torch.manual_seed(0)
    loss = strategy.step(enc, memory, trust, peer if strategy.sees_peer else None)
    asked = [name for name in watched.asked if name.startswith("truth_")]
    assert not asked, f"step asked for the hidden column {asked[0]!r}"
    assert loss.per_pair.shape == (len(rows),), f"per_pair has shape {tuple(loss.per_pair.shape)}, not ({len(rows)},)"
    assert torch.isfinite(loss.per_pair).all(), "per_pair is not finite"
    network.zero_grad()
    loss.total().backward()
    gradients = [p.grad for p in network.parameters() if p.grad is not None]
    assert gradients and all(torch.isfinite(g).all() for g in gradients), "a gradient is missing or not finite"
    assert any(g.abs().sum() > 0 for g in gradients), "every gradient is 0: the loss does not depend on the towers"
    _check_rows(before, learner, rows, "step")
    return loss.per_pair.detach()


def _signals(learner: Learner, rows: Tensor) -> dict[str, Tensor]:
    before = learner.memories[0].clone()
    with torch.no_grad():
        found = learner.strategy.signals(learner.look(0, rows), learner.memories[0])
    for name, value in found.items():
        assert value.shape == (len(rows),), f"signal {name!r} has shape {tuple(value.shape)}, not ({len(rows)},)"
        assert torch.isfinite(value).all(), f"signal {name!r} is not finite"
    _check_rows(before, learner, rows, "signals")
    return found


def _check_rows(before: object, learner: Learner, rows: Tensor, who: str) -> None:
    from noisycorr.models.training.memory import Memory

    assert isinstance(before, Memory)
    others = np.setdiff1d(np.arange(before.n), rows.numpy())
    for name, column in before.columns.items():
        now = learner.memories[0].columns[name]
        assert torch.equal(torch.nan_to_num(now[others].double()), torch.nan_to_num(column[others].double())), (
            f"{who} wrote rows of memory column {name!r} that are not in the batch"
        )


def _some_trust(learner: Learner) -> Trust:
    """What the strategy decides after one look at all pairs, or trust in most of them."""
    if not learner.strategy.judges:
        n = len(learner.data.rows)
        return Trust(p_clean=np.linspace(0.1, 0.9, n), clean=np.arange(n) % 4 > 0)
    return learner.strategy.decide(learner.evidence(0), learner.memories[0])


def _check_decide(strategy: Strategy) -> None:
    if not strategy.judges:
        return
    learner = tiny_learner(strategy)
    signals = learner.evidence(0)
    n = len(learner.data.rows)
    cases: dict[str, Callable[[np.ndarray], np.ndarray]] = {
        "real": lambda x: x, "constant": np.zeros_like, "huge": lambda x: x * 1e6,
    }  # fmt: skip
    for case, change in cases.items():
        trust = strategy.decide({name: change(x) for name, x in signals.items()}, learner.memories[0].clone())
        assert isinstance(trust, Trust), f"decide gave a {type(trust).__name__}, expected Trust"
        assert len(trust.p_clean) == n, f"decide gave {len(trust.p_clean)} probabilities for {case} signals, not {n}"
