"""`noisycorr classify train` and `noisycorr bench webly` from embeddings to their files."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from webly_data import blobs

import noisycorr as nc
from noisycorr.__main__ import main
from noisycorr.classify import classes
from noisycorr.classify.webly import bench as webly_bench
from noisycorr.classify.webly import samples as webly_samples
from noisycorr.classify.webly.bench import Bench, parse_set
from noisycorr.clean.pipeline import clean
from noisycorr.clean.plan import Plan
from noisycorr.data.readers import Source
from noisycorr.data.store import open_features
from noisycorr.runtime.errors import UsageError
from noisycorr.runtime.folder import Run

FEW = ["--epochs", "6", "--batch_size", "32", "--embed_dim", "8", "--hidden", "12", "--lr", "0.05", "--warmup", "2"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Embedded samples of six classes, a quarter of the labels wrong, texts that tell the right class."""
    place = tmp_path_factory.mktemp("classify")
    x, truth, given = blobs(240, 6, wrong=0.25, width=10, spread=0.4)
    words = np.random.default_rng(1).normal(size=(6, 7)).astype(np.float32)
    source = place / "source"
    source.mkdir()
    np.save(source / "image.npy", x)
    np.save(source / "text.npy", words[truth])
    names = np.array([f"class-{c}" for c in range(6)])
    tags = [f"{names[c]}|{names[(c + 1) % 6]}" for c in given]
    label = [None if row == 0 else names[c] for row, c in enumerate(given)]
    table = {"key": [f"k{i}" for i in range(240)], "text": [f"a {names[c]}" for c in truth], "label": label,
             "right": names[truth], "tags": tags, "group": [f"g{i // 2}" for i in range(240)]}  # fmt: skip
    pq.write_table(pa.table(table), source / "pairs.parquet")
    out = Run(place / "run")
    clean(Plan(source=Source(path=str(source))), out, stages=("embed",))
    np.save(place / "words.npy", words)
    return out


@pytest.fixture(autouse=True)
def words_of_classes(monkeypatch: pytest.MonkeyPatch, run: Run) -> None:
    """Class names have the features of the texts, without an encoder."""
    words = np.load(run.folder.parent / "words.npy")

    def encode(_: Run, texts: list[str], __: str) -> np.ndarray:
        return words[[int(text.split(":")[0].split()[-1]) for text in texts]]

    for module in (classes, webly_bench, webly_samples):
        monkeypatch.setattr(module, "encode_names", encode)


def test_a_classifier_is_trained_tested_and_continued(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    words = ["classify", "train", str(run.folder), "--output_folder", str(tmp_path / "out"), "--truth_col", "right",
             "--test_fraction", "0.2", "--method.threshold", "0.5", *FEW]  # fmt: skip
    assert main(words) == 0
    said = capsys.readouterr().err
    assert "capro on 6 classes" in said and "samples/s" in said and "1 samples without a label" in said
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["test"]["top1"] > 0.9 and len(report["per_class"]) == 6 and report["labels"]["precision"] > 0.7
    table = pq.read_table(tmp_path / "out" / "labels.parquet")
    assert set(table.column_names) == {"key", "p_clean", "anchor", "label", "label_rectified", "verdict", "text_class"}
    assert set(table.column("verdict").to_pylist()) <= {"keep", "relabel", "drop"}
    before = {name: (tmp_path / "out" / name).read_bytes() for name in ("report.json", "report.html", "labels.parquet")}
    assert b"class-0" in before["report.html"]
    assert main(words) == 0
    assert all((tmp_path / "out" / name).read_bytes() == body for name, body in before.items())
    assert before["report.html"].count(b"</main>") == 1
    again = ["classify", "train", "--config", str(tmp_path / "out" / "config.yaml")]
    assert main([*again, "--output_folder", str(tmp_path / "again")]) == 0
    assert (tmp_path / "again" / "labels.parquet").read_bytes() == before["labels.parquet"]
    assert main([*words, "--seed", "1"]) == 2
    assert "holds a training of other data, method or settings" in capsys.readouterr().err


def test_the_function_gives_a_classifier(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    options = {"epochs": 6, "batch_size": 32, "embed_dim": 8, "hidden": 12, "lr": 0.05, "warmup": 2, "layer": 16}
    words = ["classify", "train", str(run.folder), "--output_folder", str(tmp_path / "cli"), "--method.threshold",
             "5e-1", "--layer", "16", "--truth_col", "right", *FEW]  # fmt: skip
    assert main(words) == 0
    model = nc.classify(
        nc.open_run(run.folder), tmp_path / "out", method_options={"threshold": 0.5}, truth_col="right", **options
    )
    for name in ("labels.parquet", "model.safetensors"):
        assert (tmp_path / "cli" / name).read_bytes() == (tmp_path / "out" / name).read_bytes()
    assert isinstance(model, nc.Classifier) and "capro learned 6 classes from" in model.summary
    assert model.metrics["test"]["top1"] > 0.5 and set(model.labels().columns) >= {"key", "label_rectified"}
    features = np.load(run.folder.parent / "source" / "image.npy")
    p = model.predict(features)
    assert p.shape == (240, 6) and np.allclose(p.sum(1), 1) and model.classes == [f"class-{c}" for c in range(6)]
    label = pq.read_table(run.folder.parent / "source" / "pairs.parquet").column("right").to_pylist()
    assert np.mean([model.classes[top] == label[row] for row, top in enumerate(p.argmax(1))]) > 0.7
    with pytest.raises(UsageError, match=r"expected \(n, 10\)"):
        model.predict(features[:, :4])
    page = model.report.read_bytes()
    model.report.unlink()
    assert model.write_report().read_bytes() == page and isinstance(nc.open_run(model.folder), nc.Classifier)
    with pytest.raises(UsageError, match=r"`method\.threshold` is 'much', expected a number"):
        nc.classify(run.folder, tmp_path / "other", method_options="threshold: much")
    with pytest.raises(UsageError, match="expected a mapping"):
        nc.classify(run.folder, tmp_path / "other", method_options="threshold")
    capsys.readouterr()


def test_predictions_are_those_of_the_training(run: Run, tmp_path: Path):
    stored = np.concatenate(open_features(run, "image")).astype(np.float32)
    for method in ("plain", "nested", "elr_plus", "capro_tags"):
        column = "tags" if method == "capro_tags" else "label"
        model = nc.classify(run.folder, tmp_path / method, method=method, label_col=column, epochs=2, batch_size=32,
                            embed_dim=8, hidden=12, lr=0.05, warmup=2, test_fraction=0.3)  # fmt: skip
        p = model.predict(stored)
        assert p.shape == (240, 6) and ((p >= 0) & (p <= 1)).all()
        assert method == "capro_tags" or np.allclose(p.sum(1), 1)
        if method == "plain":  # what it thinks of a label is its probability
            table, place = model.labels(), {name: number for number, name in enumerate(model.classes)}
            told = [p[int(key[1:]), place[label]] for key, label in zip(table.key, table.label)]
            assert np.allclose(table.p_clean, told, atol=1e-6)


def test_former_names_of_flags_work_and_say_so(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    words = ["classify", "train", str(run.folder), "--output_folder", str(tmp_path / "out"), "--class_col", "colour"]
    assert main(words) == 2
    told = capsys.readouterr().err
    assert "--class_col is --label_col now" in told and "no column 'colour'" in told


def test_tags(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    words = [
        "classify",
        "train",
        str(run.folder),
        "--output_folder",
        str(tmp_path / "out"),
        "--label_col",
        "tags",
        *FEW,
    ]
    assert main([*words, "--method", "capro_tags", "--weigh", "rare"]) == 0
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["test"]["map"] > 0.5 and set(report["test"]) >= {"cf1", "of1", "cf1_rel", "of1_rel", "map_micro"}
    assert main([*words[:3], "--output_folder", str(tmp_path / "other"), *words[5:], "--method", "mopro"]) == 2
    assert "learns from one label" in capsys.readouterr().err


def test_definitions_choose_the_classes(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "classes.yaml").write_text("class-0: the first\nclass-1: [one sense, another]\nclass-9: nobody\n")
    samples = webly_samples.read_samples(run, webly_samples.Labels(classes=str(tmp_path / "classes.yaml")))
    assert samples.classes == ["class-0", "class-1", "class-9"]
    assert samples.meanings[1] == "class 1: one sense another"
    assert any("not in the list" in note for note in samples.notes) and any("no sample" in n for n in samples.notes)
    for body, told in (("class-0: {a: b}\n", "expected a text"), ("a: x\na: y\n", "twice"), ("{}", "no classes")):
        (tmp_path / "classes.yaml").write_text(body)
        with pytest.raises(UsageError, match=told):
            classes.read_definitions(tmp_path / "classes.yaml")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--label_col", "colour"], "no column 'colour'"),
        (["--method", "cleverest"], "no method 'cleverest'"),
        (["--method.threshold", "much"], "--method.threshold"),
        (["--val_fraction", "0.6", "--test_fraction", "0.5"], "leave nothing"),
        (["--anchors", "-1"], "--anchors"),
        (["--weigh", "much"], "--weigh"),
    ],
)
def test_bad_input(words: list[str], told: str, run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["classify", "train", str(run.folder), "--output_folder", str(tmp_path / "out"), *words]) == 2
    assert told in capsys.readouterr().err


def test_bench_writes_its_tables_and_continues(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    sets = f"made={run.folder}:class=right,found={run.folder}:class=right+label=label+group=group"
    words = ["bench", "webly", "--output_folder", str(tmp_path), "--sets", sets, "--methods", "plain,capro,oracle",
             "--seeds", "0", "--width", "0", "--fewest", "10", "--epochs", "8", "--lr", "0.1",
             "--batch_size", "16"]  # fmt: skip
    assert main(words) == 0
    rows = pq.read_table(tmp_path / "bench.parquet").to_pylist()
    assert [(row["set"], row["noise"], row["method"]) for row in rows] == [
        (name, kind, method) for name, kind in (("made", "diffuse"), ("made", "semantic"), ("found", "natural"))
        for method in ("plain", "capro", "oracle")
    ]  # fmt: skip
    by = {(row["noise"], row["method"]): row for row in rows}
    assert by["semantic", "capro"]["mixed"] is not None and by["diffuse", "capro"]["mixed"] is None
    assert by["natural", "plain"]["wrong"] == pytest.approx(0.25, abs=0.06)
    assert by["diffuse", "capro"]["auc_completed"] > 0.8 and by["diffuse", "capro"]["anchor_precision"] > 0.8
    assert all(row["top1"] > 0.5 for row in rows) and by["natural", "oracle"]["auroc"] is None
    text = (tmp_path / "bench.md").read_text()
    assert "| made | semantic |" in text and "**" in text
    capsys.readouterr()
    cells = {path: path.stat().st_mtime_ns for path in (tmp_path / "cells").iterdir()}
    assert main(words) == 0
    assert cells == {path: path.stat().st_mtime_ns for path in (tmp_path / "cells").iterdir()}
    assert (tmp_path / "bench.md").read_text() == text


@pytest.mark.parametrize("text", ["x", "x=y", "x=y:z", "x=y:group=z", "x=y:class=z+colour=w"])
def test_specs_of_sets(text: str):
    with pytest.raises(UsageError, match="`sets`"):
        parse_set(text)


def test_bench_choice():
    assert parse_set("a=b/c:class=d+group=e") == ("a", "b/c", {"class": "d", "group": "e"})
    with pytest.raises(UsageError, match="learns tags"):
        Bench(methods="capro_tags").cells(natural=False)
    for wrong in ({"noise": "loud"}, {"seeds": ""}, {"fewest": 1}):
        with pytest.raises(UsageError):
            Bench(**wrong)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="whole numbers"):
        Bench(seeds="a")
