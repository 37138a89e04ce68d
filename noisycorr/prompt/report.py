"""The page of a tuned prompt: what changed, what it was learned from, shown as pictures, and how good it is."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from noisycorr.clean.report import read_config
from noisycorr.clean.report.decision import percent
from noisycorr.clean.report.frequency_sketch import plain
from noisycorr.clean.report.page import fill, number
from noisycorr.data.store import pairs_path, part_sizes
from noisycorr.prompt.baselines import BASELINES
from noisycorr.runtime.folder import Run, atomic_path

SHOWN = 6  # pictures of each class, half of them the surest and half the least sure
CLASSES = 60
BYTES = 40_000  # larger previews are left out


def write_prompt_report(run: Run, report: Mapping[str, Any], images: Run, rows: Sequence[int],
                        table: pa.Table) -> Path:  # fmt: skip
    """Write `report.html`.

    Args:
        run: The folder of the prompt.
        report: The value of report.json.
        images: The run that holds the previews.
        rows: Row in it of each pseudo-label; those of other runs are left out.
        table: The pseudo-labels, in the same order.
    """
    report = plain(dict(report))
    config, sources = read_config(run)
    page = fill(
        Path(__file__).with_name("prompt.html"),
        source=config["path"] if isinstance(config.get("path"), str) else "",
        verdict=verdict(report),
        report=report,
        results=results(report),
        rounds=rounds(report["history"]),
        classes=by_class(report),
        galleries=galleries(images, rows, table),
        hidden=max(0, len(report["by_class"]) - CLASSES),
        commands=commands(config),
        sources=sources,
    )
    path = run.path("report.html")
    with atomic_path(path) as temporary:
        temporary.write_text(page, encoding="utf-8", newline="\n")
    return path


def verdict(report: Mapping[str, Any]) -> str:
    """The first sentence."""
    changed = f"{report['changed']:,} of {report['unlabelled']:,} images changed their class"
    if "measures" not in report:
        return f"{changed}; whether to the better is not known, because no image came with its class."
    measures = report["measures"]
    return (
        f"{percent(measures['after'])} of {report['measured_on']} are right after tuning, "
        f"{percent(measures['before'])} before it; {changed}."
    )


def results(report: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Classifier, accuracy and distance from zero-shot; the tuned one last."""
    if "measures" not in report:
        return []
    zero, tuned = report["baselines"].get("zero-shot"), report["measures"]["after"]
    baselines = report["baselines"]  # report.json sorts its keys, so that the order is not that in which they came
    named = [*((name, baselines[name]) for name in BASELINES if name in baselines), ("tuned prompt", tuned)]
    if "settled" in report:
        named.append(("tuned prompt, with similar images", report["settled"]))
    return [(name, percent(value), f"{100 * (value - zero):+.1f}") for name, value in named]


def rounds(history: Sequence[Mapping[str, Any]]) -> list[tuple[Any, ...]]:
    """A row for each round."""
    return [(one["round"], one["per_class"], one["selected"], one["learned_from"], number(one.get("loss")),
             percent(one["fit"]), percent(one["agree"]), "undone" if one["tripped"]
             else "second try" if one["retried"] else "kept") for one in history]  # fmt: skip


def by_class(report: Mapping[str, Any]) -> tuple[list[str], list[tuple[Any, ...]]]:
    """Header and a row for each class, those that changed most first."""
    measured = "measures" in report
    header = ["class", "predicted zero-shot", "predicted tuned", "pseudo-labels"]
    rows = sorted(report["by_class"], key=lambda row: -abs(row["tuned"] - row["zero_shot"]))
    if not measured:
        return header, [(r["class"], r["zero_shot"], r["tuned"], r["pseudo_labels"]) for r in rows]
    header += ["measured on", "right zero-shot", "right tuned"]
    return header, [(r["class"], r["zero_shot"], r["tuned"], r["pseudo_labels"], r["images"],
                     percent(r["accuracy_zero_shot"]), percent(r["accuracy_tuned"])) for r in rows]  # fmt: skip


def galleries(images: Run, rows: Sequence[int], table: pa.Table) -> list[tuple[str, int, list[dict[str, Any]]]]:
    """Class, number of its pseudo-labels, and cards of the surest and the least sure of them."""
    labels = table.column("label").to_pylist()[: len(rows)]
    where: dict[str, list[int]] = {}
    for place, label in enumerate(labels):
        where.setdefault(label, []).append(place)
    chosen = {label: _ends(places) for label, places in list(where.items())[:CLASSES]}
    wanted = sorted({int(rows[place]) for places in chosen.values() for place in places})
    previews = thumbnails(images, wanted)
    columns = {name: table.column(name).to_pylist() for name in ("key", "probability", "round", "rank")}
    return [
        (label, len(where[label]),
         [{name: values[place] for name, values in columns.items()} | {"jpeg": previews.get(int(rows[place]))}
          for place in places])
        for label, places in chosen.items()
    ]  # fmt: skip


def thumbnails(run: Run, rows: Sequence[int]) -> dict[int, bytes]:
    """JPEGs of rows, where there are any of bearable size."""
    out: dict[int, bytes] = {}
    start = 0
    for index, size in part_sizes(run).items():
        mine = [row for row in rows if start <= row < start + size]
        if mine:
            column = pq.read_table(pairs_path(run, index), columns=["thumbnail"]).column("thumbnail")
            for row in mine:
                data = column[row - start].as_py()
                if data and data.startswith(b"\xff\xd8\xff") and len(data) <= BYTES:
                    out[row] = data
        start += size
    return out


def commands(config: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What to do next: command and what it is for."""
    folder = str(config.get("output_folder", "OUT"))
    path, classes = shlex.quote(str(config.get("path", "SOURCE"))), shlex.quote(str(config.get("classes", "FILE")))
    here = shlex.quote(folder)
    return [
        (f"noisycorr prompt {path} --classes {classes} --labels {shlex.quote(folder + '/pseudo_labels.csv')} "
         "--output_folder OTHER", "again, after you corrected that file and deleted what you did not check"),
        (f"noisycorr clean {here}/labelled --output_folder OTHER", "doubt the pseudo-labels"),
    ]  # fmt: skip


def _ends(places: Sequence[int]) -> list[int]:
    """The first and the last few."""
    if len(places) <= SHOWN:
        return list(places)
    half = SHOWN // 2
    return [*places[:half], *np.asarray(places)[-half:].tolist()]
