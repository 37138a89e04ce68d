"""`noisycorr train`: from a source or a run of `clean` to a model and its numbers."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from noisycorr.clean.corpus import (
    TEST,
    TRAIN,
    UNUSED,
    VALID,
    Corpus,
    read_corpus,
    rectify_texts,
    split_corpus,
    without_new_texts,
)
from noisycorr.clean.evaluate import truth_of_source
from noisycorr.clean.sources import precision_of, run_of_pairs, same_encoder, text_encoder
from noisycorr.models.encoders.trainable import Trainable
from noisycorr.models.training.contract import Strategy
from noisycorr.retrieval.evaluate import evaluate_model
from noisycorr.retrieval.fit import Validation, check_folder, train_run, training_inputs
from noisycorr.retrieval.plan import Evaluation, Plan, say
from noisycorr.retrieval.region_source import check_regions, read_region_corpus
from noisycorr.retrieval.report import headline, write_training_report
from noisycorr.retrieval.strategies import class_path, find_strategy, load_strategy
from noisycorr.retrieval.towers import find_trainable, run_towers
from noisycorr.runtime import dist
from noisycorr.runtime.errors import UsageError
from noisycorr.runtime.folder import Run, atomic_path, provenance, write_json
from noisycorr.runtime.lock import refuse_other_kind
from noisycorr.runtime.signature import named_options
from noisycorr.runtime.stage import clear_training, write_yaml

WORDS = {TRAIN: "train", VALID: "valid", TEST: "test", UNUSED: "unused"}


def check_trackers(asked: str) -> list[str]:
    """Names of the trackers of `report_to`.

    Raises:
        UsageError: If one is not known or not installed.
    """
    try:
        return dist.find_trackers(asked)
    except ValueError as error:
        raise UsageError(f"`report_to` {asked}: {error}") from None


def named_strategy(name: str, options: str | None) -> Strategy:
    """The method with options from a YAML mapping, checked by the types of its fields.

    Raises:
        UsageError: If there is no such method or option, or a value has another type.
    """
    return load_strategy(name, named_options("strategy", options, find_strategy(name)))


def chosen_strategy(strategy: Any, options: str | None) -> tuple[str, Strategy]:
    """Name and method of what was asked for.

    Args:
        strategy: A name, `./FILE.py:CLASS`, or an object.
        options: Of a named one, as a YAML mapping.

    Raises:
        UsageError: If there is no such method or option, or a value has another type.
    """
    if isinstance(strategy, str):
        return strategy, named_strategy(strategy, options)
    if not isinstance(strategy, Strategy):
        raise UsageError(f"`strategy` is {strategy!r}, expected a name such as best, ./FILE.py:CLASS, or an object of "
                         "a class that inherits from noisycorr.Strategy.")  # fmt: skip
    if options:
        raise UsageError("`strategy_options` belong to a `strategy` that is named; an object has its own fields.")
    return class_path(type(strategy)), strategy


def train(plan: Plan, run: Run, *, overwrite: bool = False) -> dict[str, Any]:
    """Read or embed the pairs, train, and write the run folder.

    Args:
        plan: All choices.
        run: The folder.
        overwrite: Delete what an earlier training left there; stored embeddings of the same source stay.

    Returns:
        The report.

    Raises:
        UsageError: If the folder holds another training, or the pairs do not suffice.
    """
    check_regions(plan.source.path, plan.regions, plan.train, plan.tune)
    if plan.regions.region != "none":
        return _train_regions(plan, run, overwrite)
    trainable = find_trainable(plan.clip_model, plan.tune)
    refuse_other_kind(run.folder, "train_started")
    source_run = run_of_pairs(plan.source, plan.clip_model, run, "data", score=True, overwrite=overwrite)
    corpus = read_corpus(source_run)
    if plan.split.texts == "rectified" and corpus.rectified:
        say(f"train: {len(corpus.rectified):,} texts are those that the ledger repaired")
        corpus = rectify_texts(
            corpus, text_encoder(source_run, "the ledger has repaired texts (`texts` given does without)")
        )
    elif plan.split.texts == "given":
        corpus = without_new_texts(corpus)
    split = split_corpus(
        corpus, val_fraction=0.0 if plan.split.val_data else plan.split.val_fraction,
        test_fraction=plan.split.test_fraction, seed=plan.train.seed,
    )  # fmt: skip
    if plan.split.pairs == "kept":
        split[(split == TRAIN) & ~corpus.kept] = UNUSED
    if overwrite:
        clear_training(run)
    validation = _validation(plan, run, source_run, trainable, overwrite=overwrite)
    towers = run_towers(run, corpus, plan.train, plan.tune, trainable, source_run=source_run, name="data",
                        rectified=corpus.rectified if plan.split.texts == "rectified" else None)  # fmt: skip
    check_folder(run, training_inputs(corpus, split, plan.strategy, plan.train, towers, validation), plan.train)
    encoder = (source_run.stage("embed") or {})["facts"]["encoder"]
    _start(plan, run, {"encoder": encoder, "pairs": str(source_run.folder)}, corpus, split)
    report = train_run(run, corpus, split, plan.strategy, plan.train, towers=towers, validation=validation,
                       wrong=truth_of_source(source_run), trackers=check_trackers(plan.report_to))  # fmt: skip
    _summary(plan, run, report, split)
    return report


def _train_regions(plan: Plan, run: Run, overwrite: bool) -> dict[str, Any]:
    """As `train`, on region features, which are not embedded first."""
    if plan.split.val_data is not None:
        raise UsageError("`val_data` does not go with `region`: the folder brings its own dev split.")
    corpus, towers, wrong = read_region_corpus(plan.source.path, plan.regions, plan.train)
    split = split_corpus(corpus, val_fraction=0.0, test_fraction=0.0, seed=plan.train.seed)
    if overwrite:
        clear_training(run)
    check_folder(run, training_inputs(corpus, split, plan.strategy, plan.train, towers), plan.train)
    folder = str(Path(plan.source.path).expanduser().resolve())
    _start(plan, run, {"encoder": f"regions:{plan.regions.region}", "pairs": folder}, corpus, split)
    report = train_run(run, corpus, split, plan.strategy, plan.train, towers=towers, wrong=wrong,
                       trackers=check_trackers(plan.report_to))  # fmt: skip
    _summary(plan, run, report, split)
    return report


def _validation(plan: Plan, run: Run, source_run: Run, trainable: Trainable | None, *,
                overwrite: bool) -> Validation | None:  # fmt: skip
    if plan.split.val_data is None:
        return None
    there = dataclasses.replace(plan.source, path=plan.split.val_data)
    other = run_of_pairs(there, plan.clip_model, run, "valid", score=False, overwrite=overwrite,
                         model_precision=precision_of(source_run))  # fmt: skip
    if trainable is None:
        same_encoder(source_run, other, "`val_data`")
    found = read_corpus(other)
    rows = np.flatnonzero(found.usable)
    if len(rows) < 2:
        raise UsageError(f"`val_data` {plan.split.val_data} holds {len(rows)} usable pairs, expected at least 2.")
    towers = run_towers(run, found, plan.train, plan.tune, trainable, source_run=other, name="valid")
    return Validation(towers=towers, rows=rows, shown=found.shown[rows])


def _start(plan: Plan, run: Run, facts: dict[str, str], corpus: Corpus, split: np.ndarray) -> None:
    """config.yaml, provenance.json and split.parquet, before the first step."""
    counts = ", ".join(f"{int((split == number).sum()):,} {word}" for number, word in WORDS.items())
    say(f"train: {plan.strategy[0]} on {len(split):,} pairs: {counts}")
    asked = plan.split.val_data is None and plan.split.val_fraction > 0
    if asked and not (split == VALID).any():
        say("warning: no pair validates (those that were dropped or are to be reviewed do not), so the last epoch is "
            "taken: give `val_data`.")  # fmt: skip
    if not dist.is_main():
        return
    name, strategy = plan.strategy
    values: dict[str, Any] = {"output_folder": str(run.folder), "clip_model": plan.clip_model}
    for part in (plan.source, plan.train, plan.split, plan.tune, plan.regions):
        values |= dataclasses.asdict(part)
    values |= {"evaluate": plan.evaluate, "report_to": plan.report_to}
    values["strategy"] = {"class_path": name, "init_args": dataclasses.asdict(strategy)}  # type: ignore[call-overload]
    write_yaml(run.path("config.yaml"), values)
    write_json(run.path("provenance.json"), provenance() | facts)
    words = [WORDS[int(number)] for number in split]
    with atomic_path(run.path("split.parquet")) as path:
        pq.write_table(pa.table({"key": corpus.keys, "split": words}), path, compression="zstd")


def _summary(plan: Plan, run: Run, report: dict[str, Any], split: np.ndarray) -> None:
    """Say what came out, open the test split if there is one, and write the page."""
    for line in headline(report):
        say(f"train: {line}")
    held = int((split == TEST).sum())
    if plan.evaluate and held >= 2:
        evaluate_model(run, Evaluation())
    elif dist.is_main():
        write_training_report(run)
    dist.wait()
    say(f"train: model and report.html in {run.folder}")
    if not plan.evaluate and held >= 2:
        say(f"train: `noisycorr evaluate {run.folder}` opens the test split")
