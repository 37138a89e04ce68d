"""What a strategy remembers: named columns with one row for each training pair. Saved as safetensors, never pickled."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file, save
from torch import Tensor

from noisycorr.runtime.folder import atomic_path


class Memory:
    """Named columns of n rows; row i belongs to training pair i, whatever batch it stands in.

    Args:
        n: Number of training pairs.
        columns: Tensors (n, ...), by name.

    Raises:
        ValueError: If a column has another number of rows.
    """

    def __init__(self, n: int, **columns: Tensor) -> None:
        self.n = n
        self.columns: dict[str, Tensor] = {}
        for name, column in columns.items():
            self.add(name, column)

    def add(self, name: str, column: Tensor) -> None:
        """A new column (n, ...).

        Raises:
            ValueError: If it has another number of rows, or the name is taken.
        """
        if name in self.columns:
            raise ValueError(f"memory has a column {name!r} already")
        if column.ndim < 1 or len(column) != self.n:
            raise ValueError(f"column {name!r} has shape {tuple(column.shape)}, expected {self.n} rows")
        self.columns[name] = column.detach().clone()

    def read(self, name: str, rows: Tensor) -> Tensor:
        """Rows of a column, as a copy (b, ...) on the device of `rows`."""
        column = self._column(name)
        return column[rows.to(column.device)].to(rows.device)

    def write(self, name: str, rows: Tensor, values: Tensor) -> None:
        """Replace rows of a column. No gradient is kept.

        Raises:
            ValueError: If the values have another shape than the rows: nothing broadcasts.
        """
        column = self._column(name)
        if values.shape != (len(rows), *column.shape[1:]):
            raise ValueError(
                f"values for {len(rows)} rows of column {name!r} have shape {tuple(values.shape)}, expected "
                f"{(len(rows), *column.shape[1:])}"
            )
        column[rows.to(column.device)] = values.detach().to(column.device, column.dtype)

    def tensors(self, prefix: str = "") -> dict[str, Tensor]:
        """All columns by name, each with the prefix."""
        return {f"{prefix}{name}": column for name, column in self.columns.items()}

    def restore(self, tensors: Mapping[str, Tensor], prefix: str = "") -> None:
        """Take over what `tensors` gave.

        Raises:
            ValueError: If names, shapes or types are not those of this memory.
        """
        found = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
        if facts(found) != facts(self.columns):
            raise ValueError(f"stored memory holds {facts(found)}, but the strategy needs {facts(self.columns)}")
        for name, value in found.items():
            self.columns[name] = value.to(self.columns[name].device)

    def save(self, path: Path) -> None:
        """Write all columns, atomically."""
        with atomic_path(path) as temporary:
            temporary.write_bytes(save(self.tensors()))

    @staticmethod
    def load(path: Path, n: int) -> Memory:
        """Read what `save` wrote; ValueError if a column does not have n rows."""
        return Memory(n, **load_file(path))

    def differences(self, other: Memory) -> list[str]:
        """One line for each column that is not equal bit by bit; NaN equals NaN."""
        out = []
        for name in sorted({*self.columns, *other.columns}):
            one, two = self.columns.get(name), other.columns.get(name)
            if one is None or two is None:
                out.append(f"{name}: only in one of them")
            elif one.shape != two.shape or one.dtype != two.dtype:
                out.append(f"{name}: {one.dtype} {tuple(one.shape)} against {two.dtype} {tuple(two.shape)}")
            else:
                same = (one == two) | (torch.isnan(one) & torch.isnan(two))
                rows = (~same).reshape(self.n, -1).any(1).sum().item() if self.n else 0
                if rows:
                    out.append(f"{name}: {rows} rows differ")
        return out

    def clone(self) -> Memory:
        """A copy that shares nothing."""
        return Memory(self.n, **self.columns)

    def _column(self, name: str) -> Tensor:
        if name not in self.columns:
            raise KeyError(f"memory has no column {name!r}; it has {sorted(self.columns)}")
        return self.columns[name]


def facts(columns: Mapping[str, Tensor]) -> dict[str, str]:
    """Type and shape of each column, in words."""
    return {name: f"{value.dtype} {tuple(value.shape)}" for name, value in sorted(columns.items())}
