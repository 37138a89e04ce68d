"""How well a text fits a picture, for texts that were just written: heads learned on the training pairs, and kept.

Encoders with a joint space need none: there it is the cosine. Else these are the heads of
`noisycorr.clean.signals.crossfit` learned once on all training pairs, weighted by what is thought of them; written
texts and validation pairs were not among those.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float
from safetensors.numpy import load_file, save

from noisycorr.clean.signals.crossfit import REGS, WIDTH, fold_moments, principal, solve_heads
from noisycorr.runtime.errors import UsageError
from noisycorr.runtime.folder import atomic_path
from noisycorr.stats.unit import unit

NAMES = ("image_mean", "image", "text_mean", "text")
REMEMBERED = 50_000  # texts whose features are kept
Encode = Callable[[list[str]], np.ndarray]  # texts to features (k, e)
Align = Callable[[np.ndarray, list[str]], np.ndarray]  # rows of pictures, their texts -> (k,) higher = better aligned


@dataclass(frozen=True, slots=True, kw_only=True)
class Aligner:
    """Affine maps of both sides into one space; None for an encoder whose sides share one already."""

    image_mean: np.ndarray | None = None
    image: np.ndarray | None = None
    text_mean: np.ndarray | None = None
    text: np.ndarray | None = None

    def images(self, features: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "n r"]:
        """Unit rows; a zero row (no image) stays zero."""
        return _moved(features, self.image_mean, self.image)

    def texts(self, features: Float[np.ndarray, "n e"]) -> Float[np.ndarray, "n r"]:
        """Unit rows; a zero row (no text) stays zero."""
        return _moved(features, self.text_mean, self.text)

    def __call__(self, image: Float[np.ndarray, "n d"], text: Float[np.ndarray, "n e"]) -> Float[np.ndarray, " n"]:
        """Cosine of each pair, higher = better aligned; 0 where a side is missing."""
        return np.asarray((self.images(image) * self.texts(text)).sum(1))

    def save(self, path: Path) -> None:
        """As safetensors."""
        body = {name: np.ascontiguousarray(getattr(self, name), np.float32) for name in NAMES
                if getattr(self, name) is not None}  # fmt: skip
        with atomic_path(path) as temporary:
            temporary.write_bytes(save(body))

    @staticmethod
    def load(path: Path) -> Aligner:
        """What `save` wrote."""
        return Aligner(**load_file(path))


def fit_aligner(image: Float[np.ndarray, "n d"], text: Float[np.ndarray, "n e"], weight: Float[np.ndarray, " n"],
                *, seed: int = 0) -> Aligner:  # fmt: skip
    """Learn the maps from pairs.

    Args:
        image: Features; zero rows are left out.
        text: Features.
        weight: Of each pair, >= 0.
        seed: Of the halves by which the shrinkage is chosen.

    Raises:
        UsageError: If there are too few pairs.
    """
    use = np.asarray(image.any(1) & text.any(1) & (weight > 0))
    if use.sum() < 8:
        raise UsageError(f"{int(use.sum())} pairs do not suffice to learn what fits; at least 8 are needed.")
    maps = [principal([side[use]], WIDTH) for side in (image, text)]
    x, t = ((np.asarray(side[use], np.float32) - mean) @ keep for side, (mean, keep) in zip((image, text), maps))
    x, t, w = x.astype(np.float32), t.astype(np.float32), weight[use].astype(np.float32)
    half = np.random.default_rng([seed, 7]).permutation(len(x)) % 2
    sums = fold_moments(x, t, w, half)
    best = (-np.inf, REGS[0])
    for reg in REGS:
        gap = 0.0
        for part in (0, 1):
            heads = solve_heads(sums[1 - part], reg)
            a = unit((x[half == part] - heads.image_mean) @ heads.image)
            b = unit((t[half == part] - heads.text_mean) @ heads.text)
            given, other = (a * b).sum(1), (a * np.roll(b, 1, axis=0)).sum(1)
            gap += (given.mean() - other.mean()) / np.sqrt(given.var() + other.var() + 1e-12)
        best = max(best, (gap, reg))
    heads = solve_heads(fold_moments(x, t, w, np.zeros(len(x), np.int64))[0], best[1])
    (image_mean, image_keep), (text_mean, text_keep) = maps
    # (x - m) K - h) H = (x - m - K^+ h) K H with K of full column rank: both steps in one map.
    return Aligner(
        image_mean=image_mean + np.linalg.lstsq(image_keep.T, heads.image_mean, rcond=None)[0],
        image=image_keep @ heads.image,
        text_mean=text_mean + np.linalg.lstsq(text_keep.T, heads.text_mean, rcond=None)[0],
        text=text_keep @ heads.text,
    )


def _moved(features: np.ndarray, mean: np.ndarray | None, matrix: np.ndarray | None) -> np.ndarray:
    rows = np.asarray(features, np.float32)
    if mean is None or matrix is None:
        return unit(rows)
    if rows.shape[1] != len(mean):
        raise UsageError(f"features of width {rows.shape[1]} are to be scored, but the scorer takes {len(mean)}: "
                         "use the encoder that the captioner was trained with.")  # fmt: skip
    return unit((rows - mean) @ matrix * rows.any(1, keepdims=True))


def remember(encode: Encode) -> Encode:
    """The same, but each distinct text is encoded once while it is remembered, and an empty one gives zeros."""
    memory: dict[str, np.ndarray] = {}

    def known(texts: list[str]) -> np.ndarray:
        if len(memory) > REMEMBERED:
            memory.clear()
        new = [text for text in dict.fromkeys(texts) if text.strip() and text not in memory]
        if new:
            memory.update(zip(new, encode(new)))
        nothing = np.zeros_like(next(iter(memory.values()), np.zeros(1, np.float32)))
        return np.stack([memory.get(text, nothing) for text in texts])

    return known


def align_with(aligner: Aligner | None, image: Float[np.ndarray, "n d"], encode: Encode) -> Align:
    """A scorer of rows of these pictures and their texts; 0 for an empty text."""
    known = aligner or Aligner()

    def align(rows: np.ndarray, texts: list[str]) -> np.ndarray:
        said = np.array([bool(text.strip()) for text in texts], bool)
        if not said.any():
            return np.zeros(len(texts), np.float32)
        return np.where(said, known(image[rows], encode(texts)), 0)

    return align
