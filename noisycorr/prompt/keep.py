"""What a tuning leaves on disk: rounds, to be continued; a prompt, a plain classifier, pseudo-labels and a ledger."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
from safetensors import safe_open
from safetensors.torch import load_file, save
from torch import Tensor

from noisycorr.data.pairs import pair_uid
from noisycorr.prompt.loop import State
from noisycorr.prompt.select import Selected
from noisycorr.prompt.task import Task
from noisycorr.runtime import dist
from noisycorr.runtime.errors import UsageError
from noisycorr.runtime.folder import Run, atomic_path, read_json, write_array, write_json

KIND = "noisycorr_prompt"


class Rounds:
    """Rounds of a tuning in a run folder: `rounds/NN.safetensors`, then `rounds/NN.json`, which says that it is done.

    Args:
        run: The folder.
        like: Any tensor on the device, and of the type, that weights should have.
    """

    def __init__(self, run: Run, like: Tensor) -> None:
        self.run, self._like = run, like

    def load(self) -> State | None:
        """The state after the last whole round, or None."""
        done = sorted((self.run.folder / "rounds").glob("[0-9]*.json"))
        if not done:
            return None
        body = read_json(done[-1])
        tensors = load_file(done[-1].with_suffix(".safetensors"))
        loop = {
            name.removeprefix("loop."): value.numpy() for name, value in tensors.items() if name.startswith("loop.")
        }
        weights = {name.removeprefix("prompt."): value.to(self._like) for name, value in tensors.items()
                   if name.startswith("prompt.")}  # fmt: skip
        named, since = loop.pop("named"), loop.pop("since")
        selected = None
        if "rows" in loop:
            selected = Selected(rows=loop["rows"], label=loop["label"], probability=loop["probability"],
                                rank=loop["rank"], targets=loop.get("targets"))  # fmt: skip
        return State(weights=weights, selected=selected, named=named, since=since, history=body["history"],
                     stopped=body["stopped"])  # fmt: skip

    def save(self, state: State) -> None:
        """Write a round; the main process does."""
        if dist.is_main():
            import torch

            number = len(state.history)
            arrays = {"named": state.named, "since": state.since}
            if state.selected is not None:
                fields = ("rows", "label", "probability", "rank", "targets")
                arrays |= {name: value for name in fields if (value := getattr(state.selected, name)) is not None}
            body = {f"prompt.{name}": value.detach().cpu().contiguous() for name, value in state.weights.items()}
            body |= {f"loop.{name}": torch.from_numpy(np.ascontiguousarray(value)) for name, value in arrays.items()}
            with atomic_path(self.run.path("rounds", f"{number:03d}.safetensors")) as path:
                path.write_bytes(save(body))
            write_json(self.run.path("rounds", f"{number:03d}.json"),
                       {"history": state.history, "stopped": state.stopped})  # fmt: skip
        dist.wait()


def save_prompt(path: Path, weights: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
    """Write learned tensors with what they belong to: encoder, class names, and the choice.

    The file opens in any reader of safetensors: `context` (k, m, w) overwrites the embeddings of the m tokens behind
    the start token, `tokens` (l, m, w) goes behind the class token of the image tower.
    """
    body = {name: value.detach().cpu().float().contiguous() for name, value in weights.items()}
    with atomic_path(path) as temporary:  # one key of metadata, because several come out in any order
        temporary.write_bytes(save(body, metadata={KIND: json.dumps(facts, sort_keys=True)}))


def load_prompt(path: Path, *, encoder: str, names: Sequence[str]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Learned tensors and their facts.

    Args:
        path: As `save_prompt` wrote it.
        encoder: Name of the encoder that it should belong to.
        names: Class names that it is to be used with.

    Raises:
        UsageError: If it is no prompt, belongs to another tower, or has one prompt for each of other classes.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
    except Exception as error:  # of safetensors, which has no family of its own
        raise UsageError(f"the prompt {path} could not be read: {' '.join(str(error).split())[:120]}.") from error
    if KIND not in metadata:
        raise UsageError(f"{path} holds no prompt: expected prompt.safetensors of `noisycorr prompt`.")
    try:
        facts: dict[str, Any] = json.loads(metadata[KIND])
        owner, own_names = facts["encoder"], list(facts["names"])
        weights = load_file(path)
    except Exception as error:  # of json and safetensors, or of facts that are not those written by `save_prompt`
        raise UsageError(f"the prompt {path} is damaged: {' '.join(str(error).split())[:120]}.") from error
    if owner != encoder:
        raise UsageError(f"the prompt {path} is for the tower {facts['encoder']}, not for {encoder}: use that.")
    if facts.get("context") == "class" and "context" in weights and own_names != list(names):
        raise UsageError(
            f"the prompt {path} has one context for each of {len(own_names)} classes, which are not these."
        )
    return weights, facts


def write_classifier(run: Run, vectors: np.ndarray, names: Sequence[str]) -> None:
    """`classifier.npy` (c, d), unit rows: image features of unit length times its transpose are cosines."""
    write_array(run.path("classifier.npy"), vectors.astype(np.float32))
    with atomic_path(run.path("classes.txt")) as path:
        path.write_text("".join(f"{name}\n" for name in names), encoding="utf-8")


def pseudo_table(task: Task, state: State) -> pa.Table:
    """The pseudo-labels of the last round that was kept: key, label, probability, round in which the image first got
    the label, and rank among the images of the label."""
    chosen = state.selected
    if chosen is None:
        rows = np.zeros(0, np.int64)
        chosen = Selected(rows=rows, label=rows, probability=rows.astype(np.float32), rank=rows)
    order = np.lexsort((chosen.rank, chosen.label))
    rows, label = chosen.rows[order], chosen.label[order]
    return pa.table({
        "key": pa.array([task.keys[row] for row in task.unlabelled[rows]], pa.string()),
        "label": pa.array([task.names[k] for k in task.open[label]], pa.string()),
        "probability": pa.array(chosen.probability[order], pa.float32()),
        "round": pa.array(state.since[rows], pa.int64()),
        "rank": pa.array(chosen.rank[order], pa.int64()),
    })  # fmt: skip


def write_tables(run: Run, task: Task, state: State, p: np.ndarray, zero: np.ndarray,
                 hashes: Sequence[str | None]) -> pa.Table:  # fmt: skip
    """`pseudo_labels.parquet` and `.csv`, and `ledger.parquet` with a row for every image.

    Args:
        run: The folder.
        task: Images and classes.
        state: The end of the tuning.
        p: float32 (n, c): probabilities of all images over all classes.
        zero: int64 (n,): zero-shot classes.
        hashes: Of the pictures.

    Returns:
        The pseudo-labels.
    """
    table = pseudo_table(task, state)
    with atomic_path(run.path("pseudo_labels.parquet")) as path:
        pq.write_table(table, path)
    with atomic_path(run.path("pseudo_labels.csv")) as path:
        pyarrow.csv.write_csv(table, path)
    chosen = dict(zip(table.column("key").to_pylist(), table.column("label").to_pylist()))
    best = np.where(task.label >= 0, task.label, p.argmax(1))
    surest = np.where(task.label >= 0, 1.0, p[np.arange(len(p)), best]).astype(np.float32)
    with atomic_path(run.path("ledger.parquet")) as path:
        pq.write_table(pa.table(_ledger(task, chosen, best, surest, zero, hashes)), path)
    return table


def _ledger(task: Task, chosen: Mapping[str, str], best: np.ndarray, surest: np.ndarray, zero: np.ndarray,
            hashes: Sequence[str | None]) -> dict[str, Any]:  # fmt: skip
    """Columns of the ledger: the text of an image is its class."""
    n = len(task.keys)
    text = [task.names[k] if ok else None for k, ok in zip(best, task.usable)]
    reasons = np.select(
        [~task.usable, task.held, task.label >= 0, np.array([key in chosen for key in task.keys], bool)],
        ["no image", "test image, not learned from", "label was given", "pseudo-label of the last round"],
        "predicted, not learned from",
    )
    return {
        "key": pa.array(task.keys, pa.string()),
        "uid": pa.array([pair_uid(digest, name) for digest, name in zip(hashes, text)], pa.string()),
        "row": np.arange(n),
        "text": pa.array(text, pa.string()),
        "text_zero_shot": pa.array([task.names[k] if ok else None for k, ok in zip(zero, task.usable)], pa.string()),
        "p_clean": pa.array(np.where(task.usable, surest, 0).astype(np.float32)),
        "verdict": pa.array(["keep" if ok else "drop" for ok in task.usable], pa.string()),
        "reason": pa.array(reasons.astype(str), pa.string()),
        "rule": pa.array(["prompt"] * n, pa.string()),
        "stage": pa.array(["prompt"] * n, pa.string()),
        "sample_weight": pa.array(np.where(task.usable, surest, 0).astype(np.float32)),
    }


def write_pairs(run: Run, keys: Sequence[str], texts: Sequence[str], image: np.ndarray, text: np.ndarray) -> None:
    """`labelled/`: image features with the vector of their class, a source that `clean` and `audit` read."""
    folder = run.folder / "labelled"
    for name, rows in (("image", image), ("text", text)):
        write_array(run.path("labelled", f"{name}.npy"), rows.astype(np.float16))
    with atomic_path(folder / "pairs.parquet") as path:
        pq.write_table(pa.table({"key": pa.array(keys, pa.string()), "text": pa.array(texts, pa.string())}), path)


def facts_of(context: Any, names: Sequence[str], encoder: str, scale: float) -> dict[str, Any]:
    """What a prompt file says about itself."""
    return {**dataclasses.asdict(context), "names": list(names), "encoder": encoder, "scale": scale}
