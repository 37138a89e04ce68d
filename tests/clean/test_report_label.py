"""The nutrition label of made-up columns, and the summaries behind it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from report_run import make_run, report_of

from noisycorr.clean.report.frequency_sketch import FrequencySketch, Numbers, gini, in_sample


def label_of(tmp_path: Path, columns: list[dict[str, Any]]) -> dict[str, Any]:
    report = report_of(make_run(tmp_path, len(columns), columns=columns))
    modules = report["nutrition"]["modules"]
    assert all(module["method"] and ("facts" in module or module["skipped"]) for module in modules)
    return {module["title"]: module for module in modules} | {"statistics": report["columns"]["statistics"]}


def test_nutrition_label_of_500_rows(tmp_path: Path) -> None:
    columns = [
        {
            "price": None if i % 500 < 26 else float(i - 26),  # 26 of 500 = 5.2 % missing
            "maker": "acme" if i < 300 else f"maker {i % 4}",
            "unit": "piece",
            "serial": f"s{i}",
            "made": f"2024-01-{1 + i % 28:02d}",
            "tags": ["a", i],
        }
        for i in range(500)
    ]
    label = label_of(tmp_path, columns)
    price = label["statistics"]["price"]
    assert price["missing"] == 26 and price["missing_share"] == pytest.approx(0.052)
    assert (price["min"], price["median"], price["max"], price["zeros"]) == (0, 236.5, 473, 1)
    assert price["mean"] == pytest.approx(236.5) and price["std"] == pytest.approx(np.std(np.arange(474), ddof=1))
    assert label["statistics"]["maker"]["most_frequent"] == {"value": "acme", "count": 300}
    assert label["statistics"]["maker"]["least_frequent"] == "multiple detected"
    assert label["statistics"]["unit"]["constant"] and not label["statistics"]["serial"]["constant"]
    assert label["statistics"]["serial"]["most_frequent"] is None and label["statistics"]["serial"]["unique"] == 500
    assert label["statistics"]["made"]["kind"] == "date" and label["statistics"]["tags"]["kind"] == "list"
    nominal, measured = label["Statistics"]["tables"]
    assert ["unit", "text, constant", 500, "1", "piece (500)", "piece (500)", "0.0\xa0%"] in nominal["rows"]
    assert ["serial", "text", 500, "500", "--", "multiple detected", "0.0\xa0%"] in nominal["rows"]
    assert measured["rows"] == [["price", "number", 474, "0", "236.5", "473", "236.5", "137", 1, "5.2\xa0%"]]
    assert label["Metadata"]["facts"]["time range of date columns"] == "2024-01-01 to 2024-01-28"
    assert label["Near-duplicates"]["facts"]["near-duplicate groups"] == 5
    assert "skipped" in label["Text inside pictures"] and "skipped" in label["Licences by source"]


def test_odd_columns_do_no_harm(tmp_path: Path) -> None:
    odd = [
        {f"column {i}": i for i in range(200)},
        {"<b>x</b>": "<i>", "": {"deep": [{}]}, "huge": 10**400, "true": True, "one": 1, "text": "lone \ud800 half"},
        {"url": "https://user:secret@Example.org:80/a.jpg", "license": "CC-BY"},
        {"mixed": 1}, {"mixed": "two"}, {"mixed": None}, {"mixed": "  "},
    ]  # fmt: skip
    label = label_of(tmp_path, odd)
    assert len(label["statistics"]) == 64 and label["Variables"]["facts"]["cells of further columns"] > 100
    assert label["Licences by source"]["tables"][0]["rows"] == [["example.org", "CC-BY", 1]]
    assert label["statistics"].get("mixed", {"kind": "mixed"})["kind"] == "mixed"


def test_tally_bounds_hold_beyond_the_limit() -> None:
    rng, tally = np.random.default_rng(0), FrequencySketch(limit=500, hashes=512)
    values = [f"v{int(value)}" for value in rng.zipf(1.3, 60_000)]
    for start in range(0, len(values), 1000):
        tally.add(values[start : start + 1000])
    truth: dict[str, int] = {}
    for value in values:
        truth[value] = truth.get(value, 0) + 1
    assert not tally.exact and tally.total == 60_000
    assert all(truth[value] - tally.error <= count <= truth[value] for value, count in tally.counts.items())
    assert [value for value, _ in tally.top(3)] == sorted(truth, key=lambda value: -truth[value])[:3]
    assert tally.distinct() == pytest.approx(len(truth), rel=0.15)


def test_numbers_equal_numpy_in_any_batches() -> None:
    values = np.random.default_rng(1).normal(1e6, 2, 5000)
    values[::100] = np.nan
    numbers = Numbers()
    for part in np.array_split(values, 7):
        numbers.add(part, np.ones(len(part), bool))
    result, good = numbers.result(), values[np.isfinite(values)]
    assert (result["count"], result["missing"]) == (4950, 50)
    assert result["mean"] == pytest.approx(good.mean(), rel=1e-12)
    assert result["std"] == pytest.approx(good.std(ddof=1), rel=1e-9)
    assert result["median"] == np.median(good)


def test_sample_is_uniform_and_fixed() -> None:
    rows = np.arange(400_000)
    chosen = in_sample(rows, len(rows), 10_000)
    assert chosen.sum() == pytest.approx(10_000, rel=0.05)
    assert chosen[:200_000].sum() == pytest.approx(5_000, rel=0.06) and chosen[::2].sum() == pytest.approx(
        5_000, rel=0.06
    )
    assert (in_sample(rows[1234:1300], len(rows), 10_000) == chosen[1234:1300]).all()
    assert in_sample(rows[:100], 100, 100).all()


def test_gini() -> None:
    assert gini(np.array([3.0, 3.0, 3.0])) == 0 and gini(np.zeros(0)) is None
    assert gini(np.array([0.0, 0.0, 0.0, 8.0])) == pytest.approx(0.75)
