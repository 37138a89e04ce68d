"""The benchmark of methods that learn from wrong labels: a set, a kind of noise, a method, a seed.

A cell takes seconds, and its result is one small file, so that the same command continues.
"""

from __future__ import annotations

import dataclasses
import time
from dataclasses import dataclass

import numpy as np

from noisycorr.classify.webly.anchors import complete_through_images, repeats_label, text_classes, trusted_rows
from noisycorr.classify.webly.choice import TrainClasses
from noisycorr.classify.webly.contract import Method
from noisycorr.classify.webly.fitting import feature_learner, final_opinion, predict_features, probabilities, tune_on
from noisycorr.classify.webly.methods import load_method
from noisycorr.clean.bench import ORACLE, Row, stored_cell
from noisycorr.clean.bench_sets import read_spec
from noisycorr.data.noise.labels import NoisyLabels, diffuse_noise, noisy_texts, semantic_noise
from noisycorr.models.training.loop import Hooks, fit
from noisycorr.runtime.errors import UsageError
from noisycorr.runtime.folder import Run
from noisycorr.stats.class_metrics import accuracy, changed_labels, open_set
from noisycorr.stats.detection import auroc
from noisycorr.stats.unit import unit

OUTSIDE = {"diffuse": 0.2, "semantic": 0.15}  # share of samples that belong to no class
VALID = 0.1


@dataclass(frozen=True, kw_only=True)
class WeblySet:
    """Images with classes and texts; test labels are right.

    Attributes:
        name: As it stands in the tables.
        image: (n, d) features.
        text: (n, e) features of the texts, in the space of `class_text`.
        has_text: bool (n,).
        truth: int64 (n,) class, -1 for samples of classes that are held back as unknown.
        given: int64 (n,) labels as people gave them, or None where only made noise can be studied.
        group: int64 (c,) of classes, for confusions of similar ones.
        class_text: (c, e) features of the names or definitions.
        test: bool (n,); no group of samples stands on both sides.
        identity: JSON that changes with the data.
    """

    name: str
    image: np.ndarray
    text: np.ndarray
    has_text: np.ndarray
    truth: np.ndarray
    given: np.ndarray | None
    group: np.ndarray
    class_text: np.ndarray
    test: np.ndarray
    identity: object

    @property
    def classes(self) -> int:
        """c."""
        return len(self.class_text)


@dataclass(frozen=True, kw_only=True)
class Crawl:
    """A training set as a crawl would give it.

    Attributes:
        rows: int64 (m,) of the set.
        noisy: Labels.
        truth: int64 (m,), -1 = none.
        match: (m,) cosine of the completed text with the text of the labelled class; NaN = unknown.
        raw: (m,) the same of the text as it came.
        anchors: int8 (m,).
        text_class: int64 (m,) class that the completed text names, -1 = none; None where texts only repeat labels.
    """

    rows: np.ndarray
    noisy: NoisyLabels
    truth: np.ndarray
    match: np.ndarray
    raw: np.ndarray
    anchors: np.ndarray
    text_class: np.ndarray | None


def method_of(spec: str) -> Method:
    """The method that a spec names.

    Raises:
        UsageError: If there is no such method or option.
    """
    name, options = read_spec(spec, "methods")
    method = load_method("plain" if name == ORACLE else name, options)
    if method.labels == "many":
        raise UsageError(f"`methods` names {name}, which learns tags; the benchmark has one label for each sample.")
    return method


def crawl(data: WeblySet, cell: Row) -> Crawl:
    """Put noise into labels and texts of the training samples, complete the texts, and choose whom to trust.

    Raises:
        UsageError: If natural noise is asked for where nobody gave labels.
    """
    rng = np.random.default_rng([cell["seed"], 109])
    inside = np.flatnonzero(~data.test & (data.truth >= 0))
    outside = np.flatnonzero(~data.test & (data.truth < 0))
    if cell["noise"] == "natural":
        if data.given is None:
            raise UsageError(f"the set {data.name} has no labels of people: name their column by +label=COLUMN.")
        rows = inside
        noisy = NoisyLabels(label=data.given[rows])
        text, has = data.text[rows], data.has_text[rows]
    else:
        share = OUTSIDE[cell["noise"]]
        count = min(len(outside), round(share / (1 - share) * len(inside)))
        rows = np.sort(np.concatenate([inside, rng.permutation(outside)[:count]]))
        source, has = noisy_texts(len(rows), seed=cell["seed"])
        text, has = data.text[rows][source], has & data.has_text[rows][source]
        if cell["noise"] == "diffuse":
            noisy = diffuse_noise(data.truth[rows], data.classes, data.group[:, None] == data.group, seed=cell["seed"])
        else:
            noisy = semantic_noise(data.truth[rows], data.classes, seed=cell["seed"])
    words = unit(data.class_text)
    of_class = words[noisy.label]
    raw = np.where(has, (unit(text) * of_class).sum(1), np.nan)
    evidence = not repeats_label(raw)
    completed = complete_through_images(data.image[rows], text, has & evidence)
    every = np.where(np.asarray(completed.any(1))[:, None], completed @ words.T, np.nan)
    match = every[np.arange(len(rows)), noisy.label]
    anchors = trusted_rows(match, noisy.label, cell["anchors"])
    return Crawl(rows=rows, noisy=noisy, truth=data.truth[rows], match=match, raw=raw, anchors=anchors,
                 text_class=text_classes(every, noisy.label, anchors) if evidence else None)  # fmt: skip


def run_cell(data: WeblySet, cell: Row, choice: TrainClasses, run: Run) -> Row:
    """Train and test one cell, unless its result is there.

    Args:
        data: The set.
        cell: Kind of `noise`, `method` as `NAME+option=value+...`, `seed` of noise and training, and `anchors`, trusted
            samples of each class.
        choice: How to train; its seed is the cell's.
        run: The folder of the benchmark.

    Returns:
        One row of the tables: `top1`, `top5`, `macro`, `mixed` (top-1 on classes that share a name with another),
        `auroc` of wrong labels, `precision` and `recall` of changed labels and their share `changed`, open-set `cf1`
        and `area`, `anchor_precision`, `auc_raw` and `auc_completed` of the text match, `seconds`.
    """
    choice = dataclasses.replace(choice, seed=cell["seed"])
    method = method_of(cell["method"])
    options = dataclasses.asdict(method)  # type: ignore[call-overload]
    inputs = {"set": data.identity, "cell": cell, "settings": choice.settings(),
              "method": [type(method).__name__, options]}  # fmt: skip

    def work() -> Row:
        got = crawl(data, cell)
        wrong = got.noisy.label != got.truth
        row: Row = {"set": data.name, **cell, "samples": len(got.rows), "classes": data.classes,
                    "wrong": float(wrong.mean()), **_texts(got, wrong)}  # fmt: skip
        started = time.process_time()
        row |= _train(data, cell, got, method, choice)
        return row | {"seconds": round(time.process_time() - started, 1)}

    return stored_cell(run.folder, data.name, inputs, work)


def _train(data: WeblySet, cell: Row, got: Crawl, method: Method, choice: TrainClasses) -> Row:
    """Train on nine tenths, let the method choose on the rest, and open the test samples once."""
    held = np.random.default_rng([cell["seed"], 113]).random(len(got.rows)) < VALID
    train = ~held
    if cell["method"].startswith(ORACLE):
        train &= got.noisy.label == got.truth
    label = got.noisy.label
    features = data.image[got.rows[train]].astype(np.float32)
    learner = feature_learner(features, label[train], data.classes, method, choice, anchors=got.anchors[train],
                              text_class=None if got.text_class is None else got.text_class[train])  # fmt: skip
    valid = data.image[got.rows[held]].astype(np.float32), label[held]
    fit(learner, Hooks(validate=lambda it: tune_on(learner, *valid)))
    opinion = final_opinion(learner)
    test = np.flatnonzero(data.test)
    p = probabilities(predict_features(learner, data.image[test].astype(np.float32)))
    known = data.truth[test] >= 0
    right = data.truth[test][known]
    row: Row = dict(accuracy(p[known], right))
    mixed = np.isin(right, got.noisy.mixed)
    row["mixed"] = accuracy(p[known][mixed], right[mixed])["macro"] if mixed.any() else None
    opened = open_set(p.max(1), p.argmax(1), np.where(known, data.truth[test], data.classes), data.classes)
    row |= {"cf1": opened.cf1, "area": opened.area} if not known.all() else {"cf1": None, "area": None}
    if cell["method"].startswith(ORACLE):
        return row | {"auroc": None, "changed": None, "precision": None, "recall": None}
    row["auroc"] = auroc(opinion.p_clean, (label != got.truth)[train])
    nothing = {"changed": None, "precision": None, "recall": None}
    if opinion.label is None:
        return row | nothing
    found = changed_labels(label[train], opinion.label, got.truth[train])
    return row | {name: None if np.isnan(value) else value for name, value in found.items()}


def _texts(got: Crawl, wrong: np.ndarray) -> Row:
    """How good the texts and the anchors are: mean over classes of the AUROC of right above wrong labels."""

    def mean(score: np.ndarray) -> float | None:
        known = np.where(np.isfinite(score), score, np.nanmin(score) - 1 if np.isfinite(score).any() else 0.0)
        each = [auroc(known[mine], wrong[mine]) for c in np.unique(got.noisy.label)
                if (mine := got.noisy.label == c).any()]  # fmt: skip
        values = [value for value in each if np.isfinite(value)]
        return float(np.mean(values)) if values else None

    chosen = got.anchors > 0
    return {"auc_raw": mean(got.raw), "auc_completed": mean(got.match),
            "anchor_precision": float((~wrong[chosen]).mean()) if chosen.any() else None}  # fmt: skip
