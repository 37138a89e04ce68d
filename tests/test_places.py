"""Where the pairs of a run are, from whatever folder one works in."""

from __future__ import annotations

from pathlib import Path

import pytest
from recaption_run import write_source

from noisycorr.cli import main
from noisycorr.formats.locate import settled


def test_the_source_is_found_from_another_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    source = write_source(tmp_path / "source", 40)
    (tmp_path / "else").mkdir()
    monkeypatch.chdir(tmp_path)
    words = ["--output_folder", str(tmp_path / "out"), "--stages", "embed,score,decide", "-q"]
    assert main(["clean", "source", *words]) == 0
    export = ["export", "--output_folder", str(tmp_path / "out"), "--output_format", "uids", "-q"]
    config = tmp_path / "out" / "config.yaml"
    monkeypatch.chdir(tmp_path / "else")
    assert f"path: {source}\n" in config.read_text() and main(export) == 0
    config.write_text(config.read_text().replace(f"path: {source}\n", "path: source\n"))  # a run of before
    assert main(export) == 2
    told = capsys.readouterr().err
    assert f"'source' stands in {config}" in told and f"working directory is {tmp_path / 'else'}" in told
    monkeypatch.chdir(tmp_path)
    words[words.index("embed,score,decide")] = "score,decide"
    assert main(["clean", "source", *words]) == 0 and main(export) == 0


def test_a_source_is_settled_only_where_it_stays_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.csv").touch()
    (tmp_path / "[b].csv").touch()
    monkeypatch.chdir(tmp_path)
    for same in ("sample", "hf://a.csv", "pipe:a.csv", "none.csv", "a.csv::", "{a,/b}.csv", "~x/*.csv"):
        assert settled(same) == same
    assert settled("a.csv::[b].csv") == f"{tmp_path}/a.csv::{tmp_path}/[b].csv"
    assert settled("s/{00..02}.tar") == f"{tmp_path}/s/{{00..02}}.tar"
    assert settled("*.csv") == f"{tmp_path}/*.csv"
    assert settled("/x/*.tar") == "/x/*.tar"
    (tmp_path / "{a,b}").mkdir()
    monkeypatch.chdir(tmp_path / "{a,b}")
    assert settled("s/{00..02}.tar") == "s/{00..02}.tar" and settled("../a.csv") == f"{tmp_path}/{{a,b}}/../a.csv"


def test_keys_of_several_pairs_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = write_source(tmp_path / "source", 40) / "pairs.csv"
    words = ["clean", str(table.parent), "--stages", "embed", "-q", "--number_sample_per_shard", "16"]
    words.append("--output_folder")
    assert main([*words, str(tmp_path / "one")]) == 0 and "share their key" not in capsys.readouterr().err
    table.write_text(table.read_text().replace("k39,", "k0,").replace("k38,", "k0,"))
    assert main([*words, str(tmp_path / "two")]) == 0
    assert "3 pairs share their key with another one" in capsys.readouterr().err
