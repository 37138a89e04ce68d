"""A run is a folder: stages with fingerprints, atomic writes, provenance and a metrics log.

    run = Run("out")
    if not run.is_done("score", inputs):
        ...write files with `atomic_path`...
        run.finish("score", inputs)

A stage is done when `stages/<name>.json` exists and names the same inputs; it is written last. So a run that is
killed at any moment is continued by the same command, and a stage whose inputs did not change is skipped.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import json
import os
import platform
import shutil
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from noisycorr.runtime.errors import UsageError
from noisycorr.runtime.version import __version__

if TYPE_CHECKING:
    import numpy as np


def fingerprint(value: Any) -> str:
    """SHA-256 (first 16 hex digits) of a JSON value, independent of key order."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def stamped(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Inputs of work that another version does anew."""
    return {**inputs, "noisycorr": __version__}


def fingerprint_file(path: Path) -> list[Any]:
    """Identity of an input file: name, size, modification time. Content changed behind all three goes unnoticed."""
    stat = path.stat()
    return [path.name, stat.st_size, stat.st_mtime_ns]


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; move it there only when the block ends without an error.

    A reader sees the old file or the whole new one, never a part. A full disk raises OSError and leaves the old file.
    The process id in the name lets `Run.sweep` tell what a killed process left from what another one is writing.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Write JSON atomically, keys sorted, so that equal values give equal bytes."""
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2, sort_keys=True, default=str) + "\n", encoding="utf-8")


def write_array(path: Path, array: np.ndarray) -> None:
    """Write a .npy file atomically; arrays of objects, which would be pickled, are refused."""
    import numpy as np

    with atomic_path(path) as temporary, temporary.open("wb") as file:
        np.save(file, array, allow_pickle=False)


def read_json(path: Path) -> Any:
    """Read JSON written by `write_json`."""
    return json.loads(path.read_text(encoding="utf-8"))


class Run:
    """A run folder. Holds no data itself: everything is on disk.

    Args:
        folder: Made when something is written.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)

    def sweep(self) -> None:
        """Delete the temporary files of killed processes. Only for the main process, before the others write.

        Only files named as by `atomic_path`, in places that a run writes to, and of no process that is alive.
        """
        for place in (self.folder, *(self.folder / name for name in _PLACES), *self.folder.glob(f"{SOURCE}/*")):
            for stray in place.glob(".*.*.tmp"):
                process = stray.name.split(".")[-2]
                if process.isdecimal() and (int(process) == os.getpid() or not _is_alive(int(process))):
                    stray.unlink(missing_ok=True)

    def path(self, *parts: str) -> Path:
        """A path inside the folder; parents are created."""
        path = self.folder.joinpath(*parts)
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def stage(self, name: str) -> dict[str, Any] | None:
        """What a finished stage recorded, or None."""
        path = self.folder / "stages" / f"{name}.json"
        return read_json(path) if path.exists() else None

    def is_done(self, name: str, inputs: Mapping[str, Any]) -> bool:
        """True if the stage finished with exactly these inputs."""
        record = self.stage(name)
        return record is not None and record["fingerprint"] == fingerprint(inputs)

    def is_current(self, name: str, inputs: Mapping[str, Any], files: Iterable[str]) -> bool:
        """True if the stage was finished with these inputs by this version, and left these files of the folder."""
        return self.is_done(name, stamped(inputs)) and all((self.folder / file).exists() for file in files)

    def finish(self, name: str, inputs: Mapping[str, Any], facts: Mapping[str, Any] | None = None) -> None:
        """Mark a stage as finished. Call it after its last file is in place."""
        record = {"fingerprint": fingerprint(inputs), "inputs": inputs, "facts": dict(facts or {})}
        write_json(self.path("stages", f"{name}.json"), record)

    def differences(self, name: str, inputs: Mapping[str, Any]) -> list[str]:
        """How the inputs of a finished stage differ from these, one line each; empty if equal or never run."""
        record = self.stage(name)
        if record is None:
            return []
        old, new = _flat(record["inputs"]), _flat(json.loads(json.dumps(inputs, default=str)))
        return [
            f"{'.'.join(map(str, key)) or 'all'}: was {_short(old.get(key))}, now {_short(new.get(key))}"
            for key in dict.fromkeys([*old, *new])
            if old.get(key) != new.get(key)
        ]

    def log(self, event: str, **values: float | int | str) -> None:
        """Append one line to metrics.jsonl. Times live here, never in files that must be reproducible."""
        line = json.dumps({"event": event, "time": round(time.time(), 3), **values})
        with self.path("metrics.jsonl").open("a", encoding="utf-8") as file:
            file.write(line + "\n")

    def clear(self) -> None:
        """Delete everything a run writes, nothing else.

        What says that something is done goes before the thing itself, and the record of what the folder belongs to
        goes last: a run killed in between is either continued rightly or refused.
        """
        owner = self.folder / "stages" / "embed_started.json"
        for marker in [*self.folder.glob("stages/*.json"), *self.folder.glob("*/*_stats.json")]:
            if marker != owner and marker.relative_to(self.folder).parts[0] in RUN_CONTENT:
                marker.unlink(missing_ok=True)
        for name in (*(name for name in RUN_CONTENT if name != "stages"), "stages"):
            path = self.folder / name
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)


SOURCE = "source"  # pairs that came as a Python object, a folder for each object; `overwrite` spares the one in use
AUDIT_CONFIG = "audit.yaml"  # the flags of an audit; config.yaml holds those of the embedding
RUN_CONTENT = (
    "config.yaml", AUDIT_CONFIG, "provenance.json", "pairs", "embeddings", "scores", "ledger", "export", "stages",
    "checkpoints",
    "metrics.jsonl", "evaluation.json", "report.json", "report.html", "model.safetensors", "model.json",
    "trust.parquet", "split.parquet", "networks", "pictures", "trackers", "recaption", "models",
    "predictions.parquet", "captioner.json", "captioner.safetensors", "aligner.safetensors", "levels.json",
    "pieces.json", "language", "captions",
)  # fmt: skip
_PLACES = ("pairs", "embeddings", "scores", "ledger", "recaption", "stages")  # exports look after themselves


def _is_alive(process: int) -> bool:
    if os.name != "posix":  # there the signal 0 would not be a question
        return False
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        return True
    return True


def provenance() -> dict[str, Any]:
    """Versions, platform and threads of this process: what a reader needs to reproduce a number."""
    import torch

    return {
        "noisycorr": __version__,
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        "machine": platform.machine(),
        "threads": torch.get_num_threads(),
        "versions": library_versions(),
    }


def library_versions() -> dict[str, str]:
    """Versions of the libraries that numbers depend on, of those that are installed."""
    names = ("torch", "torchvision", "numpy", "scipy", "scikit-learn", "pyarrow", "pillow", "faiss-cpu",
             "open_clip_torch", "transformers", "datasets", "accelerate", "timm")  # fmt: skip
    versions = {}
    for name in names:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return versions


def _flat(value: Any, place: tuple[str | int, ...] = ()) -> dict[tuple[str | int, ...], str]:
    """Leaves of nested mappings and lists, as JSON, by place: what differs here is what differs for `fingerprint`."""
    if isinstance(value, Mapping) and value:
        items: Iterable[tuple[Any, Any]] = value.items()
    elif isinstance(value, list) and value:
        items = enumerate(value)
    else:
        return {place: json.dumps(value)}
    return {key: leaf for name, item in items for key, leaf in _flat(item, (*place, name)).items()}


def _short(leaf: str | None, limit: int = 80) -> str:
    text = "nothing" if leaf is None else repr(json.loads(leaf))
    return text if len(text) <= limit else f"{text[:limit]}..."


def open_run(folder: str | Path) -> Run:
    """An existing run folder; UsageError if there is none."""
    if not (Path(folder) / "config.yaml").is_file():
        raise UsageError(f"{folder} is not a run folder: run `noisycorr clean SOURCE --output_folder {folder}` first.")
    return Run(folder)


def new_run(folder: str | os.PathLike[str]) -> Run:
    """A folder that a run can be made in; UsageError if it, or one that it is in, is a file."""
    for place in (Path(folder), *Path(folder).parents):
        if place.exists() and not place.is_dir():
            raise UsageError(f"{place} is a file, but the run needs a folder: choose another `output_folder`.")
    return Run(Path(folder))
