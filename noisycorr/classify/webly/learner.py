"""A learner of classes: batches with labels instead of texts go through the same loop as pairs do."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from noisycorr.classify.webly.choice import TrainClasses
from noisycorr.classify.webly.contract import Batch, ClassSet, Method, Wrapped
from noisycorr.classify.webly.network import ClassNetwork
from noisycorr.models.training.batches import stream_seed
from noisycorr.models.training.contract import Trust
from noisycorr.models.training.learner import Learner
from noisycorr.models.training.memory import Memory
from noisycorr.runtime import dist

MOMENTUM = 0.9


class ClassLearner(Learner):
    """Networks, optimiser, memories, trusts and cursor of a training on labels; `models.training.loop.fit` runs it.

    Args:
        data: The samples.
        method: How to learn.
        choice: How to train.
        backbone: Makes a backbone; random weights come from the generator of torch.
        device: Where networks live.
        backbone_rate: Learning rate of the backbone, as a share of that of the rest, > 0.

    Raises:
        ValueError: If there are fewer than 2 samples, or the method does not take such labels.
    """

    data: ClassSet
    strategy: Method
    choice: TrainClasses

    def __init__(self, data: ClassSet, method: Method, choice: TrainClasses, *, backbone: Callable[[], nn.Module],
                 device: torch.device, backbone_rate: float = 1.0) -> None:  # fmt: skip
        if method.labels not in ("both", "many" if data.multi else "one"):
            many = {"one": "one label for each sample", "many": "several tags for a sample"}[method.labels]
            raise ValueError(f"{type(method).__name__} learns from {many}, which these samples do not have")
        self._backbone, self._rate = backbone, backbone_rate
        super().__init__(data, method, choice, device=device)
        self.labels = torch.from_numpy(data.labels.astype(np.int64))
        anchors = np.zeros_like(data.labels) if data.anchors is None else data.anchors
        self.anchors = torch.from_numpy(anchors.astype(np.int64))
        self.text_class = None if data.text_class is None else torch.from_numpy(data.text_class.astype(np.int64))
        weights = np.ones(len(data.rows)) if data.weights is None else data.weights / data.weights.mean()
        self.weight = torch.from_numpy(weights.astype(np.float64))

    def _network(self, number: int, epoch: int = 0) -> ClassNetwork:
        choice, method = self.choice, self.strategy

        def modules(dim: int) -> Mapping[str, nn.Module]:
            self.width = dim
            return method.parts(dim, self.data.classes, choice.embed_dim, choice.hidden)

        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(stream_seed(choice.seed, "weights", number, *([epoch] if epoch else [])))
            network = ClassNetwork(self._backbone(), self.data.classes, modules, slow=method.slow, view=choice.view)
        return network.to(self.device, self.dtype)

    def _memory(self) -> Memory:
        n = len(self.data.rows)
        columns = self.strategy.columns(n, self.data.classes)
        memory = Memory(n, **{k: v.to(self.dtype) if v.is_floating_point() else v for k, v in columns.items()})
        if self.strategy.banks:
            memory.add("features", torch.zeros(n, self.width, dtype=self.dtype))
        return memory

    def _optimizer(self) -> torch.optim.Optimizer:  # type: ignore[override]
        choice = self.choice
        named = [(name, p) for number in self.trained for name, p in self.networks[number].named_parameters()
                 if p.requires_grad]  # fmt: skip
        groups = []
        for share in dict.fromkeys((1.0, self._rate)):
            mine = [p for name, p in named if share == (self._rate if name.startswith("backbone.") else 1.0)]
            for some, wd in (([p for p in mine if p.ndim >= 2], choice.wd), ([p for p in mine if p.ndim < 2], 0.0)):
                groups += [{"params": some, "weight_decay": wd, "share": share}] if some else []
        if choice.optimizer == "adamw":
            return torch.optim.AdamW(groups, lr=choice.lr, betas=(choice.beta1, choice.beta2), eps=choice.eps)
        return torch.optim.SGD(groups, lr=choice.lr, momentum=MOMENTUM)

    def trains_backbone(self) -> bool:
        """Has the time come?"""
        return self.cursor.epoch >= self.choice.unfreeze * self.choice.epochs

    def encode_local(self, number: int, rows: Tensor, epoch: int | None = None) -> tuple[Tensor, Tensor]:
        """Features of this process's samples, and those of their other view."""
        started, method = time.perf_counter(), self.strategy
        inputs = self.data.towers.image(self.place[rows], epoch)
        self.loading += time.perf_counter() - started
        network = self.networks[number]
        assert isinstance(network, ClassNetwork)
        if network.training:
            network.follow(method.follow)
        with dist.autocast(self.choice.model_precision):
            with torch.set_grad_enabled(torch.is_grad_enabled() and self.trains_backbone()):
                features = network.image(inputs)
                other = features.detach()
                if method.key == "same":
                    other = network.other_view(inputs, slow=False)
            if method.key == "slow":
                with torch.no_grad():
                    other = network.other_view(inputs, slow=True)
        return features.to(self.dtype), other.to(self.dtype)

    def encoded(self, number: int, rows: Tensor, image: Tensor, text: Tensor) -> Wrapped:
        """What a method sees of a global batch."""
        network = self.networks[number]
        assert isinstance(network, ClassNetwork)
        batch = Batch(
            features=image, key=text, rows=rows.to(self.device), labels=self.labels[rows].to(self.device),
            anchors=self.anchors[rows].to(self.device), weights=self.weight[rows].to(self.device, self.dtype),
            text_class=None if self.text_class is None else self.text_class[rows].to(self.device),
            classes=self.data.classes, network=network, epoch=self.cursor.epoch, epochs=self.choice.epochs,
        )  # fmt: skip
        nothing = image.new_zeros(())
        return Wrapped(image=image, text=text, sims=nothing, rows=batch.rows, temperature=nothing,
                       image_group=batch.rows, text_group=batch.rows, batch=batch)  # fmt: skip

    def judge(self, watch: Callable[[int, Mapping[str, np.ndarray], Trust | None], Any]) -> None:
        """As of a learner of pairs, where the method asks for it."""
        if self.strategy.asks(self.cursor.epoch, self.choice.epochs) or self.cursor.epoch == self.choice.epochs:
            super().judge(watch)

    @torch.no_grad()
    def predict(self, inputs: Callable[[Tensor], Any], n: int, *, chunk: int = 1024) -> list[np.ndarray]:
        """Logits of each trained network.

        Args:
            inputs: Gives what the backbone takes for rows 0 to n - 1.
            n: Samples.
            chunk: Rows at once.

        Returns:
            float64 (n, c) for each network. Every process computes all of it.
        """
        out = []
        for number in self.trained:
            network = self.networks[number]
            assert isinstance(network, ClassNetwork)
            mode = network.training
            network.eval()
            parts = []
            for rows in torch.arange(n).split(chunk):
                parts.append(self.strategy.predict(network, network.image(inputs(rows)).to(self.dtype)))
            network.train(mode)
            out.append(torch.cat(parts).double().cpu().numpy())
        return out
