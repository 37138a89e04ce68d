"""Classes of the samples of a run: their column, their names or definitions, and features of these."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from noisycorr.clean.sources import encoder_of
from noisycorr.data.readers.class_names import read_class_names
from noisycorr.data.store import read_facts
from noisycorr.models.encoders import DualEncoder, encode_texts
from noisycorr.runtime import console
from noisycorr.runtime.errors import UsageError, listed
from noisycorr.runtime.folder import Run

CHUNK = 64
CUT_WORD = " zebra"


def column_values(run: Run, name: str) -> list[Any]:
    """Values of an input column for every sample of a run, None where there is none.

    Raises:
        UsageError: If no sample has it.
    """
    facts = read_facts(run, ["text", "columns"])
    texts, found, known = facts.column("text").to_pylist(), [], set()
    stored = yaml.safe_load((run.folder / "config.yaml").read_text(encoding="utf-8"))
    for text, body in zip(texts, facts.column("columns").to_pylist()):
        columns = json.loads(body) if body else {}
        known |= set(columns)
        found.append(columns.get(name, text if name in ("text", stored.get("caption_col")) else None))
    if all(value is None for value in found):
        raise UsageError(f"{run.folder} has no column {name!r}; it has {listed({*known, 'text'})}: name one of them.")
    return found


def class_names(classes: list[str]) -> list[str]:
    """Names as words: dashes and underscores are spaces."""
    return [" ".join(name.replace("-", " ").replace("_", " ").split()) for name in classes]


def read_definitions(path: Path) -> dict[str, str]:
    """What each class means, "name: definition definition"; the name alone where the list has no definition.

    Raises:
        UsageError: If the list cannot be read, or a class stands twice.
    """
    return {name: ": ".join([class_names([name])[0], *([" ".join(senses)] if senses else [])])
            for name, senses in read_class_names(path, least=1).items()}  # fmt: skip


def encode_names(run: Run, texts: list[str], clip_model: str) -> np.ndarray:
    """Features (c, e) of class names or definitions by the encoder of the texts of a run.

    Args:
        run: Embedded.
        texts: c texts.
        clip_model: Encoder to take where the run's embeddings came without one.

    Raises:
        UsageError: If the encoder does not fit the texts of the run.
    """
    encoder = encoder_of(run, "class names need the encoder of the texts", clip_model=clip_model)
    for note in cut_note(texts, encoder):
        console.warn(f"warning: {note}")
    return encode_texts(encoder, texts, batch_size=CHUNK)


def cut_note(texts: list[str], encoder: DualEncoder) -> list[str]:
    """How many definitions are longer than the encoder reads, in a sentence; nothing if none is."""
    cut = [text for text in texts if _is_cut(text, encoder)]
    return [f"{len(cut)} definitions are longer than the encoder reads and were cut, for example {text[:60]!r}"
            for text in cut[:1]]  # fmt: skip


def _is_cut(text: str, encoder: DualEncoder) -> bool:
    """True if one more word changes nothing: the encoder did not read to the end."""
    one, two = encoder.tokenize([text]), encoder.tokenize([text + CUT_WORD])
    if hasattr(one, "items"):
        one, two = one["input_ids"], two["input_ids"]
    return tuple(one.shape) == tuple(two.shape) and bool((one == two).all())
