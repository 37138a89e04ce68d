"""Readers: any source of image-text pairs as a stream of `Pair` records, piece by piece.

    reader = open_source(Source(path="shards/{00000..00010}.tar"))
    for piece in reader.pieces():
        for pair in reader.read(piece):
            ...

A reader never raises for bad rows of data: a row that cannot be read comes out as a pair with a `problem`. Wrong use
(a path that does not exist, a column that is in no file) raises `UsageError` when the source is opened.
"""

from __future__ import annotations

from pathlib import Path

from noisycorr.data.readers.source import FORMATS, Piece, Reader, Reading, Source
from noisycorr.runtime.errors import UsageError

__all__ = ["FORMATS", "Piece", "Reader", "Reading", "Source", "open_source"]


def open_source(source: Source) -> Reader:
    """Open a source with the reader that fits it.

    Args:
        source: What to read.

    Returns:
        A reader; small facts (names of files, columns) are read already, pairs are not.

    Raises:
        UsageError: If nothing readable is there, or image and text cannot be found in it.
    """
    from noisycorr.data.readers import coco, embeddings, folder, hf, locate, tables, webdataset

    if source.image_root is not None and not Path(source.image_root).expanduser().is_dir():
        raise UsageError(f"image_root {source.image_root} is not a folder: name the one that image paths start from.")
    if source.path.startswith(locate.HUB):
        return hf.open_hub(source)
    if source.input_format == "hf" and not Path(source.path).expanduser().exists():
        return hf.open_hub(source)
    paths = locate.sample_files() if source.path == "sample" else locate.expand_paths(source.path)
    format_ = locate.find_format(source, paths)
    if format_ == "files":
        return folder.FolderReader(paths, source)
    if format_ == "embeddings":
        return embeddings.EmbeddingReader(paths, source)
    if format_ == "hf":
        return hf.open_saved(paths, source)
    files = locate.files_of(paths, format_)
    if format_ == "webdataset":
        return webdataset.WebdatasetReader(files, source)
    if format_ == "parquet":
        return tables.ParquetReader(files, source)
    if format_ == "coco":
        return coco.CocoReader(files, source)
    return tables.TextTableReader(files, source, format_)
