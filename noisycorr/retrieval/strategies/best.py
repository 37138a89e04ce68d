"""The project's own recipe: calibrated detection before training, refined by what two networks learn, as weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from scipy import special
from sklearn.isotonic import IsotonicRegression
from torch import Tensor

from noisycorr.models.losses import generalised_cross_entropy, info_nce
from noisycorr.models.training.contract import Encoded, Loss, Strategy, Trust
from noisycorr.models.training.memory import Memory
from noisycorr.retrieval.posterior import gaussian_posterior
from noisycorr.retrieval.strategies.weights import ledger_column, per_weight

SURE = 1e-3  # probabilities are kept this far from 0 and 1 when odds are multiplied
ALONE = "there is no p_clean of `noisycorr clean`: the losses of the networks alone say which pairs are right"
FEW = 0.005  # below this expected share of wrong pairs there is nothing to refine


@dataclass(frozen=True, kw_only=True)
class Best(Strategy):
    """A robust loss weighted by the probability that a pair is right; cross-fitted detection, refined by the peer.

        p_i      = what `noisycorr clean` says of pair i, from heads that never saw it
        odds_i  <- odds(p_i) * ( m(l_i) / (1 - m(l_i)) * (1 - pi) / pi ) ^ share
        loss_i   = p_i * gce_i / mean p

    gce is generalised cross-entropy, between InfoNCE and a bounded loss. l_i is the InfoNCE of pair i under the peer,
    m(l) the mean of p at that loss (isotonic, so that lower losses are never worse), pi the mean of p: the bracket is
    a likelihood ratio learned from soft labels, and 1 where clean says that nothing is wrong. So the refinement cannot
    invent noise, which mixtures of losses do on clean data.

    Where `clean` said nothing, as for region features, p is 1 in the warm-up and then co-taught: the lower of two
    Gaussians on the peer's loss.

    Attributes:
        peer: twin, or none for one network that follows itself.
        warm_up: First epochs with the weights of `clean` alone.
        column: Calibrated probability of the ledger.
        share: How much the losses count, >= 0; 0 = only what `clean` says.
        least: Pairs below this probability are left out, in [0, 1).
        q: Robustness of the loss, in [0, 1]: 0 = InfoNCE, above it generalised cross-entropy.

    Source: ours. Detection `clean.signals`; the exchange of opinions is co-teaching (Han et al., NeurIPS 2018).
    """

    peer: Literal["none", "twin"] = "twin"
    warm_up: int = 3
    column: str = "p_clean"
    share: float = 0.5
    least: float = 0.1
    q: float = 0.3
    needs_columns = True
    judges = True

    def __post_init__(self) -> None:
        if self.share < 0 or not 0 <= self.least < 1 or not 0 <= self.q <= 1:
            raise ValueError("share must be >= 0, least in [0, 1), and q in [0, 1]")

    def signals(self, enc: Encoded, memory: Memory) -> dict[str, Tensor]:
        """The loss of each pair, and what is known before, if anything is."""
        found = {"loss": info_nce(enc.sims, temperature=enc.temperature, negatives=enc.negatives)}
        return found if self._is_alone(enc) else found | {"prior": self._prior(enc)}

    def decide(self, signals: Mapping[str, np.ndarray], memory: Memory) -> Trust:
        """Prior odds times what the losses say, or what these say alone."""
        if "prior" in signals:
            p, note = refine(np.clip(signals["prior"], 0, 1), signals["loss"], share=self.share), None
        else:
            found = gaussian_posterior(signals["loss"], seed=0)
            p, note = found.p_clean, found.warning or ALONE
        clean = p >= self.least
        return Trust(p_clean=p, clean=clean, note=note if clean.any() else "no pair is believed: all are used")

    def step(self, enc: Encoded, memory: Memory, trust: Trust | None, peer: Encoded | None) -> Loss:
        """Weighted loss; every image and text of the batch stays a negative, however doubtful its own pair."""
        weight = trust.chance(enc) if trust is not None else self._prior(enc)
        if self.q:
            loss = generalised_cross_entropy(enc.sims, temperature=enc.temperature, q=self.q, negatives=enc.negatives,
                                             weight=weight)  # fmt: skip
        else:
            loss = info_nce(enc.sims, temperature=enc.temperature, negatives=enc.negatives, weight=weight)
        return Loss(per_pair=per_weight(loss, weight))

    def _is_alone(self, enc: Encoded) -> bool:
        """True if nobody judged the pairs before; another column than the default must be there."""
        return self.column == "p_clean" and self.column not in enc.columns

    def _prior(self, enc: Encoded) -> Tensor:
        if self._is_alone(enc):
            return torch.ones_like(enc.sims.diagonal())
        return ledger_column(enc, self.column).nan_to_num(0.0).clamp(0, 1)


def refine(prior: Float[np.ndarray, " n"], loss: Float[np.ndarray, " n"], *, share: float) -> Float[np.ndarray, " n"]:
    """Posterior from calibrated priors and a loss whose meaning is learned from them.

    Args:
        prior: Probability that each pair is right, in [0, 1].
        loss: Higher = worse matched.
        share: Power of the likelihood ratio; below 1 because prior and loss are not independent.

    Returns:
        Probability in [0, 1]; the prior itself where fewer than 0.5 % of the pairs are expected to be wrong or right,
        or the losses do not differ.
    """
    pi = float(prior.mean())
    if not FEW < pi < 1 - FEW or not np.ptp(loss) > 0 or share == 0:
        return prior
    mean = IsotonicRegression(increasing=False, y_min=SURE, y_max=1 - SURE, out_of_bounds="clip").fit(loss, prior)
    ratio = special.logit(np.clip(mean.predict(loss), SURE, 1 - SURE)) - special.logit(pi)
    return special.expit(special.logit(np.clip(prior, SURE, 1 - SURE)) + share * ratio)
