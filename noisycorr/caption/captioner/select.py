"""The level and the way to write with, chosen on validation pictures: best aligned among those that are fluent.

Alignment alone would choose what games the scorer; so a way of writing is allowed only if its texts are about as long
as real ones, come to an end, and put words together as the training texts do. And a few hundred pictures do not tell
neighbouring levels apart; so of those that cannot be told from the best one the highest is taken, with the least
guidance, and `unscored` last.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from jaxtyping import Float

from noisycorr.caption.captioner.align import Align
from noisycorr.caption.captioner.choice import Decode
from noisycorr.caption.captioner.stored import Texts, Trained

LENGTH = (0.5, 1.5)  # of the mean words of real texts
FLUENCY = 0.3  # how far below real texts the share of known pairs of words may lie
ENDED = 0.9
TIE = 1.0  # standard errors of the mean difference, picture by picture, below which two ways are alike
OTHERS = 100  # pictures among which a text shall find its own


@dataclass(frozen=True, slots=True)
class Fluency:
    """Pairs of neighbouring words of the training texts, and what real texts look like: words, share of known pairs."""

    known: frozenset[tuple[str, str]]
    words: float
    share: float

    @staticmethod
    def learn(train: Sequence[str], valid: Sequence[str]) -> Fluency:
        """From training texts, and real texts that were not among them."""
        known = frozenset(pair for text in train for pair in _neighbours(text))
        words = float(np.mean([len(text.split()) for text in valid])) if valid else 0.0
        return Fluency(known, words, _share(valid, known))

    def judge(self, written: Texts) -> dict[str, float]:
        """length: mean words against real texts; fluency: known pairs of words, less those of real texts; ended."""
        words = float(np.mean([len(text.split()) for text in written.texts])) if written.texts else 0.0
        return {"length": words / max(self.words, 1e-9), "fluency": _share(written.texts, self.known) - self.share,
                "ended": float(written.ended.mean()) if len(written.ended) else 0.0,
                "unique": len(set(written.texts)) / max(len(written.texts), 1)}  # fmt: skip


def _neighbours(text: str) -> list[tuple[str, str]]:
    return list(pairwise(["", *text.lower().split(), ""]))


def _share(texts: Sequence[str], known: frozenset[tuple[str, str]]) -> float:
    found = [pair in known for text in texts for pair in _neighbours(text)]
    return float(np.mean(found)) if found else 0.0


def allowed(row: dict[str, Any]) -> bool:
    """True if these texts look like texts."""
    return bool(LENGTH[0] <= row["length"] <= LENGTH[1] and row["fluency"] >= -FLUENCY and row["ended"] >= ENDED)


def candidates(trained: Trained, decode: Decode, guidances: Sequence[float]) -> list[tuple[int | None, Decode]]:
    """Levels with enough training pairs, each with each strength of guidance; `unscored` is one of them."""
    levels: list[int | None] = [None] if trained.levels is None else [*trained.levels.fed()]
    out = []
    for level in levels:
        for guidance in guidances:
            against = guidance and decode.against == "level"
            if against and (trained.levels is None or level == trained.levels.trained()[0]):
                continue
            if guidance and decode.against == "image" and not trained.design.image_dropout:
                continue
            out.append((level, dataclasses.replace(decode, guidance=guidance)))
    return out


def choose(trained: Trained, image: Any, align: Align, fluency: Fluency,
           options: Sequence[tuple[int | None, Decode]]) -> list[dict[str, Any]]:  # fmt: skip
    """Write with every option, greedily instead of with beams, and set level and way of the best in `trained`.

    Args:
        trained: Gets `level` and `decode`.
        image: Of n validation pictures.
        align: Scorer.
        fluency: What real texts look like.
        options: From `candidates`.

    Returns:
        One row each: level, guidance, alignment, its spread, length, fluency, ended, unique, allowed, alike
        (as well aligned as the best one that is allowed), chosen. If no option is allowed, all are.
    """
    rows: list[dict[str, Any]] = []
    scores: list[np.ndarray] = []
    for level, decode in options:
        quick = dataclasses.replace(decode, search="greedy") if decode.search == "beam" else decode
        written = trained.write(image, level, quick)
        score = np.asarray(align(np.arange(len(image)), written.texts), np.float64)
        scores.append(score)
        row: dict[str, Any] = {"level": level, "guidance": decode.guidance, "alignment": float(score.mean()),
                               "error": float(score.std() / np.sqrt(max(len(score), 1)))}  # fmt: skip
        row |= fluency.judge(written)
        rows.append(row | {"allowed": allowed(row), "chosen": False})
    unscored = None if trained.levels is None else trained.levels.unscored
    best = prefer(rows, scores, unscored)
    rows[best]["chosen"] = True
    trained.level, trained.decode = options[best]
    return rows


def self_retrieval_mrr(texts: list[str], align: Align, own: Float[np.ndarray, " n"]) -> float:
    """How well texts find their own pictures again among OTHERS more, in (0, 1]; higher = better.

        mean_i 1 / rank_i,   rank_i = 1 + #{k in 1 ... OTHERS : s(i + k mod n, t_i) >= s(i, t_i)}

    Args:
        texts: Of the first n pictures, in order.
        align: Gives s of pictures and texts.
        own: What it gives of each text and its own picture, s(i, t_i).
    """
    n = len(texts)
    rank = np.ones(n)
    for step in range(1, min(OTHERS, n - 1) + 1):
        rank += np.asarray(align((np.arange(n) + step) % n, texts)) >= own
    return float((1 / rank).mean())


def prefer(rows: Sequence[dict[str, Any]], scores: Sequence[Float[np.ndarray, " n"]], unscored: int | None) -> int:
    """Place of the way to write with; tells each row whether it is `alike`, as well aligned as the best.

        alike_i :  mean(d) <= TIE std(d) / sqrt(n),   d = scores of the best - scores of i, picture by picture

    Args:
        rows: level, guidance, alignment and allowed of each way.
        scores: Of the same n pictures by each.
        unscored: The level that stands for none.
    """
    free = [place for place, row in enumerate(rows) if row["allowed"]] or list(range(len(rows)))
    top = max(free, key=lambda place: rows[place]["alignment"])
    for row, score in zip(rows, scores):
        gap = scores[top] - score
        row["alike"] = bool(gap.mean() <= TIE * gap.std() / np.sqrt(max(len(gap), 1)))

    def rank(place: int) -> tuple[int, float]:
        level = rows[place]["level"]
        return -1 if level is None or level == unscored else level, -rows[place]["guidance"]

    return max((place for place in free if rows[place]["alike"]), key=rank)
