"""`noisycorr caption score`: captions of any system, from files, against references and against pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from noisycorr.caption.metrics import (
    bleu,
    cider_d,
    clip_score,
    distinctiveness,
    java_metric,
    rouge_l,
    self_retrieval,
    tokenize,
)
from noisycorr.clean.signals.view import take
from noisycorr.clean.sources import encoder_identity, encoder_of
from noisycorr.data.readers.given import load_rows
from noisycorr.data.store import open_features, read_facts
from noisycorr.models.encoders import encode_texts
from noisycorr.runtime.errors import UsageError, listed
from noisycorr.runtime.folder import Run
from noisycorr.stats.recall import KS

NAMES = ("caption", "captions", "text", "text_rectified", "title")
JAVA = ("meteor", "spice")


def score_captions(
    captions: str | PathLike[str] | Mapping[str, str],
    references: str | PathLike[str] | Mapping[str, str | Sequence[str]] | None, run: Run | None, extra: list[str],
) -> dict[str, Any]:  # fmt: skip
    """All metrics that the captions allow.

    Args:
        captions: csv, tsv, jsonl or parquet with key and caption, each key once; or captions by key.
        references: The same, keys as often as there are references, or a list in a cell; or None.
        run: Embedded pictures with these keys, or None.
        extra: meteor, spice.

    Returns:
        JSON: `captions`, `without_reference` and `without_picture` (left out of what needs one), `empty`; bleu_1 to
        bleu_4, rouge_l, in [0, 1]; `cider_d` in [0, 10]; `clip_score` in [0, 2.5]; recalls in percent; and of
        ``distinctiveness``.

    Raises:
        UsageError: If a file cannot be read, a key stands twice, or nothing fits.
    """
    if unknown := [name for name in extra if name not in JAVA]:
        raise UsageError(f"`metrics` names {unknown[0]!r}, expected {' or '.join(JAVA)}.")
    if extra and references is None:
        raise UsageError(f"`metrics` {extra[0]} needs `references`.")
    by_key, shown = _read(captions, "captions")
    if twice := [key for key, texts in by_key.items() if len(texts) > 1]:
        raise UsageError(f"{shown} has {len(by_key[twice[0]])} captions of key {twice[0]!r}, expected one of each.")
    mine = {key: texts[0] for key, texts in by_key.items()}
    out: dict[str, Any] = {"captions": len(mine), "empty": sum(not text.strip() for text in mine.values())}
    out |= distinctiveness(list(mine.values()))
    if references is not None:
        out |= _referenced(mine, *_read(references, "references"), extra)
    if run is not None:
        out |= _pictured(mine, run)
    return out


def _referenced(mine: dict[str, str], known: dict[str, list[str]], name: str, extra: list[str]) -> dict[str, Any]:
    if not any(key in known for key in mine):
        raise UsageError(f"{name} has no key of the captions; keys of the captions look like {list(mine)[:2]}.")
    keys = [key for key in mine if any(tokenize(text) for text in known.get(key, []))]
    if not keys:
        raise UsageError(f"{name} has no reference with a word in it for any of the captions.")
    texts, refs = [mine[key] for key in keys], [known[key] for key in keys]
    scores = {f"bleu_{order + 1}": value for order, value in enumerate(bleu(texts, refs))}
    scores |= {"rouge_l": rouge_l(texts, refs), "cider_d": float(cider_d(texts, refs).mean())}
    scores |= {metric: java_metric(metric, texts, refs) for metric in extra}
    return scores | {"without_reference": len(mine) - len(keys)}


def _pictured(mine: dict[str, str], run: Run) -> dict[str, Any]:
    """CLIPScore and self-retrieval in the joint space of the run's encoder."""
    row_of = {key: row for row, key in enumerate(read_facts(run, ["key"]).column("key").to_pylist())}
    keys = [key for key in mine if key in row_of and mine[key].strip()]
    if not keys:
        raise UsageError(f"{run.folder} has no key of the captions; its keys look like {list(row_of)[:2]}.")
    if encoder_identity(run).startswith("precomputed"):
        raise UsageError(f"{run.folder} was made of embeddings without a model, so captions cannot be compared with "
                         "its pictures: leave out `run`.")  # fmt: skip
    encoder = encoder_of(run, "captions are to be compared with pictures")
    text = encode_texts(encoder, [mine[key] for key in keys], batch_size=256)
    image = take(open_features(run, "image"), np.array([row_of[key] for key in keys])).astype(np.float32)
    if not encoder.joint or "embedded" in encoder.name:
        image, text = encoder.joint_space(image, text)
    shown = image.any(1)
    counts = {"without_picture": len(mine) - int(shown.sum()), "scorer": encoder.name}
    if not shown.any():
        return counts | {"clip_score": None} | {f"self_retrieval_recall@{k}": None for k in KS}
    scores = {"clip_score": float(clip_score(image[shown], text[shown]).mean())}
    return counts | scores | self_retrieval(image[shown], text[shown])


def _read(texts: str | PathLike[str] | Mapping[str, Any], what: str) -> tuple[dict[str, list[str]], str]:
    """Texts by key, in order, and what to call them in an error."""
    if isinstance(texts, Mapping):
        if not texts:
            raise UsageError(f"The {what} hold nothing.")
        return {str(key): _cell(cell) for key, cell in texts.items()}, f"the mapping of {what}"
    path = Path(texts)
    try:
        rows = load_rows(path)
    except ValueError as error:
        raise UsageError(f"The {what} {path} cannot be read ({error}); expected key and caption.") from error
    if not rows or not all(isinstance(row, dict) for row in rows):
        raise UsageError(f"The {what} {path} hold no rows with the columns key and caption.")
    name = next((name for name in NAMES if name in rows[0]), None)
    if "key" not in rows[0] or name is None:
        names = listed(map(str, rows[0]))
        raise UsageError(f"The {what} {path} have the columns {names}; expected key and caption.")
    by_key: dict[str, list[str]] = {}
    for row in rows:
        by_key.setdefault(str(row.get("key")), []).extend(_cell(row.get(name)))
    return by_key, str(path)


def _cell(cell: Any) -> list[str]:
    """The texts of a cell, which may hold one or a list."""
    return [str(text or "") for text in (cell if isinstance(cell, list | tuple) else [cell])]
