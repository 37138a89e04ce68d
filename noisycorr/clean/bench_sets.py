"""Sets, methods and their options as a bench is told of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import yaml

from noisycorr.clean.corpus import TEST, TRAIN, VALID, Corpus, read_corpus, split_corpus
from noisycorr.clean.signals.pipeline import Score, Scored, score_pairs
from noisycorr.clean.signals.view import PairEmbeddings
from noisycorr.clean.sources import embedded_run
from noisycorr.data.store import read_facts
from noisycorr.runtime.errors import UsageError
from noisycorr.runtime.folder import Run


def listed(text: str) -> list[str]:
    """Words between commas."""
    return [word.strip() for word in text.split(",") if word.strip()]


def read_spec(spec: str, flag: str, *, as_text: Sequence[str] = ()) -> tuple[str, dict[str, Any]]:
    """Name and options of `NAME+option=value+...`.

    Args:
        spec: One method.
        flag: Whose value it is, for the error.
        as_text: Options whose values stay as they were written; of others YAML says what they are.

    Raises:
        UsageError: If a part is no option=value.
    """
    name, *rest = spec.split("+")
    options = {}
    for part in rest:
        key, sign, value = part.partition("=")
        if not sign:
            raise UsageError(f"`{flag}`: {part!r} in {spec!r} is no option=value.")
        options[key] = value if key in as_text else _value(value)
    return name, options


def _value(text: str) -> Any:
    """What YAML says that it is, and a number where YAML takes one, such as 1e6, for a word."""
    found = yaml.safe_load(text)
    try:
        return float(text) if found == text else found
    except ValueError:
        return found


def check_bench(choice: Any, known: Mapping[str, Sequence[str]], *, split: bool = False) -> None:
    """Refuse what no bench can run: empty lists, numbers below 0, unknown words, seeds and ratios that are none.

    Args:
        choice: Of a bench, with `sets` and `seeds`.
        known: Words that a field may list.
        split: Sets may come split, as `read_set` takes them.

    Raises:
        UsageError: Naming the field.
    """
    for name, value in vars(choice).items():
        if isinstance(value, str) and not listed(value):
            raise UsageError(f"`{name}` is empty.")
        if isinstance(value, int) and value < 0:
            raise UsageError(f"`{name}` is {value}, expected 0 or more.")
    for name, words in known.items():
        if bad := [word for word in listed(getattr(choice, name)) if word not in words]:
            raise UsageError(f"`{name}` names {bad[0]!r}, expected some of {', '.join(words)}.")
    if bad := [word for word in listed(choice.seeds) if not word.isdecimal()]:
        raise UsageError(f"`seeds` has {bad[0]!r}, expected whole numbers.")
    if bad := [word for word in listed(getattr(choice, "ratios", "")) if not _is_share(word)]:
        raise UsageError(f"`ratios` has {bad[0]!r}, expected shares in 0 to 1.")
    counts, more = ((0, 2), " or NAME=TRAIN|VALID|TEST") if split else (range(100), "")
    if bad := [text for text in listed(choice.sets) if "=" not in text or text.count("|") not in counts]:
        raise UsageError(f"`sets` has {bad[0]!r}, expected NAME=SOURCE{more}.")


def _is_share(text: str) -> bool:
    try:
        return 0 <= float(text) <= 1
    except ValueError:
        return False


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
        runs: The run that it was read from, or those of its three parts.
    """

    name: str
    train: Corpus
    texts: list[str | None]
    valid: Corpus
    test: Corpus
    valid_texts: list[str | None] = field(default_factory=list)
    test_texts: list[str | None] = field(default_factory=list)
    runs: list[Run] = field(default_factory=list)


def read_set(text: str, run: Run, limit: int, caption_col: str | None, clip_model: str) -> BenchSet:
    """A set from `NAME=SOURCE` or `NAME=TRAIN|VALID|TEST`, embedded into the folder if it is not a run already.

    Args:
        text: Its spec.
        run: Of the bench.
        limit: Training pairs, from the start; 0 = all.
        caption_col: Column of the texts of sources that are not embedded yet.
        clip_model: Their encoder.

    Raises:
        UsageError: If a part has fewer than 2 pairs.
    """
    name, _, places = text.partition("=")
    runs = [embedded_run(place, run.folder / "features" / f"{name}-{number}", caption_col=caption_col,
                         clip_model=clip_model) for number, place in enumerate(places.split("|"))]  # fmt: skip
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
                    test_texts=own[2], runs=runs)  # fmt: skip


def take(corpus: Corpus, rows: np.ndarray) -> Corpus:
    """Some rows of a corpus, without what a ledger said."""
    return Corpus(
        keys=[corpus.keys[row] for row in rows], image=corpus.image[rows], text=corpus.text[rows],
        usable=corpus.usable[rows], kept=corpus.kept[rows], shown=corpus.shown[rows],
        image_group=corpus.image_group[rows], text_group=corpus.text_group[rows],
        identity={"embed": corpus.identity.get("embed"), "rows": len(rows)},
    )  # fmt: skip


def judged(corpus: Corpus, seed: int, joint: tuple[list[np.ndarray], list[np.ndarray]] | None = None,
           ) -> tuple[Scored, np.ndarray]:  # fmt: skip
    """What `noisycorr clean` would say of these pairs: scores, and p_clean (n,), 0 where nothing can be said.

    Args:
        corpus: n pairs.
        seed: Of everything random.
        joint: Images and texts in a common space; heads are learned on the pairs themselves if None.
    """
    view = PairEmbeddings(image=[corpus.image], text=[corpus.text], text_id=corpus.text_group,
                          image_id=corpus.image_group, present=corpus.usable,
                          seed=seed, picture=corpus.shown)  # fmt: skip
    scored = score_pairs(view, joint, Score(seed=seed), learn=joint is None)
    return scored, np.nan_to_num(scored.fit(scored.pair.given), nan=0.0)
