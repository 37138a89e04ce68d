"""A tiny encoder for tests: random but fixed weights, no download, thousands of pairs a second.

It knows nothing of language or pictures. Its features still carry information (colour and coarse layout; which words
stand in a text), so that a map between the two sides can be learned from data, but no cosine means anything by itself.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import xxhash
from jaxtyping import Float, Int, UInt8
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional

from noisycorr.models.encoders.frozen import freeze, frozen_forward, hash_weights
from noisycorr.runtime.errors import UsageError

SIDE, CHANNELS, GRID = 32, 16, 2
BUCKETS, TEXT_DIM, MAX_WORDS = 4096, 48, 64


class TinyEncoder:
    """A seeded convolution on 32 x 32 pixels and a hashed bag of words. For tests only; see `DualEncoder`."""

    joint = False

    def __init__(self, *, dtype: torch.dtype | None = None, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.convolution = nn.Conv2d(3, CHANNELS, 5, stride=4)
        self.words = nn.Embedding(BUCKETS, TEXT_DIM, padding_idx=0)
        with torch.no_grad():
            for weight in (self.convolution.weight, self.convolution.bias, self.words.weight):
                if weight is not None:
                    weight.normal_(generator=generator)
            self.words.weight[0] = 0
        self.towers = freeze(nn.ModuleDict({"image": self.convolution, "text": self.words}))
        digest = hash_weights(self.towers.state_dict())
        self.name = f"tiny@{digest[:12]}"
        self.weights_hash = digest[:16]
        self.preprocessing = f"squash to {SIDE}x{SIDE}, bilinear, x / 127.5 - 1"
        self.image_dim = CHANNELS * GRID * GRID
        self.text_dim = TEXT_DIM
        self.score_column: str | None = None
        self.device = torch.device("cpu")
        self.dtype = dtype

    def preprocess(self, image: Image.Image) -> UInt8[Tensor, "3 32 32"]:
        """One picture, squashed to 32 x 32."""
        pixels = np.asarray(image.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BILINEAR))
        return torch.from_numpy(pixels.transpose(2, 0, 1).copy())

    def tokenize(self, texts: Sequence[str]) -> Int[Tensor, "b t"]:
        """Hashes of the first 64 words in lower case; 0 is padding."""
        hashed = [
            [xxhash.xxh32_intdigest(word.encode()) % (BUCKETS - 1) + 1 for word in text.lower().split()[:MAX_WORDS]]
            for text in texts
        ]
        tokens = torch.zeros(len(texts), max((len(row) for row in hashed), default=0), dtype=torch.long)
        for row, words in enumerate(hashed):
            tokens[row, : len(words)] = torch.tensor(words, dtype=torch.long)
        return tokens

    def image(self, images: Tensor) -> Float[Tensor, "b d"]:
        """Pooled responses of the convolution, 64 numbers >= 0, not normalised."""
        with frozen_forward(self.device, self.dtype):
            pixels = images.to(self.device).float() / 127.5 - 1
            response = self.convolution(pixels).relu().float()
            return functional.adaptive_avg_pool2d(response, GRID).flatten(1)

    def text(self, tokens: Int[Tensor, "b t"]) -> Float[Tensor, "b e"]:
        """Sum of the word vectors, scaled to length 1; a text without words gives zeros."""
        with frozen_forward(self.device, self.dtype):
            return functional.normalize(self.words(tokens.to(self.device)).sum(dim=1), dim=-1)

    def joint_space(self, image: np.ndarray, text: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """There is none.

        Raises:
            UsageError: Always.
        """
        raise UsageError(
            f"the encoder 'tiny' has random weights: its image ({self.image_dim}) and text ({self.text_dim}) features "
            "share no space before something is learned; use a learned score, or the encoder 'embedded'"
        )

    def to(self, device: torch.device) -> TinyEncoder:
        """Move the weights in place."""
        self.towers.to(device)
        self.device = device
        return self
