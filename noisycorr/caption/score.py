"""`noisycorr caption score`: captions of any system, from files, against references and against pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import yaml

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
from noisycorr.data.readers.given import load_rows
from noisycorr.data.store import open_features, read_facts
from noisycorr.models.encoders import encode_texts, load_encoder
from noisycorr.runtime import dist
from noisycorr.runtime.errors import UsageError, listed
from noisycorr.runtime.folder import Run
from noisycorr.stats.recall import KS

NAMES = ("caption", "captions", "text", "text_rectified", "title")
JAVA = ("meteor", "spice")


def score_captions(captions: Path, references: Path | None, run: Run | None, extra: list[str]) -> dict[str, Any]:
    """All metrics that the files allow.

    Args:
        captions: csv, tsv, jsonl or parquet with key and caption, each key once.
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
    found = _read(captions, "captions")
    if twice := [key for key, texts in found.items() if len(texts) > 1]:
        raise UsageError(f"{captions} has {len(found[twice[0]])} captions of key {twice[0]!r}, expected one of each.")
    mine = {key: texts[0] for key, texts in found.items()}
    out: dict[str, Any] = {"captions": len(mine), "empty": sum(not text.strip() for text in mine.values())}
    out |= distinctiveness(list(mine.values()))
    if references is not None:
        out |= _referenced(mine, _read(references, "references"), references, extra)
    if run is not None:
        out |= _pictured(mine, run)
    return out


def _referenced(mine: dict[str, str], known: dict[str, list[str]], path: Path, extra: list[str]) -> dict[str, Any]:
    if not any(key in known for key in mine):
        raise UsageError(f"{path} has no key of the captions; keys of the captions look like {list(mine)[:2]}.")
    keys = [key for key in mine if any(tokenize(text) for text in known.get(key, []))]
    if not keys:
        raise UsageError(f"{path} has no reference with a word in it for any of the captions.")
    texts, refs = [mine[key] for key in keys], [known[key] for key in keys]
    scores = {f"bleu_{order + 1}": value for order, value in enumerate(bleu(texts, refs))}
    scores |= {"rouge_l": rouge_l(texts, refs), "cider_d": float(cider_d(texts, refs).mean())}
    scores |= {name: java_metric(name, texts, refs) for name in extra}
    return scores | {"without_reference": len(mine) - len(keys)}


def _pictured(mine: dict[str, str], run: Run) -> dict[str, Any]:
    """CLIPScore and self-retrieval in the joint space of the run's encoder."""
    place = {key: row for row, key in enumerate(read_facts(run, ["key"]).column("key").to_pylist())}
    keys = [key for key in mine if key in place and mine[key].strip()]
    if not keys:
        raise UsageError(f"{run.folder} has no key of the captions; its keys look like {list(place)[:2]}.")
    stored = yaml.safe_load((run.folder / "config.yaml").read_text(encoding="utf-8"))
    if ((run.stage("embed") or {}).get("facts") or {}).get("encoder", "").startswith("precomputed"):
        raise UsageError(f"{run.folder} was made of embeddings without a model, so captions cannot be compared with "
                         "its pictures: leave out `output_folder`.")  # fmt: skip
    encoder = load_encoder(stored["clip_model"], device=dist.device(), precision=stored["model_precision"])
    texts = [mine[key] for key in keys]
    text = encode_texts(encoder, texts, batch_size=256)
    image = take(open_features(run, "image"), np.array([place[key] for key in keys])).astype(np.float32)
    if not encoder.joint or "embedded" in encoder.name:
        image, text = encoder.joint_space(image, text)
    shown = image.any(1)
    told = {"without_picture": len(mine) - int(shown.sum()), "scorer": encoder.name}
    if not shown.any():
        return told | {"clip_score": None} | {f"self_retrieval_recall@{k}": None for k in KS}
    scores = {"clip_score": float(clip_score(image[shown], text[shown]).mean())}
    return told | scores | self_retrieval(image[shown], text[shown])


def _read(path: Path, what: str) -> dict[str, list[str]]:
    """Texts by key, in the order of the file."""
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
    out: dict[str, list[str]] = {}
    for row in rows:
        cell = row.get(name)
        out.setdefault(str(row.get("key")), []).extend(
            str(t or "") for t in (cell if isinstance(cell, list) else [cell])
        )
    return out
