"""`noisycorr bench noise`: sets x units x ratios x methods x seeds, from sources or runs of `clean`."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, fields
from functools import partial
from typing import Any

from noisycorr.clean.bench_sets import BenchSet, listed, read_set, runs_of_set
from noisycorr.models.training.choice import Train
from noisycorr.retrieval.bench_cells import Cell, method_of, run_cells
from noisycorr.retrieval.bench_tables import write_tables
from noisycorr.runtime import console
from noisycorr.runtime.errors import UsageError
from noisycorr.runtime.folder import Run, provenance, write_json


@dataclass(frozen=True, kw_only=True)
class Bench:
    """What the benchmark runs.

    Attributes:
        sets: NAME=SOURCE, or NAME=TRAIN|VALID|TEST for sets that come split, joined by commas. Sources are run folders
            of `clean`, or what it reads; without a split a tenth of the images validates, and a tenth tests.
        units: caption, image, or both, joined by commas.
        ratios: Shares of wrong pairs, joined by commas.
        strategies: Methods, joined by commas; options follow as coteach+split=bmm. oracle is plain training on the
            right pairs alone.
        seeds: Of noise and training, joined by commas.
        limit: Training pairs of each set, from the start; 0 = all.

    Raises:
        UsageError: If a list is empty, or holds a word that is not one of these.
    """

    sets: str = "sample=sample"
    units: str = "caption"
    ratios: str = "0,0.2,0.4,0.6"
    strategies: str = "plain,coteach,best,oracle"
    seeds: str = "0,1,2"
    limit: int = 8000

    def __post_init__(self) -> None:
        for field in fields(self):
            if field.name != "limit" and not listed(getattr(self, field.name)):
                raise UsageError(f"`{field.name}` is empty.")
        if self.limit < 0:
            raise UsageError(f"`limit` is {self.limit}, expected 0 (all) or more.")
        for name in listed(self.units):
            if name not in ("caption", "image"):
                raise UsageError(f"`units` names {name!r}, expected caption or image.")
        for name in listed(self.sets):
            if "=" not in name or name.count("|") not in (0, 2):
                raise UsageError(f"`sets` has {name!r}, expected NAME=SOURCE or NAME=TRAIN|VALID|TEST.")

    def cells(self) -> list[Cell]:
        """Every training on one set, seed by seed, so that an interrupted benchmark has whole rows."""
        try:
            ratios, seeds = [float(x) for x in listed(self.ratios)], [int(x) for x in listed(self.seeds)]
        except ValueError as error:
            raise UsageError(f"`ratios` and `seeds` must be numbers: {error}.") from error
        if any(not 0 <= ratio <= 1 for ratio in ratios):
            raise UsageError(f"`ratios` is {self.ratios}, expected shares in 0 to 1.")
        for method in listed(self.strategies):
            method_of(method)
        return [Cell(unit=unit, ratio=ratio, method=method, seed=seed)  # type: ignore[arg-type]
                for seed, unit, ratio, method in itertools.product(seeds, listed(self.units), ratios,
                                                                   listed(self.strategies))]  # fmt: skip


def bench(choice: Bench, train: Train, run: Run, *, caption_col: str | None, clip_model: str) -> list[dict[str, Any]]:
    """Run what is missing, and write the tables.

    Args:
        choice: What to run.
        train: The budget of each training, the same for all; its seed is not used.
        run: The folder.
        caption_col: Column of the texts of sources that are not embedded yet.
        clip_model: Their encoder.

    Returns:
        All rows.
    """
    cells, sets = choice.cells(), listed(choice.sets)
    write_json(run.path("provenance.json"), provenance())
    write_json(run.path("bench.json"), {"bench": vars(choice), "train": train.settings()})
    load = [partial(load_set, text, run, choice.limit, caption_col, clip_model) for text in sets]
    done: list[dict[str, Any]] = []

    def told(row: dict[str, Any]) -> None:
        done.append(row)
        found = f", AUROC {row['auroc']:.3f}" if row["auroc"] is not None else ""
        console.say(f"{len(done)}/{len(cells) * len(sets)} {row['set']} {row['ratio']:.0%} by {row['unit']}, "
                    f"{row['method']}, seed {row['seed']}: rSum {row['rSum']:.1f} (single {row['rSum_single']:.1f})"
                    f"{found}, {row['seconds']:.0f} s")  # fmt: skip

    rows = run_cells(load, cells, train, run, told)
    write_tables(rows, run.folder)
    return rows


def load_set(text: str, run: Run, limit: int, caption_col: str | None, clip_model: str) -> BenchSet:
    """A set from `NAME=SOURCE` or `NAME=TRAIN|VALID|TEST`, embedded into the folder if it is not a run already."""
    return read_set(*runs_of_set(text, run, caption_col, clip_model), limit)
