"""Which part of an encoder is trained: the choice behind `train_part`. Light, so that the help comes at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from noisycorr.runtime.errors import UsageError, check_least

PARTS = ("heads", "whole", "last_blocks", "lora")
RATES = {"heads": 1e-3, "whole": 1e-5, "last_blocks": 1e-5, "lora": 1e-4}
SCRATCH_RATE = 5e-4
REGION_RATE = 2e-4


@dataclass(frozen=True, kw_only=True)
class Tune:
    """Which part of the encoder is trained.

    Attributes:
        train_part: heads on stored features, which sees each picture once and is trained in minutes; or, in the model
            that `clip_model` names, whole, the last_blocks of both towers, or lora (needs noisycorr[lora]).
        last_blocks: How many blocks of each tower are trained with last_blocks, >= 1.
        lora_rank: Rank of the added matrices, >= 1.
        lora_alpha: Their scale, times the rank; > 0.
        aug_scale: Smallest share of a picture that a random crop keeps while training, in (0, 1]; 1 = no crop.
        workers: Processes that decode pictures; 0 = the training process does it itself.

    Raises:
        UsageError: If a value is out of its range.
    """

    train_part: Literal["heads", "whole", "last_blocks", "lora"] = "heads"
    last_blocks: int = 2
    lora_rank: int = 8
    lora_alpha: float = 16.0
    aug_scale: float = 0.9
    workers: int = 2

    def __post_init__(self) -> None:
        if self.train_part not in PARTS:
            raise UsageError(f"`train_part` is {self.train_part!r}, expected one of {', '.join(PARTS)}.")
        check_least(self, {"last_blocks": 1, "lora_rank": 1, "workers": 0})
        if not 0 < self.aug_scale <= 1:
            raise UsageError(f"`aug_scale` is {self.aug_scale}, expected more than 0, up to 1.")
        if not self.lora_alpha > 0:
            raise UsageError(f"`lora_alpha` is {self.lora_alpha}, expected more than 0.")

    def settings(self) -> dict[str, object]:
        """What the result depends on."""
        if self.train_part == "heads":
            return {"train_part": "heads"}
        own = {"last_blocks": ("last_blocks",), "lora": ("lora_rank", "lora_alpha")}.get(self.train_part, ())
        return {name: getattr(self, name) for name in ("train_part", "aug_scale", *own)}


@dataclass(frozen=True, kw_only=True)
class Regions:
    """Networks on published region features.

    Attributes:
        region: sgr or saf compare regions with words, gpo pools both; none for any other source.
        noise_file: Published noise index (.npy): which image each training caption is shown with.
        vocab: Vocabulary in JSON; by default the words of the training captions that stand there 4 times or more.
        text_tokens: words, or bpe, bert, jieba for files of token ids; auto finds it out.
        max_words: Longer captions are cut, >= 3; <start> and <end> count.
        word_dim: Width of word vectors.
        sim_dim: Width of the nodes of sgr and saf.
        region_chunk: Texts that are compared with all images of a batch at once; fewer need less memory.

    Raises:
        UsageError: If a value is out of its range.
    """

    region: Literal["none", "sgr", "saf", "gpo"] = "none"
    noise_file: str | None = None
    vocab: str | None = None
    text_tokens: str = "auto"
    max_words: int = 128
    word_dim: int = 300
    sim_dim: int = 256
    region_chunk: int = 8

    def __post_init__(self) -> None:
        if self.region not in ("none", "sgr", "saf", "gpo"):
            raise UsageError(f"`region` is {self.region!r}, expected none, sgr, saf or gpo.")
        check_least(self, {"max_words": 3, "word_dim": 1, "sim_dim": 1, "region_chunk": 1})


def default_rate(tune: Tune, clip_model: str, region: str) -> float:
    """Highest learning rate where none is given."""
    if region != "none":
        return REGION_RATE
    return SCRATCH_RATE if clip_model.startswith("scratch:") else RATES[tune.train_part]
