"""The verdicts of a run, made into files that other tools read: one pass over the source, filtered by verdict.

    facts = export(Run("out"), open_source(Source(path="shards")), Export(output_format="parquet"))

One output shard is one idempotent task: its files appear atomically, its marker NNNNN_stats.json last. So an export
that was killed is continued by the same command, one that is complete is left alone, and equal runs give equal bytes.
"""

from __future__ import annotations

import collections
import itertools
import json
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import xxhash

from noisycorr.data.pairs import Pair, content_hash
from noisycorr.data.readers import Piece, Reader
from noisycorr.data.readers.images import BadImage, read_image
from noisycorr.data.store import features_path, pairs_path, parts, read_features
from noisycorr.data.writers import (
    VERDICTS,
    Format,
    Layout,
    Row,
    clip_retrieval,
    coco,
    csv,
    hf,
    issues,
    jsonl,
    parquet,
    uids,
    webdataset,
)
from noisycorr.data.writers.folder import (
    finish_folder,
    full_disk_explained,
    is_done,
    marker_path,
    refuse_inside,
    take_folder,
)
from noisycorr.data.writers.names import image_suffix
from noisycorr.data.writers.shards import PARTS, first_of_each, parquet_rows, picture_key, remove
from noisycorr.data.writers.values import final_type, json_type, merge_types
from noisycorr.runtime import console
from noisycorr.runtime.errors import UsageError, listed
from noisycorr.runtime.folder import Run, fingerprint, read_json, write_json

FORMATS: dict[str, Format] = {
    "webdataset": webdataset.FORMAT,
    "parquet": parquet.FORMAT,
    "hf": hf.FORMAT,
    "csv": csv.FORMAT,
    "jsonl": jsonl.FORMAT,
    "coco": coco.FORMAT,
    "uids": uids.FORMAT,
    "clip-retrieval": clip_retrieval.FORMAT,
    "issues": issues.FORMAT,
}
GIVEN = "text_given"  # column of the texts as they came, where new ones stand in `text`
_LAYOUT = 3  # raise it when a writer changes what it writes
_FACTS = ["key", "text", "columns", "image_hash", "image_format", "width", "height"]
_CHANGED = "the source changed since it was embedded: run clean again, then export"


@dataclass(frozen=True, kw_only=True)
class Export:
    """Which pairs are exported, and in which format.

    Attributes:
        output_format: webdataset, parquet, hf (a saved dataset), csv (open_clip's, with tabs), jsonl, coco (captions),
            uids (DataComp's sorted npy), clip-retrieval (embeddings and metadata) or issues (cleanlab's table).
        only: Verdicts to export, joined by commas: keep, recaption (kept with a new text), relabel (of `audit`: kept
            with another label), drop, review; or all. auto is all for issues, keep for uids and clip-retrieval, which
            have no place for new texts, else keep,recaption,relabel.
        texts: Which texts to export: rectified takes the new text where the ledger has one, and adds the original texts
            as the column text_given; given exports the original texts.
        output_path: Folder to write to; by default export/FORMAT in the run folder.
        number_sample_per_shard: Number of pairs per output shard, >= 1.
        json_fields: Fields of KEY.json and of JSON lines besides key and text, joined by commas; None = all.

    Raises:
        UsageError: If a value is out of its range.
    """

    output_format: str = "webdataset"
    only: str = "auto"
    texts: Literal["rectified", "given"] = "rectified"
    output_path: str | None = None
    number_sample_per_shard: int = 10000
    json_fields: str | None = None

    def __post_init__(self) -> None:
        if self.output_format not in FORMATS:
            raise UsageError(f"`output_format` is {self.output_format!r}, but must be one of: {', '.join(FORMATS)}.")
        if self.texts not in ("rectified", "given"):
            raise UsageError(f"`texts` is {self.texts!r}, but must be rectified or given.")
        if self.number_sample_per_shard < 1:
            raise UsageError(f"`number_sample_per_shard` is {self.number_sample_per_shard}, but must be at least 1.")
        if self.json_fields is not None and self.output_format not in ("webdataset", "jsonl"):
            raise UsageError(
                f"`json_fields` is for webdataset and jsonl, but `output_format` is {self.output_format!r}."
            )
        self.verdicts()

    def verdicts(self) -> frozenset[str]:
        """The verdicts that are written.

        Raises:
            UsageError: If one is unknown.
        """
        if self.only == "auto":
            return FORMATS[self.output_format].verdicts
        named = frozenset(part.strip() for part in self.only.split(","))
        if unknown := sorted(named - {*VERDICTS, "all"}):
            raise UsageError(f"`only`: {unknown[0]!r} is no verdict; give {', '.join(VERDICTS)}, all or auto.")
        return frozenset(VERDICTS) if "all" in named else named

    def fields(self) -> frozenset[str] | None:
        """The names in `json_fields`, or None."""
        named = self.json_fields
        return None if named is None else frozenset(filter(None, map(str.strip, named.split(","))))


@dataclass(frozen=True, kw_only=True)
class _Plan:
    """What one look at the run tells before anything is written.

    Attributes:
        counts: Exported rows of each piece.
        layout: Columns and shards.
        renamed: Name of each input column in the export; None for one that the ledger holds already.
        first: For each exported row the first one with the same picture, or None.
    """

    counts: dict[int, int]
    layout: Layout
    renamed: dict[str, str | None]
    first: np.ndarray | None

    def shard_sizes(self, size: int) -> list[int]:
        """Rows of each shard; one empty shard if there is nothing to write."""
        rows = sum(self.counts.values())
        return [min(size, rows - start) for start in range(0, rows, size)] or [0]


def export(run: Run, reader: Reader, choice: Export) -> dict[str, Any]:
    """Write the pairs of a run whose verdict is wanted.

    Args:
        run: With its pairs and ledger in place.
        reader: Of the source that the run was made from.
        choice: What to write, and where.

    Returns:
        JSON facts: `format`, `folder`, `rows` written, `shards`, `files` (names in the folder), and counts such as
        `without_image`, `left_out_without_text`, `keys_repeated`.

    Raises:
        UsageError: If the run has no ledger, the source is not what it was, or the folder holds something else.
        OSError: If the disk is full; nothing incomplete is left, and the same command continues.
    """
    name, format_ = choice.output_format, FORMATS[choice.output_format]
    folder = Path(choice.output_path or run.folder / "export" / name).expanduser().absolute()
    refuse_inside(folder, _source_files(reader))
    plan = _plan(run, reader, choice, folder)
    layout = plan.layout
    with full_disk_explained(folder):
        record = take_folder(folder, name, layout.fingerprint, {name: known.owns for name, known in FORMATS.items()})
        if record is None:
            shards = _write_shards(run, reader, choice, plan, folder)
            files = format_.finish(folder, layout, shards)
            facts = {**_totals(shards), "only": sorted(choice.verdicts()), "shards": layout.shards, "files": files}
            record = finish_folder(folder, name, layout.fingerprint, facts)
        remove(folder / PARTS)
    return {**record, "folder": str(folder)}


def _write_shards(run: Run, reader: Reader, choice: Export, plan: _Plan, folder: Path) -> list[dict[str, Any]]:
    """Write every shard that is not there yet; returns the facts of all of them, in order."""
    format_ = FORMATS[choice.output_format]
    sizes = plan.shard_sizes(choice.number_sample_per_shard)
    todo = [index for index in range(len(sizes)) if not is_done(folder, index, plan.layout.fingerprint)]
    rows = _rows(run, reader, choice, plan, frozenset(todo))
    with console.bar(rows, label="export", total=sum(sizes[index] for index in todo)) as bar:
        stream = iter(bar)
        for index in todo:
            facts = format_.write(folder, index, itertools.islice(stream, sizes[index]), plan.layout)
            write_json(marker_path(folder, index), {**facts, "fingerprint": plan.layout.fingerprint})
        collections.deque(stream, maxlen=0)  # the rest of the last piece: rows that should not be there are told
    return [read_json(marker_path(folder, index)) for index in range(len(sizes))]


def _plan(run: Run, reader: Reader, choice: Export, folder: Path) -> _Plan:
    """Read the facts and verdicts of the whole run once: how many rows, which columns, and a hash of the content."""
    format_, verdicts = FORMATS[choice.output_format], choice.verdicts()
    digest = xxhash.xxh3_128()
    counts: dict[int, int] = {}
    types: dict[str, pa.DataType] = {}
    pictures = bytearray()
    for index in _finished(run):
        counts[index] = 0
        _hash_file(digest, _ledger_path(run, index))
        if format_.embeddings:
            _hash_file(digest, features_path(run, index))
        for facts, ledger in _table_rows(run, index, ["key", "verdict"]):
            digest.update(repr(list(facts.values())).encode())
            columns = json.loads(facts["columns"])
            for name, value in columns.items():
                types[name] = merge_types(types.get(name, pa.null()), json_type(value))
            if ledger["verdict"] in verdicts:
                counts[index] += 1
                if format_.same_picture:
                    pictures += picture_key(facts, columns, len(pictures))
    schema = pa.unify_schemas([pq.read_schema(_ledger_path(run, index)) for index in counts]).remove_metadata()
    renamed = _renamed(types, {*schema.names, GIVEN, *format_.takes})
    given = [pa.field(GIVEN, pa.string())] if _renews(choice, schema.names) else []
    inputs = [pa.field(new, final_type(types[old])) for old, new in renamed.items() if new is not None]
    settings = _settings(reader, choice, folder) | {"content": digest.hexdigest()}
    layout = Layout(
        schema=pa.schema([*schema, *given, *inputs]),
        ledger=tuple(schema.names),
        fields=choice.fields(),
        shards=max(1, -(-sum(counts.values()) // choice.number_sample_per_shard)),
        fingerprint=fingerprint(settings),
    )
    if unknown := sorted((layout.fields or frozenset()) - set(layout.schema.names)):
        raise UsageError(f"json_fields names {unknown[0]!r}, but the fields are: {listed(layout.schema.names)}.")
    first = first_of_each(pictures) if format_.same_picture else None
    return _Plan(counts=counts, layout=layout, renamed=renamed, first=first)


def _settings(reader: Reader, choice: Export, folder: Path) -> dict[str, Any]:
    """What the written files depend on besides the content of the run."""
    settings: dict[str, Any] = {
        "layout": _LAYOUT,
        "format": choice.output_format,
        "only": sorted(choice.verdicts()),
        "number_sample_per_shard": choice.number_sample_per_shard,
        "texts": choice.texts,
        "fields": None if choice.json_fields is None else sorted(choice.fields() or []),
        "suffixes": _kept_suffixes(reader),
    }
    if FORMATS[choice.output_format].images == "paths":  # the files hold absolute paths
        settings["places"] = [str(folder), *(piece.path for piece in reader.pieces())]
    return settings


def _rows(run: Run, reader: Reader, choice: Export, plan: _Plan, todo: frozenset[int]) -> Iterator[Row]:
    """The exported rows of the shards in `todo`, in order; the source is read with them where the format needs it."""
    format_ = FORMATS[choice.output_format]
    size, verdicts, kept = choice.number_sample_per_shard, choice.verdicts(), _kept_suffixes(reader)
    pieces = _checked_pieces(run, reader) if format_.images else {}
    position = 0
    for index, count in plan.counts.items():
        if not any(shard in todo for shard in range(position // size, -(-(position + count) // size))):
            position += count
            continue
        features = [read_features(run, index, name) for name in ("image", "text")] if format_.embeddings else None
        rows = _table_rows(run, index, list(plan.layout.ledger))
        joined = _joined(rows, reader.read(pieces[index]), index) if format_.images else ((*row, None) for row in rows)
        for number, (facts, ledger, pair) in enumerate(joined):
            if ledger["verdict"] not in verdicts:
                continue
            if position // size in todo:
                image = _image(pair, facts, format_) if pair is not None else None
                text, known = _texts(facts, ledger, choice)
                named = pair.image if pair is not None and image is not None else None  # a path tells its extension
                yield Row(
                    position=position,
                    key=facts["key"],
                    text=text,
                    image=image,
                    suffix=image_suffix(named, facts["image_format"], kept),
                    values={**known, **_inputs(facts, plan.renamed)},
                    size=(facts["width"], facts["height"]) if facts["width"] is not None else None,
                    embedding=(features[0][number], features[1][number]) if features is not None else None,
                    first=int(plan.first[position]) if plan.first is not None else position,
                )
            position += 1


def _texts(facts: Mapping[str, Any], ledger: Mapping[str, Any], choice: Export) -> tuple[str | None, Mapping[str, Any]]:
    """The caption of a pair, and its columns of the ledger with that in `text` and the given one beside it."""
    if not _renews(choice, ledger):
        return facts["text"], ledger
    text: str | None = ledger["text_rectified"] or facts["text"]
    return text, {**ledger, "text": text, GIVEN: ledger["text"]}


def _renews(choice: Export, columns: Collection[str]) -> bool:
    """True if the column `text` is to hold new texts, and `text_given` those that came."""
    return choice.texts == "rectified" and FORMATS[choice.output_format].new_texts and "text_rectified" in columns


def _joined(
    rows: Iterator[tuple[dict[str, Any], dict[str, Any]]], pairs: Iterator[Pair], index: int
) -> Iterator[tuple[dict[str, Any], dict[str, Any], Pair]]:
    """Facts, ledger and pair of each row of a piece; refuses a source whose rows are not those of the run."""
    for number, (facts, ledger) in enumerate(rows):
        pair = next(pairs, None)
        if pair is None or (pair.key, pair.text) != (facts["key"], facts["text"]):
            found = "nothing" if pair is None else "another text" if pair.key == facts["key"] else f"key {pair.key!r}"
            raise UsageError(f"Row {number} of piece {index} was {facts['key']!r}, now there is {found}: {_CHANGED}.")
        yield facts, ledger, pair
    if (extra := next(pairs, None)) is not None:
        raise UsageError(f"Piece {index} has one more row, {extra.key!r}: {_CHANGED}.")


def _inputs(facts: Mapping[str, Any], renamed: Mapping[str, str | None]) -> dict[str, Any]:
    """The input columns of a row by their names in the export."""
    columns = json.loads(facts["columns"])
    return {new: value for name, value in columns.items() if (new := renamed[name]) is not None}


def _table_rows(run: Run, index: int, columns: list[str]) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Facts (`_FACTS`) and the given columns of the ledger, row by row."""
    facts = parquet_rows(pairs_path(run, index), _FACTS)
    for row, (fact, ledger) in enumerate(itertools.zip_longest(facts, parquet_rows(_ledger_path(run, index), columns))):
        if fact is None or ledger is None or fact["key"] != ledger["key"]:
            raise UsageError(f"The ledger of piece {index} does not fit its pairs at row {row}: run clean again.")
        yield fact, ledger


def _image(pair: Pair, facts: Mapping[str, Any], format_: Format) -> bytes | Path | None:
    """The image of a pair as the format wants it; refuses one whose bytes are not those that were embedded."""
    image, expected = pair.image, facts["image_hash"]
    if isinstance(image, Path) and format_.images == "bytes":
        try:
            image = read_image(image)
        except BadImage:
            image = None
    found = content_hash(image) if isinstance(image, bytes) else None if image is None else expected
    if expected is not None and found != expected:
        raise UsageError(f"The image of {pair.key!r} is not the one that was there: {_CHANGED}.")
    return image


def _renamed(types: Mapping[str, Any], taken: set[str]) -> dict[str, str | None]:
    """Names of input columns in the export: their own, or source_NAME where the ledger or the format has that name."""
    renamed: dict[str, str | None] = {}
    used = taken | set(types)
    for name in sorted(types):
        new = name
        if name in taken:
            while new in used:
                new = f"source_{new}"
            used.add(new)
        renamed[name] = None if name == "uid" else new  # the ledger's uid is the one that came in
    return renamed


def _kept_suffixes(reader: Reader) -> tuple[str, ...]:
    """Suffixes of the images in a source of tars."""
    return tuple(reader.picked.get("image", "").split(";")) if reader.format == "webdataset" else ()


def _source_files(reader: Reader) -> list[str]:
    """Paths of the pieces, and of the first image if it is a file of its own."""
    pieces = reader.pieces()
    first = next(iter(reader.read(pieces[0])), None) if pieces else None
    image = [str(first.image)] if first is not None and isinstance(first.image, Path) else []
    return [*(piece.path for piece in pieces), *image]


def _checked_pieces(run: Run, reader: Reader) -> dict[int, Piece]:
    pieces = {piece.index: piece for piece in reader.pieces()}
    if sorted(pieces) != parts(run):
        raise UsageError(f"The source has {len(pieces)} pieces, the run has {len(parts(run))}: {_CHANGED}.")
    return pieces


def _finished(run: Run) -> list[int]:
    """Indices of the pieces, if all of them are judged."""
    indices = parts(run)
    missing = [index for index in indices if not _ledger_path(run, index).exists()]
    if missing or not indices:
        raise UsageError(f"{run.folder} has no ledger{f' of piece {missing[0]}' if indices else ''}: run clean first.")
    return indices


def _ledger_path(run: Run, index: int) -> Path:
    return run.folder / "ledger" / f"{index:05d}.parquet"


def _hash_file(digest: xxhash.xxh3_128, path: Path) -> None:
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)


def _totals(shards: list[dict[str, Any]]) -> dict[str, int]:
    names = dict.fromkeys(name for shard in shards for name, value in shard.items() if isinstance(value, int))
    return {name: sum(shard.get(name, 0) for shard in shards) for name in names}
