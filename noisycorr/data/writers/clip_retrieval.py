"""Writer of clip-retrieval's folders: img_emb/, text_emb/ and metadata/, row i of each belonging together.

Its index, autofaiss and embedding-reader work on them unchanged; so does `noisycorr clean`.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from noisycorr.data.writers import Format, Layout, Row, shard_files
from noisycorr.data.writers.shards import parquet_file, write_array


def write(folder: Path, index: int, rows: Iterator[Row], layout: Layout) -> dict[str, Any]:
    """Write the three files of one shard: float16 unit vectors, and the columns of the pairs with `caption`.

    A row of zeros stands for an image or text that could not be embedded.
    """
    number = str(index).zfill(len(str(layout.shards)))
    files = [f"img_emb/img_emb_{number}.npy", f"text_emb/text_emb_{number}.npy", f"metadata/metadata_{number}.parquet"]
    images: list[np.ndarray] = []
    texts: list[np.ndarray] = []
    with parquet_file(folder / files[2], _schema(layout)) as table:
        for row in rows:
            if row.embedding is None:
                raise ValueError(f"row {row.position} came without its embedding")
            images.append(unit(row.embedding[0]))
            texts.append(unit(row.embedding[1]))
            table.add({"image_path": row.key, "caption": row.text, **row.values})
    for name, vectors in ((files[0], images), (files[1], texts)):
        write_array(folder / name, np.stack(vectors) if vectors else np.zeros((0, 1), np.float16))
    return {"rows": len(images), "files": files}


def unit(vector: np.ndarray) -> np.ndarray:
    """The vector (d,) with length 1 as float16; zeros stay zeros."""
    wide = vector.astype(np.float64)
    length = float(np.linalg.norm(wide))
    return (wide / (length or 1.0)).astype(np.float16)


def _schema(layout: Layout) -> pa.Schema:
    """The columns that clip-retrieval looks for go first; input columns of these names stay what they are."""
    missing = [name for name in ("image_path", "caption") if name not in layout.schema.names]
    return pa.schema([*(pa.field(name, pa.string()) for name in missing), *layout.schema])


FORMAT = Format(
    write=write, finish=shard_files, owns=("img_emb", "text_emb", "metadata"), images="", embeddings=True,
    new_texts=False,
)  # fmt: skip
