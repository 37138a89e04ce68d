"""`noisycorr caption train`: from a run of `noisycorr clean` to a captioner."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from noisycorr.caption.captioner.align import Aligner, align_with, fit_aligner, remember
from noisycorr.caption.captioner.choice import Held
from noisycorr.caption.captioner.stored import Trained
from noisycorr.caption.captioner.teach import (
    CaptionTraining,
    Material,
    Recipe,
    check_columns,
    choose_decoding,
    open_class,
    train_class,
)
from noisycorr.caption.captioner.tower import Some
from noisycorr.caption.images import images_of, made_by, text_features_of
from noisycorr.clean.corpus import TRAIN, UNUSED, VALID, read_corpus, rectified_columns, rectify_texts, split_corpus
from noisycorr.clean.plan import stored_plan
from noisycorr.clean.sources import encoder_identity, run_of_pairs, same_encoder
from noisycorr.data.readers import Source
from noisycorr.data.store import parts, read_facts
from noisycorr.models.training.batches import stream_seed
from noisycorr.models.training.checkpoint import checkpoints, sweep
from noisycorr.runtime import console, dist
from noisycorr.runtime.errors import UsageError
from noisycorr.runtime.folder import Run, provenance, write_json
from noisycorr.runtime.lock import refuse_other_kind
from noisycorr.runtime.stage import clear_training, refuse_other_work, say, write_yaml

SHOWN = 5  # examples at the end


@dataclass(frozen=True, kw_only=True)
class CaptionPlan:
    """All choices of `caption train`.

    Attributes:
        source: Where the pairs come from; its path may be a run folder.
        clip_model: Encoder of a source that is not embedded yet.
        recipe: Of the training.
        held: What is held out.
    """

    source: Source
    clip_model: str
    recipe: Recipe
    held: Held


def train_in_folder(plan: CaptionPlan, run: Run, *, overwrite: bool = False) -> dict[str, Any]:
    """Read or embed the pairs, train, choose a level, and write the folder.

    Args:
        plan: All choices.
        run: The folder.
        overwrite: Delete what an earlier training left there.

    Returns:
        The report.

    Raises:
        UsageError: If the folder holds another training, or the pairs do not suffice.
    """
    refuse_other_kind(run.folder, "caption_started")
    source_run = run_of_pairs(plan.source, plan.clip_model, run, "data", score=True, overwrite=overwrite)
    material, identity = read_material(plan, run, source_run, overwrite=overwrite)
    if overwrite:
        clear_training(run, "caption_started")
    inputs = {"recipe": plan.recipe.settings(), "held": dataclasses.asdict(plan.held), "pairs": identity}
    if run.is_done("caption", inputs) and (run.folder / "captioner.json").is_file():
        say("caption: nothing changed, skipped")
        return dict((run.stage("caption") or {})["facts"])
    encode = text_features_of(source_run)
    if encode is None and 0 not in plan.recipe.guidances:
        raise UsageError("`guidances` must have 0 among them, for these embeddings came without the encoder of texts, "
                         "and nothing can choose between strengths.")  # fmt: skip
    _claim(run, inputs)
    _write_down(plan, run, source_run)
    group = open_class(material, plan.recipe)
    _introduce(group)
    with console.bar(
        label="caption", total=plan.recipe.train.epochs * group.trainer.train_set.per_epoch, hidden=not dist.is_main()
    ) as bar:
        train_class(group, checkpoints=run.folder / "checkpoints", moved=bar.update,
                    on_epoch=lambda record, seconds, pairs: _tell(run, record, seconds, plan, pairs))  # fmt: skip
    trained = group.trained
    trained.aligner = _aligner(material, source_run, plan) if encode is not None else None
    align = None if encode is None else align_with(trained.aligner, material.valid_vectors, remember(encode))
    chosen = choose_decoding(group, material, plan.recipe, align, plan.held.val_most)
    report = {"pairs": group.facts, "history": group.trainer.at.history, "best_epoch": group.trainer.at.best,
              "levels": chosen}  # fmt: skip
    if dist.is_main():
        trained.facts = {"pairs": group.facts, "trained_on": str(source_run.folder)}
        trained.save_pretrained(run.folder)
        write_json(run.path("report.json"), report)
        run.finish("caption", inputs, report)
        _conclude(trained, chosen, material)
    dist.wait()
    return report


def read_material(plan: CaptionPlan, run: Run, source_run: Run, *, overwrite: bool) -> tuple[_Full, dict[str, Any]]:
    """Training and validation pairs, and JSON of what they depend on."""
    corpus = read_corpus(source_run)
    texts = read_facts(source_run, ["text"]).column("text").to_pylist()
    if plan.held.texts == "rectified" and corpus.rectified:
        say(f"caption: {len(corpus.rectified):,} texts are those that the ledger repaired")
        for row, text in corpus.rectified.items():
            texts[row] = text
        if (encode := text_features_of(source_run)) is not None:
            corpus = rectify_texts(corpus, encode)
        else:
            corpus = dataclasses.replace(corpus, columns=rectified_columns(corpus))
    check_columns(corpus.columns, plan.recipe)
    split = split_corpus(corpus, val_fraction=0.0 if plan.held.val_data else plan.held.val_fraction, test_fraction=0.0,
                         seed=plan.recipe.train.seed)  # fmt: skip
    if not plan.held.issues:
        split[(split == TRAIN) & dropped_for_issues(source_run, len(split))] = UNUSED
    rows, valid, valid_corpus = np.flatnonzero(split == TRAIN), np.flatnonzero(split == VALID), corpus
    valid_texts, valid_run = texts, source_run
    if plan.held.val_data:
        there = dataclasses.replace(plan.source, path=plan.held.val_data)
        other = run_of_pairs(there, plan.clip_model, run, "valid", score=False, overwrite=overwrite)
        same_encoder(source_run, other, "`val_data`")
        valid_corpus, valid_run = read_corpus(other), other
        valid = np.flatnonzero(valid_corpus.usable)
        valid_texts = read_facts(other, ["text"]).column("text").to_pylist()
    # a source may be sorted by class, and only the first of these are written for to choose a level
    valid = np.random.default_rng(stream_seed(plan.recipe.train.seed, "validation")).permutation(valid)
    words = {"train": len(rows), "valid": len(valid), "unused": int((split == UNUSED).sum())}
    say("caption: pairs: " + ", ".join(f"{count:,} {word}" for word, count in words.items()))
    design = plan.recipe.design
    shown, tower = images_of(source_run, design, run.folder / "pictures" / "train")
    valid_shown = shown if valid_run is source_run else images_of(valid_run, design, run.folder / "pictures/valid")[0]
    encoder = stored_plan(source_run).embed
    vectors, valid_vectors = corpus.image[rows], valid_corpus.image[valid]
    return _Full(
        image=vectors if shown is None else Some(shown, rows), tower=tower,
        texts=[texts[row] for row in rows], encoder=encoder_identity(source_run),
        clip_model=encoder.clip_model, clip_precision=encoder.model_precision,
        columns={name: values[rows] for name, values in corpus.columns.items()}, made_by=made_by(source_run),
        valid_image=valid_vectors if valid_shown is None else Some(valid_shown, valid),
        valid_texts=[valid_texts[row] for row in valid], vectors=vectors, text=corpus.text[rows],
        valid_vectors=valid_vectors,
    ), {"train": dict(corpus.identity), "valid": dict(valid_corpus.identity)}  # fmt: skip


def dropped_for_issues(source_run: Run, n: int) -> np.ndarray:
    """bool (n,): pairs that the ledger drops, but not because image and text do not fit."""
    if source_run.stage("decide") is None:
        return np.zeros(n, bool)
    paths = [source_run.folder / "ledger" / f"{index:05d}.parquet" for index in parts(source_run)]
    table = pa.concat_tables([pq.read_table(path, columns=["verdict", "is_mismatch_issue"]) for path in paths])
    mismatch = table.column("is_mismatch_issue").fill_null(False).to_numpy()
    return np.asarray((table.column("verdict").to_numpy() == "drop") & ~mismatch)


@dataclass(frozen=True, kw_only=True)
class _Full(Material):
    """With the stored vectors of pictures and texts, for the scorer of written texts."""

    vectors: np.ndarray
    text: np.ndarray
    valid_vectors: np.ndarray


def _aligner(material: _Full, source_run: Run, plan: CaptionPlan) -> Aligner:
    if (source_run.stage("embed") or {})["facts"]["joint"]:
        return Aligner()
    weight = np.nan_to_num(material.columns.get("p_clean", np.ones(len(material.texts))))
    return fit_aligner(material.vectors, material.text, weight, seed=plan.recipe.train.seed)


def _claim(run: Run, inputs: dict[str, Any]) -> None:
    """Refuse a folder of another training; tidy one of this. One where nothing was learned yet is free."""
    if checkpoints(run.folder / "checkpoints") or (run.folder / "captioner.json").exists():
        refuse_other_work(run, "caption_started", inputs, holds="another training", cure=", or add `overwrite`")
    if dist.is_main():
        sweep(run.folder / "checkpoints")
        run.finish("caption_started", inputs)
    dist.wait()


def _write_down(plan: CaptionPlan, run: Run, source_run: Run) -> None:
    """config.yaml and provenance.json, before the first step."""
    if not dist.is_main():
        return
    recipe = plan.recipe
    values: dict[str, Any] = {"output_folder": str(run.folder), "clip_model": plan.clip_model}
    for part in (plan.source, recipe.levels, recipe.teach, recipe.design, recipe.train, plan.held, recipe.decode):
        values |= dataclasses.asdict(part)
    values.pop("guidance")  # found on validation pairs
    write_yaml(run.path("config.yaml"), values)
    write_json(run.path("provenance.json"), provenance() | {"pairs": str(source_run.folder)})


def _introduce(group: CaptionTraining) -> None:
    facts, levels = group.facts, group.trained.levels
    left = ", ".join(f"{facts[name]:,} {name.replace('_', ' ')}" for name in ("not_kept", "without_text", "cut")
                     if facts[name])  # fmt: skip
    say(f"caption: {len(group.rows):,} pairs teach" + (f" ({left})" if left else ""))
    if levels is not None:
        counts = "|".join(f"{count:,}" for count in levels.counts[:-1])
        drawn = "" if levels.taught is None else f", of which {sum(levels.taught):,.0f} teach in an epoch"
        say(f"caption: {levels.count} levels by {levels.made_by['column']}, with {counts} pairs"
            + (f", {levels.counts[-1]:,} unscored" if levels.counts[-1] else "") + drawn)  # fmt: skip


def _tell(run: Run, record: Any, seconds: float, plan: CaptionPlan, pairs: int) -> None:
    speed = pairs / max(seconds, 1e-9)
    if dist.is_main():
        run.log("caption_epoch", **record, samples_per_second=round(speed, 1))
    say(f"epoch {record['epoch'] + 1}/{plan.recipe.train.epochs}: loss {record['loss']:.3f}, valid "
        f"{record['valid_loss']:.3f} nats a word, {speed:,.0f} samples/s")  # fmt: skip


def _conclude(trained: Trained, chosen: Sequence[dict[str, Any]], material: Material) -> None:
    """What was chosen, and a few texts."""
    for row in chosen:
        level = "without levels" if row["level"] is None else f"level {row['level']}"
        if trained.levels is not None and row["level"] == trained.levels.unscored:
            level = "unscored"
        columns = ("alignment", "self_retrieval_mrr", "length", "fluency", "unique", "valid_loss")
        numbers = ", ".join(f"{name} {row[name]:.3f}" for name in columns if name in row)
        marks = "" if row.get("allowed", True) else " (not fluent)"
        level += f" of epoch {row['epoch'] + 1}" if "epoch" in row else ""
        level += f", the best of {row['texts']} texts" if "texts" in row else ""
        say(f"  {level}, guidance {row['guidance']:g}: {numbers}{marks}{' <- chosen' if row['chosen'] else ''}")
    texts = trained.write(material.valid_image[:SHOWN]).texts
    for text, real in zip(texts, material.valid_texts):
        say(f"  written: {text!r}, given: {real!r}")
