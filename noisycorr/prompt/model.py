"""Towers with a prompt: what is learned, and class and image vectors that depend on it.

Work is shared between processes where it is dear: each encodes its classes and its images, then all have all of them,
with a gradient that is that of one process once gradients are averaged.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from noisycorr.prompt.text import ClassTexts
from noisycorr.prompt.vision import Vision
from noisycorr.runtime import dist

Pixels = Callable[[list[int]], Float[Tensor, "b 3 h w"]]
ENCODED = 64  # pictures of one forward pass


class Prompted(Protocol):
    """A dual encoder with something to learn.

    Attributes:
        scale: Logits are cosines times this.
        pictures_encoded: How often a picture went through the image tower here.
    """

    scale: float
    pictures_encoded: int

    def weights(self) -> dict[str, Tensor]:
        """What is learned, by name; the tensors themselves."""

    def classes(self) -> Float[Tensor, "c d"]:
        """Class vectors of unit length, with gradient."""

    def images(self, rows: list[int]) -> Float[Tensor, "b d"]:
        """Image vectors of unit length, with gradient where the prompt reaches them."""


class TextPrompt:
    """Learned vectors before class names, cached image features.

    Args:
        texts: The classes.
        start: Vectors to start from, (k, m, w): one for all classes, or one for each.
        features: Image vectors of unit length; rows of zeros where there is no image.
        scale: Logits are cosines times this.
    """

    def __init__(self, texts: ClassTexts, start: Float[Tensor, "k m w"], features: Float[Tensor, "n d"], *,
                 scale: float) -> None:  # fmt: skip
        self.texts, self.features, self.scale = texts, features, scale
        self.pictures_encoded = 0
        self.context = nn.Parameter(start.detach().clone())

    def weights(self) -> dict[str, Tensor]:
        """`context`."""
        return {"context": self.context}

    def classes(self) -> Tensor:
        """All classes through the text tower."""
        return shared_classes(self.texts, self.context)

    def images(self, rows: list[int]) -> Tensor:
        """From the cache."""
        return self.features[rows]


class ResidualPrompt:
    """A learned vector added to each class vector, behind the text tower: t_c + alpha r_c, at length 1.

    Args:
        classes: t, class vectors of unit length.
        features: Image vectors of unit length.
        scale: Logits are cosines times this.
        alpha: Weight of the residual.

    Source: TaskRes (Yu et al., CVPR 2023), whose alpha is 0.5 and which starts from r = 0.
    """

    def __init__(self, classes: Float[Tensor, "c d"], features: Float[Tensor, "n d"], *, scale: float,
                 alpha: float = 0.5) -> None:  # fmt: skip
        self._classes, self.features, self.scale, self._alpha = classes, features, scale, alpha
        self.pictures_encoded = 0
        self.residual = nn.Parameter(torch.zeros_like(classes))

    def weights(self) -> dict[str, Tensor]:
        """`residual`."""
        return {"residual": self.residual}

    def classes(self) -> Tensor:
        """No tower is asked."""
        return functional.normalize(self._classes + self._alpha * self.residual, dim=-1)

    def images(self, rows: list[int]) -> Tensor:
        """From the cache."""
        return self.features[rows]


class VisualPrompt:
    """Learned vectors among the patches; class vectors are fixed.

    Args:
        vision: The image tower.
        pixels: Preprocessed pictures by row.
        start: (l, m, w): a prompt for each layer that gets one.
        classes: Class vectors of unit length.
        scale: Logits are cosines times this.
    """

    def __init__(self, vision: Vision, pixels: Pixels, start: Float[Tensor, "l m w"], classes: Float[Tensor, "c d"], *,
                 scale: float) -> None:  # fmt: skip
        self.vision, self._pixels, self._classes, self.scale = vision, pixels, classes, scale
        self.pictures_encoded = 0
        self.tokens = nn.Parameter(start.detach().clone())

    def weights(self) -> dict[str, Tensor]:
        """`tokens`."""
        return {"tokens": self.tokens}

    def classes(self) -> Tensor:
        """As they came."""
        return self._classes

    def images(self, rows: list[int]) -> Tensor:
        """All pictures through the image tower."""
        self.pictures_encoded += len(rows)
        return shared_images(self.vision, self._pixels, self.tokens, rows)


class JointPrompt:
    """Vectors for both towers, made by one small network from vectors of its own.

    Args:
        maker: `UnifiedPrompt`, or any module that returns a text prompt (1, m, w) and a visual one (1, m, v).
        texts: The classes.
        vision: The image tower.
        pixels: Preprocessed pictures by row.
        scale: Logits are cosines times this.
    """

    def __init__(self, maker: nn.Module, texts: ClassTexts, vision: Vision, pixels: Pixels, *, scale: float) -> None:
        self.maker, self.texts, self.vision, self._pixels, self.scale = maker, texts, vision, pixels, scale
        self.pictures_encoded = 0

    def weights(self) -> dict[str, Tensor]:
        """Those of the small network."""
        return dict(self.maker.named_parameters())

    def classes(self) -> Tensor:
        """All classes through the text tower."""
        return shared_classes(self.texts, self.maker()[0])

    def images(self, rows: list[int]) -> Tensor:
        """All pictures through the image tower."""
        self.pictures_encoded += len(rows)
        return shared_images(self.vision, self._pixels, self.maker()[1], rows)


class UnifiedPrompt(nn.Module):
    """UPT: a text and a visual part through one attention block of width `inner`.

        A = a(text part), B = b(visual part), one pre-norm block over A and B, then back to the widths of the towers

    Args:
        text_width: Of the text tower.
        vision_width: Of the image tower.
        count: Vectors for each side.
        patch: Side of a patch in pixels, for the first visual vectors.
        attention: full lets all 2 * count vectors attend to each other, pair only the two of the same place.
        inner: Width of the block.

    Source: UPT (Zang et al., 2022) in the parameterisation of GRIP's released code.
    Differs: full is the published idea; the released code attends over pairs, because it joins along another axis.
    """

    def __init__(self, text_width: int, vision_width: int, *, count: int, patch: int, attention: str = "full",
                 inner: int = 128) -> None:  # fmt: skip
        super().__init__()
        bound = (6 / (3 * patch**2 + vision_width)) ** 0.5
        self.text_part = nn.Parameter(torch.randn(1, count, text_width) * 0.02)
        self.visual_part = nn.Parameter(torch.empty(1, count, vision_width).uniform_(-bound, bound))
        self.a, self.b = nn.Linear(text_width, inner), nn.Linear(vision_width, inner)
        self.block = nn.TransformerEncoderLayer(inner, nhead=1, dim_feedforward=4 * inner, dropout=0.0,
                                                activation="gelu", batch_first=True, norm_first=True)  # fmt: skip
        self.to_text, self.to_vision = nn.Linear(inner, text_width), nn.Linear(inner, vision_width)
        self.pairs, self.count = attention == "pair", count

    def forward(self) -> tuple[Float[Tensor, "1 m w"], Float[Tensor, "1 m v"]]:
        """Text and visual prompt."""
        both = torch.stack([self.a(self.text_part)[0], self.b(self.visual_part)[0]])  # (2, m, inner)
        if self.pairs:
            seen = self.block(both.transpose(0, 1)).transpose(0, 1)
        else:
            seen = self.block(both.reshape(1, 2 * self.count, -1)).reshape(2, self.count, -1)
        return self.to_text(seen[0])[None], self.to_vision(seen[1])[None]


def visual_start(layers: int, count: int, width: int, generator: torch.Generator) -> Float[Tensor, "l m w"]:
    """width^{-1/2} N(0, 1). Source: VPT as GRIP's released code initialises it."""
    return torch.randn(layers, count, width, generator=generator) * width**-0.5


def shared_classes(texts: ClassTexts, prompt: Float[Tensor, "k m w"]) -> Float[Tensor, "c d"]:
    """Class vectors, each process encoding its part of the classes."""
    mine = dist.my_slice(len(texts))
    local = texts(prompt, range(mine.start, mine.stop)) if dist.count() > 1 else texts(prompt)
    return dist.gather_with_gradient(local, len(texts))


def shared_images(vision: Vision, pixels: Pixels, prompt: Float[Tensor, "l m w"], rows: list[int]) -> Tensor:
    """Image vectors, each process encoding its part of the rows."""
    mine = rows[dist.my_slice(len(rows))]
    parts = [functional.normalize(vision(pixels(mine[at : at + ENCODED]), prompt), dim=-1)
             for at in range(0, len(mine), ENCODED)]  # fmt: skip
    local = torch.cat(parts) if parts else prompt.new_zeros((0, vision.dim))
    return dist.gather_with_gradient(local, len(rows))


def restore(model: Prompted, weights: Mapping[str, Tensor]) -> None:
    """Put learned tensors back, by value: the ones given stay untouched by further training.

    Raises:
        ValueError: If names or shapes are not those of the model.
    """
    own = model.weights()
    if {k: v.shape for k, v in own.items()} != {k: v.shape for k, v in weights.items()}:
        raise ValueError("the tensors are not those of this prompt")
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(weights[name])


def snapshot(model: Prompted) -> dict[str, Tensor]:
    """Copies of what is learned, in storage of their own."""
    return {name: tensor.detach().clone() for name, tensor in model.weights().items()}
