"""`noisycorr classify train`: from labels that may be wrong to a classifier, cleaned labels and numbers."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors.torch import save

from noisycorr.classify.webly.choice import RETRIEVAL_ONLY, Finetune, Labels, TrainClasses
from noisycorr.classify.webly.contract import Method
from noisycorr.classify.webly.fitting import (
    Opinion,
    feature_learner,
    final_opinion,
    picture_learner,
    predict_rows,
    probabilities,
    tune_rows,
)
from noisycorr.classify.webly.learner import ClassLearner
from noisycorr.classify.webly.methods import find_method, load_method
from noisycorr.classify.webly.samples import Samples, read_samples, trusted
from noisycorr.clean.corpus import TEST, TRAIN, UNUSED, VALID, read_corpus, split_corpus
from noisycorr.clean.plan import picture_reader
from noisycorr.clean.report.frequency_sketch import plain
from noisycorr.clean.sources import embedded_run
from noisycorr.models.encoders.backbones import Backbone, load_backbone
from noisycorr.models.training.checkpoint import checkpoints, load_latest, save_checkpoint, sweep
from noisycorr.models.training.heads import ImageTowers, StoredTowers
from noisycorr.models.training.image_store import open_image_store
from noisycorr.models.training.learner import Learner
from noisycorr.models.training.loop import Hooks, fit
from noisycorr.models.training.pictures import Pictures, PixelTowers
from noisycorr.models.training.tune_choice import Tune
from noisycorr.runtime import console, dist
from noisycorr.runtime.errors import UsageError
from noisycorr.runtime.folder import Run, atomic_path, fingerprint, provenance, write_json
from noisycorr.runtime.lock import refuse_other_kind
from noisycorr.runtime.signature import named_options
from noisycorr.runtime.stage import write_yaml
from noisycorr.runtime.version import __version__
from noisycorr.stats.class_metrics import accuracy, by_shots, changed_labels, open_set, per_class, tag_metrics

WORDS = {TRAIN: "train", VALID: "valid", TEST: "test", UNUSED: "unused"}


@dataclass(frozen=True, kw_only=True)
class Plan:
    """All choices of a training.

    Attributes:
        path: Run folder, or what `clean` reads.
        caption_col: Column of the texts of a source that is not embedded yet.
        clip_model: Its encoder.
        labels: Which labels.
        method: Name and method.
        train: How to train.
        finetune: Which image encoder to train, if any.
        tune: Which part of it, and how its pictures are loaded.
    """

    path: str
    caption_col: str | None
    clip_model: str
    labels: Labels
    method: tuple[str, Method]
    train: TrainClasses
    finetune: Finetune = field(default_factory=Finetune)
    tune: Tune = field(default_factory=lambda: Tune(train_part="whole"))


def named_method(name: str, options: Mapping[str, Any] | str | None) -> Method:
    """The method with options, checked by the types of its fields.

    Args:
        name: Of the method.
        options: A mapping, or YAML text of one.

    Raises:
        UsageError: If there is no such method or option, or a value has another type.
    """
    return load_method(name, named_options("method", options, find_method(name)))


def classify_train(plan: Plan, run: Run) -> dict[str, Any]:
    """Read or embed the samples, train, test, and write the folder.

    Args:
        plan: All choices.
        run: The folder.

    Returns:
        The report.

    Raises:
        UsageError: If the folder holds another training, or the samples do not suffice.
    """
    refuse_other_kind(run.folder, "classify_started")
    source = embedded_run(plan.path, run.folder / "data", caption_col=plan.caption_col, clip_model=plan.clip_model)
    samples = read_samples(source, plan.labels)
    corpus = dataclasses.replace(read_corpus(source), usable=samples.usable)  # a label needs no text
    split = split_corpus(corpus, val_fraction=plan.labels.val_fraction,
                         test_fraction=plan.labels.test_fraction, seed=plan.train.seed)  # fmt: skip
    rows = {kind: np.flatnonzero(split == kind) for kind in (TRAIN, VALID, TEST)}
    if len(rows[TRAIN]) < 2:
        raise UsageError(f"{plan.path} has {len(rows[TRAIN])} labelled samples to train on, expected at least 2.")
    method = plan.method[1]
    anchors, says = None, None
    if method.takes_anchors and plan.labels.anchors:
        anchors, says, notes = trusted(source, samples, plan.labels, plan.clip_model, rows[TRAIN])
        samples = dataclasses.replace(samples, notes=[*samples.notes, *notes])
    encoder = None if plan.finetune.backbone is None else load_backbone(plan.finetune.backbone)
    towers = _towers(plan, run, source, samples, encoder)
    inputs = _inputs(plan, samples, split, (anchors, says), source, towers)
    _claim(run, inputs, plan)
    _start(plan, run, samples, split)
    learner = _learner(plan, samples, rows[TRAIN], anchors, says, (encoder, towers))
    folder = run.folder / "checkpoints"
    if dist.is_main():
        sweep(folder)
    dist.wait()
    if plan.train.resume == "latest" and (found := load_latest(learner, folder)) is not None:
        _say(f"classify: continues from {found.name}, epoch {learner.cursor.epoch + 1}")
    fit(learner, _hooks(run, learner, plan, samples, rows[VALID], towers))
    opinion = final_opinion(learner)  # before the test split is opened: nothing may be chosen after it
    report = _report(plan, samples, learner, rows, opinion, towers)
    if dist.is_main():
        _store(run, samples, learner, rows[TRAIN], opinion, anchors, says)
        write_json(run.path("report.json"), report)
        run.finish("classify", inputs, {"samples": len(rows[TRAIN])})
        from noisycorr.classify.webly.report import write_class_report

        write_class_report(run)
    dist.wait()
    _say(f"classify: model, labels.parquet and report.html in {run.folder}")
    return report


def _towers(plan: Plan, run: Run, source: Run, samples: Samples, encoder: Backbone | None) -> ImageTowers:
    """Stored features, or the pictures that an encoder is to see."""
    dtype = torch.float64 if plan.train.model_precision == "fp64" else torch.float32
    if encoder is None:
        nothing = np.zeros((len(samples.keys), 1), np.float32)
        return StoredTowers(samples.image, nothing, device=dist.device(), dtype=dtype)
    reader = picture_reader(source, f"`backbone` {plan.finetune.backbone}", "leave it out")
    pictures = Pictures(image_store=open_image_store(source, reader, run.folder / "pictures" / "data"),
                        preprocess=encoder.preprocess, size=encoder.size, aug_scale=plan.tune.aug_scale,
                        seed=plan.train.seed)  # fmt: skip
    tune = dataclasses.replace(plan.tune, train_part=plan.finetune.train_part)  # type: ignore[arg-type]
    identity = {"encoder": encoder.name, "preprocessing": encoder.preprocessing, "rate": plan.finetune.backbone_rate}
    return PixelTowers(pictures, identity, tune, device=dist.device(), dtype=dtype, keys=samples.keys)


def _learner(plan: Plan, samples: Samples, rows: np.ndarray, anchors: np.ndarray | None, says: np.ndarray | None,
             seen: tuple[Backbone | None, ImageTowers]) -> ClassLearner:  # fmt: skip
    label, (encoder, towers) = samples.label[rows], seen
    weights = None
    if plan.labels.weigh == "rare":
        count = label.sum(0) if samples.multi else np.bincount(label, minlength=len(samples.classes))
        each = np.median(count[count > 0]) / np.maximum(count, 1)
        weights = np.where(label > 0, each, 0).max(1) if samples.multi else each[label]
        weights = np.where(weights > 0, weights, 1.0)
    count, method = len(samples.classes), plan.method[1]
    try:
        if encoder is not None:
            assert isinstance(towers, PixelTowers)
            return picture_learner(towers, rows, label, count, method, plan.train, encoder, towers.tune,
                                   rate=plan.finetune.backbone_rate, anchors=anchors, weights=weights,
                                   text_class=says)  # fmt: skip
        return feature_learner(samples.image[rows], label, count, method, plan.train, anchors=anchors, weights=weights,
                               text_class=says)  # fmt: skip
    except UsageError:
        raise
    except ValueError as error:
        raise UsageError(f"`method` {plan.method[0]}: {error}.") from error


def _inputs(plan: Plan, samples: Samples, split: np.ndarray, texts: tuple[np.ndarray | None, ...],
            source: Run, towers: ImageTowers) -> dict[str, Any]:  # fmt: skip
    return {
        "data": {"embed": (source.stage("embed") or {}).get("fingerprint"), "classes": samples.classes,
                 "labels": fingerprint(samples.label.tolist()), "split": fingerprint(split.tolist()),
                 "anchors": [None if one is None else fingerprint(one.tolist()) for one in texts]},
        "method": [plan.method[0], dataclasses.asdict(plan.method[1])],  # type: ignore[call-overload]
        "settings": plan.train.settings(), "weigh": plan.labels.weigh, "encoder": dict(towers.identity),
        "noisycorr": __version__,
    }  # fmt: skip


def _claim(run: Run, inputs: dict[str, Any], plan: Plan) -> None:
    """Refuse a folder that holds another training, with what differs (law 3)."""
    fresh = plan.train.resume == "never"
    if not fresh and (differences := run.differences("classify_started", inputs)):
        more = f" and {len(differences) - 2} more" if len(differences) > 2 else ""
        raise UsageError(
            f"{run.folder} holds a training of other data, method or settings ({'; '.join(differences[:2])}{more}): "
            "choose another `output_folder`, or `resume` never to start anew."
        )
    dist.wait()
    if dist.is_main():
        for old in checkpoints(run.folder / "checkpoints") if fresh else []:
            (old / "COMPLETE").unlink()
        run.finish("classify_started", inputs)
    dist.wait()


def _start(plan: Plan, run: Run, samples: Samples, split: np.ndarray) -> None:
    counts = ", ".join(f"{int((split == number).sum()):,} {word}" for number, word in WORDS.items())
    kind = "tags" if samples.multi else "classes"
    _say(f"classify: {plan.method[0]} on {len(samples.classes)} {kind}: {counts}")
    for note in samples.notes:
        _say(f"classify: {note}")
    if not dist.is_main():
        return
    options = dataclasses.asdict(plan.method[1])  # type: ignore[call-overload]
    values: dict[str, Any] = {"path": plan.path, "output_folder": str(run.folder), "caption_col": plan.caption_col,
                              "clip_model": plan.clip_model,
                              "method": {"class_path": plan.method[0], "init_args": options}}  # fmt: skip
    values |= dataclasses.asdict(plan.tune) | dataclasses.asdict(plan.finetune)
    values |= dataclasses.asdict(plan.labels)
    values |= {name: value for name, value in dataclasses.asdict(plan.train).items() if name not in RETRIEVAL_ONLY}
    write_yaml(run.path("config.yaml"), values)
    write_json(run.path("provenance.json"), provenance())


def _hooks(run: Run, learner: ClassLearner, plan: Plan, samples: Samples, valid: np.ndarray,
           towers: ImageTowers) -> Hooks:  # fmt: skip
    label = samples.label[valid]

    def log_epoch(record: Mapping[str, Any], times: Mapping[str, float]) -> None:
        if not dist.is_main():
            return
        speed = times["pairs"] / max(times["train"], 1e-9)
        numbers = {k: v for k, v in record.items() if isinstance(v, (int, float)) and k != "epoch"}
        run.log("epoch", epoch=record["epoch"], loss=float(np.mean(record["loss"])), samples_per_second=round(speed, 1),
                **numbers)  # fmt: skip
        parts = [f"epoch {record['epoch'] + 1}/{plan.train.epochs}: loss {np.mean(record['loss']):.4f}"]
        parts += [f"valid top-1 {100 * record['valid_top1']:.1f}"] if "valid_top1" in record else []
        parts += [f"kept {100 * record['clean_share']:.1f}%"] if "clean_share" in record else []
        console.say(", ".join([*parts, f"{speed:,.0f} samples/s"]))

    def save(it: Learner) -> None:
        save_checkpoint(it, run.folder / "checkpoints", keep=plan.train.keep_checkpoints)

    return Hooks(validate=lambda it: tune_rows(learner, towers, valid, label), on_epoch=log_epoch, save=save)


def _report(plan: Plan, samples: Samples, learner: ClassLearner, rows: Mapping[int, np.ndarray],
            opinion: Opinion, towers: ImageTowers) -> dict[str, Any]:  # fmt: skip
    """Numbers of the test samples, opened once, and what became of the labels."""
    train, test = rows[TRAIN], rows[TEST]
    out: dict[str, Any] = {
        "method": {"name": plan.method[0], **dataclasses.asdict(plan.method[1])},  # type: ignore[call-overload]
        "settings": plan.train.settings(), "classes": samples.classes, "samples": len(train), "multi": samples.multi,
        "history": learner.cursor.history, "notes": list(samples.notes), "truth": plan.labels.truth_col,
    }  # fmt: skip
    right = samples.label if samples.truth is None else samples.truth
    if len(test):
        p = probabilities(predict_rows(learner, towers, test), tags=samples.multi)
        if samples.multi:
            out["test"] = {"samples": len(test), **tag_metrics(p, right[test] > 0)}
        else:
            out |= _test_classes(samples, p, right[test], samples.label[train])
    if opinion.label is not None and not samples.multi:
        given = samples.label[train]
        truth = given if samples.truth is None else samples.truth[train]
        out["labels"] = changed_labels(given, opinion.label, truth)
        out["labels"]["left_out"] = float((opinion.label < 0).mean())
        if samples.truth is None:
            out["labels"] = {name: out["labels"][name] for name in ("changed", "left_out")}
    return plain(out)


def _test_classes(samples: Samples, p: np.ndarray, right: np.ndarray, trained: np.ndarray) -> dict[str, Any]:
    known = right >= 0
    count = np.bincount(trained, minlength=len(samples.classes))
    table = per_class(p[known], right[known], count, samples.classes)
    out: dict[str, Any] = {"test": {"samples": int(known.sum()), **accuracy(p[known], right[known])},
                           "per_class": table, "by_shots": by_shots(table)}  # fmt: skip
    if not known.all():
        opened = open_set(p.max(1), p.argmax(1), np.where(known, right, len(samples.classes)), len(samples.classes))
        out["open_set"] = {"unknown": int((~known).sum()), "cf1": opened.cf1, "area": opened.area}
    return out


def _store(run: Run, samples: Samples, learner: ClassLearner, rows: np.ndarray, opinion: Opinion,
           anchors: np.ndarray | None, says: np.ndarray | None) -> None:  # fmt: skip
    """The model and the cleaned labels."""
    body = {name: value.cpu().contiguous() for name, value in learner.weights().items()}
    with atomic_path(run.path("model.safetensors")) as path:
        path.write_bytes(save(body))
    facts = {**learner.networks[0].facts(), "networks": len(learner.networks), "classes": samples.classes}
    write_json(run.path("model.json"), facts)
    table: dict[str, Any] = {"key": [samples.keys[row] for row in rows], "p_clean": opinion.p_clean.astype(np.float32)}
    if anchors is not None:
        table["anchor"] = anchors.tolist()
    if says is not None:
        table["text_class"] = [samples.classes[c] if c >= 0 else None for c in says]
    came = samples.label[rows]
    if samples.multi:
        table["label"] = [[samples.classes[c] for c in np.flatnonzero(tags > 0)] for tags in came]
        if opinion.label is not None:
            table["label_rectified"] = [[samples.classes[c] for c in np.flatnonzero(x > 0)] for x in opinion.label]
    else:
        table["label"] = [samples.classes[c] for c in came]
        if opinion.label is not None:
            now = opinion.label
            table["label_rectified"] = [samples.classes[c] if c >= 0 else None for c in now]
            verdict = np.where(now < 0, "drop", np.where(now == came, "keep", "relabel"))
            table["verdict"] = verdict.tolist()
    with atomic_path(run.path("labels.parquet")) as path:
        pq.write_table(pa.table(table), path, compression="zstd")


def _say(message: str) -> None:
    if dist.is_main():
        console.say(message)
