"""From the words of a source to its files and its format."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

from braceexpand import braceexpand

from noisycorr.data.readers.images import IMAGE_SUFFIXES
from noisycorr.data.readers.source import Source
from noisycorr.runtime.errors import UsageError

SUFFIXES: dict[str, tuple[str, ...]] = {
    "webdataset": (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz"),
    "parquet": (".parquet", ".pq"),
    "csv": (".csv", ".csv.gz"),
    "tsv": (".tsv", ".tsv.gz"),
    "jsonl": (".jsonl", ".jsonl.gz", ".ndjson"),
    "json": (".json",),
    "coco": (".json",),
}
HUB = "hf://"
BRACE_LIMIT = 1_000_000  # files of one pattern
_COCO_START = re.compile(r'\s*\{\s*"(info|images|annotations|licenses|categories|dataset|type)"\s*:')


def expand_paths(text: str) -> list[Path]:
    """All files and folders that a source names, in the order given.

    Args:
        text: Paths and patterns (`{000..010}`, `*`) joined by `::`.

    Returns:
        Existing absolute paths, none twice.

    Raises:
        UsageError: If one does not exist, stands twice, or is an address of another machine.
    """
    paths: list[Path] = []
    for part in text.split("::"):
        if not part.strip():
            raise UsageError(f"The source {text!r} has an empty part beside '::': remove it or fill it in.")
        if re.match(r"[a-z0-9+]+://|pipe:", part):
            raise UsageError(
                f"{part!r} is not a local path: download it first (img2dataset makes shards from addresses)."
            )
        paths.extend(_expand_one(part))
    missing = [path for path in paths if not path.exists()]
    if missing:
        more = f" (and {len(missing) - 1} more of {len(paths)})" if len(missing) > 1 else ""
        raise UsageError(
            f"{missing[0]} does not exist{more}: check the path; a dataset of the hub is written {HUB}NAME."
        )
    seen: set[Path] = set()
    for path in paths:
        if path in seen:
            raise UsageError(f"{path} stands twice in the source: name each file once.")
        seen.add(path)
    return paths


def sample_files() -> list[Path]:
    """The small set that comes with the package.

    Raises:
        UsageError: If this installation has none.
    """
    files = sorted((Path(__file__).parents[1] / "sample").glob("*.parquet"))
    if not files:
        raise UsageError(
            "This installation of noisycorr has no sample: give a path; './sample' is a folder of that name."
        )
    return files


def find_format(source: Source, paths: list[Path]) -> str:
    """The format of all paths together.

    Raises:
        UsageError: If it cannot be told, or the paths are of different formats.
    """
    if source.input_format != "auto":
        return source.input_format
    formats: dict[str, Path] = {}
    for path in paths:
        formats.setdefault(_folder_format(path) if path.is_dir() else _file_format(path), path)
    if len(formats) > 1:
        parts = " and ".join(f"{path.name} ({name})" for name, path in formats.items())
        raise UsageError(f"'::' joins sources of one format only, but there are {parts}: clean them one by one.")
    return next(iter(formats))


def files_of(paths: list[Path], format_: str) -> list[Path]:
    """The files of one format: each folder gives its own (not those of its sub-folders), sorted by name.

    Raises:
        UsageError: If a folder has none.
    """
    files: list[Path] = []
    for path in paths:
        if not path.is_dir():
            files.append(path)
            continue
        inside = _with_suffix(path, format_)
        if format_ == "coco":
            inside = [file for file in inside if is_coco(file)]
        if not inside:
            wanted = " or ".join(SUFFIXES[format_])
            raise UsageError(f"{path} has no {wanted} file for the format {format_}{_deeper_hint(path, format_)}.")
        files.extend(inside)
    return files


def is_coco(path: Path) -> bool:
    """True if a JSON file begins like COCO captions or a Karpathy split: an object of lists, not a row."""
    with path.open("rb") as file:
        return _COCO_START.match(file.read(65536).decode("utf-8-sig", "replace")) is not None


def is_embedding_folder(path: Path) -> bool:
    """True for the layouts of `formats.embeddings`."""
    parts = (path / "img_emb").is_dir() and (path / "text_emb").is_dir()
    return parts or ((path / "image.npy").is_file() and (path / "text.npy").is_file())


def is_saved_dataset(path: Path) -> bool:
    """True for a folder written by `Dataset.save_to_disk` or `DatasetDict.save_to_disk`."""
    return (path / "dataset_dict.json").is_file() or (
        (path / "dataset_info.json").is_file() and (path / "state.json").is_file()
    )


def walk_images(folder: Path) -> Iterator[tuple[Path, list[str]]]:
    """Each folder from `folder` down in sorted order, with the sorted names of its files; hidden ones are left out."""
    for place, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield Path(place), sorted(name for name in names if not name.startswith("."))


def is_image_name(name: str) -> bool:
    """True if the extension is that of a picture format which can be decoded here."""
    return name.rpartition(".")[2].lower() in IMAGE_SUFFIXES and "." in name


def _expand_one(part: str) -> list[Path]:
    literal = _local(part).absolute()
    if literal.exists() or not re.search(r"[{*?\[]", part):
        return [literal]
    if _brace_count(part) > BRACE_LIMIT:  # before they are made: the expansion is not lazy
        raise UsageError(f"The pattern {part!r} names more than {BRACE_LIMIT} files: name the folder instead.")
    try:
        names = list(braceexpand(part))
    except ValueError as error:
        raise UsageError(
            f"The pattern {part!r} cannot be read ({error}): write it like 'shards/{{000..010}}.tar'."
        ) from None
    paths: list[Path] = []
    for name in names:
        path = _local(name).absolute()
        if re.search(r"[*?\[]", name) and not path.exists():
            below = Path(path.anchor)
            matches = sorted(below.glob(str(path.relative_to(below))))
            if not matches:
                raise UsageError(f"Nothing matches the pattern {name!r}: check the path.")
            paths.extend(matches)
        else:
            paths.append(path)
    return paths


def _local(name: str) -> Path:
    """A path with the home folder in the place of `~`; `~NAME` of a user that is not known is a name like others."""
    try:
        return Path(name).expanduser()
    except RuntimeError:
        return Path(name)


def _brace_count(part: str) -> int:
    """About how many names a pattern makes; never too few for ranges of numbers, which alone can be huge."""
    count = 1
    for first, last, step in re.findall(r"\{(-?\d+)\.\.(-?\d+)(?:\.\.(-?\d+))?\}", part):
        count *= abs(int(last) - int(first)) // max(1, abs(int(step or 1))) + 1
    return count


def _file_format(path: Path) -> str:
    name = path.name.lower()
    if name.endswith(".json"):
        return "coco" if is_coco(path) else "json"
    for format_, suffixes in SUFFIXES.items():
        if name.endswith(suffixes):
            return format_
    known = ", ".join(dict.fromkeys(suffixes[0] for suffixes in SUFFIXES.values()))
    raise UsageError(f"The format of {path} cannot be told from its name (known: {known}): say it with `input_format`.")


def _folder_format(path: Path) -> str:
    if is_saved_dataset(path):
        return "hf"
    if is_embedding_folder(path):
        return "embeddings"
    tars, tables = _with_suffix(path, "webdataset"), _with_suffix(path, "parquet")
    if tables and not _describes_downloads(path, tars, tables):
        return "parquet"
    if tars:
        return "webdataset"
    if not tables:  # (a parquet beside folders of images is the log of their download)
        for format_ in ("csv", "tsv", "jsonl"):
            if _with_suffix(path, format_):
                return format_
        images = {file.stem for file in path.iterdir() if is_image_name(file.name)}
        if any(is_coco(file) for file in _with_suffix(path, "coco") if file.stem not in images):
            return "coco"
    if any(is_image_name(name) for _, names in walk_images(path) for name in names):
        return "files"
    from noisycorr.data.readers.tables import has_pairs

    if any(has_pairs(file) for file in _with_suffix(path, "json")):
        return "json"
    raise UsageError(_nothing_readable(path))


def _describes_downloads(path: Path, tars: list[Path], tables: list[Path]) -> bool:
    # img2dataset writes 00000.parquet beside 00000.tar or the folder 00000: what was downloaded, not the pairs.
    names = {tar.name.partition(".")[0] for tar in tars}
    return all(t.stem in names or (t.stem.isdigit() and (path / t.stem).is_dir()) for t in tables)


def _with_suffix(folder: Path, format_: str) -> list[Path]:
    return sorted(
        path
        for path in folder.iterdir()
        if path.name.lower().endswith(SUFFIXES[format_]) and not path.name.startswith(".") and path.is_file()
    )


def _deeper_hint(path: Path, format_: str) -> str:
    for folder in sorted(inner for inner in path.iterdir() if inner.is_dir()):
        if found := len(_with_suffix(folder, format_)):
            return f", but {folder} has {found}: name that folder"
    return ""


def _nothing_readable(path: Path) -> str:
    names = [inner.name for inner in path.iterdir() if inner.is_file()]
    suffixes = sorted({Path(name).suffix or name for name in names})
    held = f"{len(names)} other files ({', '.join(suffixes[:8])})" if names else "no file"
    hint = next((text for format_ in ("webdataset", "parquet") if (text := _deeper_hint(path, format_))), "")
    return (
        f"{path} holds no image-text pairs: looked for parquet, tar shards, csv, tsv, jsonl, json, images, a saved "
        f"dataset and embeddings, found {held}{hint}."
    )
