"""`noisycorr train`, and `evaluate` of its folder: from a source or a run of `clean` to a model and its numbers."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from noisycorr import console, dist
from noisycorr.encoders.trainable import Trainable
from noisycorr.evaluate import detection
from noisycorr.evaluate_run import plain_json, truth_of_source
from noisycorr.flags import Parser, add_choice
from noisycorr.formats import Source
from noisycorr.learn.choice import Split, Train
from noisycorr.learn.contract import Strategy
from noisycorr.learn.corpus import TEST, TRAIN, UNUSED, VALID, Corpus, read_corpus, rectify_texts, split_corpus
from noisycorr.learn.retrieval import (
    UNKNOWN,
    Validation,
    check_folder,
    load_networks,
    train_run,
    training_inputs,
)
from noisycorr.learn.scoreboard import recall_lines, retrieval
from noisycorr.learn.tune_choice import Regions, Tune
from noisycorr.learn.tuned import TunedNetwork
from noisycorr.pairs import UsageError
from noisycorr.report.training import write_training_report
from noisycorr.run import Run, atomic_path, provenance, read_json, write_json
from noisycorr.strategies import find_strategy, load_strategy
from noisycorr.train_pairs import clear_training, run_of_pairs, same_encoder, text_encoder
from noisycorr.train_regions import check_regions, read_region_corpus
from noisycorr.train_towers import find_trainable, run_towers

WORDS = {TRAIN: "train", VALID: "valid", TEST: "test", UNUSED: "unused"}


@dataclass(frozen=True, kw_only=True)
class Plan:
    """All choices of a training.

    Attributes:
        source: Where the pairs come from; its path may be a run folder.
        clip_model: Encoder of a source that is not embedded yet.
        train: How to train.
        split: Which pairs do what.
        strategy: Name and method.
        tune: Which part of the encoder is trained.
        regions: Network on region features.
        evaluate: Open the test split after training.
        report_to: Trackers: none, all, or names with commas between them.
    """

    source: Source
    clip_model: str
    train: Train
    split: Split
    strategy: tuple[str, Strategy]
    tune: Tune = field(default_factory=Tune)
    regions: Regions = field(default_factory=Regions)
    evaluate: bool = True
    report_to: str = "none"


def check_trackers(asked: str) -> list[str]:
    """Names of the trackers of `--report-to`.

    Raises:
        UsageError: If one is not known or not installed.
    """
    try:
        return dist.find_trackers(asked)
    except ValueError as error:
        raise UsageError(f"--report-to {asked}: {error}") from None


def named_strategy(name: str, options: str | None) -> Strategy:
    """The method with options from a YAML mapping, checked by the types of its fields.

    Raises:
        UsageError: If there is no such method or option, or a value has another type.
    """
    values = yaml.safe_load(options) if options else {}
    if not isinstance(values, dict):
        raise UsageError(f"--strategy_options is {options!r}, expected a YAML mapping such as '{{warm_up: 2}}'.")
    kind = find_strategy(name)
    if set(values) <= {field.name for field in dataclasses.fields(kind)}:  # type: ignore[arg-type]
        parser = Parser("train", "", "")
        add_choice(parser, kind)
        try:
            checked = parser.parse_object(values)
        except UsageError as error:
            raise UsageError(f"--strategy.{str(error).removeprefix('--')}") from error
        values = {key: checked[key] for key in values}
    return load_strategy(name, values)


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
    source_run = run_of_pairs(plan.source, plan.clip_model, run, "data", score=True, overwrite=overwrite)
    corpus = read_corpus(source_run)
    if plan.split.texts == "rectified" and corpus.rectified:
        say(f"train: {len(corpus.rectified):,} texts are those that the ledger repaired")
        corpus = rectify_texts(corpus, text_encoder(source_run))
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
        raise UsageError("--val_data does not go with --region: the folder brings its own dev split.")
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


def _evaluate_regions(run: Run, stored: dict[str, Any], test_data: str | None) -> dict[str, Any]:
    """As `evaluate_model`, of a network on region features."""
    networks, choice = load_networks(run.folder, dist.device()), _stored(Train, stored)
    folder = test_data or read_json(run.folder / "provenance.json")["pairs"]
    corpus, towers, wrong = read_region_corpus(folder, _stored(Regions, stored), choice)
    assert corpus.given_split is not None
    rows = np.flatnonzero(corpus.given_split == TEST)
    found: dict[str, Any] = {"test": retrieval(networks, towers, rows, corpus.shown[rows])}
    if test_data is None and (detected := _detection(run, wrong)) is not None:
        found["detection"] = detected
    return _store(run, found, test_data)


def _store(run: Run, found: dict[str, Any], test_data: str | None) -> dict[str, Any]:
    """Write `evaluation.json`, and `report.html` with it; says what was found."""
    found = plain_json(found if test_data is None else found | {"test_data": test_data})
    for line in recall_lines(found["test"]):
        say(f"test: {line}")
    if dist.is_main():
        write_json(run.path("evaluation.json"), found)
        write_training_report(run)
    return found


def evaluate_model(run: Run, test_data: str | None) -> dict[str, Any]:
    """Open the test split of a trained model; writes `evaluation.json`, and `report.html` again.

    Args:
        run: A folder of `noisycorr train`.
        test_data: Another source or run to test on, or None.

    Returns:
        JSON: `test` as `noisycorr.learn.scoreboard.retrieval` gives it, and `detection` of wrong training pairs by the
        final p_clean of the strategy, if both are known; `test_data` if it is given.

    Raises:
        UsageError: If there is no finished model, or nothing to test on.
    """
    networks = load_networks(run.folder, dist.device())
    stored = yaml.safe_load((run.folder / "config.yaml").read_text(encoding="utf-8"))
    if stored.get("region", "none") != "none":
        return _evaluate_regions(run, stored, test_data)
    choice, tune = _stored(Train, stored), _stored(Tune, stored)
    trainable = networks[0].trainable if isinstance(networks[0], TunedNetwork) else None
    source_run = test_run = Run(read_json(run.folder / "provenance.json")["pairs"])
    name = "data" if test_data is None else "test"
    if test_data is None:
        corpus, table = read_corpus(source_run), pq.read_table(run.folder / "split.parquet")
        if table.column("key").to_pylist() != corpus.keys:
            raise UsageError(f"{source_run.folder} holds other pairs than {run.folder} was trained on: train it again.")
        rows = np.flatnonzero(table.column("split").to_numpy(zero_copy_only=False) == "test")
        if len(rows) < 2:
            raise UsageError(f"{run.folder} has a test split of {len(rows)} pairs: name other pairs by --test_data.")
    else:
        source_fields = {field.name for field in dataclasses.fields(Source)} - {"path"}
        source = Source(path=test_data, **{name: stored[name] for name in source_fields})
        test_run = run_of_pairs(source, stored["clip_model"], run, "test", score=False)
        if trainable is None:
            same_encoder(source_run, test_run, "--test_data")
        corpus = read_corpus(test_run)
        rows = np.flatnonzero(corpus.usable)
    towers = run_towers(run, corpus, choice, tune, trainable, source_run=test_run, name=name)
    found: dict[str, Any] = {"test": retrieval(networks, towers, rows, corpus.shown[rows])}
    detected = _detection(run, truth_of_source(source_run))
    if detected is not None:
        found["detection"] = detected
    return _store(run, found, test_data)


def _stored(choice: type, stored: dict[str, Any]) -> Any:
    """A choice from config.yaml."""
    return choice(**{field.name: stored[field.name] for field in dataclasses.fields(choice) if field.name in stored})


def say(message: str) -> None:
    """One line, from the main process."""
    if dist.is_main():
        console.say(message)


def _validation(plan: Plan, run: Run, source_run: Run, trainable: Trainable | None, *,
                overwrite: bool) -> Validation | None:  # fmt: skip
    if plan.split.val_data is None:
        return None
    there = dataclasses.replace(plan.source, path=plan.split.val_data)
    other = run_of_pairs(there, plan.clip_model, run, "valid", score=False, overwrite=overwrite)
    if trainable is None:
        same_encoder(source_run, other, "--val_data")
    found = read_corpus(other)
    rows = np.flatnonzero(found.usable)
    if len(rows) < 2:
        raise UsageError(f"--val_data {plan.split.val_data} holds {len(rows)} usable pairs, expected at least 2.")
    towers = run_towers(run, found, plan.train, plan.tune, trainable, source_run=other, name="valid")
    return Validation(towers=towers, rows=rows, shown=found.shown[rows])


def _start(plan: Plan, run: Run, facts: dict[str, str], corpus: Corpus, split: np.ndarray) -> None:
    """config.yaml, provenance.json and split.parquet, before the first step."""
    counts = ", ".join(f"{int((split == number).sum()):,} {word}" for number, word in WORDS.items())
    say(f"train: {plan.strategy[0]} on {len(split):,} pairs: {counts}")
    if not dist.is_main():
        return
    name, strategy = plan.strategy
    values: dict[str, Any] = {"output_folder": str(run.folder), "clip_model": plan.clip_model}
    for part in (plan.source, plan.train, plan.split, plan.tune, plan.regions):
        values |= dataclasses.asdict(part)
    values |= {"evaluate": plan.evaluate, "report_to": plan.report_to}
    values["strategy"] = {"class_path": name, "init_args": dataclasses.asdict(strategy)}  # type: ignore[call-overload]
    with atomic_path(run.path("config.yaml")) as path:
        path.write_text(yaml.safe_dump(values, sort_keys=True, allow_unicode=True), encoding="utf-8")
    write_json(run.path("provenance.json"), provenance() | facts)
    words = [WORDS[int(number)] for number in split]
    with atomic_path(run.path("split.parquet")) as path:
        pq.write_table(pa.table({"key": corpus.keys, "split": words}), path, compression="zstd")


def _detection(run: Run, wrong: np.ndarray) -> dict[str, Any] | None:
    table = pq.read_table(run.folder / "trust.parquet")
    if "p_clean" not in table.column_names:
        return None
    wrong = wrong[table.column("row").to_numpy()]
    known = wrong != UNKNOWN
    if not known.any():
        return None
    found = dataclasses.asdict(
        detection(table.column("p_clean").to_numpy()[known].astype(np.float64), wrong[known] == 1)
    )
    found["calibration"].pop("table")
    return found


def _summary(plan: Plan, run: Run, report: dict[str, Any], split: np.ndarray) -> None:
    """Say what came out, open the test split if there is one, and write the page."""
    if "validation" in report:
        both = report["validation"]
        singles = " and ".join(f"{one['rSum']:.1f}" for one in both["singles"])
        together = f", together {both['ensemble']['rSum']:.1f}" if len(both["singles"]) > 1 else ""
        pairs = f"rSum on {both['pairs']:,} validation pairs {singles}{together}"
        say(f"train: best epoch {report['best_epoch'] + 1}; {pairs}")
    held = int((split == TEST).sum())
    if plan.evaluate and held >= 2:
        evaluate_model(run, None)
    elif dist.is_main():
        write_training_report(run)
    dist.wait()
    say(f"train: model and report.html in {run.folder}")
    if not plan.evaluate and held >= 2:
        say(f"train: `noisycorr evaluate --output_folder {run.folder}` opens the test split")
