"""The contract between the loop and a method: what a method gets to see, and the five short methods it may have.

    @dataclass(frozen=True, kw_only=True)
    class Mine(Strategy):
        gain: float = 2.0

        def step(self, enc, memory, trust, peer):
            return Loss(per_pair=self.gain * info_nce(enc.sims, temperature=enc.temperature, negatives=enc.negatives))

Everything is about the *global* batch, gathered from all processes, so that a method knows nothing of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from noisycorr.models.training.memory import Memory

SETS = ("clean", "hard", "noisy", "strict")
NOTHING: Mapping[str, Tensor] = MappingProxyType({})


@dataclass(frozen=True, slots=True, kw_only=True)
class Encoded:
    """One global batch of b pairs, encoded by one network; the same on every process.

    Attributes:
        image: (b, d) unit rows.
        text: (b, d) unit rows.
        sims: (b, b) similarity of image i (row) and text j (column), higher = better matched; a cosine in [-1, 1] for
            plain towers. Take columns of it to give images other texts of the batch.
        rows: int64 (b,) training pairs, as `Memory` and `Trust` number them.
        temperature: () > 0, learned with the towers: similarities are divided by it.
        image_group: int64 (b,): equal for the same picture and for near-duplicates.
        text_group: int64 (b,): equal for equal texts.
        columns: What `noisycorr clean` says about each pair, (b,) each: `p_clean`, `sample_weight`, `score_*`; empty
            if it was not asked. Never the truth.
        aux: For each module of `Strategy.heads`, what it makes of the image rows and of the text rows.
        modules: Those of `Strategy.modules`, for `step` to call.
        epoch: Number of this epoch, from 0.
        epochs: Number of epochs in all.
    """

    image: Float[Tensor, "b d"]
    text: Float[Tensor, "b d"]
    sims: Float[Tensor, "b b"]
    rows: Int[Tensor, " b"]
    temperature: Float[Tensor, ""]
    image_group: Int[Tensor, " b"]
    text_group: Int[Tensor, " b"]
    columns: Mapping[str, Tensor] = field(default_factory=lambda: NOTHING)
    aux: Mapping[str, tuple[Tensor, Tensor]] = field(default_factory=dict)
    modules: Mapping[str, nn.Module] = field(default_factory=dict)
    epoch: int = 0
    epochs: int = 1

    @property
    def negatives(self) -> Bool[Tensor, "b b"]:
        """True where image i and text j may serve as each other's negative: neither picture nor text is the same."""
        return (self.image_group[:, None] != self.image_group) & (self.text_group[:, None] != self.text_group)


@dataclass(frozen=True, slots=True, kw_only=True)
class Trust:
    """One epoch's opinion on every training pair.

    Attributes:
        p_clean: (n,) probability in [0, 1] that image and text belong together.
        clean: bool (n,): pairs to learn from as they are.
        sets: Further sets by name, bool (n,) each, any of `SETS`; `clean` need not be repeated. They may overlap.
        note: What the reader must know, for example that the statistic was constant; or None.
        facts: Numbers for the record of the epoch, such as how many classes are in use.
    """

    p_clean: Float[np.ndarray, " n"]
    clean: Bool[np.ndarray, " n"]
    sets: Mapping[str, np.ndarray] = field(default_factory=dict)
    note: str | None = None
    facts: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        n = np.shape(self.p_clean)
        if len(n) != 1 or any(np.shape(mask) != n or mask.dtype != bool for mask in self.all().values()):
            raise ValueError("p_clean must be (n,), and every set bool (n,)")
        if unknown := set(self.all()) - set(SETS):
            raise ValueError(f"sets named {sorted(unknown)}, expected some of {SETS}")
        if not (np.isfinite(self.p_clean).all() and np.all(self.p_clean >= 0) and np.all(self.p_clean <= 1)):
            raise ValueError("p_clean must lie in [0, 1], without NaN")

    def all(self) -> dict[str, np.ndarray]:
        """Every set by name, `clean` among them."""
        return {**self.sets, "clean": self.clean}

    def chance(self, enc: Encoded) -> Float[Tensor, " b"]:
        """`p_clean` of the pairs of a batch, in its precision."""
        return torch.from_numpy(np.asarray(self.p_clean))[enc.rows.cpu()].to(enc.sims.device, enc.sims.dtype)

    def holds(self, name: str, enc: Encoded) -> Bool[Tensor, " b"]:
        """True for pairs of a batch that are in the set."""
        return torch.from_numpy(self.all()[name])[enc.rows.cpu()].to(enc.sims.device)


@dataclass(frozen=True, slots=True, kw_only=True)
class Loss:
    """What to minimise: the mean of `per_pair` plus the sum of `extras`.

    Attributes:
        per_pair: (b,) one loss for each pair, >= 0, higher = worse.
        extras: Losses of the batch as a whole, () each, such as a regulariser; logged by name.
    """

    per_pair: Float[Tensor, " b"]
    extras: Mapping[str, Tensor] = field(default_factory=lambda: NOTHING)

    def total(self) -> Float[Tensor, ""]:
        """The one number that is differentiated."""
        total = self.per_pair.mean()
        for extra in self.extras.values():
            total = total + extra
        return total


class Strategy:
    """A method of training under wrong pairs. Inherit, and write `step`; the rest has a default that does nothing.

    A subclass is a frozen keyword-only dataclass: its fields are its options, and it holds no arrays. What it learns
    over time lives in its `Memory`. Attributes may be fields, so that users can set them.

    Attributes:
        peer: "none": one network. "twin": two networks that start differently; each is trained with the other's
            trust. "ema": the second is a slow copy of the first, which it lends its trust.
        exchange: For twins: False lets each network follow its own trust, so that they are only an ensemble.
        warm_up: First epochs on all pairs, without trust.
        judges: Does `decide` say anything? If not, the pass over all pairs before each epoch is left out.
        sees_peer: Does `step` read `peer`? If not, the batch is not encoded a second time.
        needs_columns: Does `step` read `Encoded.columns`? The benchmark then scores the pairs first.
        banks: Give the memory columns `image` and `text`, (n, d) of zeros, for embeddings that the strategy writes.
        curriculum: First epoch of each set of the trust. A pair is trained on while it is in a set whose time has come.
    """

    peer: Literal["none", "twin", "ema"] = "none"
    exchange: bool = True
    warm_up: int = 0
    judges: bool = False
    sees_peer: bool = False
    needs_columns: bool = False
    banks: bool = False
    curriculum: Mapping[str, int] = MappingProxyType({"clean": 0})

    def heads(self, dim: int) -> dict[str, nn.Module]:
        """Modules that are trained along: each gets image rows (b, dim) and text rows (b, dim) in turn."""
        return {}

    def modules(self, dim: int) -> dict[str, nn.Module]:
        """Modules that are trained along and that `step` calls itself, as `enc.modules[name]`; names unlike `heads`.

        They work on the global batch, which is the same on every process.
        """
        return {}

    def memory(self, n: int) -> Memory:
        """Columns for n training pairs, with their first values. Each network has its own."""
        return Memory(n)

    def signals(self, enc: Encoded, memory: Memory) -> dict[str, Tensor]:
        """Evidence on each pair of a batch, (b,) each, without gradient; may write rows of this batch into memory.

        Called for all pairs before each epoch. Names say the direction: `loss*` higher = worse, others higher = better.
        """
        return {"similarity": enc.sims.diagonal()}

    def decide(self, signals: Mapping[str, np.ndarray], memory: Memory) -> Trust:
        """From the signals of all n pairs, (n,) each in the order of the pairs, to an opinion on them."""
        n = memory.n
        return Trust(p_clean=np.ones(n), clean=np.ones(n, bool))

    def agree(self, trusts: Sequence[Trust]) -> Sequence[Trust]:
        """What the networks think once each knows of the other's opinion; called after `decide` of all that judge."""
        return trusts

    def opens(self, epochs: int) -> Mapping[str, int]:
        """First epoch of each set of the trust, of so many in all; `curriculum` unless overridden."""
        return self.curriculum

    def restarts(self, epochs: int) -> Sequence[int]:
        """Epochs, of so many in all, that begin with fresh networks; memory and trust stay."""
        return ()

    def step(self, enc: Encoded, memory: Memory, trust: Trust | None, peer: Encoded | None) -> Loss:
        """The losses of a batch; may write rows of this batch into memory.

        Args:
            enc: The batch, encoded by the network that is trained.
            memory: This network's.
            trust: Opinion on all pairs, the peer's if there is one; None in the warm-up, and where nothing was clean.
            peer: The same batch encoded by the peer, without gradient; None unless `sees_peer`.
        """
        raise NotImplementedError(f"{type(self).__name__} has no method step")
