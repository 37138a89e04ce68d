"""Stages of a run: what is done is skipped, what changed is done again, and the person at the terminal is told."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from noisycorr.runtime import console, dist
from noisycorr.runtime.errors import UsageError
from noisycorr.runtime.folder import RUN_CONTENT, Run, atomic_path, stamped


def say(message: str) -> None:
    """One line for the person at the terminal, on stderr; only from the main process."""
    if dist.is_main():
        console.say(message)


def tell(lines: Sequence[str]) -> None:
    """Lines of a summary, warnings as such."""
    for line in lines:
        (console.warn if line.startswith("warning:") else console.say)(line)


def invalidate_stage(run: Run, name: str) -> None:
    """Take back the record of a stage."""
    (run.folder / "stages" / f"{name}.json").unlink(missing_ok=True)


def decided_with(run: Run, name: str, before: str) -> dict[str, Any]:
    """The record of a stage of verdicts, if it came from the scores that are there.

    Raises:
        UsageError: If either stage is not there, or the scores are newer.
    """
    record = require_stage(run, name)
    if record["inputs"][before] != require_stage(run, before)["fingerprint"]:
        raise UsageError(f"{run.folder} was scored anew after its verdicts: run `noisycorr audit` on it first.")
    return record


def run_stage(
    run: Run, name: str, inputs: dict[str, Any], work: Callable[[], dict[str, Any]], files: list[str]
) -> None:
    """Do the work of a stage that leaves these files, unless it was done with the same inputs by the same version."""
    if run.is_current(name, inputs, files):
        say(f"{name}: nothing changed, skipped")
        return
    invalidate_stage(run, name)  # its files are about to change
    started = time.perf_counter()
    facts = work()
    run.finish(name, stamped(inputs), facts)
    seconds = time.perf_counter() - started
    run.log(name, seconds=round(seconds, 3))
    say(f"{name}: {seconds:.1f} s")


def require_stage(run: Run, name: str) -> dict[str, Any]:
    """The record of a finished stage; UsageError if it is not."""
    if (record := run.stage(name)) is None:
        cure = "give `noisycorr audit` other options" if run.stage("audit") else "run `noisycorr clean` into it first"
        raise UsageError(f"{run.folder} holds no finished stage {name!r}: {cure}.")
    return record


def clear_training(run: Run, owner: str = "train_started") -> None:
    """Delete what a training left, but not the embeddings in its `data` folder.

    Raises:
        UsageError: If the folder holds something else.
    """
    if dist.is_main() and run.folder.exists():
        marker = run.folder / "stages" / f"{owner}.json"
        taken = [name for name in RUN_CONTENT if (run.folder / name).exists()]
        if taken and not marker.exists():
            raise UsageError(f"{run.folder} holds {taken[0]!r}, but no training: `overwrite` deletes trainings only.")
        run.clear()
    dist.wait()


def refuse_other_work(run: Run, marker: str, inputs: Mapping[str, Any], *, holds: str, cure: str = "") -> None:
    """Refuse a folder whose work depends on other things, with what differs (law 3).

    Args:
        run: The folder.
        marker: Stage that the work writes first, such as caption_started.
        inputs: JSON of everything that the result depends on.
        holds: What such a folder holds, for the error.
        cure: What else helps than another folder, such as ", or add `overwrite`".

    Raises:
        UsageError: If the marker is there with other inputs.
    """
    if differences := run.differences(marker, inputs):
        more = f" and {len(differences) - 2} more" if len(differences) > 2 else ""
        raise UsageError(f"{run.folder} holds {holds} ({'; '.join(differences[:2])}{more}): choose another "
                         f"`output_folder`{cure}.")  # fmt: skip


def write_yaml(path: Path, values: Mapping[str, Any]) -> None:
    """What a job was asked for, keys sorted, so that equal values give equal bytes; an equal file is left alone."""
    text = yaml.safe_dump(dict(values), sort_keys=True, allow_unicode=True)
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        with atomic_path(path) as temporary:
            temporary.write_text(text, encoding="utf-8")
