"""Writer of cleanlab's issue table: issues.csv with one row for each pair, summary.csv with one for each issue.

People open it in spreadsheets, so keys that begin like a formula get an apostrophe; `row` tells which pair it is.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from noisycorr.data.writers import Format, Layout, Row
from noisycorr.data.writers.shards import join_parts, part_names, part_path
from noisycorr.data.writers.values import cell_line, harmless
from noisycorr.runtime.folder import atomic_path

NAME, SUMMARY = "issues.csv", "summary.csv"
_FIRST = ("row", "key", "uid")


def issue_names(names: list[str]) -> list[str]:
    """The issues of a ledger, by its columns `is_<issue>_issue`, in their order."""
    return [match[1] for name in names if (match := re.fullmatch(r"is_(.+)_issue", name))]


def write(folder: Path, index: int, rows: Iterator[Row], layout: Layout) -> dict[str, Any]:
    """Write the lines of one shard. Scores are in [0, 1], lower is worse, empty where there is none."""
    issues, columns = _columns(layout)
    flagged, scored = dict.fromkeys(issues, 0), dict.fromkeys(issues, 0)
    sums = dict.fromkeys(issues, 0.0)
    count = 0
    with atomic_path(part_path(folder, index)) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        for row in rows:
            file.write(cell_line((harmless(row.values.get(name)) for name in columns), ","))
            count += 1
            for issue in issues:
                score = row.values.get(f"{issue}_score")
                flagged[issue] += bool(row.values.get(f"is_{issue}_issue"))
                if score is not None and not math.isnan(score):
                    scored[issue], sums[issue] = scored[issue] + 1, sums[issue] + score
    return {"rows": count, "found": flagged, "scored": scored, "sums": sums, "files": part_names(index)}


def finish(folder: Path, layout: Layout, shards: list[dict[str, Any]]) -> list[str]:
    """Join the lines of all shards; the summary has the mean score of each issue, and how many pairs have it."""
    issues, columns = _columns(layout)
    with atomic_path(folder / SUMMARY) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        file.write(cell_line(("issue_type", "score", "num_issues"), ","))
        for issue in issues:
            scored = sum(shard["scored"][issue] for shard in shards)
            mean = math.fsum(shard["sums"][issue] for shard in shards) / scored if scored else None
            file.write(cell_line((issue, mean, sum(shard["found"][issue] for shard in shards)), ","))
    join_parts(folder, layout.shards, NAME, cell_line(columns, ","))
    return [NAME, SUMMARY]


def _columns(layout: Layout) -> tuple[list[str], list[str]]:
    issues = issue_names(list(layout.ledger))
    wanted = [*_FIRST, *(name for issue in issues for name in (f"is_{issue}_issue", f"{issue}_score"))]
    return issues, [name for name in wanted if name in layout.ledger]


FORMAT = Format(write=write, finish=finish, owns=(r"issues\.csv", r"summary\.csv", "parts"), images="", every=True)
