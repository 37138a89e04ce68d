"""`noisycorr evaluate` of a training: its test split or other pairs, retrieval, classification, detection."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
import yaml

from noisycorr.clean.corpus import TEST, Corpus, read_corpus
from noisycorr.clean.evaluate import truth_of_source
from noisycorr.clean.report.frequency_sketch import plain
from noisycorr.clean.sources import precision_of, run_of_pairs, same_encoder, text_encoder
from noisycorr.data.readers import Source
from noisycorr.data.readers.class_names import read_class_names
from noisycorr.data.store import read_facts
from noisycorr.models.encoders.trainable import Trainable
from noisycorr.models.training.choice import Train
from noisycorr.models.training.heads import RetrievalNetwork, StoredTowers, Towers
from noisycorr.models.training.pictures import ImageStore, PictureTowers
from noisycorr.models.training.tune_choice import Regions, Tune
from noisycorr.models.training.tuned import TunedNetwork
from noisycorr.retrieval.fit import UNKNOWN, load_networks
from noisycorr.retrieval.plan import Evaluation, say
from noisycorr.retrieval.region_source import read_region_corpus
from noisycorr.retrieval.report import write_training_report
from noisycorr.retrieval.scoreboard import classification, recall_lines, retrieval
from noisycorr.retrieval.towers import run_towers
from noisycorr.runtime import dist
from noisycorr.runtime.errors import UsageError
from noisycorr.runtime.folder import Run, read_json, write_json
from noisycorr.stats.detection import detection


def evaluate_model(run: Run, asked: Evaluation) -> dict[str, Any]:
    """Open the test split of a trained model; writes `evaluation.json`, and `report.html` again.

    Args:
        run: A folder of `noisycorr train`.
        asked: What to test on, and what to measure.

    Returns:
        JSON: `test` as `noisycorr.retrieval.scoreboard.retrieval` gives it, with `folds` if there are several;
        `classification` if there are classes; `detection` of wrong training pairs by the final p_clean of the strategy,
        if both are known; `test_data` if it is given.

    Raises:
        UsageError: If there is no finished model, or nothing to test on.
    """
    networks = load_networks(run.folder, dist.device())
    stored = yaml.safe_load((run.folder / "config.yaml").read_text(encoding="utf-8"))
    stored.setdefault("model_precision", stored.get("precision", "fp32"))  # its former name
    if stored.get("region", "none") != "none":
        return _evaluate_regions(run, networks, stored, asked)
    choice, tune = _stored(Train, stored), _stored(Tune, stored)
    trainable = networks[0].trainable if isinstance(networks[0], TunedNetwork) else None
    source_run = Run(read_json(run.folder / "provenance.json")["pairs"])
    if asked.test_data is None:
        test_run, name, (corpus, rows) = source_run, "data", _test_split(run, source_run)
    else:
        test_run, name = _test_run(run, source_run, stored, asked, tuned=trainable is not None), "test"
        corpus = read_corpus(test_run)
        rows = np.flatnonzero(corpus.usable)
    towers = run_towers(run, corpus, choice, tune, trainable, source_run=test_run, name=name)
    found = _retrieval(networks, towers, rows, corpus.shown[rows], asked)
    if asked.classes is not None:
        names, texts = read_classes(Path(asked.classes), asked.template)
        label = read_labels(test_run, names, asked)
        flat = [text for group in texts for text in group]
        class_towers = _text_towers(source_run, choice, tune, trainable, flat)
        found["classification"] = classification(
            networks, towers, *_labelled(corpus, rows, label, asked), class_towers, [len(group) for group in texts]
        )
    if (detected := _detection(run, truth_of_source(source_run))) is not None:
        found["detection"] = detected
    return _store(run, found, asked.test_data)


def read_classes(path: Path, template: str) -> tuple[list[str], list[list[str]]]:
    """Names of classes, and the texts of each.

    Args:
        path: A class list, as `noisycorr.data.readers.class_names` reads it.
        template: Text of a class that has none, with {} for the name.

    Raises:
        UsageError: If the file cannot be read, holds fewer than two classes, or one twice.
    """
    listed = read_class_names(path, least=2)
    return list(listed), [texts or [template.replace("{}", name)] for name, texts in listed.items()]


def read_labels(run: Run, names: Sequence[str], asked: Evaluation) -> np.ndarray:
    """int64 (n,): the class of each pair of a run, or -1 where it has none of these."""
    facts = read_facts(run, ["text", "columns"])
    known = {name: row for row, name in enumerate(names)}
    label = np.full(len(facts), -1)
    for row, (text, columns) in enumerate(zip(*(facts.column(name).to_pylist() for name in ("text", "columns")))):
        value = json.loads(columns or "{}").get(asked.label_col, text)
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        label[row] = known.get(str(value).strip(), -1)
        if label[row] < 0 and str(value).isdecimal() and int(value) < len(names):
            label[row] = int(value)
    return label


def _labelled(corpus: Corpus, rows: np.ndarray, label: np.ndarray, asked: Evaluation) -> tuple[np.ndarray, np.ndarray]:
    """Rows of distinct pictures that have a class, and their classes."""
    rows = rows[label[rows] >= 0]
    if not len(rows):
        raise UsageError(
            f"no test pair has one of the names in {asked.classes} in its column {asked.label_col!r}: name the column "
            "of the class by `label_col`."
        )
    rows = rows[np.sort(np.unique(corpus.shown[rows], return_index=True)[1])]
    return rows, label[rows]


def _text_towers(source_run: Run, choice: Train, tune: Tune, trainable: Trainable | None, texts: list[str]) -> Towers:
    """Towers that have texts alone."""
    dtype = torch.float64 if choice.model_precision == "fp64" else torch.float32
    if trainable is not None:
        return PictureTowers(trainable, tune, ImageStore(files=[None] * len(texts)), texts, seed=choice.seed,
                             device=dist.device(), dtype=dtype, keys=texts)  # fmt: skip
    features = text_encoder(source_run, "`classes` needs the encoder of the texts")(texts)
    return StoredTowers(np.zeros((len(texts), 1), np.float32), features, device=dist.device(), dtype=dtype)


def _retrieval(networks: Sequence[RetrievalNetwork], towers: Towers, rows: np.ndarray, shown: np.ndarray,
               asked: Evaluation) -> dict[str, Any]:  # fmt: skip
    images = len(np.unique(shown))
    if asked.folds > images:
        raise UsageError(f"`folds` is {asked.folds}, but there are {images} test images: use fewer.")
    return {"test": retrieval(networks, towers, rows, shown, folds=asked.folds)}


def _evaluate_regions(run: Run, networks: Sequence[RetrievalNetwork], stored: dict[str, Any],
                      asked: Evaluation) -> dict[str, Any]:  # fmt: skip
    """As `evaluate_model`, of a network on region features."""
    if asked.classes is not None:
        raise UsageError("`classes` needs a model of pictures; this one was trained on region features.")
    trained_on = read_json(run.folder / "provenance.json")["pairs"]
    corpus, towers, wrong = read_region_corpus(
        asked.test_data or trained_on, _stored(Regions, stored), _stored(Train, stored), words_of=trained_on
    )
    assert corpus.given_split is not None
    rows = np.flatnonzero(corpus.given_split == TEST)
    found = _retrieval(networks, towers, rows, corpus.shown[rows], asked)
    if asked.test_data is None and (detected := _detection(run, wrong)) is not None:
        found["detection"] = detected
    return _store(run, found, asked.test_data)


def _test_split(run: Run, source_run: Run) -> tuple[Corpus, np.ndarray]:
    """The pairs of a training, and which of them it left alone."""
    corpus, table = read_corpus(source_run), pq.read_table(run.folder / "split.parquet")
    if table.column("key").to_pylist() != corpus.keys:
        raise UsageError(f"{source_run.folder} holds other pairs than {run.folder} was trained on: train it again.")
    rows = np.flatnonzero(table.column("split").to_numpy(zero_copy_only=False) == "test")
    if len(rows) < 2:
        raise UsageError(f"{run.folder} has a test split of {len(rows)} pairs: name other pairs by `test_data`.")
    return corpus, rows


def _test_run(run: Run, source_run: Run, stored: dict[str, Any], asked: Evaluation, *, tuned: bool) -> Run:
    """The run of other pairs, embedded into the folder of the model if need be."""
    assert asked.test_data is not None
    names = {field.name for field in dataclasses.fields(Source)} - {"path"}
    columns = {name: value for name in ("caption_col", "image_col") if (value := getattr(asked, name)) is not None}
    source = Source(path=asked.test_data, **({name: stored[name] for name in names} | columns))
    test_run = run_of_pairs(source, stored["clip_model"], run, "test", score=False, overwrite=True,
                            model_precision=precision_of(source_run))  # fmt: skip
    if not tuned:
        same_encoder(source_run, test_run, "`test_data`")
    return test_run


def _stored(choice: type, stored: dict[str, Any]) -> Any:
    """A choice from config.yaml."""
    return choice(**{field.name: stored[field.name] for field in dataclasses.fields(choice) if field.name in stored})


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


def _store(run: Run, found: dict[str, Any], test_data: str | None) -> dict[str, Any]:
    """Write `evaluation.json`, and `report.html` with it; says what was found."""
    found = plain(found if test_data is None else found | {"test_data": test_data})
    for line in recall_lines(found["test"]):
        say(f"test: {line}")
    if (folds := found["test"].get("folds")) is not None:
        for line in recall_lines(folds):
            say(f"test, mean of {folds['count']} folds: {line}")
    if (classes := found.get("classification")) is not None:
        best = classes["ensemble"]
        say(f"test: {classes['images']:,} images in {classes['classes']:,} classes, accuracy {best['acc1']:.1f} %, "
            f"among five {best['acc5']:.1f} %")  # fmt: skip
    if dist.is_main():
        write_json(run.path("evaluation.json"), found)
        write_training_report(run)
    return found
