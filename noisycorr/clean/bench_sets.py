"""Sets, methods and their options as a bench is told of them."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from noisycorr.clean.corpus import TEST, TRAIN, VALID, Corpus, read_corpus, split_corpus
from noisycorr.clean.embed import Embed
from noisycorr.clean.pipeline import clean
from noisycorr.clean.plan import Plan
from noisycorr.data.readers import Source
from noisycorr.data.store import read_facts
from noisycorr.runtime.errors import UsageError
from noisycorr.runtime.folder import Run


def listed(text: str) -> list[str]:
    """Words between commas."""
    return [word.strip() for word in text.split(",") if word.strip()]


def read_spec(spec: str, flag: str) -> tuple[str, dict[str, str]]:
    """Name and options of `NAME+option=value+...`; values as they were written.

    Args:
        spec: One method.
        flag: Whose value it is, for the error.

    Raises:
        UsageError: If a part is no option=value.
    """
    name, *rest = spec.split("+")
    options = {}
    for part in rest:
        key, sign, value = part.partition("=")
        if not sign:
            raise UsageError(f"`{flag}`: {part!r} in {spec!r} is no option=value.")
        options[key] = value
    return name, options


def read_value(text: str) -> Any:
    """What YAML says that the value of an option is, and a number where it takes one, such as 1e6, for a word."""
    import yaml

    found = yaml.safe_load(text)
    try:
        return float(text) if found == text else found
    except ValueError:
        return found


@dataclass(frozen=True, kw_only=True)
class BenchSet:
    """One set of the benchmark; validation and test stay clean.

    Attributes:
        name: As it stands in the tables.
        train: Pairs to put noise into.
        texts: Their n texts.
        valid: Pairs to select on.
        test: Pairs to report.
        valid_texts: Texts of the validation pairs, for captioners.
        test_texts: Texts of the test pairs.
    """

    name: str
    train: Corpus
    texts: list[str | None]
    valid: Corpus
    test: Corpus
    valid_texts: list[str | None] = field(default_factory=list)
    test_texts: list[str | None] = field(default_factory=list)


def runs_of_set(text: str, run: Run, caption_col: str | None, clip_model: str) -> tuple[str, list[Run]]:
    """Name of a set, and its run, or those of its three parts."""
    name, _, places = text.partition("=")
    parts = places.split("|")
    return name, [_embedded(place, run, f"{name}-{number}", caption_col, clip_model)
                  for number, place in enumerate(parts)]  # fmt: skip


def read_set(name: str, runs: list[Run], limit: int) -> BenchSet:
    """A set from its runs, with so many training pairs; 0 = all."""
    corpora = [read_corpus(one) for one in runs]
    texts = [read_facts(one, ["text"]).column("text").to_pylist() for one in runs]
    if len(corpora) == 1:
        split = split_corpus(corpora[0], val_fraction=0.1, test_fraction=0.1, seed=0)
        rows = [np.flatnonzero(split == kind) for kind in (TRAIN, VALID, TEST)]
        corpora, texts = corpora * 3, texts * 3
    else:
        rows = [np.flatnonzero(corpus.usable) for corpus in corpora]
    if limit:
        rows[0] = rows[0][:limit]
    if min(map(len, rows)) < 2:
        raise UsageError(f"the set {name} has {', '.join(str(len(r)) for r in rows)} usable pairs to train, validate "
                         "and test; at least 2 of each are needed.")  # fmt: skip
    train, valid, test = (take(corpus, some) for corpus, some in zip(corpora, rows))
    own = [[found[row] for row in some] for found, some in zip(texts, rows)]
    return BenchSet(name=name, train=train, texts=own[0], valid=valid, test=test, valid_texts=own[1],
                    test_texts=own[2])  # fmt: skip


def take(corpus: Corpus, rows: np.ndarray) -> Corpus:
    """Some rows of a corpus, without what a ledger said."""
    return Corpus(
        keys=[corpus.keys[row] for row in rows], image=corpus.image[rows], text=corpus.text[rows],
        usable=corpus.usable[rows], kept=corpus.kept[rows], shown=corpus.shown[rows],
        image_group=corpus.image_group[rows], text_group=corpus.text_group[rows],
        identity={"embed": corpus.identity.get("embed"), "rows": len(rows)},
    )  # fmt: skip


def _embedded(place: str, run: Run, name: str, caption_col: str | None, clip_model: str) -> Run:
    if (Path(place) / "stages" / "embed.json").is_file():
        return Run(place)
    inner = Run(run.folder / "features" / name)
    source = Source(path=place, caption_col=caption_col)
    clean(Plan(source=source, embed=Embed(clip_model=clip_model)), inner, stages=("embed",))
    return inner
