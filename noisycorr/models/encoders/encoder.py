"""What every frozen pair of encoders offers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor


class DualEncoder(Protocol):
    """A frozen pair of encoders.

    Attributes:
        name: Model and weights revision; the part after `@` is the start of the SHA-256 of the weights.
        weights_hash: 16 hex digits over the weights; changes when any weight changes.
        preprocessing: What `preprocess` does, in words; part of the provenance of every score.
        image_dim: Length d of an image feature.
        text_dim: Length e of a text feature.
        joint: True if the cosine of an image and a text feature means alignment as it stands (CLIP, SigLIP).
        score_column: Name under which DataComp-like tools know this model's cosine, for example
            `clip_b32_similarity_score`; None if the model is not CLIP.
    """

    name: str
    weights_hash: str
    preprocessing: str
    image_dim: int
    text_dim: int
    joint: bool
    score_column: str | None

    def preprocess(self, image: Image.Image) -> Tensor:
        """One RGB picture of any size to a (3, h, w) tensor on the CPU, float32 or uint8. Safe in threads."""
        ...

    def tokenize(self, texts: Sequence[str]) -> Any:
        """Texts to a tensor, or a dict of tensors, on the CPU; long texts are cut. Safe in threads."""
        ...

    def image(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b d"]:
        """Stacked results of `preprocess` to float32 features on the encoder's device.

        CLIP-like models return rows of unit length, the embedded model its pooled features as they are.
        """
        ...

    def text(self, tokens: Any) -> Float[Tensor, "b e"]:
        """Result of `tokenize` to float32 features on the encoder's device, row by row in the order that came."""
        ...

    def joint_space(
        self, image: Float[np.ndarray, "n d"], text: Float[np.ndarray, "m e"]
    ) -> tuple[Float[np.ndarray, "n j"], Float[np.ndarray, "m j"]]:
        """Features whose dot product is a cosine in [-1, 1] that means alignment without training; higher = better.

        Args:
            image: Features from `image`; float16 is fine. Rows of zeros (no image) stay zeros.
            text: Features from `text`; the two need not have the same number of rows.

        Raises:
            UsageError: If this encoder has no such space, or the widths are not its own.
        """
        ...

    def to(self, device: torch.device) -> DualEncoder:
        """Move the weights in place and return the encoder itself."""
        ...


def encode_texts(encoder: DualEncoder, texts: Sequence[str], *, batch_size: int = 64) -> Float[np.ndarray, "k e"]:
    """Features of k >= 1 texts in float32, some at a time."""
    parts = (texts[start : start + batch_size] for start in range(0, len(texts), batch_size))
    return np.concatenate([encoder.text(encoder.tokenize(part)).float().cpu().numpy() for part in parts])
