"""CAPro for tags: two prototypes for each class, of samples that have the tag and of those that do not.

Source: Qin et al., "CAPro: Webly Supervised Learning with Cross-Modality Aligned Prototypes", NeurIPS 2023, NUS-WIDE.
Differs: negative anchors lose their tag and are protected, the soft loss has both halves, the queue weighs keys by a
softmax and leaves a sample's own out, sample weights act. `faithful` restores these. There is no finetune with mixup.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from noisycorr.classify.webly.bank import Projector, Prototypes, Queue
from noisycorr.classify.webly.cleaning import anchored_tags, collective_targets, remove_tag_noise
from noisycorr.classify.webly.contract import Batch, Method
from noisycorr.classify.webly.losses import masked_tag_loss, over_kept, queue_contrast
from noisycorr.models.training.contract import Loss, Trust
from noisycorr.models.training.memory import Memory


class TagHeads(nn.Module):
    """A space of its own for each class, and a score in it: z_c = norm(U_c z), a_c = w_c z_c.

    Args:
        space: p.
        classes: c.
    """

    def __init__(self, space: int, classes: int) -> None:
        super().__init__()
        self.turn = nn.Parameter(torch.eye(space).repeat(classes, 1, 1) + 0.05 * torch.randn(classes, space, space))
        self.weight = nn.Parameter(torch.randn(classes, space) / space**0.5)

    def forward(self, z: Tensor) -> Tensor:
        """(b, c, p) unit rows of unit rows (b, p)."""
        return functional.normalize(torch.einsum("cqp,bp->bcq", self.turn, z), dim=2)

    def logits(self, each: Tensor) -> Tensor:
        """(b, c) of (b, c, p)."""
        return (each * self.weight).sum(2)


@dataclass(frozen=True, kw_only=True)
class CAProTags(Method):
    """Cross-modality aligned prototypes, for several tags a sample.

    Attributes:
        threshold: Score from which a tag is set, and 1 - it, from which it is removed, in [0.5, 1].
        mix: Share of the classifier in the score, the rest is of the prototypes.
        soft: Share of collective bootstrapping in the loss of the auxiliary head.
        temperature: Of prototypes and keys.
        soft_temperature: Of the weights of the keys in collective bootstrapping.
        decay: Of the prototypes.
        queue: Keys kept.
        first_prototypes: Share of the epochs after which prototypes begin.
        first_clean: Share of the epochs after which tags are cleaned.
        balance: Positives weigh sqrt(negatives / positives) in the batch's classes, as released.
        faithful: As released, where we differ.
    """

    threshold: float = 0.9
    mix: float = 0.5
    soft: float = 0.1
    temperature: float = 0.1
    soft_temperature: float = 0.1
    decay: float = 0.99
    queue: int = 512
    first_prototypes: float = 0.25
    first_clean: float = 0.5
    balance: bool = True
    faithful: bool = False

    labels = "many"
    key = "slow"
    slow = ("backbone",)
    judges = True
    takes_anchors = True

    def parts(self, dim: int, classes: int, space: int, hidden: int) -> dict[str, nn.Module]:
        """Projector, reconstructor, spaces of the classes, queue, prototypes, and counts of the tags."""
        return {
            "projector": Projector(dim, hidden, space),
            "reconstructor": nn.Sequential(nn.Linear(space, hidden or dim), nn.ReLU(), nn.Linear(hidden or dim, dim)),
            "tags": TagHeads(space, classes),
            "queue": Queue(self.queue, space),
            "prototypes": Prototypes(classes, 2, space),
            "count": Count(classes),
        }

    def columns(self, n: int, classes: int) -> dict[str, Tensor]:
        """The cleaned tags, -1 = unknown."""
        return {"label": torch.full((n, classes), -1, dtype=torch.int8)}

    def asks(self, epoch: int, epochs: int) -> bool:
        """Before the first epoch, to count tags; before the prototypes begin; and at the end."""
        return epoch in (0, round(self.first_prototypes * epochs), epochs)

    def observe(self, batch: Batch, memory: Memory) -> dict[str, Tensor]:
        """Mean probability of the tags as given; counts tags, collects prototypes, and cleans at the end."""
        if batch.epoch == 0:
            batch.part("count").add(self.given(batch))
        each = batch.part("tags")(batch.part("projector")(batch.key))
        if batch.past(self.first_prototypes) and not bool(batch.part("prototypes").ready):
            trusted = batch.anchors != 0
            batch.part("prototypes").collect(each, self.given(batch), trusted)
        score = self.score(batch, batch.part("tags")(batch.part("projector")(batch.features)))
        target = self.clean(batch, score)
        memory.write("label", batch.rows, target.to(torch.int8))
        return {"label": torch.where(batch.labels > 0, score, 1 - score).mean(1)}

    def decide(self, signals: Mapping[str, np.ndarray], memory: Memory) -> Trust:
        """Everybody is trained on; entries are masked one by one."""
        return Trust(p_clean=np.clip(signals["label"], 0, 1), clean=np.ones(memory.n, bool))

    def relabelled(self, signals: Mapping[str, np.ndarray], memory: Memory) -> np.ndarray | None:
        """The cleaned tags, -1 = unknown."""
        return memory.columns["label"].cpu().numpy()

    def given(self, batch: Batch) -> Tensor:
        """Tags with what the anchors say."""
        return anchored_tags(batch.labels, batch.anchors, faithful=self.faithful)

    def score(self, batch: Batch, each: Tensor) -> Tensor:
        """s = mix sigmoid(o) + (1 - mix) softmax over (not, has) of the prototypes; the classifier alone before."""
        seen = torch.sigmoid(batch.logits)
        if not bool(batch.part("prototypes").ready):
            return seen.detach()
        near = torch.softmax(batch.part("prototypes").logits(each, self.temperature), 2)[..., 1]
        return (self.mix * seen + (1 - self.mix) * near).detach()

    def clean(self, batch: Batch, score: Tensor) -> Tensor:
        """Tags after noise removal, once its time has come."""
        if not batch.past(self.first_clean):
            return self.given(batch)
        return remove_tag_noise(score, batch.labels, batch.anchors, threshold=self.threshold, faithful=self.faithful)

    def learn(self, batch: Batch, memory: Memory, trust: Trust | None, peer: Batch | None) -> Loss:
        """Classifier, prototypes, auxiliary head, contrast with the queue, reconstruction."""
        prototypes = batch.part("prototypes")
        active = batch.past(self.first_prototypes)
        if active:
            prototypes.begin()
        z = batch.part("projector")(batch.features)
        each = batch.part("tags")(z)
        target = self.clean(batch, self.score(batch, each))
        known = (target >= 0).any(1)
        positive = batch.part("count").weight() if self.balance else torch.ones_like(batch.logits[0])
        goal = target.to(z.dtype)
        extras: dict[str, Tensor] = {}
        if active:
            extras["prototypes"] = over_kept(self.to_prototypes(prototypes, each, target, positive), known).mean()
            prototypes.move(each, target, target >= 0, self.decay)
        contrast, soft, has_soft = self.instances(batch, z)
        logits = batch.part("tags").logits(each)
        share = self.soft * has_soft
        loss = (1 - share) * masked_tag_loss(logits, goal, positive) + share * self.softly(logits, soft)
        extras["auxiliary"] = over_kept(loss, known).mean()
        extras["instances"] = contrast
        again = batch.part("reconstructor")(z.detach() if active else z)
        extras["reconstruction"] = over_kept(((again - batch.features.detach()) ** 2).mean(1), known).mean()
        return Loss(per_pair=over_kept(masked_tag_loss(batch.logits, goal, positive), known), extras=extras)

    def to_prototypes(self, prototypes: Prototypes, each: Tensor, target: Tensor, positive: Tensor) -> Tensor:
        """Two-way cross-entropy with the prototypes of each class; positives weigh the mean of their weights."""
        log_p = torch.log_softmax(prototypes.logits(each, self.temperature), 2)
        own = -log_p.gather(2, target.clamp(min=0)[..., None])[..., 0]
        weight = torch.where(target > 0, positive.mean(), 1.0) * (target >= 0)
        return (own * weight).sum(1) / weight.sum(1).clamp(min=1e-12)

    def softly(self, logits: Tensor, soft: Tensor) -> Tensor:
        """Cross-entropy with soft tags; released, its positive half alone."""
        loss = -soft * functional.logsigmoid(logits)
        if not self.faithful:
            loss = loss - (1 - soft) * functional.logsigmoid(-logits)
        return loss.mean(1)

    def instances(self, batch: Batch, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Contrast with the queue, which then takes the new keys; the soft tags that it gives, and to whom."""
        queue: Queue = batch.part("queue")
        key = batch.part("projector")(batch.key).detach()
        before, _ = queue.read()
        contrast = queue_contrast(z, key, before, temperature=self.temperature).mean()
        queue.push(key, batch.rows)
        keys, rows = queue.read()
        with torch.no_grad():
            each = batch.part("tags")(keys)
            near = torch.softmax(batch.part("prototypes").logits(each, self.temperature), 2)[..., 1]
            beliefs = self.mix * torch.sigmoid(batch.part("tags").logits(each)) + (1 - self.mix) * near
            own = (rows == batch.rows[:, None]) & (not self.faithful)
            soft = collective_targets(z, keys, beliefs, own, temperature=self.soft_temperature, linear=self.faithful)
        return contrast, soft, (~own).any(1)


class Count(nn.Module):
    """How often each tag is given.

    Args:
        classes: c.
    """

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.seen: Tensor
        self.register_buffer("seen", torch.zeros(2, classes))  # samples, and those with the tag

    @torch.no_grad()
    def add(self, tags: Tensor) -> None:
        """Count a batch (b, c)."""
        self.seen[0] += len(tags)
        self.seen[1] += (tags > 0).sum(0)

    def weight(self) -> Tensor:
        """sqrt((n - n_c) / n_c), with n_c counted from 1; (c,)."""
        n, n_c = self.seen[0].clamp(min=2), self.seen[1] + 1
        return ((n - n_c).clamp(min=1) / n_c).sqrt()
