"""What the stages store of every pair, in parts: facts, features, scores; and how it is read."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from safetensors import safe_open

from noisycorr.data.columns import Column
from noisycorr.data.pairs import PAIRS
from noisycorr.runtime.folder import Run, read_json


def part_ranges(run: Run) -> list[tuple[int, int, int]]:
    """(piece, first row, number of rows) in order."""
    out, start = [], 0
    for index, size in part_sizes(run).items():
        out.append((index, start, size))
        start += size
    return out


def read_scores(run: Run, columns: list[str] | None = None) -> pa.Table:
    """What the score stage wrote, in row order."""
    return pa.concat_tables(
        [
            pq.read_table(run.folder / "scores" / f"{index:05d}.parquet", columns=columns)
            for index, _, _ in part_ranges(run)
        ]
    )


def _marker(run: Run, index: int) -> Path:
    return run.folder / "pairs" / f"{index:05d}_stats.json"


def pairs_path(run: Run, index: int) -> Path:
    """Facts of one piece."""
    return run.folder / "pairs" / f"{index:05d}.parquet"


def features_path(run: Run, index: int) -> Path:
    """Embeddings of one piece."""
    return run.folder / "embeddings" / f"part-{index:05d}.safetensors"


def parts(run: Run) -> list[int]:
    """Indices of the finished pieces, in order."""
    return sorted(int(path.name.split("_")[0]) for path in (run.folder / "pairs").glob("*_stats.json"))


def part_facts(run: Run) -> dict[int, dict[str, Any]]:
    """What the marker of each finished piece holds: `pairs`, and `problems` with their counts."""
    return {index: read_json(_marker(run, index)) for index in parts(run)}


def part_sizes(run: Run) -> dict[int, int]:
    """Number of pairs in each finished piece."""
    return {index: int(facts["pairs"]) for index, facts in part_facts(run).items()}


def read_facts(run: Run, columns: list[str]) -> pa.Table:
    """Chosen columns of the facts of all pairs, in row order."""
    tables = [pq.read_table(pairs_path(run, index), columns=columns) for index in parts(run)]
    return pa.concat_tables(tables) if tables else PAIRS.empty_table().select(columns)


def open_facts(run: Run, name: str) -> Column:
    """One column of the facts of all pairs, in row order, read when and as far as it is asked for."""
    sizes = part_sizes(run)

    def piece(index: int) -> Callable[[], pa.ChunkedArray]:
        return lambda: pq.read_table(pairs_path(run, index), columns=[name]).column(name)

    return Column([piece(index) for index in sizes], list(sizes.values()))


def read_features(run: Run, index: int, name: str) -> np.ndarray:
    """Embeddings (n, d) of one piece; `name` is `image` or `text`. Zero rows mean that there was nothing to encode."""
    with safe_open(features_path(run, index), framework="numpy") as file:
        return file.get_tensor(name)


def open_features(run: Run, name: str) -> list[np.ndarray]:
    """Embeddings of all pieces as memory maps (n, d) in row order: nothing is read before it is used.

    safetensors files start with the length of a JSON header, the header, then the raw tensors.
    """
    out = []
    for index in parts(run):
        path = features_path(run, index)
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            entry = json.loads(file.read(length))[name]
        dtype = {"F16": np.float16, "F32": np.float32}[entry["dtype"]]
        shape, offset = tuple(entry["shape"]), 8 + length + entry["data_offsets"][0]
        out.append(np.memmap(path, dtype, "r", offset, shape) if shape[0] else np.zeros(shape, dtype))
    return out
