"""The page of a training: what came out, how it went, what to take care of, and what to do next."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from noisycorr.clean.report import read_config
from noisycorr.clean.report.frequency_sketch import plain
from noisycorr.clean.report.page import fill, number
from noisycorr.clean.report.plots import _flat, curve
from noisycorr.runtime import console
from noisycorr.runtime.folder import Run, atomic_path, read_json

KS = (1, 5, 10)
ACCURACY = ("acc1", "acc5", "mean_per_class_recall")
CURVES = (
    ("loss", "Loss", "Mean over the pairs that were trained on; a strategy may change what it measures after warm-up.",
     "no epoch was finished"),
    ("valid_rSum", "rSum on validation pairs", "Higher = better; the epoch with the highest was kept.",
     "there were no validation pairs to select on"),
    ("clean_share", "Share of training pairs trusted", "Pairs that the strategy learns from as they are.",
     "the strategy did not judge pairs"),
    ("auroc_p_clean", "AUROC of wrong pairs", "How well p_clean tells wrong pairs: 1 = perfect order, 0.5 = chance.",
     "it is not known which pairs are wrong, or the strategy did not judge them"),
)  # fmt: skip


def write_training_report(run: Run) -> Path:
    """Read a finished training and write `report.html` into its folder.

    Nothing in it depends on when it was written, so two pages of one training are equal byte by byte.

    Args:
        run: With `report.json` and, where known, `evaluation.json`, `config.yaml`, `provenance.json`.

    Returns:
        Path of report.html.
    """
    report = plain(read_json(run.folder / "report.json"))
    tested = run.folder / "evaluation.json"
    evaluation = plain(read_json(tested)) if tested.exists() else {}
    config, sources = read_config(run)
    folder = config.get("output_folder")
    history = report["history"]
    found = evaluation.get("test") or {}
    page = fill(
        Path(__file__).with_name("training.html"),
        source=config["path"] if isinstance(config.get("path"), str) else "",
        verdict=verdict(report, evaluation),
        report=report,
        test_data=evaluation.get("test_data"),
        results=[
            (title, found, recall_rows(found))
            for title, found in (("Test", evaluation.get("test")), ("Validation", report.get("validation")))
            if found
        ],
        folds=(found["folds"]["count"], recall_rows(found["folds"])) if "folds" in found else None,
        classification=evaluation.get("classification"),
        accuracy=accuracy_rows(evaluation["classification"]) if "classification" in evaluation else [],
        curves=[curve(history, *facts, report["best_epoch"]) for facts in CURVES],
        epochs=epoch_table(history),
        detection=evaluation.get("detection"),
        signals=signal_rows(report["detection"]),
        notes=notes(history),
        strategy={name: value for name, value in report["strategy"].items() if name not in ("name", "class")},
        commands=commands(folder if isinstance(folder, str) else "OUT", tested=bool(evaluation)),
        sources=sources,
    )
    path = run.path("report.html")
    with atomic_path(path) as temporary:
        temporary.write_text(page, encoding="utf-8", newline="\n")
    return path


def verdict(report: Mapping[str, Any], evaluation: Mapping[str, Any]) -> str:
    """The first sentence."""
    name, found, kind = report["strategy"]["name"], evaluation.get("test"), "test"
    if found is None:
        found, kind = report.get("validation"), "validation"
    if found is None:
        epochs = f"{len(report['history'])} epochs on {report['pairs']:,} pairs"
        return f"{name} was trained for {epochs}; no pairs were left to measure it on."
    best = found["ensemble"]
    first = [_recall(best, side, 1) for side in ("text", "image")]
    return (
        f"{name} puts a right text first for {first[0]}\u00a0% of the {kind} images, and the right image first for "
        f"{first[1]}\u00a0% of the {kind} texts; rSum {_fixed(best['rSum'])}."
    )


def headline(report: Mapping[str, Any]) -> list[str]:
    """The best epoch and its rSum, in one line; nothing where no pairs validated."""
    if "validation" not in report:
        return []
    both = report["validation"]
    singles = " and ".join(f"{one['rSum']:.1f}" for one in both["singles"])
    together = f", together {both['ensemble']['rSum']:.1f}" if len(both["singles"]) > 1 else ""
    pairs = f"rSum on {both['pairs']:,} validation pairs {singles}{together}"
    return [f"best epoch {report['best_epoch'] + 1}; {pairs}"]


def recall_rows(found: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """A row for each network, and one for all together."""
    return [
        (name, *(_recall(one, side, k) for side in ("text", "image") for k in KS), _fixed(one["rSum"]))
        for name, one in _named(found)
    ]


def accuracy_rows(found: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """The same for classification."""
    return [(name, *(_fixed(one[key]) for key in ACCURACY)) for name, one in _named(found)]


def _named(found: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    """Metrics of each network, and of all together if there are several."""
    named = [(f"network {place + 1}", one) for place, one in enumerate(found["singles"])]
    return [*named, ("together", found["ensemble"])] if len(named) > 1 else named


def epoch_table(history: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[list[Any]]]:
    """All numbers of all epochs."""
    flat = [_flat(record) for record in history]
    names = list(dict.fromkeys(name for row in flat for name in row if name not in ("epoch", "select")))
    return ["epoch", *names], [[i + 1, *(number(row.get(name)) for name in names)] for i, row in enumerate(flat)]


def signal_rows(final: Mapping[str, float | None]) -> list[tuple[str, str]]:
    """AUROC of what the best networks say."""
    out = []
    for name, value in sorted(final.items()):
        signal, place = re.fullmatch(r"(.*?)(?:_(\d+))?", name.removeprefix("auroc_")).groups()  # type: ignore[union-attr]
        out.append((f"{signal}, network {int(place) + 1}" if place else signal, number(value)))
    return out


def notes(history: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """What the strategy said in words, each once, and in which epochs."""
    found: dict[str, tuple[str, list[int]]] = {}
    for epoch, record in enumerate(history):
        words = [str(value) for name, value in sorted(record.items()) if name.startswith("note")]
        if "fall_back" in record:
            words.append(f"fewer than 2 pairs were trusted, so all {record['fall_back']:,} pairs were used")
        for word in words:
            epochs = found.setdefault(console.without_numbers(word), (word, []))[1]
            epochs.extend([epoch + 1] if epoch + 1 not in epochs else [])
    return [(word, _spans(epochs)) for word, epochs in found.values()]


def commands(folder: str, *, tested: bool) -> list[tuple[str, str]]:
    """What to do next: command and what it is for."""
    here, config = shlex.quote(folder), shlex.quote(str(Path(folder) / "config.yaml"))
    return [
        (f"noisycorr evaluate {here}", "the test numbers as JSON" if tested else "open the test split"),
        (f"noisycorr evaluate {here} --test_data SOURCE", "test the model on other pairs"),
        (f"noisycorr train --config {config} --output_folder OTHER --seed 1",
         "train again with another seed: how far the numbers differ is chance"),
    ]  # fmt: skip


def _spans(epochs: Sequence[int]) -> str:
    """1, 2, 3, 5 as `epochs 1 to 3, 5`."""
    spans: list[list[int]] = []
    for epoch in epochs:
        if spans and spans[-1][1] == epoch - 1:
            spans[-1][1] = epoch
        else:
            spans.append([epoch, epoch])
    shown = ", ".join(str(a) if a == b else f"{a} to {b}" for a, b in spans)
    return f"epoch{'s' if len(epochs) > 1 else ''} {shown}"


def _recall(metrics: Mapping[str, Any], side: str, k: int) -> str:
    return _fixed(metrics[f"{side}_retrieval_recall@{k}"])


def _fixed(value: float | None) -> str:
    return "–" if value is None else f"{value:.1f}"
