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
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from noisycorr import __version__


def fingerprint(value: Any) -> str:
    """SHA-256 (first 16 hex digits) of a JSON value, independent of key order."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def fingerprint_file(path: Path) -> list[Any]:
    """Identity of an input file: name, size, modification time. Content changed behind all three goes unnoticed."""
    stat = path.stat()
    return [path.name, stat.st_size, stat.st_mtime_ns]


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; move it there only when the block ends without an error.

    A reader sees the old file or the whole new one, never a part. A full disk raises OSError and leaves the old file.
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


def read_json(path: Path) -> Any:
    """Read JSON written by `write_json`."""
    return json.loads(path.read_text(encoding="utf-8"))


class Run:
    """A run folder. Holds no data itself: everything is on disk.

    Args:
        folder: Created if absent.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        for stray in self.folder.rglob(".*.tmp"):  # left by a killed run
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
        keys = sorted(set(old) | set(new))
        return [f"{k}: was {old.get(k)!r}, now {new.get(k)!r}" for k in keys if old.get(k) != new.get(k)]

    def log(self, event: str, **values: float | int | str) -> None:
        """Append one line to metrics.jsonl. Times live here, never in files that must be reproducible."""
        line = json.dumps({"event": event, "time": round(time.time(), 3), **values})
        with self.path("metrics.jsonl").open("a", encoding="utf-8") as file:
            file.write(line + "\n")

    def clear(self) -> None:
        """Delete everything a run writes, nothing else."""
        for name in RUN_CONTENT:
            path = self.folder / name
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)


RUN_CONTENT = (
    "config.yaml", "provenance.json", "pairs", "embeddings", "scores", "ledger", "export", "stages", "checkpoints",
    "metrics.jsonl", "report.json", "report.html",
)  # fmt: skip


def provenance() -> dict[str, Any]:
    """Versions, platform and threads of this process: what a reader needs to reproduce a number."""
    names = ("torch", "torchvision", "numpy", "scipy", "scikit-learn", "pyarrow", "pillow", "faiss-cpu",
             "open_clip_torch", "transformers", "datasets", "accelerate", "timm")  # fmt: skip
    versions = {}
    for name in names:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    import torch

    return {
        "noisycorr": __version__,
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        "machine": platform.machine(),
        "threads": torch.get_num_threads(),
        "versions": versions,
    }


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    if isinstance(value, Mapping):
        return {k: v for name, item in value.items() for k, v in _flat(item, f"{prefix}.{name}".lstrip(".")).items()}
    return {prefix: value}
