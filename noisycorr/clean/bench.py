"""The bench engine: a grid of sets, settings, methods and seeds; one small file a cell; tables, a plot and JSON.

A cell is one measurement. Its file is named after everything that its numbers depend on, and written whole: so the same
command continues, several commands may share a folder, and what other settings, data or another version measured is
never taken for it. A bench says how a set is loaded, how a cell is run, and what to show; the rest is here.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from noisycorr.runtime import console, dist
from noisycorr.runtime.errors import UsageError
from noisycorr.runtime.folder import Run, atomic_path, fingerprint, provenance, read_json, stamped, write_json
from noisycorr.runtime.result import Result

if TYPE_CHECKING:
    import pandas as pd

ORACLE = "oracle"  # methods of this name know the truth: never the best of a line
DASH = "–"
Row = dict[str, Any]
Text = Callable[[Row], str]
Loaded = TypeVar("Loaded")


@dataclass(frozen=True, kw_only=True)
class Metric:
    """A number of a row, and how tables show it.

    Attributes:
        name: Key in the rows.
        title: Of its table.
        digits: After the point.
        scale: What it is multiplied by, such as 100 for percent.
        better: Which of a line is bold; none where the methods do not compete.
        note: What follows a number in its cell, from the rows that it is the mean of.
    """

    name: str
    title: str
    digits: int = 1
    scale: float = 1
    better: Literal["more", "less", "none"] = "more"
    note: Callable[[list[Row]], str] | None = None

    def values(self, rows: Iterable[Row]) -> np.ndarray:
        """What is known of it, scaled."""
        return np.array([row[self.name] for row in rows if row.get(self.name) is not None], float) * self.scale


class BenchResult(Result):
    """A finished bench: its rows, and the tables over them."""

    kind: ClassVar[str] = "a bench"

    @property
    def rows(self) -> list[Row]:
        """One for each cell: what was asked, and what was measured."""
        rows: list[Row] = read_json(self.folder / "bench.json")["rows"]
        return rows

    @property
    def table(self) -> str:
        """All tables as Markdown."""
        return self.report.read_text(encoding="utf-8")

    @property
    def report(self) -> Path:
        """The tables."""
        return self.folder / "bench.md"

    @property
    def summary(self) -> str:
        """What was measured, on one line."""
        rows = self.rows
        told = [f"{key}s {', '.join(map(str, dict.fromkeys(row[key] for row in rows)))}"
                for key in ("set", "method", "seed")]  # fmt: skip
        return f"{len(rows)} cells: {'; '.join(told)}"

    def to_pandas(self) -> pd.DataFrame:
        """The rows as a table."""
        import pandas as pd

        return pd.DataFrame(self.rows)


def grid(**axes: Sequence[Any]) -> list[Row]:
    """Every cell; the first axis is the slowest. With seeds first an interrupted bench has whole lines."""
    return [dict(zip(axes, values)) for values in itertools.product(*axes.values())]


def stored_cell(folder: Path, name: str, inputs: Mapping[str, Any], work: Callable[[], Row], *,
                anew: bool = False) -> Row:  # fmt: skip
    """What one cell measured: read if it is there, else worked out and written.

    Args:
        folder: Of the bench.
        name: How its file begins.
        inputs: JSON of all that the numbers depend on, but for the version, which is added.
        work: Measures it.
        anew: Measure it although it is there.
    """
    path = folder / "cells" / f"{name}-{fingerprint(stamped(inputs))}.json"
    if anew or not path.exists():
        write_json(path, work())
    row: Row = read_json(path)
    return row


def run_grid(
    run: Run, plan: Sequence[tuple[Callable[[], Loaded], Sequence[Row]]], work: Callable[[Loaded, Row], Row], *,
    settings: Mapping[str, Any], line: Text, tables: Callable[[list[Row]], str],
    draw: Callable[[list[Row], Path], None],
) -> BenchResult:  # fmt: skip
    """Run what is missing; bench.md and bench.json grow cell by cell, bench.png and bench.parquet come at the end.

    Args:
        run: The folder.
        plan: How each set is loaded, which is done once, and its cells.
        work: Gives the row of a cell.
        settings: JSON of what was asked for.
        line: What is said of a row.
        tables: Markdown of all rows.
        draw: Writes the plot of all rows to a path.

    Raises:
        UsageError: If several processes run it.
    """
    if dist.count() > 1:
        raise UsageError("the benchmark runs in one process: start several commands with other `seeds` instead.")
    write_json(run.path("provenance.json"), provenance())
    total, rows = sum(len(cells) for _, cells in plan), list[Row]()
    for load, cells in plan:
        data = load()
        for cell in cells:
            rows.append(work(data, cell))
            console.say(f"{len(rows)}/{total} {line(rows[-1])}")
            write_json(run.path("bench.json"), {**settings, "rows": rows})
            with atomic_path(run.path("bench.md")) as path:
                path.write_text(tables(rows), encoding="utf-8")
    keys = list(dict.fromkeys(key for row in rows for key in row))
    with atomic_path(run.path("bench.parquet")) as path:
        pq.write_table(pa.Table.from_pylist([{key: row.get(key) for key in keys} for row in rows]), path)
    with atomic_path(run.path("bench.png")) as path:
        draw(rows, path)
    run.finish("bench", settings, {"rows": len(rows)})
    return BenchResult(run.folder)


def shown(values: np.ndarray | Sequence[float], digits: int) -> str:
    """Mean, and the standard deviation where there are several values; a dash where there is none."""
    if not len(values):
        return DASH
    text = f"{np.mean(values):.{digits}f}"
    return f"{text} ± {np.std(values, ddof=1):.{digits}f}" if len(values) > 1 else text


def markdown(head: Sequence[str], lines: Iterable[Sequence[str]], title: str = "") -> str:
    """A table, under a title if there is one."""
    rows = [head, *lines]
    texts = [f"| {' | '.join(row)} |" for row in rows]
    texts.insert(1, "|---" * len(head) + "|")
    return "\n".join(([f"**{title}**", ""] if title else []) + texts)


def metric_table(
    rows: Sequence[Row], metric: Metric, lines: Mapping[str, Text], *, columns: str = "method",
    tail: Mapping[str, Callable[[list[Row]], str]] | None = None, mean: bool = False,
) -> str:  # fmt: skip
    """One metric as Markdown, means and deviations over seeds; "" if no row has it.

    The best of a line is bold, and so is what looks the same as the best. Columns and lines without a value are left
    out, so that what a method cannot measure takes no place.

    Args:
        rows: Of a bench.
        metric: What to show.
        lines: Titles of what a line begins with, and how to read it from a row.
        columns: Key of the rows that tells the columns.
        tail: Titles of further columns, and how to make them of the rows of a line.
        mean: Add a line with the mean of each column.
    """
    some = [row for row in rows if row.get(metric.name) is not None]
    if not some:
        return ""
    names = list(dict.fromkeys(row[columns] for row in some))
    groups: dict[tuple[str, ...], list[Row]] = {}
    for row in some:
        groups.setdefault(tuple(text(row) for text in lines.values()), []).append(row)
    out, means = [], dict[str, list[float]]()
    for start, group in groups.items():
        found = {name: [row for row in group if row[columns] == name] for name in names}
        best = _best({name: metric.values(there).mean() for name, there in found.items() if there}, metric)
        cells = []
        for name, there in found.items():
            text = shown(metric.values(there), metric.digits)
            cells.append(
                (f"**{text}**" if name in best else text) + (metric.note(there) if metric.note and there else "")
            )
            means.setdefault(name, []).extend([metric.values(there).mean()] if there else [])
        out.append([*start, *cells, *(add(group) for add in (tail or {}).values())])
    if mean:
        out.append(["mean", *[""] * (len(lines) - 1), *(f"{np.mean(means[name]):.{metric.digits}f}" for name in names),
                    *[""] * len(tail or {})])  # fmt: skip
    return markdown([*lines, *names, *(tail or {})], out, metric.title)


def _best(means: Mapping[str, float], metric: Metric) -> list[str]:
    """Names of the best, as far as the digits tell; an oracle knows the truth, and is none."""
    rivals = {name: round(float(value), metric.digits) for name, value in means.items() if not name.startswith(ORACLE)}
    if metric.better == "none" or not rivals:
        return []
    best = (max if metric.better == "more" else min)(rivals.values())
    return [name for name, value in rivals.items() if value == best]


def metric_tables(rows: Sequence[Row], metrics: Sequence[Metric], lines: Mapping[str, Text], *,
                  mean: bool = False) -> str:  # fmt: skip
    """A table for each metric that a row has, and a line about the seeds."""
    return joined(rows, *(metric_table(rows, metric, lines, mean=mean) for metric in metrics))


def joined(rows: Sequence[Row], *tables: str) -> str:
    """Tables, without the empty ones, and a line about the seeds."""
    seeds = ", ".join(map(str, sorted({row["seed"] for row in rows})))
    return "\n\n".join([*filter(None, tables), f"Mean ± standard deviation over seeds {seeds}.\n"])


def plot(rows: Sequence[Row], path: Path, metric: Metric, *, panel: Text, x: str, x_title: str) -> None:
    """A panel for each set: the metric by method, mean and standard deviation over seeds.

    Args:
        rows: Of a bench.
        path: PNG to write.
        metric: What to show.
        panel: Title of the panel that a row belongs to.
        x: Key of the rows along the axis, a number or a word.
        x_title: Of the axis.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    panels = list(dict.fromkeys(map(panel, rows)))
    figure, axes = pyplot.subplots(1, len(panels), figsize=(4.5 * len(panels), 3.6), squeeze=False)
    for axis, title in zip(axes[0], panels):
        inside = [row for row in rows if panel(row) == title and row.get(metric.name) is not None]
        for method in dict.fromkeys(row["method"] for row in inside):
            places = list(dict.fromkeys(row[x] for row in inside if row["method"] == method))
            places = places if isinstance(places[0], str) else sorted(places)
            values = [metric.values(row for row in inside if (row["method"], row[x]) == (method, place))
                      for place in places]  # fmt: skip
            axis.errorbar(places, [v.mean() for v in values], [v.std(ddof=1) if len(v) > 1 else 0 for v in values],
                          marker="o", capsize=2, label=method,
                          linestyle="--" if method.startswith(ORACLE) else "-")  # fmt: skip
        axis.set(title=title, xlabel=x_title, ylabel=metric.name)
        axis.legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path, dpi=120, format="png", metadata={"Software": None})
    pyplot.close(figure)
