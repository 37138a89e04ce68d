"""One pass over the rows of a run: everything the report and the nutrition label say in numbers."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import numpy as np

from noisycorr.clean.report.batches import Batch, Survey, batches, survey
from noisycorr.clean.report.columns import Columns
from noisycorr.clean.report.content import Content
from noisycorr.clean.report.frequency_sketch import FrequencySketch, Numbers, clip
from noisycorr.clean.report.gallery import Galleries
from noisycorr.clean.report.truth import Truth
from noisycorr.data.pairs import PROBLEMS, is_truth
from noisycorr.runtime.folder import Run

BINS = 48
PARTS = ("keep", "other", "drop")  # as in Batch.verdicts
ISSUES = ("mismatch", "near_duplicate", "image", "text")


def cause(reason: str) -> str:
    """A reason without what differs from pair to pair: numbers after a colon, the name of a group."""
    return reason.split(": ", 1)[0].split(" of group ", 1)[0]


class Counts:
    """Counts in and counts out: what came, what was decided, by which rule and why."""

    def __init__(self) -> None:
        self.rows = self.unreadable = self.judged = 0
        self.verdicts: Counter[str] = Counter()
        self.problems: Counter[str] = Counter()
        self.issues: Counter[str] = Counter(dict.fromkeys(ISSUES, 0))
        self.codes: dict[str, Counter[str]] = {"image": Counter(), "text": Counter()}
        self.rules: Counter[tuple[str, str, str]] = Counter()  # verdict, rule, cause
        self.groups = FrequencySketch(limit=2000)

    def add(self, batch: Batch) -> None:
        """Count the rows of a batch."""
        problems = [problem for problem in batch.strings("problem") if problem]
        verdicts = [verdict or "undecided" for verdict in batch.strings("verdict")]
        self.rows += len(batch)
        self.unreadable += len(problems)
        self.judged += int(np.isfinite(batch.floats("p_clean")).sum())
        self.verdicts.update(verdicts)
        self.problems.update(problems)
        for issue in ISSUES:
            self.issues[issue] += int(batch.flags(f"is_{issue}_issue").sum())
        for kind, codes in self.codes.items():
            codes.update(code for code in batch.strings(f"{kind}_issue") if code)
        for verdict, rule, reason in zip(verdicts, batch.strings("rule"), batch.strings("reason")):
            name = (verdict, clip(rule or "", 80), clip(cause(reason or ""), 300))
            if name not in self.rules and len(self.rules) >= 200:
                name = (verdict, "other rules", "other reasons")
            self.rules[name] += 1
        self.groups.add(kind for kind in batch.strings("group_kind") if kind)

    def result(self) -> dict[str, Any]:
        """JSON. rows = read + unreadable = the sum of verdicts = the sum of rules."""
        rules = [
            {"verdict": verdict, "rule": rule, "count": count, "reason": reason}
            for (verdict, rule, reason), count in self.rules.items()
        ]
        return {
            "rows": self.rows,
            "read": self.rows - self.unreadable,
            "unreadable": self.unreadable,
            "judged": self.judged,
            "kept": self.verdicts["keep"],
            "dropped": self.verdicts["drop"],
            "review": self.verdicts["review"],
            "verdicts": dict(self.verdicts),
            "issues": dict(self.issues),
            "codes": {kind: dict(codes.most_common(50)) for kind, codes in self.codes.items()},
            "problems": {code: {"count": n, "meaning": PROBLEMS.get(code, "")} for code, n in self.problems.items()},
            "rules": sorted(rules, key=lambda rule: (rule["verdict"], -rule["count"], rule["rule"])),
            "group_kinds": dict(self.groups.top(20)),
        }


class Distributions:
    """A histogram for each score, split by verdict, and its quantiles."""

    def __init__(self, spans: dict[str, tuple[float, float]]) -> None:
        self.edges = {name: np.linspace(low, high, BINS + 1) for name, (low, high) in spans.items()}
        self.counts = {name: {part: np.zeros(BINS, np.int64) for part in PARTS} for name in spans}
        self.numbers = {name: Numbers() for name in spans}
        self.outside = dict.fromkeys(spans, 0)

    def add(self, batch: Batch) -> None:
        """Count the scores of a batch; what lies outside of the histogram goes into its end bins."""
        verdicts, sampled = batch.verdicts(), batch.sampled()
        for name, edges in self.edges.items():
            values = batch.floats(name)
            self.numbers[name].add(values, sampled)
            good = np.isfinite(values)
            self.outside[name] += int(((values[good] < edges[0]) | (values[good] > edges[-1])).sum())
            for part in PARTS:
                inside = np.clip(values[good & (verdicts == part)], edges[0], edges[-1])
                self.counts[name][part] += np.histogram(inside, edges)[0]

    def result(self) -> dict[str, Any]:
        """JSON by column; columns without one finite value have no histogram."""
        out: dict[str, Any] = {}
        for name, numbers in self.numbers.items():
            out[name] = numbers.result()
            if numbers.count:
                counts = {part: values.tolist() for part, values in self.counts[name].items()}
                out[name] |= {"edges": self.edges[name].tolist(), "counts": counts, "outside": self.outside[name]}
        return out


def gather(run: Run, threshold: float) -> tuple[dict[str, Any], Galleries]:
    """Read the whole run once (scores twice), in memory that does not grow with it.

    Args:
        run: A run whose decide stage is done.
        threshold: `p_clean` around which pairs count as borderline.

    Returns:
        Numbers by topic (`counts`, `scores`, `columns`, `content`, `truth`, `groups`), and the filled galleries.

    Raises:
        UsageError: If the ledger is absent or does not fit the pairs.
    """
    surveyed = survey(run)
    counts, scores, columns = Counts(), Distributions(surveyed.scores), Columns()
    content, truth, galleries = Content(), Truth(), Galleries(threshold, surveyed)
    for batch in batches(run, surveyed):
        cells = [_columns(value) for value in batch.strings("columns")]
        counts.add(batch)
        scores.add(batch)
        truth.add(batch, cells)
        hidden = {name for name in set().union(*cells) if is_truth(name)}
        if hidden:
            cells = [{name: cell for name, cell in row.items() if name not in hidden} for row in cells]
        columns.add(batch, cells)
        content.add(batch, cells)
        galleries.add(batch)
    numbers = {
        "counts": counts.result(),
        "scores": scores.result(),
        "columns": columns.result(surveyed.rows),
        "content": content.result(),
        "truth": truth.result(),
        "groups": _groups(surveyed),
    }
    return numbers, galleries


def _groups(surveyed: Survey) -> dict[str, Any]:
    return {"count": surveyed.group_count, "rows": surveyed.group_rows, "largest": surveyed.groups}


def _columns(value: str | None) -> dict[str, Any]:
    """The other input columns of one row; a broken value is an empty row."""
    try:
        cells = json.loads(value) if value else {}
    except (ValueError, RecursionError):
        return {}
    return cells if isinstance(cells, dict) else {}
