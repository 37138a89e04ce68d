"""`noisycorr bench noise`: what it writes, that it continues, and that its numbers mean what they say."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from learning import features

import noisycorr
from noisycorr.__main__ import main
from noisycorr.clean.bench import metric_tables
from noisycorr.retrieval.bench import LINES, METRICS, Bench, method_of
from noisycorr.runtime.errors import UsageError

FAST = ["--epochs", "6", "--batch_size", "32", "--embed_dim", "8", "--hidden", "16", "--lr", "0.01", "--dropout", "0",
        "-q"]  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished benchmark of one set."""
    folder = tmp_path_factory.mktemp("bench")
    image, text, _ = features(400)
    source = folder / "source"
    source.mkdir()
    np.save(source / "image.npy", image)
    np.save(source / "text.npy", text)
    pq.write_table(pa.table({"key": [str(r) for r in range(400)], "caption": [f"t{r}" for r in range(400)]}),
                   source / "pairs.parquet")  # fmt: skip
    assert main(words(folder)) == 0
    return folder


def words(folder: Path, strategies: str = "plain,coteach+warm_up=2,weighted,oracle", seeds: str = "0") -> list[str]:
    return ["bench", "noise", "--output_folder", str(folder / "out"), "--sets", f"made={folder / 'source'}",
            "--ratios", "0,0.5", "--seeds", seeds, "--strategies", strategies, *FAST]  # fmt: skip


def rows(folder: Path) -> dict[tuple[str, float], dict[str, float]]:
    found = pq.read_table(folder / "out" / "bench.parquet").to_pylist()
    return {(row["method"], row["ratio"]): row for row in found}


def test_what_it_finds(place: Path):
    found = rows(place)
    assert len(found) == 8
    assert all(row["networks"] == 2 for row in found.values())
    assert found["plain", 0.5]["wrong"] == 0.5 and found["plain", 0.0]["wrong"] == 0
    assert found["oracle", 0.5]["pairs"] == found["plain", 0.5]["pairs"] / 2
    assert found["oracle", 0.0]["rSum"] == found["plain", 0.0]["rSum"], "without noise the oracle is the plain method"
    assert found["weighted", 0.5]["rSum"] > found["plain", 0.5]["rSum"] + 20
    assert found["coteach+warm_up=2", 0.5]["auroc"] > 0.8
    assert found["plain", 0.0]["auroc"] is None and found["oracle", 0.5]["auroc"] is None


def test_what_it_writes(place: Path):
    text = (place / "out" / "bench.md").read_text()
    result = noisycorr.open_run(place / "out")
    assert (result.table, len(result.to_pandas())) == (text, 8) and result.summary.startswith("8 cells: sets made")
    assert text.count("| made | 50% by caption |") == 4 and "AUROC of wrong" in text
    assert (place / "out" / "bench.png").read_bytes().startswith(b"\x89PNG")
    assert json.loads((place / "out" / "bench.json").read_text())["train"]["epochs"] == 6


def test_what_is_done_is_not_done_again(place: Path):
    cells = {path: path.stat().st_mtime_ns for path in (place / "out" / "cells").iterdir()}
    next(iter(cells)).unlink()
    gone = next(iter(cells))
    before = rows(place)
    assert main(words(place)) == 0
    after = {path: path.stat().st_mtime_ns for path in (place / "out" / "cells").iterdir()}
    assert after.keys() == cells.keys()
    assert [path for path in cells if after[path] != cells[path]] == [gone]
    free = {"seconds"}
    assert [{k: v for k, v in row.items() if k not in free} for row in rows(place).values()] == [
        {k: v for k, v in row.items() if k not in free} for row in before.values()
    ]


def test_tables_have_mean_and_deviation():
    def row(method: str, seed: int, value: float) -> dict[str, object]:
        return {"set": "s", "unit": "image", "ratio": 0.2, "method": method, "seed": seed, "rSum": value,
                "rSum_single": value, "auroc": None, "seconds": 1.0}  # fmt: skip

    rows = [row("a", 0, 10.0), row("a", 1, 12.0), row("oracle", 0, 99.0), row("b", 0, 10.5)]
    text = metric_tables(rows, METRICS, LINES)
    assert "| s | 20% by image | **11.0 ± 1.4** | 99.0 | 10.5 |" in text
    assert "AUROC" not in text, "no method could be asked"
    assert text.endswith("Mean ± standard deviation over seeds 0, 1.\n")


def test_methods_of_the_benchmark_have_two_networks():
    for spec in ("plain", "oracle", "coteach", "weighted"):
        assert method_of(spec)[1].peer == "twin"
    assert method_of("coteach+peer=none+split=bmm")[1].peer == "none"


@pytest.mark.parametrize(
    ("choice", "said"),
    [
        ({"sets": "sample"}, "expected NAME=SOURCE"),
        ({"units": "word"}, "expected some of caption, image"),
        ({"ratios": "0.2,x"}, "shares in 0 to 1"),
        ({"ratios": "1.2"}, "expected shares in 0 to 1"),
        ({"strategies": "nobody"}, "is not known"),
        ({"strategies": "coteach+bmm"}, "is no option=value"),
        ({"seeds": ","}, "`seeds` is empty"),
        ({"limit": -1}, "expected 0"),
    ],
)
def test_wrong_choices(choice: dict[str, object], said: str):
    with pytest.raises(UsageError, match=said):
        Bench(**choice).cells()  # type: ignore[arg-type]
