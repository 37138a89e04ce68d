"""The rule of `recaption`: which pairs get a proposal, and when a text is kept, replaced, merged or flagged."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from noisycorr.caption.recaption.choice import Recaption
from noisycorr.caption.recaption.guards import content_words

GUARDS = ("unsteady", "unsupported words", "unlikely words")


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
