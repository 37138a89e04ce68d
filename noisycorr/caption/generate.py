"""From pictures to texts: `captions/NNNNN.parquet` by a captioner of `noisycorr caption train`."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from noisycorr.caption.captioner.align import Encode, align_with, remember
from noisycorr.caption.captioner.best import Best, best_of_levels, write_best
from noisycorr.caption.captioner.choice import Decode
from noisycorr.caption.captioner.stored import Trained, captioner_identity, load_captioner
from noisycorr.caption.captioner.tower import Some
from noisycorr.caption.images import check_reads, images_of, made_by, text_features_of
from noisycorr.clean.sources import run_of_pairs
from noisycorr.data.readers import Source
from noisycorr.data.store import part_sizes, parts, read_features
from noisycorr.runtime import console, dist
from noisycorr.runtime.errors import UsageError
from noisycorr.runtime.folder import Run, atomic_path
from noisycorr.runtime.lock import refuse_other_kind
from noisycorr.runtime.stage import refuse_other_work, say

BEST, GIVEN, EACH = "best", "given", "each"


@dataclass(frozen=True, kw_only=True)
class Writer:
    """All that a text of a run depends on.

    Attributes:
        trained: The captioner.
        decode: How it writes.
        level: best, given, each, or a number.
        seed: Of the nucleus.
        own_levels: (n,) the level of each pair by its own score, for `level` given; else None.
        encode: Texts to features by the encoder of the run; None if its embeddings came without one.
    """

    trained: Trained
    decode: Decode
    level: str | int
    seed: int
    own_levels: np.ndarray | None
    encode: Encode | None

    def write(self, image: Any, vectors: np.ndarray, first: int, keys: list[str], moved: Callable[[int], Any]) -> Best:
        """A text for each picture of a part.

        Args:
            image: What the captioner reads of n pictures.
            vectors: Their stored vectors, for the scorer.
            first: Row of the first one in the run.
            keys: Of the pairs.
            moved: Told how many are done.
        """
        trained, n = self.trained, len(vectors)
        align = None if self.encode is None else align_with(trained.aligner, vectors, remember(self.encode))
        if self.level == EACH and align is not None and trained.levels is not None:
            return best_of_levels(trained, image, align, trained.levels.trained(), self.decode, seed=self.seed,
                                  names=keys, moved=moved)  # fmt: skip
        asked: int | np.ndarray | None = self.level if isinstance(self.level, int) else None
        if self.own_levels is not None:
            asked = self.own_levels[first : first + n]
        return write_best(trained, image, align, asked, self.decode, seed=self.seed, names=keys, moved=moved)


def write_captions(run: Run, source: Source, model: Path, level: str | int, asked: Mapping[str, Any], seed: int, *,
                   same_encoder: bool = False) -> dict[str, Any]:  # fmt: skip
    """Write `captions/NNNNN.parquet` with key, row, text, level, score, log_prob and ended of every pair.

    Args:
        run: The folder for them.
        source: Pictures: a run folder, or any source.
        model: Folder of `noisycorr caption train`.
        level: best, given, each, or a number.
        asked: Fields of `Decode` that differ from what the model says.
        seed: Of the nucleus.
        same_encoder: Embeddings that came without their encoder are of that of the model.

    Returns:
        How many pairs there are, and texts.

    Raises:
        UsageError: If model, level and pictures do not go together.
    """
    refuse_other_kind(run.folder, "generate")
    trained = load_captioner(model)
    level = level if level in (BEST, GIVEN, EACH) else _number(level)
    source_run = run_of_pairs(source, trained.clip_model, run, "data", score=level == GIVEN)
    check_reads(trained, model, source_run, same_encoder=same_encoder)
    writer = Writer(
        trained=trained, decode=dataclasses.replace(trained.decode, **asked), level=level, seed=seed,
        own_levels=_own_levels(trained, source_run) if level == GIVEN else None, encode=text_features_of(source_run),
    )  # fmt: skip
    _check_choice(writer, asked)
    ledger = None if level != GIVEN else [
        (source_run.stage(name) or {}).get("fingerprint") for name in ("decide", "recaption")
    ]  # fmt: skip
    inputs = {"model": captioner_identity(model), "level": str(level), "seed": seed, "decode": vars(writer.decode),
              "pairs": (source_run.stage("embed") or {})["fingerprint"], "ledger": ledger}  # fmt: skip
    refuse_other_work(run, "generate", inputs, holds="texts of another kind")
    shown, _ = images_of(source_run, trained.design, run.folder / "pictures")
    if dist.is_main():  # not before: what cannot be read leaves the folder free
        run.finish("generate", inputs)
    dist.wait()
    sizes = part_sizes(source_run)
    starts = dict(zip(sizes, np.cumsum([0, *sizes.values()]).tolist()))
    left = [index for index in dist.my_share(parts(source_run))
            if not (run.folder / "captions" / f"{index:05d}.parquet").exists()]  # fmt: skip
    with console.bar(label="caption", total=sum(sizes[index] for index in left), hidden=not dist.is_main()) as bar:
        for index in left:
            _write_part(run, source_run, index, starts[index], shown, writer, bar.update)
    dist.wait()
    facts = count_texts(run)
    say(f"caption: {facts['texts']:,} texts for {facts['pairs']:,} pairs in {run.folder / 'captions'}")
    return facts


def count_texts(run: Run) -> dict[str, int]:
    """How many pairs there are in `captions/`, and how many of them have a text."""
    pairs = texts = 0
    for path in sorted((run.folder / "captions").glob("*.parquet")):
        column = pq.read_table(path, columns=["text"]).column("text")
        pairs, texts = pairs + len(column), texts + len(column) - column.null_count
    return {"pairs": pairs, "texts": texts}


def _check_choice(writer: Writer, asked: Mapping[str, Any]) -> None:
    """Refuse what cannot be written."""
    several = [name for name in ("samples", "each_level", "align_weight") if asked.get(name)]
    if writer.encode is None and (writer.level == EACH or several):
        raise UsageError("choosing by scorer needs the encoder of texts, but these embeddings came without one.")
    if writer.level == EACH and (several or writer.trained.levels is None):
        why = f"leave out `{several[0]}`" if several else "this captioner has none"
        raise UsageError(f"`level` each writes one text at every level and keeps the best aligned: {why}.")
    writer.trained.check(writer.level if isinstance(writer.level, int) else None, writer.decode)


def _write_part(run: Run, source_run: Run, index: int, start: int, pictures: Any, writer: Writer,
                moved: Callable[[int], Any]) -> None:  # fmt: skip
    """One piece; each is written whole or not at all."""
    vectors = read_features(source_run, index, "image")
    rows = np.arange(start, start + len(vectors))
    facts = pq.read_table(source_run.folder / "pairs" / f"{index:05d}.parquet", columns=["key"])
    keys, shown = facts.column("key").to_pylist(), np.asarray(vectors.any(1))
    best = writer.write(vectors if pictures is None else Some(pictures, rows), vectors, start, keys, moved)
    texts = [text if there else None for text, there in zip(best.written.texts, shown)]
    table = {"key": keys, "row": rows, "level": best.level.astype(np.int32), "text": pa.array(texts, pa.string()),
             "score": np.where(shown, best.score, np.nan).astype(np.float32), "log_prob": best.written.log_prob,
             "ended": best.written.ended}  # fmt: skip
    with atomic_path(run.path("captions", f"{index:05d}.parquet")) as path:
        pq.write_table(pa.table(table), path, compression="zstd")


def _own_levels(trained: Trained, source_run: Run) -> np.ndarray:
    """The level of each pair by its own score; refused if the scores are others than the edges are of."""
    if trained.levels is None:
        raise UsageError("`level` given needs a captioner with levels.")
    column = trained.levels.made_by["column"]
    trained.levels.refuse_other({"column": column, **made_by(source_run)})
    paths = [source_run.folder / "ledger" / f"{index:05d}.parquet" for index in parts(source_run)]
    levels = trained.levels.of(np.concatenate([pq.read_table(p, columns=[column]).column(0).to_numpy() for p in paths]))
    known = np.isin(levels, trained.levels.trained())
    return np.where(known, levels, trained.levels.unscored if trained.level is None else trained.level)


def _number(level: str | int) -> int:
    try:
        return int(level)
    except ValueError:
        raise UsageError(f"`level` is {level!r}, expected best, given, each, or a number.") from None
