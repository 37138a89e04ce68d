"""Tables of the benchmark of classifiers: mean and standard deviation over seeds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from noisycorr.runtime.folder import atomic_path

METRICS = {
    "top1": ("Top-1 accuracy on clean test samples of known classes, %", 100, 1),
    "mixed": ("The same, mean over the classes that share a name with another, %", 100, 1),
    "macro": ("The same, mean over all classes, %", 100, 1),
    "auroc": ("AUROC of wrong training labels by what the method thinks of them at the end", 1, 3),
    "precision": ("Share of changed labels that are right now", 1, 3),
    "recall": ("Share of wrong labels of samples of a known class that were put right", 1, 3),
    "cf1": ("Open set: mean C-F1 over thresholds", 1, 3),
    "seconds": ("CPU seconds of one training", 1, 1),
}
FACTS = {
    "wrong": ("wrong labels", 100, 1),
    "auc_raw": ("AUROC of the text match, texts as they came", 1, 3),
    "auc_completed": ("AUROC of the text match, completed", 1, 3),
    "anchor_precision": ("trusted samples that are right", 1, 3),
}
Row = dict[str, Any]


def write_tables(rows: Sequence[Row], folder: Path) -> None:
    """`bench.parquet` with all rows and `bench.md` with the tables."""
    with atomic_path(folder / "bench.parquet") as path:
        pq.write_table(pa.Table.from_pylist(list(rows)), path)
    with atomic_path(folder / "bench.md") as path:
        path.write_text(tables(rows), encoding="utf-8")


def tables(rows: Sequence[Row]) -> str:
    """One Markdown table for each metric; the best method of a row is bold, the oracle apart."""
    methods = list(dict.fromkeys(row["method"] for row in rows))
    places = sorted({(row["set"], row["noise"]) for row in rows})
    out = [_facts(rows, places)]
    for metric, (title, scale, digits) in METRICS.items():
        shown = [name for name in methods if any(row[metric] is not None for row in rows if row["method"] == name)]
        lines = []
        for place in places:
            found = {name: _values(rows, place, name, metric) * scale for name in shown}
            means = {m: v.mean() for m, v in found.items() if len(v) and not m.startswith("oracle")}
            best = max(means.values(), default=None) if metric != "seconds" else None
            cells = [_cell(found[name], digits, best if name in means else None) for name in shown]
            if any(len(values) for values in found.values()):
                lines.append(f"| {place[0]} | {place[1]} | " + " | ".join(cells) + " |")
        if lines:
            head = ["| set | noise | " + " | ".join(shown) + " |", "|---" * (len(shown) + 2) + "|"]
            out.append("\n".join([f"**{title}**", "", *head, *lines]))
    seeds = sorted({row["seed"] for row in rows})
    return "\n\n".join(out) + f"\n\nMean ± standard deviation over seeds {', '.join(map(str, seeds))}.\n"


def _facts(rows: Sequence[Row], places: list[tuple[str, str]]) -> str:
    lines = ["**The sets, after noise**", "",
             "| set | noise | samples | classes | " + " | ".join(title for title, *_ in FACTS.values()) + " |",
             "|---" * (len(FACTS) + 4) + "|"]  # fmt: skip
    for place in places:
        some = [row for row in rows if (row["set"], row["noise"]) == place]
        cells = []
        for fact, (_, scale, digits) in FACTS.items():
            by_seed = {row["seed"]: row[fact] for row in some if row[fact] is not None}
            cells.append(_cell(np.array(list(by_seed.values())) * scale, digits, None))
        size = f"{some[0]['samples']:,} | {some[0]['classes']}"
        lines.append(f"| {place[0]} | {place[1]} | {size} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _values(rows: Sequence[Row], place: tuple[str, str], method: str, metric: str) -> np.ndarray:
    return np.array([row[metric] for row in rows if (row["set"], row["noise"]) == place
                     and row["method"] == method and row[metric] is not None])  # fmt: skip


def _cell(values: np.ndarray, digits: int, best: float | None) -> str:
    if not len(values):
        return "–"
    text = f"{values.mean():.{digits}f}" + (f" ± {values.std(ddof=1):.{digits}f}" if len(values) > 1 else "")
    return f"**{text}**" if best is not None and values.mean() >= best else text
