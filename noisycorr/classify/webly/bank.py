"""Modules of prototype methods: projector, queue of keys, prototypes that follow their classes, a cosine head."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional


class Projector(nn.Module):
    """Features to unit rows of the space of prototypes: norm(W2 relu(W1 v)).

    Args:
        dim: Width of the features.
        hidden: Width of the hidden layer; 0 = linear.
        space: p.
    """

    def __init__(self, dim: int, hidden: int, space: int) -> None:
        super().__init__()
        body = [nn.Linear(dim, hidden), nn.ReLU(), nn.Linear(hidden, space)] if hidden else [nn.Linear(dim, space)]
        self.body = nn.Sequential(*body)

    def forward(self, v: Float[Tensor, "b d"]) -> Float[Tensor, "b p"]:
        """Unit rows."""
        return functional.normalize(self.body(v), dim=1)


class CosineHead(nn.Module):
    """Logits of unit rows: scale times the cosine with a weight for each class.

    Args:
        space: p.
        classes: c.
        scale: Of the logits.
        faithful: Weights as they are and no scale, as released, where their normalisation did nothing.
    """

    def __init__(self, space: int, classes: int, *, scale: float = 10.0, faithful: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(classes, space) / space**0.5)
        self.scale, self.faithful = scale, faithful

    def forward(self, z: Float[Tensor, "b p"]) -> Float[Tensor, "b c"]:
        """Logits."""
        return z @ self.weight.T if self.faithful else self.scale * (z @ functional.normalize(self.weight, dim=1).T)


class Queue(nn.Module):
    """The last keys, and whose they are. Written in two parts where it wraps round, so any batch size will do.

    Args:
        size: q.
        space: p.
    """

    def __init__(self, size: int, space: int) -> None:
        super().__init__()
        self.keys: Tensor
        self.rows: Tensor
        self.pushed: Tensor
        self.register_buffer("keys", torch.zeros(size, space))
        self.register_buffer("rows", torch.full((size,), -1))
        self.register_buffer("pushed", torch.zeros(1, dtype=torch.int64))

    def read(self) -> tuple[Float[Tensor, "m p"], Int[Tensor, " m"]]:
        """Copies of the keys that are there, m <= q, and of their rows."""
        count = min(int(self.pushed), len(self.keys))
        return self.keys[:count].clone(), self.rows[:count].clone()

    @torch.no_grad()
    def push(self, keys: Float[Tensor, "b p"], rows: Int[Tensor, " b"]) -> None:
        """Replace the oldest. Of more keys than there are places the last stay."""
        size = len(self.keys)
        place = (int(self.pushed) + torch.arange(len(keys), device=keys.device))[-size:] % size
        self.keys[place], self.rows[place] = keys[-size:].detach(), rows[-size:]
        self.pushed += len(keys)


class Prototypes(nn.Module):
    """A unit row for each class, and for tags two: of samples that do not have it, and of those that do.

    They begin as the mean of trusted samples, collected over one pass, or as zeros, and follow their samples.

    Args:
        shape: (c, p), or (c, 2, p).
    """

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.rows: Tensor
        self.total: Tensor
        self.ready: Tensor
        self.register_buffer("rows", torch.zeros(shape))
        self.register_buffer("total", torch.zeros(2, *shape))  # of trusted samples, and of all
        self.register_buffer("ready", torch.zeros(1))

    @torch.no_grad()
    def collect(self, z: Float[Tensor, "b *c p"], place: Int[Tensor, "b *c"], trusted: Bool[Tensor, "b *c"]) -> None:
        """Add samples of a pass: z (b, p) with classes (b,), or z (b, c, p) with tags (b, c) in {0, 1, -1 = none}."""
        for number, mask in enumerate((trusted, torch.ones_like(trusted))):
            where, values = self._flat(z, place, mask)
            self.total[number].view(-1, z.shape[-1]).index_add_(0, where, values)

    @torch.no_grad()
    def begin(self) -> None:
        """Take the means; a class without a trusted sample takes that of all its samples."""
        if not bool(self.ready):
            known = self.total[0].abs().sum(-1, keepdim=True) > 0
            self.rows.copy_(functional.normalize(torch.where(known, self.total[0], self.total[1]), dim=-1))
            self.ready.fill_(1.0)

    @torch.no_grad()
    def move(self, z: Float[Tensor, "b *c p"], place: Int[Tensor, "b *c"], keep: Bool[Tensor, "b *c"],
             decay: float) -> None:  # fmt: skip
        """Follow the kept samples, in the order of the batch, then make unit rows again.

            P_y <- decay P_y + (1 - decay) z_i        for i = 1..b

        In one go: sample i of its class has r_i later ones, so its share is (1 - decay) decay^{r_i}.
        """
        where, values = self._flat(z, place, keep)
        if not len(where):
            return
        flat = self.rows.view(-1, z.shape[-1])
        count = torch.bincount(where, minlength=len(flat))
        order = torch.argsort(where, stable=True)
        rank = torch.arange(len(where), device=where.device) - (torch.cumsum(count, 0) - count)[where[order]]
        later = (count[where[order]] - 1 - rank).to(z.dtype)
        flat.mul_((decay ** count.to(z.dtype))[:, None])
        flat.index_add_(0, where[order], values[order] * ((1 - decay) * decay**later)[:, None])
        flat.copy_(functional.normalize(flat, dim=1))

    def logits(self, z: Float[Tensor, "b *c p"], temperature: float) -> Tensor:
        """Cosines over the temperature: (b, c), or (b, c, 2) for tags. The prototypes have no gradient."""
        if self.rows.ndim == 2:
            return z @ self.rows.clone().T / temperature
        return torch.einsum("bcp,cvp->bcv", z, self.rows.clone()) / temperature

    def _flat(self, z: Tensor, place: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Row of the flattened prototypes for each masked entry, and its vector, in the order of the batch."""
        if self.rows.ndim == 3:
            base = 2 * torch.arange(place.shape[1], device=place.device)
            mask, place = mask & (place >= 0), base + place
        return place[mask], z.detach()[mask]
