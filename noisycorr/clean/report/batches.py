"""Reading a finished run as a stream: ledger and facts of the same rows, side by side, a thousand rows at a time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from noisycorr.clean.report.frequency_sketch import SAMPLE, FrequencySketch, in_sample
from noisycorr.runtime.errors import UsageError
from noisycorr.runtime.folder import Run

ROWS = 1024
TEXT = 1000  # characters of a text that the report looks at
FROM_PAIRS = (
    "key", "text", "columns", "problem", "image_hash", "width", "height", "image_format", "image_frames",
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Some rows of one piece.

    Attributes:
        piece: Name of the piece, as `00000`.
        start: Position of the first row in its piece.
        row: Position of the first row in the whole set.
        total: Rows of the whole set.
        table: The ledger's columns, and `FROM_PAIRS`; `text` is cut to `TEXT` characters, `text_length` is its length.
    """

    piece: str
    start: int
    row: int
    total: int
    table: pa.Table

    def __len__(self) -> int:
        return int(self.table.num_rows)

    def rows(self) -> np.ndarray:
        """(n,) row numbers in the whole set."""
        return np.arange(self.row, self.row + len(self))

    def sampled(self, capacity: int = SAMPLE) -> np.ndarray:
        """(n,) bool, the rows of the fixed sample of the whole set."""
        return in_sample(self.rows(), self.total, capacity)

    def floats(self, name: str) -> np.ndarray:
        """(n,) float64; NaN where the value is null, and everywhere if there is no such column."""
        if name not in self.table.column_names:
            return np.full(len(self), np.nan)
        column = self.table.column(name).cast(pa.float64(), safe=False)
        return np.asarray(column.to_numpy(), np.float64).copy()

    def strings(self, name: str) -> list[str | None]:
        """n strings; None where the value is null, and everywhere if there is no such column."""
        return self.table.column(name).to_pylist() if name in self.table.column_names else [None] * len(self)

    def flags(self, name: str) -> np.ndarray:
        """(n,) bool; False where the value is null, and everywhere if there is no such column."""
        return self.floats(name) == 1.0

    def verdicts(self) -> np.ndarray:
        """(n,) strings keep, drop or other (review, and everything to be repaired)."""
        known = {"keep": "keep", "drop": "drop"}
        return np.array([known.get(value or "", "other") for value in self.strings("verdict")], dtype="<U5")


@dataclass(frozen=True, kw_only=True)
class Survey:
    """What must be known before the rows are counted: how many there are, and how far the scores reach.

    Attributes:
        pieces: Names of the pieces in order.
        rows: Rows of the whole set.
        scores: For each column `score_*`, and `p_clean`, the lowest and highest value that a histogram should show.
        groups: The largest near-duplicate groups and their sizes.
        group_count: Number of near-duplicate groups.
        group_rows: Rows that belong to one.
    """

    pieces: list[str]
    rows: int
    scores: dict[str, tuple[float, float]]
    groups: dict[str, int]
    group_count: int
    group_rows: int


def survey(run: Run, groups: int = 12) -> Survey:
    """First pass, over scores and groups only.

    Args:
        run: A run whose decide stage is done.
        groups: How many of the largest near-duplicate groups to name.

    Raises:
        UsageError: If the run holds no ledger, or the ledger does not fit the pairs.
    """
    pieces = sorted(path.stem for path in (run.folder / "ledger").glob("*.parquet"))
    if not pieces:
        raise UsageError(f"{run.folder} holds no ledger to report on; run `noisycorr clean` or `decide` on it first.")
    rows, names = 0, {"p_clean"}
    for piece in pieces:
        ledger, facts = run.folder / "ledger" / f"{piece}.parquet", run.folder / "pairs" / f"{piece}.parquet"
        held = pq.read_metadata(ledger).num_rows
        known = pq.read_metadata(facts).num_rows if facts.exists() else 0
        if held != known:
            raise UsageError(f"{ledger} has {held} rows but {facts} has {known}; run the decide stage again.")
        rows += held
        names |= {name for name in pq.read_schema(ledger).names if name.startswith("score_")}
    samples: dict[str, list[np.ndarray]] = {name: [] for name in sorted(names)}
    tally, row = FrequencySketch(limit=100_000), 0
    for piece in pieces:
        path = run.folder / "ledger" / f"{piece}.parquet"
        for table in _slices(path, {*names, "near_duplicate_group"}):
            batch = Batch(piece=piece, start=0, row=row, total=rows, table=table)
            row += len(batch)
            tally.add(group for group in batch.strings("near_duplicate_group") if group)
            chosen = batch.sampled()
            for name, sample in samples.items():
                sample.append(batch.floats(name)[chosen])
    return Survey(
        pieces=pieces,
        rows=rows,
        scores={name: _span(np.concatenate(sample or [np.zeros(0)])) for name, sample in samples.items()}
        | {"p_clean": (0.0, 1.0)},
        groups={name: count + tally.error for name, count in tally.top(groups)},
        group_count=tally.distinct(),
        group_rows=tally.total,
    )


def batches(run: Run, surveyed: Survey) -> Iterator[Batch]:
    """Second pass: every row once, in order. Thumbnails are not read."""
    row = 0
    for piece in surveyed.pieces:
        start = 0
        ledger = _slices(run.folder / "ledger" / f"{piece}.parquet", None)
        facts = _slices(run.folder / "pairs" / f"{piece}.parquet", set(FROM_PAIRS))
        for left, right in zip(ledger, facts, strict=True):
            table = left.drop_columns([name for name in left.column_names if name in FROM_PAIRS])
            for name in right.column_names:
                table = table.append_column(name, right.column(name))
            if "text" in table.column_names:
                text = table.column("text")
                table = table.append_column("text_length", pc.utf8_length(text))
                cut = pc.utf8_slice_codeunits(text, 0, TEXT)
                table = table.set_column(table.column_names.index("text"), "text", cut)
            yield Batch(piece=piece, start=start, row=row, total=surveyed.rows, table=table)
            start += table.num_rows
            row += table.num_rows


def read_binary(path: Path, column: str, positions: list[int]) -> dict[int, bytes]:
    """Bytes of a few rows of one Parquet column, reading only the row groups that hold them."""
    out: dict[int, bytes] = {}
    file = pq.ParquetFile(path, pre_buffer=False)
    first = 0
    for group in range(file.num_row_groups):
        size = file.metadata.row_group(group).num_rows
        wanted = [position for position in positions if first <= position < first + size]
        if wanted and column in file.schema_arrow.names:
            values = file.read_row_group(group, columns=[column]).column(column)
            out |= {position: values[position - first].as_py() or b"" for position in wanted}
        first += size
    return out


def _slices(path: Path, columns: set[str] | None) -> Iterator[pa.Table]:
    """Tables of exactly `ROWS` rows (the last one shorter), whatever the row groups of the file are."""
    file = pq.ParquetFile(path, pre_buffer=False)
    names = [name for name in file.schema_arrow.names if columns is None or name in columns]
    held: pa.Table | None = None
    for batch in file.iter_batches(batch_size=ROWS, columns=names):
        table = pa.Table.from_batches([batch])
        held = table if held is None else pa.concat_tables([held, table])
        while held.num_rows >= ROWS:
            yield held.slice(0, ROWS)
            held = held.slice(ROWS)
    if held is not None and held.num_rows:
        yield held


def _span(sample: np.ndarray) -> tuple[float, float]:
    """Where the values lie, without the far outliers."""
    sample = sample[np.isfinite(sample)]
    if not len(sample):
        return 0.0, 1.0
    low, high = np.quantile(sample, [0.001, 0.999])
    reach = 0.25 * (high - low)
    low, high = max(sample.min(), low - reach), min(sample.max(), high + reach)
    if high - low < 1e-9 * max(1.0, abs(high)):
        return float(low) - 0.5, float(high) + 0.5
    return float(low), float(high)
