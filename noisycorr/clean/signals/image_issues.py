"""Pictures that can teach nothing: missing, unreadable, tiny, stretched, blank, almost blank.

Opinions on the facts that the embed stage stored (`pairs.PAIRS`); no picture is opened here.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from noisycorr.data.readers.facts import image_facts, perceptual_hash

__all__ = ["IMAGE_ISSUES", "ImageLimits", "image_facts", "image_issues", "perceptual_hash"]

# Code -> what it says, worst first: a row with several issues carries the first.
IMAGE_ISSUES: dict[str, str] = {
    "missing": "no image came with this text, or its file is not there",
    "unreadable": "the image could not be decoded",
    "blank": "the image shows one even colour",
    "tiny": "the image is too small to show anything",
    "extreme_aspect": "the image is far longer than wide, or wider than long",
    "low_information": "the image is almost empty",
}


@dataclass(frozen=True, kw_only=True)
class ImageLimits:
    """What counts as an image issue. The docstring of `image_issues` has counts on real sets.

    Attributes:
        min_side: Images whose shorter side has fewer pixels are `tiny`.
        max_aspect: Images whose longer side is more than this many times the shorter one are `extreme_aspect`.
        blank_std: Images whose grey values (0 to 255) have a smaller standard deviation are `blank`.
        min_entropy: Images whose grey histogram has fewer bits are `low_information`, if they have few edges as well.
        min_edges: Images whose neighbouring grey values differ less on average have few edges.

    Raises:
        ValueError: If a limit is negative or `max_aspect` < 1.
    """

    min_side: int = 32
    max_aspect: float = 5.0
    blank_std: float = 1.0
    min_entropy: float = 0.3
    min_edges: float = 0.3

    def __post_init__(self) -> None:
        for name, least in (("min_side", 0), ("max_aspect", 1), ("blank_std", 0), ("min_entropy", 0), ("min_edges", 0)):
            if not getattr(self, name) >= least:
                raise ValueError(f"{name} is {getattr(self, name)}, expected at least {least}")


def image_issues(
    pairs: pa.Table, limits: ImageLimits, *, present: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Judge every picture of a table of facts.

    Animated pictures are no issue: their first frame was judged; see the column `image_frames`.

    Args:
        pairs: Columns `problem`, `image_hash`, `width`, `height`, `image_std`, `image_entropy` and `image_edges` of
            `PAIRS`. A fact that is null is not held against a picture that has a size.
        limits: Where an issue begins.
        present: bool (n,): rows whose image is known though no picture came, as with precomputed embeddings; nothing
            is held against them.

    Returns:
        image_score float32 (n,) in [0, 1], lower = worse, below 0.5 exactly for issues: half the distance to the
        nearest limit and 1 from twice the limit on, 0 for no picture. And the code of `IMAGE_ISSUES`, an object array
        (n,) of str or None.

    Measured with the defaults: of 6,631 drawings of openclipart 98 are blank (nearly all plain white), 44 tiny
    and 24 show a speck on white; of 24,000 fashion photos 1 is (pale earrings); of 4,041 Caltech and
    101 COCO photos none.
    """
    n = pairs.num_rows
    width, height, std, entropy, edges = (
        _numbers(pairs[name]) for name in ("width", "height", "image_std", "image_entropy", "image_edges")
    )
    short, long = np.minimum(width, height), np.maximum(width, height)
    sized = short >= 1
    bytes_came = pc.is_valid(pairs["image_hash"]).to_numpy()
    faulty = pc.is_in(pairs["problem"], pa.array(["image_unreadable", "image_too_large"])).to_numpy()
    known = sized if present is None else sized | np.asarray(present, bool)
    absent = ~known & ~bytes_came & ~faulty
    quality = {
        "missing": np.where(absent, 0.0, 1.0),
        "unreadable": np.where(~known & ~absent | faulty, 0.0, 1.0),
        "blank": _quality(std, limits.blank_std),
        "tiny": _quality(short, limits.min_side),
        "extreme_aspect": _quality(limits.max_aspect * short, long),
        "low_information": np.fmax(_quality(entropy, limits.min_entropy), _quality(edges, limits.min_edges)),
    }
    code, score = np.full(n, None, object), np.ones(n)
    for name in reversed(IMAGE_ISSUES):
        value = np.where(np.isnan(quality[name]), 1.0, quality[name])
        code[value < 0.5] = name
        score = np.minimum(score, value)
    return score.astype(np.float32), code


def _quality(value: np.ndarray, limit: np.ndarray | float) -> np.ndarray:
    """0.5 at the limit, 1 at twice the limit and above; 1 where the limit is 0, NaN where the value is unknown."""
    limits = np.broadcast_to(np.asarray(limit, np.float64), value.shape)
    ratio = np.divide(value, 2 * limits, out=np.where(np.isnan(value), np.nan, 1.0), where=limits > 0)
    return np.clip(ratio, 0, 1)


def _numbers(column: pa.ChunkedArray) -> np.ndarray:
    """float64 (n,), NaN for null."""
    return np.asarray(pc.fill_null(column.cast(pa.float64()), float("nan")).to_numpy(), np.float64)
