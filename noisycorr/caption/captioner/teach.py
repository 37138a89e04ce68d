"""From pairs with the columns of their ledger to a captioner: levels, weights, kept pairs, vocabulary, training.

Vanilla, filtering, weighting and NoC are one engine: `level_by`, `weight_by` and `keep_fraction` switch its parts.

Source: NoC (Kang et al., ICCV 2023) and the baselines it compares with.
Differs: levels, weights and filtering can be used together.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int

from noisycorr.caption.captioner.align import Align
from noisycorr.caption.captioner.best import write_best
from noisycorr.caption.captioner.choice import NONE, CaptionTrain, Decode, Design, LevelChoice, Teach
from noisycorr.caption.captioner.levels import Levels, fit_levels
from noisycorr.caption.captioner.select import Fluency, allowed, candidates, choose, self_retrieval_mrr
from noisycorr.caption.captioner.stored import Trained, build
from noisycorr.caption.captioner.tower import Some
from noisycorr.caption.captioner.train import Hooks, Trainer, TrainSet, continue_training, fit, save_training, word_loss
from noisycorr.caption.captioner.words import Pieces, Words, token_table
from noisycorr.models.training.batches import stream_seed
from noisycorr.runtime import dist
from noisycorr.runtime.errors import UsageError, listed

LEAST_SPREAD = 1e-6  # of alignment


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """All choices of a training.

    Attributes:
        levels: Levels of alignment.
        teach: Weights and kept pairs.
        design: The network.
        train: Its training.
        decode: How to write; level and guidance are chosen.
        guidances: Strengths to choose from.
    """

    levels: LevelChoice = field(default_factory=LevelChoice)
    teach: Teach = field(default_factory=Teach)
    design: Design = field(default_factory=Design)
    train: CaptionTrain = field(default_factory=CaptionTrain)
    decode: Decode = field(default_factory=Decode)
    guidances: tuple[float, ...] = (0.0,)

    def settings(self) -> dict[str, Any]:
        """JSON of what the result depends on."""
        return {**dataclasses.asdict(self), "train": self.train.settings()}


@dataclass(frozen=True, kw_only=True)
class Material:
    """Pairs to train on and to select on. Holds no truth.

    Attributes:
        image: (n, f) stored vectors of the training pairs, or (n, cells, f), or pixels; an array, or `Some` rows.
        texts: Their n texts.
        columns: (n,) each: what the ledger says of them.
        made_by: Scorer, preprocessing and corpus of the columns.
        encoder: Name of the encoder of the vectors.
        valid_image: (m, f) of the validation pairs.
        valid_texts: Their m texts.
        clip_model: As in `Trained`.
        clip_precision: As in `Trained`.
        tower: Makes tokens of pixels and learns along; None for stored vectors and tokens.
    """

    image: Any
    texts: list[str | None]
    columns: Mapping[str, np.ndarray]
    made_by: Mapping[str, str]
    encoder: str
    valid_image: Any
    valid_texts: list[str | None]
    clip_model: str = ""
    clip_precision: str = "fp32"
    tower: Any = None


@dataclass(frozen=True, kw_only=True)
class CaptionTraining:
    """A captioner before its first step, and what it will learn from.

    Attributes:
        trained: Holds the network.
        trainer: Its training.
        valid: Validation pairs with a text.
        rows: int64 (k,): training pairs of the material that teach.
        facts: JSON: counts of pairs that do not teach, by reason, and of texts that were cut.
    """

    trained: Trained
    trainer: Trainer
    valid: TrainSet
    rows: Int[np.ndarray, " k"]
    facts: dict[str, Any]


def column_of(columns: Mapping[str, np.ndarray], name: str, flag: str) -> Float[np.ndarray, " n"]:
    """A column of the ledger as float64.

    Raises:
        UsageError: If there is none of this name, or it is a truth column.
    """
    if name not in columns or name.startswith("truth_"):
        if not columns:
            cure = "run `noisycorr clean` first, or train without levels by `level_by` none and `draw_by` none"
            raise UsageError(f"`{flag}` {name}: the ledger has no such column, for the run was not scored: {cure}.")
        raise UsageError(f"`{flag}` {name}: the ledger has no such column; it has {listed(columns)}.")
    return np.asarray(columns[name], np.float64)


def check_columns(columns: Mapping[str, np.ndarray], recipe: Recipe) -> None:
    """Refuse a training by columns that are not there, before anything is written.

    Raises:
        UsageError: As `column_of`.
    """
    wanted = {"draw_by": recipe.teach.draw_by, "weight_by": recipe.teach.weight_by, "level_by": recipe.levels.level_by}
    if recipe.teach.fraction != 1:
        wanted["keep_by"] = recipe.teach.keep_by
    for flag, name in wanted.items():
        if name != NONE:
            column_of(columns, name, flag)


def kept_rows(columns: Mapping[str, np.ndarray], n: int, choice: Teach) -> Int[np.ndarray, " k"]:
    """Pairs of the kept fraction, in order; of equal ones the first.

    Raises:
        UsageError: If the column is not there, or tells nothing.
    """
    if choice.fraction == 1:
        return np.arange(n)
    if choice.keep_by == NONE:
        raise UsageError(f"`keep_fraction` {choice.keep_fraction} needs a column to keep by, but `keep_by` is none.")
    score = column_of(columns, choice.keep_by, "keep_by")
    fraction = choice.fraction
    if choice.keep_fraction == "auto":
        p_clean = column_of(columns, "p_clean", "keep_fraction")
        if not np.isfinite(p_clean).any():
            raise UsageError("`keep_fraction` auto is the mean of p_clean, which is known of no pair: give a number.")
        fraction = float(np.nanmean(p_clean))
    best = np.argsort(-np.nan_to_num(score, nan=-np.inf), kind="stable")
    return np.sort(best[: max(2, round(fraction * n))])


def pair_weights(columns: Mapping[str, np.ndarray], rows: np.ndarray, choice: Teach) -> Float[np.ndarray, " k"]:
    """Weights with mean 1: max(column, 0), and the mean where it is not known.

    Raises:
        UsageError: If no pair has a weight above 0.
    """
    if choice.weight_by == NONE:
        return np.ones(len(rows))
    weight = np.maximum(column_of(columns, choice.weight_by, "weight_by")[rows], 0)
    mean = np.nanmean(weight) if np.isfinite(weight).any() else 0.0
    if not mean > 0:
        raise UsageError(f"`weight_by` {choice.weight_by} is nowhere above 0: choose another column, or none.")
    return np.where(np.isfinite(weight), weight, mean) / mean


def pair_shares(columns: Mapping[str, np.ndarray], rows: np.ndarray,
                choice: Teach) -> Float[np.ndarray, " k"] | None:  # fmt: skip
    """How often each pair teaches in an epoch, in [0, 1], the mean where it is not known; None = each once.

    Raises:
        UsageError: If no pair has a share above 0.
    """
    if choice.draw_by == NONE:
        return None
    share = np.clip(column_of(columns, choice.draw_by, "draw_by")[rows], 0, 1)
    mean = np.nanmean(share) if np.isfinite(share).any() else 0.0
    if not mean > 0:
        raise UsageError(f"`draw_by` {choice.draw_by} is nowhere above 0: choose another column, or none.")
    return np.where(np.isfinite(share), share, mean)


def open_class(material: Material, recipe: Recipe) -> CaptionTraining:
    """Levels, vocabulary, network and lessons, before the first step.

    Raises:
        UsageError: If fewer than 2 training pairs or no validation pair have a text.
    """
    design = recipe.design
    rows = kept_rows(material.columns, len(material.texts), recipe.teach)
    decoder: Any = None
    words: Words
    if design.decoder == "scratch":
        words = Pieces.learn([material.texts[row] or "" for row in rows], design.vocabulary)
    else:
        from noisycorr.caption.captioner.language import load_language

        decoder, words = load_language(design)
    tokens, length = token_table([material.texts[row] for row in rows], words, design.longest)
    full = length > 0
    cut = full & (tokens[np.arange(len(rows)), length - 1] != words.end)
    facts = {"pairs": len(material.texts), "not_kept": len(material.texts) - len(rows),
             "without_text": int((~full).sum()), "cut": int(cut.sum())}  # fmt: skip
    rows, tokens, length = rows[full], tokens[full], length[full]
    if len(rows) < 2:
        raise UsageError(f"{len(rows)} training pairs have image and text, expected at least 2.")
    weight = pair_weights(material.columns, rows, recipe.teach)
    share = pair_shares(material.columns, rows, recipe.teach)
    levels, level = _levels(material, rows, recipe, weight, share)
    torch.manual_seed(stream_seed(recipe.train.seed, "captioner"))
    image = Some(material.image, rows)
    cells, width = 1 if image.ndim == 2 else image.shape[1], image.shape[-1]
    if material.tower is not None:
        with torch.no_grad():
            one = torch.from_numpy(image[np.arange(1)]).to(next(material.tower.parameters()).device)
            cells, width = material.tower(one).shape[1:]
    network = build(design, words, decoder, image_dim=width, cells=cells, levels=levels,
                    precision=recipe.train.model_precision, tower=material.tower).to(dist.device())  # fmt: skip
    network.standardise(image)
    if levels is not None and level is not None and "p_clean" in material.columns:
        network.dim(purity(np.asarray(material.columns["p_clean"], np.float64)[rows], level, levels))
    train_set = TrainSet(
        image=image, tokens=tokens, length=length, level=level,
        weight=weight, share=share, unscored=0 if levels is None else levels.unscored,
        hide_level=0.0 if levels is None else recipe.levels.level_dropout, hide_image=design.image_dropout,
    )  # fmt: skip
    trained = Trained(network=network, words=words, design=design, levels=levels, encoder=material.encoder,
                      precision=recipe.train.model_precision, level=None if levels is None else top_level(levels),
                      decode=recipe.decode, clip_model=material.clip_model,
                      clip_precision=material.clip_precision)  # fmt: skip
    if not candidates(trained, recipe.decode, recipe.guidances):
        raise UsageError(f"`guidances` {','.join(f'{g:g}' for g in recipe.guidances)} leaves no way to write with this "
                         "training: add 0.")  # fmt: skip
    return CaptionTraining(trained=trained, trainer=Trainer(network, train_set, recipe.train), rows=rows, facts=facts,
                 valid=_valid(material, trained, words))  # fmt: skip


def top_level(levels: Levels) -> int:
    """The highest level that is not starved."""
    return max((z for z in levels.fed() if z != levels.unscored), default=levels.unscored)


def _levels(material: Material, rows: np.ndarray, recipe: Recipe, weight: np.ndarray,
            share: np.ndarray | None) -> tuple[Levels | None, np.ndarray | None]:  # fmt: skip
    choice = recipe.levels
    if choice.level_by == NONE:
        return None, None
    score = column_of(material.columns, choice.level_by, "level_by")[rows]
    if (weight <= 0).any():  # what weighs nothing does not teach
        share = np.where(weight > 0, 1.0 if share is None else share, 0.0)
    levels = fit_levels(score, choice, {"column": choice.level_by, **material.made_by}, share)
    return levels, levels.of(score)


def purity(p_clean: Float[np.ndarray, " k"], level: Int[np.ndarray, " k"], levels: Levels) -> Float[np.ndarray, " l"]:
    """Mean p_clean of the pairs of each level, `unscored` at the end; where a level has none, and there, of all."""
    known = np.isfinite(p_clean)
    count = np.bincount(level[known], minlength=levels.count + 1)
    total = np.bincount(level[known], p_clean[known], minlength=levels.count + 1)
    everywhere = p_clean[known].mean() if known.any() else 1.0
    out = np.where(count > 0, total / np.maximum(count, 1), everywhere)
    out[levels.unscored] = everywhere
    return np.asarray(out)


def _valid(material: Material, trained: Trained, words: Words) -> TrainSet:
    """Validation pairs at the highest level: they are held to be right."""
    tokens, length = token_table(material.valid_texts, words, trained.design.longest)
    full = length > 0
    if not full.any():
        raise UsageError("no validation pair has image and text: give more pairs, or other ones by `val_data`.")
    level = None if trained.level is None else np.full(int(full.sum()), trained.level)
    return TrainSet(image=Some(material.valid_image, np.flatnonzero(full)), tokens=tokens[full], length=length[full],
                  level=level, weight=np.ones(int(full.sum())))  # fmt: skip


def train_class(group: CaptionTraining, *, checkpoints: Path | None = None, on_epoch: Callable[..., Any] | None = None,
                moved: Callable[[int], Any] | None = None) -> None:  # fmt: skip
    """Train to the end, from the last checkpoint if there is one; the best epoch on validation pairs stays.

    Args:
        group: From `open_class`.
        checkpoints: Folder for them, or None for none.
        on_epoch: Called with the record of each epoch, its seconds and how many pairs it took in them.
        moved: Called with the number of pairs of each step.
    """
    trainer = group.trainer
    if checkpoints is not None and trainer.choice.resume == "latest":
        continue_training(trainer, checkpoints)

    def save(it: Trainer) -> None:
        if checkpoints is not None:
            save_training(it, checkpoints, keep=it.choice.keep_checkpoints)

    fit(trainer, Hooks(
        validate=lambda network: word_loss(network, group.valid, trainer.choice.model_precision), save=save,
        on_epoch=on_epoch or (lambda record, seconds, pairs: None), moved=moved or (lambda count: None),
    ))  # fmt: skip


def choose_decoding(
    group: CaptionTraining, material: Material, recipe: Recipe, align: Align | None, most: int
) -> list[dict[str, Any]]:
    """Choose on validation pairs: level and guidance, with `select` writing the epoch, which the network then has, and
    whether the best of several texts is kept.

    Args:
        group: Trained.
        material: For texts that are real.
        recipe: Candidates.
        align: Scorer of validation rows and their texts; None chooses the level at which real texts are likeliest.
        most: Most pictures to write for; 0 = all.

    Returns:
        One row for each candidate; with `select` writing also of the two epochs at the chosen one; and one for the best
        of several texts.
    """
    trained = group.trained
    options = candidates(trained, recipe.decode, recipe.guidances)
    if align is None:
        return _by_loss(group, [level for level, decode in options if not decode.guidance], recipe)
    image = Some(material.valid_image, np.arange(min(most or len(material.valid_image), len(material.valid_image))))
    fluency = Fluency.learn([material.texts[row] or "" for row in group.rows],
                            [text for text in material.valid_texts if text and text.strip()])  # fmt: skip
    tried = choose(trained, image, align, fluency, options)
    if recipe.train.select == "writing":
        tried = _choose_epoch(group, image, align, fluency, tried)
    return _choose_best(trained, image, align, fluency, tried)


def _choose_epoch(group: CaptionTraining, image: Any, align: Align, fluency: Fluency,
                  tried: list[dict[str, Any]]) -> list[dict[str, Any]]:  # fmt: skip
    """Best loss against last epoch: learning by heart raises the loss long before texts get worse."""
    trained, trainer = group.trained, group.trainer
    chosen, last = next(row for row in tried if row["chosen"]), trainer.at.epoch - 1
    if trainer.last is None or trainer.at.best is None or trainer.at.best[1] == last:
        return tried
    rows = []
    for epoch, weights in ((int(trainer.at.best[1]), trainer.best), (last, trainer.last)):
        trainer.load(weights)
        written = trained.write(image)
        own = np.asarray(align(np.arange(len(image)), written.texts))
        mrr = self_retrieval_mrr(written.texts, align, own)
        row = {"epoch": epoch, **fluency.judge(written), "self_retrieval_mrr": mrr, "alignment": float(np.mean(own))}
        rows.append(chosen | row | {"allowed": allowed(row), "chosen": False})
    kept = max((0, 1), key=lambda place: (rows[place]["allowed"], rows[place]["self_retrieval_mrr"]))
    trainer.load((trainer.best, trainer.last)[kept])
    chosen["chosen"], rows[kept]["chosen"] = False, True
    return [*tried, *rows]


def _choose_best(trained: Trained, image: Any, align: Align, fluency: Fluency,
                 tried: list[dict[str, Any]]) -> list[dict[str, Any]]:  # fmt: skip
    """The best of several texts for each picture is kept, unless only single ones look like texts."""
    every = np.arange(len(image))
    spread = float(np.std(align(every, trained.write(image).texts)))
    trained.spread = spread if spread > LEAST_SPREAD else None  # one picture, or one text for all, tells no scale
    levels = trained.levels.fed() if trained.levels is not None and trained.decode.each_level else []
    several = trained.decode.samples + len(levels)
    if not several or trained.spread is None:
        return tried
    before, best = next(row for row in tried if row["chosen"]), write_best(trained, image, align)
    row: dict[str, Any] = fluency.judge(best.written)
    row |= {"texts": 1 + several, "self_retrieval_mrr": self_retrieval_mrr(best.written.texts, align, best.score),
            "alignment": float(best.score.mean())}  # fmt: skip
    row["chosen"] = (fluent := allowed(row)) or not before["allowed"]
    if row["chosen"]:
        before["chosen"] = False
    else:
        trained.decode = dataclasses.replace(trained.decode, samples=0, each_level=False)
    return [*tried, before | row | {"allowed": fluent}]


def _by_loss(group: CaptionTraining, levels: list[int | None], recipe: Recipe) -> list[dict[str, Any]]:
    """Without a scorer: the level at which the validation texts are likeliest."""
    rows: list[dict[str, Any]] = []
    for level in levels:
        at = None if level is None else np.full(len(group.valid.length), level)
        loss = word_loss(
            group.trained.network, dataclasses.replace(group.valid, level=at), recipe.train.model_precision
        )
        rows.append({"level": level, "guidance": 0.0, "valid_loss": loss, "chosen": False})
    best = min(rows, key=lambda row: row["valid_loss"])
    best["chosen"] = True
    group.trained.level, group.trained.decode = best["level"], recipe.decode
    return rows
