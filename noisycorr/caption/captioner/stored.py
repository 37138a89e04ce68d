"""A trained captioner: the network and all it needs to write, in one folder of safetensors and JSON.

captioner.json          how to build it, the encoder of its pictures, what it was found to write best with
captioner.safetensors   weights
levels.json             edges, counts, and what the scores were of; not without levels
pieces.json             vocabulary; or language/ with config and vocabulary of a language model
aligner.safetensors     scorer of written texts; not where it has none
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from safetensors.torch import load_file, save

from noisycorr.caption.captioner.align import Aligner
from noisycorr.caption.captioner.choice import Decode, Design
from noisycorr.caption.captioner.decode import Next, Written, write
from noisycorr.caption.captioner.decoder import CrossDecoder
from noisycorr.caption.captioner.levels import Levels
from noisycorr.caption.captioner.network import CaptionNetwork
from noisycorr.caption.captioner.tower import make_tower
from noisycorr.caption.captioner.words import Pieces, Words
from noisycorr.models.encoders import load_encoder
from noisycorr.models.training.batches import stream_seed
from noisycorr.runtime import dist
from noisycorr.runtime.errors import UsageError
from noisycorr.runtime.folder import atomic_path, read_json, write_json

ROWS = 256  # pictures that are written for at once
PIECE = 1 << 24  # bytes of a file that are read at once
FILES = ("captioner.json", "captioner.safetensors", "levels.json", "pieces.json", "aligner.safetensors")
DTYPES = {"fp32": torch.float32, "bf16": torch.float32, "fp64": torch.float64}


@dataclass(frozen=True, slots=True)
class Texts:
    """What was written: n texts, their log-likelihood in nats, whether each came to its end, and how many pieces."""

    texts: list[str]
    log_prob: Float[np.ndarray, " n"]
    ended: np.ndarray
    pieces: Int[np.ndarray, " n"]


@dataclass(kw_only=True)
class Trained:
    """A captioner that can write.

    Attributes:
        network: On its device.
        words: Vocabulary.
        design: What it is made of.
        levels: Edges; None without levels.
        aligner: Scores written texts; None where the encoder of texts is not known.
        encoder: Name of the encoder of its pictures, with its weights.
        precision: Of the training.
        level: The one to write with, found on validation pairs; None without levels.
        decode: How to write, found on validation pairs.
        spread: Standard deviation of the alignment of what it writes for validation pictures; None where there is no
            scorer, and then it writes one text each.
        clip_model: How `load_encoder` finds the encoder of its pictures; for tokens and pixels.
        clip_precision: Numbers of matrix products of that encoder, as its pictures were embedded with.
        facts: What else is worth knowing; JSON.
    """

    network: CaptionNetwork
    words: Words
    design: Design
    levels: Levels | None
    encoder: str
    precision: str = "fp32"
    aligner: Aligner | None = None
    level: int | None = None
    decode: Decode = dataclasses.field(default_factory=Decode)
    spread: float | None = None
    clip_model: str = ""
    clip_precision: str = "fp32"
    facts: dict[str, Any] = dataclasses.field(default_factory=dict)

    def write(self, image: Any, level: Int[np.ndarray, " n"] | int | None = None,
              decode: Decode | None = None, *, seed: int = 0, names: Sequence[str | int] | None = None,
              cached: bool = True) -> Texts:  # fmt: skip
        """Write one text for each picture.

        Args:
            image: Stored vectors of the encoder that it was trained with, (n, f), or what it reads in their place:
                tokens (n, cells, f), or pixels for a tuned tower; rows of zeros get an empty text.
            level: Of each picture, or of all; None = the one found on validation pairs.
            decode: How; None = what was found on validation pairs.
            seed: Of the nucleus.
            names: Of the pictures, such as keys: what the nucleus draws for one depends on its name and the seed alone.
            cached: Keep keys and values between words.

        Raises:
            UsageError: If the vectors have another width, or a level cannot be asked for.
        """
        decode, n = decode or self.decode, len(image)
        self.check(None, decode)
        self._check(image)
        levels = self._levels(level, n)
        names = list(range(n)) if names is None else names
        texts, log_prob, ended, pieces = [""] * n, np.zeros(n), np.zeros(n, bool), np.zeros(n, np.int64)
        self.network.eval()
        size = ROWS if image.ndim < 4 else ROWS // 8
        for start in range(0, n, size):
            part = np.asarray(image[np.arange(start, min(start + size, n))])
            there = np.flatnonzero(part.any(axis=tuple(range(1, part.ndim))))
            if not len(there):
                continue
            some: list[int] = (start + there).tolist()
            written = self._write(part[there], levels[some], decode, seed, [names[row] for row in some], cached)
            for row, tokens in zip(some, written.tokens):
                texts[row], pieces[row] = self.words.decode(tokens), len(tokens)
            log_prob[some], ended[some] = written.log_prob.cpu().numpy(), written.ended.cpu().numpy()
        return Texts(texts, log_prob, ended, pieces)

    def _write(self, image: np.ndarray, level: np.ndarray, decode: Decode, seed: int, names: Sequence[str | int],
               cached: bool) -> Written:  # fmt: skip
        most = min(decode.most_tokens or self.design.longest, self.design.longest)
        device, dtype = self.network.image_mean.device, self.network.image_mean.dtype
        x, z = torch.from_numpy(np.asarray(image)).to(device, dtype), torch.from_numpy(level).to(device)
        noise = None
        if decode.search == "nucleus":
            noise = torch.from_numpy(np.stack([
                np.random.default_rng(stream_seed(seed, "write", name)).random(most + 1) for name in names
            ])).to(device)  # fmt: skip
        with torch.inference_mode():
            memories = [self.network.memory(x, z)]
            if decode.guidance:
                memories.append(self._without(x, z, decode))
            following = Next(self.network.decoder, memories, decode.guidance, cached=cached)
            return write(following, len(x), self.words, decode, most=most, device=device, noise=noise)

    def check(self, level: int | None, decode: Decode) -> None:
        """Refuse what it cannot write at or by.

        Raises:
            UsageError: If the level cannot be asked for, or guidance has nothing to lead away from.
        """
        self._levels(level, 1)
        if decode.guidance and decode.against == "image" and not self.design.image_dropout:
            raise UsageError("guidance by pictures needs a captioner trained with `image_dropout` above 0.")
        if decode.guidance and decode.against == "level" and self.levels is None:
            raise UsageError("guidance by levels needs a captioner with levels.")

    def _without(self, x: torch.Tensor, z: torch.Tensor, decode: Decode) -> torch.Tensor:
        """What guidance leads away from."""
        if decode.against == "image" or self.levels is None:
            return self.network.memory(x, z, torch.ones(len(x), dtype=torch.bool, device=x.device))
        return self.network.memory(x, torch.full_like(z, self.levels.trained()[0]))

    def _check(self, image: np.ndarray) -> None:
        width = len(self.network.image_mean)
        if self.network.tower is not None and image.ndim == 4:
            return
        if image.shape[-1] != width or image.ndim != (2 if self.network.cells == 1 else 3):
            raise UsageError(
                f"the captioner reads image vectors of width {width} by {self.encoder}, but these have the shape "
                f"{tuple(image.shape[1:])}: embed the pictures with that encoder."
            )

    def _levels(self, level: np.ndarray | int | None, n: int) -> np.ndarray:
        if self.levels is None:
            if level is not None:
                raise UsageError("this captioner was trained without levels, so none can be asked for.")
            return np.zeros(n, np.int64)
        asked = self.level if level is None else level
        out = np.broadcast_to(np.asarray(asked, np.int64), (n,)).copy()
        self.levels.check(out)
        return out

    def save_pretrained(self, folder: Path) -> None:
        """Write the folder."""
        folder.mkdir(parents=True, exist_ok=True)
        self.words.save(folder)
        if self.design.decoder != "scratch":
            from noisycorr.caption.captioner.language import save_language

            save_language(self.network.decoder, folder)
        with atomic_path(folder / "captioner.safetensors") as path:
            path.write_bytes(save(own_weights(self.network)))
        if self.levels is not None:
            self.levels.save(folder / "levels.json")
        if self.aligner is not None:
            self.aligner.save(folder / "aligner.safetensors")
        names = ("encoder", "precision", "level", "spread", "clip_model", "clip_precision", "facts")
        body = {name: getattr(self, name) for name in names}
        body |= {"design": dataclasses.asdict(self.design), "decode": dataclasses.asdict(self.decode)}
        body |= {"image_dim": len(self.network.image_mean), "cells": self.network.cells}
        write_json(folder / "captioner.json", body)  # last: it says that the folder is whole

    @staticmethod
    def from_pretrained(folder: Path | str, device: torch.device | None = None) -> Trained:
        """Read the folder.

        Raises:
            UsageError: If it holds no finished captioner.
        """
        return load_captioner(folder, device)


def captioner_identity(folder: Path) -> str:
    """SHA-256 (first 16 hex digits) of what the files of a captioner hold, whatever their times and wherever they are.

    Large files are read piece by piece. A folder without a captioner has an identity, too.
    """
    whole = hashlib.sha256()
    paths = [*(folder / name for name in FILES), *(folder / "language").rglob("*")]
    for path in sorted(path for path in paths if path.is_file()):
        own = hashlib.sha256()
        with path.open("rb") as file:
            while piece := file.read(PIECE):
                own.update(piece)
        whole.update(f"{path.relative_to(folder).as_posix()} {own.hexdigest()}\n".encode())
    return whole.hexdigest()[:16]


def own_weights(network: CaptionNetwork) -> dict[str, torch.Tensor]:
    """All weights, shared ones once."""
    seen: set[int] = set()
    out = {}
    for name, value in network.state_dict().items():
        if value.data_ptr() not in seen or not value.numel():
            seen.add(value.data_ptr())
            out[name] = value.detach().cpu().contiguous().clone()
    return out


def build(design: Design, words: Words, decoder: Any, *, image_dim: int, cells: int, levels: Levels | None,
          precision: str, tower: Any = None) -> CaptionNetwork:  # fmt: skip
    """A network; random weights come from the generator of torch."""
    if decoder is None:
        decoder = CrossDecoder(words.size, width=design.width, layers=design.layers, heads=design.attention_heads,
                               longest=design.longest + 2, dropout=design.dropout,
                               norm_first=design.norm_first)  # fmt: skip
    rows = 0 if levels is None else levels.count + 1
    network = CaptionNetwork(decoder, image_dim=image_dim, cells=cells, prefix_tokens=design.prefix_tokens, levels=rows,
                             gated=levels is not None and levels.gated, tower=tower)  # fmt: skip
    return network.to(DTYPES[precision])


def load_captioner(folder: Path | str, device: torch.device | None = None) -> Trained:
    """Read what `noisycorr caption train` wrote.

    Args:
        folder: Of the model.
        device: Where it shall live; None = that of this process.

    Raises:
        UsageError: If it holds no finished captioner.
    """
    folder = Path(folder)
    if not (folder / "captioner.json").is_file():
        raise UsageError(f"{folder} holds no finished captioner: run `noisycorr caption train` to its end first.")
    body = read_json(folder / "captioner.json")
    design = Design(**body["design"])
    levels = Levels.load(folder / "levels.json") if (folder / "levels.json").is_file() else None
    decoder: Any = None
    words: Words
    if design.decoder == "scratch":
        words = Pieces.load(folder)
    else:
        from noisycorr.caption.captioner.language import rebuild_language

        decoder, words = rebuild_language(folder, design)
    tower, clip_precision = None, body.get("clip_precision", "fp32")  # captioners of version 0.1.0 do not say it
    if design.tower == "tuned":
        encoder = load_encoder(body["clip_model"], device=device or dist.device(), precision=clip_precision)
        tower = make_tower(encoder, design.image_grid, tuned=True)
    network = build(design, words, decoder, image_dim=body["image_dim"], cells=body["cells"], levels=levels,
                    precision=body["precision"], tower=tower)  # fmt: skip
    loaded = network.load_state_dict(load_file(folder / "captioner.safetensors"), strict=False)
    if loaded.unexpected_keys or set(loaded.missing_keys) - (set(network.state_dict()) - set(own_weights(network))):
        raise UsageError(f"{folder} holds weights that do not fit its captioner.json: train it again.")
    aligner = folder / "aligner.safetensors"
    return Trained(
        network=network.to(device or dist.device()).eval(), words=words, design=design, levels=levels,
        encoder=body["encoder"], precision=body["precision"],
        aligner=Aligner.load(aligner) if aligner.is_file() else None, level=body["level"],
        decode=Decode(**body["decode"]), spread=body.get("spread"), clip_model=body["clip_model"],
        clip_precision=clip_precision, facts=body["facts"],
    )  # fmt: skip
