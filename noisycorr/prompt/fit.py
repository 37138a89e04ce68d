"""One round: learn a prompt from labelled and pseudo-labelled images."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from noisycorr.models.training.batches import stream_seed
from noisycorr.models.training.rate import cosine_share
from noisycorr.prompt.choice import Steps
from noisycorr.prompt.model import Prompted
from noisycorr.prompt.objective import (
    combine,
    early_learning,
    generalised_cross_entropy,
    part_weights,
    set_likelihood,
    soft_cross_entropy,
    update_bank,
)
from noisycorr.runtime import dist

PICTURES = 64  # images of one step where their pictures are encoded anew


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainSet:
    """What a round learns from: m images, each with one target; an image may come twice.

    Attributes:
        rows: int64 (m,).
        targets: float32 (m, c), rows sum to 1.
        weight: float32 (m,), trust in the target, >= 0.
        is_labelled: bool (m,): the label was given.
        is_set: bool (m,): the target is a set of candidates.
        transductive: Only unseen classes have pseudo-labels.
        one_round: The only round there is.
        allowed: bool (c,): classes of the softmax.
    """

    rows: np.ndarray
    targets: np.ndarray
    weight: np.ndarray
    is_labelled: np.ndarray
    is_set: np.ndarray
    transductive: bool = False
    one_round: bool = False
    allowed: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.rows)


def fit_round(
    model: Prompted, train_set: TrainSet, choice: Steps, *, number: int, slower: bool = False
) -> dict[str, float]:
    """Learn from a train_set, from where the model stands.

    Args:
        model: Changed in place.
        train_set: m >= 1 images.
        choice: How.
        number: Of the round; the order of the images is a function of seed, round and epoch alone.
        slower: A third of the learning rate, and gradients no longer than 1.

    Returns:
        `loss` of the last epoch, and `steps`.

    Raises:
        FloatingPointError: If the loss is no number any more.
    """
    parameters = list(model.weights().values())
    rate = choice.lr / 3 if slower else choice.lr
    clip = min(choice.grad_clip_norm or 1.0, 1.0) if slower else choice.grad_clip_norm
    optimizer = _optimizer(parameters, choice, rate)
    tensors = _tensors(train_set, parameters[0])
    parts = part_weights(choice.loss_weights, labelled=int(train_set.is_labelled.sum()),
                         pseudo=int((~train_set.is_labelled).sum()), one_round=train_set.one_round,
                         transductive=train_set.transductive)  # fmt: skip
    bank = torch.zeros_like(tensors["targets"])
    batches = max(1, math.ceil(len(train_set) / (choice.batch_size or len(train_set))))
    total = choice.epochs * batches
    steps, loss = 0, 0.0
    for epoch in range(choice.epochs):
        order = np.random.default_rng(stream_seed(choice.seed, "prompt", number, epoch)).permutation(len(train_set))
        losses = []
        for batch in np.array_split(order, batches):
            for group in optimizer.param_groups:
                group["lr"] = rate * cosine_share(steps / total, 0.1)
            value = _batch_loss(model, train_set, tensors, torch.from_numpy(batch), bank, choice, parts)
            if not torch.isfinite(value):
                raise FloatingPointError(f"the loss is {value.item()} in round {number + 1}: take a smaller `lr`.")
            optimizer.zero_grad()
            value.backward()
            dist.average_gradients(parameters)
            if clip:
                torch.nn.utils.clip_grad_norm_(parameters, clip)
            optimizer.step()
            losses.append(value.item() * len(batch))
            steps += 1
        loss = sum(losses) / len(train_set)
    return {"loss": loss, "steps": steps}


def logits_of(model: Prompted, rows: list[int], allowed: Tensor | None = None) -> Float[Tensor, "b c"]:
    """scale * cosine of images and classes; -inf for classes that are not allowed."""
    logits = model.scale * model.images(rows) @ model.classes().T
    return logits if allowed is None else logits.masked_fill(~allowed, float("-inf"))


def _batch_loss(model: Prompted, train_set: TrainSet, tensors: dict[str, Tensor], batch: Tensor,
                bank: Tensor, choice: Steps, parts: tuple[float, float] | None) -> Tensor:  # fmt: skip
    rows = train_set.rows[batch.numpy()].tolist()
    logits = logits_of(model, rows, tensors.get("allowed"))
    targets, where = tensors["targets"][batch], batch.to(logits.device)
    loss = per_image(logits, targets, choice, bank[where])
    if choice.loss == "elr":
        bank[where] = update_bank(bank[where], logits)
    if train_set.is_set.any():
        loss = torch.where(tensors["is_set"][batch], set_likelihood(logits, targets), loss)
    return combine(loss, tensors["weight"][batch], tensors["is_labelled"][batch], parts)


def per_image(logits: Tensor, targets: Tensor, choice: Steps, bank: Tensor) -> Float[Tensor, " b"]:
    """The loss that the choice names."""
    if choice.loss == "gce":
        return generalised_cross_entropy(logits, targets, q=choice.gce_q)
    if choice.loss == "mae":
        return generalised_cross_entropy(logits, targets, q=1.0)
    if choice.loss == "elr":
        return early_learning(logits, targets, bank)
    return soft_cross_entropy(logits, targets)


def _tensors(train_set: TrainSet, like: Tensor) -> dict[str, Tensor]:
    out = {
        "targets": torch.from_numpy(train_set.targets).to(like),
        "weight": torch.from_numpy(train_set.weight).to(like),
        "is_labelled": torch.from_numpy(train_set.is_labelled).to(like.device),
        "is_set": torch.from_numpy(train_set.is_set).to(like.device),
    }
    if train_set.allowed is not None:
        out["allowed"] = torch.from_numpy(train_set.allowed).to(like.device)
    return out


def _optimizer(parameters: list[Tensor], choice: Steps, rate: float) -> torch.optim.Optimizer:
    if choice.optimizer == "sgd":
        return torch.optim.SGD(parameters, lr=rate, momentum=0.9, weight_decay=choice.wd)
    return torch.optim.AdamW(parameters, lr=rate, weight_decay=choice.wd)
