"""One run at a time writes a folder: `run.lock` says who, and a heartbeat says that it is alive.

A second run is refused with the first one's process and host. The lock of a dead owner is taken over: on the same host
the process is looked up, together with its start, because numbers of processes come again; on another host nothing can
be looked up, so there the heartbeat counts, by the clock of the file system, which both hosts share.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from noisycorr.runtime import dist
from noisycorr.runtime.errors import UsageError

NAME = "run.lock"
BEAT = 10.0  # seconds between heartbeats
SILENT = 600.0  # seconds without one after which an owner on another host counts as dead
KINDS = {  # what a folder holds, by the marker that its work writes first
    "embed_started": "pairs of `noisycorr clean`", "embed": "pairs of `noisycorr clean`",
    "train_started": "a model of `noisycorr train`", "caption_started": "a captioner of `noisycorr caption train`",
    "generate": "texts of `noisycorr caption generate`", "classify_started": "a model of `noisycorr classify train`",
    "tune_started": "a model of `noisycorr tune`", "prompt_started": "prompts of `noisycorr prompt`",
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Owner:
    """Who writes a folder.

    Attributes:
        pid: Process.
        host: Its machine.
        start: When the process started, in ticks since the machine did; 0 if the system does not tell.
        command: The verb.
    """

    pid: int
    host: str
    start: int
    command: str


def at_work(folder: Path, command: str) -> contextlib.AbstractContextManager[None]:
    """`locked` by the main process for all of its group."""
    return locked(folder, command) if dist.is_main() else contextlib.nullcontext()


@contextlib.contextmanager
def locked(folder: Path, command: str) -> Iterator[None]:
    """Hold the lock of a folder during the block. A folder that was made for it, and holds nothing then, goes again.

    Args:
        folder: Made if absent. If it cannot be, because a file is in the way, there is no lock: the verb says so.
        command: The verb, for those who are refused.

    Raises:
        UsageError: If another run that is alive holds it.
    """
    if any(place.exists() and not place.is_dir() for place in (folder, *folder.parents)):
        yield
        return
    made = [place for place in (folder, *folder.parents) if not place.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    path, me = folder / NAME, Owner(pid=os.getpid(), host=platform.node(), start=_start(os.getpid()), command=command)
    stop = threading.Event()
    try:
        _take(path, me)
        threading.Thread(target=_beat, args=(path, stop), daemon=True).start()
        yield
    finally:
        stop.set()
        if read_owner(path) == me:
            path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # it holds something, as it should
            for place in made:
                place.rmdir()


def read_owner(path: Path) -> Owner | None:
    """Who holds a lock; None if nobody does, or if the file says nothing that can be read."""
    try:
        return Owner(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def silence(path: Path) -> float:
    """Seconds since the last heartbeat, by the clock of the file system where it can be written, else by ours."""
    probe = path.with_name(f".{NAME}.{os.getpid()}.tmp")
    try:
        probe.write_bytes(b"")
        now = probe.stat().st_mtime
    except OSError:
        now = time.time()
    finally:
        with contextlib.suppress(OSError):
            probe.unlink(missing_ok=True)
    return now - path.stat().st_mtime


def is_owner_alive(owner: Owner | None, path: Path) -> bool:
    """False if the owner is known to be dead, or was silent too long on another host."""
    if owner is not None and owner.host == platform.node() and os.name == "posix":
        try:
            os.kill(owner.pid, 0)
        except ProcessLookupError:
            return False
        except (OSError, OverflowError):
            return True
        return owner.start == _start(owner.pid)
    try:
        return silence(path) < SILENT
    except FileNotFoundError:
        return False


def _take(path: Path, me: Owner) -> None:
    while True:
        whole = path.with_name(f".{NAME}.{os.getpid()}.tmp")
        whole.write_text(json.dumps(asdict(me), sort_keys=True) + "\n", encoding="utf-8")
        try:
            if _create(whole, path):
                return
        finally:
            whole.unlink(missing_ok=True)
        owner = read_owner(path)
        if owner == me:  # a verb that calls another one
            raise UsageError(f"{path.parent} is being written by this very process.")
        if is_owner_alive(owner, path):
            who = (
                f"process {owner.pid} on host {owner.host} (noisycorr {owner.command})" if owner else "another process"
            )
            raise UsageError(
                f"{path.parent} is being written by {who}: wait for it or stop it, or choose another `output_folder`; "
                f"if it is no more, delete {path.name}."
            )
        _remove_dead(path, owner)


def _create(whole: Path, path: Path) -> bool:
    """Put a written file in its place unless there is one; True if that was done."""
    try:
        os.link(whole, path)
    except FileExistsError:
        return False
    except OSError:  # a file system without links
        try:
            with path.open("x", encoding="utf-8") as file:
                file.write(whole.read_text(encoding="utf-8"))
        except FileExistsError:
            return False
    return True


def _remove_dead(path: Path, owner: Owner | None) -> None:
    """Remove the lock of a dead owner; if another run took it over meanwhile, its lock is put back."""
    aside = path.with_name(f".{NAME}.dead.{os.getpid()}.tmp")
    with contextlib.suppress(FileNotFoundError):
        path.rename(aside)
        if read_owner(aside) != owner:
            with contextlib.suppress(OSError):
                os.link(aside, path)
        aside.unlink(missing_ok=True)


def _beat(path: Path, stop: threading.Event) -> None:
    while not stop.wait(BEAT):
        with contextlib.suppress(OSError):
            os.utime(path)


def _start(pid: int) -> int:
    """Start of a process, where the system tells it as Linux does."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[19])
    except (OSError, ValueError, IndexError):
        return 0


def refuse_other_kind(folder: Path, *kinds: str) -> None:
    """Refuse a folder that holds work of another kind, finished or begun: its config and reports would be lost.

    Args:
        folder: Where something is to be written.
        kinds: Keys of `KINDS` that may be there.

    Raises:
        UsageError: If it holds anything else of `KINDS`.
    """
    for name, told in KINDS.items():
        if name not in kinds and (folder / "stages" / f"{name}.json").exists():
            raise UsageError(f"{folder} holds {told}: choose another `output_folder`.")
