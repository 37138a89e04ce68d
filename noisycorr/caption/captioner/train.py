"""Train a captioner: next-word loss on all pairs, each with its level and its weight; resumable, one process or many.

    L = sum_i w_i sum_t CE_it / sum_i w_i n_i        over the global batch; w_i of the ledger, n_i words of text i

What is drawn in a step (order, hidden levels and pictures, dropout) is a function of seed, epoch and step alone.

Source: NoC (Kang et al., ICCV 2023) for levels; weighting and filtering are its baselines.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from safetensors.torch import load_file
from torch import Tensor
from torch.nn.utils import clip_grad_norm_

from noisycorr.caption.captioner.choice import CaptionTrain
from noisycorr.caption.captioner.network import CaptionNetwork
from noisycorr.models.training.batches import epoch_order, split_batches, stream_seed
from noisycorr.models.training.checkpoint import (
    checkpoints,
    load_optimizer,
    optimizer_tensors,
    store_checkpoint,
    store_tensors,
)
from noisycorr.models.training.rate import cosine_share, rise_share
from noisycorr.runtime import dist
from noisycorr.runtime.folder import read_json, write_json


@dataclass(frozen=True, kw_only=True)
class TrainSet:
    """Pairs to learn from, or to validate on. Holds no truth.

    Attributes:
        image: (n, f) stored vectors, or (n, cells, f), or pixels; an array, or `Some` rows of something large.
        tokens: (n, t), padded.
        length: (n,): numbers of a row that count; rows of length 0 are not allowed.
        level: (n,), or None without levels.
        weight: (n,), >= 0.
        share: (n,), how often a pair teaches in an epoch, in the mean; None = once.
        unscored: The level that hides a level.
        hide_level: Share of the pairs whose level is hidden in a step.
        hide_image: Share of the pairs whose picture is hidden in a step.
    """

    image: Any
    tokens: Int[np.ndarray, "n t"]
    length: Int[np.ndarray, " n"]
    level: Int[np.ndarray, " n"] | None
    weight: Float[np.ndarray, " n"]
    share: Float[np.ndarray, " n"] | None = None
    unscored: int = 0
    hide_level: float = 0.0
    hide_image: float = 0.0

    @property
    def per_epoch(self) -> int:
        """How many pairs an epoch draws."""
        return len(self.length) if self.share is None else max(2, round(float(self.share.sum())))


@dataclass
class Progress:
    """Where a training stands; JSON but for the weights of its best epoch."""

    epoch: int = 0
    step: int = 0
    steps: int = 0
    loss: list[float] = field(default_factory=lambda: [0.0, 0.0])
    best: list[float] | None = None
    history: list[dict[str, Any]] = field(default_factory=list)


class Trainer:
    """A network, its optimiser, and where they stand.

    Args:
        network: Changed in place.
        train_set: The training pairs.
        choice: How.
    """

    def __init__(self, network: CaptionNetwork, train_set: TrainSet, choice: CaptionTrain) -> None:
        self.network, self.train_set, self.choice = network, train_set, choice
        self.at = Progress()
        self.parameters = [p for p in network.parameters() if p.requires_grad]
        tower = {id(p) for p in network.tower.parameters()} if network.tower is not None else set()
        groups: list[dict[str, Any]] = []
        for lr, own in ((choice.lr, False), (choice.tower_lr, True)):
            some = [p for p in self.parameters if (id(p) in tower) == own]
            groups += [{"params": [p for p in some if p.ndim > 1], "weight_decay": choice.wd, "highest": lr},
                       {"params": [p for p in some if p.ndim < 2], "weight_decay": 0.0, "highest": lr}]  # fmt: skip
        self.optimizer = torch.optim.AdamW(
            [group for group in groups if group["params"]], lr=choice.lr,
            fused=network.image_mean.device.type in ("cpu", "cuda"),
        )  # fmt: skip
        self.best = self.snapshot()
        self.last: dict[str, Tensor] | None = None  # of the last epoch, at the end

    def snapshot(self) -> dict[str, Tensor]:
        """A copy of what is trained."""
        return {name: p.detach().clone() for name, p in self.network.named_parameters() if p.requires_grad}

    def load(self, weights: Mapping[str, Tensor]) -> None:
        """Take over a snapshot."""
        own = dict(self.network.named_parameters())
        with torch.no_grad():
            for name, value in weights.items():
                own[name].copy_(value)


@dataclass(frozen=True, kw_only=True)
class Hooks:
    """What happens around a training.

    Attributes:
        validate: Loss on validation pairs, by which the best epoch is selected (lower is better); None = the last.
        on_epoch: Called with the record of each epoch, its seconds and how many pairs it took in them.
        save: Called when a checkpoint is due.
        moved: Called with the number of pairs of each step.
    """

    validate: Callable[[CaptionNetwork], float] | None = None
    on_epoch: Callable[[Mapping[str, Any], float, int], Any] = lambda record, seconds, pairs: None
    save: Callable[[Trainer], Any] = lambda trainer: None
    moved: Callable[[int], Any] = lambda count: None


def fit(trainer: Trainer, hooks: Hooks | None = None) -> None:
    """Train to the end from wherever it stands; afterwards the network holds the weights of the best epoch.

    Raises:
        FloatingPointError: If the loss is NaN or infinite. The last checkpoint is as it was.
    """
    hooks, at, choice = hooks or Hooks(), trainer.at, trainer.choice
    with torch.random.fork_rng(devices=[]):
        while at.epoch < choice.epochs:
            started, pairs = time.perf_counter(), 0
            saved = started
            order = draw_rows(trainer.train_set, seed=choice.seed, epoch=at.epoch)
            batches = split_batches(order, choice.batch_size)
            while at.step < len(batches):
                take_step(trainer, batches[at.step], len(batches))
                pairs += len(batches[at.step - 1])
                hooks.moved(len(batches[at.step - 1]))
                if choice.save_every and at.step < len(batches) and time.perf_counter() - saved > choice.save_every:
                    hooks.save(trainer)
                    saved = time.perf_counter()
            seconds = time.perf_counter() - started
            record = _finish(trainer, hooks)
            hooks.save(trainer)
            hooks.on_epoch(record, seconds, pairs)
    trainer.last = trainer.snapshot()
    trainer.load(trainer.best)
    trainer.network.eval()


def draw_rows(train_set: TrainSet, *, seed: int, epoch: int) -> Int[np.ndarray, " m"]:
    """Pairs that teach in an epoch, in order: all, or m = `per_epoch` of them, each as often as its share says.

    Points u, u + 1, ... (u uniform in [0, 1)) are put on the shares laid end to end in a random order: the count of a
    pair is its share rounded down or up, and m is the same in each epoch.
    """
    order = epoch_order(len(train_set.length), seed=seed, epoch=epoch, stream="caption")
    if train_set.share is None:
        return order
    ends = np.cumsum(train_set.share[order])
    m = train_set.per_epoch
    points = np.random.default_rng(stream_seed(seed, "draw", epoch)).random() + np.arange(m)
    place = np.searchsorted(ends * (m / ends[-1]), points, side="right")
    return order[np.minimum(place, len(order) - 1)]


def take_step(trainer: Trainer, rows: np.ndarray, steps: int) -> None:
    """One step on a global batch; every process encodes its share."""
    at, choice = trainer.at, trainer.choice
    _set_rate(trainer, steps)
    trainer.optimizer.zero_grad(set_to_none=True)
    value = backward(trainer, rows)
    if not math.isfinite(value):
        raise FloatingPointError(f"the loss became {value} in epoch {at.epoch + 1}, step {at.step + 1}: lower `lr`; "
                                 "the checkpoint before it is intact")  # fmt: skip
    dist.average_gradients(trainer.parameters)
    if choice.grad_clip_norm:
        clip_grad_norm_(trainer.parameters, choice.grad_clip_norm)
    trainer.optimizer.step()
    at.loss = [at.loss[0] + value, at.loss[1] + 1]
    at.step, at.steps = at.step + 1, at.steps + 1


def backward(trainer: Trainer, rows: np.ndarray) -> float:
    """Gradient of the loss of a global batch, right after `average_gradients`; returns the loss of the whole batch."""
    train_set, network, at, seed = trainer.train_set, trainer.network, trainer.at, trainer.choice.seed
    here = dist.my_slice(len(rows))
    draw = np.random.default_rng(stream_seed(seed, "hide", at.epoch, at.step)).random((2, len(rows)))
    count = train_set.length[rows] - 1  # words and the end
    total = max(float((train_set.weight[rows] * count).sum()), 1e-12)
    network.train()
    network.set_window(len(rows), here)
    _seed(stream_seed(seed, "drop", at.epoch, at.step), network.image_mean.device)
    losses = _losses(network, train_set, rows, here, draw, trainer.choice.model_precision)
    weight = torch.from_numpy(train_set.weight[rows][here]).to(losses)
    part = (losses * weight).sum() / total
    (part * dist.count()).backward()
    return float(dist.gather(part.detach()[None], dist.count()).sum())


def _seed(seed: int, device: torch.device) -> None:
    """On a CPU without `torch.manual_seed`, which keeps a stack trace for other devices: milliseconds each time."""
    if device.type == "cpu":
        torch.default_generator.manual_seed(seed)
    else:
        torch.manual_seed(seed)


def _losses(network: CaptionNetwork, train_set: TrainSet, rows: np.ndarray, here: slice, draw: np.ndarray,
            precision: str) -> Tensor:  # fmt: skip
    """(b_local,) summed loss of each text of this process."""
    device, dtype = network.image_mean.device, network.image_mean.dtype
    longest = int(train_set.length[rows].max())  # of the global batch, so that dropout has the same shape everywhere
    mine = rows[here]
    image = torch.from_numpy(np.array(train_set.image[mine])).to(device, dtype)
    tokens, length = (torch.from_numpy(x[mine]).to(device) for x in (train_set.tokens[:, :longest], train_set.length))
    level = None
    if train_set.level is not None:
        shown = np.where(draw[0][here] < train_set.hide_level, train_set.unscored, train_set.level[mine])
        level = torch.from_numpy(shown).to(device)
    hidden = torch.from_numpy(draw[1][here] < train_set.hide_image).to(device) if train_set.hide_image else None
    with dist.autocast(precision):
        return network.losses(network.memory(image, level, hidden), tokens, length)


@torch.no_grad()
def text_losses(network: CaptionNetwork, train_set: TrainSet, *, precision: str = "fp32",
                batch_size: int = 256) -> Float[np.ndarray, " n"]:  # fmt: skip
    """Negative log-likelihood of each text of a train_set, in nats, nothing hidden."""
    network.eval()
    parts = []
    for start in range(0, len(train_set.length), batch_size):
        rows = np.arange(start, min(start + batch_size, len(train_set.length)))
        parts.append(_losses(network, train_set, rows, slice(None), np.ones((2, len(rows))), precision))
    return torch.cat(parts).double().cpu().numpy() if parts else np.zeros(0)


def word_loss(network: CaptionNetwork, train_set: TrainSet, precision: str = "fp32") -> float:
    """Mean negative log-likelihood of a word, in nats: the exponent of it is the perplexity."""
    return float(text_losses(network, train_set, precision=precision).sum() / max((train_set.length - 1).sum(), 1))


def _set_rate(trainer: Trainer, steps: int) -> None:
    """Linear warm-up, cosine to 0: a function of where the training stands."""
    at, choice = trainer.at, trainer.choice
    total = choice.epochs * steps
    rise = rise_share(at.steps, choice.warmup * total)
    for group in trainer.optimizer.param_groups:
        group["lr"] = group["highest"] * rise * cosine_share(at.steps / total)


def _finish(trainer: Trainer, hooks: Hooks) -> dict[str, Any]:
    at = trainer.at
    record: dict[str, Any] = {"epoch": at.epoch, "loss": at.loss[0] / max(at.loss[1], 1)}
    if hooks.validate is not None:
        record["valid_loss"] = hooks.validate(trainer.network)
    value = float(record.get("valid_loss", -at.epoch))
    if at.best is None or value < at.best[0]:
        at.best, trainer.best = [value, at.epoch], trainer.snapshot()
    at.history.append(record)
    at.epoch, at.step, at.loss = at.epoch + 1, 0, [0.0, 0.0]
    return record


def save_training(trainer: Trainer, folder: Path, *, keep: int) -> Path:
    """Write a checkpoint. Every process calls it; the main one writes."""

    def files(step: Path) -> None:
        store_tensors(step / "model.safetensors", trainer.snapshot())
        store_tensors(step / "best.safetensors", trainer.best)
        store_tensors(step / "optimizer.safetensors", optimizer_tensors(trainer.optimizer))
        write_json(step / "cursor.json", dataclasses.asdict(trainer.at))

    return store_checkpoint(folder, trainer.at.steps, files, keep=keep)


def continue_training(trainer: Trainer, folder: Path) -> Path | None:
    """Go on from the last whole checkpoint, if there is one.

    Raises:
        ValueError: If it holds other weights than this training has.
    """
    saved = checkpoints(folder)
    if not saved:
        return None
    latest, device = saved[-1], trainer.network.image_mean.device
    weights = load_file(latest / "model.safetensors", device=str(device))
    if {k: v.shape for k, v in weights.items()} != {k: v.shape for k, v in trainer.snapshot().items()}:
        raise ValueError(f"{latest} holds weights of another network than this training has")
    trainer.load(weights)
    trainer.best = load_file(latest / "best.safetensors", device=str(device))
    load_optimizer(trainer.optimizer, load_file(latest / "optimizer.safetensors"))
    trainer.at = Progress(**read_json(latest / "cursor.json"))
    return latest
