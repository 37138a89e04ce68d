"""The folder of an export: whose it is, which of its shards are done, what may be replaced.

`export.json` says what the folder is; it is there from the first shard on, and complete after the last. A folder with
anything in it but without this file is somebody else's and is never touched.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from noisycorr.data.writers.shards import IMAGES, remove
from noisycorr.runtime.errors import UsageError
from noisycorr.runtime.folder import read_json, write_json

RECORD = "export.json"
TOOL = "noisycorr"
_MARKERS = r"\d{5,}_stats\.json"
_STRAYS = (".*.tmp", "*/.*.tmp", f"{IMAGES}/.*.partial")  # of `atomic_path` and of `image_folder`


def take_folder(
    folder: Path, name: str, fingerprint: str, owns: Mapping[str, tuple[str, ...]]
) -> dict[str, Any] | None:
    """Make a folder ready for an export. What an export of other settings wrote there is deleted.

    Args:
        folder: Created if absent.
        name: Of the format.
        fingerprint: Stands for everything that the files depend on.
        owns: For each format, patterns of the names that it writes.

    Returns:
        The record of this very export if it is complete, else None.

    Raises:
        UsageError: If it is a file, or holds anything that no export wrote.
    """
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{folder} is a file, but the export needs a folder: give another `output_path`.")
    folder.mkdir(parents=True, exist_ok=True)
    record = _read_record(folder, owns)
    if record is None:
        _remove_strays(folder.glob(f".{RECORD}.*.tmp"))
        if any(folder.iterdir()):
            raise UsageError(f"{folder} holds files that no export wrote: empty it or give another `output_path`.")
    else:
        _remove_strays(itertools.chain.from_iterable(map(folder.glob, _STRAYS)))
        if record["fingerprint"] == fingerprint and record.get("complete") and _all_exist(folder, record["files"]):
            return record
        if record["fingerprint"] != fingerprint:
            _remove_owned(folder, owns[record["format"]])
    write_json(folder / RECORD, {"tool": TOOL, "format": name, "fingerprint": fingerprint})
    return None


def finish_folder(folder: Path, name: str, fingerprint: str, facts: Mapping[str, Any]) -> dict[str, Any]:
    """Write the record of a complete export: its last file. `facts` has `files`, the names that must exist."""
    record = {**facts, "tool": TOOL, "format": name, "fingerprint": fingerprint, "complete": True}
    write_json(folder / RECORD, record)
    return record


def refuse_inside(folder: Path, paths: Iterable[str | Path]) -> None:
    """Raise UsageError if a file of the source is in the folder: it would be deleted before it is read."""
    for path in paths:
        if Path(path).resolve().is_relative_to(folder.resolve()):
            raise UsageError(f"{folder} holds the source itself ({Path(path).name}): export to another folder.")


def marker_path(folder: Path, index: int) -> Path:
    """The last file of a shard; it holds the facts of the shard."""
    return folder / f"{index:05d}_stats.json"


def is_done(folder: Path, index: int, fingerprint: str) -> bool:
    """True if a shard was finished by this very export and its files are still there."""
    marker = marker_path(folder, index)
    if not marker.exists():
        return False
    facts = read_json(marker)
    return facts["fingerprint"] == fingerprint and _all_exist(folder, facts["files"])


@contextlib.contextmanager
def full_disk_explained(folder: Path) -> Iterator[None]:
    """Turn the error of a full disk into one that says what to do."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        message = f"the disk of {folder} is full; no incomplete file was left: free space and run the command again"
        raise OSError(error.errno, message) from error


def _read_record(folder: Path, owns: Mapping[str, tuple[str, ...]]) -> dict[str, Any] | None:
    try:
        record = read_json(folder / RECORD)
    except (OSError, ValueError):
        return None
    known = isinstance(record, dict) and record.get("tool") == TOOL and record.get("format") in owns
    return record if known and "fingerprint" in record else None


def _remove_owned(folder: Path, patterns: tuple[str, ...]) -> None:
    for path in sorted(folder.iterdir()):
        if any(re.fullmatch(pattern, path.name) for pattern in (*patterns, _MARKERS)):
            remove(path)


def _remove_strays(paths: Iterable[Path]) -> None:
    for path in list(paths):  # left by a killed export
        remove(path)


def _all_exist(folder: Path, names: list[str]) -> bool:
    return all((folder / name).exists() for name in names)
