"""SPS: strictly clean pairs keep a symmetric structure, and lend their texts to wrong ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from noisycorr.models.losses import apart, asymmetry, choose_partner, info_nce, match_posterior, structure_gap
from noisycorr.models.training.contract import Encoded, Loss, Strategy, Trust
from noisycorr.models.training.memory import Memory
from noisycorr.retrieval.partition import split_two, strictly_clean
from noisycorr.retrieval.posterior import gaussian_posterior
from noisycorr.retrieval.rectify import on_arrays, proxy_label, rectify
from noisycorr.retrieval.strategies.ncr import later

TEMPERATURE = 0.07  # of the released code


@dataclass(frozen=True, kw_only=True)
class SPS(Strategy):
    """Soft InfoNCE on clean pairs and on noisy ones with a proxy text; two penalties on strictly clean pairs.

        strict   both networks give more than `sure`,   clean: both give more than `threshold`,   noisy: the rest
        clean    y_i = w_i + (1 - w_i) c_i,   c_i = (P_ii + Q_ii) / 2,   w the peer's probability
        noisy    the text of the strictly clean pair of the batch whose image is nearest;  y_i = c_i cos, 0 below 1/2
        loss_i   - sum_j (W_ij ln P_ij + V_ij ln Q_ij),   W_ii = y_i, the rest by similarity over the negatives
        strict   + penalty * (mean (S - S^T)^2 + mean (A - B)^2),   A, B cosines among images, among texts

    Attributes:
        faithful: As the released code does.
        warm_up: First epochs on all pairs.
        clean_from: When clean pairs that are not strictly so join, as a share of those after the warm-up.
        noisy_from: The same for noisy pairs; 1 = never.
        threshold: Of clean pairs.
        sure: Of strictly clean pairs.
        penalty: Weight of both penalties.
        borrow_weight: Factor of the loss of noisy pairs; None = 1 if `faithful`, else 0.1.
        peer: twin, or none for one network that follows itself.

    Source: SPS (IJCAI 2025), on the code of CREAM (IEEE TIP 2024).
    Differs: labels multiply the loss, and what is left of them is not given to the negatives, of which wrong texts say
    nothing. Noisy pairs without a proxy are dropped. Mean of both directions. Pairs of the same picture or text, lent
    texts among them, are no negatives. The posterior is monotone. 10 and 15 of 40 epochs are shares here.
    Differs if faithful: cosines of global vectors in place of SGR scores; all sets share a batch and one step, and
    small targets are not dropped.
    """

    faithful: bool = False
    warm_up: int = 3
    clean_from: float = 0.25
    noisy_from: float = 0.375
    threshold: float = 0.5
    sure: float = 0.6
    penalty: float = 25.0
    borrow_weight: float | None = None
    peer: Literal["none", "twin"] = "twin"
    judges = True

    def __post_init__(self) -> None:
        if self.warm_up < 0 or self.penalty < 0 or not (0 <= self.clean_from <= 1 and 0 <= self.noisy_from <= 1):
            raise ValueError("warm_up and penalty must be >= 0, clean_from and noisy_from in [0, 1]")
        if not 0 <= self.threshold <= self.sure <= 1:
            raise ValueError("expected 0 <= threshold <= sure <= 1")

    def opens(self, epochs: int) -> Mapping[str, int]:
        """Strictly clean pairs at once, clean and noisy ones later."""
        return {"strict": 0, "clean": later(self.clean_from, self.warm_up, epochs),
                "noisy": later(self.noisy_from, self.warm_up, epochs)}  # fmt: skip

    def signals(self, enc: Encoded, memory: Memory) -> dict[str, Tensor]:
        """InfoNCE of the given pairs."""
        return {"loss": info_nce(enc.sims, **self._options(enc, enc.negatives))}

    def decide(self, signals: Mapping[str, np.ndarray], memory: Memory) -> Trust:
        """The opinion of one network; `agree` makes the sets."""
        split = gaussian_posterior(signals["loss"], seed=0, faithful=self.faithful)
        clean = split_two(split.p_clean, threshold=self.threshold, least=0.01 if self.faithful else 0.0)
        return self.agree([Trust(p_clean=split.p_clean, clean=clean, note=split.warning)])[0]

    def agree(self, trusts: Sequence[Trust]) -> Sequence[Trust]:
        """Sets of both networks together."""
        one, two = trusts[0], trusts[-1]
        clean = one.clean & two.clean
        strict = clean & strictly_clean(one.p_clean, two.p_clean, threshold=self.sure)
        return [replace(trust, clean=clean.copy(), sets={"strict": strict.copy(), "noisy": ~clean}) for trust in trusts]

    def step(self, enc: Encoded, memory: Memory, trust: Trust | None, peer: Encoded | None) -> Loss:
        """The soft losses, and the penalties of strictly clean pairs."""
        if trust is None:
            return Loss(per_pair=self._both(info_nce(enc.sims, **self._options(enc, enc.negatives))))
        b, w = len(enc.rows), trust.chance(enc)
        clean, strict = trust.holds("clean", enc), trust.holds("strict", enc)
        partner, cosine = torch.arange(b, device=w.device), torch.ones_like(w)
        if strict.any():
            allowed = strict[None, :].expand(b, b)
            if not self.faithful:
                allowed = allowed & apart(enc.image_group)
            near = (enc.image @ enc.image.T).detach()
            index, _ = choose_partner(near, threshold=-1.0, allowed=allowed)
            cosine = torch.where(clean, cosine, near.gather(1, index[:, None])[:, 0])
            partner = torch.where(clean, partner, index)
        sims, negatives = enc.sims[:, partner], enc.negatives
        if not self.faithful:
            negatives = apart(enc.image_group) & apart(enc.text_group[partner])
        options = self._options(enc, negatives)
        opinion = match_posterior(sims, **options).detach()
        lent = on_arrays(proxy_label, opinion, cosine) if strict.any() else torch.zeros_like(w)
        y = torch.where(clean, on_arrays(rectify, w, opinion), lent)
        if self.faithful:
            loss = self._both(info_nce(sims, target=y, **options))
        else:
            weight = torch.where(clean, y, (0.1 if self.borrow_weight is None else self.borrow_weight) * y)
            loss = info_nce(sims, weight=weight, **options) * b / weight.sum().clamp(min=1e-6)
        return Loss(per_pair=loss, extras=self._penalties(enc, strict))

    def _penalties(self, enc: Encoded, strict: Tensor) -> dict[str, Tensor]:
        rows = strict.nonzero()[:, 0]
        if not len(rows):
            return {}
        image, text = enc.image[rows], enc.text[rows]
        sims = enc.sims[rows][:, rows]
        return {
            "asymmetry": self.penalty * asymmetry(sims).mean(),
            "structure_gap": self.penalty * structure_gap(image @ image.T, text @ text.T).mean(),
        }

    def _both(self, loss: Tensor) -> Tensor:
        """Sum of both directions in the released code, their mean else."""
        return 2 * loss if self.faithful else loss

    def _options(self, enc: Encoded, negatives: Tensor) -> dict[str, Any]:
        if self.faithful:
            return {"temperature": enc.temperature.new_tensor(TEMPERATURE), "negatives": torch.ones_like(negatives)}
        return {"temperature": enc.temperature, "negatives": negatives}
