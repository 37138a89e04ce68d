"""What gets a new text, and when that is taken: the choices behind the flags. Light, so that the help comes at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from noisycorr.runtime.errors import UsageError, check_words

Propose = Literal["nearest", "agreement", "class"]
Policy = Literal["replace", "merge", "flag"]
Aggregate = Literal["worst", "uncertainty", "mean"]


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
    propose: Propose = "agreement"
    donors: int = 10
    trust: float = 0.8
    same_image: bool = False
    classes: int = 64
    least: float = 0.5
    gain: float = 0.35
    policy: Policy = "replace"
    aggregate: Aggregate = "worst"
    penalty: float = 0.5
    guard_overlap: float = 0.2
    guard_pmi: float = -100.0
    guard_steady: float = 0.1
    disturbance: float = 0.3
    recaption_seed: int = 0

    def __post_init__(self) -> None:
        check_words(self)
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
