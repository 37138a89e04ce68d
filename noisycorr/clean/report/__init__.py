"""The report of a finished run: report.json with every number, and one self-contained report.html."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from noisycorr.clean.report.decision import read_decision, verdict_sentence
from noisycorr.clean.report.frequency_sketch import plain
from noisycorr.clean.report.gallery import Card, with_thumbnails
from noisycorr.clean.report.gather import gather
from noisycorr.clean.report.nutrition import nutrition_label
from noisycorr.clean.report.page import dump, render
from noisycorr.runtime.folder import Run, atomic_path, write_json

__all__ = ["read_config", "write_report"]


def write_report(run: Run) -> Path:
    """Read a finished run and write `report.json` and `report.html` into its folder.

    The rows are streamed: memory does not grow with the run. Nothing in the files depends on when or where they were
    written, so two reports of one run are equal byte by byte. Facts that a stage did not record are left out with a
    sentence saying so.

    Args:
        run: A run with `pairs/`, `ledger/` and, where known, `stages/*.json`, `config.yaml`, `provenance.json`.

    Returns:
        Path of report.html.

    Raises:
        UsageError: If the run holds no ledger, or one that does not fit its pairs.
    """
    decision = read_decision(run)
    numbers, galleries = gather(run, decision.threshold)
    config, sources = read_config(run)
    stages = {name: run.stage(name) or {} for name in ("embed", "score", "decide", "recaption")}
    embed = {**(stages["embed"].get("inputs") or {}), **(stages["embed"].get("facts") or {})}
    chosen, groups = galleries.chosen(), galleries.chosen_groups()
    report = plain(
        {
            **numbers,
            "verdict": verdict_sentence(decision, numbers["counts"]),
            "direction": "higher = better matched",
            "decision": stages["decide"].get("facts") or {},
            "galleries": {name: [_brief(card) for card in cards] for name, cards in chosen.items()},
            "near_duplicate_groups": [[_brief(card) for card in cards] for cards in groups],
            "nutrition": nutrition_label(numbers, decision, config, embed),
        }
    )
    write_json(run.path("report.json"), report)
    every = [card for cards in [*chosen.values(), *groups] for card in cards]
    shown = iter(with_thumbnails(run, every))
    pictured = {name: [next(shown) for _ in cards] for name, cards in chosen.items()}
    grouped = [[next(shown) for _ in cards] for cards in groups]
    sources |= {f"Facts of the stage {name}": dump(stage) for name, stage in stages.items() if stage}
    folder = config.get("output_folder")
    page = render(report, decision, pictured, grouped, config, folder if isinstance(folder, str) else "OUT", sources)
    path = run.path("report.html")
    with atomic_path(path) as temporary:
        temporary.write_text(page, encoding="utf-8", newline="\n")
    return path


def read_config(run: Run, file: str = "config.yaml") -> tuple[dict[str, Any], dict[str, str]]:
    """The configuration as a dictionary, and configuration and provenance as they stand in their files."""
    sources = {}
    for title, name in (("Configuration", file), ("Provenance", "provenance.json")):
        path = run.folder / name
        sources[title] = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
    try:
        config = yaml.safe_load(sources["Configuration"])
    except yaml.YAMLError:
        config = None
    return (config if isinstance(config, dict) else {}), sources


def _brief(card: Card) -> dict[str, Any]:
    brief = {"key": card.key, "row": card.row, "p_clean": card.p_clean, "verdict": card.verdict, "label": card.label}
    if card.proposed is not None:
        brief |= {"text_given": card.text, "text_new": card.proposed, "p_given": card.p_given, "p_new": card.p_new}
    return brief
