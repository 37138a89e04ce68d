"""CAPro: prototypes that begin at samples whose texts match their class, noise removal, collective bootstrapping.

Three stages in one training: labels as they came; prototypes and clean labels; then the classifier alone, on the
cleaned set with mixup.

Source: Qin et al., "CAPro: Webly Supervised Learning with Cross-Modality Aligned Prototypes", NeurIPS 2023.
Differs: a label is changed only to a class that the completed text names, too, as a network that learns from labels
it changed itself grows sure of its errors, and the text does not; the queue weighs keys by a softmax and leaves a
sample's own out; the auxiliary head is a cosine head; sample weights act; classes without trusted samples begin at the
mean of all; mixup is of features; the cleaned set is exported without random views, and trusted samples stay protected.
`faithful` restores the first three and the last. The backbone is opened by `unfreeze`; released, it never is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from noisycorr.classify.webly.bank import CosineHead, Projector, Prototypes, Queue
from noisycorr.classify.webly.cleaning import collective_targets, mixed_score, remove_noise
from noisycorr.classify.webly.contract import Batch, Method
from noisycorr.classify.webly.losses import over_kept, queue_contrast, soft_cross_entropy
from noisycorr.classify.webly.mixup import mix_rows
from noisycorr.models.training.contract import Loss, Trust
from noisycorr.models.training.memory import Memory


@dataclass(frozen=True, kw_only=True)
class CAPro(Method):
    """Cross-modality aligned prototypes, for one label a sample.

    Attributes:
        threshold: Score from which the likeliest class replaces a label, in [0, 1]; released: 0.6.
        out_of_set: Below this multiple of 1 / classes a label is not plausible, and the sample is left out.
        mix: Share of the classifier in the score, the rest is of the prototypes.
        soft: Share of collective bootstrapping in the loss of the auxiliary head.
        temperature: Of prototypes and keys.
        soft_temperature: Of the weights of the keys in collective bootstrapping.
        decay: Of the prototypes.
        queue: Keys kept.
        first_prototypes: Share of the epochs after which prototypes begin.
        first_clean: Share of the epochs after which labels are cleaned.
        finetune: Share of the epochs, at the end, in which the classifier alone learns from the cleaned set.
        mixup: Parameter of the Beta distribution of its mixup; 0 = none.
        confirm: Change a label only to the class that the completed text names, and leave the sample out where it names
            another or none; without texts, to any.
        faithful: As released, where we differ.
    """

    threshold: float = 0.4
    out_of_set: float = 1.0
    mix: float = 0.5
    soft: float = 0.1
    temperature: float = 0.1
    soft_temperature: float = 0.1
    decay: float = 0.99
    queue: int = 512
    first_prototypes: float = 0.2
    first_clean: float = 0.25
    finetune: float = 0.15
    mixup: float = 0.8
    confirm: bool = True
    faithful: bool = False

    key = "slow"
    slow = ("backbone",)
    judges = True
    takes_anchors = True

    def parts(self, dim: int, classes: int, space: int, hidden: int) -> dict[str, nn.Module]:
        """Projector, reconstructor, auxiliary head, queue and prototypes."""
        return {
            "projector": Projector(dim, hidden, space),
            "reconstructor": nn.Sequential(nn.Linear(space, hidden or dim), nn.ReLU(), nn.Linear(hidden or dim, dim)),
            "auxiliary": CosineHead(space, classes, faithful=self.faithful),
            "queue": Queue(self.queue, space),
            "prototypes": Prototypes(classes, space),
        }

    def columns(self, n: int, classes: int) -> dict[str, Tensor]:
        """The cleaned label of each sample, -1 = left out."""
        return {"label": torch.full((n,), -1)}

    def asks(self, epoch: int, epochs: int) -> bool:
        """Before the prototypes begin, before the finetune, and at the end."""
        starts = {round(share * epochs) for share in (self.first_prototypes, 1 - self.finetune)}
        return epoch in starts or epoch == epochs

    def observe(self, batch: Batch, memory: Memory) -> dict[str, Tensor]:
        """Probability of the label; collects prototypes in the pass before they begin; cleans labels at the end."""
        prototypes = batch.part("prototypes")
        z = batch.part("projector")(batch.key)
        if not bool(prototypes.ready):
            prototypes.collect(z, batch.labels, batch.anchors > 0)
            score = torch.softmax(batch.logits, 1)
        else:
            logits = prototypes.logits(batch.part("projector")(batch.features), self.temperature)
            score = mixed_score(batch.logits, logits, self.mix)
        protected = batch.anchors > 0 if not self.faithful else torch.zeros_like(batch.labels, dtype=torch.bool)
        keep, target = remove_noise(score, batch.labels, protected, threshold=self.threshold,
                                    out_of_set=self.out_of_set, allowed=self.allowed(batch))  # fmt: skip
        memory.write("label", batch.rows, torch.where(keep, target, torch.full_like(target, -1)))
        last = keep if batch.past(1 - self.finetune) else torch.ones_like(keep)
        return {"label": score.gather(1, batch.labels[:, None])[:, 0], "keep": last.to(score.dtype)}

    def decide(self, signals: Mapping[str, np.ndarray], memory: Memory) -> Trust:
        """Who is in the cleaned set."""
        keep = signals["keep"] > 0.5
        return Trust(p_clean=np.clip(signals["label"], 0, 1), clean=keep, facts={"left_out": float((~keep).mean())})

    def relabelled(self, signals: Mapping[str, np.ndarray], memory: Memory) -> np.ndarray | None:
        """The cleaned labels."""
        return memory.columns["label"].cpu().numpy()

    def learn(self, batch: Batch, memory: Memory, trust: Trust | None, peer: Batch | None) -> Loss:
        """Classifier, contrast with the queue, prototypes, auxiliary head and reconstruction, each with weight 1."""
        if batch.past(1 - self.finetune):
            return self.refine(batch, memory)
        prototypes: Prototypes = batch.part("prototypes")
        active = batch.past(self.first_prototypes)
        if active:
            prototypes.begin()
        z = batch.part("projector")(batch.features)
        keep, target = torch.ones_like(batch.labels, dtype=torch.bool), batch.labels
        extras: dict[str, Tensor] = {}
        if active:
            logits = prototypes.logits(z, self.temperature)
            if batch.past(self.first_clean):
                score = mixed_score(batch.logits, logits, self.mix).detach()
                keep, target = remove_noise(score, batch.labels, batch.anchors > 0, threshold=self.threshold,
                                            out_of_set=self.out_of_set, allowed=self.allowed(batch))  # fmt: skip
            prototypes.move(z, target, keep, self.decay)
            extras["prototypes"] = over_kept(_hard(logits, target), keep).mean()
        extras["instances"], soft = self.instances(batch, z)
        auxiliary = batch.part("auxiliary")(z)
        share = self.soft * (soft.sum(1) > 0)
        loss = (1 - share) * _hard(auxiliary, target) + share * soft_cross_entropy(auxiliary, soft)
        extras["auxiliary"] = over_kept(loss, keep).mean()
        again = batch.part("reconstructor")(z.detach() if active else z)
        gap = ((again - batch.features.detach()) ** 2).mean(1)
        extras["reconstruction"] = over_kept(gap, keep).mean()
        return Loss(per_pair=over_kept(_hard(batch.logits, target), keep), extras=extras)

    def allowed(self, batch: Batch) -> Tensor | None:
        """The class that each label may be changed to."""
        return batch.text_class if self.confirm and not self.faithful else None

    def instances(self, batch: Batch, z: Tensor) -> tuple[Tensor, Tensor]:
        """Contrast with the queue, which then takes the new keys, and the soft labels that it gives."""
        queue: Queue = batch.part("queue")
        key = batch.part("projector")(batch.key).detach()
        before, _ = queue.read()
        contrast = queue_contrast(z, key, before, temperature=self.temperature).mean()
        queue.push(key, batch.rows)
        keys, rows = queue.read()
        with torch.no_grad():
            near = torch.softmax(batch.part("prototypes").logits(keys, self.temperature), 1)
            beliefs = self.mix * torch.softmax(batch.part("auxiliary")(keys), 1) + (1 - self.mix) * near
            own = rows == batch.rows[:, None]
            own = torch.zeros_like(own) if self.faithful else own
            soft = collective_targets(z, keys, beliefs, own, temperature=self.soft_temperature, linear=self.faithful)
        return contrast, soft

    def refine(self, batch: Batch, memory: Memory) -> Loss:
        """Stage 3: classifier and auxiliary head on the cleaned labels, and the classifier on mixed features."""
        target = memory.read("label", batch.rows)
        keep = target >= 0
        target = torch.where(keep, target, batch.labels)
        features = batch.features.detach()
        classifier = batch.network.classifier
        loss = over_kept(_hard(classifier(features), target), keep)
        z = batch.part("projector")(features).detach()
        extras = {"auxiliary": over_kept(_hard(batch.part("auxiliary")(z), target), keep).mean()}
        if self.mixup:
            wide = torch.nn.functional.one_hot(target, batch.classes).to(features.dtype)
            mixed, soft = mix_rows(features[keep], wide[keep], self.mixup)
            if len(mixed):
                extras["mixup"] = soft_cross_entropy(classifier(mixed), soft).mean()
        return Loss(per_pair=loss, extras=extras)


def _hard(logits: Tensor, target: Tensor) -> Tensor:
    return torch.nn.functional.cross_entropy(logits, target, reduction="none")
