"""The page of a classifier: what came out, how it went, and every class."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from noisycorr.clean.report import read_config
from noisycorr.clean.report.frequency_sketch import plain
from noisycorr.clean.report.page import fill, number
from noisycorr.clean.report.plots import curve
from noisycorr.runtime.folder import Run, atomic_path, read_json

CURVES = (
    ("loss", "Loss", "Mean over the samples that were trained on; a method may change what it measures.",
     "no epoch was finished"),
    ("valid_top1", "Top-1 on validation samples", "With the labels as they came. Higher = better.",
     "there were no validation samples"),
    ("clean_share", "Share of samples kept", "Samples whose labels the method learns from.", "the method keeps all"),
)  # fmt: skip
NAMES = {
    "top1": "Top-1", "top5": "Top-5", "macro": "Top-1, mean over classes", "map": "mAP, mean over tags",
    "cf1": "C-F1 at 3", "of1": "O-F1 at 3", "cf1_rel": "C-F1 as released by CAPro",
    "of1_rel": "O-F1 as released by CAPro", "map_micro": "average precision over all entries",
    "samples": "test samples", "changed": "changed", "left_out": "left out", "precision": "of the changed, right now",
    "recall": "of the wrong, put right",
}  # fmt: skip


def write_class_report(run: Run) -> Path:
    """Read a finished training of a classifier and write `report.html` into its folder.

    Nothing in it depends on when it was written, so two pages of one training are equal byte by byte.

    Args:
        run: With `report.json`, `config.yaml` and `provenance.json`.
    """
    report = plain(read_json(run.folder / "report.json"))
    config, sources = read_config(run)
    tested = dict(report.get("test") or {})
    opened = report.get("open_set")
    results = [(NAMES[name], number(value)) for name, value in tested.items()]
    if opened:
        results += [("test samples of unknown classes", number(opened["unknown"])),
                    ("open set: mean C-F1", number(opened["cf1"]))]  # fmt: skip
    table = sorted(report.get("per_class", []), key=lambda row: (row["recall"] is None, row["recall"] or 0.0))
    page = fill(
        Path(__file__).with_name("classes.html"),
        source=config["path"] if isinstance(config.get("path"), str) else "",
        verdict=verdict(report),
        report=report,
        results=results,
        labels=[(NAMES[name], number(value)) for name, value in (report.get("labels") or {}).items()],
        shots=[(name, one["classes"], number(one["recall"])) for name, one in (report.get("by_shots") or {}).items()],
        curves=[curve(report["history"], *facts, None) for facts in CURVES],
        classes=[(row["class"], row["trained"], row["tested"], number(row["recall"]), number(row["precision"]))
                 for row in table],
        commands=[(f"noisycorr classify train --config {shlex.quote(str(run.folder / 'config.yaml'))} "
                   "--output_folder OTHER --seed 1",
                   "train again with another seed: how far the numbers differ is chance")],
        sources=sources,
    )  # fmt: skip
    path = run.path("report.html")
    with atomic_path(path) as temporary:
        temporary.write_text(page, encoding="utf-8", newline="\n")
    return path


def verdict(report: Mapping[str, Any]) -> str:
    """The first sentence."""
    name, tested = report["method"]["name"], report.get("test")
    kind = "tags" if report["multi"] else "classes"
    start = f"{name} learned {len(report['classes'])} {kind} from {report['samples']:,} samples"
    if not tested:
        return f"{start}; no samples were left to test it."
    if report["multi"]:
        return f"{start}: mAP {number(tested['map'])} on {tested['samples']:,} test samples."
    return f"{start}: {100 * tested['top1']:.1f}\u00a0% of {tested['samples']:,} test samples are right."
