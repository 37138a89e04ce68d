"""Tables of `noisycorr bench caption`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np


def tables(rows: Sequence[Mapping[str, Any]], metrics: Sequence[str]) -> str:
    """One Markdown table for each metric: mean and standard deviation over seeds; the best method is bold.

    Args:
        rows: One for each cell.
        metrics: Scores of texts against references, which come first, and once more for poor concepts.
    """
    methods = list(dict.fromkeys(row["method"] for row in rows))
    places = list(dict.fromkeys((row["set"], row["ratio"], row["noise"]) for row in rows))
    out = []
    poor = tuple(f"poor {name}" for name in metrics)
    for metric in (*metrics, "R@1", "alignment", *poor, "unique", "control_alignment", "seconds"):
        if all(row.get(metric) is None for row in rows):
            continue
        lines = [
            f"**{metric}**",
            "",
            "| set | noise | " + " | ".join(methods) + " |",
            "|---" * (len(methods) + 2) + "|",
        ]
        for place in places:
            found = {m: [row[metric] for row in rows if (row["set"], row["ratio"], row["noise"]) == place
                         and row["method"] == m and row.get(metric) is not None] for m in methods}  # fmt: skip
            means = {m: np.mean(v) for m, v in found.items() if v and not m.startswith("oracle")}
            best = max(means.values(), default=None) if metric != "seconds" else None
            line = [_shown(found[m], best if m in means else None, metric) for m in methods]
            lines.append(f"| {place[0]} | {place[1]:.0%} {place[2]} | " + " | ".join(line) + " |")
        out.append("\n".join(lines))
    return "\n\n".join(out) + "\n"


def _shown(values: list[float], best: float | None, metric: str) -> str:
    if not values:
        return "–"
    digits = 3 if metric in ("alignment", "unique", "control_alignment") else 1
    text = f"{np.mean(values):.{digits}f}" + (f" ± {np.std(values, ddof=1):.{digits}f}" if len(values) > 1 else "")
    return f"**{text}**" if best is not None and np.mean(values) >= best else text
