"""Reader of webdataset shards: KEY.jpg, KEY.txt, KEY.json and others as consecutive members of a tar."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from noisycorr.data.pairs import Pair
from noisycorr.data.readers.detect import kind_of_values, pick_text_field
from noisycorr.data.readers.images import MAX_BYTES
from noisycorr.data.readers.rows import TEXT_LIMIT, clean_string, json_value, key_text, text_pairs
from noisycorr.data.readers.source import Piece, Reader, Source
from noisycorr.data.readers.tar import BrokenArchive, Member, is_plain, open_archive, walk_members
from noisycorr.runtime.errors import UsageError, listed
from noisycorr.runtime.folder import fingerprint_file

SPLIT_BYTES = 1 << 30  # a larger uncompressed shard is split into pieces
JSON_BYTES = 16 * 1024 * 1024
COLUMN_BYTES = 64 * 1024  # other members up to this size become text columns
_TEXT_BYTES = 4 * TEXT_LIMIT + 1  # holds the characters that are kept and shows that there are more
_SAMPLE = 20  # samples that are looked at when the source is opened
_ENOUGH = 10  # if so many have no image (or no text) at all, the keys are wrong rather than the data


@dataclass(slots=True)
class _Sample:
    """The members of one key, as far as they are wanted."""

    key: str
    unsafe_name: str | None = None
    broken: bool = False
    suffixes: set[str] = field(default_factory=set)
    rank: int = 1_000_000  # position of the image's suffix among the wanted ones
    image: bytes | None = None
    image_problem: str | None = "image_missing"
    texts: dict[str, bytes] = field(default_factory=dict)
    fields: dict[str, Any] = field(default_factory=dict)  # of KEY.json
    bad_json: bool = False
    columns: dict[str, Any] = field(default_factory=dict)


class WebdatasetReader(Reader):
    """Tar shards. One piece is a shard, or a range of bytes of a very large one.

    Args:
        files: The shards, in order; gzip, bzip2 and xz are unpacked on the way.
        source: What the user said.

    Raises:
        UsageError: If the first samples are sound but none has an image, or none a text.
    """

    format = "webdataset"

    def __init__(self, files: list[Path], source: Source) -> None:
        self.source = source
        self.files = files
        self.identity: list[Any] = [fingerprint_file(file) for file in files]
        self._image_keys = [key.lower() for key in _keys(source.image_col or source.wds_image_key)]
        self._text_keys = _keys(source.caption_col or source.wds_caption_key)
        self._text_suffixes = {key.lower() for key in self._text_keys}
        self._field: str | None = None
        self._pieces: list[Piece] | None = None
        self.picked: Mapping[str, str] = {**self._detect(self._peek()), "key": source.id_col or "member name"}

    def pieces(self) -> list[Piece]:
        """One piece a shard; shards above `SPLIT_BYTES` are scanned once for the places to split them."""
        if self._pieces is None:
            pieces: list[Piece] = []
            for file in self.files:
                starts = self._split(file)
                for start, stop in zip(starts, [*starts[1:], None]):
                    pieces.append(Piece(len(pieces), str(file), start, stop))
            self._pieces = pieces
        return self._pieces

    def read(self, piece: Piece) -> Iterator[Pair]:
        """The pairs of a shard. A broken archive gives all pairs before the break and one with archive_truncated."""
        for sample in self._samples(Path(piece.path), piece.start, piece.stop):
            yield from self._pairs(sample)

    def _peek(self) -> list[_Sample]:
        """The first sound samples, without their pictures; later shards are tried where the first ones are broken."""
        samples: list[_Sample] = []
        for file in self.files[:5]:
            for sample in self._samples(file, 0, None):
                if not sample.broken:
                    sample.image = None
                    samples.append(sample)
                if len(samples) == _SAMPLE:
                    return samples
        return samples

    def _detect(self, samples: list[_Sample]) -> dict[str, str]:
        source, suffixes = self.source, sorted({suffix for sample in samples for suffix in sample.suffixes})
        fields = {name: [s.fields.get(name) for s in samples] for s in samples for name in s.fields}
        if source.id_col is not None and samples and source.id_col not in fields:
            raise UsageError(f"{source.path} has no JSON field {source.id_col!r} (`id_col`): {listed(fields)}.")
        picked: dict[str, str] = {}
        images = [key for key in self._image_keys if key in suffixes]
        if images:
            picked["image"] = ";".join(images)
        elif len(samples) >= (1 if source.image_col else _ENOUGH):
            wanted = " or ".join(self._image_keys)
            raise UsageError(
                f"The first samples of {source.path} have no image named {wanted}: name it with `wds_image_key`; "
                f"the suffixes are: {listed(suffixes)}."
            )
        texts = [key for key in self._text_keys if key.lower() in suffixes or key in fields]
        if texts:
            picked["text"] = ";".join(texts)
            return picked
        wanted = " or ".join(self._text_keys)
        if source.caption_col is None:
            self._field = pick_text_field({n: kind_of_values(values) for n, values in fields.items()}, source)
        if self._field is not None:
            picked["text"] = self._field
            picked["note"] = f"there is no member named {wanted}; the text is a field of the JSON"
        elif len(samples) >= (1 if source.caption_col else _ENOUGH):
            raise UsageError(
                f"The first samples of {source.path} have no text named {wanted}: name it with `wds_caption_key`; "
                f"the suffixes and JSON fields are: {listed([*suffixes, *fields])}."
            )
        return picked

    def _split(self, file: Path) -> list[int]:
        if file.stat().st_size <= SPLIT_BYTES:
            return [0]
        starts, count, key = [0], -1, None
        suffixes: set[str] = set()
        with open_archive(file) as archive:
            if not is_plain(archive):
                return [0]  # compressed: the later pieces would have to unpack the earlier ones
            try:
                for member in walk_members(archive):
                    if (parts := split_name(member.name)) is None:
                        continue
                    if parts[0] != key or parts[1] in suffixes:
                        key, suffixes, count = parts[0], set(), count + 1
                        if count and count % self.source.number_sample_per_shard == 0:
                            starts.append(member.offset)
                    suffixes.add(parts[1])
            except BrokenArchive:
                pass  # the last piece meets the break again and says so
        return starts

    def _samples(self, file: Path, start: int, stop: int | None) -> Iterator[_Sample]:
        sample: _Sample | None = None
        try:
            with open_archive(file) as archive:
                for member in walk_members(archive, start, stop):
                    if (parts := split_name(member.name)) is None:
                        continue
                    if sample is None or parts[0] != sample.key or parts[1] in sample.suffixes:
                        if sample is not None:
                            yield sample
                        sample = _Sample(parts[0])
                    if is_unsafe(member.name):
                        sample.unsafe_name = sample.unsafe_name or member.name
                    self._add(sample, parts[1], member)
        except (BrokenArchive, OSError) as error:
            inside, unmarked = getattr(error, "inside", True), getattr(error, "unmarked", False)
            sound = sample is not None and next(self._pairs(sample)).problem is None
            if sample is not None and (inside or not sound):
                sample.broken = True
            elif sample is None or not unmarked:
                if sample is not None:
                    yield sample
                sample = _Sample(f"{file.name.partition('.')[0]}@end", broken=True)
        if sample is not None:
            yield sample

    def _add(self, sample: _Sample, suffix: str, member: Member) -> None:
        sample.suffixes.add(suffix)
        if suffix in self._image_keys:
            rank = self._image_keys.index(suffix)
            if rank > sample.rank:
                sample.columns[suffix] = f"<{member.size} bytes>"
                return
            if sample.image is not None:
                sample.columns[self._image_keys[sample.rank]] = f"<{len(sample.image)} bytes>"
            if member.size > MAX_BYTES:
                sample.rank, sample.image, sample.image_problem = rank, None, "image_too_large"
            else:
                sample.image = None  # never two at a time
                sample.image = member.read(MAX_BYTES)
                sample.rank, sample.image_problem = rank, None
        elif suffix in self._text_suffixes:
            sample.texts[suffix] = member.read(_TEXT_BYTES)
        elif suffix == "json":
            values = _parse(member.read(JSON_BYTES)) if member.size <= JSON_BYTES else None
            if values is None:
                sample.bad_json = True
                sample.columns["json"] = f"<{member.size} bytes>"
            else:
                sample.fields = values
        else:
            sample.columns[clean_string(suffix)] = _column(member)

    def _pairs(self, sample: _Sample) -> Iterator[Pair]:
        text, used = self._text_of(sample)
        key = sample.key
        if self.source.id_col is not None and sample.fields.get(self.source.id_col) is not None:
            key = key_text(sample.fields[self.source.id_col], 0)
        fields = {n: v for n, v in sample.fields.items() if n != used and not (n == "key" and str(v) == key)}
        fields = {"uid" if name.lower() == "uid" else name: value for name, value in fields.items()}
        rest = {**json_value(fields), **{n: v for n, v in sample.columns.items() if n not in fields}}
        problem = sample.image_problem
        if problem is None and text is None and sample.bad_json:
            problem = "row_unreadable"
        if sample.unsafe_name is not None:
            key, problem = safe_key(key), "name_unsafe"
            rest["member_name"] = clean_string(sample.unsafe_name)
        if sample.broken:
            problem = "archive_truncated"
        yield from text_pairs(clean_string(key), sample.image, problem, text, rest)

    def _text_of(self, sample: _Sample) -> tuple[Any, str | None]:
        """The text and the JSON field that it came from, if it did."""
        for name in self._text_keys:
            if name.lower() in sample.texts:
                return sample.texts[name.lower()], None
            if sample.fields.get(name) is not None:
                return sample.fields[name], name
        if self._field is not None:
            return sample.fields.get(self._field), self._field
        return None, None


def split_name(name: str) -> tuple[str, str] | None:
    """Key and suffix of a member by webdataset's rule: the key ends at the first dot of the last part of the path.

    Args:
        name: As it is written in the archive.

    Returns:
        (key with its folders, suffix in lower case), or None for a member that belongs to no sample: without a
        suffix, hidden, or `__meta__`. Unsafe names are never passed over.
    """
    match = re.match(r"((?:.*/)?[^./][^./]*)\.([^/]*)$", name, re.DOTALL)
    if match is not None and not re.search(r"__[^/]*__(/|$)", name):
        return match[1], match[2].lower()
    return (name, "") if is_unsafe(name) else None


def is_unsafe(name: str) -> bool:
    """True if a member's name would lead out of the folder it is unpacked in, on any system."""
    return name.startswith(("/", "\\")) or re.match(r"[A-Za-z]:", name) is not None or ".." in re.split(r"[/\\]", name)


def safe_key(key: str) -> str:
    """The key of an unsafe name without the parts that make it unsafe; never empty."""
    parts = [re.sub(r"^([A-Za-z]:)+", "", part) for part in re.split(r"[/\\]", key)]
    return "/".join(part for part in parts if part not in ("", ".", "..")) or "unnamed"


def _keys(text: str) -> list[str]:
    keys = [part.strip().lstrip(".") for part in text.split(";")]
    if not all(keys):
        raise UsageError(f"{text!r} has an empty part: join suffixes by ';', as in 'jpg;png'.")
    return keys


def _parse(data: bytes) -> dict[str, Any] | None:
    try:
        value = json.loads(data.decode("utf-8-sig", "surrogateescape"))
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _column(member: Member) -> str:
    if member.size <= COLUMN_BYTES:
        data = member.read(COLUMN_BYTES)
        try:
            text = data.decode("utf-8")
        except UnicodeDecodeError:
            text = "\0"
        if "\0" not in text:
            return text
    return f"<{member.size} bytes>"
