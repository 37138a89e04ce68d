"""`noisycorr train` from end to end: folders, splits, refusals, kills, two processes, and evaluation."""

from __future__ import annotations

import dataclasses
import json
import os
import random
import re
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
import yaml
from learning import features
from safetensors.numpy import load_file

from noisycorr.__main__ import main
from noisycorr.clean.corpus import TEST, TRAIN, UNUSED, VALID, Corpus, _rectified, rectify_texts, split_corpus

N = 240
FAST = ["--epochs", "3", "--batch_size", "32", "--embed_dim", "8", "--hidden", "12", "-q"]
TIMES = {"metrics.jsonl"}


def write_source(folder: Path, *, seed: int = 0, split: bool = False) -> Path:
    """Embeddings of `N` pairs, a quarter of them wrong, with their truth."""
    image, text, wrong = features(N, wrong=N // 4, seed=seed)
    folder.mkdir(parents=True)
    np.save(folder / "image.npy", image)
    np.save(folder / "text.npy", text)
    columns = {"key": [f"k{row}" for row in range(N)], "caption": [f"thing {row}" for row in range(N)],
               "truth_wrong": wrong}  # fmt: skip
    if split:
        columns["split"] = ["test" if row % 4 == 0 else "val" if row % 4 == 1 else "train" for row in range(N)]
    pq.write_table(pa.table(columns), folder / "pairs.parquet")
    return folder


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A source, and a run of `clean` on it."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    place = tmp_path_factory.mktemp("train")
    source = write_source(place / "source")
    assert main(["clean", str(source), "--output_folder", str(place / "run"), "-q"]) == 0
    assert main(["train", str(place / "run"), "--output_folder", str(place / "model"), *FAST]) == 0
    return place


def files(folder: Path) -> dict[str, bytes]:
    """Bytes of all files but those that hold times."""
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*"))
            if p.is_file() and p.name not in TIMES}  # fmt: skip


def said(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one sentence of bad usage."""
    assert main(words) == 2
    return capsys.readouterr().err.strip()


# ---- the folder


def test_what_a_training_leaves(work: Path):
    model = work / "model"
    names = {path.name for path in model.iterdir()}
    assert names >= {"config.yaml", "provenance.json", "model.safetensors", "model.json", "split.parquet",
                     "trust.parquet", "report.json", "report.html", "evaluation.json", "metrics.jsonl", "checkpoints",
                     "stages"}  # fmt: skip
    report = json.loads((model / "report.json").read_text())
    assert [record["epoch"] for record in report["history"]] == [0, 1, 2]
    assert report["strategy"]["name"] == "best" and report["networks"] == 2
    assert len(report["validation"]["singles"]) == 2 and report["validation"]["ensemble"]["rSum"] > 100
    lines = [json.loads(line) for line in (model / "metrics.jsonl").read_text().splitlines()]
    epochs = [line for line in lines if line["event"] == "epoch"]
    assert len(epochs) == 3 and all(
        line["samples_per_second"] > 0 and 0 <= line["loading_share"] <= 1 for line in epochs
    )
    assert set(load_file(model / "model.safetensors")) >= {"0.log_temperature", "1.log_temperature"}
    assert yaml.safe_load((model / "config.yaml").read_text())["strategy"]["class_path"] == "best"


def test_the_same_command_again_changes_nothing(work: Path):
    before = files(work / "model")
    assert main(["train", str(work / "run"), "--output_folder", str(work / "model"), *FAST]) == 0
    assert files(work / "model") == before


def test_the_config_of_a_folder_trains_it_again(work: Path, tmp_path: Path):
    words = ["train", "--config", str(work / "model" / "config.yaml"), "--output_folder", str(tmp_path / "m"), "-q"]
    assert main(words) == 0
    for name in ("model.safetensors", "report.json", "split.parquet", "trust.parquet"):
        assert (tmp_path / "m" / name).read_bytes() == (work / "model" / name).read_bytes(), name


def test_a_source_is_embedded_into_the_folder_first(work: Path, tmp_path: Path):
    assert main(["train", str(work / "source"), "--output_folder", str(tmp_path / "m"), *FAST]) == 0
    assert (tmp_path / "m" / "data" / "stages" / "decide.json").exists()
    assert (tmp_path / "m" / "model.safetensors").read_bytes() == (work / "model" / "model.safetensors").read_bytes()


def test_truth_is_reported_and_changes_nothing(work: Path, tmp_path: Path):
    source = tmp_path / "blind"
    shutil.copytree(work / "source", source)
    pq.write_table(pq.read_table(source / "pairs.parquet").drop_columns(["truth_wrong"]), source / "pairs.parquet")
    assert main(["clean", str(source), "--output_folder", str(tmp_path / "run"), "-q"]) == 0
    words = [str(tmp_path / "run"), "--output_folder", str(tmp_path / "m"), *FAST, "--strategy.warm_up", "1"]
    assert main(["train", *words]) == 0
    words[0], words[2] = str(work / "run"), str(tmp_path / "told")
    assert main(["train", *words]) == 0
    assert (tmp_path / "m" / "model.safetensors").read_bytes() == (tmp_path / "told" / "model.safetensors").read_bytes()
    blind, told = (json.loads((tmp_path / name / "report.json").read_text()) for name in ("m", "told"))
    assert not any(name.startswith("auroc") for name in blind["history"][-1])
    assert 0 < told["history"][-1]["auroc_p_clean_0"] <= 1


# ---- evaluate


def test_evaluate_opens_the_test_split(work: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["evaluate", str(work / "model")]) == 0
    found = json.loads(capsys.readouterr().out)
    split = pq.read_table(work / "model" / "split.parquet").column("split").to_pylist()
    assert found["test"]["pairs"] == split.count("test") > 10
    assert 0 <= found["test"]["ensemble"]["text_retrieval_recall@1"] <= 100
    assert found["detection"]["pairs"] == split.count("train")
    assert json.loads((work / "model" / "evaluation.json").read_text()) == found


def test_training_opens_the_test_split_as_evaluate_does(work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    words = ["train", str(work / "run"), "--output_folder", str(tmp_path / "m"), *FAST[:-1]]
    assert main(words) == 0
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("test: ")]
    assert [line.split(",")[0] for line in lines] == ["test: network 1", "test: network 2", "test: together"]
    assert all(
        re.search(r"R@1/5/10 of texts [\d.]+/[\d.]+/[\d.]+, of images [\d.]+/[\d.]+/[\d.]+, rSum ", x) for x in lines
    )
    trained, page = (tmp_path / "m" / "evaluation.json").read_bytes(), (tmp_path / "m" / "report.html").read_bytes()
    assert main(["evaluate", str(tmp_path / "m"), "-q"]) == 0
    assert (tmp_path / "m" / "evaluation.json").read_bytes() == trained
    assert (tmp_path / "m" / "report.html").read_bytes() == page


def test_the_test_split_stays_closed_if_asked_or_if_there_is_none(work: Path, tmp_path: Path):
    for name, words in (("shut", ["--evaluate", "false"]), ("none", ["--test_fraction", "0"])):
        assert main(["train", str(work / "run"), "--output_folder", str(tmp_path / name), *FAST, *words]) == 0
        assert not (tmp_path / name / "evaluation.json").exists()
        assert "No test split was opened" in (tmp_path / name / "report.html").read_text()
    assert main(["evaluate", str(tmp_path / "shut"), "-q"]) == 0
    assert "No test split was opened" not in (tmp_path / "shut" / "report.html").read_text()


def test_evaluate_on_other_data(work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    folder = tmp_path / "model"
    shutil.copytree(work / "model", folder)
    words = ["evaluate", str(folder), "--test_data", str(work / "run")]
    assert main(words) == 0
    assert json.loads(capsys.readouterr().out)["test"]["pairs"] == N
    assert str(work / "run") in (folder / "report.html").read_text()
    assert main(["evaluate", str(work / "run"), "--test_data", "x"]) == 2
    (folder / "model.json").unlink()
    assert "no finished model" in said(words, capsys)


# ---- splits


def corpus(groups: list[int], *, kept: list[bool] | None = None, given: list[int] | None = None) -> Corpus:
    """Pairs of these image groups; the last one has no image."""
    n = len(groups)
    image = np.ones((n, 2), np.float32)
    image[-1] = 0
    return Corpus(
        keys=[str(row) for row in range(n)], image=image, text=np.ones((n, 2), np.float32), usable=image.any(1),
        kept=np.array(kept or [True] * n), shown=np.arange(n), image_group=np.array(groups), text_group=np.arange(n),
        given_split=None if given is None else np.array(given, np.int8),
    )  # fmt: skip


def test_no_image_stands_on_both_sides():
    groups = np.random.default_rng(0).integers(0, 60, 300).tolist()
    split = split_corpus(corpus(groups), val_fraction=0.2, test_fraction=0.1, seed=3)
    by_group = {group: {split[row] for row in range(299) if groups[row] == group} for group in set(groups)}
    assert all(len(kinds) <= 1 for kinds in by_group.values())
    assert split[-1] == UNUSED
    assert 0.15 < (split == VALID).mean() < 0.21 and 0.05 < (split == TEST).mean() < 0.11
    assert (split != split_corpus(corpus(groups), val_fraction=0.2, test_fraction=0.1, seed=4)).any()


def test_pairs_that_the_ledger_drops_do_not_validate():
    kept = [row % 2 == 0 for row in range(100)]
    split = split_corpus(corpus(list(range(100)), kept=kept), val_fraction=0.3, test_fraction=0.3, seed=0)
    assert all(kept[row] for row in range(100) if split[row] in (VALID, TEST))
    assert any(not kept[row] for row in range(100) if split[row] == TRAIN)


def test_a_column_split_is_followed(tmp_path: Path):
    source = write_source(tmp_path / "source", split=True)
    assert main(["train", str(source), "--output_folder", str(tmp_path / "m"), *FAST, "--strategy", "plain"]) == 0
    split = pq.read_table(tmp_path / "m" / "split.parquet").column("split").to_pylist()
    assert split == ["test" if row % 4 == 0 else "valid" if row % 4 == 1 else "train" for row in range(N)]


def test_an_own_set_to_select_on(work: Path, tmp_path: Path):
    other = write_source(tmp_path / "other", seed=5)
    words = ["train", str(work / "run"), "--output_folder", str(tmp_path / "m"), *FAST, "--val-data", str(other)]
    assert main(words) == 0
    assert json.loads((tmp_path / "m" / "report.json").read_text())["validation"]["pairs"] == N
    split = pq.read_table(tmp_path / "m" / "split.parquet").column("split").to_pylist()
    assert "valid" not in split


def test_repaired_texts_stand_in_for_the_given_ones():
    before = corpus([0, 1, 2, 3])
    before = dataclasses.replace(before, rectified={1: "a cat", 2: "a cat"})
    after = rectify_texts(before, lambda texts: np.array([[len(text), 7.0] for text in texts], np.float32))
    assert after.text.tolist() == [[1, 1], [5, 7], [5, 7], [1, 1]]
    assert after.text_group[1] == after.text_group[2] and len(set(after.text_group.tolist())) == 3
    assert before.text[1].tolist() == [1, 1] and after.identity != before.identity
    table = pa.table({"text_rectified": ["same", "better", None, " "]})
    assert _rectified(table, ["same", "worse", "c", "d"]) == {1: "better"}


# ---- refusals


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--epochs", "4"], "settings.epochs: was 3, now 4"),
        (["--strategy", "plain"], "strategy.class: was 'Best', now 'Plain'"),
        (["--strategy.warm_up", "1"], "strategy.warm_up: was 3, now 1"),
        (["--pairs", "kept"], "data.pairs"),
        (["--seed", "1"], "data.rows"),
    ],
)
def test_a_training_of_other_things_is_refused(
    words: list[str], told: str, work: Path, capsys: pytest.CaptureFixture[str]
):
    before = files(work / "model")
    fast = [word for word in FAST if not (words[0] == "--epochs" and word in ("--epochs", "3"))]
    message = said(["train", str(work / "run"), "--output_folder", str(work / "model"), *fast, *words], capsys)
    assert "holds a training of other data, strategy or settings" in message and told in message
    assert files(work / "model") == before


def test_overwrite_starts_anew(work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    shutil.copytree(work / "model", tmp_path / "m")
    words = ["train", str(work / "run"), "--output_folder", str(tmp_path / "m"), *FAST, "--seed", "1"]
    assert main([*words, "--overwrite"]) == 0
    assert json.loads((tmp_path / "m" / "report.json").read_text())["settings"]["seed"] == 1
    other = write_source(tmp_path / "other", seed=9)
    for source in (work / "source", other):
        words = ["train", str(source), "--output_folder", str(tmp_path / "k"), *FAST, "--overwrite"]
        assert main(words) == 0
    assert json.loads((tmp_path / "k" / "data" / "stages" / "embed_started.json").read_text())
    assert "other" in (tmp_path / "k" / "data" / "config.yaml").read_text()
    words = ["train", str(work / "run"), "--output_folder", str(tmp_path / "m"), *FAST]
    (tmp_path / "n").mkdir()
    (tmp_path / "n" / "config.yaml").write_text("mine")
    words[3] = str(tmp_path / "n")
    assert "no training: --overwrite deletes trainings only" in said([*words, "--overwrite"], capsys)


def test_a_ledger_of_other_data_is_refused(work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    words = ["train", str(tmp_path / "run"), "--output_folder", str(tmp_path / "m"), *FAST]
    shutil.copytree(work / "run", tmp_path / "run")
    ledger = tmp_path / "run" / "ledger" / "00000.parquet"
    table = pq.read_table(ledger)
    pq.write_table(table.set_column(0, "key", pa.array([f"x{row}" for row in range(N)])), ledger)
    assert "has a ledger of other pairs" in said(words, capsys)
    stage = tmp_path / "run" / "stages" / "score.json"
    stage.write_text(stage.read_text().replace('"embed": "', '"embed": "f'))
    assert "ledger of other data or scores" in said(words, capsys)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--batch_size", "1"], "--batch_size is 1, expected at least 2"),
        (["--strategy", "coteech"], "the strategy 'coteech' is not known"),
        (["--strategy.warm_up", "x"], "--strategy.warm_up is 'x', expected a whole number"),
        (["--strategy.heat", "1"], "has no option 'heat'"),
        (["--strategy_options", "[1]"], "expected a mapping"),
        (["--strategy.split", "gmm", "--strategy.split", "bmm"], "--strategy.split stands twice"),
        (["--val_fraction", "0.7", "--test_fraction", "0.4"], "leave nothing to train on"),
        (["--temperature", "0"], "--temperature is 0.0"),
        (
            ["--report-to", "none,pigeon"],
            "--report_to none,pigeon: 'none' is no tracker; expected none, all, or some of",
        ),
        (["--report-to", "pigeon"], "--report_to pigeon: 'pigeon' is no tracker"),
        (["--strategy", "weighted", "--strategy.column", "score_none"], "weighs by the column 'score_none'"),
    ],
)
def test_wrong_options_are_one_sentence(
    words: list[str], told: str, work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    fast = [w for w in FAST if not (words[0] == "--batch_size" and w in ("--batch_size", "32"))]
    message = said(["train", str(work / "run"), "--output_folder", str(tmp_path / "m"), *fast, *words], capsys)
    assert told in message and message.count("\n") == 0


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_training_without_validation_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str], split: str):
    source = write_source(tmp_path / "source", split=True)
    table = pq.read_table(source / "pairs.parquet")
    words = pa.array(["train"] * (N - 20) + [split] * 20)
    table = table.set_column(table.column_names.index("split"), "split", words)
    pq.write_table(table, source / "pairs.parquet")
    assert main(["train", str(source), "--output_folder", str(tmp_path / "model"), *FAST[:-1]]) == 0
    assert ("warning: no pair validates" in capsys.readouterr().err) == (split == "train")


def test_the_folder_of_the_pairs_is_no_place_for_the_model(work: Path, capsys: pytest.CaptureFixture[str]):
    message = said(["train", str(work / "run"), "--output_folder", str(work / "run"), *FAST], capsys)
    assert "holds pairs of `noisycorr clean`: choose another --output_folder" in message


def test_a_loss_that_is_nan_fails_with_one_sentence(work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    words = ["train", str(work / "run"), "--output_folder", str(tmp_path / "m"), *FAST, "--lr", "1e30", "--warmup", "0",
             "--grad_clip_norm", "0"]  # fmt: skip
    assert main(words) == 1
    message = capsys.readouterr().err
    assert message.startswith("noisycorr: the loss became") and message.count("\n") == 1


# ---- processes


def command(work: Path, folder: Path) -> list[str]:
    """A training that saves after every step."""
    words = ["train", str(work / "run"), "--output_folder", str(folder), *FAST, "--save_every", "1e-9",
             "--strategy.warm_up", "1", "--dropout", "0.1"]  # fmt: skip
    return [sys.executable, "-m", "noisycorr", *words]


def test_killed_anywhere_and_continued_is_bitwise_the_same(work: Path, tmp_path: Path):
    assert main(command(work, tmp_path / "alone")[3:]) == 0
    chance, kills = random.Random(2), 0
    words = command(work, tmp_path / "killed")
    for _ in range(2):
        process = subprocess.Popen(words, stderr=subprocess.DEVNULL)
        target = chance.randint(1, 8) + kills * 8
        while process.poll() is None and _steps(tmp_path / "killed") < target:
            time.sleep(0.001)
        time.sleep(chance.uniform(0, 0.01))
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            kills += 1
        process.wait()
    assert kills, "it was killed at work"
    assert main(words[3:]) == 0
    expected, found = files(tmp_path / "alone"), files(tmp_path / "killed")
    for name in ("config.yaml", "report.html"):
        expected[name] = expected[name].replace(b"/alone", b"/killed")
    assert found.keys() == expected.keys()
    assert [name for name in found if found[name] != expected[name]] == []
    lines = [json.loads(line) for line in (tmp_path / "killed" / "metrics.jsonl").read_text().splitlines()]
    assert sorted(line["epoch"] for line in lines if line["event"] == "epoch") == [0, 1, 2]


def _steps(folder: Path) -> int:
    return max((int(p.name.split("-")[1]) for p in (folder / "checkpoints").glob("step-*")), default=0)


def test_two_processes_train_what_one_does(work: Path, tmp_path: Path):
    words = command(work, tmp_path / "both")[3:]
    words += ["--model_precision", "fp64"]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    done = subprocess.run([*torchrun, "-m", "noisycorr", *words], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    words[words.index(str(tmp_path / "both"))] = str(tmp_path / "one")
    assert main(words) == 0
    one, both = (load_file(tmp_path / name / "model.safetensors") for name in ("one", "both"))
    assert max(float(np.abs(one[name] - both[name]).max()) for name in one) < 1e-10
    trusts = [pq.read_table(tmp_path / name / "trust.parquet").column("p_clean").to_numpy() for name in ("one", "both")]
    np.testing.assert_allclose(trusts[0], trusts[1], atol=1e-6)
