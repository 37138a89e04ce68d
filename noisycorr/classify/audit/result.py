"""An audit as an object: what `CleanRun` offers, and the issues of labels as a table."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa

from noisycorr.classify.audit.audit import report
from noisycorr.clean.result import CleanRun
from noisycorr.runtime.lock import at_work

if TYPE_CHECKING:
    import pandas

ISSUES = {"key": "key", "is_label_issue": "is_label_issue", "label_score": "p_clean", "given_label": "label",
          "predicted_label": "label_proposed", "p_predicted": "p_proposed", "label_rectified": "label_rectified",
          "verdict": "verdict", "reason": "reason"}  # fmt: skip


class AuditRun(CleanRun):
    """What `audit` found: one row for every row that came in, with `p_clean` of its label, verdict and reason.

    It is the ledger of a `CleanRun`, and can be explained and exported like one. To decide anew, call `audit` again
    with other thresholds: what did not change is not done again.
    """

    @property
    def summary(self) -> str:
        """Counts of verdicts, and the estimated share of wrong labels."""
        record = self.run.stage("audit") or {"facts": {}}
        return "\n".join(str(line) for line in record["facts"].get("summary", []))

    def label_issues(self) -> pandas.DataFrame:
        """Every label with how likely it is right, in the columns that cleanlab's Datalab has.

        Returns:
            One row for each row that came in, in their order: `key`, `is_label_issue`, `label_score` (probability that
            the label is right, in [0, 1]), `given_label`, `predicted_label` (the likeliest other class) with
            `p_predicted`, `label_rectified` (what the label should be, None if that is not known), `verdict` and
            `reason`.
        """
        ledger = self.to_arrow()
        return pa.table({name: ledger.column(column) for name, column in ISSUES.items()}).to_pandas()

    def write_report(self) -> Path:
        """Write report.html and report.json again."""
        with at_work(self.folder, "report"):
            report(self.run)
        return self.report
