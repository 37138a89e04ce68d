"""Networks: towers give features of pairs, two heads bring both sides into one space, a temperature scales it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Protocol

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

MIN_TEMPERATURE = 0.01


class Towers(Protocol):
    """Where features of pairs come from: stored ones, or a whole encoder that is trained along.

    Attributes:
        image_dim: Width of an image feature.
        text_dim: Width of a text feature.
        module: Parameters that are trained along, or None.
    """

    image_dim: int
    text_dim: int
    module: nn.Module | None

    def image(self, rows: Tensor) -> Float[Tensor, "b d"]:
        """Features of the images of pairs `rows`, int64 (b,) on the CPU."""

    def text(self, rows: Tensor) -> Float[Tensor, "b e"]:
        """Features of their texts."""


class StoredTowers:
    """Features that an encoder computed before; each picture was decoded once.

    Args:
        image: (n, d) in any float type; held as it is, cast when used.
        text: (n, e).
        device: Where batches go.
        dtype: Of the batches.
    """

    module: nn.Module | None = None

    def __init__(self, image: np.ndarray, text: np.ndarray, *, device: torch.device, dtype: torch.dtype) -> None:
        if image.ndim != 2 or text.ndim != 2 or len(image) != len(text):
            raise ValueError(f"features have shapes {image.shape} and {text.shape}, expected (n, d) and (n, e)")
        self.image_dim, self.text_dim = image.shape[1], text.shape[1]
        self.device, self.dtype = device, dtype
        self._image, self._text = (torch.from_numpy(np.ascontiguousarray(x)) for x in (image, text))

    def __len__(self) -> int:
        return len(self._image)

    def image(self, rows: Tensor) -> Float[Tensor, "b d"]:
        """Features of the images of pairs `rows`."""
        return self._image[rows].to(self.device, self.dtype)

    def text(self, rows: Tensor) -> Float[Tensor, "b e"]:
        """Features of their texts."""
        return self._text[rows].to(self.device, self.dtype)


class RowDropout(nn.Module):
    """Dropout whose mask belongs to the global batch: a process, or a part of a batch, takes its own rows of it.

    So two processes drop what one would, and a part that is encoded again drops the same units again.

    Args:
        share: Of the units, in [0, 1).
    """

    def __init__(self, share: float) -> None:
        super().__init__()
        self.share = share
        self.window: tuple[int, slice] | None = None  # rows of the global batch, and which of them come in

    def forward(self, x: Float[Tensor, "b h"]) -> Float[Tensor, "b h"]:
        """Units times 0, or 1 / (1 - share); as they are in evaluation mode."""
        if not self.training or not self.share:
            return x
        size, rows = self.window or (len(x), slice(None))
        kept = torch.rand(size, x.shape[1], device=x.device)[rows] >= self.share
        return x * kept / (1 - self.share)


class Network(nn.Module):
    """Two projection heads on features, a learned temperature, and whatever modules a strategy brings.

        v = unit(head((x - mean) / std))

    Mean and std are those of the training set, kept with the weights.

    Args:
        image_dim: Width of image features.
        text_dim: Width of text features.
        dim: Width d of the common space.
        hidden: Width of the hidden layer; 0 makes the heads linear.
        dropout: Share of hidden units that are dropped, in [0, 1).
        temperature: First value of the learned temperature.
        heads: Modules of the strategy.
        module: Trainable part of the towers, or None.
    """

    def __init__(self, image_dim: int, text_dim: int, *, dim: int = 256, hidden: int = 512, dropout: float = 0.0,
                 temperature: float = 0.07, heads: Mapping[str, nn.Module] | None = None,
                 module: nn.Module | None = None) -> None:  # fmt: skip
        super().__init__()
        self.image_mean: Tensor
        self.image_std: Tensor
        self.text_mean: Tensor
        self.text_std: Tensor
        self.image_head, self.text_head = _head(image_dim, dim, hidden, dropout), _head(text_dim, dim, hidden, dropout)
        self.log_temperature = nn.Parameter(torch.tensor(math.log(temperature)))
        self.heads = nn.ModuleDict(dict(heads or {}))
        self.towers = module
        for side, width in (("image", image_dim), ("text", text_dim)):
            self.register_buffer(f"{side}_mean", torch.zeros(width))
            self.register_buffer(f"{side}_std", torch.ones(width))

    @property
    def temperature(self) -> Float[Tensor, ""]:
        """What similarities are divided by, >= 0.01."""
        return self.log_temperature.exp().clamp(min=MIN_TEMPERATURE)

    def standardise(self, image: Float[np.ndarray, "n d"], text: Float[np.ndarray, "n e"]) -> None:
        """Take mean and standard deviation of the training features."""
        for side, features in (("image", image), ("text", text)):
            wide = np.asarray(features, np.float64)
            std = wide.std(0)
            std[std < 1e-6 * max(std.max(), 1e-12)] = 1.0  # a feature that never changes says nothing
            getattr(self, f"{side}_mean").copy_(torch.from_numpy(wide.mean(0)))
            getattr(self, f"{side}_std").copy_(torch.from_numpy(std))

    def set_window(self, size: int, rows: slice) -> None:
        """Which rows of the global batch the next features are."""
        for module in self.modules():
            if isinstance(module, RowDropout):
                module.window = (size, rows)

    def image(self, features: Float[Tensor, "b f"]) -> Float[Tensor, "b d"]:
        """Unit rows of images."""
        return self._unit(self.image_head((features - self.image_mean) / self.image_std))

    def text(self, features: Float[Tensor, "b f"]) -> Float[Tensor, "b d"]:
        """Unit rows of texts."""
        return self._unit(self.text_head((features - self.text_mean) / self.text_std))

    def similarity(self, image: Float[Tensor, "a d"], text: Float[Tensor, "b d"]) -> Float[Tensor, "a b"]:
        """Cosine of every image with every text; set-to-set towers would do more here."""
        return image @ text.T

    def _unit(self, rows: Tensor) -> Tensor:
        return functional.normalize(rows.to(self.log_temperature.dtype), dim=-1)  # halves would rank with ties


def _head(width: int, dim: int, hidden: int, dropout: float) -> nn.Module:
    if not hidden:
        return nn.Linear(width, dim)
    return nn.Sequential(nn.Linear(width, hidden), nn.GELU(), RowDropout(dropout), nn.Linear(hidden, dim))
