"""From what the audit found to verdicts: keep, relabel, drop or review, each with its reason.

A label is changed only where all witnesses agree: the posterior is sure, the text surely names the same class (where
there are texts), and the picture looks like a class at least as much as the middle of the rows
that are kept. What is wrong but has no sure successor is for review, what looks like no class at all is dropped.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from noisycorr.classify.audit.labels import Audited
from noisycorr.data.pairs import PROBLEMS
from noisycorr.runtime.errors import UsageError

SURE = 0.8  # p_right of rows that show how a picture of the set looks
UNREADABLE = ("image_missing", "image_unreadable", "image_too_large", "row_unreadable", "archive_truncated",
              "name_unsafe")  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class LabelRule:
    """What to do with labels.

    Attributes:
        p_threshold: Keep labels with p_clean at or above this.
        relabel_threshold: Change a label if another one is right with at least this probability, and text and picture
            agree; else it is for review.
        drop_threshold: Drop pictures that are of no class with at least this probability.
    """

    p_threshold: float = 0.5
    relabel_threshold: float = 0.9
    drop_threshold: float = 0.5

    def __post_init__(self) -> None:
        for name in ("p_threshold", "relabel_threshold", "drop_threshold"):
            if not 0 <= getattr(self, name) <= 1:
                raise UsageError(f"`{name}` is {getattr(self, name)}, expected a number from 0 to 1.")

    @property
    def rule(self) -> str:
        """In words, as it stands in the ledger."""
        return f"label p_clean>={self.p_threshold:g}, relabel>={self.relabel_threshold:g}"


def supported(audited: Audited) -> np.ndarray:
    """bool (n,): text and picture agree with the proposed other class."""
    sure = audited.energy[(np.nan_to_num(audited.p_right) > SURE) & np.isfinite(audited.energy)]
    level = np.median(sure) if len(sure) else np.inf
    fits = (audited.named == audited.other) | (audited.text_class < 0)
    return np.asarray((audited.other >= 0) & fits & (audited.energy >= level))


def label_verdicts(
    audited: Audited, choice: LabelRule, names: Sequence[str], raw: Sequence[str], problem: Sequence[str | None]
) -> dict[str, Any]:
    """A verdict for every row.

    Args:
        audited: The audit.
        choice: The rule.
        names: Of the classes.
        raw: Labels as they came in, "" = none.
        problem: What the reader found wrong with each row, or None.

    Returns:
        Columns verdict, reason, label_rectified (None = none known), sample_weight, is_label_issue.
    """
    agree = supported(audited)
    n = len(raw)
    verdict, reason, fixed = np.full(n, "", object), np.full(n, "", object), np.full(n, None, object)
    p, q, o = audited.p_right, audited.p_other, audited.outside
    for i in range(n):
        other = names[audited.other[i]] if audited.other[i] >= 0 else None
        if problem[i] in UNREADABLE:
            verdict[i], reason[i] = "drop", PROBLEMS[str(problem[i])]
        elif np.isnan(p[i]):
            what = f"label {raw[i]!r} is not in the class list" if raw[i] else "no label came with this picture"
            sure = other is not None and q[i] >= choice.relabel_threshold and agree[i]
            verdict[i] = "relabel" if sure else "review"
            fixed[i] = other if sure else None
            reason[i] = what + (f"; it looks like {other!r}: {q[i]:.2f}" if other is not None else "")
        elif p[i] >= choice.p_threshold:
            verdict[i], fixed[i], reason[i] = "keep", raw[i], f"the label fits: p_clean {p[i]:.2f}"
        elif q[i] >= choice.relabel_threshold and agree[i]:
            verdict[i], fixed[i] = "relabel", other
            reason[i] = f"looks like {other!r} ({q[i]:.2f}), not {raw[i]!r}: p_clean {p[i]:.2f}"
        elif o[i] >= choice.drop_threshold:
            verdict[i], reason[i] = "drop", f"looks like none of the classes ({o[i]:.2f}): p_clean {p[i]:.2f}"
        else:
            verdict[i] = "review"
            reason[i] = f"the label looks wrong, perhaps {other!r} ({q[i]:.2f}): p_clean {p[i]:.2f}"
    kept = (verdict == "keep") | (verdict == "review")
    weight = np.where(verdict == "relabel", q, np.where(kept, np.nan_to_num(p), 0)).astype(np.float32)
    issue = np.nan_to_num(p, nan=1.0) < choice.p_threshold
    return {"verdict": verdict, "reason": reason, "label_rectified": fixed, "sample_weight": weight,
            "is_label_issue": issue}  # fmt: skip
