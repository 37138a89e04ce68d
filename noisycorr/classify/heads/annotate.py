"""`noisycorr annotate`: which images a person should label or look at next, each with the reason."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from noisycorr.data.readers.class_names import read_class_names
from noisycorr.runtime.errors import UsageError

if TYPE_CHECKING:
    import pandas

    from noisycorr.classify.heads.labelled import Labelled

COLUMNS = ("rank", "key", "predicted", "p_predicted", "entropy", "reason")
CLUSTERS = 20  # of an audit set
BINS = 5
MOST = 20  # candidates for each row that is named
LOOKED_AT = 50_000  # rows of the pool, drawn at random, that coreset and badge choose among
WHY = {
    "entropy": "the classifier is unsure",
    "coreset": "far from all that is labelled",
    "random": "drawn at random",
    "badge": "the classifier would learn much, and differently from the others",
}


@dataclass(frozen=True, kw_only=True)
class Annotate:
    """What to label next.

    Attributes:
        budget: How many rows to name.
        acquisition: entropy (what the classifier is least sure of), coreset (what is farthest from all labelled), badge
            (both), random, or audit: a set that shows all there is, evenly, for a review of the whole.
        balance: Pick among the candidates so that classes come out even by the classifier's own opinion (PCB). Not
            with audit, nor without class probabilities.
        candidates: Share of the pool that is a candidate when classes are balanced, in (0, 1]; never fewer than the
            budget, nor more than 20 times as many.
        side: Features of a run folder: image or text.
        labels: File of labels that are known: csv, tsv, jsonl or parquet with columns key and label, or a .npy of
            words or whole numbers, one a row, where -1 or "" is unknown.
        label_col: Column of a run that holds the known labels.
        chances: .npy of class probabilities (rows, classes); by default those of a linear probe on the known labels.
        class_names: Text file with the name of each class of `chances`, one a line.
        seed: Of draws and ties.

    Raises:
        UsageError: If a value is out of its range.
    """

    budget: int = 100
    acquisition: Literal["entropy", "coreset", "badge", "random", "audit"] = "badge"
    balance: bool = True
    candidates: float = 0.1
    side: Literal["image", "text"] = "image"
    labels: str | None = None
    label_col: str | None = None
    chances: str | None = None
    class_names: str | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.budget < 1:
            raise UsageError(f"`budget` is {self.budget}, expected 1 or more.")
        if not 0 < self.candidates <= 1:
            raise UsageError(f"`candidates` is {self.candidates}, expected above 0 and at most 1.")
        if self.acquisition not in ("entropy", "coreset", "badge", "random", "audit"):
            raise UsageError(
                f"`acquisition` is {self.acquisition!r}, expected entropy, coreset, badge, random or audit."
            )
        if self.label_col is not None and self.label_col.lower().startswith("truth_"):
            raise UsageError(f"Column {self.label_col!r} is hidden truth: only evaluation may read it; name another.")
        if self.labels and self.label_col:
            raise UsageError("`labels` and `label_col` exclude each other: give one of them.")
        if self.class_names and not self.chances:
            raise UsageError("`class_names` names the classes of `chances`, which is missing.")


@dataclass(frozen=True, slots=True, kw_only=True)
class Opinion:
    """Class probabilities of n rows.

    Attributes:
        chances: (n, c), rows sum to 1.
        names: c names.
        known: int (n,): class that a person gave, -1 where nobody did or it is none of the c.
    """

    chances: np.ndarray
    names: list[str]
    known: np.ndarray


def suggest(path: str, choice: Annotate) -> list[dict[str, Any]]:
    """Rows to label next, best first, with the columns `COLUMNS`.

    Args:
        path: Run folder, .npy file, or folder with image.npy or text.npy.
        choice: What to label.

    Raises:
        UsageError: If there is nothing to read, or an acquisition lacks class probabilities.
    """
    from noisycorr.classify.heads.labelled import is_array, is_run, read_labelled

    if not is_run(path) and not is_array(path):
        raise UsageError(f"{path} holds no features: run `noisycorr embed` first, or name a .npy file.")
    # `tune` takes texts for labels; here that would leave nothing to label, so only what was asked for counts.
    asked = choice.labels is not None or choice.label_col is not None
    rows = read_labelled(path, side=choice.side, labels=choice.labels, label_col=choice.label_col, need=False)
    words: list[str | None] = list(rows.words) if asked or not is_run(path) else [None] * len(rows.keys)
    free = np.array([word is None for word in words]) & rows.usable
    pool = np.flatnonzero(free)
    if not len(pool):
        raise UsageError(f"{path} has no row without a label: there is nothing to annotate.")
    opinion = _opinion(choice, rows, words)
    if choice.acquisition == "audit":
        return _audit(path, choice, rows, pool, opinion)
    if opinion is None and choice.acquisition in ("entropy", "badge"):
        raise UsageError(
            f"`acquisition` {choice.acquisition} needs class probabilities: give `chances`, or `labels` of two classes "
            "or more; coreset, random and audit need none."
        )
    labelled = np.flatnonzero(~free & rows.usable)
    return _ranked(choice, rows, pool, labelled, opinion)


class Suggestions:
    """Rows to label next, best first; `str` of them is a csv with a header.

    Args:
        rows: As `suggest` gives them.
        file: Where the csv was written, if it was.
    """

    def __init__(self, rows: list[dict[str, Any]], *, file: Path | None = None) -> None:
        self.rows, self.file = rows, file

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return iter(self.rows)

    def __str__(self) -> str:
        body = io.StringIO(newline="")
        writer = csv.DictWriter(body, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.rows)
        return body.getvalue()

    def to_pandas(self) -> pandas.DataFrame:
        """The rows as a table with the columns `COLUMNS`."""
        import pandas

        return pandas.DataFrame(self.rows, columns=list(COLUMNS))

    def _repr_html_(self) -> str:
        return str(self.to_pandas().to_html(index=False))


def _opinion(choice: Annotate, rows: Labelled, words: list[str | None]) -> Opinion | None:
    if choice.chances is None:
        return _probe(rows, words)
    from noisycorr.classify.heads.labelled import read_features_file

    chances = np.asarray(read_features_file(Path(choice.chances)), np.float64)
    if len(chances) != len(rows.keys) or chances.shape[1] < 2:
        raise UsageError(f"`chances` has shape {chances.shape}, expected ({len(rows.keys)}, 2 or more classes).")
    if not np.isfinite(chances).all() or (chances < 0).any() or np.abs(chances.sum(1) - 1).max() > 1e-2:
        raise UsageError(f"`chances` {choice.chances} holds rows that are no probabilities: each must sum to 1.")
    names = [str(one) for one in range(chances.shape[1])]
    if choice.class_names:
        names = list(read_class_names(Path(choice.class_names), argument="class_names"))
        if len(names) != chances.shape[1]:
            raise UsageError(f"`class_names` has {len(names)} names, but `chances` has {chances.shape[1]} classes.")
    number_of = {name: number for number, name in enumerate(names)}
    known = np.array([-1 if word is None else number_of.get(word, -1) for word in words])
    return Opinion(chances=chances, names=names, known=known)


def _probe(rows: Labelled, words: list[str | None]) -> Opinion | None:
    """Of a linear probe on what is labelled; None where fewer than two classes are."""
    from noisycorr.stats.transductive import linear_probe

    names = sorted({word for word, usable in zip(words, rows.usable) if word is not None and usable})
    if len(names) < 2:
        return None
    number_of = {name: number for number, name in enumerate(names)}
    known = np.array([-1 if word is None else number_of.get(word, -1) for word in words])
    some = np.flatnonzero((known >= 0) & rows.usable)
    usable = np.flatnonzero(rows.usable)
    chances = np.full((len(words), len(names)), 1 / len(names))
    chances[usable] = linear_probe(np.asarray(rows.features[some], np.float32), known[some],
                                   np.asarray(rows.features[usable], np.float32), classes=len(names))  # fmt: skip
    return Opinion(chances=chances, names=names, known=known)


def _ranked(choice: Annotate, rows: Labelled, pool: np.ndarray, labelled: np.ndarray,
            opinion: Opinion | None) -> list[dict[str, Any]]:  # fmt: skip
    from noisycorr.classify.heads import acquire

    budget = min(choice.budget, len(pool))
    balance = choice.balance and opinion is not None
    if choice.acquisition in ("coreset", "badge") and len(pool) > LOOKED_AT:  # each pick looks at all of them
        rng = np.random.default_rng([choice.seed, 79])
        pool = np.sort(rng.choice(pool, max(LOOKED_AT, budget), replace=False))
    # A random pool is its own candidate set.
    wide = min(max(budget, round(choice.candidates * len(pool))), MOST * budget)
    wide = len(pool) if choice.acquisition == "random" else wide
    wanted = wide if balance else budget
    features = np.asarray(rows.features, np.float32)
    if choice.acquisition == "random":
        order = np.random.default_rng([choice.seed, 73]).choice(pool, wanted, replace=False)
    elif choice.acquisition == "coreset":
        order = acquire.order_by_coreset(features, pool, wanted, labelled)
    else:
        assert opinion is not None
        order = (acquire.order_by_entropy(opinion.chances, pool, wanted) if choice.acquisition == "entropy" else
                 acquire.order_by_badge(features, opinion.chances, pool, wanted, seed=choice.seed))  # fmt: skip
    why = WHY[choice.acquisition]
    if not balance:
        return _table(rows, order, opinion, [why] * len(order))
    assert opinion is not None
    pseudo = opinion.chances.argmax(1)
    count = np.bincount(opinion.known[opinion.known >= 0], minlength=len(opinion.names))
    picked = acquire.balance_picks(order, pseudo, count, budget, seed=choice.seed)
    reasons, count = [], count.copy()
    for row in picked:
        one = int(pseudo[row])
        reasons.append(f"{opinion.names[one]} has {count[one]} so far; {why}")
        count[one] += 1
    return _table(rows, picked, opinion, reasons)


def _audit(path: str, choice: Annotate, rows: Labelled, pool: np.ndarray,
           opinion: Opinion | None) -> list[dict[str, Any]]:  # fmt: skip
    """Rows after which clusters, classes, verdict and length of text are as many and as even as they can be."""
    from noisycorr.classify.heads.labelled import is_run
    from noisycorr.classify.heads.max_entropy import max_entropy_picks

    variables: dict[str, tuple[np.ndarray, int]] = {"cluster": _clusters(rows.features[pool], choice.seed)}
    if opinion is not None:
        variables["class"] = (opinion.chances.argmax(1)[pool], len(opinion.names))
    if is_run(path):
        variables |= {name: (value[pool], BINS + 1) for name, value in _run_bins(path).items()}
    properties = [[[int(one)] for one in value] for value, _ in variables.values()]
    picked, path_of = max_entropy_picks(properties, [size for _, size in variables.values()], choice.budget,
                                        sampled=2000, seed=choice.seed)  # fmt: skip
    reasons = []
    for step, at in enumerate(picked):
        told = ", ".join(_told(name, int(value[at])) for name, (value, _) in variables.items())
        reasons.append(f"{told}; spread so far {path_of[step].sum():.3f}")
    return _table(rows, pool[picked], opinion, reasons)


def _clusters(features: np.ndarray, seed: int) -> tuple[np.ndarray, int]:
    from sklearn.cluster import MiniBatchKMeans

    from noisycorr.stats.index import unit_rows

    count = min(CLUSTERS, len(features))
    model = MiniBatchKMeans(count, random_state=seed, n_init=1, batch_size=1024)
    return model.fit_predict(unit_rows(features)), count


def _run_bins(path: str) -> dict[str, np.ndarray]:
    """Length of the text, and p_clean where the run was decided, in fifths; the last bin is for what has none."""
    from noisycorr.clean.corpus import read_corpus
    from noisycorr.data.store import read_facts
    from noisycorr.runtime.folder import Run

    run = Run(path)
    length = np.array([len(text) if text else np.nan for text in read_facts(run, ["text"]).column("text").to_pylist()])
    out = {"length": _fifths(length)}
    columns = read_corpus(run).columns
    if "p_clean" in columns:
        out["p_clean"] = _fifths(columns["p_clean"])
    return out


def _told(name: str, value: int) -> str:
    """A number of a cluster or class as it is; a fifth as such, since `p_clean 1` would read like a probability."""
    if name not in ("length", "p_clean"):
        return f"{name} {value}"
    return f"no {name}" if value == BINS else f"{name} in fifth {value + 1} of {BINS}"


def _fifths(values: np.ndarray) -> np.ndarray:
    known = np.isfinite(values)
    if not known.any():
        return np.full(len(values), BINS)
    edges = np.quantile(values[known], np.arange(1, BINS) / BINS)
    return np.where(known, np.searchsorted(edges, values, side="right"), BINS)


def _table(rows: Labelled, picked: np.ndarray, opinion: Opinion | None, reasons: list[str]) -> list[dict[str, Any]]:
    from noisycorr.classify.heads.acquire import entropy

    out = []
    for rank, (row, reason) in enumerate(zip(picked.tolist(), reasons), 1):
        line: dict[str, Any] = {"rank": rank, "key": rows.keys[row], "reason": reason}
        if opinion is not None:
            chances = opinion.chances[row]
            line |= {"predicted": opinion.names[int(chances.argmax())], "p_predicted": round(float(chances.max()), 4),
                     "entropy": round(float(entropy(chances[None])[0]), 4)}  # fmt: skip
        out.append({name: line.get(name, "") for name in COLUMNS})
    return out
