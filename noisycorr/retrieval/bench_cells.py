"""The benchmark of methods on frozen features: known noise in, recall and detection out, the same budget for all.

A cell is one set, unit and ratio of noise, method and seed; it takes seconds, and its result is one small file, so that
the same command continues, and several commands may share a folder.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from noisycorr.clean.bench_sets import BenchSet, read_spec, read_value
from noisycorr.clean.corpus import Corpus, swap_texts
from noisycorr.clean.signals.pipeline import Score, score_pairs
from noisycorr.clean.signals.view import PairEmbeddings
from noisycorr.data.noise.recipes import RandomSwap
from noisycorr.models.training.choice import Train
from noisycorr.models.training.contract import Strategy, Trust
from noisycorr.models.training.learner import Learner
from noisycorr.models.training.loop import Hooks, fit
from noisycorr.retrieval.fit import make_learner, make_towers, watch_truth
from noisycorr.retrieval.scoreboard import retrieval, short
from noisycorr.retrieval.strategies import describe, find_strategy, load_strategy
from noisycorr.runtime import dist
from noisycorr.runtime.errors import UsageError
from noisycorr.runtime.folder import Run, fingerprint, read_json, write_array, write_json
from noisycorr.runtime.version import __version__
from noisycorr.stats.detection import auroc

ORACLE = "oracle"  # the plain method on the right pairs alone


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One training of the benchmark.

    Attributes:
        unit: caption or image, as in `noisycorr inject`.
        ratio: Share of the units that are swapped.
        method: `NAME` or `NAME+option=value+...`; `oracle` is the plain method on the right pairs.
        seed: Of noise and training.
    """

    unit: Literal["caption", "image"]
    ratio: float
    method: str
    seed: int


def method_of(spec: str) -> tuple[str, Strategy]:
    """The method that a spec names, with two networks where it has the choice, so that all have an ensemble.

    Raises:
        UsageError: If there is no such method or option.
    """
    name, written = read_spec(spec, "strategies")
    options = {key: read_value(value) for key, value in written.items()}
    name = "plain" if name == ORACLE else name
    kind = find_strategy(name)
    peers = [item for item in dataclasses.fields(kind) if item.name == "peer"]  # type: ignore[arg-type]
    if peers and "peer" not in options:
        options["peer"] = "twin" if peers[0].default == "none" else peers[0].default
    return name, load_strategy(name, options)


def run_cell(data: BenchSet, cell: Cell, choice: Train, run: Run) -> dict[str, Any]:
    """Train and test one cell, unless its result is there.

    Args:
        data: The set.
        cell: What to do.
        choice: How to train; its seed is the cell's.
        run: The folder of the benchmark.

    Returns:
        One row of the tables: `rSum` (ensemble on test), `rSum_single` (mean of single networks), recalls, `auroc` of
        wrong pairs at the end and `auroc_first` when the method first judged, `best_epoch`, `seconds`.
    """
    choice = dataclasses.replace(choice, seed=cell.seed)
    name, strategy = method_of(cell.method)
    inputs = {
        "set": [data.train.identity, data.valid.identity, data.test.identity], "pairs": len(data.texts),
        "cell": dataclasses.asdict(cell), "settings": choice.settings(), "strategy": describe(name, strategy),
        "noisycorr": __version__,
    }  # fmt: skip
    path = run.folder / "cells" / f"{data.name}-{fingerprint(inputs)}.json"
    if path.exists():
        found: dict[str, Any] = read_json(path)
        return found
    injected = RandomSwap(ratio=cell.ratio, unit=cell.unit, seed=cell.seed)(data.texts, image_ids=data.train.shown)
    corpus = swap_texts(data.train, injected.source_row)
    if strategy.needs_columns:
        corpus = dataclasses.replace(corpus, columns={"p_clean": _stored_p_clean(corpus, data, cell, run)})
    rows = np.flatnonzero(corpus.usable & ~injected.wrong if cell.method.startswith(ORACLE) else corpus.usable)
    started = time.process_time()
    row = {"set": data.name, **dataclasses.asdict(cell), "wrong": float(injected.wrong.mean()), "pairs": len(rows)}
    row |= _train(data, corpus, rows, strategy, choice, injected.wrong)
    row["seconds"] = round(time.process_time() - started, 1)
    write_json(path, row)
    return row


def _train(data: BenchSet, corpus: Corpus, rows: np.ndarray, strategy: Strategy, choice: Train,
           wrong: np.ndarray) -> dict[str, Any]:  # fmt: skip
    learner = make_learner(corpus, rows, strategy, choice)
    valid, test = make_towers(data.valid, choice), make_towers(data.test, choice)
    chosen = np.flatnonzero(data.valid.usable)

    def validate(it: Learner) -> dict[str, Any]:
        line = short(retrieval(it.networks, valid, chosen, data.valid.shown[chosen]), "valid")
        return line | {"select": line["valid_rSum"]}

    watch = watch_truth(wrong[rows].astype(np.int8))
    fit(learner, Hooks(validate=validate, watch=watch))
    learner.load_weights(learner.best)
    asked = np.flatnonzero(data.test.usable)
    found = retrieval(learner.networks, test, asked, data.test.shown[asked])
    history = learner.cursor.history
    first = next((record for record in history if any(key.startswith("auroc_p_clean") for key in record)), {})
    best = learner.cursor.best
    assert best is not None and isinstance(found["singles"], list) and isinstance(found["ensemble"], dict)
    out: dict[str, Any] = {
        "rSum": found["ensemble"]["rSum"],
        "rSum_single": float(np.mean([one["rSum"] for one in found["singles"]])),
        "text_retrieval_recall@1": found["ensemble"]["text_retrieval_recall@1"],
        "image_retrieval_recall@1": found["ensemble"]["image_retrieval_recall@1"],
        "valid_rSum": best[0],
        "best_epoch": int(best[1]),
        "networks": len(learner.networks),
        "auroc_first": _mean(first, "auroc_p_clean"),
    }
    out["auroc"] = _final_auroc(learner, wrong[rows])
    return out


def _final_auroc(learner: Learner, wrong: np.ndarray) -> float | None:
    """How well the networks of the best epoch together tell wrong pairs, by p_clean, or else by the loss."""
    found: list[np.ndarray] = []

    def watch(number: int, signals: Mapping[str, np.ndarray], trust: Trust | None) -> None:
        name = next((name for name in signals if name.startswith("loss")), next(iter(signals)))
        sign = -1 if name.startswith("loss") else 1
        found.append(trust.p_clean if trust is not None else sign * signals[name])

    learner.judge(watch)
    value = auroc(np.mean(found, axis=0), wrong)
    return None if np.isnan(value) else value


def _mean(record: Mapping[str, Any], start: str) -> float | None:
    values = [value for name, value in record.items() if name.startswith(start) and value is not None]
    return float(np.mean(values)) if values else None


def _stored_p_clean(corpus: Corpus, data: BenchSet, cell: Cell, run: Run) -> np.ndarray:
    """Judged once for all methods: it depends on the noise alone."""
    inputs = {"set": data.train.identity, "pairs": len(data.texts), "unit": cell.unit, "ratio": cell.ratio,
              "seed": cell.seed, "noisycorr": __version__}  # fmt: skip
    path = run.path("p_clean", f"{data.name}-{fingerprint(inputs)}.npy")
    if not path.exists():
        write_array(path, _p_clean(corpus, cell.seed))
    found: np.ndarray = np.load(path, allow_pickle=False)
    return found


def _p_clean(corpus: Corpus, seed: int) -> np.ndarray:
    """What `noisycorr clean` would say of these pairs with heads learned on them."""
    view = PairEmbeddings(image=[corpus.image], text=[corpus.text], text_id=corpus.text_group,
                          image_id=corpus.image_group, present=corpus.usable,
                          seed=seed, picture=corpus.shown)  # fmt: skip
    scored = score_pairs(view, None, Score(seed=seed), learn=True)
    return np.nan_to_num(scored.fit(scored.pair.given), nan=0.0)


def run_cells(sets: Sequence[Callable[[], BenchSet]], cells: list[Cell], choice: Train, run: Run,
              told: Callable[[dict[str, Any]], None]) -> list[dict[str, Any]]:  # fmt: skip
    """All cells of all sets, each set loaded once.

    Args:
        sets: Functions that load a set.
        cells: What to do on each.
        choice: How to train.
        run: The folder.
        told: Called with each row.
    """
    if dist.count() > 1:
        raise UsageError("the benchmark runs in one process: start several commands with other `seeds` instead.")
    rows = []
    for load in sets:
        data = load()
        for cell in cells:
            rows.append(run_cell(data, cell, choice, run))
            told(rows[-1])
    return rows
