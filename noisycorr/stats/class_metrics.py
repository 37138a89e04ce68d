"""How good a classifier is: plain functions of scores and labels. Shares are in [0, 1], higher = better."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

SHOTS = (100, 20)  # many: more than the first; few: fewer than the second
THRESHOLDS = np.linspace(0.01, 0.99, 100)
TINY = 1e-4


def top_k(score: Float[np.ndarray, "n c"], label: Int[np.ndarray, " n"], k: int) -> Bool[np.ndarray, " n"]:
    """Is the label among the k highest scores? Ties count against it."""
    own = np.take_along_axis(score, label[:, None], 1)
    return np.asarray((score >= own).sum(1) <= k)


def accuracy(score: Float[np.ndarray, "n c"], label: Int[np.ndarray, " n"]) -> dict[str, float]:
    """`top1`, `top5`, and `macro`, the mean over classes of top-1. NaN without samples."""
    if not len(label):
        return {"top1": float("nan"), "top5": float("nan"), "macro": float("nan")}
    hit = top_k(score, label, 1)
    each = [hit[label == c].mean() for c in np.unique(label)]
    return {"top1": float(hit.mean()), "top5": float(top_k(score, label, 5).mean()), "macro": float(np.mean(each))}


def per_class(score: Float[np.ndarray, "n c"], label: Int[np.ndarray, " n"], trained: Int[np.ndarray, " c"],
              names: Sequence[str]) -> list[dict[str, Any]]:  # fmt: skip
    """A row for each class: samples trained on and tested, recall, precision of its predictions (None without any)."""
    guess = score.argmax(1)
    rows = []
    for c, name in enumerate(names):
        mine, said = label == c, guess == c
        rows.append({
            "class": name, "trained": int(trained[c]), "tested": int(mine.sum()),
            "recall": float((guess[mine] == c).mean()) if mine.any() else None,
            "precision": float((label[said] == c).mean()) if said.any() else None,
        })  # fmt: skip
    return rows


def by_shots(rows: Sequence[Mapping[str, Any]], limits: tuple[int, int] = SHOTS) -> dict[str, dict[str, float]]:
    """Mean recall of classes with many, some, and few training samples; groups without a class are absent.

    Args:
        rows: Of `per_class`.
        limits: Many is more than the first, few fewer than the second.
    """
    many, few = limits
    groups: dict[str, list[float]] = {"many": [], "medium": [], "few": []}
    for row in rows:
        if row["recall"] is not None:
            name = "many" if row["trained"] > many else "few" if row["trained"] < few else "medium"
            groups[name].append(row["recall"])
    return {name: {"classes": len(v), "recall": float(np.mean(v))} for name, v in groups.items() if v}


def tag_metrics(score: Float[np.ndarray, "n c"], tag: Bool[np.ndarray, "n c"], k: int = 3) -> dict[str, float]:
    """Metrics of tags, when the k highest scores of each sample are predicted.

    Returns:
        `map`, mean over classes that occur of the average precision. `cf1` and `of1`, harmonic means of precision and
        recall, averaged over classes, and over all entries. `cf1_rel`, `of1_rel` and `map_micro` as the released CAPro
        computes C-F1, O-F1 and mAP: with recall averaged over samples, and average precision over all entries.

    Source: Wang et al. (CVPR 2016) for C-F1 and O-F1 at 3.
    """
    from sklearn.metrics import average_precision_score

    k = min(k, score.shape[1])
    said = np.zeros(score.shape, bool)
    np.put_along_axis(said, np.argsort(-score, axis=1, kind="stable")[:, :k], True, axis=1)
    hit = said & tag
    occurs = tag.any(0)
    class_p = hit.sum(0) / np.maximum(said.sum(0), 1)
    class_r = hit.sum(0) / np.maximum(tag.sum(0), 1)
    has = tag.any(1)
    sample_r = hit[has].sum(1) / np.maximum(tag[has].sum(1), 1)
    precision = [average_precision_score(tag[:, c], score[:, c]) for c in np.flatnonzero(occurs)]
    return {
        "map": float(np.mean(precision)) if precision else float("nan"),
        "cf1": _f1(float(class_p[occurs].mean()), float(class_r[occurs].mean())) if occurs.any() else float("nan"),
        "of1": _f1(float(hit.sum() / max(said.sum(), 1)), float(hit.sum() / max(tag.sum(), 1))),
        "cf1_rel": _f1(
            float((hit.sum(0) / (said.sum(0) + TINY)).mean()), float((hit.sum(0) / (tag.sum(0) + TINY)).mean())
        ),
        "of1_rel": _f1(float((hit.sum(1) / k).mean()), float(sample_r.mean())) if has.any() else float("nan"),
        "map_micro": float(average_precision_score(tag.ravel(), score.ravel())) if occurs.any() else float("nan"),
    }


@dataclass(frozen=True, kw_only=True)
class OpenSet:
    """Result of the open-set protocol.

    Attributes:
        cf1: Mean over thresholds of the harmonic mean of macro precision and recall over c + 1 classes.
        area: Under the curve of macro precision over macro recall.
        curve: (thresholds, 2) macro precision and recall.
    """

    cf1: float
    area: float
    curve: np.ndarray


def open_set(confidence: Float[np.ndarray, " n"], guess: Int[np.ndarray, " n"], label: Int[np.ndarray, " n"],
             classes: int, thresholds: np.ndarray = THRESHOLDS) -> OpenSet:  # fmt: skip
    """Samples of unknown classes among known ones: what is not confident is called unknown, the class c.

        known:   confidence > t: right -> TP_guess; wrong -> FP_guess, FN_label;  else FP_unknown, FN_label
        unknown: confidence > t: FP_guess, FN_unknown;                            else TP_unknown

    FP and FN begin at 1e-4.

    Args:
        confidence: The highest probability.
        guess: Its class.
        label: In 0..c - 1, or c or more for samples of unknown classes.
        classes: c.
        thresholds: t.

    Source: CAPro (Qin et al., NeurIPS 2023), released evaluation.
    """
    label = np.minimum(label, classes)
    curve = np.empty((len(thresholds), 2))
    for place, limit in enumerate(thresholds):
        said = np.where(confidence > limit, guess, classes)
        right = said == label
        hits = np.bincount(label[right], minlength=classes + 1).astype(float)
        false = np.bincount(said[~right], minlength=classes + 1) + TINY
        missed = np.bincount(label[~right], minlength=classes + 1) + TINY
        curve[place] = (hits / (hits + false)).mean(), (hits / (hits + missed)).mean()
    cf1 = float(np.mean([_f1(p, r) for p, r in curve]))
    order = np.argsort(curve[:, 1], kind="stable")
    area = float(np.trapezoid(curve[order, 0], curve[order, 1]))
    return OpenSet(cf1=cf1, area=area, curve=curve)


def changed_labels(given: Int[np.ndarray, " n"], now: Int[np.ndarray, " n"],
                   truth: Int[np.ndarray, " n"]) -> dict[str, float]:  # fmt: skip
    """What became of labels that a method changed.

    Args:
        given: As they came.
        now: As the method sees them, -1 = left out.
        truth: -1 where no class is right.

    Returns:
        `changed`, share of all; `precision`, share of the changed that are right now; `recall`, share of wrong labels
        of samples of a class that were put right. NaN where there are none.
    """
    changed = (now >= 0) & (now != given)
    wrong = (truth >= 0) & (truth != given)
    right = changed & (now == truth)
    return {
        "changed": float(changed.mean()),
        "precision": float(right.sum() / changed.sum()) if changed.any() else float("nan"),
        "recall": float(right[wrong].mean()) if wrong.any() else float("nan"),
    }


def _f1(precision: float, recall: float) -> float:
    return 2 * precision * recall / (precision + recall) if precision + recall > 0 else 0.0
