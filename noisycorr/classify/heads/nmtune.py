"""NMTune: a small residual network on frozen features of an encoder that may have learned from wrong pairs.

    h(f) = Linear(d, r d) -> BatchNorm -> ReLU -> Linear(r d, d)
    z    = s * h(k f) + k f              k one number for all features, s learned, one for each of d
    o    = W z + b

    loss = cross-entropy + w_consistency L_MSE + w_covariance L_COV + w_dominance L_SVD      (losses.py)

With one view of each row z and f are of the same view; with two, both are classified, and z of the second is kept near
f of the first. The linear probe is o = W k f + b; the plain adapter is the same network with all three weights 0.

Source: Chen et al., Understanding and Mitigating the Label Noise in Pre-training on Downstream Tasks, ICLR 2024; an
adapter that starts from the linear probe: Kumar et al., Fine-Tuning can Distort Pretrained Features, ICLR 2022.
Differs: W and b start from a linear probe on the same rows, and s small, so that few labels are not spent on undoing a
random start; features are brought to a common length first, since L_COV grows with its fourth power; one view by
default.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional

from noisycorr.classify.heads.choice import NMTune
from noisycorr.classify.heads.losses import dominant_values, feature_consistency, feature_covariance
from noisycorr.models.training.batches import epoch_order, split_batches, stream_seed
from noisycorr.models.training.checkpoint import load_optimizer, optimizer_tensors
from noisycorr.models.training.rate import cosine_share
from noisycorr.runtime.folder import atomic_path

PREDICTED = 4096  # rows at once


class Adapter(nn.Module):
    """The network; the linear probe is one without hidden units.

    Args:
        dim: d, width of the features.
        classes: c.
        ratio: Hidden units per number of a feature; 0 = linear probe.
        res_init: First value of the scale s.
    """

    def __init__(self, dim: int, classes: int, *, ratio: int, res_init: float) -> None:
        super().__init__()
        self.feature_scale: Tensor
        self.register_buffer("feature_scale", torch.ones(()))
        self.hidden = None
        if ratio:
            self.hidden = nn.Sequential(
                nn.Linear(dim, ratio * dim), nn.BatchNorm1d(ratio * dim), nn.ReLU(), nn.Linear(ratio * dim, dim)
            )
            self.scale = nn.Parameter(torch.full((1, dim), res_init))
        self.head = nn.Linear(dim, classes)
        nn.init.kaiming_uniform_(self.head.weight, nonlinearity="linear")
        nn.init.zeros_(self.head.bias)

    def features(self, raw: Float[Tensor, "b d"]) -> Float[Tensor, "b d"]:
        """z, from features as the encoder gives them."""
        scaled = raw * self.feature_scale
        return scaled if self.hidden is None else self.scale * self.hidden(scaled) + scaled

    def forward(self, raw: Float[Tensor, "b d"]) -> Float[Tensor, "b c"]:
        """Logits."""
        return self.head(self.features(raw))


def feature_scale(features: Float[np.ndarray, "n d"], rms: float) -> float:
    """k with sqrt(mean_i |k f_i|^2) = rms; 1 for rms = 0 or features that are all zero."""
    length = math.sqrt(float(np.mean(np.square(np.asarray(features, np.float64)).sum(1)))) if len(features) else 0.0
    return rms / length if rms and length > 0 else 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class TuneData:
    """n rows to tune on.

    Attributes:
        features: (n, d), finite.
        labels: int (n,), each of 0 to classes - 1.
        classes: c >= 2.
        second: (n, d) features of other views of the same rows, or None.
    """

    features: Float[np.ndarray, "n d"]
    labels: Int[np.ndarray, " n"]
    classes: int
    second: Float[np.ndarray, "n d"] | None = None


def tune_loss(network: Adapter, choice: NMTune, first: Float[Tensor, "b d"], second: Float[Tensor, "b d"] | None,
              labels: Int[Tensor, " b"]) -> tuple[Tensor, dict[str, Tensor]]:  # fmt: skip
    """The loss of one batch, and its parts.

    Args:
        network: In training mode.
        choice: Weights; a term of weight 0 is not computed.
        first: Frozen features of the first view.
        second: Of the second, or None for one view.
        labels: Of the rows.
    """
    given = first if second is None else torch.cat([first, second])
    tuned = network.features(given)
    target = labels if second is None else torch.cat([labels, labels])
    cross_entropy = functional.cross_entropy(network.head(tuned), target, label_smoothing=choice.smoothing)
    parts, loss = {"cross_entropy": cross_entropy}, cross_entropy
    if network.hidden is None:
        return loss, parts
    if choice.w_consistency:
        parts["consistency"] = feature_consistency(tuned[-len(first) :], first, reduction=choice.consistency)
        loss = loss + choice.w_consistency * parts["consistency"]
    if choice.w_covariance:
        parts["covariance"] = feature_covariance(tuned)
        loss = loss + choice.w_covariance * parts["covariance"]
    if choice.w_dominance:
        parts["dominance"] = dominant_values(tuned, topk=choice.svd_topk)
        loss = loss + choice.w_dominance * parts["dominance"]
    return loss, parts


def fit_head(data: TuneData, choice: NMTune, method: str, *, checkpoint: Path | None = None,
             on_epoch: Callable[[int, dict[str, float]], None] | None = None) -> Adapter:  # fmt: skip
    """Tune one head. Same data and settings: same weights, also if it was killed and continued from `checkpoint`.

    Args:
        data: The rows.
        choice: Settings.
        method: linear, mlp or nmtune.
        checkpoint: File that is written after each epoch and continued from if it is there; None = none.
        on_epoch: Called after each epoch with its number from 0 and the mean parts of the loss.

    Returns:
        The head after the last epoch, in evaluation mode.

    Raises:
        FloatingPointError: If the loss is not finite.
    """
    choice = plain_weights(choice) if method == "mlp" else choice
    network = new_head(data, choice, method)
    if network.hidden is not None and choice.start == "linear" and not (checkpoint is not None and checkpoint.exists()):
        network.head.load_state_dict(fit_head(data, choice, "linear").head.state_dict())
    rate = choice.linear_lr if method == "linear" else choice.lr
    optimizer = torch.optim.AdamW(network.parameters(), lr=rate, weight_decay=choice.wd)
    views = [torch.from_numpy(np.ascontiguousarray(x, np.float32)) for x in (data.features, data.second)
             if x is not None]  # fmt: skip
    labels = torch.from_numpy(np.asarray(data.labels, np.int64))
    start = _continue(network, optimizer, checkpoint)
    network.train()
    for epoch in range(start, choice.epochs):
        batches = split_batches(epoch_order(len(labels), seed=choice.seed, epoch=epoch), choice.batch_size)
        total: dict[str, float] = {}
        for step, rows in enumerate(batches):
            done = (epoch + step / len(batches)) / choice.epochs
            for group in optimizer.param_groups:
                group["lr"] = rate * cosine_share(done)
            row = torch.from_numpy(rows)
            loss, parts = tune_loss(network, choice, views[0][row], views[1][row] if len(views) > 1 else None,
                                    labels[row])  # fmt: skip
            if not torch.isfinite(loss):
                raise FloatingPointError(f"{method}: the loss is not finite in epoch {epoch + 1}; lower `lr`")
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            for name, value in parts.items():
                total[name] = total.get(name, 0.0) + float(value.detach()) * len(rows) / len(labels)
        if checkpoint is not None:
            _store(network, optimizer, checkpoint, epoch + 1)
        if on_epoch is not None:
            on_epoch(epoch, total)
    return network.eval()


def plain_weights(choice: NMTune) -> NMTune:
    """The same settings without the three terms."""
    weights = {"w_consistency": 0.0, "w_covariance": 0.0, "w_dominance": 0.0}
    return NMTune(**{**vars(choice), **weights})


def new_head(data: TuneData, choice: NMTune, method: str) -> Adapter:
    """A head with its first weights, which are the same for mlp and nmtune."""
    generator_state = torch.random.get_rng_state()
    try:
        torch.manual_seed(stream_seed(choice.seed, "nmtune", "linear" if method == "linear" else "adapter") % 2**63)
        ratio = 0 if method == "linear" else choice.ratio
        network = Adapter(data.features.shape[1], data.classes, ratio=ratio, res_init=choice.res_init)
    finally:
        torch.random.set_rng_state(generator_state)
    network.feature_scale.fill_(feature_scale(data.features, choice.feature_rms))
    return network


@torch.no_grad()
def apply_head(network: Adapter, features: Float[np.ndarray, "n d"]) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities (n, c) and tuned features (n, d), both float32."""
    network.eval()
    chances, tuned = [], []
    for start in range(0, len(features), PREDICTED):
        part = torch.from_numpy(np.ascontiguousarray(features[start : start + PREDICTED], np.float32))
        found = network.features(part)
        tuned.append(found.numpy())
        chances.append(network.head(found).softmax(1).numpy())
    if not chances:
        return np.zeros((0, network.head.out_features), np.float32), np.zeros((0, network.head.in_features), np.float32)
    return np.concatenate(chances), np.concatenate(tuned)


def save_head(network: Adapter, path: Path) -> None:
    """Write one safetensors file; `load_head` needs nothing else."""
    with atomic_path(path) as temporary:
        save_file({name: value.contiguous() for name, value in network.state_dict().items()}, temporary)


def load_head(path: Path) -> Adapter:
    """The head that `save_head` wrote, in evaluation mode."""
    state = load_file(path)
    classes, dim = state["head.weight"].shape
    ratio = len(state["hidden.0.weight"]) // dim if "hidden.0.weight" in state else 0
    network = Adapter(dim, classes, ratio=ratio, res_init=1.0)
    network.load_state_dict(state)
    return network.eval()


def _store(network: Adapter, optimizer: torch.optim.Optimizer, path: Path, epochs: int) -> None:
    tensors = {f"network.{name}": value for name, value in network.state_dict().items()}
    tensors |= {f"optimizer.{name}": value for name, value in optimizer_tensors(optimizer).items()}
    with atomic_path(path) as temporary:
        save_file({k: v.detach().contiguous() for k, v in tensors.items()}, temporary, {"epochs": str(epochs)})


def _continue(network: Adapter, optimizer: torch.optim.Optimizer, path: Path | None) -> int:
    """Epochs that are done already; network and optimizer are as they were after them."""
    if path is None or not path.exists():
        return 0
    with safe_open(path, framework="pt") as file:
        epochs = int((file.metadata() or {"epochs": "0"})["epochs"])
    tensors = load_file(path)
    network.load_state_dict(_under("network.", tensors))
    load_optimizer(optimizer, _under("optimizer.", tensors))
    return epochs


def _under(start: str, tensors: Mapping[str, Any]) -> dict[str, Any]:
    return {name.removeprefix(start): value for name, value in tensors.items() if name.startswith(start)}
