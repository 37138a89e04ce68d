"""The one loop: encode the local part, gather with gradient, strategy on the global batch, backward, step.

Before each epoch after the warm-up the networks say what they think of every pair, the strategy decides whom to trust,
and each network is trained on the pairs its guide trusts. Networks take their steps side by side, each seeing the
other as it was before the step, so that exchanging their names exchanges their results.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_

from noisycorr.models.training.batches import active_rows, epoch_order, split_batches, stream_seed
from noisycorr.models.training.contract import Encoded, Loss, Trust
from noisycorr.models.training.heads import StoredTowers
from noisycorr.models.training.learner import Learner
from noisycorr.models.training.rate import cosine_share, rise_share
from noisycorr.runtime import dist

EMA_DECAY = 0.99


def _nothing(*_: Any) -> Any:
    return {}


@dataclass(frozen=True, kw_only=True)
class Hooks:
    """What happens around the training; none of it reaches the strategy.

    Attributes:
        validate: Metrics of the networks on validation pairs; `select` is the value to select by, higher = better.
        watch: Metrics of an opinion: number of the network, its signals, its trust. May know the truth.
        watches: Ask `watch` even where the strategy does not judge, at the price of a pass over the pairs.
        on_epoch: Called with the record of each finished epoch and its times.
        save: Called when a checkpoint is due: after each epoch, and inside one when `save_every` seconds have gone.
        progress: Called with the number of pairs of each step.
    """

    validate: Callable[[Learner], Mapping[str, Any]] = _nothing
    watch: Callable[[int, Mapping[str, np.ndarray], Trust | None], Mapping[str, Any]] = _nothing
    watches: bool = False
    on_epoch: Callable[[Mapping[str, Any], Mapping[str, float]], Any] = _nothing
    save: Callable[[Learner], Any] = _nothing
    progress: Callable[[int], Any] = _nothing


def fit(learner: Learner, hooks: Hooks | None = None) -> None:
    """Train to the end, from wherever the cursor stands.

    Afterwards `learner.best` holds the weights of the epoch with the highest `select`, or the last without validation.

    Raises:
        FloatingPointError: If a loss is NaN or infinite. The last checkpoint is as it was.
    """
    hooks = hooks or Hooks()
    with torch.random.fork_rng(devices=[]), few_threads(learner):
        while learner.cursor.epoch < learner.choice.epochs:
            _epoch(learner, hooks)


@contextlib.contextmanager
def few_threads(learner: Learner) -> Iterator[None]:
    """One thread for small networks on a CPU: several times faster than two, and the same numbers on every machine."""
    before = torch.get_num_threads()
    small = learner.device.type == "cpu" and isinstance(learner.data.towers, StoredTowers)
    torch.set_num_threads(1 if small else before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _epoch(learner: Learner, hooks: Hooks) -> None:
    cursor, choice = learner.cursor, learner.choice
    times = {"start": time.perf_counter(), "judge": 0.0, "save": time.perf_counter()}
    learner.loading, pairs = 0.0, 0
    if not cursor.judged:
        cursor.note = _judge(learner, hooks, trusted=cursor.epoch >= learner.strategy.warm_up)
        if cursor.epoch and cursor.epoch in learner.strategy.restarts(choice.epochs):
            learner.restart()
        cursor.judged = True
        times["judge"] = time.perf_counter() - times["start"]
    plan = [plan_epoch(learner, number) for number in learner.trained]
    steps = max(len(batches) for batches, _ in plan)
    fall_backs = [int(fallen) for _, fallen in plan]
    if any(fall_backs):
        cursor.note["fall_back"] = len(learner.data.rows)
    learner.expect(_coming(plan, cursor.step, steps), cursor.epoch)
    while cursor.step < steps:
        pairs += take_step(learner, plan, steps, hooks.progress)
        if choice.save_every and cursor.step < steps and time.perf_counter() - times["save"] > choice.save_every:
            hooks.save(learner)
            times["save"] = time.perf_counter()
    times["train"] = time.perf_counter() - times["start"] - times["judge"]
    times |= {"loading": learner.loading, "pairs": float(pairs)}
    record = _finish(learner, hooks, [sum(map(len, batches)) for batches, _ in plan])
    hooks.save(learner)
    hooks.on_epoch(record, times)


def _judge(learner: Learner, hooks: Hooks, *, trusted: bool) -> dict[str, Any]:
    """The opinion of this epoch, and what watching it showed."""
    found: dict[str, Any] = {}

    def watch(number: int, signals: Mapping[str, np.ndarray], trust: Trust | None) -> None:
        suffix = f"_{number}" if len(learner.networks) > 1 else ""
        if trust is not None:
            found[f"clean_share{suffix}"] = float(trust.clean.mean())
            found.update({f"note{suffix}": trust.note} if trust.note else {})
            found.update({f"{name}{suffix}": float(value) for name, value in trust.facts.items()})
        found.update({f"{name}{suffix}": value for name, value in hooks.watch(number, signals, trust).items()})

    judges = learner.strategy.judges and trusted
    if judges or (hooks.watches and not learner.strategy.judges):
        learner.judge(watch)
    return found


def plan_epoch(learner: Learner, number: int) -> tuple[list[np.ndarray], bool]:
    """Batches of one network in this epoch, and whether nobody was trusted, so that all pairs are taken."""
    cursor, choice, n = learner.cursor, learner.choice, len(learner.data.rows)
    order = epoch_order(n, seed=choice.seed, epoch=cursor.epoch, stream=f"train {number}")
    trust = learner.trusts[learner.guide(number)]
    if trust is None:
        return split_batches(order, choice.batch_size), False
    sets = trust.all()
    open_sets = [sets[name] for name, first in learner.strategy.opens(choice.epochs).items()
                 if name in sets and first <= cursor.epoch]  # fmt: skip
    rows = active_rows(order, open_sets) if open_sets else order[:0]
    fallen = len(rows) < 2
    return split_batches(order if fallen else rows, choice.batch_size), fallen


def _coming(plan: list[tuple[list[np.ndarray], bool]], step: int, steps: int) -> Iterator[np.ndarray]:
    """Global batches in the order in which they are trained on."""
    for number in range(step, steps):
        yield from (batches[number] for batches, _ in plan if number < len(batches))


def take_step(learner: Learner, plan: list[tuple[list[np.ndarray], bool]], steps: int,
              progress: Callable[[int], Any] = _nothing) -> int:  # fmt: skip
    """One step of every network that has a batch left. Returns how many pairs were trained on."""
    cursor = learner.cursor
    turns = [(number, torch.from_numpy(batches[cursor.step]), fallen)
             for number, (batches, fallen) in zip(learner.trained, plan) if cursor.step < len(batches)]  # fmt: skip
    _set_rate(learner, steps)
    learner.optimizer.zero_grad(set_to_none=True)
    peers = [_peer(learner, number, rows) for number, rows, _ in turns]
    pairs = 0
    for (number, rows, fallen), peer in zip(turns, peers):
        trust = None if fallen else learner.trusts[learner.guide(number)]
        value = backward(learner, number, rows, trust, peer)
        if not math.isfinite(value):
            raise FloatingPointError(
                f"the loss became {value} in epoch {cursor.epoch + 1}, step {cursor.step + 1}: lower `lr`, or raise "
                "`warmup`; the checkpoint before it is intact"
            )
        cursor.loss[number][0] += value
        cursor.loss[number][1] += 1
        dist.average_gradients(_parameters(learner, number))
        pairs += len(rows)
    learner.scaler.unscale_(learner.optimizer)
    for number, *_ in turns:
        if learner.choice.grad_clip_norm:
            clip_grad_norm_(_parameters(learner, number), learner.choice.grad_clip_norm)
    learner.scaler.step(learner.optimizer)  # left out where fp16 overflowed
    learner.scaler.update()
    if learner.strategy.peer == "ema":
        _follow(learner)
    cursor.step += 1
    cursor.steps += 1
    progress(pairs)
    return pairs


def backward(learner: Learner, number: int, rows: Tensor, trust: Trust | None, peer: Encoded | None) -> float:
    """Gradient of one network on one global batch; returns the loss.

    With `accum_freq` above 1 the batch is encoded in parts without gradient, the loss is differentiated with respect
    to the embeddings, and each part is encoded again to carry its share back: the gradient is that of the whole batch.
    """
    choice, network = learner.choice, learner.networks[number]
    network.train()
    mine = range(len(rows))[dist.my_slice(len(rows))]
    cuts = np.linspace(mine.start, mine.stop, choice.accum_freq + 1).astype(int).tolist()
    parts = [slice(a, b) for a, b in itertools.pairwise(cuts) if b > a] or [slice(mine.start, mine.stop)]
    if len(parts) == 1:
        image, text = _encode_part(learner, number, rows, parts[0])
        return _loss(learner, number, rows, image, text, trust, peer)
    with torch.no_grad():
        encoded = [_encode_part(learner, number, rows, part) for part in parts]
    image, text = (torch.cat([pair[side] for pair in encoded]).requires_grad_() for side in (0, 1))
    value = _loss(learner, number, rows, image, text, trust, peer)
    for part in parts:
        outputs = _encode_part(learner, number, rows, part)
        here = slice(part.start - mine.start, part.stop - mine.start)
        gradients = [x.grad[here] for x in (image, text)]  # type: ignore[index]
        torch.autograd.backward(outputs, gradients)  # type: ignore[arg-type]
    return value


def _encode_part(learner: Learner, number: int, rows: Tensor, part: slice) -> tuple[Tensor, Tensor]:
    """Encode part of a batch with random numbers that depend on where in the training this is, and nothing before."""
    cursor = learner.cursor
    torch.manual_seed(stream_seed(learner.choice.seed, "encode", cursor.epoch, cursor.step, number))
    learner.networks[number].set_window(len(rows), part)
    return learner.encode_local(number, rows[part], cursor.epoch)


def _loss(learner: Learner, number: int, rows: Tensor, image: Tensor, text: Tensor, trust: Trust | None,
          peer: Encoded | None) -> float:  # fmt: skip
    """Gather, ask the strategy, and differentiate."""
    cursor = learner.cursor
    everything = [dist.gather_with_gradient(x, len(rows)) for x in (image, text)]
    torch.manual_seed(stream_seed(learner.choice.seed, "step", cursor.epoch, cursor.step, number))
    enc = learner.encoded(number, rows, *everything)
    loss = learner.strategy.step(enc, learner.memories[number], trust, peer)
    _check(loss, len(rows))
    total = loss.total()
    learner.scaler.scale(total).backward()
    return float(total.detach())


def _parameters(learner: Learner, number: int) -> list[torch.nn.Parameter]:
    """What is trained of one network."""
    return [parameter for parameter in learner.networks[number].parameters() if parameter.requires_grad]


def _check(loss: Loss, b: int) -> None:
    if loss.per_pair.shape != (b,):
        raise ValueError(f"per_pair has shape {tuple(loss.per_pair.shape)}, expected ({b},)")
    for name, extra in loss.extras.items():
        if extra.shape != ():
            raise ValueError(f"extra {name!r} has shape {tuple(extra.shape)}, expected ()")


def _peer(learner: Learner, number: int, rows: Tensor) -> Encoded | None:
    if not learner.strategy.sees_peer or len(learner.networks) < 2:
        return None
    return learner.look(1 - number, rows, learner.cursor.epoch)


@torch.no_grad()
def _follow(learner: Learner) -> None:
    """Move the slow copy; running statistics are taken over."""
    for slow, fast in zip(learner.networks[1].parameters(), learner.networks[0].parameters()):
        slow.lerp_(fast, 1 - EMA_DECAY)
    for kept, current in zip(learner.networks[1].buffers(), learner.networks[0].buffers()):
        kept.copy_(current)


def _set_rate(learner: Learner, steps: int) -> None:
    """Linear warm-up over steps, cosine to 0 over epochs: a function of the cursor, so nothing has to be stored.

    A restart begins a schedule of its own.
    """
    cursor, choice = learner.cursor, learner.choice
    begins = [0, *learner.strategy.restarts(choice.epochs), choice.epochs]
    first = max(epoch for epoch in begins if epoch <= cursor.epoch)
    after = min(epoch for epoch in begins if epoch > cursor.epoch)
    rise = rise_share(cursor.steps - cursor.begun, choice.warmup)
    done = (cursor.epoch - first + cursor.step / max(steps, 1)) / (after - first)
    for group in learner.optimizer.param_groups:
        group["lr"] = choice.lr * group.get("share", 1.0) * rise * cosine_share(done)


def _finish(learner: Learner, hooks: Hooks, pairs: list[int]) -> dict[str, Any]:
    """Validate, keep the best, move on to the next epoch."""
    cursor = learner.cursor
    record: dict[str, Any] = {"epoch": cursor.epoch, "pairs": pairs}
    record["loss"] = [total / max(count, 1) for total, count in cursor.loss]
    record |= cursor.note | dict(hooks.validate(learner))
    select = float(record.get("select", cursor.epoch))
    if cursor.best is None or select > cursor.best[0]:
        cursor.best, learner.best = [select, cursor.epoch], learner.snapshot()
    cursor.history.append(record)
    cursor.epoch, cursor.step, cursor.judged, cursor.note = cursor.epoch + 1, 0, False, {}
    cursor.loss = [[0.0, 0.0] for _ in learner.trained]
    return record
