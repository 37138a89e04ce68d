"""Embeddings that someone else computed: nothing to run, only widths and an identity."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from noisycorr.runtime.errors import UsageError


@dataclass(slots=True)
class PrecomputedEncoder:
    """Stands where an encoder stands for a source that brings its own embeddings (see `DualEncoder`).

    Attributes:
        weights_hash: Identity of the embedding files.
        image_dim: Width of the image embeddings.
        text_dim: Width of the text embeddings.
        joint: Equal widths are taken for one joint space.
    """

    weights_hash: str
    image_dim: int
    text_dim: int
    name: str = "precomputed"
    preprocessing: str = "as the embeddings came"
    score_column: str | None = None
    joint: bool = field(init=False)

    def __post_init__(self) -> None:
        self.joint = self.image_dim == self.text_dim

    def preprocess(self, image: Image.Image) -> Tensor:
        """Not possible: there is no model."""
        raise UsageError("This source brings embeddings and no model; new images cannot be encoded with it.")

    def tokenize(self, texts: Sequence[str]) -> Any:
        """Not possible: there is no model."""
        raise UsageError("This source brings embeddings and no model; new texts cannot be encoded with it.")

    def image(self, images: Tensor) -> Tensor:
        """Not possible: there is no model."""
        raise UsageError("This source brings embeddings and no model; new images cannot be encoded with it.")

    def text(self, tokens: Any) -> Tensor:
        """Not possible: there is no model."""
        raise UsageError("This source brings embeddings and no model; new texts cannot be encoded with it.")

    def joint_space(self, image: np.ndarray, text: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Both as they are, if their widths agree."""
        if not self.joint:
            raise UsageError(
                f"The embeddings have widths {self.image_dim} (image) and {self.text_dim} (text): there is no joint "
                "space; use `align` cross-fit."
            )
        return image, text

    def to(self, device: torch.device) -> PrecomputedEncoder:
        """Nothing to move."""
        return self
