"""MoPro: momentum prototypes from all samples as they were labelled, and the labels that they correct.

Source: Li, Xiong and Hoi, "MoPro: Webly Supervised Learning with Momentum Prototypes", ICLR 2021.
Differs: the last part of the training refines the classifier on the cleaned labels, in place of a training of its own;
it does not balance classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from noisycorr.classify.webly.bank import Projector, Prototypes, Queue
from noisycorr.classify.webly.cleaning import mixed_score, remove_noise
from noisycorr.classify.webly.contract import Batch, Method
from noisycorr.classify.webly.losses import over_kept, queue_contrast
from noisycorr.models.training.contract import Loss, Trust
from noisycorr.models.training.memory import Memory


@dataclass(frozen=True, kw_only=True)
class MoPro(Method):
    """Momentum prototypes.

    Attributes:
        threshold: Score from which the likeliest class replaces a label, in [0, 1].
        mix: Share of the classifier in the score, the rest is of the prototypes.
        temperature: Of prototypes and keys.
        decay: Of the prototypes.
        queue: Keys kept.
        first_contrast: Share of the epochs after which samples are pulled to their prototypes.
        first_clean: Share of the epochs after which labels are cleaned.
        finetune: Share of the epochs, at the end, in which the classifier alone learns from the cleaned set.
    """

    threshold: float = 0.8
    mix: float = 0.5
    temperature: float = 0.1
    decay: float = 0.99
    queue: int = 512
    first_contrast: float = 0.05
    first_clean: float = 0.25
    finetune: float = 0.15

    key = "slow"
    slow = ("backbone", "projector")
    judges = True

    def parts(self, dim: int, classes: int, space: int, hidden: int) -> dict[str, nn.Module]:
        """Projector, queue and prototypes."""
        return {"projector": Projector(dim, hidden, space), "queue": Queue(self.queue, space),
                "prototypes": Prototypes(classes, space)}  # fmt: skip

    def columns(self, n: int, classes: int) -> dict[str, Tensor]:
        """The cleaned label of each sample, -1 = left out."""
        return {"label": torch.full((n,), -1)}

    def asks(self, epoch: int, epochs: int) -> bool:
        """Before the finetune, and at the end."""
        return epoch in (round((1 - self.finetune) * epochs), epochs)

    def observe(self, batch: Batch, memory: Memory) -> dict[str, Tensor]:
        """Probability of the label, and the cleaned label."""
        score, keep, target = self.clean(batch, batch.part("projector")(batch.features))
        memory.write("label", batch.rows, torch.where(keep, target, torch.full_like(target, -1)))
        return {"label": score.gather(1, batch.labels[:, None])[:, 0], "keep": keep.to(score.dtype)}

    def decide(self, signals: Mapping[str, np.ndarray], memory: Memory) -> Trust:
        """Who is in the cleaned set."""
        keep = signals["keep"] > 0.5
        return Trust(p_clean=np.clip(signals["label"], 0, 1), clean=keep, facts={"left_out": float((~keep).mean())})

    def relabelled(self, signals: Mapping[str, np.ndarray], memory: Memory) -> np.ndarray | None:
        """The cleaned labels."""
        return memory.columns["label"].cpu().numpy()

    def clean(self, batch: Batch, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Scores, who is kept, and labels."""
        logits = batch.part("prototypes").logits(z, self.temperature)
        score = mixed_score(batch.logits, logits, self.mix).detach()
        nobody = torch.zeros_like(batch.labels, dtype=torch.bool)
        return score, *remove_noise(score, batch.labels, nobody, threshold=self.threshold, strict=True)

    def learn(self, batch: Batch, memory: Memory, trust: Trust | None, peer: Batch | None) -> Loss:
        """Classifier, contrast with the queue, contrast with the prototypes."""
        if batch.past(1 - self.finetune):
            return self.refine(batch, memory)
        prototypes, queue = batch.part("prototypes"), batch.part("queue")
        z = batch.part("projector")(batch.features)
        keep, target = torch.ones_like(batch.labels, dtype=torch.bool), batch.labels
        if batch.past(self.first_clean):
            _, keep, target = self.clean(batch, z)
        extras: dict[str, Tensor] = {}
        if batch.past(self.first_contrast):
            logits = prototypes.logits(z, self.temperature)
            extras["prototypes"] = over_kept(functional.cross_entropy(logits, target, reduction="none"), keep).mean()
        with torch.no_grad():
            key = batch.network.slow["projector"](batch.key)
        before, _ = queue.read()
        extras["instances"] = queue_contrast(z, key, before, temperature=self.temperature).mean()
        queue.push(key, batch.rows)
        prototypes.move(z, target, keep, self.decay)
        return Loss(per_pair=over_kept(functional.cross_entropy(batch.logits, target, reduction="none"), keep),
                    extras=extras)  # fmt: skip

    def refine(self, batch: Batch, memory: Memory) -> Loss:
        """The classifier alone, on the cleaned labels."""
        target = memory.read("label", batch.rows)
        keep = target >= 0
        target = torch.where(keep, target, batch.labels)
        logits = batch.network.classifier(batch.features.detach())
        return Loss(per_pair=over_kept(functional.cross_entropy(logits, target, reduction="none"), keep))
