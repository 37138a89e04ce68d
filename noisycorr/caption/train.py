"""`noisycorr caption train` and `generate`: from a run of `clean` to a captioner, and from pictures to texts."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from noisycorr.caption.captioner.align import Aligner, Encode, align_with, fit_aligner, remember
from noisycorr.caption.captioner.best import best_of_levels, write_best
from noisycorr.caption.captioner.choice import Decode, Held
from noisycorr.caption.captioner.stored import Trained, captioner_identity, load_captioner
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
from noisycorr.caption.images import check_reads, images_of
from noisycorr.clean.corpus import TRAIN, UNUSED, VALID, read_corpus, rectified_columns, rectify_texts, split_corpus
from noisycorr.clean.sources import clip_model_of, encoder_identity, run_of_pairs, same_encoder, text_encoder
from noisycorr.data.readers import Source
from noisycorr.data.store import part_sizes, parts, read_facts, read_features
from noisycorr.models.training.batches import stream_seed
from noisycorr.models.training.checkpoint import checkpoints, sweep
from noisycorr.runtime import console, dist
from noisycorr.runtime.errors import UsageError
from noisycorr.runtime.folder import Run, atomic_path, provenance, write_json
from noisycorr.runtime.lock import refuse_other_kind
from noisycorr.runtime.stage import clear_training

SHOWN = 5  # examples at the end


@dataclass(frozen=True, kw_only=True)
class Plan:
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


def train_captioner(plan: Plan, run: Run, *, overwrite: bool = False) -> dict[str, Any]:
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
    material, told = read_material(plan, run, source_run, overwrite=overwrite)
    if overwrite:
        clear_training(run, "caption_started")
    inputs = {"recipe": plan.recipe.settings(), "held": dataclasses.asdict(plan.held), "pairs": told}
    if run.is_done("caption", inputs) and (run.folder / "captioner.json").is_file():
        say("caption: nothing changed, skipped")
        return dict((run.stage("caption") or {})["facts"])
    encode = encoder_of(source_run)
    if encode is None and 0 not in plan.recipe.guidances:
        raise UsageError("`guidances` must have 0 among them, for these embeddings came without the encoder of texts, "
                         "and nothing can choose between strengths.")  # fmt: skip
    _check_folder(run, inputs, plan)
    _start(plan, run, source_run, inputs)
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


def read_material(plan: Plan, run: Run, source_run: Run, *, overwrite: bool) -> tuple[_Full, dict[str, Any]]:
    """Training and validation pairs, and JSON of what they depend on."""
    corpus = read_corpus(source_run)
    texts = read_facts(source_run, ["text"]).column("text").to_pylist()
    if plan.held.texts == "rectified" and corpus.rectified:
        say(f"caption: {len(corpus.rectified):,} texts are those that the ledger repaired")
        for row, text in corpus.rectified.items():
            texts[row] = text
        if (encode := encoder_of(source_run)) is not None:
            corpus = rectify_texts(corpus, encode)
        else:
            corpus = dataclasses.replace(corpus, columns=rectified_columns(corpus))
    check_columns(corpus.columns, plan.recipe)
    split = split_corpus(corpus, val_fraction=0.0 if plan.held.val_data else plan.held.val_fraction, test_fraction=0.0,
                         seed=plan.recipe.train.seed)  # fmt: skip
    if not plan.held.issues:
        split[(split == TRAIN) & dropped_for_issues(source_run, len(split))] = UNUSED
    rows, valid, held = np.flatnonzero(split == TRAIN), np.flatnonzero(split == VALID), corpus
    valid_texts, valid_run = texts, source_run
    if plan.held.val_data:
        there = dataclasses.replace(plan.source, path=plan.held.val_data)
        other = run_of_pairs(there, plan.clip_model, run, "valid", score=False, overwrite=overwrite)
        same_encoder(source_run, other, "`val_data`")
        held, valid_run = read_corpus(other), other
        valid, valid_texts = np.flatnonzero(held.usable), read_facts(other, ["text"]).column("text").to_pylist()
    # a source may be sorted by class, and only the first of these are written for to choose a level
    valid = np.random.default_rng(stream_seed(plan.recipe.train.seed, "validation")).permutation(valid)
    words = {"train": len(rows), "valid": len(valid), "unused": int((split == UNUSED).sum())}
    say("caption: pairs: " + ", ".join(f"{count:,} {word}" for word, count in words.items()))
    design = plan.recipe.design
    shown, tower = images_of(source_run, design, run.folder / "pictures" / "train")
    valid_shown = shown if valid_run is source_run else images_of(valid_run, design, run.folder / "pictures/valid")[0]
    vectors, valid_vectors = corpus.image[rows], held.image[valid]
    return _Full(
        image=vectors if shown is None else Some(shown, rows), tower=tower,
        texts=[texts[row] for row in rows], encoder=encoder_identity(source_run), clip_model=clip_model_of(source_run),
        columns={name: values[rows] for name, values in corpus.columns.items()}, made_by=made_by(source_run),
        valid_image=valid_vectors if valid_shown is None else Some(valid_shown, valid),
        valid_texts=[valid_texts[row] for row in valid], vectors=vectors, text=corpus.text[rows],
        valid_vectors=valid_vectors,
    ), {"train": dict(corpus.identity), "valid": dict(held.identity)}  # fmt: skip


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


def made_by(source_run: Run) -> dict[str, str]:
    """What the scores of a run depend on: encoder, preprocessing, and the pairs with the settings of scoring."""
    embed, score = source_run.stage("embed") or {}, source_run.stage("score") or {}
    return {"scorer": encoder_identity(source_run), "preprocessing": str(embed["inputs"].get("preprocessing")),
            "corpus": str(score.get("fingerprint"))}  # fmt: skip


def encoder_of(source_run: Run) -> Encode | None:
    """Texts to features by the encoder of a run, loaded when first needed; None if its embeddings came without one."""
    if encoder_identity(source_run).startswith("precomputed"):
        return None
    load = functools.cache(lambda: text_encoder(source_run, "captions are to be compared with texts"))
    return lambda texts: load()(texts)


def generate(run: Run, source: Source, model: Path, level: str, asked: dict[str, Any], seed: int, *,
             same_encoder: bool = False) -> dict[str, Any]:  # fmt: skip
    """Write `captions/NNNNN.parquet` with key, row, text, level, score, log_prob and ended of every pair.

    Args:
        run: The folder for them.
        source: Pictures: a run folder, or any source.
        model: Folder of `caption train`.
        level: best, given, each, or a number.
        asked: Fields of `Decode` that differ from what the model says.
        seed: Of the nucleus.
        same_encoder: Embeddings that came without their encoder are of that of the model.

    Raises:
        UsageError: If model, level and pictures do not go together.
    """
    refuse_other_kind(run.folder, "generate")
    trained = load_captioner(model)
    stored = yaml.safe_load((model / "config.yaml").read_text(encoding="utf-8"))
    decode = dataclasses.replace(trained.decode, **asked)
    source_run = run_of_pairs(source, stored["clip_model"], run, "data", score=level == "given")
    check_reads(trained, model, source_run, same_encoder=same_encoder)
    encode = encoder_of(source_run)
    several = [name for name in ("samples", "each_level", "align_weight") if asked.get(name)]
    if encode is None and (level == "each" or several):
        raise UsageError("choosing by scorer needs the encoder of texts, but these embeddings came without one.")
    if level == "each" and (several or trained.levels is None):
        why = f"leave out `{several[0]}`" if several else "this captioner has none"
        raise UsageError(f"`level` each writes one text at every level and keeps the best aligned: {why}.")
    given = _given_levels(trained, source_run) if level == "given" else None
    number = None if level in ("best", "given", "each") else _number(level)
    trained.check(number, decode)
    inputs = {"model": captioner_identity(model), "level": level, "seed": seed, "decode": vars(decode),
              "pairs": (source_run.stage("embed") or {})["fingerprint"],
              "ledger": None if given is None else _ledger_identity(source_run)}  # fmt: skip
    if differences := run.differences("generate", inputs):
        raise UsageError(f"{run.folder} holds texts of another kind ({differences[0]}): choose another "
                         "`output_folder`.")  # fmt: skip
    shown, _ = images_of(source_run, trained.design, run.folder / "pictures")
    if dist.is_main():
        run.finish("generate", inputs)
    dist.wait()
    sizes = part_sizes(source_run)
    ends = dict(zip(sizes, np.cumsum([0, *sizes.values()]).tolist()))
    left = [index for index in dist.my_share(parts(source_run))
            if not (run.folder / "captions" / f"{index:05d}.parquet").exists()]  # fmt: skip
    with console.bar(label="caption", total=sum(sizes[index] for index in left), hidden=not dist.is_main()) as bar:
        for index in left:
            _write_part(run, source_run, index, ends[index], shown, trained, decode,
                        level if number is None else number, given, encode, seed, bar.update)  # fmt: skip
    dist.wait()
    facts = _facts(run)
    say(f"caption: {facts['texts']:,} texts for {facts['pairs']:,} pairs in {run.folder / 'captions'}")
    return facts


def _write_part(run: Run, source_run: Run, index: int, start: int, pictures: Any, trained: Trained, decode: Decode,
                level: str | int, given: np.ndarray | None, encode: Encode | None, seed: int,
                moved: Callable[[int], Any]) -> None:  # fmt: skip
    """One piece; each is written whole or not at all."""
    vectors = read_features(source_run, index, "image")
    image = vectors if pictures is None else Some(pictures, np.arange(start, start + len(vectors)))
    keys = (
        pq.read_table(source_run.folder / "pairs" / f"{index:05d}.parquet", columns=["key"]).column("key").to_pylist()
    )
    n, shown = len(vectors), np.asarray(vectors.any(1))
    align = None if encode is None else align_with(trained.aligner, vectors, remember(encode))
    wanted: int | np.ndarray | None = level if isinstance(level, int) else None
    if given is not None:
        wanted = given[start : start + n]
    if level == "each" and align is not None and trained.levels is not None:
        found = best_of_levels(
            trained, image, align, trained.levels.trained(), decode, seed=seed, names=keys, moved=moved
        )
    else:
        found = write_best(trained, image, align, wanted, decode, seed=seed, names=keys, moved=moved)
    texts = [text if there else None for text, there in zip(found.written.texts, shown)]
    table = {"key": keys, "row": np.arange(start, start + n), "level": found.level.astype(np.int32),
             "text": pa.array(texts, pa.string()),
             "score": np.where(shown, found.score, np.nan).astype(np.float32), "log_prob": found.written.log_prob,
             "ended": found.written.ended}  # fmt: skip
    with atomic_path(run.path("captions", f"{index:05d}.parquet")) as path:
        pq.write_table(pa.table(table), path, compression="zstd")


def _given_levels(trained: Trained, source_run: Run) -> np.ndarray:
    """The level of each pair by its own score; refused if the scores are others than the edges are of."""
    if trained.levels is None:
        raise UsageError("`level` given needs a captioner with levels.")
    column = trained.levels.made_by["column"]
    trained.levels.refuse_other({"column": column, **made_by(source_run)})
    paths = [source_run.folder / "ledger" / f"{index:05d}.parquet" for index in parts(source_run)]
    levels = trained.levels.of(np.concatenate([pq.read_table(p, columns=[column]).column(0).to_numpy() for p in paths]))
    known = np.isin(levels, trained.levels.trained())
    return np.where(known, levels, trained.levels.unscored if trained.level is None else trained.level)


def _ledger_identity(source_run: Run) -> list[str | None]:
    """Changes when a column of the ledger does."""
    return [(source_run.stage(name) or {}).get("fingerprint") for name in ("decide", "recaption")]


def _number(level: str) -> int:
    try:
        return int(level)
    except ValueError:
        raise UsageError(f"`level` is {level!r}, expected best, given, each, or a number.") from None


def _facts(run: Run) -> dict[str, Any]:
    pairs = texts = 0
    for path in sorted((run.folder / "captions").glob("*.parquet")):
        column = pq.read_table(path, columns=["text"]).column("text")
        pairs, texts = pairs + len(column), texts + len(column) - column.null_count
    return {"pairs": pairs, "texts": texts}


def _aligner(material: _Full, source_run: Run, plan: Plan) -> Aligner:
    if (source_run.stage("embed") or {})["facts"]["joint"]:
        return Aligner()
    weight = np.nan_to_num(material.columns.get("p_clean", np.ones(len(material.texts))))
    return fit_aligner(material.vectors, material.text, weight, seed=plan.recipe.train.seed)


def _check_folder(run: Run, inputs: dict[str, Any], plan: Plan) -> None:
    """Refuse a folder of another training; tidy one of this."""
    there = bool(checkpoints(run.folder / "checkpoints")) or (run.folder / "captioner.json").exists()
    if there and (differences := run.differences("caption_started", inputs)):
        more = f" and {len(differences) - 2} more" if len(differences) > 2 else ""
        raise UsageError(f"{run.folder} holds another training ({'; '.join(differences[:2])}{more}): choose another "
                         "`output_folder`, or add `overwrite`.")  # fmt: skip
    if dist.is_main():
        sweep(run.folder / "checkpoints")
        run.finish("caption_started", inputs)
    dist.wait()


def _start(plan: Plan, run: Run, source_run: Run, inputs: dict[str, Any]) -> None:
    if not dist.is_main():
        return
    recipe = plan.recipe
    values: dict[str, Any] = {"output_folder": str(run.folder), "clip_model": plan.clip_model}
    for part in (plan.source, recipe.levels, recipe.teach, recipe.design, recipe.train, plan.held, recipe.decode):
        values |= dataclasses.asdict(part)
    values.pop("guidance")
    with atomic_path(run.path("config.yaml")) as path:
        path.write_text(yaml.safe_dump(values, sort_keys=True, allow_unicode=True), encoding="utf-8")
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


def _tell(run: Run, record: Any, seconds: float, plan: Plan, pairs: int) -> None:
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
    found = trained.write(material.valid_image[:SHOWN]).texts
    for text, real in zip(found, material.valid_texts):
        say(f"  written: {text!r}, given: {real!r}")


def say(message: str) -> None:
    """One line, from the main process."""
    if dist.is_main():
        console.say(message)
