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
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from noisycorr.caption.captioner.align import Align
from noisycorr.caption.captioner.choice import Decode
from noisycorr.caption.captioner.stored import ROWS, Texts, Trained
from noisycorr.models.training.batches import stream_seed


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
               names: Sequence[str | int] | None = None,
               moved: Callable[[int], Any] | None = None) -> Best:  # fmt: skip
    """Write one text for each picture, or several of which the best is kept.

    Args:
        trained: The captioner.
        image: As `Trained.write` takes it, n pictures.
        align: Scorer of rows of them and texts; None writes one text each.
        level: As `Trained.write` takes it. If it is given, no other levels are asked.
        decode: How; None = what was found on validation pairs.
        seed: Of what is drawn.
        names: Of the pictures.
        moved: Called with the number of pictures that are done since it was last called.
    """
    decode, n = decode or trained.decode, len(image)
    base = trained.level if level is None else level
    at = np.broadcast_to(np.asarray(-1 if base is None else base, np.int64), (n,))
    names = list(range(n)) if names is None else names
    blocks = []
    for rows in _blocks(n, moved):
        mine = None if align is None else partial(_shifted, align, rows)
        asked = level if level is None or np.ndim(level) == 0 else np.asarray(level)[rows]
        blocks.append(_block(trained, np.asarray(image[rows]), mine, asked, at[rows], decode, seed,
                            [names[row] for row in rows.tolist()]))  # fmt: skip
    return _joined(blocks)


def _blocks(n: int, moved: Callable[[int], Any] | None) -> Iterator[Int[np.ndarray, " k"]]:
    """Rows of pictures that are read once for all of their texts; one block without any if there is no picture."""
    for start in range(0, max(n, 1), ROWS):
        yield (rows := np.arange(start, min(start + ROWS, n)))
        if moved is not None:
            moved(len(rows))


def _shifted(align: Align, first: Int[np.ndarray, " k"], rows: np.ndarray, texts: list[str]) -> np.ndarray:
    return align(first[rows], texts)


def _block(trained: Trained, image: np.ndarray, align: Align | None, level: np.ndarray | int | None, at: np.ndarray,
           decode: Decode, seed: int, names: Sequence[str | int]) -> Best:  # fmt: skip
    ways = [(trained.write(image, level, decode, seed=seed, names=names), at)]
    if align is None:
        return _keep(ways, np.full((1, len(at)), np.nan), np.zeros((1, len(at))))
    if trained.spread is not None:
        drawn = dataclasses.replace(decode, search="nucleus")
        for number in range(decode.samples):
            own = stream_seed(seed, "sample", number)
            ways.append((trained.write(image, level, drawn, seed=own, names=names), at))
        if decode.each_level and level is None and trained.levels is not None:
            greedy = dataclasses.replace(decode, search="greedy")
            ways += [(trained.write(image, z, greedy), np.full(len(at), z)) for z in trained.levels.fed()]
    score = _aligned(ways, align)
    worth = np.stack([value(texts.log_prob, texts.pieces, a, decode, trained.spread or 1.0)
                      for (texts, _), a in zip(ways, score)])  # fmt: skip
    return _keep(ways, score, worth)


Ways = Sequence[tuple[Texts, np.ndarray]]  # texts of all pictures, and the level of each


def _aligned(ways: Ways, align: Align) -> Float[np.ndarray, "k n"]:
    return np.stack([np.asarray(align(np.arange(len(texts.texts)), texts.texts), np.float64) for texts, _ in ways])


def _keep(ways: Ways, score: Float[np.ndarray, "k n"], worth: Float[np.ndarray, "k n"]) -> Best:
    """For each picture the text of most worth, of equal ones the first; a text that is empty or cut only if all are."""
    whole = np.stack([texts.ended & np.array([bool(text.strip()) for text in texts.texts], bool)
                      for texts, _ in ways])  # fmt: skip
    pick = np.where(whole | ~whole.any(0), worth, -np.inf).argmax(0)
    rows = np.arange(len(pick))
    log_prob, ended, pieces = (np.stack([getattr(texts, name) for texts, _ in ways])[pick, rows]
                               for name in ("log_prob", "ended", "pieces"))  # fmt: skip
    words = [ways[p][0].texts[row] for row, p in enumerate(pick.tolist())]
    level = np.stack([level for _, level in ways])[pick, rows]
    return Best(written=Texts(words, log_prob, ended, pieces), level=level, score=score[pick, rows])


def _joined(blocks: Sequence[Best]) -> Best:
    texts = [block.written for block in blocks]
    log_prob, ended, pieces = (np.concatenate([getattr(text, name) for text in texts])
                               for name in ("log_prob", "ended", "pieces"))  # fmt: skip
    written = Texts([word for text in texts for word in text.texts], log_prob, ended, pieces)
    level, score = (np.concatenate([getattr(block, name) for block in blocks]) for name in ("level", "score"))
    return Best(written=written, level=level, score=score)


def best_of_levels(trained: Trained, image: Any, align: Align, levels: Sequence[int], decode: Decode | None = None,
                   *, seed: int = 0, names: Sequence[str | int] | None = None,
                   moved: Callable[[int], Any] | None = None) -> Best:  # fmt: skip
    """Write at several levels, and keep for each picture the text that is best aligned; of equal ones the first."""
    names, blocks = list(range(len(image))) if names is None else names, []
    for rows in _blocks(len(image), moved):
        part, own = np.asarray(image[rows]), [names[row] for row in rows.tolist()]
        ways = [(trained.write(part, z, decode, seed=seed, names=own), np.full(len(rows), z)) for z in levels]
        score = _aligned(ways, partial(_shifted, align, rows))
        blocks.append(_keep(ways, score, score))
    return _joined(blocks)
