"""Region features and tokenised captions as the field publishes them: f30k, coco, cc152k and NoW `_precomp` folders.

{split}_ims.npy                      n images x regions x width, mapped into memory, never read whole
{split}_caps.txt                     one caption a line; im_div lines in a row belong to one image
{split}_caps.tsv                     image id, tab, caption
{split}_caps_{bpe,bert,jieba}.txt    token ids with commas between, one caption a line
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from noisycorr.data.readers.given import load_array
from noisycorr.runtime.errors import UsageError
from noisycorr.runtime.folder import fingerprint_file

SPLITS = ("train", "dev", "test", "testall")
PAD, START, END, UNKNOWN = "<pad>", "<start>", "<end>", "<unk>"
WORDS = re.compile(r"[a-z0-9]+(?:'[a-z]+)?|[^\sa-z0-9]")
DEV_IMAGES = 1000  # the field validates on the first thousand images
MIN_COUNT = 4
MAX_WORDS = 10_000_000  # of a vocabulary; each is a row of the network


@dataclass(frozen=True, kw_only=True)
class RegionSplit:
    """One split of a folder.

    Attributes:
        images: (n, r, f) float features, mapped.
        texts: m captions, or their token ids with commas between.
        ids: m lists of token ids where the file holds ids, else None.
        image_of: int64 (m,): the image of each caption, before any noise.
    """

    images: np.ndarray
    texts: list[str]
    ids: list[list[int]] | None
    image_of: np.ndarray


@dataclass(frozen=True, kw_only=True)
class Vocabulary:
    """Words and their numbers; 0 is padding.

    Attributes:
        number: Of each word, <pad>, <start>, <end> and <unk> among them.
        size: One more than the largest number.
    """

    number: dict[str, int]
    size: int

    def encode(self, text: str) -> list[int]:
        """<start>, the words of a caption in lower case, <end>."""
        unknown = self.number[UNKNOWN]
        return [self.number[START], *(self.number.get(word, unknown) for word in split_words(text)), self.number[END]]

    def frame(self, ids: Sequence[int]) -> list[int]:
        """Token ids between <start> and <end>.

        Raises:
            UsageError: If one is outside the vocabulary.
        """
        if any(not 0 <= token < self.size for token in ids):
            raise UsageError(f"a caption holds a token id outside the vocabulary of {self.size}: name its `vocab`.")
        return [self.number[START], *ids, self.number[END]]


def split_words(text: str) -> list[str]:
    """Words and punctuation in lower case. Near to NLTK's tokenizer, which published vocabularies were made with."""
    return WORDS.findall(text.lower())


def is_region_folder(path: Path) -> bool:
    """True if the folder holds region features for training."""
    return path.is_dir() and (path / "train_ims.npy").is_file()


def region_files(folder: Path, split: str, tokens: str) -> list[Path]:
    """Features and captions of a split; UsageError if one is missing."""
    images = folder / f"{split}_ims.npy"
    names = [f"{split}_caps.txt", f"{split}_caps.tsv"] if tokens == "words" else [f"{split}_caps_{tokens}.txt"]
    found = [folder / name for name in names if (folder / name).is_file()]
    if not images.is_file() or not found:
        raise UsageError(f"{folder} has no {images.name} with {' or '.join(names)}.")
    return [images, found[0]]


def find_tokens(folder: Path) -> str:
    """words, or the kind of token ids that the folder holds.

    Raises:
        UsageError: If there are no captions, or several kinds of ids to choose from.
    """
    if any((folder / f"train_caps{suffix}").is_file() for suffix in (".txt", ".tsv")):
        return "words"
    kinds = sorted(path.stem.removeprefix("train_caps_") for path in folder.glob("train_caps_*.txt"))
    if len(kinds) != 1:
        raise UsageError(f"{folder} holds captions as {', '.join(kinds) or 'nothing'}: choose one by `text_tokens`.")
    return kinds[0]


def read_regions(folder: Path, split: str, tokens: str, *, limit: int | None = None) -> RegionSplit:
    """One split.

    Args:
        folder: As published.
        split: train, dev, test or testall.
        tokens: words, or a kind of token ids.
        limit: Only the first images, with their captions; None = all.

    Raises:
        UsageError: If files are missing or do not fit each other.
    """
    image_path, text_path = region_files(folder, split, tokens)
    try:
        images = load_array(image_path)
    except ValueError as error:
        raise UsageError(f"{image_path} cannot be read as an array: {error}.") from error
    if images.ndim != 3 or not np.issubdtype(images.dtype, np.floating):
        raise UsageError(f"{image_path} holds {images.dtype} {images.shape}, expected floats (images, regions, width).")
    try:
        lines = text_path.read_text(encoding="utf-8").split("\n")
    except (OSError, ValueError) as error:
        raise UsageError(f"{text_path} cannot be read as UTF-8: {error}.") from error
    lines = [line.rstrip("\r") for line in (lines[:-1] if lines[-1] == "" else lines)]
    texts = [line.partition("\t")[2] for line in lines] if text_path.suffix == ".tsv" else lines
    if not len(images) or not texts or len(texts) % len(images):
        raise UsageError(
            f"{image_path.name} holds {len(images)} images and {text_path.name} {len(texts)} captions: the captions "
            "must be as many, or several for each image."
        )
    image_of = np.arange(len(texts)) // (len(texts) // len(images))
    if limit is not None and limit < len(images):
        texts = texts[: int((image_of < limit).sum())]
        images, image_of = images[:limit], image_of[: len(texts)]
    return RegionSplit(images=images, texts=texts, ids=_ids(texts, text_path) if tokens != "words" else None,
                       image_of=image_of)  # fmt: skip


def read_vocabulary(path: Path) -> Vocabulary:
    """A vocabulary in JSON: `word2idx`, `idx2word` and `idx`.

    Raises:
        UsageError: If it is none.
    """
    try:
        number = json.loads(path.read_text(encoding="utf-8"))["word2idx"]
        number = {str(word): int(place) for word, place in number.items()}
        size = max(number.values()) + 1
        if min(number.values()) < 0 or size > MAX_WORDS:
            raise ValueError(f"a number is not in 0 to {MAX_WORDS - 1:,}")
    except Exception as error:  # whatever stands in place of words and numbers
        told = " ".join(str(error).split())[:200]
        raise UsageError(f"`vocab` {path} is no vocabulary: expected JSON with word2idx ({told}).") from error
    if missing := [word for word in (START, END, UNKNOWN) if word not in number]:
        raise UsageError(f"`vocab` {path} has no {missing[0]}.")
    return Vocabulary(number=number, size=size)


def count_vocabulary(texts: Sequence[str], ids: Sequence[Sequence[int]] | None = None) -> Vocabulary:
    """A vocabulary of the words that stand in at least four captions' places; for ids, one that holds them all."""
    if ids is not None:
        largest = max((max(row, default=0) for row in ids), default=0)
        return Vocabulary(number={PAD: 0, START: largest + 1, END: largest + 2, UNKNOWN: largest + 3}, size=largest + 4)
    counts: dict[str, int] = {}
    for text in texts:
        for word in split_words(text):
            counts[word] = counts.get(word, 0) + 1
    words = [PAD, START, END, UNKNOWN, *sorted(word for word, count in counts.items() if count >= MIN_COUNT)]
    return Vocabulary(number={word: place for place, word in enumerate(words)}, size=len(words))


def folder_identity(folder: Path, tokens: str) -> list[object]:
    """What changes when a file of any split does."""
    return [fingerprint_file(path) for split in SPLITS if (folder / f"{split}_ims.npy").is_file()
            for path in region_files(folder, split, tokens)]  # fmt: skip


def _ids(texts: Sequence[str], path: Path) -> list[list[int]]:
    return [_row(text, path, number) for number, text in enumerate(texts, 1)]


def _row(text: str, path: Path, number: int) -> list[int]:
    try:
        return [int(word) for word in _words(text)]
    except ValueError:
        raise UsageError(f"{path}, line {number}: {text[:40]!r} is no list of token ids.") from None


def _words(text: str) -> Iterator[str]:
    return (word for word in text.strip().strip("[]").split(",") if word.strip())
