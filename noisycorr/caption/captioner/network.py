"""The network: a picture becomes a few tokens, its level one more, and a decoder writes the text behind them.

    memory = [G[level] * prefix((x - mean) / std), E[level]],    loss_i = - sum_t log p(w_t | w_<t, memory)

Source: NoC (Kang et al., ICCV 2023).
Differs: the level table E is trained; in the released code it belongs to no group of the optimiser. There is one more
level, `unscored`. A gate G of each level scales the visual tokens: it starts at the share of its pairs that are held to
be right, and is trained, so that a text that has nothing to do with its picture teaches language without it. Pictures
come as stored vectors of a frozen tower, which become several tokens.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional

from noisycorr.models.training.heads import RowDropout

SEEN = 4000  # pictures that mean and spread of the features are taken from
READ = 32  # of them whose pixels are held at once


class CaptionNetwork(nn.Module):
    """A captioner on stored image vectors, or grids of them.

    Args:
        decoder: `CrossDecoder` or `LanguageDecoder`.
        image_dim: Width f of an image vector.
        cells: Vectors of a picture; 1 = a single vector, which becomes `prefix_tokens` tokens.
        prefix_tokens: k.
        levels: L + 1 rows of the level table; 0 = without levels.
        gated: A level scales the visual tokens, too.
        tower: From pixels to `cells` vectors, trained along; None for stored vectors.
    """

    def __init__(self, decoder: Any, *, image_dim: int, cells: int, prefix_tokens: int, levels: int,
                 gated: bool = False, tower: nn.Module | None = None) -> None:  # fmt: skip
        super().__init__()
        self.image_mean: Tensor
        self.image_std: Tensor
        width = decoder.width
        self.decoder, self.cells, self.tower = decoder, cells, tower
        self.tokens = prefix_tokens if cells == 1 else cells
        self.prefix = nn.Linear(image_dim, width * (prefix_tokens if cells == 1 else 1))
        self.norm = nn.LayerNorm(width)
        nn.init.constant_(self.norm.weight, decoder.scale)
        self.nothing = nn.Parameter(torch.zeros(self.tokens, width))  # stands for a hidden picture
        self.level = nn.Embedding(levels, width) if levels else None
        if self.level is not None:
            nn.init.normal_(self.level.weight, std=decoder.scale)
        self.gate = nn.Parameter(torch.ones(levels, width)) if levels and gated else None
        self.register_buffer("image_mean", torch.zeros(image_dim))
        self.register_buffer("image_std", torch.ones(image_dim))

    def standardise(self, image: Any) -> None:
        """Take mean and standard deviation of the training features, (n, f) or more, of about `SEEN` of them."""
        rows = np.arange(0, len(image), max(1, len(image) // SEEN))
        if self.tower is not None:
            mean, std = self._seen(image, rows)
        else:
            some = np.asarray(image[rows])
            wide = np.asarray(some, np.float64).reshape(-1, some.shape[-1])
            mean, std = wide.mean(0), wide.std(0)
        std[std < 1e-6 * max(std.max(), 1e-12)] = 1.0  # a feature that never changes says nothing
        self.image_mean.copy_(torch.from_numpy(mean))
        self.image_std.copy_(torch.from_numpy(std))

    def _seen(self, image: Any, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Mean and standard deviation of what the tower makes of pixels, of which few are held at once.

        Source: the pairwise update of Chan, Golub and LeVeque (1983), block by block.
        """
        count, mean, square = 0, np.zeros(len(self.image_mean)), np.zeros(len(self.image_mean))
        for start in range(0, len(rows), READ):
            pixels = torch.from_numpy(np.array(image[rows[start : start + READ]])).to(self.image_mean.device)
            with torch.no_grad():
                wide = self.tower(pixels).flatten(0, 1).cpu().double().numpy()  # type: ignore[misc]
            total, gap = count + len(wide), wide.mean(0) - mean
            square += ((wide - wide.mean(0)) ** 2).sum(0) + gap**2 * count * len(wide) / total
            mean += gap * len(wide) / total
            count = total
        return mean, np.sqrt(square / count)

    @torch.no_grad()
    def dim(self, purity: Float[np.ndarray, " levels"]) -> None:
        """Let each level's gate start at the share of its pairs that are held to be right, in [0, 1]."""
        if self.gate is not None:
            self.gate.copy_(torch.from_numpy(np.asarray(purity, np.float64))[:, None].expand_as(self.gate))

    def memory(self, image: Float[Tensor, "b ..."], level: Int[Tensor, " b"] | None,
               hidden: Bool[Tensor, " b"] | None = None) -> Float[Tensor, "b m d"]:  # fmt: skip
        """What the decoder reads.

        Args:
            image: (b, f) vectors, or (b, cells, f); with a tower (b, 3, h, w) pixels.
            level: Of each row; None only without levels.
            hidden: Rows whose picture is not shown.
        """
        if self.tower is not None:
            image = self.tower(image)
        x = self.prefix((image - self.image_mean) / self.image_std)
        x = self.norm(x.view(len(x), self.tokens, len(self.norm.weight)))  # -1 could not be told of no rows
        if self.gate is not None:
            x = x * self.gate[level][:, None].to(x.dtype)
        if hidden is not None:
            x = torch.where(hidden[:, None, None], self.nothing.to(x.dtype), x)
        if self.level is None:
            return x
        return torch.cat([x, self.level(level)[:, None].to(x.dtype)], 1)

    def losses(self, memory: Float[Tensor, "b m d"], tokens: Int[Tensor, "b t"], length: Int[Tensor, " b"],
               ) -> Float[Tensor, " b"]:  # fmt: skip
        """Negative log-likelihood of each text, summed over its words and its end, in nats; 0 for an empty one."""
        place = torch.arange(1, tokens.shape[1], device=tokens.device)
        real = place < length[:, None]  # logits of padding would cost as much as those of words
        logits = self.decoder.guess(self.decoder.states(tokens[:, :-1], memory)[real])
        logits = logits if logits.dtype == torch.float64 else logits.float()
        found = functional.cross_entropy(logits, tokens[:, 1:][real], reduction="none")
        return found.new_zeros(real.shape).masked_scatter(real, found).sum(1)

    def set_window(self, size: int, rows: slice) -> None:
        """Which rows of the global batch come next, for dropout that does not depend on the number of processes."""
        for module in self.modules():
            if isinstance(module, RowDropout):
                module.window = (size, rows)
