"""PC2: texts name classes, images learn to predict them, and wrong pairs borrow texts of right ones of their class."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from noisycorr.models.losses import (
    apart,
    balanced_targets,
    batch_entropy,
    choose_partner,
    class_cosine,
    exponential_margin,
    hardest_triplet,
    info_nce,
    mean_triplet,
    pseudo_class_cross_entropy,
    sample_entropy,
)
from noisycorr.models.training.contract import Encoded, Loss, Strategy, Trust
from noisycorr.models.training.memory import Memory
from noisycorr.retrieval.partition import split_two
from noisycorr.retrieval.posterior import gaussian_posterior
from noisycorr.retrieval.rectify import on_arrays, oscillation, rectify_stable
from noisycorr.retrieval.strategies.held_out import bounded, held_rows, level_held, strangers, wrong_share
from noisycorr.retrieval.strategies.ncr import later
from noisycorr.stats.detection import auroc

HIDDEN = 256  # width of the classifier's hidden layer
BLIND = 0.6  # oscillation that ranks known cases no better than this is turned off


@dataclass(frozen=True, kw_only=True)
class PC2(Strategy):
    """Clean pairs learn as they are; others get the text of the clean pair of the batch whose class is most alike.

    One classifier for both sides gives p_i of image i and q_i of text i, over K classes.

        clean pair i     y_i l(image i, text i),     y_i = w_i + (1 - w_i) u_i [u_i > threshold]
        noisy pair i     s_i l(image i, text j_i),   j_i = argmax_j cos(p_i, p_j) over clean j,   s_i that cosine or 0
        all clean pairs  class_weight * (CE(balanced q_i, p_i) - entropy * H(mean p))

    with w the peer's probability that the pair is right, from two Gaussians on its loss, u that its class is stable,
    from two Gaussians on its oscillation KL(p_i now || p_i an epoch ago), and l InfoNCE or the hardest triplet; s_i is
    0 below the threshold, and is multiplied by `borrow_weight`. The mean over a batch is by weight. Images and texts of
    noisy pairs are negatives of everybody. A text that was borrowed is no negative of its borrowers nor of its owner,
    and a borrower has no negatives of its own class: a borrowed text tells the class, and not which of its members.

    Two parts are checked on known cases before each epoch, and turned off with a note where they say nothing.
    Oscillation: a small `probe` of the pairs is taught the class of another text on purpose; do those move more?
    Borrowed texts: for right pairs, is the text that would be borrowed nearer to their own than nine of ten others?
    And since two Gaussians find two kinds of pairs in clean data, too, some pairs stay out of the warm-up: their losses
    beside those of re-paired pairs say how many are wrong at most, and w is raised until it agrees.

    Attributes:
        classify: Train the pseudo-classes. Without, texts are borrowed by the cosine of images.
        borrow: Train on noisy pairs with borrowed texts. Without, they are negatives only.
        stable: Raise labels of pairs of a stable class. Needs `classify`.
        faithful: As the released code does.
        warm_up: First epochs on all pairs.
        noisy_from: When noisy pairs join, as a share of the epochs after the warm-up; 1 = never. None = 0.5 if
            `faithful`, else 0.
        classes: K.
        threshold: Of w, u and s.
        loss: l: infonce or triplet.
        margin: Of the triplet, in units of similarity.
        entropy: Weight of the entropy beside cross-entropy; None = 10 if `faithful`, else 1.
        class_weight: Weight of the pseudo-classes beside l. If `faithful` it is 1, beside a sum over the batch.
        borrow_weight: Factor of s, >= 0; 1 if `faithful`.
        near: Texts are borrowed only where, for right pairs, the text that would be borrowed is nearer to the own one
            than this share of the others; 0 = always.
        probe: Share of the pairs that serve as known cases of a wrong class; 0 = do not check oscillation.
        held_out: Share of the pairs that the warm-up leaves out, in [0, 0.5]; 0 = believe the Gaussians.
        peer: twin, or none for one network that follows itself.

    Source: PC2 (Duan et al., ACM MM 2024).
    Differs: InfoNCE by default. Classes of texts are balanced by transport over the batch, the classifier's input is
    scaled, and the entropy is that of the mean prediction; the released code takes the arg-max and the mean of
    entropies, whose rest point is flat. Labels multiply the loss instead of only shrinking a margin, and carry no
    gradient. The bank is kept by pair and renewed each epoch. Clean and noisy pairs share a batch from the start, so
    that each serves as negatives of all; in the paper noisy ones join at epoch 25 of 50. Pairs of the same picture or
    text are no negatives. The posterior is monotone, and bounded by what left-out pairs say. The paper's warm-up of 5
    epochs before 50 is 3 of 15 here.
    Differs if faithful: global vectors in place of regions and words, so that cosines take the place of SGR's scores;
    one step on both kinds of pairs instead of two; the optimiser is not made anew after the warm-up. From the middle
    on, the released code writes its bank under wrong keys; here it stays as the warm-up left it.
    """

    classify: bool = True
    borrow: bool = True
    stable: bool = True
    faithful: bool = False
    warm_up: int = 3
    noisy_from: float | None = None
    classes: int = 64
    threshold: float = 0.5
    loss: Literal["infonce", "triplet"] = "infonce"
    margin: float = 0.2
    entropy: float | None = None
    class_weight: float = 0.1
    borrow_weight: float = 0.3
    near: float = 0.9
    probe: float = 0.03
    held_out: float = 0.1
    peer: Literal["none", "twin"] = "twin"
    judges = True

    def __post_init__(self) -> None:
        if self.warm_up < 0 or self.classes < 2:
            raise ValueError("warm_up must be >= 0, classes >= 2")
        if not (0 <= self.threshold <= 1 and 0 <= self._joined() <= 1 and 0 <= self.probe <= 0.5):
            raise ValueError("threshold and noisy_from must lie in [0, 1], probe in [0, 0.5]")
        if not 0 <= self.held_out <= 0.5:
            raise ValueError(f"held_out is {self.held_out}, expected in [0, 0.5]")
        if not 0 <= self.near <= 1:
            raise ValueError(f"near is {self.near}, expected in [0, 1]")
        if self.loss not in ("infonce", "triplet"):
            raise ValueError(f"loss is {self.loss!r}, expected infonce or triplet")
        if not self.classify and (self.stable or self.faithful):
            raise ValueError("stable and faithful need classify: without classes nothing oscillates")

    def opens(self, epochs: int) -> Mapping[str, int]:
        """Clean pairs at once, noisy ones later."""
        return {"clean": 0, "noisy": later(self._joined(), self.warm_up, epochs)}

    def heads(self, dim: int) -> dict[str, nn.Module]:
        """The classifier of both sides."""
        if not self.classify:
            return {}
        layers = [nn.Linear(dim, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, self.classes)]
        scale = [] if self.faithful else [nn.LayerNorm(dim, elementwise_affine=False)]  # entries of unit rows are small
        return {"classes": nn.Sequential(*scale, *layers)}

    def memory(self, n: int) -> Memory:
        """Predictions of images, 0 before the first; classes of texts and borrowed texts, -1 before; known cases."""
        none = torch.full((n,), -1)
        known = none.clone()
        if self.classify and self.stable and not self.faithful and self.probe:
            some = torch.from_numpy(
                np.random.default_rng(0).permutation(n)[: max(int(self.probe * n), min(50, n // 10))]
            )
            known[some] = some.roll(1)  # whose text's class they are taught
        bank = torch.zeros(n, self.classes if self.classify else 0)
        out = self.held_out if self.warm_up and not self.faithful else 0.0
        return Memory(n, image_classes=bank, text_class=none, probe=known, partner=none, held=held_rows(n, out),
                      wrong_share=torch.full((n,), -1.0))  # fmt: skip

    def signals(self, enc: Encoded, memory: Memory) -> dict[str, Tensor]:
        """Loss, oscillation, and how near the text that would be borrowed is to the given one."""
        if self.faithful:
            found = {"loss": mean_triplet(enc.sims, margin=self.margin)}
        else:
            sims, negatives, wrong = strangers(enc.sims, enc.negatives, enc.rows)
            found = {
                "loss": self._plain(enc.sims, enc.negatives, enc.temperature),
                "loss_stranger": torch.where(wrong, self._plain(sims, negatives, enc.temperature), -1.0),
                "partner_fit": self._fit(enc),
            }
        if self.classify:
            before = memory.read("image_classes", enc.rows).double()
            now = enc.aux["classes"][0].softmax(1).double()
            moved = on_arrays(oscillation, now, before)
            found["loss_oscillation"] = torch.where(before.sum(1) > 0.5, moved, 0.0)
            if not self.faithful:
                self._remember(enc, memory, enc.aux["classes"][1].argmax(1))
        return found

    def decide(self, signals: Mapping[str, np.ndarray], memory: Memory) -> Trust:
        """Clean = the component of lower loss, with labels raised where the class is stable; the rest is noisy."""
        loss, share = self._bound(signals, memory)
        split = gaussian_posterior(loss, seed=0, faithful=self.faithful)
        w = bounded(split.p_clean, share)
        clean = split_two(w, threshold=self.threshold, least=0.01 if self.faithful else 0.0)
        notes, facts = [split.warning] if split.warning else [], {"wrong_share": share} if share < 1 else {}
        stable, borrow = self.stable, self.borrow
        if self.classify:
            facts["classes_in_use"] = float(memory.columns["image_classes"].argmax(1).unique().numel())
        if stable and not self.faithful and self.probe:
            facts["oscillation_auc"] = _probe(signals["loss_oscillation"], clean, memory.columns["probe"].cpu().numpy())
            if not facts["oscillation_auc"] >= BLIND:
                stable = False
                notes.append("oscillation tells known wrong classes no better than chance: labels do without it")
        if borrow and not self.faithful:
            facts["partner_fit"] = float(signals["partner_fit"][clean].mean()) if clean.any() else 0.0
            if not facts["partner_fit"] >= self.near:
                borrow = False
                notes.append("texts of the same class are not near enough to the right ones: noisy pairs borrow none")
        y = w
        if stable:
            drift = gaussian_posterior(signals["loss_oscillation"], seed=0, faithful=self.faithful)
            u = np.zeros_like(w) if drift.warning else np.asarray(drift.p_clean, np.float64)
            y = np.where(clean, rectify_stable(w, u, threshold=self.threshold), w)
        sets = {"noisy": ~clean & (clean.sum() > 1), "strict": clean & borrow}  # strict pairs lend their texts
        return Trust(p_clean=y, clean=clean, sets=sets, note="; ".join(notes) or None, facts=facts)

    def step(self, enc: Encoded, memory: Memory, trust: Trust | None, peer: Encoded | None) -> Loss:
        """The losses of clean and noisy pairs, and of the classes."""
        if self.faithful:
            return self._released(enc, memory, trust)
        b = len(enc.rows)
        clean = enc.rows >= 0 if trust is None else trust.holds("clean", enc)
        learned = (~memory.read("held", enc.rows)).to(enc.sims.dtype)
        weight = learned if trust is None else torch.where(clean, trust.chance(enc), 0.0)
        extras = self._classes(enc, memory, weight, warm=trust is None) if self.classify else {}
        rows = partner = torch.arange(b, device=clean.device)
        if trust is not None:
            index, s = self._partners(enc, trust)
            partner = torch.where(s > 0, index, partner)
            weight = torch.where(clean, weight, self.borrow_weight * s)
            memory.write("partner", enc.rows, torch.where(s > 0, enc.rows[partner], -1))
        borrows = partner != rows
        rows, columns = (torch.cat([x, rows[borrows]]) for x in (rows, partner))  # their own texts stay as negatives
        negatives = self._negatives(enc, rows, columns)
        if borrows.any():
            alike = self._alike(enc)[rows][:, columns] >= self.threshold
            lent = torch.cat([borrows, torch.zeros_like(rows[b:], dtype=torch.bool)])
            negatives &= ~(alike & (lent[:, None] | lent))
            negatives[b:] = False
        sims, weight = enc.sims[rows][:, columns], torch.cat([weight, weight.new_zeros(len(rows) - b)])
        if self.loss == "infonce":
            loss = info_nce(sims, temperature=enc.temperature, negatives=negatives, weight=weight)
        elif trust is None:
            loss = mean_triplet(sims, margin=self.margin, negatives=negatives) * weight
        else:
            margin = exponential_margin(weight.clamp(max=1), margin=self.margin)
            loss = hardest_triplet(sims, margin=margin, negatives=negatives, weight=weight)
        return Loss(per_pair=loss[:b] * b / weight.sum().clamp(min=1e-6), extras=extras)

    def _plain(self, sims: Tensor, negatives: Tensor, temperature: Tensor | float) -> Tensor:
        if self.loss == "triplet":
            return mean_triplet(sims, margin=self.margin, negatives=negatives)
        return info_nce(sims, temperature=temperature, negatives=negatives)

    def _bound(self, signals: Mapping[str, np.ndarray], memory: Memory) -> tuple[np.ndarray, float]:
        """The losses, and the largest share of wrong pairs; found once, when the left-out pairs are still unknown."""
        held = memory.columns["held"].cpu().numpy()
        if not held.any():
            return signals["loss"], 1.0
        share = float(memory.columns["wrong_share"][0])
        if share >= 0:
            return signals["loss"], share
        share = wrong_share(signals["loss"], signals["loss_stranger"], held)
        memory.columns["wrong_share"].fill_(share)
        return level_held(signals["loss"], held), share

    def _partners(self, enc: Encoded, trust: Trust) -> tuple[Tensor, Tensor]:
        """Whose text each noisy pair borrows, and how far it is trusted; 0 for all others."""
        allowed = trust.holds("strict", enc)[None, :] & apart(enc.image_group)
        index, s = choose_partner(self._likeness(enc), threshold=self.threshold, allowed=allowed)
        return index, torch.where(trust.holds("clean", enc), 0.0, s)

    def _classes(self, enc: Encoded, memory: Memory, weight: Tensor, *, warm: bool) -> dict[str, Tensor]:
        """What the classifier learns from pairs of some weight; known cases learn a wrong class."""
        image, text = enc.aux["classes"]
        goal = balanced_targets(text)
        other = memory.read("probe", enc.rows)
        wrong = memory.read("text_class", other.clamp(min=0))
        known = (other >= 0) & (wrong >= 0)
        goal = torch.where(known[:, None], F.one_hot(wrong.clamp(min=0), self.classes).to(goal.dtype), goal)
        self._remember(enc, memory, goal.argmax(1).where(~known, text.argmax(1)), images=warm)
        share = weight / weight.sum().clamp(min=1e-6)
        loss = (pseudo_class_cross_entropy(image, goal) * share).sum()
        mixed = batch_entropy(image, weight=weight.clamp(min=1e-6))
        strength = 1.0 if self.entropy is None else self.entropy
        return {"pseudo_class": self.class_weight * loss, "pseudo_class_entropy": -self.class_weight * strength * mixed}

    def _remember(self, enc: Encoded, memory: Memory, text_class: Tensor, *, images: bool = True) -> None:
        memory.write("text_class", enc.rows, text_class)
        if images:
            memory.write("image_classes", enc.rows, enc.aux["classes"][0].softmax(1))

    def _likeness(self, enc: Encoded) -> Tensor:
        return class_cosine(enc.aux["classes"][0], enc.aux["classes"][0]) if self.classify else enc.image @ enc.image.T

    def _alike(self, enc: Encoded) -> Tensor:
        """How alike image i and text j are in class."""
        return class_cosine(*enc.aux["classes"]).detach() if self.classify else enc.sims.detach()

    def _negatives(self, enc: Encoded, rows: Tensor, columns: Tensor) -> Tensor:
        """Among images `rows` and texts `columns` of the batch, pair by pair: neither picture nor text is the same."""
        return apart(enc.image_group[rows]) & apart(enc.text_group[columns])

    def _joined(self) -> float:
        return (0.5 if self.faithful else 0.0) if self.noisy_from is None else self.noisy_from

    def _fit(self, enc: Encoded) -> Tensor:
        """Share of the batch's other texts that are farther from a pair's text than the one it would borrow."""
        others = enc.negatives
        index, _ = choose_partner(self._likeness(enc), threshold=-1.0, allowed=others)
        near = enc.text @ enc.text.T
        own = near.gather(1, index[:, None])
        farther = ((near < own).to(near.dtype) + 0.5 * (near == own).to(near.dtype)).masked_fill(~others, 0.0)
        return farther.sum(1) / others.sum(1).clamp(min=1)

    def _released(self, enc: Encoded, memory: Memory, trust: Trust | None) -> Loss:
        """Sums over pairs, mean entropies, margins that broadcast, and a label that is differentiated."""
        b, (image, text) = len(enc.rows), enc.aux["classes"]
        clean = torch.arange(b, device=enc.rows.device) if trust is None else trust.holds("clean", enc).nonzero()[:, 0]
        loss = enc.sims.new_zeros(b)
        if trust is None:
            loss = mean_triplet(enc.sims, margin=self.margin)
            self._remember(enc, memory, text.argmax(1))
        elif len(clean):
            noisy = (~trust.holds("clean", enc)).nonzero()[:, 0]
            margin = exponential_margin(trust.chance(enc)[clean], margin=self.margin)
            inner = enc.sims[clean][:, clean]
            loss = loss.index_put((clean,), hardest_triplet(inner, margin=margin[:, None].expand_as(inner)))
            if len(noisy):
                cosine, index = class_cosine(image[noisy], image[clean]).max(1)
                margin = exponential_margin(torch.where(cosine >= self.threshold, cosine, 0.0), margin=self.margin)
                inner = enc.sims[noisy][:, clean[index]]
                loss = loss.index_put((noisy,), hardest_triplet(inner, margin=margin[None, :].expand_as(inner)))
                memory.write("partner", enc.rows[noisy], enc.rows[clean[index]])
        extras = {}
        if len(clean):
            flat = sample_entropy(image[clean]).mean()
            extras["pseudo_class"] = pseudo_class_cross_entropy(image[clean], text[clean].argmax(1)).mean()
            extras["pseudo_class_entropy"] = -(10.0 if self.entropy is None else self.entropy) * flat
        return Loss(per_pair=b * loss, extras=extras)


def _probe(moved: np.ndarray, clean: np.ndarray, probe: np.ndarray) -> float:
    """AUC with which oscillation tells pairs that were taught a wrong class from clean ones; 0.5 without either."""
    chosen = clean | (probe >= 0)
    value = auroc(-moved[chosen], probe[chosen] >= 0)
    return 0.5 if np.isnan(value) else value


def partner_purity(partner: np.ndarray, image_label: np.ndarray, text_label: np.ndarray) -> tuple[float, float]:
    """How often a borrowed text is of the image's class, and how often a random one would be. For evaluation only.

    Args:
        partner: (n,) column `partner` of the memory: the pair whose text was borrowed, or -1.
        image_label: (n,) class of the image of each pair.
        text_label: (n,) class of its text, which is another one where the pair is wrong.

    Returns:
        Purity and chance, in [0, 1]; NaN where nothing was borrowed.
    """
    borrowed = partner >= 0
    if not borrowed.any():
        return float("nan"), float("nan")
    kinds, codes = np.unique(np.concatenate([image_label, text_label]), return_inverse=True)
    image, text = codes[: len(image_label)], codes[len(image_label) :]
    shares = [np.bincount(side, minlength=len(kinds)) / max(len(side), 1) for side in (image[borrowed], text)]
    return float((text[partner[borrowed]] == image[borrowed]).mean()), float(shares[0] @ shares[1])
