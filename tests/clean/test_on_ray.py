"""A local Ray cluster of two workers leaves the same bytes as one process. Skipped where Ray is not installed."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sources import sample_rows
from test_end_to_end import TINY

from noisycorr.__main__ import main

HAS_RAY = importlib.util.find_spec("ray") is not None


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    pq.write_table(pa.Table.from_pylist(sample_rows(60)), tmp_path / "rows.parquet")
    monkeypatch.chdir(tmp_path)
    return tmp_path / "rows.parquet"


def words(source: Path, folder: str) -> list[str]:
    return ["embed", str(source), "--output_folder", folder, *TINY, "--number_sample_per_shard", "15"]


@pytest.mark.skipif(not HAS_RAY, reason="ray is not installed")
def test_two_workers_agree_with_one_process(source: Path, tmp_path: Path):
    assert main(words(source, "alone")) == 0
    shared = [*words(source, "shared"), "--distributor", "ray", "--ray_workers", "2"]
    assert main(shared) == 0
    for name in ("pairs", "embeddings"):
        files = sorted(path.name for path in (tmp_path / "alone" / name).iterdir())
        assert files == sorted(path.name for path in (tmp_path / "shared" / name).iterdir()) and len(files) >= 4
        for file in files:
            assert (tmp_path / "alone" / name / file).read_bytes() == (tmp_path / "shared" / name / file).read_bytes()
    (tmp_path / "shared" / "pairs" / "00002_stats.json").unlink()
    assert main(words(source, "shared")) == 0, "one process does what Ray left"
    assert (tmp_path / "shared" / "pairs" / "00002_stats.json").exists()


@pytest.mark.skipif(HAS_RAY, reason="ray is installed")
def test_without_ray_it_is_said(source: Path, capsys: pytest.CaptureFixture[str]):
    assert main([*words(source, "out"), "--distributor", "ray"]) == 2
    assert "pip install 'noisycorr[ray]'" in capsys.readouterr().err


def test_wrong_words_are_refused(source: Path, capsys: pytest.CaptureFixture[str]):
    assert main([*words(source, "out"), "--distributor", "spark"]) == 2
    assert "expected none or ray" in capsys.readouterr().err
    assert main([*words(source, "out"), "--ray_workers", "-1"]) == 2
