"""Write a copy of a source with known noise, so that a cleaner can be judged: `noisycorr inject`.

Two passes: the first reads texts, keys and identities of images, and decides what moves where; the second streams the
images through and writes one parquet file for each piece of the source. What was done stands in columns that only
evaluation may read (law 4): `truth_changed`, `truth_wrong`, `truth_text` (as it was) and `truth_source_key` (the pair
that the text came from; null where it came from none).

Source: the noise index files of NCR, DECL and their successors, which hold row numbers only. Differs: the text moves
in a table that any tool reads, and a text that moved but is right all the same does not count as wrong.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from noisycorr.data.noise.recipes import (
    GenericCaption,
    HardSwap,
    Injected,
    MissingText,
    NoiseFile,
    PartialCaption,
    RandomSwap,
    Recipe,
    save_noise_index,
)
from noisycorr.data.pairs import Pair, content_hash
from noisycorr.data.readers import Reader
from noisycorr.data.readers.images import BadImage, read_image
from noisycorr.data.writers.shards import Batches
from noisycorr.data.writers.values import final_type, json_type, merge_types
from noisycorr.runtime import console
from noisycorr.runtime.errors import UsageError, listed
from noisycorr.runtime.folder import SOURCE, atomic_path, fingerprint, read_json, write_json
from noisycorr.runtime.lock import NAME as LOCK

NOISES = ("random_swap", "hard_swap", "partial_caption", "generic_caption", "missing_text", "noise_file")
SWAPS = ("random_swap", "hard_swap")
TRUTH = {
    "truth_changed": pa.bool_(),
    "truth_wrong": pa.bool_(),
    "truth_text": pa.string(),
    "truth_source_key": pa.string(),
}
OWN = ("image", "key", "text")
RECORD = "noise.json"
_LAYOUT = 1  # raise it when the same settings write other files
_TEXTS = 256  # texts encoded at once


@dataclass(frozen=True, kw_only=True)
class Inject:
    """Which noise is injected, and how much.

    Attributes:
        noise: random_swap, hard_swap (with similar texts), partial_caption (half of the words are removed),
            generic_caption ("product image"), missing_text, or noise_file (a published noise index).
        noise_ratio: Share of the texts (or images) to change, in [0, 1]; not used with noise_file.
        unit: For swaps: caption moves each text alone, image moves all texts of an image together.
        label_col: For hard_swap: swap among pairs with equal values of this column; by default among the nearest texts
            by the embedded sentence encoder.
        noise_file: A .npy file of row numbers as NCR, DECL and their successors publish, for `noise` noise_file.
        neighbors: Number of nearest texts that hard_swap draws from; 1 is hardest.
        seed: Random seed; equal seeds give equal noise.

    Raises:
        UsageError: If a value is out of range, or has no meaning for this noise.
    """

    noise: str = "random_swap"
    noise_ratio: float = 0.2
    unit: str = "caption"
    label_col: str | None = None
    noise_file: str | None = None
    neighbors: int = 10
    seed: int = 0

    def __post_init__(self) -> None:
        if self.noise not in NOISES:
            raise UsageError(f"`noise` is {self.noise!r}, expected one of {', '.join(NOISES)}.")
        if not 0 <= self.noise_ratio <= 1:
            raise UsageError(f"`noise_ratio` is {self.noise_ratio}, expected a number from 0 to 1.")
        if self.unit not in ("caption", "image"):
            raise UsageError(f"`unit` is {self.unit!r}, expected caption or image.")
        if self.unit == "image" and self.noise not in SWAPS:
            raise UsageError(f"`unit` image is for {' and '.join(SWAPS)}, but `noise` is {self.noise}: leave it out.")
        if self.neighbors < 1:
            raise UsageError(f"`neighbors` is {self.neighbors}, expected at least 1.")
        if self.label_col is not None and self.noise != "hard_swap":
            raise UsageError(f"`label_col` is for hard_swap, but `noise` is {self.noise}: leave it out.")
        if (self.noise_file is None) == (self.noise == "noise_file"):
            raise UsageError("`noise_file` PATH and `noise` noise_file go together: give both or none.")

    @property
    def recipe(self) -> Recipe:
        """The recipe of `noisycorr.data.noise.recipes` that these settings name."""
        ratio, unit, seed = self.noise_ratio, "image" if self.unit == "image" else "caption", self.seed
        if self.noise == "random_swap":
            return RandomSwap(ratio=ratio, unit=unit, seed=seed)  # type: ignore[arg-type]
        if self.noise == "hard_swap":
            return HardSwap(ratio=ratio, unit=unit, seed=seed, neighbors=self.neighbors)  # type: ignore[arg-type]
        if self.noise == "partial_caption":
            return PartialCaption(ratio=ratio, seed=seed)
        if self.noise == "generic_caption":
            return GenericCaption(ratio=ratio, seed=seed)
        if self.noise == "missing_text":
            return MissingText(ratio=ratio, seed=seed)
        return NoiseFile(noise_file=self.noise_file or "")


@dataclass(slots=True)
class _Seen:
    """What the first pass keeps of each row."""

    texts: list[str | None] = field(default_factory=list)
    keys: list[str] = field(default_factory=list)
    images: list[int] = field(default_factory=list)  # equal numbers for one image, counted from 0 as they appear
    labels: list[str] = field(default_factory=list)
    types: dict[str, pa.DataType] = field(default_factory=dict)
    ends: list[int] = field(default_factory=list)  # first row after each piece


def inject(reader: Reader, folder: Path, choice: Inject) -> dict[str, Any]:
    """Write the noisy copy: NNNNN.parquet for each piece, noise.json, and noise_index.npy for swaps.

    Rows come in the order of the source, all of them, with `image` (bytes; null where there is none), `key`, `text`,
    every other column, and the truth. An input column of one of the first three names becomes source_NAME. Equal
    settings give equal bytes; the same command continues what was interrupted.

    Args:
        reader: The source.
        folder: Created if absent.
        choice: The noise.

    Returns:
        `pairs`, `changed` (texts), `wrong` (pairs that do not belong together now) and `files` (parquet files).

    Raises:
        UsageError: If the folder holds anything else, the source cannot take this noise, or changes while it is read.
    """
    if reader.format == "embeddings":
        raise UsageError("Precomputed embeddings cannot take noise: inject into the pairs that they were made from.")
    settings, count = _settings(reader, choice), len(reader.pieces())
    begun = _take(folder, settings, choice)
    if begun is not None and all((folder / _name(index)).exists() for index in range(count)):
        return _facts(begun)
    seen = _first_pass(reader, choice)
    labels, features, encoder = None, None, None
    if choice.noise == "hard_swap" and choice.label_col is not None:
        labels = np.array(seen.labels, object)
    elif choice.noise == "hard_swap":
        features, encoder = _text_features(seen.texts)
    images = np.array(seen.images, np.int64)
    injected = choice.recipe(seen.texts, image_ids=images, labels=labels, features=features)
    index = folder / "noise_index.npy" if choice.noise in SWAPS and _is_permutation(injected) else None
    record = {
        "settings": settings, "inject": dataclasses.asdict(choice), "recipe": type(choice.recipe).__name__,
        "source": {"format": reader.format, "picked": dict(reader.picked)}, "encoder": encoder,
        "pairs": len(seen.texts), "images": int(images.max(initial=-1)) + 1, "files": count,
        "changed": int(injected.changed.sum()), "wrong": int(injected.wrong.sum()),
        "sha256": hashlib.sha256(np.ascontiguousarray(injected.source_row, np.int64).tobytes()).hexdigest(),
        "noise_index": index.name if index else None,
    }  # fmt: skip
    if begun is not None and begun["sha256"] != record["sha256"]:
        raise UsageError(f"{folder} was begun where the same settings gave other noise: delete it and start anew.")
    write_json(folder / RECORD, record)
    if index is not None:
        save_noise_index(index, injected, choice.recipe, texts_per_image=_texts_per_image(images))
    _second_pass(reader, folder, seen, injected)
    return _facts(record)


def _facts(record: dict[str, Any]) -> dict[str, Any]:
    return {name: record[name] for name in ("pairs", "changed", "wrong", "files")}


def _settings(reader: Reader, choice: Inject) -> str:
    """Fingerprint of everything that the files depend on."""
    body = dataclasses.asdict(choice) | {"noise_file": None, "layout": _LAYOUT}
    if choice.noise_file is not None:
        if not Path(choice.noise_file).is_file():
            raise UsageError(f"`noise_file` {choice.noise_file} is not a file: give a .npy file of row numbers.")
        body["noise_file"] = hashlib.sha256(Path(choice.noise_file).read_bytes()).hexdigest()
    body["pieces"] = [[piece.start, piece.stop] for piece in reader.pieces()]
    return fingerprint(body | {"source": reader.identity, "format": reader.format, "picked": dict(reader.picked)})


def _take(folder: Path, settings: str, choice: Inject) -> dict[str, Any] | None:
    """The record if the folder was begun with these settings, None if it is new or empty; UsageError otherwise."""
    folder.mkdir(parents=True, exist_ok=True)
    for stray in folder.glob(".*.tmp"):  # left by a killed process
        if stray.name.startswith((".noise", ".0")):
            stray.unlink(missing_ok=True)
    if all(path.name in (LOCK, SOURCE) for path in folder.iterdir()):
        return None
    try:
        record = read_json(folder / RECORD)
        before, known = record["inject"], record["settings"] == settings
    except (OSError, ValueError, KeyError, TypeError):
        raise UsageError(f"{folder} is not empty and holds no noisy copy: choose another `output_folder`.") from None
    if not known:
        now = dataclasses.asdict(choice)
        differs = [
            f"{name}: was {before.get(name)!r}, now {now[name]!r}" for name in now if now[name] != before.get(name)
        ]
        raise UsageError(
            f"{folder} holds noise of other settings ({'; '.join(differs) or 'the source is another one'}): choose "
            "another `output_folder`, or delete this one."
        )
    return record


def _first_pass(reader: Reader, choice: Inject) -> _Seen:
    seen, numbers = _Seen(), dict[str, int]()
    with console.bar(label="inject: reading") as bar:
        for piece in reader.pieces():
            for pair in reader.read(piece):
                seen.texts.append(pair.text)
                seen.keys.append(pair.key)
                seen.images.append(numbers.setdefault(_identity(pair, len(seen.keys)), len(numbers)))
                if choice.label_col is not None:
                    seen.labels.append(str(pair.columns.get(choice.label_col)))
                for name, value in pair.columns.items():
                    seen.types[name] = merge_types(seen.types.get(name, pa.null()), json_type(value))
                bar.update()
            seen.ends.append(len(seen.keys))
    if choice.label_col is not None and choice.label_col not in seen.types:
        raise UsageError(
            f"There is no column {choice.label_col!r} (`label_col`) beside image and text; there are: "
            f"{listed(seen.types)}."
        )
    if injected := sorted(set(seen.types) & set(TRUTH)):
        raise UsageError(f"The source holds injected noise already ({injected[0]}): start from the set without it.")
    return seen


def _identity(pair: Pair, row: int) -> str:
    """Equal for rows that show one image."""
    if isinstance(pair.image, bytes):
        return f"bytes {content_hash(pair.image)}"
    if isinstance(pair.image, Path):
        return f"path {pair.image}"
    for name in ("image_key", "image_id"):
        if pair.columns.get(name) is not None:
            return f"{name} {pair.columns[name]}"
    return f"row {row}"


def _text_features(texts: Sequence[str | None]) -> tuple[np.ndarray, str]:
    """float16 (n, e) sentence vectors, zeros for blank texts; and the name of the encoder."""
    from noisycorr.models.encoders.embedded import EmbeddedEncoder

    encoder = EmbeddedEncoder()
    places: dict[str, int] = {}
    rows = np.array([places.setdefault(text, len(places)) if text and text.strip() else -1 for text in texts], np.int64)
    distinct = list(places)
    vectors = np.zeros((len(distinct) + 1, encoder.text_dim), np.float16)  # the last one, at -1, is that of no text
    for start in console.bar(range(0, len(distinct), _TEXTS), label="inject: texts", unit="batch"):
        some = distinct[start : start + _TEXTS]
        vectors[start : start + len(some)] = encoder.text(encoder.tokenize(some)).float().numpy()
    return vectors[rows], encoder.name


def _is_permutation(injected: Injected) -> bool:
    return np.array_equal(np.sort(injected.source_row), np.arange(len(injected.source_row)))


def _texts_per_image(images: np.ndarray) -> int:
    """How many consecutive rows share an image, if that is the same number everywhere; else 1."""
    each = max(1, len(images) // (int(images.max(initial=0)) + 1))
    return each if np.array_equal(images, np.arange(len(images)) // each) else 1


def _second_pass(reader: Reader, folder: Path, seen: _Seen, injected: Injected) -> None:
    names = _column_names(seen.types)
    columns = [(new, final_type(seen.types[old])) for old, new in names.items()]
    schema = pa.schema(
        [*((name, pa.binary() if name == "image" else pa.string()) for name in OWN), *columns, *TRUTH.items()]
    )
    plain = [name for name in schema.names if name != "image"]
    with console.bar(total=len(seen.keys), label="inject: writing") as bar:
        for piece, start, end in zip(reader.pieces(), [0, *seen.ends], seen.ends):
            if (folder / _name(piece.index)).exists():
                bar.update(end - start)
                continue
            with (
                atomic_path(folder / _name(piece.index)) as path,
                pq.ParquetWriter(
                    path, schema, compression="zstd", use_dictionary=plain, write_statistics=plain
                ) as file,
            ):
                batches = Batches(schema, file.write_table)
                for row, pair, image in _checked(reader.read(piece), seen, start, end):
                    batches.add(_values(row, pair, image, names, seen, injected), len(image or b""))
                    bar.update()
                batches.flush()


def _name(index: int) -> str:
    return f"{index:05d}.parquet"


def _column_names(types: dict[str, pa.DataType]) -> dict[str, str]:
    """Input columns by their names in the copy, sorted."""
    names, used = {}, {*OWN, *types}
    for old in sorted(types):
        new = old
        while new in OWN or (new != old and new in used):
            new = f"source_{new}"
        names[old] = new
        used.add(new)
    return names


def _checked(pairs: Iterator[Pair], seen: _Seen, start: int, end: int) -> Iterator[tuple[int, Pair, bytes | None]]:
    """Row, pair and image bytes of one piece; refuses rows that are not those of the first pass."""
    path: Path | None = None
    image: bytes | None = None
    count = 0
    for row, pair in enumerate(pairs, start):
        if row >= end or (pair.key, pair.text) != (seen.keys[row], seen.texts[row]):
            raise UsageError(f"The source changed at pair {pair.key!r} while it was read: run the same command again.")
        if isinstance(pair.image, Path):
            if pair.image != path:  # captions of one file follow each other
                path, image = pair.image, _read(pair.image)
        else:
            path, image = None, pair.image
        count += 1
        yield row, pair, image
    if start + count < end:
        raise UsageError(f"The source lost pair {seen.keys[start + count]!r} while it was read: run the command again.")


def _read(path: Path) -> bytes | None:
    try:
        return read_image(path)
    except BadImage:
        return None


def _values(
    row: int, pair: Pair, image: bytes | None, names: dict[str, str], seen: _Seen, injected: Injected
) -> dict[str, Any]:
    source = int(injected.source_row[row])
    return {
        "image": image,
        "key": pair.key,
        "text": injected.texts[row],
        **{names[name]: value for name, value in pair.columns.items()},
        "truth_changed": bool(injected.changed[row]),
        "truth_wrong": bool(injected.wrong[row]),
        "truth_text": pair.text,
        "truth_source_key": seen.keys[source] if source >= 0 else None,
    }
