"""One pass over the source: decode each picture once, keep facts and a thumbnail, run both encoders.

One piece of the source is one idempotent task: it writes `pairs/NNNNN.parquet` and
`embeddings/part-NNNNN.safetensors`, then `pairs/NNNNN_stats.json`. A piece is done when the last one exists. That one
rule gives resume after a kill, many processes and many nodes.
"""

from __future__ import annotations

import collections
import io
import json
import os
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import xxhash
from PIL import Image
from safetensors.numpy import save
from tqdm import tqdm

from noisycorr.data.pairs import PAIRS, Pair, content_hash, pair_uid
from noisycorr.data.readers import Piece, Reader
from noisycorr.data.readers.facts import image_facts
from noisycorr.data.readers.images import BadImage, decode_image, read_image
from noisycorr.data.store import _marker, features_path, pairs_path, parts
from noisycorr.runtime import console, dist
from noisycorr.runtime.errors import UsageError
from noisycorr.runtime.folder import Run, atomic_path, write_json

if TYPE_CHECKING:  # torch takes seconds, and those who only read embeddings do not need it
    import torch

    from noisycorr.models.encoders import DualEncoder

DTYPES = {"fp16": np.float16, "fp32": np.float32}


@dataclass(frozen=True, kw_only=True)
class Embed:
    """How images and texts are embedded.

    Attributes:
        clip_model: embedded (inside the package, no download), open_clip:ARCH/TAG, open_clip:ARCH@CHECKPOINT,
            hf_clip:NAME_OR_FOLDER, or tiny (random weights, for tests).
        batch_size: Pairs per forward pass; another size changes the last digits of the features.
        workers: Threads that decode images, >= 0; 0 = one per core.
        model_precision: Precision inside the encoder: fp32, bf16 or fp16.
        store_precision: Precision of stored embeddings: fp16 takes half the disk space, fp32 keeps every bit.
        max_pixels: Larger images are not decoded; the ledger has them as image_too_large.
        thumbnail: Longest side of the stored preview, 16 to 512 pixels.
        distributor: none, or ray: parts of the source are embedded by workers on a Ray cluster, which needs the extra
            `ray` and a shared file system. The result is the same.
        ray_workers: Number of Ray workers, each with its own encoder; 0 = one per processor of the cluster.

    Raises:
        UsageError: If a value is out of its range.
    """

    clip_model: str = "embedded"
    batch_size: int = 64
    workers: int = 0
    model_precision: str = "fp32"
    store_precision: str = "fp16"
    max_pixels: int = 100_000_000
    thumbnail: int = 96
    distributor: str = "none"
    ray_workers: int = 0

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise UsageError(f"`batch_size` is {self.batch_size}, expected at least 1.")
        if self.workers < 0:
            raise UsageError(f"`workers` is {self.workers}, expected 0 (one for each core) or more.")
        if self.max_pixels < 1:
            raise UsageError(f"`max_pixels` is {self.max_pixels}, expected at least 1.")
        if self.store_precision not in DTYPES:
            raise UsageError(f"`store_precision` is {self.store_precision!r}, expected one of {sorted(DTYPES)}.")
        if self.distributor not in ("none", "ray"):
            raise UsageError(f"`distributor` is {self.distributor!r}, expected none or ray.")
        if self.ray_workers < 0:
            raise UsageError(f"`ray_workers` is {self.ray_workers}, expected 0 (one a processor) or more.")
        if not 16 <= self.thumbnail <= 512:
            raise UsageError(f"`thumbnail` is {self.thumbnail}, expected 16 to 512 pixels.")


@dataclass(frozen=True, slots=True)
class Prepared:
    """One decoded picture: what the encoder needs and what the ledger keeps."""

    pixels: torch.Tensor | None
    facts: dict[str, Any]


def embed_inputs(reader: Reader, encoder: DualEncoder, choice: Embed) -> dict[str, Any]:
    """Everything that the stored embeddings depend on: the fingerprint of the embed stage."""
    return {
        "source": reader.identity,
        "format": reader.format,
        "picked": dict(reader.picked),
        "encoder": encoder.name,
        "weights": encoder.weights_hash,
        "batch_size": choice.batch_size,
        "model_precision": choice.model_precision,
        "store_precision": choice.store_precision,
        "max_pixels": choice.max_pixels,
        "thumbnail": choice.thumbnail,
    }


def embed_pieces(pieces: list[Piece], reader: Reader, encoder: DualEncoder, run: Run, choice: Embed) -> None:
    """Do every piece that is not done yet. Progress goes to stderr."""
    todo = unfinished(pieces, run)
    workers = choice.workers or os.cpu_count() or 1
    with ThreadPoolExecutor(workers) as pool, console.bar(label="embed", hidden=not dist.is_main()) as bar:
        for piece in todo:
            embed_piece(piece, reader, encoder, run, choice, pool, bar)


def unfinished(pieces: list[Piece], run: Run) -> list[Piece]:
    """Pieces without a marker."""
    return [piece for piece in pieces if not _marker(run, piece.index).exists()]


def embed_piece(
    piece: Piece, reader: Reader, encoder: DualEncoder, run: Run, choice: Embed, pool: ThreadPoolExecutor, bar: tqdm
) -> None:
    """One idempotent task: read, decode, encode and write one piece; the marker comes last."""
    stored = reader.embeddings(piece)
    rows: list[dict[str, Any]] = []
    images: list[np.ndarray] = []
    texts: list[np.ndarray] = []
    for batch, prepared in _prefetch(reader.read(piece), encoder, choice, pool, decode=stored is None):
        rows += [_row(pair, ready) for pair, ready in zip(batch, prepared)]
        if stored is None:
            images.append(_encode_images(prepared, encoder))
            texts.append(_encode_texts(batch, encoder))
        bar.update(len(batch))
    if stored is not None:
        images, texts = [stored[0]], [stored[1]]
    dtype = DTYPES[choice.store_precision]
    image = np.concatenate(images) if images else np.zeros((0, encoder.image_dim))
    text = np.concatenate(texts) if texts else np.zeros((0, encoder.text_dim))
    if stored is not None and not len(image) == len(text) == len(rows):
        raise UsageError(
            f"Piece {piece.index} of {piece.path} holds {len(rows)} pairs, but {len(image)} embeddings of images and "
            f"{len(text)} of texts; the three must be equal."
        )
    with atomic_path(features_path(run, piece.index)) as path:
        # `save_file` would report a full disk as an error of its own, and this way it is an OSError.
        path.write_bytes(save({"image": _storable(image, dtype), "text": _storable(text, dtype)}))
    with atomic_path(pairs_path(run, piece.index)) as path:
        pq.write_table(pa.Table.from_pylist(rows, schema=PAIRS), path, compression="zstd")
    problems = collections.Counter(row["problem"] for row in rows if row["problem"])
    write_json(_marker(run, piece.index), {"pairs": len(rows), "problems": dict(problems)})
    console.detail(f"piece {piece.index}: {len(rows):,} pairs of {piece.path}")


def _storable(features: np.ndarray, dtype: type) -> np.ndarray:
    """Features in the stored precision; rows with NaN, or with numbers too large for it, become zeros: not known."""
    with np.errstate(over="ignore"):
        out: np.ndarray = features.astype(dtype)
    out[~np.isfinite(out).all(axis=1)] = 0
    return out


def _prefetch(
    pairs: Iterable[Pair], encoder: DualEncoder, choice: Embed, pool: ThreadPoolExecutor, *, decode: bool
) -> Iterator[tuple[list[Pair], list[Prepared]]]:
    """Batches in order, with the next one being decoded while the caller runs the encoder on this one."""
    pairs = iter(pairs)
    waiting: collections.deque[tuple[list[Pair], list[Future[Prepared]]]] = collections.deque()
    while True:
        while len(waiting) < 2 and (batch := list(islice(pairs, choice.batch_size))):
            futures: list[Future[Prepared]] = []
            shared: dict[Path, Future[Prepared]] = {}  # captions of one file follow each other: decode it once
            for pair in batch:
                known = shared.get(pair.image) if isinstance(pair.image, Path) else None
                future = known or pool.submit(prepare, pair, encoder, choice, decode)
                if isinstance(pair.image, Path):
                    shared[pair.image] = future
                futures.append(future)
            waiting.append((batch, futures))
        if not waiting:
            return
        batch, futures = waiting.popleft()
        yield batch, [future.result() for future in futures]


def prepare(pair: Pair, encoder: DualEncoder, choice: Embed, decode: bool) -> Prepared:
    """Decode one picture and take its facts. Never raises for bad data: the problem goes into the facts."""
    if pair.image is None or not decode:
        return Prepared(None, {})
    facts: dict[str, Any] = {}
    try:
        data = pair.image if isinstance(pair.image, bytes) else read_image(pair.image)
        facts["image_hash"] = content_hash(data)
        decoded = decode_image(data, max_pixels=choice.max_pixels)
    except BadImage as error:
        return Prepared(None, facts | {"problem": error.code, "problem_detail": str(error)[:300]})
    facts |= {
        "width": decoded.width,
        "height": decoded.height,
        "image_format": decoded.format,
        "image_frames": decoded.frames,
        "thumbnail": _thumbnail(decoded.image, choice.thumbnail),
    }
    std, entropy, edges, phash = image_facts(decoded.image)
    facts |= {"image_std": std, "image_entropy": entropy, "image_edges": edges, "image_phash": phash}
    return Prepared(encoder.preprocess(decoded.image), facts)


def _row(pair: Pair, ready: Prepared) -> dict[str, Any]:
    facts = dict(ready.facts)
    problem = pair.problem or facts.pop("problem", None)
    detail = pair.detail or facts.pop("problem_detail", None)
    uid = pair.columns.get("uid")
    return facts | {
        "key": pair.key,
        "uid": str(uid) if uid else pair_uid(facts.get("image_hash"), pair.text),
        "text": pair.text,
        "columns": json.dumps(dict(pair.columns), ensure_ascii=False, sort_keys=True, default=str),
        "problem": problem,
        "problem_detail": detail,
    }


def _thumbnail(image: Image.Image, side: int) -> bytes:
    small = image.copy() if max(image.size) <= side else image.resize(_fit(image.size, side), Image.Resampling.BILINEAR,
                                                                      reducing_gap=2.0)  # fmt: skip
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=75)
    return buffer.getvalue()


def _fit(size: tuple[int, int], side: int) -> tuple[int, int]:
    scale = side / max(size)
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def _encode_images(prepared: list[Prepared], encoder: DualEncoder) -> np.ndarray:
    """Features (b, d); rows of zeros where there is no picture. Each distinct picture is encoded once."""
    import torch  # seconds, and the caller has loaded it with the encoder

    out = np.zeros((len(prepared), encoder.image_dim), np.float32)
    slots: dict[int, int] = {}
    for ready in prepared:
        if ready.pixels is not None:
            slots.setdefault(id(ready), len(slots))
    if not slots:
        return out
    distinct = {id(ready): ready.pixels for ready in prepared if ready.pixels is not None}
    features = encoder.image(torch.stack([distinct[i] for i in slots])).float().cpu().numpy()
    for row, ready in enumerate(prepared):
        if ready.pixels is not None:
            out[row] = features[slots[id(ready)]]
    return out


def _encode_texts(batch: list[Pair], encoder: DualEncoder) -> np.ndarray:
    """Features (b, e); rows of zeros where there is no text."""
    out = np.zeros((len(batch), encoder.text_dim), np.float32)
    present = [row for row, pair in enumerate(batch) if pair.text and pair.text.strip()]
    if present:
        tokens = encoder.tokenize([batch[row].text or "" for row in present])
        out[present] = encoder.text(tokens).float().cpu().numpy()
    return out


def warn_of_keys(run: Run) -> list[str]:
    """One line if several pairs carry one key, else none. Keys are compared by 64-bit hashes: no name is held."""
    hashes = [np.zeros(0, np.uint64)]
    for index in parts(run):
        for chunk in pq.read_table(pairs_path(run, index), columns=["key"]).column("key").chunks:
            hashes.append(
                np.array([xxhash.xxh3_64_intdigest((key or "").encode()) for key in chunk.to_pylist()], np.uint64)
            )
    counts = np.unique(np.concatenate(hashes), return_counts=True)[1]
    shared = int(counts[counts > 1].sum())
    more = "labels, `explain` and joins by key meet all of them; `id_col` names another column"
    return [f"warning: {shared:,} pairs share their key with another one: {more}"] if shared else []
