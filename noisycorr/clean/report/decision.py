"""What the decide stage says about the set as a whole, read from its facts; every one of them may be missing."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from noisycorr.runtime.folder import Run

UNSURE = (
    "The score does not separate right from wrong pairs in this set. Read p_clean as an order of the pairs, not as a "
    "probability, and look at some pairs yourself before dropping any."
)


@dataclass(frozen=True, kw_only=True)
class Decision:
    """The noise estimate and the calibration behind `p_clean`.

    Attributes:
        separable: False when the score cannot tell right from wrong pairs; None when the stage did not say.
        warning: A sentence for the reader, or None.
        noise_rate: Estimated share of mismatched pairs in [0, 1], with its 95 % interval `low` to `high`.
        threshold: `p_clean` below which a pair counts as mismatched; 0.5 when the stage did not say.
        rule: The rule as the stage names it.
        score: Name of the ledger column that was calibrated.
        curve: (scores, p_clean) of the fitted monotone curve.
        mixture: Kind, weights and params as recorded, without the density.
        density: x, clean, noise, total as equally long lists; densities over the calibrated score.
    """

    separable: bool | None = None
    warning: str | None = None
    noise_rate: float | None = None
    low: float | None = None
    high: float | None = None
    threshold: float = 0.5
    rule: str | None = None
    score: str = "score_pair"
    curve: tuple[list[float], list[float]] | None = None
    mixture: dict[str, Any] | None = None
    density: dict[str, list[float]] | None = None


def read_decision(run: Run) -> Decision:
    """Facts of the stage `decide`; of one that is absent or malformed, the default stands."""
    facts = ((run.stage("decide") or {}).get("facts")) or {}
    separable, threshold = facts.get("separable"), _share(facts.get("threshold"))
    warning, rule, score = (facts.get(name) for name in ("warning", "rule", "score"))
    mixture = facts.get("mixture")
    return Decision(
        separable=separable if isinstance(separable, bool) else None,
        warning=warning if isinstance(warning, str) and warning else UNSURE if separable is False else None,
        noise_rate=_share(facts.get("noise_rate")),
        low=_share(facts.get("noise_rate_low")),
        high=_share(facts.get("noise_rate_high")),
        threshold=0.5 if threshold is None else threshold,
        rule=rule if isinstance(rule, str) else None,
        score=score if isinstance(score, str) else "score_pair",
        curve=_curve(facts.get("curve")),
        mixture={k: v for k, v in mixture.items() if k != "density"} if isinstance(mixture, Mapping) else None,
        density=_density(mixture.get("density")) if isinstance(mixture, Mapping) else None,
    )


def verdict_sentence(decision: Decision, counts: Mapping[str, Any]) -> str:
    """The report in one sentence.

    Args:
        decision: What the stage estimated.
        counts: `rows`, `judged`, `kept` and `issues` as `gather` counts them.
    """
    rows, judged, kept = counts["rows"], counts["judged"], counts["kept"]
    flagged = counts["issues"]["mismatch"]
    of = f"{rows:,} pairs" if judged == rows else f"{judged:,} judged pairs"
    end = f"kept {kept:,}." if judged == rows else f"kept {kept:,} of {rows:,}."
    if not rows:
        return "This run holds no pairs."
    if not judged:
        return f"None of the {rows:,} pairs could be judged; kept {kept:,}."
    if decision.separable is False:
        return f"How many of {of} are mismatched cannot be told: the score does not separate them; {end}"
    if decision.noise_rate is None:
        share = percent(flagged / judged)
        return f"{flagged:,} of {of} ({share}) are flagged as mismatched, no rate was estimated; {end}"
    number = round(decision.noise_rate * judged)
    interval = ""
    if decision.low is not None and decision.high is not None:
        interval = f" (95\u00a0% interval {_range(decision.low, decision.high)})"
    share = percent(decision.noise_rate)
    return f"{number:,} of {of} ({share}) look mismatched{interval}; {end}"


def percent(share: float | None, digits: int = 1) -> str:
    """A share in [0, 1] as `18.6 %`; "-" for None."""
    return "–" if share is None else f"{100 * share:.{digits}f}\u00a0%"


def _range(low: float, high: float) -> str:
    digits = 0 if high - low >= 0.02 else 1
    return f"{100 * low:.{digits}f}–\u2060{100 * high:.{digits}f}\u00a0%"


def _number(value: Any) -> float | None:
    good = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if good else None


def _share(value: Any) -> float | None:
    number = _number(value)
    return number if number is not None and 0 <= number <= 1 else None


def _numbers(value: Any) -> list[float] | None:
    if not isinstance(value, list) or len(value) < 2:
        return None
    numbers = [number for item in value if (number := _number(item)) is not None]
    return numbers if len(numbers) == len(value) else None


def _curve(value: Any) -> tuple[list[float], list[float]] | None:
    if not isinstance(value, Mapping):
        return None
    score, p_clean = _numbers(value.get("score")), _numbers(value.get("p_clean"))
    return (score, p_clean) if score and p_clean and len(score) == len(p_clean) else None


def _density(value: Any) -> dict[str, list[float]] | None:
    if not isinstance(value, Mapping):
        return None
    lines = {name: numbers for name in ("x", "clean", "noise", "total") if (numbers := _numbers(value.get(name)))}
    if {"x", "clean", "noise"} - set(lines) or len({len(line) for line in lines.values()}) != 1:
        return None
    lines.setdefault("total", [a + b for a, b in zip(lines["clean"], lines["noise"])])
    return lines
