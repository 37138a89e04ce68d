"""Bench of `noisycorr audit`: are wrong labels found, and are changed labels right?

    python scripts/bench_audit.py --data ../shared/data --cache CACHE --output FOLDER

Rows: sets and noises of `audit_sets.py`; each number is the mean over seeds. Rivals get the same frozen features:
confident learning (cleanlab's own label quality scores, from the same out-of-fold probabilities as our classifier),
the vote of the same neighbours, and the cosine of the text (CIFAR-10N has none: of the picture, in the joint space) to
the class text. What is done is not done again.
"""

from __future__ import annotations

import argparse
import time
from functools import partial
from pathlib import Path

import numpy as np
import torch
from audit_sets import NOISES, SETS, Case, Labelled, load_set, make_case
from sklearn.metrics import roc_auc_score

from noisycorr.classify.anchors import select_anchors
from noisycorr.classify.audit.label_verdict import LabelRule, supported
from noisycorr.classify.audit.labels import Audit, LabelView, audit_labels, class_probabilities
from noisycorr.classify.completion import build_graph, complete_texts
from noisycorr.classify.confident import confidence_weighted_entropy, normalized_margin, self_confidence
from noisycorr.classify.prototypes import match
from noisycorr.clean.bench import Metric, Row, grid, joined, markdown, plot, run_grid, shown, stored_cell
from noisycorr.clean.bench_sets import listed
from noisycorr.models.encoders.embedded import EmbeddedEncoder
from noisycorr.runtime.folder import Run

TITLES = {
    "text_raw": "AUC text match, own text", "text_released": "completed as released", "text_completed": "completed",
    "anchors": "precision of 10 anchors a class", "anchors_few": "the same, at most 30 % of a class, as training",
    "audit": "AUROC audit", "confident": "confident learning, best score of cleanlab",
    "confident_ours": "the same probabilities, our scores", "vote": "kNN vote", "class_text": "cosine to class text",
    "at_errors": "precision at the number of errors", "at_errors_confident": "the same, confident learning",
    "changed": "changed labels", "precision": "precision of changed labels", "outside": "AUROC out of set",
    "ece": "calibration error", "wrong": "share wrong", "seconds": "seconds",
}  # fmt: skip
METRICS = {name: Metric(name=name, title=title, digits=0 if name in ("changed", "seconds") else 3)
           for name, title in TITLES.items()}  # fmt: skip


def main() -> None:
    """Compute what is missing, then print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of the sets")
    parser.add_argument("--cache", type=Path, required=True, help="folder of features")
    parser.add_argument("--output", type=Path, required=True, help="folder of cells and tables")
    parser.add_argument("--seeds", default="3,4,5", help="comma-separated; rules were chosen with 0 to 2 in sight")
    parser.add_argument("--limit", type=int, default=6000, help="rows of fashion and cifar10n")
    given = parser.parse_args()
    torch.set_num_threads(1)
    encoder, seeds = EmbeddedEncoder(), list(map(int, listed(given.seeds)))

    def work(data: Labelled, cell: Row) -> Row:
        inputs = {"cell": cell, "limit": given.limit, "weights": encoder.weights_hash}
        return cell | stored_cell(given.output, cell["set"], inputs, lambda: compute(
            data, make_case(data, cell["noise"], cell["seed"], encoder), cell["seed"]))  # fmt: skip

    plan = [(partial(load_set, name, given.data, given.limit, given.cache, encoder),
             grid(set=[name], noise=[noise for noise in NOISES if (noise == "natural") == (name == "cifar10n")],
                  method=["audit"], seed=seeds)) for name in SETS]  # fmt: skip
    print(run_grid(
        Run(given.output), plan, work, settings={"seeds": seeds, "limit": given.limit}, tables=table,
        line=lambda row: str({name: round(x, 3) if isinstance(x, float) else x for name, x in row.items()}),
        draw=partial(plot, metric=METRICS["audit"], x="noise", x_title="noise", panel=lambda row: row["set"]),
    ).table)  # fmt: skip


def compute(data: Labelled, case: Case, seed: int) -> dict[str, float]:
    """All figures of one set, noise and seed."""
    right, y, n = ~case.wrong, case.given, len(case.given)
    count = case.prototypes.count
    view = LabelView(image=[data.image], text=[case.text.astype(np.float16)], labels=y, group=data.group,
                     prototypes=case.prototypes, joint=([data.joint], case.joint_prototypes))  # fmt: skip
    started = time.process_time()
    found = audit_labels(view, Audit(seed=seed))
    seconds = time.process_time() - started
    p = class_probabilities(view.image, y, view.group, count, seed=seed)
    out = {"wrong": float(case.wrong.mean()), "audit": auc(found.score, right), "seconds": seconds}
    rivals = _confident_scores(p, y)
    best = max(rivals, key=lambda score: auc(score, right))  # the rival may choose its score with the truth
    ours = [self_confidence(p, y), normalized_margin(p, y), confidence_weighted_entropy(p, y)]
    out["confident_ours"] = max(auc(score, right) for score in ours)
    out |= {"confident": auc(best, right), "vote": auc(found.columns["vote"], right)}
    out |= {"at_errors": at_errors(found.score, case.wrong), "at_errors_confident": at_errors(best, case.wrong)}
    if case.has_text.any():
        raw = match(case.text, case.prototypes, y).own
        out |= {"text_raw": auc(raw, right), "class_text": auc(raw, right)}
        completed, _ = complete_texts(case.text, build_graph(data.image, 10, seed=seed), case.has_text)
        released, _ = complete_texts(case.text, build_graph(data.image, 4, seed=seed), case.has_text, faithful=True)
        own = match(completed, case.prototypes, y).own
        out |= {"text_completed": auc(own, right), "text_released": auc(match(released, case.prototypes, y).own, right)}
        out["anchors"] = float(right[select_anchors(own, y, k=10)].mean())
        out["anchors_few"] = float(right[select_anchors(own, y, k=10, share=0.3)].mean())
    else:
        out["class_text"] = auc(found.columns["zero_shot"], right)
    changed = (np.nan_to_num(found.p_right, nan=1) < 0.5) & (found.p_other >= LabelRule.relabel_threshold)
    changed &= supported(found)
    out |= {"changed": float(changed.sum()), "ece": calibration_error(found.p_right, right)}
    if changed.any():
        out["precision"] = float((found.other[changed] == case.truth[changed]).mean())
    if (case.truth < 0).any():
        out["outside"] = float(roc_auc_score(case.truth < 0, found.outside))
    assert n == len(right)
    return out


def _confident_scores(p: np.ndarray, labels: np.ndarray) -> list[np.ndarray]:
    from cleanlab.rank import get_label_quality_scores

    return [get_label_quality_scores(labels, p, method=method)
            for method in ("self_confidence", "normalized_margin", "confidence_weighted_entropy")]  # fmt: skip


def auc(score: np.ndarray, right: np.ndarray) -> float:
    """AUROC; what is unknown stands in the middle."""
    return float(roc_auc_score(right, np.where(np.isfinite(score), score, np.nanmedian(score))))


def at_errors(score: np.ndarray, wrong: np.ndarray) -> float:
    """Share of wrong labels among the lowest scored, as many as there are errors."""
    return float(wrong[np.argsort(score, kind="stable")[: int(wrong.sum())]].mean())


def calibration_error(p: np.ndarray, right: np.ndarray) -> float:
    """Mean distance of p and the share of right labels, over ten bins."""
    place = np.clip((p * 10).astype(int), 0, 9)
    bins = [np.flatnonzero(place == i) for i in range(10)]
    return float(sum(abs(p[b].mean() - right[b].mean()) * len(b) for b in bins if len(b)) / len(p))


def table(rows: list[Row]) -> str:
    """Markdown, a row for each figure and a column for each set and noise."""
    places: dict[str, list[Row]] = {}
    for row in rows:
        places.setdefault(f"{row['set']} {row['noise']}", []).append(row)
    lines = [[metric.title, *(shown(metric.values(some), metric.digits) for some in places.values())]
             for metric in METRICS.values()]  # fmt: skip
    return joined(rows, markdown(["", *places], lines))


if __name__ == "__main__":
    main()
