"""Several texts for a picture, of which the likeliest that also fits is kept.

    value(y) = log p(y | picture, level) / (pieces of y + 1) ** length_penalty + w a(y) / spread

a(y) is the alignment of text and picture by a scorer, `spread` its standard deviation over the texts that are written
for validation pictures, so that w means the same for a cosine of CLIP as for learned heads. Levels give texts that
differ in more than a word: what the picture is, is asked for at each of them.

Source: choice among samples by a scorer alone (a large w) is the self-critical baseline; the sum is ours, after the
mutual information of Li et al. (NAACL 2016), with the scorer in place of the model that goes backwards.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from noisycorr.captioner.align import Align
from noisycorr.captioner.choice import Decode
from noisycorr.captioner.stored import Texts, Trained


@dataclass(frozen=True, slots=True, kw_only=True)
class Best:
    """What was kept for n pictures.

    Attributes:
        written: One text each, with its log-likelihood at the level that it was written at.
        level: (n,); -1 without levels.
        score: (n,) alignment, higher = better aligned; NaN where there is no scorer.
    """

    written: Texts
    level: Int[np.ndarray, " n"]
    score: Float[np.ndarray, " n"]


def value(log_prob: Float[np.ndarray, " n"], pieces: Int[np.ndarray, " n"], alignment: Float[np.ndarray, " n"],
          choice: Decode, spread: float) -> Float[np.ndarray, " n"]:  # fmt: skip
    """What texts are compared by, higher = better: the sum above.

    Args:
        log_prob: Of each text with its end, in nats.
        pieces: Of each text, without its end.
        alignment: Of each text with its picture, in any unit.
        choice: `length_penalty` and `align_weight`.
        spread: One standard deviation of alignment, > 0.
    """
    return log_prob / (pieces + 1) ** choice.length_penalty + choice.align_weight * alignment / spread


def write_best(trained: Trained, image: Any, align: Align | None, level: Int[np.ndarray, " n"] | int | None = None,
               decode: Decode | None = None, *, seed: int = 0,
               names: Sequence[str | int] | None = None) -> Best:  # fmt: skip
    """Write one text for each picture, or several of which the best is kept.

    Args:
        trained: The captioner.
        image: As `Trained.write` takes it, n pictures.
        align: Scorer of rows of them and texts; None writes one text each.
        level: As `Trained.write` takes it. If it is given, no other levels are asked.
        decode: How; None = what was found on validation pairs.
        seed: Of what is drawn.
        names: Of the pictures.
    """
    decode, n = decode or trained.decode, len(image)
    base = trained.level if level is None else level
    at = np.broadcast_to(np.asarray(-1 if base is None else base, np.int64), (n,))
    found = [(trained.write(image, level, decode, seed=seed, names=names), at)]
    if align is not None and trained.spread:
        drawn = dataclasses.replace(decode, search="nucleus")
        for number in range(decode.samples):
            found.append((trained.write(image, level, drawn, seed=seed + number + 1, names=names), at))
        if decode.each_level and level is None and trained.levels is not None:
            greedy = dataclasses.replace(decode, search="greedy")
            found += [(trained.write(image, z, greedy), np.full(n, z)) for z in trained.levels.trained()]
    if align is None:
        return _keep(found, np.full((1, n), np.nan), np.zeros((1, n)))
    score = _aligned(found, align)
    worth = [value(texts.log_prob, texts.pieces, a, decode, trained.spread or 1.0)
             for (texts, _), a in zip(found, score)]  # fmt: skip
    ended = np.stack([texts.ended for texts, _ in found])
    return _keep(found, score, np.where(ended | ~ended.any(0), worth, -np.inf))


Found = Sequence[tuple[Texts, np.ndarray]]  # texts of all pictures, and the level of each


def _aligned(found: Found, align: Align) -> Float[np.ndarray, "k n"]:
    return np.stack([np.asarray(align(np.arange(len(texts.texts)), texts.texts), np.float64) for texts, _ in found])


def _keep(found: Found, score: Float[np.ndarray, "k n"], worth: Float[np.ndarray, "k n"]) -> Best:
    """For each picture the text of most worth; of equal ones the first."""
    pick = worth.argmax(0)
    rows = np.arange(len(pick))
    log_prob, ended, pieces = (np.stack([getattr(texts, name) for texts, _ in found])[pick, rows]
                               for name in ("log_prob", "ended", "pieces"))  # fmt: skip
    words = [found[p][0].texts[row] for row, p in enumerate(pick.tolist())]
    level = np.stack([level for _, level in found])[pick, rows]
    return Best(written=Texts(words, log_prob, ended, pieces), level=level, score=score[pick, rows])


def best_of_levels(trained: Trained, image: Any, align: Align, levels: Sequence[int], decode: Decode | None = None,
                   *, seed: int = 0, names: Sequence[str | int] | None = None) -> Best:  # fmt: skip
    """Write at several levels, and keep for each picture the text that is best aligned; of equal ones the first."""
    found = [(trained.write(image, z, decode, seed=seed, names=names), np.full(len(image), z)) for z in levels]
    score = _aligned(found, align)
    return _keep(found, score, score)
