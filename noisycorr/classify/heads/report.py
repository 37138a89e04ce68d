"""The page of `noisycorr tune`: every method on every set, and the spectrum before and after."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from noisycorr.clean.report import read_config
from noisycorr.clean.report.frequency_sketch import plain
from noisycorr.clean.report.page import fill, number
from noisycorr.runtime.folder import Run, atomic_path, read_json

NAMES = {"linear": "linear probe", "mlp": "adapter", "nmtune": "NMTune", "lora": "LoRA"}


def write_tuning_report(run: Run) -> Path:
    """Read `report.json` and write `report.html` beside it; nothing in it depends on when it was written.

    Returns:
        Path of report.html.
    """
    report = plain(read_json(run.folder / "report.json"))
    config, sources = read_config(run)
    folder = config.get("output_folder")
    path = run.path("report.html")
    page = fill(
        Path(__file__).with_name("tuning.html"),
        source=config["path"] if isinstance(config.get("path"), str) else "",
        verdict=verdict(report),
        report=report,
        accuracy=accuracy_table(report),
        spectrum=spectrum_rows(report),
        commands=commands(folder if isinstance(folder, str) else "OUT"),
        sources=sources,
    )
    with atomic_path(path) as temporary:
        temporary.write_text(page, encoding="utf-8", newline="\n")
    return path


def verdict(report: Mapping[str, Any]) -> str:
    """The first sentence."""
    best, accuracy = report["best"], report["methods"][report["best"]]["accuracy"]
    where = "test" if "test" in accuracy else "valid" if "valid" in accuracy else "train"
    shown = {"test": "test", "valid": "validation", "train": "training"}[where]
    found = f"{NAMES[best]} is right on {100 * accuracy[where]['top1']:.1f}\u00a0% of the {shown} rows"
    away = report["out_of_domain"]
    if away:
        mean = sum(accuracy[name]["top1"] for name in away) / len(away)
        found += f" and on {100 * mean:.1f}\u00a0% outside of the domain"
    return found + "."


def accuracy_table(report: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Percent right of each method on each set, and the mean over the sets of another kind."""
    sets = list(report["sets"])
    away = report["out_of_domain"]
    header = ["", *(f"{name} ({report['sets'][name]:,})" for name in sets)]
    rows = [[NAMES[method], *(f"{100 * found['accuracy'][name]['top1']:.1f}" for name in sets)]
            for method, found in report["methods"].items()]  # fmt: skip
    if len(away) > 1:
        header.append("mean out of domain")
        for row, found in zip(rows, report["methods"].values()):
            row.append(f"{100 * sum(found['accuracy'][name]['top1'] for name in away) / len(away):.1f}")
    return header, rows


def spectrum_rows(report: Mapping[str, Any]) -> list[list[str]]:
    """Numbers of the features as they were given, and as each method makes them."""
    found = [("as given", report["spectrum"])]
    found += [(NAMES[name], one["spectrum"]) for name, one in report["methods"].items() if name != "linear"]
    return [[name, *(number(one[key]) for key in ("sve", "sve_norm", "effective_rank", "lsvr"))] for name, one in found]


def commands(folder: str) -> list[tuple[str, str]]:
    """What to do next."""
    config = shlex.quote(str(Path(folder) / "config.yaml"))
    return [
        (f"noisycorr tune --config {config} --output_folder OTHER --seed 1",
         "tune again with another seed: how far the numbers differ is chance"),
        (f"noisycorr tune --config {config} --out_of_domain NAME=SOURCE",
         "test the same heads on pictures of another kind"),
    ]  # fmt: skip
