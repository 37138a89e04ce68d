"""The check against known truth, where the input has a column `truth_wrong`. Only evaluation and the report see it."""

from __future__ import annotations

from typing import Any

import numpy as np

from noisycorr.clean.report.batches import Batch
from noisycorr.stats.detection import auroc, average_precision, calibration

COLUMN = "truth_wrong"


class Truth:
    """p_clean and truth of the pairs where both are known: five bytes a pair."""

    def __init__(self) -> None:
        self.p_clean: list[np.ndarray] = []
        self.wrong: list[np.ndarray] = []
        self.verdicts: dict[str, list[int]] = {}

    def add(self, batch: Batch, rows: list[dict[str, Any]]) -> None:
        """Add a batch, with one dictionary of other input columns a row."""
        places = [i for i, row in enumerate(rows) if row.get(COLUMN) in (True, False, 0, 1)]
        if not places:
            return
        wrong = np.array([bool(rows[i][COLUMN]) for i in places])
        verdicts, p_clean = batch.strings("verdict"), batch.floats("p_clean")[places]
        for i, bad in zip(places, wrong.tolist()):
            self.verdicts.setdefault(verdicts[i] or "undecided", [0, 0])[bad] += 1
        known = np.isfinite(p_clean)
        self.p_clean.append(p_clean[known].astype(np.float32))
        self.wrong.append(wrong[known])

    def result(self) -> dict[str, Any]:
        """JSON: pairs, wrong, verdicts by truth, and auroc, average_precision, ece and reliability table."""
        out: dict[str, Any] = {
            "verdicts": {name: {"right": n[0], "wrong": n[1]} for name, n in sorted(self.verdicts.items())}
        }
        if not self.p_clean:
            return out | {"pairs": 0}
        p_clean, wrong = np.concatenate(self.p_clean).astype(np.float64), np.concatenate(self.wrong)
        out |= {"pairs": len(wrong), "wrong": int(wrong.sum())}
        if not len(wrong):
            return out
        checked = calibration(p_clean, wrong)
        bins = [bin for bin in checked.table if bin.count]
        out["reliability"] = [
            {
                "low": bin.low,
                "high": bin.high,
                "pairs": bin.count,
                "mean_p_clean": bin.p_clean,
                "share_right": bin.right,
            }
            for bin in bins
        ]
        out |= {
            "ece": checked.ece,
            "auroc": auroc(p_clean, wrong),
            "average_precision": average_precision(p_clean, wrong),
        }
        return out
