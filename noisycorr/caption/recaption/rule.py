"""The rule of `recaption`: which pairs get a proposal, and when a text is kept, replaced, merged or flagged."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from jaxtyping import Float

from noisycorr.caption.recaption.guards import content_words
from noisycorr.caption.recaption.judge import Aggregate
from noisycorr.runtime.errors import UsageError

Propose = Literal["nearest", "agreement", "class"]
Policy = Literal["replace", "merge", "flag"]
GUARDS = ("unsteady", "unsupported words", "unlikely words")


@dataclass(frozen=True, kw_only=True)
class Recaption:
    """What gets a new text, where that comes from, and when it is taken.

    Attributes:
        below: Pairs marked as mismatched, dropped, or to be reviewed or repaired get a proposal if p_clean is below
            this (all of them if it is 1); so do pictures without a text or with a text issue.
        propose: Without a model: nearest takes the text of the nearest trusted image, agreement the one of `donors`
            neighbours that says what they all say, class that of the trusted pair of the most similar pseudo-class.
        donors: Trusted neighbours that are asked, 1 to 200.
        trust: Only kept pairs with p_clean at or above this lend their text.
        same_image: Also take texts of pairs with the same picture. They are right, but the pair is then there twice.
        classes: Pseudo-classes of `propose class`.
        least: Take a text only if the probability that it fits is at least this.
        gain: And if that is this much above the probability that the given text fits.
        policy: replace takes the new text; merge adds what of the given one the neighbours' texts support; flag only
            proposes it, for a person to look at.
        aggregate: How several scorers are combined: worst takes the smallest, uncertainty the mean less `penalty` times
            the variance, mean the mean.
        penalty: Of the variance.
        guard_overlap: Flag a new text of which a smaller share of content words stands in the neighbours' texts; 0 =
            off.
        guard_pmi: Flag a new text whose least supported words have a lower mean PMI, in nats; -100 = off.
        guard_steady: Flag a new text that has a smaller mean cosine to those proposed for the disturbed picture; -1 =
            off.
        disturbance: Length of the noise on the picture's features, as a share of theirs.
        recaption_seed: Of disturbance, clusters and folds.
    """

    below: float = 0.5
    propose: str = "agreement"
    donors: int = 10
    trust: float = 0.8
    same_image: bool = False
    classes: int = 64
    least: float = 0.5
    gain: float = 0.35
    policy: str = "replace"
    aggregate: str = "worst"
    penalty: float = 0.5
    guard_overlap: float = 0.2
    guard_pmi: float = -100.0
    guard_steady: float = 0.1
    disturbance: float = 0.3
    recaption_seed: int = 0

    def __post_init__(self) -> None:
        for name, words in (("propose", Propose), ("policy", Policy), ("aggregate", Aggregate)):
            if getattr(self, name) not in get_args(words):
                raise UsageError(f"`{name}` is {getattr(self, name)!r}, expected one of {', '.join(get_args(words))}.")
        for name in ("below", "trust", "least", "gain", "guard_overlap"):
            if not 0 <= getattr(self, name) <= 1:
                raise UsageError(f"`{name}` is {getattr(self, name)}, expected a number from 0 to 1.")
        if not 1 <= self.donors <= 200:
            raise UsageError(f"`donors` is {self.donors}, expected 1 to 200.")
        if self.classes < 2:
            raise UsageError(f"`classes` is {self.classes}, expected at least 2.")
        if self.penalty < 0 or self.disturbance < 0:
            raise UsageError("`penalty` and `disturbance` must be 0 or more.")
        if not -1 <= self.guard_steady <= 1:
            raise UsageError(f"`guard_steady` is {self.guard_steady}, expected a cosine from -1 to 1.")


def fired(choice: Recaption, overlap: Float[np.ndarray, " m"], pmi: Float[np.ndarray, " m"],
          steady: Float[np.ndarray, " m"]) -> np.ndarray:  # fmt: skip
    """object (m,): the first guard of ``GUARDS`` that speaks against the new text, or None. NaN speaks against none."""
    out = np.full(len(overlap), None, object)
    with np.errstate(invalid="ignore"):
        bad = (steady < choice.guard_steady, overlap < choice.guard_overlap, pmi < choice.guard_pmi)
    for name, rows in reversed(list(zip(GUARDS, bad))):
        out[rows] = name
    return out


def act(choice: Recaption, p_old: Float[np.ndarray, " m"], p_new: Float[np.ndarray, " m"],
        guard: np.ndarray) -> np.ndarray:  # fmt: skip
    """object (m,): what to do with each proposal.

        keep      the new text is not known to fit, p_new < least, or is not clearly better, p_new - p_old < gain
        flag      it is, but a guard speaks against it, or the policy is to flag
        replace   it is, or merge where the policy says so

    Args:
        choice: The rule.
        p_old: Probability that the given text fits, in [0, 1]; NaN where there is none counts as 0.
        p_new: The same of the new text; NaN where there is none.
        guard: From ``fired``.
    """
    old = np.nan_to_num(np.asarray(p_old, np.float64))
    with np.errstate(invalid="ignore"):
        better = (p_new >= choice.least) & (p_new - old >= choice.gain)
    held = np.array([name is not None for name in guard], bool)
    taken = "flag" if choice.policy == "flag" else choice.policy
    return np.where(~better, "keep", np.where(held, "flag", taken)).astype(object)


def merge_texts(new: str, given: str | None, neighbours: list[str]) -> str:
    """The new text and, after it, those content words of the given one that neighbours use and the new one lacks.

    So facts that a picture's neighbours confirm survive, in the order of the given text, and nothing else of it does.
    """
    held = {word for other in neighbours for word in content_words(other)}
    have = set(content_words(new))
    extra = [word for word in dict.fromkeys(content_words(given or "")) if word in held and word not in have]
    return f"{new}, {' '.join(extra)}" if extra else new
