"""Networks on region features and words: GPO pools both into vectors, SGR and SAF compare the sets."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from noisycorr.models.training.choice import Train
from noisycorr.models.training.heads import MakeHeads, Request, RetrievalNetwork, RowDropout
from noisycorr.models.training.tune_choice import Regions
from noisycorr.retrieval.settoset import MOMENTUM, OrderedPooling, SetSimilarity, unit, xavier
from noisycorr.runtime import dist


class RegionTowers:
    """Region features and token ids by row.

    Args:
        images: Features (n, r, f) of each split, mapped into memory.
        place: int64 (m, 2): split and image of each pair.
        ids: m lists of token ids.
        vocabulary: How many ids there are.
        regions: Which network.
        device: Where batches go.
        dtype: Of the features.
        identity: What the result depends on.
    """

    chunk = 256

    def __init__(self, images: Sequence[np.ndarray], place: np.ndarray, ids: Sequence[Sequence[int]], vocabulary: int,
                 regions: Regions, *, device: torch.device, dtype: torch.dtype,
                 identity: Mapping[str, Any]) -> None:  # fmt: skip
        self.images, self.place, self.vocabulary, self.regions = images, place, vocabulary, regions
        self.device, self.dtype, self.identity = device, dtype, identity
        self._lengths = torch.tensor([min(len(row), regions.max_words) for row in ids])
        self._ids = torch.zeros(len(ids), int(self._lengths.max()), dtype=torch.int32)
        for row, (numbers, length) in enumerate(zip(ids, self._lengths.tolist())):
            self._ids[row, :length] = torch.tensor(numbers[:length], dtype=torch.int32)

    def __len__(self) -> int:
        return len(self._ids)

    def network(self, choice: Train, heads: MakeHeads) -> RegionNetwork:
        """GPO, SGR or SAF of these widths."""
        _, count, width = self.images[0].shape
        return RegionNetwork(self.regions, count=count, width=width, vocabulary=self.vocabulary, dim=choice.embed_dim,
                             dropout=choice.dropout, temperature=choice.temperature,
                             heads=heads(choice.embed_dim))  # fmt: skip

    def expect(self, requests: Iterable[Request]) -> None:
        """The system reads ahead by itself."""

    def image(self, rows: Tensor, epoch: int | None = None) -> Tensor:
        """Features (b, r, f)."""
        _, count, width = self.images[0].shape
        out = np.empty((len(rows), count, width), np.float32)
        for slot, (split, image) in enumerate(self.place[rows.numpy()]):
            out[slot] = self.images[split][image]
        return torch.from_numpy(out).to(self.device, self.dtype)

    def text(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Token ids (b, t), 0 is padding, and lengths (b,)."""
        return self._ids[rows].long().to(self.device), self._lengths[rows]


class RegionNetwork(RetrievalNetwork):
    """Regions and words to vectors (GPO) or to sets (SGR, SAF).

    Args:
        regions: Which similarity, and its widths.
        count: Regions of an image.
        width: Width of their features.
        vocabulary: How many token ids there are.
        dim: Width of the common space.
        dropout: Share of units dropped behind word vectors and in the self-attention, in [0, 1); published: 0.4.
        temperature: First value.
        heads: Modules of the strategy.
    """

    def __init__(self, regions: Regions, *, count: int, width: int, vocabulary: int, dim: int, dropout: float = 0.0,
                 temperature: float = 0.07, heads: Mapping[str, nn.Module] | None = None) -> None:  # fmt: skip
        super().__init__(temperature=temperature, heads=heads)
        self.shape = {"count": count, "width": width, "vocabulary": vocabulary, "dim": dim}
        self.regions, self.sets = regions, regions.region != "gpo"
        self.project = nn.Linear(width, dim)
        self.words = nn.Embedding(vocabulary, regions.word_dim)
        self.drop = RowDropout(dropout)
        self.walk = nn.GRU(regions.word_dim, dim, batch_first=True, bidirectional=True)
        if self.sets:
            self.look, self.read = Attention(dim, dropout, places=count), Attention(dim, dropout)
            self.compare = SetSimilarity(regions.region, dim, width=regions.sim_dim, chunk=regions.region_chunk)  # type: ignore[arg-type]
        else:
            self.image_pool, self.text_pool = OrderedPooling(), OrderedPooling()
        xavier(self)
        nn.init.uniform_(self.words.weight, -0.1, 0.1)

    def image(self, inputs: Float[Tensor, "b r f"]) -> Tensor:
        """(b, d), or for sets (b, 1 + r, d): the whole image, then its regions."""
        regions = self.project(inputs).to(self.log_temperature.dtype)
        mask = torch.ones(regions.shape[:2], dtype=torch.bool, device=regions.device)
        if not self.sets:
            return unit(self.image_pool(regions, mask)) if len(regions) else regions[:, 0]
        regions = unit(regions)
        return torch.cat([self.look(regions, mask)[:, None], regions], 1)

    def text(self, inputs: tuple[Tensor, Tensor]) -> Tensor:
        """(b, d), or for sets (b, 1 + t, d): the whole text, then its words; padding is zeros."""
        ids, lengths = inputs
        if not len(ids):
            shape = (0, 1 + ids.shape[1], self.shape["dim"]) if self.sets else (0, self.shape["dim"])
            return self.words.weight.new_zeros(shape)
        mask = torch.arange(ids.shape[1], device=ids.device) < lengths.to(ids.device)[:, None]
        packed = nn.utils.rnn.pack_padded_sequence(
            self.drop(self.words(ids)), lengths.cpu(), batch_first=True, enforce_sorted=False
        )
        both, _ = nn.utils.rnn.pad_packed_sequence(self.walk(packed)[0], batch_first=True, total_length=ids.shape[1])
        dim = self.shape["dim"]
        words = ((both[..., :dim] + both[..., dim:]) / 2).to(self.log_temperature.dtype)
        if not self.sets:
            return unit(self.text_pool(words, mask))
        words = unit(words) * mask[..., None]
        return torch.cat([self.read(words, mask)[:, None], words], 1)

    def vectors(self, encoded: Tensor) -> Float[Tensor, "b d"]:
        """The vector of the whole."""
        return encoded[:, 0] if self.sets else encoded

    def similarity(self, image: Tensor, text: Tensor) -> Float[Tensor, "a b"]:
        """Cosine of the pooled vectors, or in (0, 1) of the sets."""
        if not self.sets:
            return image @ text.T
        return self.compare(image, text, text[:, 1:].square().sum(-1) > 0)

    def facts(self) -> dict[str, Any]:
        """Widths."""
        return {"kind": "regions", "regions": vars(self.regions), **self.shape}


class Attention(nn.Module):
    """One vector of a set: its members, weighted by how they fit to their mean.

    Args:
        dim: Width.
        dropout: Share of units dropped.
        places: Members of every set, which have batch norms then (images); None = none (texts).

    Source: the self-attention of SGRAF (Diao et al., AAAI 2021).
    """

    def __init__(self, dim: int, dropout: float, *, places: int | None = None) -> None:
        super().__init__()
        self.member, self.mean, self.score = nn.Linear(dim, dim), nn.Linear(dim, dim), nn.Linear(dim, 1)
        self.drops = nn.ModuleList([RowDropout(dropout), RowDropout(dropout)])
        self.norms = nn.ModuleList([GlobalNorm(places), GlobalNorm(dim)]) if places else None

    def forward(self, x: Float[Tensor, "b t d"], mask: Bool[Tensor, "b t"]) -> Float[Tensor, "b d"]:
        """Unit rows."""
        share = mask[..., None] / mask.sum(1)[:, None, None]
        members, mean = self.member(x), self.mean((x * share).sum(1))
        if self.norms is not None:
            members, mean = self.norms[0](members), self.norms[1](mean)
        members, mean = self.drops[0](members.tanh()), self.drops[1](mean.tanh())
        logits = self.score(members * mean[:, None]).squeeze(-1).masked_fill(~mask, -torch.inf)
        return unit((logits.softmax(1)[..., None] * x).sum(1))


class GlobalNorm(nn.BatchNorm1d):
    """Batch norm over axis 1 whose statistics are of the global batch, whatever processes it is spread over."""

    def forward(self, x: Float[Tensor, "b c ..."]) -> Float[Tensor, "b c ..."]:
        """Normalised in training mode by this batch, else by the running statistics."""
        mean, var = self.running_mean, self.running_var
        if self.training:
            axes = [axis for axis in range(x.ndim) if axis != 1]
            count = dist.total_with_gradient(x.new_tensor([x.numel() / x.shape[1]]))
            mean = dist.total_with_gradient(x.sum(axes)) / count
            var = dist.total_with_gradient((x - self._wide(mean, x)).square().sum(axes)) / count
            with torch.no_grad():
                self.running_mean.lerp_(mean.detach(), MOMENTUM)  # type: ignore[union-attr]
                self.running_var.lerp_(var.detach() * count / (count - 1).clamp(min=1), MOMENTUM)  # type: ignore[union-attr]
        assert mean is not None and var is not None
        scale = self.weight / (var + self.eps).sqrt()
        return (x - self._wide(mean, x)) * self._wide(scale, x) + self._wide(self.bias, x)

    @staticmethod
    def _wide(values: Tensor, x: Tensor) -> Tensor:
        return values.view(1, -1, *[1] * (x.ndim - 2))
