"""Checkpoints: folders of safetensors and JSON, complete or not there, refused if they belong to another training.

    checkpoints/step-00001234/{model,best,memory,optimizer}.safetensors, cursor.json, COMPLETE

A checkpoint is written under a temporary name and moved into place when it is whole, so a training that is killed at
any moment continues from the one before. Nothing in it is pickled.
"""

from __future__ import annotations

import dataclasses
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save
from torch import Tensor

from noisycorr.models.training.contract import Trust
from noisycorr.models.training.learner import Cursor, Learner
from noisycorr.runtime import dist
from noisycorr.runtime.folder import read_json, write_json

COMPLETE = "COMPLETE"


def save_checkpoint(learner: Learner, folder: Path, *, keep: int = 2) -> Path:
    """Write a checkpoint and delete those before the last `keep`. Every process calls it; the main one writes.

    Args:
        learner: At the end of a step.
        folder: Holds the checkpoints of one training.
        keep: How many stay, >= 1.

    Returns:
        The folder of this checkpoint.

    Raises:
        OSError: If the disk is full; older checkpoints are as they were.
    """
    return store_checkpoint(folder, learner.cursor.steps, lambda place: _write(learner, place), keep=keep)


def store_checkpoint(folder: Path, steps: int, write: Callable[[Path], None], *, keep: int) -> Path:
    """Make the checkpoint of a step, whole or not at all, and delete those before the last `keep`.

    Args:
        folder: Holds the checkpoints of one training.
        steps: Done so far.
        write: Writes the files into a folder; only in the main process.
        keep: How many stay, >= 1.
    """
    target = folder / f"step-{steps:08d}"
    if dist.is_main():
        folder.mkdir(parents=True, exist_ok=True)
        temporary = folder / f".{target.name}.{os.getpid()}.tmp"
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
        try:
            write(temporary)
            store(temporary / COMPLETE, b"")
            shutil.rmtree(target, ignore_errors=True)
            temporary.replace(target)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        for old in checkpoints(folder)[:-keep]:
            (old / COMPLETE).unlink()
            shutil.rmtree(old)
    dist.wait()
    return target


def checkpoints(folder: Path) -> list[Path]:
    """Whole checkpoints in order of their steps."""
    return sorted(path for path in folder.glob("step-*") if (path / COMPLETE).is_file())


def load_latest(learner: Learner, folder: Path) -> Path | None:
    """Continue from the last whole checkpoint; what killed processes left is ignored.

    Returns:
        The checkpoint, or None if there is none.

    Raises:
        ValueError: If it holds other tensors than this training.
    """
    found = checkpoints(folder)
    if not found:
        return None
    load_checkpoint(learner, found[-1])
    return found[-1]


def load_checkpoint(learner: Learner, path: Path) -> None:
    """Put a learner into the state that `save_checkpoint` wrote.

    Raises:
        ValueError: If it holds other tensors than this learner.
    """
    body = read_json(path / "cursor.json")
    model = load_file(path / "model.safetensors")
    own = learner.weights()
    if {k: v.shape for k, v in model.items()} != {k: v.shape for k, v in own.items()}:
        raise ValueError(f"{path} holds weights of other networks than this training has")
    learner.load_weights(model)
    learner.best = load_file(path / "best.safetensors")
    memory = load_file(path / "memory.safetensors")
    for number, one in enumerate(learner.memories):
        one.restore(memory, f"memory.{number}.")
    learner.trusts = [_trust(memory, number, body["notes"][number]) for number in range(len(learner.networks))]
    load_optimizer(learner.optimizer, load_file(path / "optimizer.safetensors"))
    if learner.scaler.is_enabled():
        learner.scaler.load_state_dict(body["scaler"])
    learner.cursor = Cursor(**body["cursor"])


def sweep(folder: Path) -> None:
    """Delete what killed processes left half-written. Only for the main process."""
    for stray in [*folder.glob(".step-*.tmp"), *(p for p in folder.glob("step-*") if not (p / COMPLETE).is_file())]:
        shutil.rmtree(stray, ignore_errors=True)


def _write(learner: Learner, place: Path) -> None:
    memory: dict[str, Tensor] = {}
    for number, one in enumerate(learner.memories):
        memory |= one.tensors(f"memory.{number}.")
    for number, trust in enumerate(learner.trusts):
        if trust is not None:
            memory[f"trust.{number}.p_clean"] = torch.from_numpy(np.ascontiguousarray(trust.p_clean))
            memory |= {f"trust.{number}.set.{name}": torch.from_numpy(mask) for name, mask in trust.all().items()}
    notes = [trust.note if trust is not None else None for trust in learner.trusts]
    for name, tensors in (
        ("model", learner.weights()),
        ("best", learner.best),
        ("memory", memory),
        ("optimizer", optimizer_tensors(learner.optimizer)),
    ):
        store_tensors(place / f"{name}.safetensors", tensors)
    body = {"cursor": dataclasses.asdict(learner.cursor), "notes": notes, "scaler": learner.scaler.state_dict()}
    write_json(place / "cursor.json", body)
    store(place / COMPLETE, b"")


def store_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write a file of safetensors."""
    store(path, save({key: value.detach().cpu().contiguous() for key, value in tensors.items()}))


def store(path: Path, data: bytes) -> None:
    """Write a file that stays when the machine goes down."""
    with path.open("wb") as file:  # through Python, so that a full disk is an OSError
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _trust(tensors: Mapping[str, Tensor], number: int, note: str | None) -> Trust | None:
    start = f"trust.{number}."
    if f"{start}p_clean" not in tensors:
        return None
    sets = {name.removeprefix(f"{start}set."): value.numpy() for name, value in tensors.items()
            if name.startswith(f"{start}set.")}  # fmt: skip
    return Trust(p_clean=tensors[f"{start}p_clean"].numpy(), clean=sets.pop("clean"), sets=sets, note=note)


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Moments of each parameter by its number. Rates and the like follow from the cursor and the settings."""
    state = optimizer.state_dict()["state"]
    return {f"{number}.{name}": value for number, values in state.items() for name, value in values.items()}


def load_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Put back what `optimizer_tensors` gave."""
    state: dict[int, dict[str, Any]] = {}
    for key, value in tensors.items():
        number, name = key.split(".", 1)
        state.setdefault(int(number), {})[name] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
