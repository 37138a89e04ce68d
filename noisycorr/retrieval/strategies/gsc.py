"""GSC: a right pair's image stands among the images of a batch as its text stands among the texts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from noisycorr.models.losses import info_nce, match_posterior, structure_agreement, structure_contrast
from noisycorr.models.training.contract import Encoded, Loss, Strategy, Trust
from noisycorr.models.training.memory import Memory
from noisycorr.retrieval.posterior import gaussian_posterior
from noisycorr.retrieval.rectify import blend

TEMPERATURE = 0.07  # of the released code


@dataclass(frozen=True, kw_only=True)
class GSC(Strategy):
    """InfoNCE of all pairs, each by the smaller of two labels: what the model says of it, and what its structure says.

        A_ik = cos(image i, image k),   B_ik = cos(text i, text k)
        a_i  = cos((A_ik)_k, (B_ik)_k),   z_i = probability that a_i is of the higher of two Gaussians
        y_i  = min(moving average of (P_ii + Q_ii) / 2, moving average of z_i), which keep `keep` of the epoch before
        loss_i = y_i (info_nce_i + gamma * info_nce_i(A diag(y)^2 B^T))

    P and Q are the posteriors of the partner in the batch, of both directions.

    Attributes:
        faithful: As the released code does.
        warm_up: First epochs on all pairs.
        gamma: Weight of the structure loss.
        keep: Share of the labels of the epoch before, in [0, 1].
        peer: none, or twin: two networks that follow each other's labels (GSC+).

    Source: GSC (Zhao et al., CVPR 2024).
    Differs: cosines of global vectors in place of SGR scores between images and between texts. The own entry, which is
    1 on both sides, and the mean of each row are left out of a_i, which is else near 1 for all; structure is judged in
    evaluation mode, both directions of the structure loss count, the temperature is learned, batches are divided by
    their sum of labels, and pairs of the same picture or text are no negatives. A warm-up of one epoch gives the first
    labels something to judge by.
    Differs if faithful: the cosines only.
    """

    faithful: bool = False
    warm_up: int = 1
    gamma: float = 0.01
    keep: float = 0.3
    peer: Literal["none", "twin"] = "none"
    judges = True

    def __post_init__(self) -> None:
        if self.warm_up < 0 or self.gamma < 0 or not 0 <= self.keep <= 1:
            raise ValueError("warm_up and gamma must be >= 0, keep in [0, 1]")

    def memory(self, n: int) -> Memory:
        """Both labels of each pair, 1 at first, and its structure in the batch that was trained on last."""
        return Memory(n, predicted=torch.ones(n).double(), structured=torch.ones(n).double(), seen=torch.zeros(n))

    def signals(self, enc: Encoded, memory: Memory) -> dict[str, Tensor]:
        """Agreement of structure, and the posterior of the partner."""
        return {"structure": self._structure(enc), "posterior": match_posterior(enc.sims, **self._options(enc))}

    def decide(self, signals: Mapping[str, np.ndarray], memory: Memory) -> Trust:
        """The smaller of both labels. All pairs are trained on, by their labels."""
        structure = signals["structure"]
        if self.faithful and bool((memory.columns["seen"] != 0).any()):
            structure = memory.columns["seen"].double().cpu().numpy()
        split = gaussian_posterior(-structure, seed=0, faithful=self.faithful)
        labels = {"predicted": np.clip(signals["posterior"], 0, 1), "structured": split.p_clean}
        rows, y = torch.arange(memory.n), np.ones(memory.n)
        for name, now in labels.items():
            label = blend(memory.columns[name].cpu().numpy(), now, keep=self.keep)
            memory.write(name, rows, torch.from_numpy(label))
            y = np.minimum(y, label)
        return Trust(p_clean=y, clean=np.ones(memory.n, bool), note=split.warning)

    def step(self, enc: Encoded, memory: Memory, trust: Trust | None, peer: Encoded | None) -> Loss:
        """Both InfoNCE losses by the label."""
        y = enc.sims.new_ones(len(enc.rows)) if trust is None else trust.chance(enc)
        options = self._options(enc)
        loss = info_nce(enc.sims, weight=y, **options)
        loss = loss + self.gamma * structure_contrast(
            enc.image @ enc.image.T, enc.text @ enc.text.T, anchor=y, weight=y, negatives=options["negatives"],
            faithful=self.faithful,
        )  # fmt: skip
        if self.faithful:
            memory.write("seen", enc.rows, self._structure(enc))
            return Loss(per_pair=loss)
        return Loss(per_pair=loss * len(y) / y.sum().clamp(min=1e-6))

    def _structure(self, enc: Encoded) -> Tensor:
        image, text = (rows.detach() @ rows.detach().T for rows in (enc.image, enc.text))
        if self.faithful:
            return structure_agreement(image, text)
        other = 1 - torch.eye(len(image), dtype=image.dtype, device=image.device)
        centred = [(x - (x * other).sum(1, keepdim=True) / other.sum(1, keepdim=True)) * other for x in (image, text)]
        return structure_agreement(*centred)

    def _options(self, enc: Encoded) -> dict[str, Any]:
        if self.faithful:
            return {"temperature": enc.temperature.new_tensor(TEMPERATURE), "negatives": torch.ones_like(enc.negatives)}
        return {"temperature": enc.temperature, "negatives": enc.negatives}
