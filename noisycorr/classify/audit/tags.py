"""Audit of rows with several labels: each (row, label) is judged by itself, against labels that the row does not carry.

    signals of (i, c) = cosine of the completed text with c, of the picture with c in a joint space, share of similar
                        pictures that carry c less how common c is
    p(c right for i)  from the learned combination of these, calibrated with labels dealt at random

Nothing is n x c but the pairs that are given.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from noisycorr.classify.audit.labels import Audit, Audited, LabelView, best_class, complete_view, mean_row
from noisycorr.clean.signals.combine import combine
from noisycorr.clean.signals.crossfit import deal_folds
from noisycorr.clean.signals.neighbors import mean_feature
from noisycorr.clean.signals.view import take
from noisycorr.runtime.errors import UsageError
from noisycorr.stats.index import Neighbors, neighbors
from noisycorr.stats.mixture import fit_null
from noisycorr.stats.unit import unit

BLOCK = 16_384


def audit_tags(view: LabelView, tags: Sequence[tuple[int, ...]], choice: Audit) -> Audited:
    """Judge every label of every row.

    Args:
        view: The rows; `labels` is not used.
        tags: Classes of each row.
        choice: How.

    Returns:
        As for single labels; `p_right` of a row is that of its worst label, `other` is -1, and `facts` holds
        `tags_kept`: the kept labels, with p of at least 0.5.

    Raises:
        UsageError: If fewer than 20 labels stand on pictures.
    """
    n, c = len(tags), view.prototypes.count
    has_image = np.concatenate([np.asarray(part).any(axis=1) for part in view.image])
    has_text = np.concatenate([np.asarray(part).any(axis=1) for part in view.text])
    row = np.array([i for i, labels in enumerate(tags) for _ in labels if has_image[i]], np.int64)
    tag = np.array([one for i, labels in enumerate(tags) for one in labels if has_image[i]], np.int64)
    if len(row) < 20:
        raise UsageError(f"only {len(row)} labels of the list stand on pictures; at least 20 are needed.")
    nearest = neighbors(list(view.image), min(max(choice.vote_neighbors, choice.graph_neighbors), n - 1),
                      seed=choice.seed, target_recall=choice.target_recall)  # fmt: skip
    completed, support, lent = complete_view(view, has_text, nearest, choice)
    rng = np.random.default_rng([choice.seed, 43])
    code = np.unique(row * c + tag)
    null_row, null_tag = np.repeat(row, 2), tag[rng.integers(len(tag), size=2 * len(row))]
    free = ~np.isin(null_row * c + null_tag, code)
    null_row, null_tag = null_row[free], null_tag[free]
    given, null = (_signals(view, completed, has_text, nearest, code, c, *pair)
                   for pair in ((row, tag), (null_row, null_tag)))  # fmt: skip
    fold = deal_folds(view.group, choice.folds, choice.seed)
    mix = combine(np.stack(list(given.values()), 1), np.stack(list(null.values()), 1), fold[row], fold[null_row])
    fit = fit_null(mix.given, mix.null, seed=choice.seed)
    p = np.nan_to_num(fit(mix.given), nan=1.0)
    kept = p >= 0.5
    p_right, score = np.full(n, np.nan, np.float32), np.full(n, np.nan, np.float32)
    np.fmin.at(p_right, row, p.astype(np.float32))
    np.fmin.at(score, row, mix.given.astype(np.float32))
    columns = {name: np.full(n, np.nan, np.float32) for name in given}
    for name, value in given.items():
        np.fmin.at(columns[name], row, value.astype(np.float32))
    names = {i: [] for i in range(n)}  # type: ignore[var-annotated]
    for i, one, stays in zip(row.tolist(), tag.tolist(), kept.tolist()):
        if stays:
            names[i].append(one)
    facts: dict[str, Any] = {
        "weights": {name: round(float(w), 3) for name, w in zip(given, mix.weights)}, "labels": len(row),
        "removed": int((~kept).sum()), "noise_rate": round(float(1 - p.mean()), 4),
        "neighbors": {"method": nearest.method, "recall": round(nearest.recall, 4)}, "texts": int(has_text.sum()),
        "tags_kept": [names[i] for i in range(n)],
    }  # fmt: skip
    zero = np.zeros(n, np.float32)
    return Audited(columns=columns, score=score, p_right=p_right, other=np.full(n, -1), p_other=zero, outside=zero,
                   energy=zero, text_class=best_class(completed, view.prototypes, mean_row(completed)),
                   named=np.full(n, -1), support=support, donors=lent, fit=fit, channel=None, facts=facts)  # fmt: skip


def _signals(view: LabelView, completed: np.ndarray, has_text: np.ndarray, nearest: Neighbors, code: np.ndarray, c: int,
             row: np.ndarray, tag: np.ndarray) -> dict[str, np.ndarray]:  # fmt: skip
    """float32 (m,) each, of pairs (row, class)."""
    out: dict[str, np.ndarray] = {}
    if has_text.any():
        centre = mean_row(completed)
        out["text_completed"] = _best_sense(view.prototypes, completed, row, tag, centre)
    if view.joint is not None:
        joint, classes = view.joint
        whole = take(joint, np.arange(sum(map(len, joint))))
        out["zero_shot"] = _best_sense(classes, whole, row, tag, mean_feature(joint))
    common = np.bincount(code % c, minlength=c) / max(len(view.labels), 1)
    share = np.zeros(len(row), np.float32)
    for start in range(0, len(row), BLOCK):
        some = slice(start, start + BLOCK)
        ids = nearest.ids[row[some]]
        other = (ids >= 0) & (view.group[np.maximum(ids, 0)] != view.group[row[some]][:, None])
        carries = np.isin(np.maximum(ids, 0) * c + tag[some][:, None], code) & other
        share[some] = (carries.sum(1) + common[tag[some]]) / (other.sum(1) + 1)
    out["vote"] = np.log(share + 1e-3) - np.log(common[tag] + 1e-3)
    return {name: value.astype(np.float32) for name, value in out.items()}


def _best_sense(classes: Any, features: np.ndarray, row: np.ndarray, tag: np.ndarray, centre: np.ndarray) -> np.ndarray:
    """Cosine with the best sense of the class, less what all have in common; NaN where nothing is known."""
    vectors = unit(classes.vectors - centre)
    out = np.full(len(row), np.nan, np.float32)
    for one in np.unique(tag):
        mine, senses = np.flatnonzero(tag == one), vectors[classes.owner == one]
        raw = np.asarray(features[row[mine]], np.float32)
        if len(senses):
            cosine = (unit(unit(raw) - centre) @ senses.T).max(axis=1)
            out[mine] = np.where(raw.any(axis=1), cosine, np.nan)
    return out
