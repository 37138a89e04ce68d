"""`noisycorr caption train`, `caption generate` and `bench caption`, from files to files."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from caption_data import JUNK, world

from noisycorr.__main__ import main
from noisycorr.caption import bench as caption_bench
from noisycorr.caption.bench import LINES, METHODS, SHOWN, Bench, cider, recipe_of, unigram_f1
from noisycorr.caption.captioner.choice import CaptionTrain, Design, Held, Teach
from noisycorr.caption.captioner.teach import Recipe, train_class
from noisycorr.caption.metrics import cider_d
from noisycorr.caption.train import CaptionPlan, dropped_for_issues, read_material
from noisycorr.clean.bench import metric_tables
from noisycorr.clean.corpus import read_corpus
from noisycorr.data.readers import Source
from noisycorr.data.store import parts
from noisycorr.runtime.errors import UsageError
from noisycorr.runtime.folder import Run, write_json

SIZE = ["--width", "24", "--layers", "1", "--attention_heads", "2", "--vocabulary", "360", "--prefix_tokens", "2",
        "--longest", "16", "--batch_size", "16", "--lr", "0.01"]  # fmt: skip
FAST = [*SIZE, "--levels", "3", "--level_least", "5", "--issues", "true", "-q"]


def write_source(folder: Path, n: int = 160) -> Path:
    """Stored embeddings with texts, a third of which are a stock phrase."""
    material = world(n, junk=0.33)
    rng = np.random.default_rng(5)
    kinds = np.array([0 if text == JUNK else 1 for text in material.texts])
    text = material.image @ rng.normal(size=(9, 12)) + 0.1 * rng.normal(size=(n, 12))
    text[kinds == 0] = rng.normal(size=12) + 0.1 * rng.normal(size=(int((kinds == 0).sum()), 12))
    folder.mkdir(parents=True)
    image = material.image @ rng.normal(size=(9, 20)) + 0.2 * rng.normal(size=(n, 20))
    np.save(folder / "image.npy", image.astype(np.float32))
    np.save(folder / "text.npy", text.astype(np.float32))
    texts = list(material.texts)
    texts[1], texts[2] = "", "one very long text " * 20
    pq.write_table(pa.table({"key": [f"k{r}" for r in range(n)], "caption": texts}), folder / "pairs.parquet")
    return folder


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cleaned run, a captioner of it, and texts for it."""
    folder = tmp_path_factory.mktemp("caption")
    source = write_source(folder / "source")
    assert main(["clean", str(source), "--output_folder", str(folder / "run"), "--stages", "embed,score,decide",
                 "-q"]) == 0  # fmt: skip
    assert main(train(folder)) == 0
    assert main(generate(folder, "texts")) == 0
    return folder


def train(folder: Path, *more: str) -> list[str]:
    words = {"--epochs": "10", "--level_by": "score_pair", "--keep_fraction": "1"}
    return ["caption", "train", str(folder / "run"), "--output_folder", str(folder / "model"), *FAST,
            *[word for name, value in words.items() if name not in more for word in (name, value)], *more]  # fmt: skip


def generate(folder: Path, name: str, *more: str) -> list[str]:
    return ["caption", "generate", str(folder / "run"), "--model", str(folder / "model"), "--output_folder",
            str(folder / name), "-q", *more]  # fmt: skip


def written(folder: Path, name: str) -> pa.Table:
    return pq.read_table(folder / name / "captions" / "00000.parquet")


def test_what_training_writes(place: Path):
    report = json.loads((place / "model" / "report.json").read_text())
    assert len(report["history"]) == 10 and sum(row["chosen"] for row in report["levels"]) == 1
    assert report["history"][-1]["valid_loss"] < report["history"][0]["valid_loss"]
    assert report["pairs"]["cut"] == 1, "the long text"
    assert not read_corpus(Run(place / "run")).usable.all() or report["pairs"]["without_text"] == 1
    levels = json.loads((place / "model" / "levels.json").read_text())
    assert set(levels["made_by"]) == {"column", "scorer", "preprocessing", "corpus"}
    assert all(path.suffix != ".pt" for path in (place / "model").rglob("*"))


def test_what_the_ledger_drops_for_an_issue_does_not_teach(place: Path, tmp_path: Path):
    found = dropped_for_issues(Run(place / "run"), 160)
    ledger = pq.read_table(place / "run" / "ledger" / "00000.parquet", columns=["text", "verdict"]).to_pylist()
    dropped = [row for row, out in zip(ledger, found) if out and row["text"]]
    assert len(dropped) > 30 and {row["verdict"] for row in dropped} == {"drop"}
    junk = np.array([row["text"] == JUNK for row in ledger])
    assert junk.sum() > 40 and (junk & found).sum() >= 0.75 * junk.sum(), "it stands with many pictures"
    shutil.copytree(place / "run", tmp_path / "run")
    assert main([word for word in train(tmp_path, "--epochs", "1") if word not in ("--issues", "true")]) == 0
    every, some = (json.loads((folder / "model" / "report.json").read_text())["pairs"]["pairs"]
                   for folder in (place, tmp_path))  # fmt: skip
    assert 20 < some <= 160 - found.sum() and every > 100


def test_what_generating_writes(place: Path):
    table = written(place, "texts")
    assert table.column("key").to_pylist() == [f"k{r}" for r in range(160)]
    assert set(table.column_names) == {"key", "row", "level", "text", "score", "log_prob", "ended"}
    texts = table.column("text").to_pylist()
    assert all(texts) and sum("on a table" in text for text in texts) > 100
    assert np.isnan(table.column("score").to_numpy()).all(), "these embeddings have no encoder of texts"
    assert set(table.column("level").to_pylist()) == {json.loads((place / "model/captioner.json").read_text())["level"]}


def test_levels_by_number_and_given(place: Path):
    assert main(generate(place, "low", "--level", "0", "--search", "greedy")) == 0
    low = written(place, "low")
    best = written(place, "texts").column("text").to_pylist()
    assert low.column("text").to_pylist().count(JUNK) > 1.5 * best.count(JUNK)
    assert set(low.column("level").to_pylist()) == {0}
    assert main(generate(place, "given", "--level", "given")) == 0
    assert len(set(written(place, "given").column("level").to_pylist())) > 1


def test_the_same_command_twice_and_after_a_kill(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    before = (place / "model" / "captioner.safetensors").read_bytes()
    assert main(train(place)) == 0
    shutil.copytree(place / "model", tmp_path / "model")
    for name in ("captioner.json", "captioner.safetensors", "stages/caption.json"):
        (tmp_path / "model" / name).unlink()  # as if killed while it chose a level
    steps = sorted((tmp_path / "model" / "checkpoints").iterdir())
    shutil.rmtree(steps[-1])
    shutil.copytree(place / "run", tmp_path / "run")
    assert main(train(tmp_path)) == 0
    assert (tmp_path / "model" / "captioner.safetensors").read_bytes() == before
    assert main(train(tmp_path, "--epochs", "3")) == 2
    assert "holds another training (recipe.train.epochs: was 10, now 3)" in capsys.readouterr().err
    assert main(generate(place, "texts", "--level", "1")) == 2
    assert "holds texts of another kind" in capsys.readouterr().err


def test_killed_by_the_system_and_continued(place: Path, tmp_path: Path):
    shutil.copytree(place / "run", tmp_path / "run")
    words = train(tmp_path, "--save_every", "0.001", "--keep_checkpoints", "1")
    process = subprocess.Popen([sys.executable, "-m", "noisycorr", *words], stderr=subprocess.DEVNULL)
    waits = time.monotonic() + 300
    while not (seen := list((tmp_path / "model" / "checkpoints").glob("step-*/COMPLETE"))):
        assert time.monotonic() < waits and process.poll() is None, "it never came to its first checkpoint"
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL and not (tmp_path / "model" / "captioner.json").exists()
    assert seen and main(train(tmp_path)) == 0
    for name in ("captioner.safetensors", "captioner.json", "levels.json"):
        left, alone = ((folder / "model" / name).read_bytes() for folder in (tmp_path, place))
        assert left == alone.replace(str(place).encode(), str(tmp_path).encode()), name


def test_texts_depend_on_what_the_captioner_is_not_on_its_times(place: Path, tmp_path: Path):
    for name in ("run", "model", "texts"):
        shutil.copytree(place / name, tmp_path / name)
    part = tmp_path / "texts" / "captions" / "00000.parquet"
    before = part.stat().st_mtime_ns
    for name in ("captioner.safetensors", "captioner.json", "levels.json"):
        os.utime(tmp_path / "model" / name, (1, 1))
    assert main(generate(tmp_path, "texts")) == 0 and part.stat().st_mtime_ns == before
    body = json.loads((tmp_path / "model" / "levels.json").read_text())
    write_json(tmp_path / "model" / "levels.json", body | {"hidden": not body["hidden"]})
    assert main(generate(tmp_path, "texts")) == 2


def test_given_levels_depend_on_the_ledger(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    shutil.copytree(place / "run", tmp_path / "run")
    assert main(train(tmp_path, "--epochs", "1", "--level_by", "p_clean")) == 0
    assert main(generate(tmp_path, "given", "--level", "given")) == 0
    assert main(generate(tmp_path, "best")) == 0
    p_clean = read_corpus(Run(tmp_path / "run")).columns["p_clean"]
    labels = "\n".join(f"k{row},{int(row % 3 > 0)}" for row in range(160))
    (tmp_path / "labels.csv").write_text(f"key,label\n{labels}\n")
    assert main(["decide", "--output_folder", str(tmp_path / "run"), "--labels", str(tmp_path / "labels.csv"),
                 "-q"]) == 0  # fmt: skip
    assert not np.array_equal(read_corpus(Run(tmp_path / "run")).columns["p_clean"], p_clean)
    assert main(generate(tmp_path, "best")) == 0, "which no column has a say in"
    capsys.readouterr()
    assert main(generate(tmp_path, "given", "--level", "given")) == 2
    assert "holds texts of another kind (ledger" in capsys.readouterr().err


def test_validation_pairs_come_in_an_order_that_says_nothing(place: Path, tmp_path: Path):
    plan = CaptionPlan(source=Source(path=str(place / "run")), clip_model="embedded", recipe=Recipe(),
                held=Held(val_fraction=0.3))  # fmt: skip
    found, again = (read_material(plan, Run(tmp_path), Run(place / "run"), overwrite=False)[0] for _ in range(2))
    assert found.valid_texts == again.valid_texts
    corpus = read_corpus(Run(place / "run"))
    rows = [int(np.flatnonzero((corpus.image == image).all(1))[0]) for image in found.valid_image]
    assert rows != sorted(rows) and len(set(rows)) == len(rows) > 4
    texts = [row["text"] for row in pq.read_table(place / "run" / "ledger" / "00000.parquet").to_pylist()]
    assert found.valid_texts == [texts[row] for row in rows]
    assert found.image is found.vectors and found.valid_image is found.valid_vectors, "features are held once"


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--level", "7"], "level 7 is asked for"),
        (["--level", "high"], "expected best, given, each, or a number"),
        (["--level", "each"], "needs the encoder of texts"),
        (["--search", "nucleus", "--samples", "3"], "needs the encoder of texts"),
        (["--guidance", "1", "--against", "image"], "image_dropout"),
    ],
)
def test_wrong_questions(place: Path, capsys: pytest.CaptureFixture[str], more: list[str], said: str):
    assert main(generate(place, "wrong", *more)) == 2
    assert said in capsys.readouterr().err


def test_a_refused_question_leaves_the_folder_free(place: Path):
    assert main(generate(place, "free", "--guidance", "1", "--against", "image")) == 2
    assert main(generate(place, "free", "--level", "77")) == 2
    assert main(generate(place, "free")) == 0


def test_other_pictures_and_other_scores_are_refused(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    other = tmp_path / "source"
    other.mkdir()
    rng = np.random.default_rng(0)
    np.save(other / "image.npy", rng.normal(size=(30, 19)).astype(np.float32))
    np.save(other / "text.npy", rng.normal(size=(30, 12)).astype(np.float32))
    assert main(["clean", str(other), "--output_folder", str(tmp_path / "run"), "-q"]) == 0
    words = ["caption", "generate", str(tmp_path / "run"), "--model", str(place / "model"), "--output_folder",
             str(tmp_path / "texts"), "-q"]  # fmt: skip
    said = "was embedded by precomputed@"
    assert main(words) == 2 and said in (found := capsys.readouterr().err) and "or add --same_encoder" in found
    assert main([*words, "--same_encoder"]) == 2
    assert "reads image vectors of width 20 by precomputed" in capsys.readouterr().err
    shutil.copytree(place / "run", tmp_path / "again")
    assert main(["score", "--output_folder", str(tmp_path / "again"), "--seed", "3", "-q"]) == 0
    words[2] = str(tmp_path / "again")
    assert main([*words, "--level", "given"]) == 2
    assert "edges of scores with corpus" in capsys.readouterr().err
    assert main(["caption", "generate", str(place / "run"), "--model", str(tmp_path), "--output_folder",
                 str(tmp_path / "texts")]) == 2  # fmt: skip
    assert "holds no finished captioner" in capsys.readouterr().err


def test_without_levels_and_without_a_ledger(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    shutil.copytree(place / "run", tmp_path / "run")
    for name in ("decide", "score"):
        (tmp_path / "run" / "stages" / f"{name}.json").unlink()
    assert main(train(tmp_path)) == 2
    told = capsys.readouterr().err
    assert "--draw_by p_clean: the ledger has no such column, for the run was not scored" in told
    assert "--level_by none and --draw_by none" in told and not (tmp_path / "model").exists()
    assert main(train(tmp_path, "--draw_by", "none")) == 2
    assert "--level_by score_pair: the ledger has no such column" in capsys.readouterr().err
    vanilla = ["--level_by", "none", "--draw_by", "none", "--keep_fraction", "1", "--epochs", "1"]
    assert main(train(tmp_path, *vanilla)) == 0
    assert not (tmp_path / "model" / "levels.json").exists()
    assert main(generate(tmp_path, "texts")) == 0
    assert set(written(tmp_path, "texts").column("level").to_pylist()) == {-1}
    assert parts(Run(tmp_path / "run")) == [0]


def test_embeddings_of_equal_width_may_be_of_different_encoders(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    source = write_source(tmp_path / "source")
    np.save(source / "image.npy", np.load(source / "image.npy")[:, ::-1])
    assert main(["clean", str(source), "--output_folder", str(tmp_path / "run"), "--stages", "embed", "-q"]) == 0
    shutil.copytree(place / "model", tmp_path / "model")
    assert main(generate(tmp_path, "texts")) == 2 and "was embedded by precomputed@" in capsys.readouterr().err
    assert main(generate(tmp_path, "texts", "--same_encoder")) == 0, "whoever knows it may say so"
    assert written(tmp_path, "texts").num_rows == 160


def test_folders_hold_one_kind_of_work(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    source = str(place / "source")
    begun = {"run": ["caption", "train", source, *FAST], "model": ["clean", source, "-q"],
             "texts": ["train", source, "-q"]}  # fmt: skip
    for name, words in begun.items():
        before = {path: path.read_bytes() for path in (place / name).rglob("*") if path.is_file()}
        assert main([*words, "--output_folder", str(place / name)]) == 2
        assert "choose another --output_folder" in (said := capsys.readouterr().err) and " holds " in said
        assert {path: path.read_bytes() for path in (place / name).rglob("*") if path.is_file()} == before
    for name in ("run", "model"):
        assert main(generate(place, name)) == 2
        assert "choose another --output_folder" in capsys.readouterr().err
    assert main(["train", source, "--output_folder", str(place / "run"), "-q"]) == 2
    assert "holds pairs of `noisycorr clean`" in capsys.readouterr().err


# The benchmark


def test_unigram_f1():
    assert unigram_f1(["a red ball"], [["a red ball"]]) == 100
    assert unigram_f1(["a a b", ""], [["a c", "x"], ["y"]]) == pytest.approx(100 * (2 / 5) / 2)


def test_cider_of_the_benchmark_leaves_out_references_without_words():
    texts, references = ["a red ball", "a blue boat", "x"], [["a red ball"], ["a blue boat", "..."], ["!", ""]]
    right = cider(texts, references)
    assert right == pytest.approx(100 * np.mean(cider_d(texts[:2], [["a red ball"], ["a blue boat"]])))
    assert cider(["a red ball", "a red ball"], references[:2]) < right


def test_methods_are_choices_of_one_engine():
    train_choice, design = CaptionTrain(), Design()
    assert recipe_of("vanilla", train_choice, design).levels.level_by == "none"
    assert recipe_of("default", train_choice, design).teach == Teach()
    kept = {name: recipe_of(name, train_choice, design).teach.keep_fraction for name in METHODS}
    assert {name for name, share in kept.items() if share == "auto"} == {"filter"}
    drawn = {name: recipe_of(name, train_choice, design).teach.draw_by for name in METHODS}
    assert {name for name, column in drawn.items() if column == "p_clean"} == {"default"}
    assert recipe_of("filter+keep_fraction=0.3", train_choice, design).teach.fraction == 0.3
    assert recipe_of("weight", train_choice, design).teach.weight_by == "p_clean"
    assert recipe_of("noc+levels=4+bins=uniform", train_choice, design).levels.levels == 4
    assert recipe_of("choice", train_choice, design).decode.samples == 4
    assert recipe_of("choice+align_weight=1e3", train_choice, design).decode.align_weight == 1000
    for spec, said in (("nobody", "expected some of"), ("noc+levels", "no option=value"), ("noc+x=1", "no option of")):
        with pytest.raises(UsageError, match=said):
            recipe_of(spec, train_choice, design)


@pytest.mark.parametrize(
    ("choice", "said"),
    [
        ({"sets": "sample"}, "expected NAME=SOURCE"),
        ({"noises": "loud"}, "expected some of random, junk, concept"),
        ({"ratios": "2"}, "shares in 0 to 1"),
        ({"seeds": "x"}, "whole numbers"),
        ({"methods": ""}, "`methods` is empty"),
        ({"limit": -1}, "expected 0"),
    ],
)
def test_wrong_benchmarks(choice: dict[str, object], said: str):
    with pytest.raises(UsageError, match=said):
        Bench(**choice).cells()  # type: ignore[arg-type]


def test_a_training_is_shared_by_ways_of_writing(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    words = np.random.default_rng(3).normal(size=(256, 12)).astype(np.float32)
    monkeypatch.setattr(caption_bench, "_encode", lambda name, runs: (
        lambda texts: np.stack([sum(words[ord(c) % 256] for c in text) for text in texts])))  # fmt: skip
    trainings = []
    monkeypatch.setattr(caption_bench, "train_class", lambda group: (trainings.append(1), train_class(group)))
    design = {"width": 16, "layers": 1, "attention_heads": 2, "vocabulary": 320, "prefix_tokens": 1, "longest": 12}

    def run(name: str, methods: str) -> list[dict[str, object]]:
        result = caption_bench.bench_caption(tmp_path / name, sets=f"s={place / 'run'}", ratios="0.4", seeds="3",
                                             methods=methods, epochs=3, batch_size=16, lr=0.01, **design)  # fmt: skip
        return [{key: value for key, value in row.items() if key != "seconds"} for row in result.rows]

    together = run("together", "noc+each_level=true+samples=2,noc,filter+samples=1,filter")
    assert len(trainings) == 2 and together[0]["CIDEr-D"] is not None
    assert run("together", "filter,noc") == [together[3], together[1]] and len(trainings) == 2, "cells are kept"
    apart = run("alone", "filter") + run("alone", "noc")
    assert apart == [together[3], together[1]] and len(trainings) == 4
    assert "| s | 40% random |" in (tmp_path / "alone" / "bench.md").read_text()
    assert any(text for text, _ in together[3]["examples"])


def test_tables():
    def row(method: str, seed: int, value: float) -> dict[str, object]:
        measured = dict.fromkeys(("CIDEr-D", "F1", "R@1", "alignment"), value)
        return {"set": "s", "noise": "junk", "ratio": 0.4, "method": method, "seed": seed, **measured, "unique": 1.0,
                "control_alignment": None, "seconds": 1.0}  # fmt: skip

    rows = [row("noc", 0, 10.0), row("noc", 1, 12.0), row("oracle", 0, 99.0), row("vanilla", 0, 10.5)]
    text = metric_tables(rows, SHOWN, LINES)
    assert "| s | 40% junk | **11.0 ± 1.4** | 99.0 | 10.5 |" in text
