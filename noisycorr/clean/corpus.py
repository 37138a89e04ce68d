"""From a run folder of `noisycorr clean` to pairs that can be trained on: features, groups, splits and doubts."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from noisycorr.clean.signals.duplicates import Duplicates, near_duplicates
from noisycorr.data.noise.swaps import text_ids
from noisycorr.data.store import open_features, parts, read_facts
from noisycorr.models.training.batches import stream_seed
from noisycorr.runtime.errors import UsageError
from noisycorr.runtime.folder import Run

TRAIN, VALID, TEST, UNUSED = 0, 1, 2, -1
SPLITS = {"train": TRAIN, "training": TRAIN, "val": VALID, "valid": VALID, "validation": VALID, "dev": VALID,
          "test": TEST}  # fmt: skip
TOLD = ("p_clean", "sample_weight")
NEW = "score_text_new"  # probability that a repaired text fits


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """All n pairs of a run, in its order. Holds no truth.

    Attributes:
        keys: n keys.
        image: (n, d) features.
        text: (n, e) features.
        usable: bool (n,): there are an image and a text.
        kept: bool (n,): the ledger does not drop the pair; True without a ledger.
        review: bool (n,): the ledger says that a person should look at the pair first; None = none of them.
        shown: int64 (n,): equal for the same bytes of an image.
        image_group: int64 (n,): equal for the same image and for near-duplicates.
        text_group: int64 (n,): equal for equal and nearly equal texts.
        columns: (n,) each: what the ledger says about the pairs; empty without one.
        given_split: int8 (n,) of the source's column `split`, or None.
        rectified: Texts of the ledger that stand in for given ones, by row.
        identity: JSON that changes when the pairs, their features or their verdicts do.
    """

    keys: list[str]
    image: np.ndarray
    text: np.ndarray
    usable: np.ndarray
    kept: np.ndarray
    shown: np.ndarray
    image_group: np.ndarray
    text_group: np.ndarray
    columns: Mapping[str, np.ndarray] = field(default_factory=dict)
    given_split: np.ndarray | None = None
    review: np.ndarray | None = None
    rectified: Mapping[int, str] = field(default_factory=dict)
    identity: Mapping[str, Any] = field(default_factory=dict)


def read_corpus(run: Run) -> Corpus:
    """Read a run whose embed stage is done, with its ledger if it has one.

    Raises:
        UsageError: If there are no embeddings, or the ledger belongs to other data.
    """
    embedded = run.stage("embed")
    if embedded is None:
        raise UsageError(f"{run.folder} holds no finished embeddings: run `noisycorr clean` into it first.")
    facts = read_facts(run, ["key", "text", "image_hash", "image_phash", "columns"])
    image, text = (np.concatenate(open_features(run, side)) for side in ("image", "text"))
    texts, hashes = facts.column("text").to_pylist(), facts.column("image_hash").to_pylist()
    keys, n = facts.column("key").to_pylist(), len(facts)
    if not n:
        raise UsageError(f"{run.folder} holds no pairs: choose another source.")
    alike = near_duplicates([image], [text], hashes, facts.column("image_phash").to_pylist(), texts,
                            choice=Duplicates())  # fmt: skip
    ledger, decided = _ledger(run, keys)
    columns = {name: ledger.column(name).to_numpy().astype(np.float32) for name in ledger.column_names
               if name in TOLD or name.startswith("score_")} if ledger is not None else {}  # fmt: skip
    verdict = ledger.column("verdict").to_numpy(zero_copy_only=False) if ledger is not None else np.full(n, "keep")
    return Corpus(
        keys=keys,
        image=image,
        text=text,
        usable=np.asarray(image.any(1) & text.any(1)),
        kept=verdict != "drop",
        review=verdict == "review",
        shown=_codes(hashes),
        image_group=_joined(alike.image, _codes(hashes)),
        text_group=_joined(alike.text, text_ids(texts)),
        columns=columns,
        given_split=_given_split(facts),
        rectified=_rectified(ledger, texts),
        identity={"embed": embedded["fingerprint"], "ledger": decided},
    )


def swap_texts(corpus: Corpus, source_row: np.ndarray) -> Corpus:
    """The same images with the texts of other rows: known noise on stored features. What a ledger said is forgotten."""
    return Corpus(
        keys=corpus.keys,
        image=corpus.image,
        text=corpus.text[source_row],
        usable=corpus.image.any(1) & corpus.text[source_row].any(1),
        kept=np.ones(len(corpus.keys), bool),
        shown=corpus.shown,
        image_group=corpus.image_group,
        text_group=corpus.text_group[source_row],
        given_split=corpus.given_split,
        identity=corpus.identity,
    )


def split_corpus(corpus: Corpus, *, val_fraction: float, test_fraction: float, seed: int) -> np.ndarray:
    """Which pairs are for training, validation and test.

    Follows the source's column `split` if every pair has one. Else whole image groups are drawn at random, so that no
    image and no near-duplicate stands on both sides; of them only pairs that the ledger keeps as they came validate and
    test, since a wrong pair cannot tell a better model from a worse one, and the others are left out.

    Args:
        corpus: The pairs.
        val_fraction: Share of the usable pairs, in [0, 1).
        test_fraction: Share of the usable pairs, in [0, 1).
        seed: Of the draw.

    Returns:
        int8 (n,): `TRAIN`, `VALID`, `TEST`, or `UNUSED` for pairs without image or text and those left out.
    """
    if corpus.given_split is not None:
        return np.where(corpus.usable, corpus.given_split, UNUSED).astype(np.int8)
    usable = np.flatnonzero(corpus.usable)
    groups, inverse, counts = np.unique(corpus.image_group[usable], return_inverse=True, return_counts=True)
    order = np.random.default_rng(stream_seed(seed, "split")).permutation(len(groups))
    ends = np.cumsum(counts[order]) / max(len(usable), 1)
    kind = np.full(len(groups), TRAIN, np.int8)
    kind[order[ends <= val_fraction + test_fraction]] = VALID
    kind[order[ends <= test_fraction]] = TEST
    split = np.full(len(corpus.keys), UNUSED, np.int8)
    split[usable] = kind[inverse]
    doubted = ~corpus.kept if corpus.review is None else ~corpus.kept | corpus.review
    doubted[list(corpus.rectified)] = True
    split[(split != TRAIN) & doubted] = UNUSED
    return split


def without_new_texts(corpus: Corpus) -> Corpus:
    """The corpus with its given texts: pairs whose text was found wrong and replaced count as dropped."""
    kept = corpus.kept.copy()
    kept[list(corpus.rectified)] = False
    return dataclasses.replace(corpus, kept=kept, rectified={})


def _ledger(run: Run, keys: list[str]) -> tuple[pa.Table | None, str | None]:
    """The ledger in row order and its fingerprint; None where the run was not decided."""
    decided, score = run.stage("decide"), run.stage("score")
    if decided is None or score is None:
        return None, None
    embed = run.stage("embed") or {}
    if decided["inputs"]["score"] != score["fingerprint"] or score["inputs"].get("embed") != embed.get("fingerprint"):
        raise UsageError(f"{run.folder} has a ledger of other data or scores: run `noisycorr clean` on it again.")
    tables = []
    for index in parts(run):
        path = run.folder / "ledger" / f"{index:05d}.parquet"
        if not path.exists():
            raise UsageError(f"{run.folder} has no ledger of piece {index}: run `noisycorr clean` into it again.")
        tables.append(pq.read_table(path))
    table = pa.concat_tables(tables)
    if table.column("key").to_pylist() != keys:
        raise UsageError(f"{run.folder} has a ledger of other pairs: run `noisycorr clean` on it again.")
    repaired = run.stage("recaption")
    if repaired is None:
        return table, decided["fingerprint"]
    return table, f"{decided['fingerprint']} {repaired['fingerprint']}"


def rectify_texts(corpus: Corpus, encode: Callable[[list[str]], np.ndarray]) -> Corpus:
    """The corpus with the texts that its ledger repaired, encoded anew.

    Args:
        corpus: With `rectified` texts.
        encode: Texts to features (k, e) by the encoder that made the others.
    """
    rows = np.array(sorted(corpus.rectified), np.int64)
    if not len(rows):
        return corpus
    text, group = corpus.text.copy(), corpus.text_group.copy()
    text[rows] = encode([corpus.rectified[row] for row in rows.tolist()])
    words = text_ids([corpus.rectified[row] for row in rows.tolist()])
    group[rows] = group.max() + 1 + np.where(words < 0, np.arange(len(rows)), words)
    usable = np.asarray(corpus.image.any(1) & text.any(1))
    identity = {**corpus.identity, "rectified": len(rows)}
    return dataclasses.replace(corpus, text=text, text_group=group, usable=usable, columns=rectified_columns(corpus),
                               identity=identity)  # fmt: skip


def rectified_columns(corpus: Corpus) -> dict[str, np.ndarray]:
    """What is known of the pairs with their repaired texts: p_clean is score_text_new there, no other score is known.

    What the ledger says else is about the given text; what it says of weights is about the new one already.
    """
    rows = np.array(sorted(corpus.rectified), np.int64)
    columns = {name: values.copy() for name, values in corpus.columns.items()}
    if NEW in columns and len(rows):
        for name in columns:
            if name.startswith("score_") and name != NEW:
                columns[name][rows] = np.nan
        if "p_clean" in columns:
            known = np.isfinite(columns[NEW][rows])
            columns["p_clean"][rows] = np.where(known, columns[NEW][rows], columns["p_clean"][rows])
    return columns


def _rectified(ledger: pa.Table | None, texts: list[str | None]) -> dict[int, str]:
    """ShuffledPairs texts that differ from the given ones."""
    if ledger is None or "text_rectified" not in ledger.column_names:
        return {}
    found = ledger.column("text_rectified").to_pylist()
    return {row: text for row, text in enumerate(found) if text and text.strip() and text != texts[row]}


def _given_split(facts: pa.Table) -> np.ndarray | None:
    """int8 (n,) from the input columns, or None unless every pair has one of the known words."""
    found = []
    for text in facts.column("columns").to_pylist():
        if not text or '"split"' not in text:
            return None
        found.append(SPLITS.get(str(json.loads(text).get("split")).strip().lower()))
    return None if None in found else np.array(found, np.int8)


def _codes(values: list[Any]) -> np.ndarray:
    """int64 (n,): equal for equal values; None is like nobody."""
    known: dict[Any, int] = {}
    return np.array([known.setdefault(row if value is None else value, row) for row, value in enumerate(values)])


def _joined(group: np.ndarray, same: np.ndarray) -> np.ndarray:
    """int64 (n,): the group, or where there is none, the equal ones; names do not collide."""
    alone = np.where(same < 0, np.arange(len(same)), same)
    return np.where(group >= 0, group, len(group) + alone)
