"""Towers give what pairs are made of; a network encodes both sides into one space and scales it by a temperature."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import Any, Protocol

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from noisycorr.models.training.choice import Train

MIN_TEMPERATURE = 0.01
MakeHeads = Callable[[int], Mapping[str, nn.Module]]
Request = tuple[np.ndarray, int | None]  # rows, and the epoch that their augmentation is a function of


class ImageTowers(Protocol):
    """Where images come from.

    Attributes:
        chunk: Rows that are encoded at once where nothing is trained.
        identity: JSON that changes when something that the result depends on does, beside the corpus and `Train`.
    """

    chunk: int
    identity: Mapping[str, Any]

    def image(self, rows: Tensor, epoch: int | None = None) -> Any:
        """The images of pairs `rows`, int64 (b,) on the CPU, as the network takes them.

        Args:
            rows: Pairs.
            epoch: Of the training, for which the pictures are augmented; None = as they are.
        """

    def expect(self, requests: Iterable[Request]) -> None:
        """What will be asked for next, in order, so that it can be loaded ahead. Only a hint."""


class Towers(ImageTowers, Protocol):
    """Where pairs come from, and which network encodes them: stored features, pictures with tokens, or regions."""

    def network(self, choice: Train, heads: MakeHeads) -> RetrievalNetwork:
        """A network for what these towers give; random weights come from the generator of torch.

        Args:
            choice: How to train.
            heads: Modules of the strategy for a width of the common space.
        """

    def text(self, rows: Tensor) -> Any:
        """Their texts, as the network takes them."""


class RetrievalNetwork(nn.Module):
    """What every network has: a learned temperature and the modules of a strategy. Subclasses encode.

    Attributes:
        sets: True if an encoded image is a set of vectors, of which all images together may not fit into memory.

    Args:
        temperature: First value of the learned temperature.
        heads: Modules of the strategy.
    """

    sets = False

    def __init__(self, *, temperature: float = 0.07, heads: Mapping[str, nn.Module] | None = None) -> None:
        super().__init__()
        self.log_temperature = nn.Parameter(torch.tensor(math.log(temperature)))
        self.heads = nn.ModuleDict(dict(heads or {}))

    @property
    def temperature(self) -> Float[Tensor, ""]:
        """What similarities are divided by, >= 0.01."""
        return self.log_temperature.exp().clamp(min=MIN_TEMPERATURE)

    def image(self, inputs: Any) -> Tensor:
        """Encoded images, one first-axis row each, of the same shape on every process."""
        raise NotImplementedError

    def text(self, inputs: Any) -> Tensor:
        """Encoded texts."""
        raise NotImplementedError

    def vectors(self, encoded: Tensor) -> Float[Tensor, "b d"]:
        """One unit row for each encoded image or text."""
        return encoded

    def similarity(self, image: Tensor, text: Tensor) -> Float[Tensor, "a b"]:
        """Similarity of every encoded image with every encoded text; here the cosine."""
        return self.vectors(image) @ self.vectors(text).T

    def set_window(self, size: int, rows: slice) -> None:
        """Which rows of the global batch the next features are."""
        for module in self.modules():
            if isinstance(module, RowDropout):
                module.window = (size, rows)

    def inherit(self, old: RetrievalNetwork) -> None:
        """Take over what describes the data and not what was learned, when a restart makes fresh networks."""

    def fixed(self) -> set[str]:
        """Names of weights that are never trained and that whoever builds the network has already."""
        return set()

    def facts(self) -> dict[str, Any]:
        """JSON that says how to build the network again."""
        raise NotImplementedError

    def _unit(self, rows: Tensor) -> Tensor:
        return functional.normalize(rows.to(self.log_temperature.dtype), dim=-1)  # halves would rank with ties


class StoredTowers:
    """Features that an encoder computed before; each picture was decoded once.

    Args:
        image: (n, d) in any float type; held as it is, cast when used.
        text: (n, e).
        device: Where batches go.
        dtype: Of the batches.
    """

    chunk = 4096
    identity: Mapping[str, Any] = MappingProxyType({})

    def __init__(self, image: np.ndarray, text: np.ndarray, *, device: torch.device, dtype: torch.dtype) -> None:
        if image.ndim != 2 or text.ndim != 2 or len(image) != len(text):
            raise ValueError(f"features have shapes {image.shape} and {text.shape}, expected (n, d) and (n, e)")
        self.image_dim, self.text_dim = image.shape[1], text.shape[1]
        self.device, self.dtype = device, dtype
        self._image, self._text = (torch.from_numpy(np.ascontiguousarray(x)) for x in (image, text))

    def __len__(self) -> int:
        return len(self._image)

    def network(self, choice: Train, heads: MakeHeads) -> Network:
        """Two heads of the widths of the features."""
        return Network(self.image_dim, self.text_dim, dim=choice.embed_dim, hidden=choice.hidden,
                       dropout=choice.dropout, temperature=choice.temperature,
                       heads=heads(choice.embed_dim))  # fmt: skip

    def expect(self, requests: Iterable[Request]) -> None:
        """Everything is at hand."""

    def image(self, rows: Tensor, epoch: int | None = None) -> Float[Tensor, "b d"]:
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

    def forward(self, x: Float[Tensor, "b ..."]) -> Float[Tensor, "b ..."]:
        """Units times 0, or 1 / (1 - share); as they are in evaluation mode."""
        if not self.training or not self.share:
            return x
        size, rows = self.window or (len(x), slice(None))
        kept = torch.rand(size, *x.shape[1:], device=x.device)[rows] >= self.share
        return x * kept / (1 - self.share)


class Network(RetrievalNetwork):
    """Two projection heads on features.

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
    """

    def __init__(self, image_dim: int, text_dim: int, *, dim: int = 256, hidden: int = 512, dropout: float = 0.0,
                 temperature: float = 0.07, heads: Mapping[str, nn.Module] | None = None) -> None:  # fmt: skip
        super().__init__(temperature=temperature, heads=heads)
        self.image_mean: Tensor
        self.image_std: Tensor
        self.text_mean: Tensor
        self.text_std: Tensor
        self.shape = {"image_dim": image_dim, "text_dim": text_dim, "dim": dim, "hidden": hidden}
        self.image_head, self.text_head = _head(image_dim, dim, hidden, dropout), _head(text_dim, dim, hidden, dropout)
        for side, width in (("image", image_dim), ("text", text_dim)):
            self.register_buffer(f"{side}_mean", torch.zeros(width))
            self.register_buffer(f"{side}_std", torch.ones(width))

    def standardise(self, image: Float[np.ndarray, "n d"], text: Float[np.ndarray, "n e"]) -> None:
        """Take mean and standard deviation of the training features."""
        for side, features in (("image", image), ("text", text)):
            wide = np.asarray(features, np.float64)
            std = wide.std(0)
            std[std < 1e-6 * max(std.max(), 1e-12)] = 1.0  # a feature that never changes says nothing
            getattr(self, f"{side}_mean").copy_(torch.from_numpy(wide.mean(0)))
            getattr(self, f"{side}_std").copy_(torch.from_numpy(std))

    def inherit(self, old: RetrievalNetwork) -> None:
        """Mean and standard deviation of the features."""
        for name in ("image_mean", "image_std", "text_mean", "text_std"):
            getattr(self, name).copy_(getattr(old, name))

    def image(self, features: Float[Tensor, "b f"]) -> Float[Tensor, "b d"]:
        """Unit rows of images."""
        return self._unit(self.image_head((features - self.image_mean) / self.image_std))

    def text(self, features: Float[Tensor, "b f"]) -> Float[Tensor, "b d"]:
        """Unit rows of texts."""
        return self._unit(self.text_head((features - self.text_mean) / self.text_std))

    def facts(self) -> dict[str, Any]:
        """Widths."""
        return {"kind": "heads", **self.shape}


def trained_weights(network: RetrievalNetwork) -> dict[str, Tensor]:
    """The weights of a network but those that are never trained."""
    fixed = network.fixed()
    return {name: value for name, value in network.state_dict().items() if name not in fixed}


def load_trained(network: RetrievalNetwork, weights: Mapping[str, Tensor]) -> None:
    """Take over what `trained_weights` gave.

    Raises:
        ValueError: If these are weights of another network.
    """
    found = network.load_state_dict(weights, strict=False)
    if wrong := sorted({*found.missing_keys, *found.unexpected_keys} - network.fixed()):
        raise ValueError(f"weights of another network: {wrong[0]} does not fit")


def _head(width: int, dim: int, hidden: int, dropout: float) -> nn.Module:
    if not hidden:
        return nn.Linear(width, dim)
    return nn.Sequential(nn.Linear(width, hidden), nn.GELU(), RowDropout(dropout), nn.Linear(hidden, dim))
