"""The bench engine: cells that continue, what makes a cell another one, means and deviations, tables."""

from __future__ import annotations

import json
import math
import statistics
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from noisycorr.clean import bench
from noisycorr.clean.bench import (
    BenchResult,
    Metric,
    Row,
    grid,
    markdown,
    metric_table,
    metric_tables,
    plot,
    run_grid,
    shown,
    stored_cell,
)
from noisycorr.clean.bench_sets import check_bench, listed, read_spec
from noisycorr.runtime.errors import UsageError
from noisycorr.runtime.folder import Run, read_json

SCORE = Metric(name="score", title="Score", digits=2)
LINES = {"set": lambda row: row["set"]}


class Killed(BaseException):
    """What ends a process between two cells."""


def value(cell: Row) -> float:
    return len(cell["method"]) + math.sin(cell["seed"])


def run_bench(folder: Path, done: list[Row], *, methods: str = "a,bbb,oracle", dies_at: int = 99,
              data: int = 0) -> BenchResult:  # fmt: skip
    """Two sets, three methods, three seeds; `done` gets what was measured."""
    run = Run(folder)
    cells = grid(seed=[0, 1, 2], method=methods.split(","))

    def work(name: str, cell: Row) -> Row:
        def measure() -> Row:
            if len(done) == dies_at:
                raise Killed
            done.append(cell)
            return {"set": name, **cell, "score": value(cell), "seconds": 0.5}

        return stored_cell(run.folder, name, {"set": name, "cell": cell, "data": data}, measure)

    return run_grid(
        run, [(partial(str, name), cells) for name in ("one", "two")], work, settings={"bench": {"methods": methods}},
        line=lambda row: row["method"], tables=lambda rows: metric_tables(rows, [SCORE], LINES),
        draw=partial(plot, metric=SCORE, x="set", x_title="set", panel=lambda row: "all"),
    )  # fmt: skip


def test_a_killed_bench_goes_on_between_cells(tmp_path: Path):
    whole = run_bench(tmp_path / "whole", [])
    done: list[Row] = []
    with pytest.raises(Killed):
        run_bench(tmp_path / "killed", done, dies_at=7)
    assert len(done) == 7 and len(json.loads((tmp_path / "killed" / "bench.json").read_text())["rows"]) == 7
    assert "| one |" in (tmp_path / "killed" / "bench.md").read_text(), "what is done can be read meanwhile"
    continued = run_bench(tmp_path / "killed", done)
    assert len(done) == 18 and len({str(cell) for cell in done[:9]}) == 9, "no cell was measured twice"
    for name in ("bench.json", "bench.md", "bench.parquet", "bench.png"):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert continued.rows == whole.rows
    assert not list((tmp_path / "killed").rglob("*.tmp"))


def test_other_methods_join_and_other_data_is_measured_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    done: list[Row] = []
    run_bench(tmp_path, done)
    run_bench(tmp_path, done, methods="a,new")
    assert [cell["method"] for cell in done[18:]] == ["new"] * 6
    run_bench(tmp_path, done, data=1)
    assert len(done) == 18 + 6 + 18
    monkeypatch.setattr(bench, "stamped", lambda inputs: {**inputs, "noisycorr": "another"})
    run_bench(tmp_path, done)
    assert len(done) == 18 + 6 + 18 + 18, "another version measures anew"


def test_a_cell_is_measured_anew_when_asked(tmp_path: Path):
    assert stored_cell(tmp_path, "x", {"a": 1}, lambda: {"v": 1}) == {"v": 1}
    assert stored_cell(tmp_path, "x", {"a": 1}, lambda: {"v": 2}) == {"v": 1}
    assert stored_cell(tmp_path, "x", {"a": 1}, lambda: {"v": 2}, anew=True) == {"v": 2}
    assert stored_cell(tmp_path, "x", {"a": 2}, lambda: {"v": 3}) == {"v": 3}
    assert len(list((tmp_path / "cells").iterdir())) == 2


def test_the_result_is_rows_table_and_summary(tmp_path: Path):
    result = run_bench(tmp_path, [])
    assert result.summary == "18 cells: sets one, two; methods a, bbb, oracle; seeds 0, 1, 2"
    assert len(result.to_pandas()) == 18 and result.table.startswith("**Score**")
    assert read_json(tmp_path / "bench.json")["bench"] == {"methods": "a,bbb,oracle"}
    assert "18 cells" in repr(result) and "bench.md" in result._repr_html_()


def test_mean_and_deviation_equal_a_slow_loop(tmp_path: Path):
    rows = run_bench(tmp_path, []).rows
    table = metric_table(rows, SCORE, LINES)
    for method in ("a", "bbb", "oracle"):
        values = [row["score"] for row in rows if row["method"] == method and row["set"] == "one"]
        assert f"{statistics.mean(values):.2f} ± {statistics.stdev(values):.2f}" in table
    assert shown([], 1) == "–" and shown([2.0], 1) == "2.0"


def row(method: str, score: float | None, *, name: str = "s", seed: int = 0) -> dict[str, Any]:
    return {"set": name, "method": method, "seed": seed, "score": score}


def test_ties_are_all_bold_and_an_oracle_is_not():
    rows = [row("a", 1.001), row("b", 1.004), row("c", 0.9), row("oracle", 2.0)]
    assert metric_table(rows, SCORE, LINES).splitlines()[-1] == "| s | **1.00** | **1.00** | 0.90 | 2.00 |"
    less = Metric(name="score", title="", digits=2, better="less")
    none = Metric(name="score", title="", digits=2, better="none")
    assert metric_table(rows, less, LINES).splitlines()[-1] == "| s | 1.00 | 1.00 | **0.90** | 2.00 |"
    assert "**" not in metric_table(rows, none, LINES)
    assert "**" not in metric_table([row("oracle", 2.0)], Metric(name="score", title=""), LINES)


def test_missing_cells_are_dashes_and_missing_methods_take_no_column():
    rows = [row("a", 1.0), row("b", None), row("c", 2.0, name="t"), row("b", None, name="t")]
    table = metric_table(rows, Metric(name="score", title="Score", scale=100), LINES, mean=True)
    lines = [["s", "**100.0**", "–"], ["t", "–", "**200.0**"], ["mean", "100.0", "200.0"]]
    assert table == markdown(["set", "a", "c"], lines, "Score")
    assert metric_table([row("a", None)], SCORE, LINES) == ""
    assert metric_tables([row("a", None)], [SCORE], LINES) == "Mean ± standard deviation over seeds 0.\n"


def test_notes_and_tails_say_more():
    metric = Metric(name="score", title="", note=lambda rows: f" ({len(rows)})")
    rows = [row("a", 1.0), row("a", 3.0, seed=1), row("a", 1.0, name="t")]
    lines = {"method": lambda row: row["method"]}
    table = metric_table(rows, metric, lines, columns="set", tail={"all": lambda rows: str(len(rows))})
    assert table == markdown(["method", "s", "t", "all"], [["a", "**2.0 ± 1.4** (2)", "1.0 (1)", "3"]])


def test_words_of_a_bench():
    assert listed(" a, ,b ") == ["a", "b"]
    assert read_spec("m+a=1+b=x+c=1e6+d=true", "methods") == ("m", {"a": 1, "b": "x", "c": 1e6, "d": True})
    assert read_spec("m+a=1", "methods", as_text=("a",)) == ("m", {"a": "1"})
    assert grid(seed=[0, 1], x=["a", "b"])[1] == {"seed": 0, "x": "b"}


@dataclass(frozen=True, kw_only=True)
class Choice:
    """What a bench is told."""

    sets: str = "a=b"
    words: str = "a,b"
    ratios: str = "0,0.4"
    seeds: str = "0,1"
    limit: int = 0


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"words": ","}, "`words` is empty"), ({"words": "c"}, "names 'c', expected some of a, b"),
        ({"seeds": "x"}, "whole numbers"), ({"limit": -1}, "`limit` is -1"), ({"ratios": "x"}, "shares in 0 to 1"),
        ({"ratios": "1.5"}, "shares in 0 to 1"), ({"ratios": "nan"}, "shares in 0 to 1"),
        ({"sets": "a"}, "NAME=SOURCE or NAME=TRAIN"), ({"sets": "a=b|c"}, "NAME=SOURCE or NAME=TRAIN"),
    ],
)  # fmt: skip
def test_lists_of_a_choice_are_checked(wrong: dict[str, Any], said: str):
    check_bench(Choice(sets="a=b|c|d"), {"words": ("a", "b")}, split=True)
    with pytest.raises(UsageError, match=said):
        check_bench(Choice(**wrong), {"words": ("a", "b")}, split=True)
