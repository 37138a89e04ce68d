"""Levels of alignment: bins of a score, with what made the score, so that other scores are refused."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from noisycorr.caption.captioner.choice import LevelChoice
from noisycorr.runtime.errors import UsageError
from noisycorr.runtime.folder import read_json, write_json

CLIP = (0.005, 0.995)  # quantiles between which `clipped` bins lie
STARVED = 0.01  # share of the pairs below which a level is starved


@dataclass(frozen=True, slots=True, kw_only=True)
class Levels:
    """Edges of L bins, and one more level, L, for pairs without a score.

    Attributes:
        edges: L + 1 ascending numbers; scores outside fall into the end bins.
        counts: Training pairs of each level, and of `unscored` at the end.
        made_by: Column, scorer, preprocessing and corpus that the scores are of.
        taught: How many pairs of each level teach in an epoch, in the mean, `unscored` at the end; None = all.
        hidden: Pairs also taught `unscored` by hiding their level.
        gated: A level also scales what is seen of the picture.
    """

    edges: tuple[float, ...]
    counts: tuple[int, ...]
    made_by: Mapping[str, str]
    taught: tuple[float, ...] | None = None
    hidden: bool = False
    gated: bool = False

    @property
    def count(self) -> int:
        """L, the number of bins."""
        return len(self.edges) - 1

    @property
    def teaching(self) -> tuple[float, ...]:
        """How many pairs of each level teach in an epoch, `unscored` at the end."""
        return self.counts if self.taught is None else self.taught

    @property
    def unscored(self) -> int:
        """The level of pairs without a score."""
        return self.count

    def of(self, score: Float[np.ndarray, " n"]) -> Int[np.ndarray, " n"]:
        """The level of each score: how many interior edges it reaches; `unscored` where it is not finite.

            level_i = #{interior edges e : score_i >= e}

        Source: NoC, `noc/models/bucketing`, with one level more.
        """
        score = np.asarray(score, np.float64)
        found = np.searchsorted(np.asarray(self.edges[1:-1]), score, side="right")
        return np.where(np.isfinite(score), found, self.unscored).astype(np.int64)

    def trained(self) -> list[int]:
        """Levels that had pairs to learn from, in order."""
        return [i for i, n in enumerate(self.teaching) if n > 0 or (i == self.unscored and self.hidden)]

    def fed(self) -> list[int]:
        """Those that are worth asking for: with a share of at least `STARVED` of the pairs, and `unscored`."""
        least = STARVED * sum(self.teaching)
        return [i for i in self.trained() if i == self.unscored or self.teaching[i] >= least]

    def check(self, asked: Int[np.ndarray, " n"]) -> None:
        """Refuse levels that cannot be asked for.

        Raises:
            UsageError: If one is out of range, or had no pair to learn from.
        """
        for level in np.unique(asked).tolist():
            if not 0 <= level <= self.unscored:
                raise UsageError(
                    f"level {level} is asked for, but this captioner has the levels 0 to {self.count - 1}, and "
                    f"{self.unscored} for unscored."
                )
            if level not in self.trained():
                raise UsageError(f"level {level} had no training pair, so it means nothing: use one of "
                                 f"{', '.join(map(str, self.trained()))}.")  # fmt: skip

    def refuse_other(self, made_by: Mapping[str, str]) -> None:
        """Refuse scores that the edges are not of.

        Raises:
            UsageError: If anything that made the scores differs, and what.
        """
        for name in {**self.made_by, **made_by}:
            if self.made_by.get(name) != made_by.get(name):
                raise UsageError(
                    f"these levels are edges of scores with {name} {self.made_by.get(name)!r}, but the scores at hand "
                    f"have {made_by.get(name)!r}: train the captioner on this run, or ask for a level by its number."
                )

    def save(self, path: Path) -> None:
        """As JSON."""
        write_json(path, dataclasses.asdict(self))

    @staticmethod
    def load(path: Path) -> Levels:
        """What `save` wrote."""
        body: dict[str, Any] = read_json(path)
        taught = body.get("taught")
        return Levels(edges=tuple(body["edges"]), counts=tuple(body["counts"]), made_by=body["made_by"],
                      taught=None if taught is None else tuple(taught), hidden=body["hidden"],
                      gated=body.get("gated", False))  # fmt: skip


def fit_levels(score: Float[np.ndarray, " n"], choice: LevelChoice, made_by: Mapping[str, str],
               share: Float[np.ndarray, " n"] | None = None) -> Levels:  # fmt: skip
    """Bins of the scores of the training pairs.

    Args:
        score: Higher = better aligned; NaN where unknown.
        choice: How many bins of which kind.
        made_by: What the scores are of; kept with the edges.
        share: How often each pair teaches in an epoch, in [0, 1]; None = each once. Bins are merged by what teaches.

    Raises:
        UsageError: If fewer than two scores differ, or quantiles make a single bin of them.

    Source: NoC: uniform bins between the lowest and the highest score.
    Differs: `clipped` and `quantile` bins; bins with too few pairs are merged with a neighbour.
    """
    score = np.asarray(score, np.float64)
    known = score[np.isfinite(score)]
    if not len(known) or known.min() == known.max():
        raise UsageError(
            f"`level_by` {choice.level_by}: its {len(known):,} known values do not differ, so there are no levels; "
            "choose another column, or none."
        )
    edges = _edges(known, choice)
    weight = np.ones(len(score)) if share is None else np.asarray(share, np.float64)
    level = Levels(edges=edges, counts=(0,) * len(edges), made_by=dict(made_by)).of(score)
    pairs, taught = np.bincount(level, minlength=len(edges)), np.bincount(level, weight, minlength=len(edges))
    while len(taught) > 2 and taught[:-1].min() < choice.level_least:
        small = int(np.argmin(taught[:-1]))
        beside = [place for place in (small - 1, small + 1) if 0 <= place < len(taught) - 1]
        low = min(small, min(beside, key=lambda place: (taught[place], place)))
        edges = edges[: low + 1] + edges[low + 2 :]
        pairs, taught = (np.concatenate([x[:low], [x[low] + x[low + 1]], x[low + 2 :]]) for x in (pairs, taught))
    return Levels(edges=edges, counts=tuple(map(int, pairs)), made_by=dict(made_by),
                  taught=None if share is None else tuple(map(float, taught)), hidden=choice.level_dropout > 0,
                  gated=choice.level_gate)  # fmt: skip


def _edges(known: np.ndarray, choice: LevelChoice) -> tuple[float, ...]:
    if choice.bins == "quantile":
        cuts = np.unique(np.quantile(known, np.linspace(0, 1, choice.levels + 1)))
        if len(cuts) < 3:
            raise UsageError(
                f"`level_by` {choice.level_by}: so many of its {len(known):,} values are equal that `bins` quantile "
                f"makes one level for `levels` {choice.levels}; take clipped bins, more levels, or another column."
            )
        return tuple(cuts.tolist())
    low, high = known.min(), known.max()
    if choice.bins == "clipped":
        inner = np.quantile(known, CLIP)
        low, high = (inner[0], inner[1]) if inner[0] < inner[1] else (low, high)
    return tuple(np.linspace(low, high, choice.levels + 1).tolist())
