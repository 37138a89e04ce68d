"""`noisycorr bench noise`: sets x units x ratios x methods x seeds on frozen features.

Known noise in, recall and detection out, the same budget for all. A cell takes seconds.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from os import PathLike
from typing import Annotated, Any

import numpy as np

from noisycorr.clean.bench import ORACLE, BenchResult, Metric, Row, grid, metric_tables, plot, run_grid, stored_cell
from noisycorr.clean.bench_sets import BenchSet, check_bench, judged, listed, read_set, read_spec
from noisycorr.clean.corpus import Corpus, swap_texts
from noisycorr.data.noise.recipes import RandomSwap
from noisycorr.models.training.choice import Train
from noisycorr.models.training.contract import Strategy, Trust
from noisycorr.models.training.learner import Learner
from noisycorr.models.training.loop import Hooks, fit
from noisycorr.retrieval.fit import make_learner, make_towers, watch_truth
from noisycorr.retrieval.scoreboard import retrieval, short
from noisycorr.retrieval.strategies import describe, find_strategy, load_strategy
from noisycorr.runtime.folder import Run, fingerprint, new_run, stamped, write_array
from noisycorr.runtime.lock import at_work
from noisycorr.runtime.signature import Without, flat
from noisycorr.stats.detection import auroc

METRICS = (
    Metric(name="rSum", title="rSum on test, all networks of a method together (0 to 600, higher is better)"),
    Metric(name="rSum_single", title="rSum on test, mean of its single networks"),
    Metric(name="auroc", title="AUROC of wrong training pairs at the end (0.5 chance, 1 perfect)", digits=3),
    Metric(name="seconds", title="CPU seconds of one training", better="none"),
)
LINES = {"set": lambda row: row["set"], "noise": lambda row: f"{row['ratio']:.0%} by {row['unit']}"}


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
        check_bench(self, {"units": ("caption", "image")}, split=True)

    def cells(self) -> list[Row]:
        """Every training on one set: `unit`, `ratio`, `method` and `seed`."""
        for method in listed(self.strategies):
            method_of(method)
        seeds, ratios = list(map(int, listed(self.seeds))), list(map(float, listed(self.ratios)))
        return grid(seed=seeds, unit=listed(self.units), ratio=ratios, method=listed(self.strategies))


@flat
def bench_noise(
    output_folder: str | PathLike[str], *, bench: Bench = Bench(),
    train: Annotated[Train, Without("seed", "resume", "save_every", "keep_checkpoints")] = Train(),
    clip_model: str = "embedded", caption_col: str | None = None,
) -> BenchResult:  # fmt: skip
    """Compare methods under known noise, on frozen features: recall, detection, seconds; with tables and a plot.

    Puts noise into the training pairs of each set, trains each method with the same budget, selects on clean validation
    pairs and reports on clean test pairs. What is done is not done again.

    Args:
        output_folder: Folder for features, cells and tables; made if absent.
        clip_model: Encoder of sources that are not embedded yet.
        caption_col: Column of their texts; detected if none.

    Returns:
        The rows and tables.

    Raises:
        UsageError: If a set cannot be read, or is too small to be split.
    """
    run = new_run(output_folder)
    with at_work(run.folder, "bench noise"):
        plan = [(partial(read_set, text, run, bench.limit, caption_col, clip_model), bench.cells())
                for text in listed(bench.sets)]  # fmt: skip
        return run_grid(
            run, plan, lambda data, cell: run_cell(data, cell, train, run), line=_line,
            settings={"bench": vars(bench), "train": train.settings()},
            tables=lambda rows: metric_tables(rows, METRICS, LINES),
            draw=partial(plot, metric=METRICS[0], x="ratio", x_title="share of wrong pairs",
                         panel=lambda row: f"{row['set']}, by {row['unit']}"),
        )  # fmt: skip


def _line(row: Row) -> str:
    found = f", AUROC {row['auroc']:.3f}" if row["auroc"] is not None else ""
    return (f"{row['set']} {row['ratio']:.0%} by {row['unit']}, {row['method']}, seed {row['seed']}: rSum "
            f"{row['rSum']:.1f} (single {row['rSum_single']:.1f}){found}, {row['seconds']:.0f} s")  # fmt: skip


def method_of(spec: str) -> tuple[str, Strategy]:
    """The method that a spec names, with two networks where it has the choice, so that all have an ensemble.

    Raises:
        UsageError: If there is no such method or option.
    """
    name, options = read_spec(spec, "strategies")
    name = "plain" if name == ORACLE else name
    kind = find_strategy(name)
    peers = [item for item in dataclasses.fields(kind) if item.name == "peer"]  # type: ignore[arg-type]
    if peers and "peer" not in options:
        options["peer"] = "twin" if peers[0].default == "none" else peers[0].default
    return name, load_strategy(name, options)


def run_cell(data: BenchSet, cell: Row, choice: Train, run: Run) -> Row:
    """Train and test one cell, unless its result is there.

    Args:
        data: The set.
        cell: `unit` and `ratio` of the noise, `method` as `NAME+option=value+...`, and `seed` of noise and training.
        choice: How to train; its seed is the cell's.
        run: The folder of the benchmark.

    Returns:
        One row of the tables: `rSum` (ensemble on test), `rSum_single` (mean of single networks), recalls, `auroc` of
        wrong pairs at the end and `auroc_first` when the method first judged, `best_epoch`, `seconds`.
    """
    choice = dataclasses.replace(choice, seed=cell["seed"])
    name, strategy = method_of(cell["method"])
    inputs = {"set": [data.train.identity, data.valid.identity, data.test.identity], "pairs": len(data.texts),
              "cell": cell, "settings": choice.settings(), "strategy": describe(name, strategy)}  # fmt: skip

    def work() -> Row:
        recipe = RandomSwap(ratio=cell["ratio"], unit=cell["unit"], seed=cell["seed"])
        injected = recipe(data.texts, image_ids=data.train.shown)
        corpus = swap_texts(data.train, injected.source_row)
        if strategy.needs_columns:
            corpus = dataclasses.replace(corpus, columns={"p_clean": _stored_p_clean(corpus, data, cell, run)})
        oracle = cell["method"].startswith(ORACLE)
        rows = np.flatnonzero(corpus.usable & ~injected.wrong if oracle else corpus.usable)
        started = time.process_time()
        row = {"set": data.name, **cell, "wrong": float(injected.wrong.mean()), "pairs": len(rows)}
        row |= _train(data, corpus, rows, strategy, choice, injected.wrong)
        return row | {"seconds": round(time.process_time() - started, 1)}

    return stored_cell(run.folder, data.name, inputs, work)


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


def _stored_p_clean(corpus: Corpus, data: BenchSet, cell: Row, run: Run) -> np.ndarray:
    """Judged once for all methods: it depends on the noise alone."""
    inputs = {"set": data.train.identity, "pairs": len(data.texts), "unit": cell["unit"], "ratio": cell["ratio"],
              "seed": cell["seed"]}  # fmt: skip
    path = run.path("p_clean", f"{data.name}-{fingerprint(stamped(inputs))}.npy")
    if not path.exists():
        write_array(path, judged(corpus, cell["seed"])[1])
    found: np.ndarray = np.load(path, allow_pickle=False)
    return found
