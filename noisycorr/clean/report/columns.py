"""Statistics of the input columns that came with the pairs, whatever they are."""

from __future__ import annotations

import json
import re
from collections import Counter
from typing import Any

import numpy as np

from noisycorr.clean.report.batches import Batch
from noisycorr.clean.report.frequency_sketch import FrequencySketch, Numbers, clip, decile_ratio, gini

COLUMNS = 64  # described in full; further ones are only counted
VALUES = 50  # different values up to which a column counts as categorical
DATE = re.compile(r"\d{4}([-/])\d{2}\1\d{2}([T ].*)?")
METHOD = (
    "Null, an absent field, an empty string and NaN count as missing. Numbers: moments over all rows; median and "
    "quantiles over all rows up to 65,536, beyond that over a fixed pseudo-random sample of so many. Values are "
    "counted exactly up to 20,000 different ones; beyond that a count is a lower bound and the number of different "
    "values an estimate. Values of more than 200 characters are compared by their first 199."
)


class Column:
    """One input column: its kind, its values, and how pairs fare by value."""

    def __init__(self) -> None:
        self.kinds: Counter[str] = Counter()
        self.numbers = Numbers()
        self.tally = FrequencySketch()
        self.dates = True
        self.first, self.last = "", ""
        self.values: dict[str, list[float]] | None = {}  # value -> pairs, kept, sum of p_clean, pairs with p_clean
        self.pairs = np.zeros(6)  # n, x, y, xx, yy, xy of (value, p_clean), x and y shifted by the first value
        self.shift = 0.0

    def add(self, cells: list[Any], kept: np.ndarray, p_clean: np.ndarray, sampled: np.ndarray) -> None:
        """Add the cells of a column that are not missing, with the fate of their rows.

        Args:
            cells: n JSON values.
            kept: (n,) bool.
            p_clean: (n,) in [0, 1], NaN where unknown.
            sampled: (n,) bool, rows of the fixed sample.
        """
        kinds = [_kind(cell) for cell in cells]
        self.kinds.update(kinds)
        names = [clip(_name(cell)) for cell in cells]
        self.tally.add(names)
        places = [i for i, kind in enumerate(kinds) if kind == "number"]
        if places:
            values = np.array([_number(cells[i]) for i in places])
            self.numbers.add(values, sampled[places])
            self._correlate(values, p_clean[places])
        for cell, kind in zip(cells, kinds):
            self.dates = self.dates and kind == "text" and bool(DATE.fullmatch(cell))
            if not self.dates:
                break
            self.first, self.last = min(self.first or cell, cell), max(self.last, cell)
        if self.values is not None:
            self._split(names, kept, p_clean)

    def _split(self, names: list[str], kept: np.ndarray, p_clean: np.ndarray) -> None:
        assert self.values is not None
        known = np.isfinite(p_clean)
        for name, keep, know, p in zip(names, kept.tolist(), known.tolist(), p_clean.tolist()):
            row = self.values.setdefault(name, [0, 0, 0.0, 0])
            row[0] += 1
            row[1] += keep
            if know:
                row[2] += p
                row[3] += 1
        if len(self.values) > VALUES:
            self.values = None

    def _correlate(self, values: np.ndarray, p_clean: np.ndarray) -> None:
        good = np.isfinite(values) & np.isfinite(p_clean)
        if not good.any():
            return
        if not self.pairs[0]:
            self.shift = float(values[good][0])
        x, y = values[good] - self.shift, p_clean[good]
        self.pairs += [len(x), x.sum(), y.sum(), x @ x, y @ y, x @ y]

    def kind(self) -> str:
        """number, boolean, date, text, list or object, or mixed."""
        kinds = set(self.kinds)
        if kinds == {"text"} and self.dates:
            return "date"
        return kinds.pop() if len(kinds) == 1 else "mixed" if kinds else "empty"

    def result(self, rows: int) -> dict[str, Any]:
        """JSON: kind, count, missing, and what fits the kind."""
        kind, count = self.kind(), self.tally.total
        out: dict[str, Any] = {"kind": kind, "count": count, "missing": rows - count}
        out["missing_share"] = (rows - count) / rows if rows else 0.0
        if not count:
            return out
        out |= {"unique": self.tally.distinct(), "unique_exact": self.tally.exact, "constant": False}
        out["constant"] = self.tally.exact and out["unique"] == 1
        if kind == "number":
            numbers = self.numbers.result()
            del numbers["count"], numbers["missing"]
            return out | numbers | {"correlation_with_p_clean": self._correlation()}
        if kind == "date":
            out |= {"min": clip(self.first, 40), "max": clip(self.last, 40)}
        top = self.tally.top(2)
        unique = self.tally.exact and top[0][1] == 1
        out["most_frequent"] = None if unique or not top else {"value": top[0][0], "count": top[0][1]}
        if self.tally.exact:
            least = min(self.tally.counts.values())
            rare = sorted(value for value, number in self.tally.counts.items() if number == least)
            single = {"value": rare[0], "count": least}
            out["least_frequent"] = single if len(rare) == 1 else "multiple detected"
        frequencies = self.tally.frequencies()
        return out | {"gini": gini(frequencies), "decile_ratio": decile_ratio(frequencies)}

    def split(self) -> list[dict[str, Any]] | None:
        """Count, kept and mean p_clean by value, most frequent first; None unless there are 2..50 whole values."""
        if self.values is None or not 2 <= len(self.values) <= VALUES or set(self.kinds) & {"list", "object"}:
            return None
        return [
            {"value": name, "count": int(n), "kept": int(kept), "mean_p_clean": p / known if known else None}
            for name, (n, kept, p, known) in sorted(self.values.items(), key=lambda item: (-item[1][0], item[0]))
        ]

    def _correlation(self) -> float | None:
        n, x, y, xx, yy, xy = self.pairs
        spread = (n * xx - x * x) * (n * yy - y * y)
        return float(np.clip((n * xy - x * y) / np.sqrt(spread), -1, 1)) if n > 2 and spread > 0 else None


class Columns:
    """Every input column of a run."""

    def __init__(self) -> None:
        self.columns: dict[str, Column] = {}
        self.more: int = 0  # cells of columns beyond the first `COLUMNS`

    def add(self, batch: Batch, rows: list[dict[str, Any]]) -> None:
        """Add the cells of a batch, one dictionary a row."""
        kept, p_clean, sampled = batch.verdicts() == "keep", batch.floats("p_clean"), batch.sampled()
        held: dict[str, tuple[list[int], list[Any]]] = {}
        for position, row in enumerate(rows):
            for name, cell in row.items():
                if name not in self.columns:
                    if len(self.columns) >= COLUMNS:
                        self.more += 1
                        continue
                    self.columns[name] = Column()
                if not _missing(cell):
                    places, cells = held.setdefault(name, ([], []))
                    places.append(position)
                    cells.append(cell)
        for name, (places, cells) in held.items():
            self.columns[name].add(cells, kept[places], p_clean[places], sampled[places])

    def result(self, rows: int) -> dict[str, Any]:
        """JSON: `statistics` and `splits` by column, and how many cells stand in columns that are not described."""
        named = sorted(self.columns.items())
        splits = {clip(name): split for name, column in named if (split := column.split())}
        return {
            "statistics": {clip(name): column.result(rows) for name, column in named},
            "splits": splits,
            "cells_not_described": self.more,
        }


def _missing(cell: Any) -> bool:
    return cell is None or (isinstance(cell, str) and not cell.strip()) or (isinstance(cell, float) and cell != cell)


def _kind(cell: Any) -> str:
    if isinstance(cell, bool):
        return "boolean"
    if isinstance(cell, int | float):
        return "number"
    return "text" if isinstance(cell, str) else "list" if isinstance(cell, list) else "object"


def _name(cell: Any) -> str:
    if isinstance(cell, str):
        return cell
    plain = isinstance(cell, int | float) and not isinstance(cell, bool)
    return str(cell) if plain else json.dumps(cell, sort_keys=True)


def _number(cell: float) -> float:
    """A float, also of integers too large for one."""
    try:
        return float(cell)
    except OverflowError:
        return float("inf")
