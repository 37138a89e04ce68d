"""Pictures and tokens of pairs by row: where each picture is, decoding ahead in workers, and towers to fine-tune."""

from __future__ import annotations

import collections
import dataclasses
import math
import multiprocessing
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from noisycorr.data.readers.images import BadImage, decode_image
from noisycorr.models.encoders.trainable import Trainable
from noisycorr.models.training.batches import stream_seed
from noisycorr.models.training.choice import Train
from noisycorr.models.training.heads import MakeHeads, Request
from noisycorr.models.training.tune_choice import Tune
from noisycorr.models.training.tuned import TunedNetwork
from noisycorr.runtime.errors import UsageError

HELD = 4  # batches kept for those who ask for the same pictures again: a twin's look, or the second pass over parts
RATIOS = (3 / 4, 4 / 3)  # of width and height of a crop


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageStore:
    """Where the encoded picture of each row is: a file of its own, or bytes in one large file.

    Attributes:
        files: Path of each row, or None.
        spool: The large file, or None.
        spans: int64 (n, 2): begin and length in it.
    """

    files: Sequence[Path | None]
    spool: Path | None = None
    spans: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.files)

    def read(self, row: int) -> bytes | Path:
        """The encoded picture."""
        path = self.files[row]
        if path is not None or self.spool is None or self.spans is None:
            return path if path is not None else b""
        begin, length = self.spans[row]
        with self.spool.open("rb") as file:
            file.seek(int(begin))
            return file.read(int(length))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pictures(Dataset):  # type: ignore[type-arg]
    """Pixels by row and epoch: decoded, cropped at random if there is an epoch, and preprocessed by the encoder.

    Attributes:
        image_store: Where they are.
        preprocess: The encoder's own.
        size: Height and width that it takes.
        aug_scale: Smallest share of the area that a crop keeps.
        seed: Of the crops, which are a function of seed, epoch and row alone.
    """

    image_store: ImageStore
    preprocess: Any
    size: tuple[int, int]
    aug_scale: float
    seed: int

    def __getitem__(self, place: tuple[int, int | None]) -> Tensor | str:
        """Pixels, or what is wrong with the picture."""
        row, epoch = place
        try:
            image = decode_image(self.image_store.read(row)).image
        except (BadImage, OSError) as error:
            return f"{type(error).__name__}: {error}"
        if epoch is not None and self.aug_scale < 1:
            rng = np.random.default_rng(stream_seed(self.seed, "crop", epoch, row))
            box = random_box(rng, image.size, self.aug_scale)
            image = image.resize(self.size[::-1], Image.Resampling.BICUBIC, box=box)
        pixels: Tensor = self.preprocess(image)
        return pixels


def stacked(found: Sequence[Tensor | str]) -> Tensor:
    """What `Pictures` gave for some rows, as one tensor.

    Raises:
        UsageError: If one of them is what is wrong with a picture.
    """
    if bad := [item for item in found if isinstance(item, str)]:
        raise UsageError(f"a picture cannot be read any more: {bad[0]}.")
    return torch.stack(found)  # type: ignore[arg-type]


def random_box(rng: np.random.Generator, size: tuple[int, int], scale: float) -> tuple[float, float, float, float]:
    """Left, top, right and bottom of a random part of a picture.

    Its share of the area is uniform in [scale, 1], its ratio of width and height log-uniform in [3/4, 4/3]; what does
    not fit into the picture is cut to it.

    Args:
        rng: Five numbers are drawn.
        size: Width and height.
        scale: In (0, 1].

    Source: the random resized crop of Inception (Szegedy et al., CVPR 2015), with the share that open_clip takes.
    """
    width, height = size
    area = width * height * rng.uniform(scale, 1)
    ratio = math.exp(rng.uniform(math.log(RATIOS[0]), math.log(RATIOS[1])))
    w, h = min(width, math.sqrt(area * ratio)), min(height, math.sqrt(area / ratio))
    left, top = rng.uniform(0, 1) * (width - w), rng.uniform(0, 1) * (height - h)
    return left, top, left + w, top + h


class PixelTowers:
    """Pictures for an image encoder that is fine-tuned.

    Args:
        pictures: Where they are, and what the encoder makes of them before it sees them.
        identity: JSON that says so.
        tune: Which part of it is trained, and how pictures are loaded.
        device: Where batches go.
        dtype: Of the pixels.
        keys: Names of the pairs, for messages.
    """

    chunk = 64

    def __init__(self, pictures: Pictures, identity: Mapping[str, Any], tune: Tune, *, device: torch.device,
                 dtype: torch.dtype, keys: Sequence[str]) -> None:  # fmt: skip
        self.pictures, self.tune, self.device, self.dtype, self.keys = pictures, tune, device, dtype, keys
        self.identity: Mapping[str, Any] = {**identity, **tune.settings()}
        self._coming: Iterator[Any] = iter(())
        self._promised: collections.Counter[tuple[int, int | None]] = collections.Counter()
        self._held: collections.deque[dict[tuple[int, int | None], Tensor | str]] = collections.deque(maxlen=HELD)

    def __len__(self) -> int:
        return len(self.pictures.image_store)

    def expect(self, requests: Iterable[Request]) -> None:
        """Decode these batches ahead, in order, in the workers."""
        places = [[(int(row), epoch) for row in rows] for rows, epoch in requests if len(rows)]
        self._held.clear()
        self._promised = collections.Counter(place for batch in places for place in batch)
        forks = "fork" in multiprocessing.get_all_start_methods()  # what holds the encoder cannot be sent, only forked
        workers = min(self.tune.workers, len(places)) if forks else 0
        loader = DataLoader(
            self.pictures, batch_sampler=places, collate_fn=list, num_workers=workers, generator=torch.Generator(),
            multiprocessing_context="fork" if workers else None,
        )  # type: ignore[arg-type,call-overload]  # fmt: skip
        self._coming = zip(places, loader)

    def image(self, rows: Tensor, epoch: int | None = None) -> Tensor:
        """Pixels (b, 3, h, w).

        Raises:
            RuntimeError: If a picture cannot be read any more, or a worker died.
        """
        places = [(int(row), epoch) for row in rows]
        if not places:
            return torch.zeros(0, 3, *self.pictures.size, device=self.device, dtype=self.dtype)
        found = self._find(places)
        for place in places:
            if isinstance(found[place], str):
                raise RuntimeError(
                    f"the picture of pair {self.keys[place[0]]!r} cannot be read any more: {found[place]}"
                )
        pixels = torch.stack([found[place] for place in places])  # type: ignore[misc]
        return pixels.to(self.device, self.dtype, non_blocking=True)

    def _find(self, places: list[tuple[int, int | None]]) -> dict[tuple[int, int | None], Tensor | str]:
        """From what is held, from what is coming, or else decoded at once."""
        found: dict[tuple[int, int | None], Tensor | str] = {}
        for batch in self._held:
            found |= {place: batch[place] for place in places if place in batch}
        while any(place not in found and self._promised[place] for place in places):
            batch = self._next()
            found |= {place: batch[place] for place in places if place in batch}
        return found | {place: self.pictures[place] for place in places if place not in found}

    def _next(self) -> dict[tuple[int, int | None], Tensor | str]:
        try:
            places, pixels = next(self._coming)
        except RuntimeError as error:
            if "worker" not in str(error):
                raise
            raise RuntimeError(
                "a process that decodes pictures died, perhaps for lack of memory: use fewer `workers`; the same "
                "command continues from the last checkpoint"
            ) from error
        self._promised.subtract(places)
        batch = dict(zip(places, pixels))
        self._held.append(batch)
        return batch


class PictureTowers(PixelTowers):
    """Pictures and tokens for an encoder that is fine-tuned.

    Args:
        trainable: The encoder.
        tune: Which part of it is trained, and how pictures are loaded.
        image_store: Where the pictures are.
        texts: n texts.
        seed: Of the crops.
        device: Where batches go.
        dtype: Of the pixels.
        keys: Names of the pairs, for messages.
    """

    def __init__(self, trainable: Trainable, tune: Tune, image_store: ImageStore, texts: Sequence[str | None], *,
                 seed: int, device: torch.device, dtype: torch.dtype, keys: Sequence[str]) -> None:  # fmt: skip
        encoder = trainable.encoder
        pictures = Pictures(image_store=image_store, preprocess=encoder.preprocess, size=trainable.size,
                            aug_scale=tune.aug_scale, seed=seed)  # fmt: skip
        super().__init__(pictures, {"encoder": encoder.name, "preprocessing": encoder.preprocessing}, tune,
                         device=device, dtype=dtype, keys=keys)  # fmt: skip
        self.trainable = trainable
        self._ids, self._lengths = map(torch.from_numpy, trainable.tokens([text or "" for text in texts]))
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")  # else each worker warns; they tokenize nothing

    def __len__(self) -> int:
        return len(self._ids)

    def network(self, choice: Train, heads: MakeHeads) -> TunedNetwork:
        """The encoder itself; its own temperature and width win over those of `choice`."""
        return TunedNetwork(self.trainable, self.tune, heads=heads(self.trainable.encoder.image_dim))

    def text(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Token ids (b, t) and their lengths (b,)."""
        return self._ids[rows].long().to(self.device), self._lengths[rows]
