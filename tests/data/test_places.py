"""Where the pairs of a run are, from whatever folder one works in."""

from __future__ import annotations

from pathlib import Path

import pytest
from recaption_run import write_source

from noisycorr.__main__ import main


def test_a_source_that_is_not_found_is_told_with_its_config(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    write_source(tmp_path / "source", 40)
    (tmp_path / "else").mkdir()
    monkeypatch.chdir(tmp_path)
    words = ["--output_folder", str(tmp_path / "out"), "--stages", "embed,score,decide", "-q"]
    assert main(["clean", "source", *words]) == 0
    export = ["export", str(tmp_path / "out"), "--output_format", "uids", "-q"]
    config = tmp_path / "out" / "config.yaml"
    monkeypatch.chdir(tmp_path / "else")
    assert main(export) == 2
    told = capsys.readouterr().err
    assert f"'source' stands in {config}" in told and f"working directory is {tmp_path / 'else'}" in told
    monkeypatch.chdir(tmp_path)
    assert main(export) == 0


def test_keys_of_several_pairs_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = write_source(tmp_path / "source", 40) / "pairs.csv"
    words = ["clean", str(table.parent), "--stages", "embed", "-q", "--number_sample_per_shard", "16"]
    words.append("--output_folder")
    assert main([*words, str(tmp_path / "one")]) == 0 and "share their key" not in capsys.readouterr().err
    table.write_text(table.read_text().replace("k39,", "k0,").replace("k38,", "k0,"))
    assert main([*words, str(tmp_path / "two")]) == 0
    assert "3 pairs share their key with another one" in capsys.readouterr().err
