"""A transformer decoder that reads a picture by cross-attention, from scratch, with a cache for writing.

Source: NoC / VirTex: token and position embeddings, layers of causal self-attention, cross-attention and a
feed-forward network with GELU, output weights tied to the token embedding.
Differs: layers normalise before each part by default (`norm_first`); positions of padding are not zeroed, they come
after everything that counts and are never looked at.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from noisycorr.models.training.heads import RowDropout

Cache = list[dict[str, Tensor]]


class Attention(nn.Module):
    """Multi-head attention of queries (b, t, d) to a source (b, m, d)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.out = nn.Linear(width, width), nn.Linear(width, width)
        self.key_value = nn.Linear(width, 2 * width)

    def split(self, x: Tensor) -> Tensor:
        """(b, t, d) to (b, heads, t, d / heads)."""
        return x.unflatten(2, (self.heads, -1)).transpose(1, 2)

    def source(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of what is looked at."""
        key, value = self.key_value(x).chunk(2, dim=2)
        return self.split(key), self.split(value)

    def forward(self, x: Tensor, key: Tensor, value: Tensor, *, causal: bool = False) -> Tensor:
        """(b, t, d). With `causal` a query sees its own place and those before."""
        mixed = functional.scaled_dot_product_attention(self.split(self.query(x)), key, value, is_causal=causal)
        return self.out(mixed.transpose(1, 2).flatten(2))


class Layer(nn.Module):
    """Self-attention, cross-attention, feed-forward."""

    def __init__(self, width: int, heads: int, dropout: float, norm_first: bool) -> None:
        super().__init__()
        self.norm_first = norm_first
        self.own, self.cross = Attention(width, heads), Attention(width, heads)
        self.wide = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(3))
        self.drops = nn.ModuleList(RowDropout(dropout) for _ in range(3))

    def forward(self, x: Tensor, memory: Tensor | None, cache: dict[str, Tensor]) -> Tensor:
        """(b, t, d). `cache` keeps keys and values of the steps before and of the memory, and is filled."""

        def own(y: Tensor) -> Tensor:
            key, value = self.own.source(y)
            first = "key" not in cache
            if not first:
                key, value = torch.cat([cache["key"], key], 2), torch.cat([cache["value"], value], 2)
            cache["key"], cache["value"] = key, value
            return self.own(y, key, value, causal=first and y.shape[1] > 1)

        def cross(y: Tensor) -> Tensor:
            if "memory_key" not in cache:
                assert memory is not None
                cache["memory_key"], cache["memory_value"] = self.cross.source(memory)
            return self.cross(y, cache["memory_key"], cache["memory_value"])

        parts: tuple[Callable[[Tensor], Tensor], ...] = (own, cross, self.wide)
        for part, norm, drop in zip(parts, self.norms, self.drops):
            x = x + drop(part(norm(x))) if self.norm_first else norm(x + drop(part(x)))
        return x


class CrossDecoder(nn.Module):
    """Next-word logits from the words before and a memory.

    Args:
        size: Of the vocabulary.
        width: d.
        layers: How many.
        heads: Of each attention.
        longest: Most tokens of a text, with start and end.
        dropout: After each part.
        norm_first: See `Design`.
    """

    def __init__(self, size: int, *, width: int, layers: int, heads: int, longest: int, dropout: float,
                 norm_first: bool) -> None:  # fmt: skip
        super().__init__()
        self.width, self.scale = width, 1.0
        self.token, self.position = nn.Embedding(size, width), nn.Embedding(longest, width)
        self.first, self.drop = nn.LayerNorm(width), RowDropout(dropout)
        self.layers = nn.ModuleList(Layer(width, heads, dropout, norm_first) for _ in range(layers))
        self.last = nn.LayerNorm(width) if norm_first else nn.Identity()
        self.bias = nn.Parameter(torch.zeros(size))
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)
            if isinstance(module, nn.Linear):
                nn.init.zeros_(module.bias)

    def forward(self, tokens: Int[Tensor, "b t"], memory: Float[Tensor, "b m d"] | None,
                cache: Cache | None = None) -> Float[Tensor, "b t v"]:  # fmt: skip
        """Logits of the word after each of these.

        Args:
            tokens: All words so far; with a filled cache only those that are new.
            memory: Visual tokens and level; not needed with a filled cache.
            cache: From `new_cache`; filled.
        """
        return self.guess(self.states(tokens, memory, cache))

    def states(self, tokens: Int[Tensor, "b t"], memory: Float[Tensor, "b m d"] | None,
               cache: Cache | None = None) -> Float[Tensor, "b t d"]:  # fmt: skip
        """What `guess` tells the next word from; arguments of `forward`."""
        cache = self.new_cache() if cache is None else cache
        done = cache[0]["key"].shape[2] if "key" in cache[0] else 0
        place = torch.arange(done, done + tokens.shape[1], device=tokens.device)
        x = self.drop(self.first(self.token(tokens) + self.position(place)))
        for layer, kept in zip(self.layers, cache):
            x = layer(x, memory, kept)
        return self.last(x)

    def guess(self, states: Float[Tensor, "... d"]) -> Float[Tensor, "... v"]:
        """Logits of the next word."""
        return functional.linear(states, self.token.weight, self.bias)

    def new_cache(self) -> Cache:
        """An empty cache."""
        return [{} for _ in self.layers]

    def reorder(self, cache: Any, rows: Tensor) -> Any:
        """The cache of some rows, for beams that branch and end."""
        return [{name: kept[rows] for name, kept in layer.items()} for layer in cache]
