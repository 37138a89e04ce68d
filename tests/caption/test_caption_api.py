"""Captions from Python: `train_captioner`, `Captioner`, `Captions`, `recaption` and `caption_score`."""

from __future__ import annotations

import inspect
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from pictures import write_pictures
from PIL import Image

import noisycorr as nc
from noisycorr.__main__ import main
from noisycorr.caption.captioner.choice import Teach
from noisycorr.caption.recaption.stage import named_recaption
from noisycorr.data.store import open_features
from noisycorr.models.encoders import load_encoder
from noisycorr.runtime.errors import UsageError
from noisycorr.runtime.folder import Run

SIZE: dict[str, Any] = {"width": 24, "layers": 1, "attention_heads": 2, "vocabulary": 360, "prefix_tokens": 2,
                        "longest": 12, "batch_size": 16, "lr": 0.01, "levels": 3, "level_least": 10, "val_most": 12,
                        "epochs": 4}  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A cleaned run of pictures, embedded by matrix products in bf16."""
    folder = tmp_path_factory.mktemp("api")
    write_pictures(folder / "source", 100)
    return nc.clean(str(folder / "source"), folder / "run", clip_model="tiny", model_precision="bf16",
                    near_duplicates=False, number_sample_per_shard=40)  # fmt: skip


@pytest.fixture(scope="module")
def captioner(run: Any) -> Any:
    """A captioner of it."""
    return nc.train_captioner(run, run.folder.parent / "model", **SIZE)


@pytest.fixture
def precisions(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Precision of each encoder that is loaded."""
    asked: list[str] = []

    def load(spec: str, *, precision: str = "not given", **more: Any) -> Any:
        asked.append(precision)
        return load_encoder(spec, precision=precision, **more)

    for module in ("clean.sources", "caption.captioner.stored", "caption.result"):
        monkeypatch.setattr(f"noisycorr.{module}.load_encoder", load)
    return asked


def pictures_of(run: Any, count: int) -> list[Path]:
    return sorted((run.folder.parent / "source").rglob("*.png"))[:count]


def test_a_captioner_is_opened_again_and_tells_what_it_is(run: Any, captioner: Any):
    again = nc.open_run(captioner.folder)
    assert isinstance(again, nc.Captioner) and again.summary == captioner.summary
    assert "pairs taught for 4 epochs" in captioner.summary and "writes at level" in captioner.summary
    assert captioner.metrics["chosen"] and captioner.metrics["alignment"] > -1
    assert captioner.metrics in json.loads(captioner.report.read_text())["levels"]
    assert str(captioner.folder) in captioner._repr_html_()
    assert nc.train_captioner(run, captioner.folder, **SIZE).folder == captioner.folder, "nothing to do"


def test_texts_are_those_of_the_command_line(run: Any, captioner: Any, tmp_path: Path):
    texts = captioner.generate(run, tmp_path / "python", level="each", seed=3)
    assert main(["caption", "generate", str(run.folder), "--model", str(captioner.folder), "--output_folder",
                 str(tmp_path / "words"), "--level", "each", "--seed", "3", "-q"]) == 0  # fmt: skip
    for path in sorted(texts.report.iterdir()):
        assert path.read_bytes() == (tmp_path / "words" / "captions" / path.name).read_bytes()
    frame = texts.to_pandas()
    assert list(frame.columns) == ["key", "row", "level", "text", "score", "log_prob", "ended"] and len(frame) == 100
    assert texts.summary == "100 texts for 100 pairs" and frame.text[0] in texts._repr_html_()
    assert nc.open_run(tmp_path / "words").to_arrow() == texts.to_arrow()
    with pytest.raises(UsageError, match="holds texts of another kind"):
        captioner.generate(run, tmp_path / "python", level=0)
    one = captioner.generate(run, tmp_path / "one", level=1, search="greedy", samples=0, each_level=False).to_pandas()
    assert set(one.level) == {1}


def test_the_default_folder_is_not_that_of_the_run(
    run: Any, captioner: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    texts = captioner.generate(run, samples=0, each_level=False, search="greedy")
    assert texts.folder == Path("noisycorr_out") / "run-captions"


def test_a_few_pictures_or_features_are_written_for_in_memory(run: Any, captioner: Any, precisions: list[str]):
    paths = pictures_of(run, 6)
    texts = captioner.write(paths)
    assert len(texts) == 6 and all(texts) and precisions[0] == "bf16"
    assert captioner.write([Image.open(path) for path in paths]) == texts
    encoder = captioner._encoder
    assert set(precisions) == {"bf16"}
    stored = np.concatenate(open_features(run.run, "image"))[:8].astype(np.float32)
    rows = captioner.write(stored)
    assert len(rows) == 8 and captioner.write(stored, seed=0) == rows
    assert captioner.write(np.zeros((1, encoder.image_dim), np.float32)) == [""]
    with pytest.raises(UsageError, match="width"):
        captioner.write(np.ones((2, 3)))
    with pytest.raises(UsageError, match="cannot be read as a picture"):
        captioner.write([run.folder / "config.yaml"])
    with pytest.raises(UsageError, match="level 9 is asked for"):
        captioner.write(stored, level=9)


@pytest.mark.parametrize("tower", ["frozen", "tuned"])
def test_the_encoder_has_the_precision_of_the_run(run: Any, precisions: list[str], tmp_path: Path, tower: str):
    size = SIZE | {"epochs": 1}
    made = nc.train_captioner(run, tmp_path / "model", image_grid=2, tower=tower, **size)
    assert precisions and set(precisions) == {"bf16"}
    made.generate(run, tmp_path / "texts", samples=0, each_level=False, search="greedy")
    assert len(made.write(pictures_of(run, 2))) == 2
    assert set(precisions) == {"bf16"}
    with pytest.raises(UsageError, match="give images"):
        made.write(np.zeros((2, 64)))


def test_recaption_is_what_the_command_line_does(run: Any, captioner: Any, tmp_path: Path, precisions: list[str]):
    for name in ("python", "words"):
        shutil.copytree(run.folder, tmp_path / name)
    mine = nc.recaption(nc.open_run(tmp_path / "python"), model=captioner, below=1.0, gain=0.1)
    words = ["recaption", str(tmp_path / "words"), "--model", str(captioner.folder), "-q"]
    assert main([*words, "--below", "1", "--gain", "0.1"]) == 0
    assert isinstance(mine, nc.CleanRun) and "text_proposed" in mine.to_pandas() and set(precisions) == {"bf16"}
    for path in sorted((tmp_path / "python" / "ledger").glob("*.parquet")):
        assert path.read_bytes() == (tmp_path / "words" / "ledger" / path.name).read_bytes()
    with pytest.raises(UsageError, match="`donors` is 0"):
        nc.recaption(tmp_path / "python", donors=0)
    with pytest.raises(UsageError, match="holds no finished captioner"):
        nc.recaption(tmp_path / "python", model=run.folder)
    with pytest.raises(UsageError, match="is not a run folder"):
        nc.recaption(tmp_path / "nowhere")


def test_options_of_recaption_may_be_a_mapping_or_yaml():
    assert named_recaption("retrieval", {"gain": 1, "propose": "nearest"}) == named_recaption(
        "retrieval", "{gain: 1.0, propose: nearest}"
    )
    assert named_recaption("none", None) == named_recaption("retrieval", {})
    for options, said in (
        ({"gains": 1}, "has no 'gains'; did you mean `gain`"),
        ({"gain": "much"}, "`gain` is 'much', expected a number"),
        ("[gain]", "expected a YAML mapping"),
        ({"policy": "drop"}, "`policy` is 'drop', expected one of"),
    ):
        with pytest.raises(UsageError, match=said):
            named_recaption("retrieval", options)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="`recaption` is none"):
        named_recaption("none", {"gain": 0.2})


def test_captions_are_scored_from_files_mappings_and_results(
    run: Any, captioner: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], precisions: list[str]
):
    texts = captioner.generate(run, tmp_path / "texts", samples=0, each_level=False, search="greedy")
    table = texts.to_arrow()
    written = dict(zip(table["key"].to_pylist(), table["text"].to_pylist()))
    given = {row["key"]: [row["text"], "a thing"] for row in run.to_arrow().to_pylist()}
    pq.write_table(table, tmp_path / "texts.parquet")
    scores = nc.caption_score(texts, given)
    assert scores == nc.caption_score(written, given) and scores["captions"] == 100 and 0 <= scores["bleu_1"] <= 1
    capsys.readouterr()
    assert main(["caption", "score", str(tmp_path / "texts.parquet")]) == 0
    assert (
        json.loads(capsys.readouterr().out) == nc.caption_score(tmp_path / "texts.parquet") == nc.caption_score(texts)
    )
    precisions.clear()
    with pytest.raises(UsageError, match="share no space"):
        nc.caption_score(texts, run=run)
    assert precisions == ["bf16"]
    assert main(["caption", "score", str(tmp_path / "texts.parquet"), "--output_folder", str(run.folder)]) == 2
    assert "--output_folder is --run now" in capsys.readouterr().err
    with pytest.raises(UsageError, match="hold nothing"):
        nc.caption_score({})
    with pytest.raises(UsageError, match="needs `references`"):
        nc.caption_score(written, metrics="meteor")


def test_a_captioner_of_embeddings_without_an_encoder_takes_features(tmp_path: Path):
    from test_caption_verbs import write_source

    run = nc.clean(str(write_source(tmp_path / "source", 120)), tmp_path / "run")
    made = nc.train_captioner(run, tmp_path / "model", issues=True, **SIZE)
    features = np.concatenate(open_features(Run(run.folder), "image"))[:3]
    assert len(made.write(features)) == 3
    with pytest.raises(UsageError, match="give features"):
        made.write([Image.new("RGB", (8, 8))])


def test_what_is_not_finished_says_so(tmp_path: Path):
    run = Run(tmp_path)
    run.finish("caption_started", {})
    half = nc.open_run(tmp_path)
    assert half.summary == "training is not finished"
    with pytest.raises(UsageError, match="not finished"):
        _ = half.metrics
    with pytest.raises(UsageError, match="holds no finished captioner"):
        half.write(np.zeros((1, 2)))
    shutil.rmtree(tmp_path / "stages")
    run.finish("generate", {})
    assert nc.open_run(tmp_path).summary == "0 texts for 0 pairs"
    with pytest.raises(UsageError, match="holds no texts yet"):
        nc.open_run(tmp_path).to_pandas()
    assert "<table>" in nc.open_run(tmp_path)._repr_html_()


def test_verbs_of_other_kinds_say_what_the_folder_holds(captioner: Any, capsys: pytest.CaptureFixture[str]):
    for verb in ("report", "evaluate", "decide", "recaption"):
        assert main([verb, str(captioner.folder)]) == 2
    said = capsys.readouterr().err.splitlines()
    assert all("holds a captioner of" in line for line in said[:3]) and "no finished stage 'decide'" in said[3]


def test_a_share_may_be_a_number():
    assert Teach(keep_fraction=0.5) == Teach(keep_fraction="0.5") and Teach(keep_fraction=1) == Teach()


def test_options_stand_flat_in_the_signature():
    names = inspect.signature(nc.train_captioner).parameters
    assert {"level_by", "draw_by", "width", "epochs", "model_precision", "val_data", "samples", "caption_col"} <= set(
        names
    )
    assert "guidance" not in names, "found on validation pairs"
    with pytest.raises(UsageError, match="takes no `epoch`; did you mean `epochs`"):
        nc.train_captioner("sample", epoch=1)
    with pytest.raises(UsageError, match="`width` 10 is no multiple"):
        nc.train_captioner("sample", width=10)
