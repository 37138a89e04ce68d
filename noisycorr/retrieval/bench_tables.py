"""Tables and a plot of benchmark rows: mean and standard deviation over seeds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from noisycorr.runtime.folder import atomic_path

METRICS = {
    "rSum": ("rSum on test, all networks of a method together (0 to 600, higher is better)", 1),
    "rSum_single": ("rSum on test, mean of its single networks", 1),
    "auroc": ("AUROC of wrong training pairs at the end (0.5 chance, 1 perfect)", 3),
    "seconds": ("CPU seconds of one training", 1),
}
Row = dict[str, Any]
Place = tuple[str, str, float]


def write_tables(rows: Sequence[Row], folder: Path) -> None:
    """`bench.parquet` with all rows, `bench.md` with the tables, `bench.png` with the plot."""
    with atomic_path(folder / "bench.parquet") as path:
        pq.write_table(pa.Table.from_pylist(list(rows)), path)
    with atomic_path(folder / "bench.md") as path:
        path.write_text(tables(rows), encoding="utf-8")
    _plot(rows, folder / "bench.png")


def tables(rows: Sequence[Row]) -> str:
    """One Markdown table for each metric; the best method of a row is bold, the oracle apart."""
    methods = list(dict.fromkeys(row["method"] for row in rows))
    places: list[Place] = sorted({(row["set"], row["unit"], row["ratio"]) for row in rows})
    out = []
    for metric, (title, digits) in METRICS.items():
        lines = [f"**{title}**", "", "| set | noise | " + " | ".join(methods) + " |", "|---" * (len(methods) + 2) + "|"]
        for place in places:
            found = {method: _values(rows, place, method, metric) for method in methods}
            means = {m: v.mean() for m, v in found.items() if len(v) and not m.startswith("oracle")}
            best = max(means.values(), default=None) if metric != "seconds" else None
            cells = [_cell(found[method], digits, best if method in means else None) for method in methods]
            lines.append(f"| {place[0]} | {place[2]:.0%} by {place[1]} | " + " | ".join(cells) + " |")
        out.append("\n".join(lines))
    seeds = sorted({row["seed"] for row in rows})
    return "\n\n".join(out) + f"\n\nMean ± standard deviation over seeds {', '.join(map(str, seeds))}.\n"


def _values(rows: Sequence[Row], place: Place, method: str, metric: str) -> np.ndarray:
    return np.array([row[metric] for row in rows if (row["set"], row["unit"], row["ratio"]) == place
                     and row["method"] == method and row[metric] is not None])  # fmt: skip


def _cell(values: np.ndarray, digits: int, best: float | None) -> str:
    if not len(values):
        return "–"
    text = f"{values.mean():.{digits}f}" + (f" ± {values.std(ddof=1):.{digits}f}" if len(values) > 1 else "")
    return f"**{text}**" if best is not None and values.mean() >= best else text


def _plot(rows: Sequence[Row], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    panels = sorted({(row["set"], row["unit"]) for row in rows})
    figure, axes = pyplot.subplots(1, len(panels), figsize=(4.5 * len(panels), 3.6), squeeze=False)
    for axis, (name, unit) in zip(axes[0], panels):
        for method in dict.fromkeys(row["method"] for row in rows):
            some = [row for row in rows if (row["set"], row["unit"], row["method"]) == (name, unit, method)]
            ratios = sorted({row["ratio"] for row in some})
            values = [_values(rows, (name, unit, ratio), method, "rSum") for ratio in ratios]
            axis.errorbar(ratios, [v.mean() for v in values], [v.std() for v in values], marker="o", capsize=2,
                          label=method, linestyle="--" if method.startswith("oracle") else "-")  # fmt: skip
        axis.set(title=f"{name}, by {unit}", xlabel="share of wrong pairs", ylabel="rSum on test")
        axis.legend(fontsize=7)
    figure.tight_layout()
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=120, format="png", metadata={"Software": None})
    pyplot.close(figure)
