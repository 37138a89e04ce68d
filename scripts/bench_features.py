"""Sets of the detection benchmark as features of the embedded encoder, computed once and cached."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
from tqdm import tqdm

from noisycorr.clean.embed import Embed, prepare
from noisycorr.clean.signals.crossfit import reduce_width
from noisycorr.clean.signals.duplicates import Duplicates, near_duplicates
from noisycorr.data.pairs import Pair
from noisycorr.models.encoders.embedded import EmbeddedEncoder
from noisycorr.runtime.folder import atomic_path

CIFAR = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
FILES = {
    "caltech101": ("caltech101/train.parquet", "class_name"),
    "emoji": ("emoji/emoji.parquet", "label"),
    "fashion": ("fashion/train-*.parquet", "title"),
    "cifar10n": ("cifar10n/train.parquet", "clean_label"),
    "coco_mini": ("coco_mini/coco_mini.parquet", "captions"),
    "openclipart": ("openclipart/openclipart.parquet", "title"),
}
LIMITED = ("fashion", "cifar10n")  # of the others all rows are taken
NATURAL = ("openclipart",)  # texts that were wrong before, so the truth is incomplete
BATCH = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Features:
    """One set of n pairs before any noise.

    Attributes:
        name: A key of `FILES`.
        texts: The n texts.
        image: float16 (n, 1280), as a run stores them.
        text: float16 (n, 384).
        shown: int64 (n,): equal for rows that show the same bytes; says what a right text is, whatever a method thinks.
        group: int64 (n,): equal for pictures that are the same or near-duplicates, as scorers see them.
        joint: float16 (n, 384) images and texts in the space of ConSE.
        narrow: float32 (n, 384) principal components of the images, for methods that train.
    """

    name: str
    texts: list[str]
    image: np.ndarray
    text: np.ndarray
    shown: np.ndarray
    group: np.ndarray
    joint: tuple[np.ndarray, np.ndarray]
    narrow: np.ndarray


def load_features(name: str, data: Path, limit: int, cache: Path, encoder: EmbeddedEncoder) -> Features:
    """Features of a set, from the cache if it holds them.

    Args:
        name: A key of `FILES`.
        data: Folder of the sets.
        limit: Rows of the sets in `LIMITED`, from the start.
        cache: Folder of `.npz` files; one made by other weights is not used.
        encoder: The embedded encoder.
    """
    size = f"-{limit}" if name in LIMITED else ""
    path = cache / f"{name}{size}-{encoder.weights_hash}.npz"
    if not path.exists():
        stored = _encode(*_read(name, data, limit), encoder, name)
        with atomic_path(path) as temporary, temporary.open("wb") as file:
            np.savez(file, **stored)  # type: ignore[arg-type]
    with np.load(path, allow_pickle=False) as file:
        stored = {key: file[key] for key in file.files}
    row, texts = stored["row"], [str(text) for text in stored["texts"]]
    image, text = stored["image"][row], stored["text"]
    hashes = [str(value) for value in stored["hash"][row]]
    phash = [int(value) for value in stored["phash"][row]]
    alike = near_duplicates([image], [text], hashes, phash, texts, choice=Duplicates())
    one, two = encoder.joint_space(image.astype(np.float32), text.astype(np.float32))
    known: dict[str, int] = {}
    return Features(
        name=name,
        texts=texts,
        image=image,
        text=text,
        shown=np.array([known.setdefault(value, len(known)) for value in hashes]),
        group=np.where(alike.image >= 0, alike.image, np.arange(len(texts))),
        joint=(one.astype(np.float16), two.astype(np.float16)),
        narrow=reduce_width([image], 384),
    )


def _read(name: str, data: Path, limit: int) -> tuple[list[bytes], np.ndarray, list[str]]:
    """Encoded pictures (m), the picture of each row (n,), and the n texts."""
    pattern, column = FILES[name]
    files = sorted(data.glob(pattern))
    if not files:
        raise SystemExit(f"--data {data} holds no {pattern}: name the folder of the sets.")
    images: list[bytes] = []
    values: list[object] = []
    for file in files:
        table = pq.read_table(file, columns=["image", column])
        images += table.column("image").to_pylist()
        values += table.column(column).to_pylist()
        if name in LIMITED and len(images) >= limit:
            break
    stop = limit if name in LIMITED else len(images)
    images, values = images[:stop], values[:stop]
    row, texts = [], []
    for place, value in enumerate(values):
        for text in value if isinstance(value, list) else [value]:
            row.append(place)
            texts.append(CIFAR[text] if isinstance(text, int) else str(text))
    return images, np.array(row), texts


def _encode(
    images: list[bytes], row: np.ndarray, texts: list[str], encoder: EmbeddedEncoder, name: str
) -> dict[str, np.ndarray]:
    image, facts = [], []
    for start in tqdm(range(0, len(images), BATCH), desc=f"{name}: images", file=sys.stderr, disable=None):
        ready = [prepare(Pair(key="", image=b), encoder, Embed(), True) for b in images[start : start + BATCH]]
        if any(one.pixels is None for one in ready):
            raise SystemExit(f"{name} holds a picture that cannot be decoded; the sets of the benchmark hold none.")
        image.append(encoder.image(torch.stack([one.pixels for one in ready if one.pixels is not None])).numpy())
        facts += [one.facts for one in ready]
    distinct = sorted(set(texts))
    vectors = [encoder.text(encoder.tokenize(distinct[s : s + BATCH])).numpy() for s in range(0, len(distinct), BATCH)]
    place = {text: number for number, text in enumerate(distinct)}
    return {
        "image": np.concatenate(image).astype(np.float16),
        "text": np.concatenate(vectors).astype(np.float16)[[place[text] for text in texts]],
        "texts": np.array(texts),
        "row": row,
        "hash": np.array([fact["image_hash"] for fact in facts]),
        "phash": np.array([fact["image_phash"] for fact in facts], np.uint64),
    }
