"""Known noise for tests of cleaners: each recipe is a frozen choice that is called on texts and returns `Injected`.

    injected = RandomSwap(ratio=0.4, seed=1)(texts, image_ids=image_ids)

Two truths are told apart (law 4): `changed`, the text was replaced or cut; `wrong`, the text does not belong to its
image now. Swapping two equal titles changes two texts and makes none of them wrong. `ratio` always counts the units
that a recipe can act on, and exactly `round(ratio * units)` of them are acted on: rows with a text, images with a text,
or texts of two words and more for `PartialCaption`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np

from noisycorr.data.noise.swaps import (
    Units,
    choose,
    derange,
    grouped,
    has_text,
    image_numbers,
    match_near,
    normalise_text,
    swapped,
    text_ids,
)
from noisycorr.data.readers.given import load_array
from noisycorr.runtime.errors import UsageError
from noisycorr.runtime.folder import read_json, write_array, write_json

GENERIC = ("image", "photo", "picture", "untitled", "product image", "photo of the item", "stock photo", "no title")
Texts = Sequence[str | None]
Rows = np.ndarray | None  # an array with one row for each text


@dataclass(frozen=True, slots=True, kw_only=True)
class Injected:
    """What a recipe did, row by row.

    Attributes:
        source_row: int64 (n,): the row that each text was taken from; the row itself if it stayed or was only cut;
            -1 for a text that came from no row. A permutation of 0..n-1 for swaps, unless the image unit moved texts
            between images of unequal text counts. `original[i] == texts[j]` where `source_row[j] == i` undoes a swap.
        texts: The n texts as they stand now.
        changed: bool (n,): the text was replaced, cut or removed.
        wrong: bool (n,): the text does not belong to its image now.
    """

    source_row: np.ndarray
    texts: list[str | None]
    changed: np.ndarray
    wrong: np.ndarray


class Recipe(Protocol):
    """Any way of injecting noise. `image_ids`, `labels` and `features` are read only by recipes that need them."""

    def __call__(self, texts: Texts, *, image_ids: Rows = None, labels: Rows = None, features: Rows = None) -> Injected:
        """Inject into n texts."""


@dataclass(frozen=True, kw_only=True)
class RandomSwap:
    """Permute texts among randomly chosen rows or images; no chosen one keeps its own.

    Attributes:
        ratio: Share of the units to move, in [0, 1].
        unit: "caption" moves each text by itself (files of NCR, BiCro, PC2); "image" moves all texts of an image
            together to another image (files of RCL, DECL, L2RM), which is harder to notice. Images with equal numbers
            of texts are swapped with each other where possible; else texts are repeated or cut to fit.
        seed: Equal seeds give equal noise.

    Raises:
        ValueError: If `ratio` is outside [0, 1] or `unit` is neither word.
    """

    ratio: float = 0.2
    unit: Literal["caption", "image"] = "caption"
    seed: int = 0

    def __post_init__(self) -> None:
        _check(self.ratio, self.unit)

    def __call__(self, texts: Texts, *, image_ids: Rows = None, labels: Rows = None, features: Rows = None) -> Injected:
        """Swap. `image_ids` (n,) says which rows show one image; without it each row has its own image."""
        rng = np.random.default_rng(self.seed)
        units = Units.of(texts, image_ids, whole_images=self.unit == "image")
        chosen = choose(rng, units.count, self.ratio, least=2)
        partner = np.arange(units.count)
        for group in grouped(units.sizes, chosen):
            partner[group] = derange(rng, group, units)
        return apply_source_rows(texts, swapped(units, partner, len(texts)), image_ids)


@dataclass(frozen=True, kw_only=True)
class HardSwap:
    """Swap texts with ones that are easily mistaken for them.

    With `labels`, partners come from the same class. Classes of which only one unit was chosen are swapped among
    each other: neighbours in sorted order of label, so that "birds/duck" meets "birds/goose"; a last single one joins
    the class before it. Where all texts of a class are equal, they change and stay right.
    Without labels, partners are drawn among the nearest texts by `features`, never between equal texts as long as
    there are others. Sets of more than 2,048 chosen units are cut by random hyperplanes into parts of at most that
    size first, so time and memory stay bounded.

    Attributes:
        ratio: Share of the units to move, in [0, 1].
        unit: "caption" or "image", as in `RandomSwap`.
        seed: Equal seeds give equal noise.
        neighbors: How many nearest free units a partner is drawn from; 1 is hardest.

    Raises:
        ValueError: If `ratio` is outside [0, 1], `unit` is neither word or `neighbors` < 1.
    """

    ratio: float = 0.2
    unit: Literal["caption", "image"] = "caption"
    seed: int = 0
    neighbors: int = 10

    def __post_init__(self) -> None:
        _check(self.ratio, self.unit)
        if self.neighbors < 1:
            raise ValueError(f"neighbors is {self.neighbors}, expected at least 1")

    def __call__(self, texts: Texts, *, image_ids: Rows = None, labels: Rows = None, features: Rows = None) -> Injected:
        """Swap. Needs `labels` (n,) or text `features` (n, d); raises UsageError with neither."""
        rng = np.random.default_rng(self.seed)
        units = Units.of(texts, image_ids, whole_images=self.unit == "image")
        chosen = choose(rng, units.count, self.ratio, least=2)
        partner = np.arange(units.count)
        if labels is not None:
            for group in grouped(image_numbers(labels, len(texts))[units.first], chosen):
                partner[group] = derange(rng, group, units)
        elif features is not None:
            partner[chosen] = match_near(rng, units.mean(features)[chosen], chosen, units, self.neighbors)
        else:
            raise UsageError("A hard swap needs class labels or text features, and neither was given.")
        return apply_source_rows(texts, swapped(units, partner, len(texts)), image_ids)


@dataclass(frozen=True, kw_only=True)
class PartialCaption:
    """Keep a random run of words: the text says less, yet nothing wrong (changed, not wrong).

    Attributes:
        ratio: Share of the texts of two words and more, in [0, 1]. Words are what stands between white space.
        keep: Share of the words kept, in (0, 1); at least one is kept and at least one goes.
        seed: Equal seeds give equal noise.

    Raises:
        ValueError: If `ratio` is outside [0, 1] or `keep` outside (0, 1).
    """

    ratio: float = 0.2
    keep: float = 0.5
    seed: int = 0

    def __post_init__(self) -> None:
        _check(self.ratio)
        if not 0 < self.keep < 1:
            raise ValueError(f"keep is {self.keep}, expected between 0 and 1")

    def __call__(self, texts: Texts, *, image_ids: Rows = None, labels: Rows = None, features: Rows = None) -> Injected:
        """Cut. Reads the texts only."""
        rng = np.random.default_rng(self.seed)
        words = [(text or "").split() for text in texts]
        able = np.flatnonzero([len(row) > 1 for row in words])
        out, source = list(texts), np.arange(len(texts))
        rows = able[choose(rng, len(able), self.ratio, least=1)]
        for row in rows.tolist():
            count = min(max(round(self.keep * len(words[row])), 1), len(words[row]) - 1)
            start = int(rng.integers(len(words[row]) - count + 1))
            out[row] = " ".join(words[row][start : start + count])
        changed = _mask(rows, len(texts))
        return Injected(source_row=source, texts=out, changed=changed, wrong=np.zeros_like(changed))


@dataclass(frozen=True, kw_only=True)
class GenericCaption:
    """Put a phrase like "product image" in place of the text (changed and wrong: it does not name what is shown).

    Attributes:
        ratio: Share of the rows with a text, in [0, 1].
        seed: Equal seeds give equal noise.

    Raises:
        ValueError: If `ratio` is outside [0, 1].
    """

    ratio: float = 0.2
    seed: int = 0

    def __post_init__(self) -> None:
        _check(self.ratio)

    def __call__(self, texts: Texts, *, image_ids: Rows = None, labels: Rows = None, features: Rows = None) -> Injected:
        """Replace. Reads the texts only; a text that is such a phrase already gets another one."""
        rng = np.random.default_rng(self.seed)

        def phrase(text: str | None) -> str:
            phrases = [phrase for phrase in GENERIC if phrase != normalise_text(text)]
            return phrases[int(rng.integers(len(phrases)))]

        injected = _replaced(texts, self.ratio, rng, phrase)
        return replace(injected, wrong=injected.changed.copy())


@dataclass(frozen=True, kw_only=True)
class MissingText:
    """Empty the text (changed, not wrong: no claim is made, so none is false; such rows are an issue of their own).

    Attributes:
        ratio: Share of the rows with a text, in [0, 1].
        seed: Equal seeds give equal noise.

    Raises:
        ValueError: If `ratio` is outside [0, 1].
    """

    ratio: float = 0.2
    seed: int = 0

    def __post_init__(self) -> None:
        _check(self.ratio)

    def __call__(self, texts: Texts, *, image_ids: Rows = None, labels: Rows = None, features: Rows = None) -> Injected:
        """Empty. Reads the texts only."""
        return _replaced(texts, self.ratio, np.random.default_rng(self.seed), lambda text: "")


@dataclass(frozen=True, kw_only=True)
class NoiseFile:
    """Noise of a published noise-index file, so that results compare with tables that used it; see `from_noise_index`.

    Attributes:
        noise_file: A `.npy` file of integers.
    """

    noise_file: str

    def __call__(self, texts: Texts, *, image_ids: Rows = None, labels: Rows = None, features: Rows = None) -> Injected:
        """Move the texts as the file says. `image_ids` tell which texts are right on each other's rows."""
        return apply_source_rows(texts, from_noise_index(self.noise_file, len(texts)), image_ids)


def apply_source_rows(texts: Texts, source_row: np.ndarray, image_ids: Rows = None) -> Injected:
    """Move texts between rows.

    Args:
        texts: The n texts as they came.
        source_row: int64 (n,): row i gets the text of row `source_row[i]`.
        image_ids: (n,) rows that show one image; a text moved between them stays right.

    Returns:
        What changed. `wrong` is False where the new text is blank, or equal, when normalised, to any text that its
        image had before.
    """
    changed = source_row != np.arange(len(texts))
    image, meaning = image_numbers(image_ids, len(texts)), text_ids(texts) + 1  # 0 is blank
    claims = meaning.max(initial=0) + 1
    now = meaning[source_row]
    right = np.isin(image * claims + now, image * claims + meaning) | (now == 0)
    moved = [texts[row] for row in source_row.tolist()]
    return Injected(source_row=source_row, texts=moved, changed=changed, wrong=changed & ~right)


def from_noise_index(index: np.ndarray | str | Path, n_texts: int) -> np.ndarray:
    """Read noise as the noisy-correspondence papers publish it: entry i is the image that text i is shown with.

    Length n_texts is caption noise (NCR, BiCro, PC2; L2RM's files, too); each image must stand there equally often,
    five times for five consecutive texts per image. A shorter length is image noise (RCL, DECL): entry i is the image
    that the i-th block of n_texts / length consecutive texts is shown with.

    Args:
        index: The array or its `.npy` file. If `save_noise_index` wrote the file, its checksum must still hold.
        n_texts: Number of rows of the data.

    Returns:
        int64 (n_texts,): the row that each text now comes from. Texts that stay with their image keep their row.

    Raises:
        UsageError: If the file is no plain integer array, the length does not fit or images are missing.
    """
    name = "The noise index" if isinstance(index, np.ndarray) else f"The noise index {index}"
    shown = _load_index(Path(index), name) if not isinstance(index, np.ndarray) else index
    if shown.ndim != 1 or shown.dtype.kind not in "iu" or not 0 < len(shown) <= n_texts or n_texts % len(shown):
        raise UsageError(
            f"{name} has shape {shown.shape} and type {shown.dtype}, expected integers of shape ({n_texts},) or, "
            f"for images of several texts each, a divisor of {n_texts}; use the file made for this data set."
        )
    shown = np.repeat(shown.astype(np.int64), n_texts // len(shown))
    counts = np.bincount(shown) if shown.min() >= 0 and shown.max() < n_texts else np.zeros(1, np.int64)
    if counts.min() != counts.max() or not counts[0]:
        raise UsageError(
            f"{name} is no permutation: its values lie in {shown.min()}..{shown.max()} and do not all stand there "
            "equally often; use a file that gives each image the same number of texts."
        )
    own = np.arange(n_texts) // counts[0]
    source = np.where(shown == own, np.arange(n_texts), -1)
    gone = np.flatnonzero(source < 0)  # slots whose text left, in order of image; fill each image's from those arriving
    source[gone] = gone[np.argsort(shown[gone], kind="stable")]
    return source


def save_noise_index(path: Path, injected: Injected, recipe: Recipe, *, texts_per_image: int = 1) -> None:
    """Write a swap in the layout of `from_noise_index` (length n), and beside it a `.json` that says how it was made.

    Args:
        path: Ends in `.npy`.
        injected: A swap whose `source_row` is a permutation.
        recipe: The frozen dataclass that made it.
        texts_per_image: Consecutive rows that share an image; 5 writes what loaders of Flickr30K and COCO expect.

    Raises:
        UsageError: If texts were cut, replaced or lost, which this format cannot hold, or rows do not divide.
    """
    source, n = injected.source_row, len(injected.source_row)
    moved = np.array_equal(source != np.arange(n), injected.changed)
    if not moved or not np.array_equal(np.sort(source), np.arange(n)) or n % texts_per_image:
        raise UsageError(
            f"{type(recipe).__name__} over {n} rows of {texts_per_image} per image is no permutation of texts, and a "
            "noise index holds nothing else; keep the truth_* columns instead."
        )
    index = np.empty(n, np.int64)
    index[source] = np.arange(n) // texts_per_image
    write_array(path, index)
    facts: dict[str, Any] = {"recipe": type(recipe).__name__, **vars(recipe), "sha256": _digest(index)}
    facts |= {"n_texts": n, "texts_per_image": texts_per_image}
    facts |= {"changed": int(injected.changed.sum()), "wrong": int(injected.wrong.sum())}
    write_json(path.with_suffix(".json"), facts)


def _load_index(path: Path, name: str) -> np.ndarray:
    notes = path.with_suffix(".json")
    try:
        array = load_array(path)
        facts = read_json(notes) if notes.exists() else None
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f"{name} cannot be read ({error}); expected a .npy file of plain integers.") from error
    expected = facts.get("sha256") if isinstance(facts, dict) else None
    if expected is not None and expected != _digest(array):
        raise UsageError(f"{name} does not match the checksum in {notes.name}; one of them was changed, restore both.")
    return array


def _digest(array: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(array, np.int64).tobytes()).hexdigest()


def _replaced(texts: Texts, ratio: float, rng: np.random.Generator, new: Callable[[str | None], str]) -> Injected:
    """Texts that come from no row in place of a share of the texts; none of them wrong."""
    out, source = list(texts), np.arange(len(texts))
    able = np.flatnonzero(has_text(texts))
    rows = able[choose(rng, len(able), ratio, least=1)]
    for row in rows.tolist():
        out[row] = new(texts[row])
    source[rows] = -1
    changed = _mask(rows, len(texts))
    return Injected(source_row=source, texts=out, changed=changed, wrong=np.zeros_like(changed))


def _mask(rows: np.ndarray, n: int) -> np.ndarray:
    out = np.zeros(n, bool)
    out[rows] = True
    return out


def _check(ratio: float, unit: str = "caption") -> None:
    if not 0 <= ratio <= 1:
        raise ValueError(f"ratio is {ratio}, expected 0 to 1")
    if unit not in ("caption", "image"):
        raise ValueError(f'unit is {unit!r}, expected "caption" or "image"')
