"""All signals of a set, and the one score that is calibrated.

`score_pairs` holds the order of things: similarity of the encoder's own joint space, heads learned on the pairs
themselves, margins, agreement of neighbourhoods, and their combination. Every signal scores the given pairs and the
same re-paired ones, so that `mixture.fit_null` can calibrate whichever is asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.special import logit

from noisycorr.clean.signals.classes import are_classes, class_score
from noisycorr.clean.signals.combine import combine
from noisycorr.clean.signals.crossfit import CrossFit, cross_fit
from noisycorr.clean.signals.neighbors import consensus, mean_feature
from noisycorr.clean.signals.siblings import correct_by_siblings
from noisycorr.clean.signals.sides import Side, whole_neighbors
from noisycorr.clean.signals.similarity import margin
from noisycorr.clean.signals.view import (
    PairEmbeddings,
    ShuffledPairs,
    Signal,
    own_cosine,
    pair_cosine,
    shuffled_pairs,
    with_near_misses,
)
from noisycorr.runtime.errors import UsageError
from noisycorr.stats.index import neighbors
from noisycorr.stats.mixture import Fit, constant_fit, fit_beta, fit_gaussian, fit_null, odds_fit

ALIGN = ("auto", "none", "cross-fit", "trained")
CALIBRATION = ("auto", "null", "gaussian", "beta")
FEWEST = 100  # pairs below which heads are not learned

Parts = Sequence[np.ndarray]
Heads = Callable[[PairEmbeddings, np.ndarray], tuple[np.ndarray, np.ndarray]]


@dataclass(frozen=True, kw_only=True)
class Score:
    """How pairs are scored.

    Attributes:
        align: `none` scores by the cosine of the encoder, `cross-fit` learns projection heads on the pairs and combines
            all signals, `auto` does so if the encoder has no joint space of its own. `trained` adds heads with two
            layers, which find finer differences and take a few times longer; not used if texts are classes.
        folds: Number of folds of cross-fitting, 2 to 20.
        neighbors: Number of nearest neighbours whose texts or images are compared; 0 = leave this signal out.
        margin: Compare each pair with up to 1,024 other texts and images (time grows linearly with n).
        calibration: `null` (wrong pairs are made by pairing at random), `gaussian` or `beta` (two fitted components),
            or `auto`: the label noise of classes if heads are learned and many images share one text, else `null`.
        target_recall: Recall of the approximate neighbour search on large sets, 0.5 to 1.
        near_duplicates: Search for near-duplicates among embeddings; without it only exact copies are found.
        seed: Random seed of folds, random pairs and sampling.
    """

    align: str = "auto"
    folds: int = 5
    neighbors: int = 20
    margin: bool = True
    calibration: str = "auto"
    target_recall: float = 0.95
    near_duplicates: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        if self.align not in ALIGN:
            raise UsageError(f"`align` is {self.align!r}, expected one of {', '.join(ALIGN)}.")
        if self.calibration not in CALIBRATION:
            raise UsageError(f"`calibration` is {self.calibration!r}, expected one of {', '.join(CALIBRATION)}.")
        if self.align == "trained" and not self.margin:
            raise UsageError("`align` trained adds margins, but `margin` is false: give one of them up.")
        if not 2 <= self.folds <= 20:
            raise UsageError(f"`folds` is {self.folds}, expected 2 to 20.")
        if not 0 <= self.neighbors <= 200:
            raise UsageError(f"`neighbors` is {self.neighbors}, expected 0 to 200.")
        if not 0.5 <= self.target_recall <= 1:
            raise UsageError(f"`target_recall` is {self.target_recall}, expected 0.5 to 1.")


@dataclass(frozen=True, slots=True, kw_only=True)
class Scored:
    """Signals of all pairs.

    Attributes:
        columns: float32 (n,) for each signal, without the `score_` prefix; higher = better matched.
        pair: The signal that is calibrated, on given and re-paired pairs.
        fit: Its curve to probabilities.
        facts: What the report tells: which signals, weights, folds, shrinkage, separation.
    """

    columns: dict[str, np.ndarray]
    pair: Signal
    fit: Fit
    facts: dict[str, Any]


def score_pairs(
    view: PairEmbeddings,
    joint: tuple[Parts, Parts] | None,
    choice: Score,
    *,
    learn: bool,
    heads_of: Heads | None = None,
    sides: tuple[Side, Side] | None = None,
) -> Scored:
    """Score every pair.

    Args:
        view: The pairs.
        joint: Features (image, text) whose cosine means alignment without training, or None.
        choice: How.
        learn: Learn heads on the pairs (`align cross-fit`).
        heads_of: Image and text rows (n, d) of further heads that never saw the fold (n,) of a pair; None = none.
        sides: What was found among images and among texts already, with at least `choice.neighbors` neighbours.

    Returns:
        The signals. With too few pairs to learn heads (under 100) the joint space alone is used.
    """
    facts: dict[str, Any] = {"align": "cross-fit" if learn else "none", "seed": choice.seed}
    signals: dict[str, Signal] = {}
    heads: CrossFit | None = None
    fold = np.zeros(view.n, np.int64)
    if learn and int(view.present.sum()) >= FEWEST:
        heads = cross_fit(view, folds=choice.folds, weigh=lambda given, null: fit_null(given, null, seed=0)(given))
        fold = heads.fold
        facts |= {"folds": choice.folds, "shrinkage": heads.reg, "heads_separation": round(heads.separation, 4)}
    elif learn:
        facts["note"] = f"fewer than {FEWEST} pairs: heads were not learned"
    pairs = shuffled_pairs(view, fold)
    pairs = with_near_misses(pairs, view, fold) if learn else pairs
    trust = np.ones(view.n, np.float32)
    if joint is not None:
        signals["similarity"] = _cosine(joint, pairs)
    if heads is not None:
        signals["crossfit"] = _cosine(([heads.image], [heads.text]), pairs)
        given, null = signals["crossfit"].given, signals["crossfit"].null
        trust = np.nan_to_num(fit_null(given, null[~pairs.near], seed=choice.seed)(given))
    space = ([heads.image], [heads.text]) if heads is not None else joint
    if space is not None and choice.margin:
        signals |= margins(space, view, pairs, fold, choice)
    classes = heads is not None and choice.calibration == "auto" and are_classes(view)
    if heads is not None and heads_of is not None and not classes:
        one, two = heads_of(view, fold)
        further = margins(([one], [two]), view, pairs, fold, choice)
        signals |= {f"trained_{name}": signal for name, signal in further.items()}
    hood: np.ndarray | None = None
    if choice.neighbors and int(view.present.sum()) > 2:
        found, hood = neighborhoods(view, pairs, trust, choice, facts, sides)
        signals |= found
    if heads is not None and classes:
        pair, fit = class_score(view, heads, hood, mean_feature(view.text), pairs)
        facts["calibrated"] = "classes"
        return Scored(columns=_columns(signals, pair), pair=pair, fit=fit, facts=facts)
    mix = heads is not None or joint is None
    return _finish(signals, mix, fold, pairs, choice, facts, view, space)


def _columns(signals: dict[str, Signal], pair: Signal) -> dict[str, np.ndarray]:
    return {name: signal.given for name, signal in signals.items()} | {"pair": pair.given}


def _finish(signals: dict[str, Signal], mix: bool, fold: np.ndarray, pairs: ShuffledPairs, choice: Score,
            facts: dict[str, Any], view: PairEmbeddings, space: tuple[Parts, Parts] | None) -> Scored:  # fmt: skip
    """Choose or combine the signal that is calibrated."""
    usable = {name: s for name, s in signals.items() if np.isfinite(s.given).any() and np.isfinite(s.null).any()}
    if not usable:
        empty = Signal(np.full(view.n, np.nan, np.float32), np.zeros(0, np.float32))
        fit = constant_fit("no pair could be scored: images or texts are missing, or all texts are equal")
        return Scored(columns=_columns(signals, empty), pair=empty, fit=fit, facts=facts)
    if mix:
        # The margins say what the plain cosine of the heads says, and better: it serves where they are switched off.
        weighed = {name: s for name, s in usable.items() if name != "crossfit" or "text_margin" not in usable}
        given = np.stack([s.given for s in weighed.values()], 1)
        null = np.stack([s.null for s in weighed.values()], 1)
        given[~view.present] = np.nan
        mixed = combine(given, null, fold, fold[pairs.image], pairs.near)
        pair = Signal(mixed.given, mixed.null[~pairs.near])  # only random wrong pairs calibrate
        facts["weights"] = {name: round(float(w), 4) for name, w in zip(weighed, mixed.weights)}
    else:
        name = "similarity" if "similarity" in usable else next(iter(usable))
        pair = Signal(usable[name].given, usable[name].null[~pairs.near])
        facts["calibrated"] = name
    if choice.calibration == "gaussian":
        fit = fit_gaussian(pair.given, seed=choice.seed)
    elif choice.calibration == "beta":
        fit = fit_beta(pair.given)
    else:
        fit = fit_null(pair.given, pair.null, seed=choice.seed)
    if mix and choice.calibration == "auto" and fit.kind != "constant":
        pair, fit = _siblings(pair, fit, space, view, pairs, facts)
    return Scored(columns=_columns(signals, pair), pair=pair, fit=fit, facts=facts)


def _siblings(pair: Signal, fit: Fit, space: tuple[Parts, Parts] | None, view: PairEmbeddings, pairs: ShuffledPairs,
              facts: dict[str, Any]) -> tuple[Signal, Fit]:  # fmt: skip
    """Where pictures hold several texts these correct each other; then the score is the log odds of the posterior."""
    corrected = correct_by_siblings(view, fit(pair.given), space, pairs) if space is not None else None
    if corrected is None:
        return pair, fit
    facts["siblings"] = {
        "pictures": corrected.pictures,
        "moved_together": corrected.rho,
        "correlation": round(corrected.kappa, 3),
    }
    limit = 1e-4
    given, null = (logit(np.clip(p.astype(np.float64), limit, 1 - limit)).astype(np.float32)
                   for p in (corrected.p_clean, fit(pair.null)))  # fmt: skip
    return Signal(given, null), odds_fit(fit, given, corrected.p_clean)


def margins(
    space: tuple[Parts, Parts], view: PairEmbeddings, pairs: ShuffledPairs, fold: np.ndarray, choice: Score
) -> dict[str, Signal]:
    """Does the image prefer its text, does the text prefer its image?"""
    image, text = space
    return {
        "text_margin": margin(_whole(image), text, view.text_id, view.image_id, view.present, pairs, fold, side="image",
                              temperature=0.05, seed=choice.seed),
        "image_margin": margin(_whole(text), image, view.image_id, view.image_id, view.present, pairs, fold,
                               side="text", temperature=0.05, seed=choice.seed),
    }  # fmt: skip


def neighborhoods(
    view: PairEmbeddings,
    pairs: ShuffledPairs,
    trust: np.ndarray,
    choice: Score,
    facts: dict[str, Any],
    known: tuple[Side, Side] | None,
) -> tuple[dict[str, Signal], np.ndarray]:
    """Do the texts of similar images prefer this text, do the images of similar texts prefer this image?

    Also what the texts of similar images have in common (n, d).
    """
    out: dict[str, Signal] = {}
    said = np.zeros((0, 0), np.float16)
    nowhere = np.zeros(view.n, np.int64)
    sides = (("image", view.image, view.text, view.text_id), ("text", view.text, view.image, view.image_id))
    for side, here, there, identity in sides:
        k = min(choice.neighbors, view.n - 1)
        if known is None:
            found = neighbors(list(here), k, seed=choice.seed, target_recall=choice.target_recall)
        else:
            found = whole_neighbors(known[side == "text"], list(here), k, seed=choice.seed)
        facts[f"{side}_neighbors"] = {"method": found.method, "recall": round(found.recall, 4)}
        mean = mean_feature(there)
        hood = consensus(found, there, mean, trust, view.image_id)
        said = hood.consensus if side == "image" else said
        out[f"{side}_neighbors"] = margin(hood.consensus, there, identity, view.image_id, view.present, pairs, nowhere,
                                          side=side, temperature=0.1, seed=choice.seed, mean=mean)  # fmt: skip
    return out, said


def _cosine(space: tuple[Parts, Parts], pairs: ShuffledPairs) -> Signal:
    return Signal(own_cosine(*space), pair_cosine(*space, pairs))


def _whole(parts: Parts) -> np.ndarray:
    return np.concatenate(parts) if len(parts) > 1 else parts[0]
