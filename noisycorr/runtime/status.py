"""What a run folder tells about a run that is at work, ended or dead. Reads markers only and changes nothing."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from noisycorr.runtime.errors import UsageError
from noisycorr.runtime.folder import AUDIT_CONFIG, Run, read_json
from noisycorr.runtime.lock import NAME, is_owner_alive, read_owner

STAGES = ("embed", "score", "decide", "report")
AUDIT = ("embed", "audit_score", "audit", "audit_report")
RECENT = 20  # pieces whose rate is told


def status(folder: Path) -> list[str]:
    """Lines for a person.

    Args:
        folder: Of any job.

    Raises:
        UsageError: If nothing there looks like a run.
    """
    run = Run(folder)
    if not (folder / "stages").is_dir() and not (folder / NAME).exists():
        raise UsageError(f"{folder} holds no run: name the folder that was given as `output_folder`.")
    owner = _owner(folder)
    at_work = owner.startswith("at work")
    lines = [f"run: {folder}", f"state: {owner}"]
    started = run.stage("embed_started")
    if started is not None:
        lines.append(f"embed: {_embed(run, started)}")
    stages = AUDIT if (folder / AUDIT_CONFIG).exists() and not any(map(run.stage, STAGES[1:])) else STAGES
    for name in stages[1:]:
        if started is not None:
            lines.append(f"{name}: {_stage(run, name)}")
    lines += [
        f"{path.stem}: done" for path in sorted(folder.glob("stages/*.json"))
        if path.stem not in (*stages, "embed_started") and not path.stem.endswith("_started")
    ]  # fmt: skip
    if saved := sorted(folder.glob("checkpoints/step-*/COMPLETE")):
        lines.append(f"train: checkpoint {saved[-1].parent.name}, {_ago(saved[-1])}")
    begun = _begun(folder)
    lines += [f"{name}: {_rounds(folder)}" for name in begun]
    open_stages = started is not None and any(run.stage(name) is None for name in stages)
    if not at_work and (open_stages or begun or owner.startswith("dead")):  # a killed job leaves its lock
        lines.append("not finished: the same command continues it")
    return lines


def _begun(folder: Path) -> list[str]:
    """Jobs other than `clean` that began here and did not come to their end."""
    names = [path.stem.removesuffix("_started") for path in sorted(folder.glob("stages/*_started.json"))]
    return [name for name in names if name != "embed" and not (folder / "stages" / f"{name}.json").exists()]


def _rounds(folder: Path) -> str:
    """How far a job is that goes in rounds; the others tell their checkpoints."""
    done = sorted(folder.glob("rounds/[0-9]*.json"))
    return f"begun, {len(done)} rounds done, the last {_ago(done[-1])}" if done else "begun"


def _owner(folder: Path) -> str:
    path = folder / NAME
    if not path.exists():
        return "nobody writes it"
    owner = read_owner(path)
    who = f"process {owner.pid} on {owner.host} (noisycorr {owner.command})" if owner else "unknown process"
    word = "at work" if is_owner_alive(owner, path) else "dead, its lock will be taken over"
    return f"{word}: {who}, last heartbeat {_ago(path)}"


def _embed(run: Run, started: dict[str, Any]) -> str:
    """Pieces, pairs and the rate over the last pieces."""
    markers = sorted((path.stat().st_mtime, path) for path in (run.folder / "pairs").glob("*_stats.json"))
    pairs = [int(read_json(path)["pairs"]) for _, path in markers]
    total = (started.get("facts") or {}).get("pieces")
    told = f"{len(markers)} of {total} pieces" if total else f"{len(markers)} pieces"
    told += f", {sum(pairs):,} pairs"
    last = min(RECENT, len(markers) - 1)
    seconds = markers[-1][0] - markers[-1 - last][0] if last > 0 else 0.0
    if seconds > 0:
        told += f", {sum(pairs[-last:]) / seconds:,.1f} pairs/s over the last {last + 1} pieces"
    if run.stage("embed") is not None:
        return f"done, {told}"
    return told + (f", last piece {_ago(markers[-1][1])}" if markers else "")


def _stage(run: Run, name: str) -> str:
    path = run.folder / "stages" / f"{name}.json"
    return f"done {_ago(path)}" if path.exists() else "not done"


def _ago(path: Path) -> str:
    seconds = max(0.0, time.time() - path.stat().st_mtime)
    for size, word in ((86_400, "days"), (3_600, "hours"), (60, "minutes")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {word} ago"
    return f"{seconds:.0f} seconds ago"
