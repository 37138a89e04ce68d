"""Which labels are wrong: all signals of a labelled set, put together and calibrated, without any training.

Signals about every class, each held out from the row's own label: completed and own texts against definitions, texts
and pictures by a linear discriminant, votes of similar pictures, the joint space of the encoder where it has one, and
how common the class is. `score/channel.py` weighs them. Rows go through in blocks; nothing is n x n, and nothing n x c
but while a block lasts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from scipy import special

from noisycorr.classify.anchors import named_classes, select_anchors, teaching_labels
from noisycorr.classify.audit.channel import Channel, fit_channel, judge, mixed
from noisycorr.classify.audit.discriminant import discriminant
from noisycorr.classify.audit.label_votes import knn_vote
from noisycorr.classify.audit.strata import fit_strata
from noisycorr.classify.completion import build_graph, complete_texts
from noisycorr.classify.prototypes import Prototypes, class_cosines, match
from noisycorr.classify.rerank import rerank_graph
from noisycorr.clean.signals.crossfit import deal_folds, reduce_width
from noisycorr.clean.signals.neighbors import mean_feature
from noisycorr.clean.signals.view import take
from noisycorr.runtime.errors import UsageError
from noisycorr.stats.index import Neighbors, neighbors
from noisycorr.stats.mixture import Fit, constant_fit, fit_null

LEARN = 4000  # rows on which weights are fitted
WIDTH = 384
CELLS = 12_000_000  # numbers of signals held at once
MOST = 5000  # classes
LIMIT = 20.0
DEALS = 3  # times that labels are dealt at random
LEAST = 1e-4  # so that rows of a probability of 0 still have an order
ANCHORS, SHARE = 10, 0.3  # of a class, whose texts set the bar for naming another

Signal = Callable[[np.ndarray], np.ndarray]  # rows (k,) to (k, c)


@dataclass(frozen=True, kw_only=True)
class Audit:
    """How labels are audited.

    Attributes:
        graph_neighbors: Similar pictures that lend their texts, 1 to 100.
        vote_neighbors: Similar pictures that vote, 1 to 200.
        self_weight: How much the own text counts against those of all neighbours together, 0 or more.
        rerank: Re-rank neighbours by mutual neighbourhood (k-reciprocal); seldom better, and slower.
        faithful: Complete texts as CAPro's released code does: own text discarded, blanks averaged in.
        folds: Folds of what is learned from labels, 2 to 20.
        out_of_set: Share of pictures of no class at all that is expected, 0 to 0.9.
        target_recall: Of approximate neighbour search on large sets.
        seed: Of folds and samples.
    """

    graph_neighbors: int = 10
    vote_neighbors: int = 20
    self_weight: float = 1.0
    rerank: bool = False
    faithful: bool = False
    folds: int = 5
    out_of_set: float = 0.1
    target_recall: float = 0.95
    seed: int = 0

    def __post_init__(self) -> None:
        for name, low, high in (("graph_neighbors", 1, 100), ("vote_neighbors", 1, 200), ("folds", 2, 20),
                                ("out_of_set", 0, 0.9), ("target_recall", 0.5, 1)):  # fmt: skip
            if not low <= getattr(self, name) <= high:
                raise UsageError(f"`{name}` is {getattr(self, name)}, expected {low} to {high}.")
        if not self.self_weight >= 0:
            raise UsageError(f"`self_weight` is {self.self_weight}, expected 0 or more.")


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelView:
    """What the audit sees of n rows; never the truth.

    Attributes:
        image: Parts of (n, d) features; zero rows where there is no picture.
        text: Parts of (n, e) features; zero rows where there is no text.
        labels: int (n,) given classes, -1 = none or not in the list.
        group: int (n,): equal where pictures are the same or near-duplicates.
        prototypes: Of the definitions.
        joint: Parts of (n, j) pictures in a space of pictures and texts, and the classes in it; or None.
    """

    image: Sequence[np.ndarray]
    text: Sequence[np.ndarray]
    labels: np.ndarray
    group: np.ndarray
    prototypes: Prototypes
    joint: tuple[Sequence[np.ndarray], Prototypes] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Audited:
    """What was found, one value for each row.

    Attributes:
        columns: float32 (n,) for each signal at the own label, without the prefix `score_`; higher = better matched.
        score: float32 (n,) log odds that the label is right; NaN = cannot be said.
        p_right: float32 (n,) calibrated, in [0, 1].
        other: int (n,): the likeliest other class, -1 = none; of rows without a label the likeliest class.
        p_other: float32 (n,): that it is right, in [0, 1].
        outside: float32 (n,): that the picture is of no class, in [0, 1].
        energy: float32 (n,): how much the picture looks like any class; higher = more.
        text_class: int (n,): the class whose definition fits the completed text best, -1 = unknown.
        named: int (n,): the same where it is sure, by `named_classes`; else -1.
        support: float32 (n,): share of the neighbourhood that texts stand behind.
        donors: int64 (n, k): neighbours whose texts were lent, closest first, -1 = fewer.
        fit: Curve from score to the probability that it is no random label.
        channel: Weights and confusions; None where nothing could be learned.
        facts: For the report.
    """

    columns: dict[str, np.ndarray]
    score: np.ndarray
    p_right: np.ndarray
    other: np.ndarray
    p_other: np.ndarray
    outside: np.ndarray
    energy: np.ndarray
    text_class: np.ndarray
    named: np.ndarray
    support: np.ndarray
    donors: np.ndarray
    fit: Fit
    channel: Channel | None
    facts: dict[str, Any]


@dataclass(frozen=True, slots=True)
class _Signals:
    """Named signals with the scale that each is divided by."""

    ask: dict[str, Signal] = field(default_factory=dict)
    scale: dict[str, float] = field(default_factory=dict)

    def add(self, name: str, ask: Signal, rows: np.ndarray, *, centred: bool = True) -> None:
        """Scaled by its spread on some rows; left out if it says the same of all classes."""
        value = ask(rows)
        value = value - value.mean(axis=1, keepdims=True) if centred else value
        size = float(np.sqrt((value**2).mean()))
        if size > 1e-9:
            self.ask[name], self.scale[name] = ask, size if centred else 1.0

    def __call__(self, rows: np.ndarray) -> np.ndarray:
        """float32 (q, k, c)."""
        out = []
        for name, ask in self.ask.items():
            value = ask(rows)
            out.append((value - value.mean(axis=1, keepdims=True)) / self.scale[name])
        return np.stack(out).astype(np.float32)


def audit_labels(view: LabelView, choice: Audit) -> Audited:
    """Judge every label.

    Args:
        view: The rows.
        choice: How.

    Raises:
        UsageError: With fewer than two classes, or more than 5,000, or fewer than 20 labelled pictures.
    """
    n, c = len(view.labels), view.prototypes.count
    if not 2 <= c <= MOST:
        raise UsageError(f"{c} classes were given; between 2 and {MOST:,} can be audited.")
    has_image = np.concatenate([np.asarray(part).any(axis=1) for part in view.image])
    has_text = np.concatenate([np.asarray(part).any(axis=1) for part in view.text])
    labels = np.where(has_image, view.labels, -1)
    usable = np.flatnonzero(labels >= 0)
    if len(usable) < 20:
        raise UsageError(f"only {len(usable)} pictures have a label of the list; at least 20 are needed.")
    nearest = neighbors(list(view.image), min(max(choice.vote_neighbors, choice.graph_neighbors), max(n - 1, 1)),
                      seed=choice.seed, target_recall=choice.target_recall)  # fmt: skip
    completed, support, graph_ids = complete_view(view, has_text, nearest, choice)
    fold = deal_folds(view.group, choice.folds, choice.seed)
    rng = np.random.default_rng([choice.seed, 41])
    some = np.sort(rng.choice(usable, min(LEARN, len(usable)), replace=False))
    said = match(completed, view.prototypes, labels, mean_row(completed))
    anchors = select_anchors(said.own, labels, k=ANCHORS, share=SHARE)
    named = named_classes(said.best, said.best_score, said.own, labels, anchors, c)
    signals = _signals(view, labels, has_text, completed, named, nearest, fold, choice, some)
    channel = fit_channel(signals(some), labels[some], outside=choice.out_of_set)
    out = _judged(signals, channel, labels, np.flatnonzero(has_image))
    fit, random = _calibrate(signals, channel, labels, usable, out, choice.seed, rng)
    known = np.isfinite(out["score"])
    right = np.ones(n)
    right[known] = special.expit(np.clip(out["score"][known], -LIMIT, LIMIT)) * np.maximum(random[known], LEAST)
    p_right = np.where(known, right, np.nan).astype(np.float32)
    score = np.where(known, np.log(right) - np.log1p(-np.minimum(right, 1 - 1e-12)), np.nan).astype(np.float32)
    wrong = np.where(known, 1 - right, has_image)
    facts = {
        "neighbors": {"method": nearest.method, "recall": round(nearest.recall, 4)},
        "weights": {name: round(float(w), 3) for name, w in zip(signals.ask, channel.weight)},
        "confused": round(channel.confused, 4), "surest": channel.sure, "texts": int(has_text.sum()),
        "noise_rate": round(float(np.mean(1 - right[known])), 4),
    }  # fmt: skip
    columns = _columns(view, labels, nearest, completed, signals, channel)
    return Audited(
        columns=columns, score=score, p_right=p_right, other=out["other"],
        p_other=(wrong * out["share"]).astype(np.float32), outside=(wrong * out["outside"]).astype(np.float32),
        energy=out["energy"], text_class=said.best, named=named, support=support, donors=graph_ids, fit=fit,
        channel=channel, facts=facts,
    )  # fmt: skip


def complete_view(
    view: LabelView, has_text: np.ndarray, nearest: Neighbors, choice: Audit
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Completed texts, their support, and who lent them."""
    k = min(choice.graph_neighbors, nearest.ids.shape[1])
    if choice.rerank:
        wide = build_graph(list(view.image), nearest.ids.shape[1], seed=choice.seed, nearest=nearest)
        whole = np.concatenate([np.asarray(part, np.float32) for part in view.image])
        graph = rerank_graph(whole, wide, k, faithful=choice.faithful)
    else:
        graph = build_graph(list(view.image), k, seed=choice.seed, nearest=nearest)
    completed, support = complete_texts(list(view.text), graph, has_text, self_weight=choice.self_weight,
                                        faithful=choice.faithful)  # fmt: skip
    lent = (graph.ids >= 0) & has_text[np.maximum(graph.ids, 0)]
    return completed, support, np.where(lent, graph.ids, -1)


def _signals(view: LabelView, labels: np.ndarray, has_text: np.ndarray, completed: np.ndarray, named: np.ndarray,
             nearest: Neighbors, fold: np.ndarray, choice: Audit, some: np.ndarray) -> _Signals:  # fmt: skip
    c = view.prototypes.count
    taught, out = teaching_labels(labels, named), _Signals()
    if view.joint is not None:
        joint, classes = view.joint
        out.add("zero_shot", _cosines(lambda rows: take(joint, rows), classes, mean_feature(joint)), some)
    if has_text.any():
        out.add("text_completed", _cosines(lambda rows: completed[rows], view.prototypes, mean_row(completed)), some)
        mean = mean_feature(view.text)
        out.add("text", _cosines(lambda rows: take(view.text, rows), view.prototypes, mean), some)
    narrow = reduce_width(view.image, WIDTH)
    out.add("classifier", discriminant(lambda rows: narrow[rows], taught, fold, c).logits, some)
    k = choice.vote_neighbors
    votes = Neighbors(ids=nearest.ids[:, :k], similarity=nearest.similarity[:, :k],
                      method=nearest.method, recall=nearest.recall)  # fmt: skip
    out.add("vote", lambda rows: np.log(knn_vote(votes, taught, c, group=view.group, rows=rows) + 1e-3), some)
    if has_text.any():
        out.add("text_classifier", discriminant(lambda rows: completed[rows], taught, fold, c).logits, some)
        own = discriminant(lambda rows: take(view.text, rows), taught, fold, c)
        out.add("own_text_classifier", own.logits, some)
    prior = np.log(np.bincount(taught[taught >= 0], minlength=c) + 1.0)
    out.add("frequency", lambda rows: np.tile(prior, (len(rows), 1)), some, centred=False)
    return out


def _cosines(get: Signal, classes: Prototypes, centre: np.ndarray) -> Signal:
    def ask(rows: np.ndarray) -> np.ndarray:
        value = np.concatenate([block for _, block in class_cosines(get(rows), classes, centre)])
        return np.where(np.isfinite(value), value, 0).astype(np.float32)

    return ask


def _judged(signals: _Signals, channel: Channel, labels: np.ndarray, rows: np.ndarray) -> dict[str, np.ndarray]:
    """Scores of all rows with a picture, block by block."""
    n, c = len(labels), len(channel.spread)
    out = {name: np.full(n, np.nan, np.float32) for name in ("score", "share", "outside", "energy")}
    out["other"] = np.full(n, -1)
    for part in _blocks(rows, c, len(channel.weight)):
        found = judge(signals(part), labels[part], channel)
        own = np.flatnonzero(labels[part] >= 0)
        found.wrong_odds[own, labels[part][own]] = 0
        best = found.wrong_odds.argmax(axis=1)
        out["score"][part], out["outside"][part], out["energy"][part] = found.score, found.outside, found.energy
        out["other"][part], out["share"][part] = best, found.wrong_odds[np.arange(len(part)), best]
    out["share"], out["outside"] = np.nan_to_num(out["share"]), np.nan_to_num(out["outside"])
    return out


def _calibrate(signals: _Signals, channel: Channel, labels: np.ndarray, usable: np.ndarray,
               out: dict[str, np.ndarray], seed: int, rng: np.random.Generator) -> tuple[Fit, np.ndarray]:  # fmt: skip
    """The curve against labels dealt at random, and for each row the probability that its own is not such a one: the
    channel alone does not see pictures that resemble no class."""
    everyone = np.ones(len(labels))
    some = np.sort(rng.choice(usable, min(20_000, len(usable)), replace=False))
    dealt = np.stack([labels[rng.permutation(some)] for _ in range(DEALS)])
    dealt = np.where(dealt == labels[some], -1, dealt)
    if (dealt >= 0).sum() < 20:
        return constant_fit("nearly all rows carry one label: nothing can be said about it"), everyone
    null, drawn = np.full(dealt.shape, np.nan), np.full(dealt.shape, np.nan)
    for at, part in _paired(some, len(channel.spread), len(channel.weight)):
        value = signals(part)
        logits = mixed(value, channel.weight)
        for turn in range(DEALS):
            null[turn, at] = judge(value, dealt[turn, at], channel).score
            label = (logits + rng.gumbel(size=logits.shape)).argmax(axis=1)
            drawn[turn, at] = judge(value, label, channel).score
    score, energy = out["score"][usable], out["energy"]
    fit, there = fit_null(score, null.ravel(), seed=seed), np.isfinite(null)
    if fit.kind == "constant":
        return fit, everyone
    of_some = np.tile(energy[some], (DEALS, 1))
    strata = fit_strata((score, energy[usable]), (null[there], of_some[there]), (drawn.ravel(), of_some.ravel()))
    everyone[usable] = strata(score, energy[usable])
    return fit, everyone


def _columns(view: LabelView, labels: np.ndarray, nearest: Neighbors, completed: np.ndarray, signals: _Signals,
             channel: Channel) -> dict[str, np.ndarray]:  # fmt: skip
    """Each signal at the own label: cosines and shares of votes as they are, discriminants as probabilities."""
    n, c = len(labels), view.prototypes.count
    out = {name: np.full(n, np.nan, np.float32) for name in signals.ask if name != "frequency"}
    for part in _blocks(np.flatnonzero(labels >= 0), c, 1):
        each, y = np.arange(len(part)), labels[part]
        for name in out:
            value = signals.ask[name](part)
            own = value[each, y]
            if name.endswith("classifier"):
                weight = max(float(channel.weight[list(signals.ask).index(name)]), 0.1) / signals.scale[name]
                own = np.exp(weight * own - special.logsumexp(weight * value, axis=1))
            elif name == "vote":
                own = np.exp(own)
            out[name][part] = own
    for name, rows in (("text_completed", completed.any(axis=1)),
                       ("text", np.concatenate([np.asarray(part).any(axis=1) for part in view.text]))):  # fmt: skip
        if name in out:
            out[name][~rows] = np.nan
    return out


def class_probabilities(
    image: Sequence[np.ndarray], labels: np.ndarray, group: np.ndarray, count: int, *, folds: int = 5, seed: int = 0
) -> np.ndarray:
    """Out-of-fold probabilities (n, c) of the discriminant of pictures alone, for confident learning.

    Its temperature is the one under which the given labels are likeliest.
    """
    narrow = reduce_width(image, WIDTH)
    fold = deal_folds(group, folds, seed)
    logits = discriminant(lambda rows: narrow[rows], labels, fold, count).logits(np.arange(len(labels)))
    known = np.flatnonzero(labels >= 0)
    scales = 2.0 ** np.arange(-4, 7)
    value = [
        special.log_softmax(logits[known] * s, axis=1)[np.arange(len(known)), labels[known]].mean() for s in scales
    ]
    return np.asarray(special.softmax(logits * scales[int(np.argmax(value))], axis=1))


def best_class(features: np.ndarray, classes: Prototypes, centre: np.ndarray) -> np.ndarray:
    """int (n,): the class whose definition fits each row best, -1 = unknown."""
    out = np.full(len(features), -1)
    for first, cosine in class_cosines(features, classes, centre):
        known = np.isfinite(cosine).any(axis=1)
        out[first : first + len(cosine)] = np.where(known, cosine.argmax(axis=1), -1)
    return out


def mean_row(rows: np.ndarray) -> np.ndarray:
    """float32 (d,): mean of the rows that are not zero."""
    there = rows.any(axis=1)
    return np.asarray(rows[there].mean(axis=0) if there.any() else np.zeros(rows.shape[1]), np.float32)


def _blocks(rows: np.ndarray, c: int, q: int) -> list[np.ndarray]:
    size = max(64, CELLS // max(c * q, 1))
    return [rows[start : start + size] for start in range(0, len(rows), size)]


def _paired(rows: np.ndarray, c: int, q: int) -> list[tuple[np.ndarray, np.ndarray]]:
    return [(places, rows[places]) for places in _blocks(np.arange(len(rows)), c, q)]
