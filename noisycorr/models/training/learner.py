"""Everything that changes while a training runs, and how a batch goes through a network on one process or many."""

from __future__ import annotations

import copy
import dataclasses
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from noisycorr.models.training.batches import epoch_order, split_batches, stream_seed
from noisycorr.models.training.choice import Train
from noisycorr.models.training.contract import Encoded, Strategy, Trust
from noisycorr.models.training.heads import RetrievalNetwork, Towers, load_trained, trained_weights
from noisycorr.models.training.memory import Memory
from noisycorr.runtime import dist


@dataclass(frozen=True, kw_only=True)
class TrainSet:
    """The n pairs to train on. Holds no truth, so that no method can see it (law 4).

    Attributes:
        towers: Features of pairs by their row in the source.
        rows: int64 (n,): where each training pair stands there.
        image_group: int64 (n,): equal for the same picture and for near-duplicates.
        text_group: int64 (n,): equal for equal texts.
        columns: float32 (n,) each: what `noisycorr clean` says about the pairs.
    """

    towers: Towers
    rows: np.ndarray
    image_group: np.ndarray
    text_group: np.ndarray
    columns: Mapping[str, np.ndarray] = field(default_factory=dict)

    def __post_init__(self) -> None:
        hidden = [name for name in self.columns if name.startswith("truth_")]
        if hidden:
            raise ValueError(f"column {hidden[0]!r} is hidden truth: no method may see it")
        lengths = {len(x) for x in (self.rows, self.image_group, self.text_group, *self.columns.values())}
        if lengths != {len(self.rows)}:
            raise ValueError(f"columns of the training set have {sorted(lengths)} rows, expected the same number")


@dataclass
class Cursor:
    """Where a training stands; JSON.

    Attributes:
        epoch: The epoch that is running, from 0.
        step: Its next step.
        steps: Steps done in all.
        begun: Steps done before the networks last began anew.
        judged: True if the trust of this epoch is there.
        loss: Sum of the losses of this epoch, and how many there were, for each network.
        best: Highest validation value so far, and of which epoch; None before the first.
        history: One record for each finished epoch, without times.
        note: What the current epoch has to tell, such as a fall-back.
    """

    epoch: int = 0
    step: int = 0
    steps: int = 0
    begun: int = 0
    judged: bool = False
    loss: list[list[float]] = field(default_factory=list)
    best: list[float] | None = None
    history: list[dict[str, Any]] = field(default_factory=list)
    note: dict[str, Any] = field(default_factory=dict)


class Learner:
    """Networks, optimiser, memories, trusts and cursor.

    Args:
        data: The training set.
        strategy: The method.
        choice: How to train.
        device: Where networks live.

    Raises:
        ValueError: If there are fewer than 2 pairs.
    """

    def __init__(self, data: TrainSet, strategy: Strategy, choice: Train, *, device: torch.device) -> None:
        if len(data.rows) < 2:
            raise ValueError(f"there are {len(data.rows)} pairs to train on, expected at least 2")
        self.data, self.strategy, self.choice, self.device = data, strategy, choice, device
        self.dtype = torch.float64 if choice.model_precision == "fp64" else torch.float32
        self.trained = [0, 1] if strategy.peer == "twin" else [0]
        self.judges = {"none": [0], "twin": [0, 1], "ema": [1]}[strategy.peer]
        first = [self._network(number) for number in self.trained]
        if strategy.peer == "ema":
            first.append(copy.deepcopy(first[0]).requires_grad_(False))
        self.networks: list[RetrievalNetwork] = first
        self.optimizer, self.scaler = self._optimizer(), dist.grad_scaler(choice.model_precision)
        self.memories = [self._memory() for _ in self.networks]
        self.trusts: list[Trust | None] = [None] * len(self.networks)
        self.cursor = Cursor(loss=[[0.0, 0.0] for _ in self.trained])
        self.best: dict[str, Tensor] = {}
        self.loading = 0.0  # seconds in the towers since somebody set it to 0
        self.groups = torch.from_numpy(data.image_group), torch.from_numpy(data.text_group)
        self.columns = {name: torch.from_numpy(np.asarray(values)) for name, values in data.columns.items()}
        self.place = torch.from_numpy(data.rows)

    def _network(self, number: int, epoch: int = 0) -> RetrievalNetwork:
        """First weights depend on the seed and the epoch alone; the generator of the program is left as it was."""
        choice = self.choice
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(stream_seed(choice.seed, "weights", number, *([epoch] if epoch else [])))
            network = self.data.towers.network(choice, self._heads)
        return network.to(self.device, self.dtype)

    def _heads(self, dim: int) -> dict[str, nn.Module]:
        """The modules of the strategy; the towers know how wide their vectors are, and banks must be as wide."""
        self.width = dim
        rows, own = self.strategy.heads(dim), self.strategy.modules(dim)
        self.row_heads = tuple(rows)
        return rows | own

    def _memory(self) -> Memory:
        memory = self.strategy.memory(len(self.data.rows))
        for name in ("image", "text") if self.strategy.banks else ():
            memory.add(name, torch.zeros(memory.n, self.width, dtype=self.dtype))
        return memory

    def _optimizer(self) -> torch.optim.AdamW:
        choice, parameters = self.choice, self.parameters()
        groups = [
            {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": choice.wd},
            {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
        ]
        return torch.optim.AdamW(groups, lr=choice.lr, betas=(choice.beta1, choice.beta2), eps=choice.eps)

    def parameters(self) -> list[nn.Parameter]:
        """Of the networks that are trained, in a fixed order."""
        return [parameter for number in self.trained for parameter in self.networks[number].parameters()
                if parameter.requires_grad]  # fmt: skip

    def guide(self, number: int) -> int:
        """Whose trust a network follows."""
        if self.strategy.peer == "ema":
            return 1
        return 1 - number if self.strategy.peer == "twin" and self.strategy.exchange else number

    def encode_local(self, number: int, rows: Tensor, epoch: int | None = None) -> tuple[Tensor, Tensor]:
        """Encoded images and texts of training pairs, without the other processes; augmented if there is an epoch."""
        started, place = time.perf_counter(), self.place[rows]
        image, text = self.data.towers.image(place, epoch), self.data.towers.text(place)
        self.loading += time.perf_counter() - started
        network = self.networks[number]
        with dist.autocast(self.choice.model_precision):
            return network.image(image), network.text(text)

    def encoded(self, number: int, rows: Tensor, image: Tensor, text: Tensor) -> Encoded:
        """What a strategy sees of a global batch."""
        network = self.networks[number]
        vectors = network.vectors(image), network.vectors(text)
        return Encoded(
            image=vectors[0],
            text=vectors[1],
            sims=network.similarity(image, text),
            rows=rows.to(self.device),
            temperature=network.temperature,
            image_group=self.groups[0][rows].to(self.device),
            text_group=self.groups[1][rows].to(self.device),
            columns={name: column[rows].to(self.device, self.dtype) for name, column in self.columns.items()},
            aux={name: (network.heads[name](vectors[0]), network.heads[name](vectors[1])) for name in self.row_heads},
            modules={name: module for name, module in network.heads.items() if name not in self.row_heads},
            epoch=self.cursor.epoch,
            epochs=self.choice.epochs,
        )

    @torch.no_grad()
    def look(self, number: int, rows: Tensor, epoch: int | None = None) -> Encoded:
        """A global batch without gradient, in evaluation mode."""
        network = self.networks[number]
        mode = network.training
        network.eval()
        image, text = self.encode_local(number, rows[dist.my_slice(len(rows))], epoch)
        enc = self.encoded(number, rows, dist.gather(image, len(rows)), dist.gather(text, len(rows)))
        network.train(mode)
        return enc

    def expect(self, batches: Iterable[np.ndarray], epoch: int | None) -> None:
        """Tell the towers which global batches come next."""
        self.data.towers.expect((self.data.rows[batch[dist.my_slice(len(batch))]], epoch) for batch in batches)

    def evidence(self, number: int) -> dict[str, np.ndarray]:
        """Signals of one network on all n pairs, in batches of a random order."""
        n, choice = len(self.data.rows), self.choice
        found: dict[str, np.ndarray] = {}
        order = epoch_order(n, seed=choice.seed, epoch=self.cursor.epoch, stream=f"judge {number}")
        batches = split_batches(order, choice.batch_size)
        self.expect(batches, None)
        for batch in batches:
            rows = torch.from_numpy(batch)
            with torch.no_grad():
                signals = self.strategy.signals(self.look(number, rows), self.memories[number])
            for name, values in signals.items():
                if values.shape != (len(rows),):
                    raise ValueError(f"signal {name!r} has shape {tuple(values.shape)}, expected ({len(rows)},)")
                found.setdefault(name, np.full(n, np.nan))[batch] = values.double().cpu().numpy()
        return found

    def judge(self, watch: Callable[[int, Mapping[str, np.ndarray], Trust | None], None]) -> None:
        """Form an opinion on all pairs; `watch` sees it, and nothing that it does comes back to the strategy."""
        found = [self.evidence(number) for number in self.judges]
        if self.strategy.judges:
            trusts = [self.strategy.decide(signals, self.memories[n]) for n, signals in zip(self.judges, found)]
            for number, trust in zip(self.judges, self.strategy.agree(trusts)):
                self.trusts[number] = trust
        for number, signals in zip(self.judges, found):
            opinion = self.trusts[number]
            watch(number, signals, dataclasses.replace(opinion) if opinion is not None else None)

    def restart(self) -> None:
        """Fresh networks and a fresh optimiser; memories, trusts and the best weights so far stay."""
        for number, old in enumerate(self.networks):
            place = number if number in self.trained else 0
            fresh = self._network(place, self.cursor.epoch)
            fresh.inherit(old)
            self.networks[number] = fresh if number in self.trained else fresh.requires_grad_(False)
        self.optimizer = self._optimizer()
        self.cursor.begun = self.cursor.steps

    def snapshot(self) -> dict[str, Tensor]:
        """Copies of all weights, by number of the network and name."""
        return {name: value.detach().clone() for name, value in self.weights().items()}

    def weights(self) -> dict[str, Tensor]:
        """All weights, by number of the network and name."""
        return {f"{number}.{name}": value for number, network in enumerate(self.networks)
                for name, value in trained_weights(network).items()}  # fmt: skip

    def load_weights(self, weights: Mapping[str, Tensor]) -> None:
        """Take over what `weights` gave."""
        for number, network in enumerate(self.networks):
            start = f"{number}."
            load_trained(network, {k.removeprefix(start): v for k, v in weights.items() if k.startswith(start)})
