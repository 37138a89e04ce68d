"""`noisycorr evaluate` of trained models: folds, zero-shot classification, other data; and their page again."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from pictures import COLOURS, write_pictures
from reference.recall_reference import matrix_blocks
from region_data import write_regions

from noisycorr.__main__ import main
from noisycorr.models.training.heads import Network, StoredTowers
from noisycorr.retrieval.evaluate import read_classes
from noisycorr.retrieval.plan import Evaluation
from noisycorr.retrieval.scoreboard import classification, retrieval
from noisycorr.runtime.errors import UsageError
from noisycorr.stats.recall import classification_metrics

N = 48
FAST = ["--epochs", "2", "--batch_size", "12", "--warmup", "2", "-q", "--strategy", "plain"]
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures with their colour in a column, heads on features of the tiny encoder, and names of classes."""
    place = tmp_path_factory.mktemp("evaluate")
    csv = write_pictures(place / "source", N)
    lines = csv.read_text().splitlines()
    kinds = list(COLOURS)
    rows = [f"{line},{next(name for name in kinds if name in line)}" for line in lines[1:]]
    csv.write_text("\n".join([lines[0] + ",colour", *rows]) + "\n")
    (place / "classes.txt").write_text("\n".join(f"{name}\ta {name} square\tsomething {name}" for name in kinds) + "\n")
    assert main(["clean", str(csv), "--output_folder", str(place / "run"), "--clip_model", "tiny", "-q"]) == 0
    assert main(["train", str(place / "run"), "--output_folder", str(place / "model"), *FAST, "--test_fraction", "0.4",
                 "--strategy.peer", "twin", "--clip_model", "tiny"]) == 0  # fmt: skip
    return place


def said(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one sentence of bad usage."""
    capsys.readouterr()
    assert main(words) == 2
    return capsys.readouterr().err.strip()


# ---- numbers


@pytest.mark.parametrize("seed", range(8))
def test_classification_equals_the_loop(seed: int):
    rng = np.random.default_rng(seed)
    n, c = int(rng.integers(1, 30)), int(rng.integers(2, 9))
    sims = rng.integers(0, 4, (n, c)) / 7.0  # many ties
    sims[rng.random((n, c)) < 0.05] = np.nan
    label = rng.integers(0, c, n)
    ranks = []
    for i in range(n):
        rank = 1
        for j in range(c):
            if j != label[i] and not sims[i, j] < sims[i, label[i]] - 1e-9:
                rank += 1
        ranks.append(rank)
    got = classification_metrics(matrix_blocks(sims), label, c, chunk=int(rng.integers(1, 12)))
    first = np.array(ranks) == 1
    assert got["acc1"] == pytest.approx(100 * first.mean())
    assert got["acc5"] == pytest.approx(100 * (np.array(ranks) <= 5).mean())
    means = [first[label == k].mean() for k in range(c) if (label == k).any()]
    assert got["mean_per_class_recall"] == pytest.approx(100 * np.mean(means))


def test_a_constant_classifier_is_never_right():
    assert classification_metrics(matrix_blocks(np.ones((6, 3))), np.zeros(6, int), 3)["acc1"] == 0
    assert np.isnan(classification_metrics(matrix_blocks(np.ones((0, 3))), np.zeros(0, int), 3)["acc1"])
    with pytest.raises(ValueError, match="classes 0 to 2"):
        classification_metrics(matrix_blocks(np.ones((2, 3))), np.array([0, 3]), 3)


def networks() -> tuple[list[Network], StoredTowers]:
    """Two networks with random weights, and 30 pairs of 15 images."""
    rng = np.random.default_rng(0)
    image, text = rng.normal(size=(15, 6)), rng.normal(size=(30, 5))
    towers = StoredTowers(image[np.arange(30) // 2], text, device=CPU, dtype=torch.float64)
    torch.manual_seed(0)
    return [Network(6, 5, dim=4, hidden=0).double() for _ in range(2)], towers


def test_folds_are_means_over_consecutive_images():
    both, towers = networks()
    rows, shown = np.arange(30), np.arange(30) // 2
    whole = retrieval(both, towers, rows, shown, folds=3)
    parts = [retrieval(both, towers, rows[at : at + 10], shown[at : at + 10]) for at in (0, 10, 20)]
    for name, value in whole["folds"]["ensemble"].items():  # type: ignore[index]
        assert value == pytest.approx(np.mean([part["ensemble"][name] for part in parts]))  # type: ignore[index]
    assert len(whole["folds"]["singles"]) == 2 and whole["folds"]["count"] == 3  # type: ignore[index]
    assert {k: v for k, v in whole.items() if k != "folds"} == retrieval(both, towers, rows, shown)


def test_classes_of_several_texts_have_their_mean_and_networks_are_averaged():
    both, towers = networks()
    texts = np.random.default_rng(1).normal(size=(5, 5))
    class_towers = StoredTowers(np.zeros((5, 1)), texts, device=CPU, dtype=torch.float64)
    rows, label = np.arange(0, 30, 2), np.arange(15) % 3
    found = classification(both, towers, rows, label, class_towers, [2, 1, 2])
    total = np.zeros((15, 3))
    for number, network in enumerate(both):
        with torch.no_grad():
            image = network.eval().image(towers.image(torch.from_numpy(rows)))
            text = network.text(torch.from_numpy(texts))
        means = torch.stack([text[:2].mean(0), text[2], text[3:].mean(0)])
        sims = (image @ torch.nn.functional.normalize(means, dim=1).T).numpy()
        assert found["singles"][number] == classification_metrics(matrix_blocks(sims), label, 3)  # type: ignore[index]
        total += sims / 2
    assert found["ensemble"] == classification_metrics(matrix_blocks(total), label, 3)
    assert (found["images"], found["classes"]) == (15, 3)


# ---- the command


def test_everything_at_once(work: Path, capsys: pytest.CaptureFixture[str]):
    words = ["evaluate", str(work / "model"), "--folds", "2", "--classes",
             str(work / "classes.txt"), "--label_col", "colour"]  # fmt: skip
    assert main(words) == 0
    captured = capsys.readouterr()
    found = json.loads(captured.out)
    assert found["test"]["folds"]["count"] == 2 and len(found["test"]["folds"]["singles"]) == 2
    assert found["test"]["folds"]["ensemble"]["rSum"] >= found["test"]["ensemble"]["rSum"], "half as many candidates"
    classes = found["classification"]
    assert classes["classes"] == 4 and classes["images"] == found["test"]["images"] and len(classes["singles"]) == 2
    assert 0 <= classes["ensemble"]["acc1"] <= 100 == classes["ensemble"]["acc5"]
    assert "mean of 2 folds" in captured.err and "in 4 classes, accuracy" in captured.err
    page = (work / "model" / "report.html").read_text()
    assert "Mean of 2 parts of the test images" in page and "4 classes" in page
    assert json.loads((work / "model" / "evaluation.json").read_text()) == found


def test_other_data_by_line_numbers_and_by_text(work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    csv = write_pictures(tmp_path / "numbers", 12, seed=3)
    lines = csv.read_text().splitlines()
    kinds = list(COLOURS)
    names = [next(name for name in kinds if name in line) for line in lines[1:]]
    body = [f"{line},{kinds.index(name)},{name}" for line, name in zip(lines[1:], names)]
    csv.write_text("\n".join([lines[0] + ",label,word", *body]) + "\n")
    words = ["evaluate", str(work / "model"), "--classes", str(work / "classes.txt"), "--test_data",
             str(csv)]  # fmt: skip
    assert main(words) == 0
    by_number = json.loads(capsys.readouterr().out)
    assert by_number["classification"]["images"] == 12 and by_number["test_data"] == str(csv)
    assert main([*words, "--caption_col", "word", "--label_col", "none"]) == 0
    assert json.loads(capsys.readouterr().out)["classification"] == by_number["classification"]


def test_a_fine_tuned_encoder_classifies_by_its_own_texts(
    work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    model = tmp_path / "m"
    words = ["train", str(work / "run"), "--output_folder", str(model), *FAST, "--clip_model", "scratch:cnn",
             "--train_part", "whole", "--workers", "0", "--test_fraction", "0.4"]  # fmt: skip
    assert main(words) == 0
    capsys.readouterr()
    (tmp_path / "names.txt").write_text("\n".join(COLOURS) + "\n")
    words = ["evaluate", str(model), "--classes", str(tmp_path / "names.txt"), "--label_col", "colour"]
    assert main([*words, "--template", "a {} square"]) == 0
    assert json.loads(capsys.readouterr().out)["classification"]["images"] > 10


def test_coco_regions_in_folds_and_with_the_words_of_the_training(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    folder, model = write_regions(tmp_path / "x", per_image=2), tmp_path / "m"
    for name in ("ims.npy", "caps.txt"):
        (folder / f"testall_{name}").write_bytes((folder / f"train_{name}").read_bytes())
    words = ["--word_dim", "12", "--sim_dim", "8", "--embed_dim", "12", "--batch_size", "10", "--warmup", "2", "-q"]
    assert main(["train", str(folder), "--output_folder", str(model), "--region", "gpo", "--epochs", "5", *words]) == 0
    capsys.readouterr()
    assert main(["evaluate", str(model), "--folds", "5"]) == 0
    found = json.loads(capsys.readouterr().out)["test"]
    assert found["images"] == 40 and found["pairs"] == 80 and found["folds"]["count"] == 5
    other = write_regions(tmp_path / "y", per_image=2)
    (other / "train_caps.txt").write_text("nothing of it\n" * 80)
    for name in ("ims.npy", "caps.txt"):
        (other / f"testall_{name}").write_bytes((folder / f"testall_{name}").read_bytes())
    assert main(["evaluate", str(model), "--test_data", str(other)]) == 0
    assert json.loads(capsys.readouterr().out)["test"]["ensemble"] == found["ensemble"]
    words = ["evaluate", str(model), "--classes", "x"]
    assert "needs a model of pictures" in said(words, capsys)


# ---- bad use, and the page


def test_wrong_questions_are_refused(work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    words = ["evaluate", str(work / "model")]
    assert "but there are" in said([*words, "--folds", "500"], capsys)
    assert "is not a file" in said([*words, "--classes", str(tmp_path / "none")], capsys)
    assert "name the column of the class" in said([*words, "--classes", str(work / "classes.txt")], capsys)
    run = ["evaluate", str(work / "run")]
    assert "--folds is for trained models" in said([*run, "--folds", "5"], capsys)
    for values in ({"folds": 0}, {"label_col": "truth_label"}, {"template": "a photo"}):
        with pytest.raises(UsageError):
            Evaluation(**values)  # type: ignore[arg-type]
    (tmp_path / "twice.txt").write_text("one\ntwo\none\n")
    with pytest.raises(UsageError, match="holds 'one' twice"):
        read_classes(tmp_path / "twice.txt", "{}")
    (tmp_path / "one.txt").write_text("\none\n")
    with pytest.raises(UsageError, match="expected at least 2"):
        read_classes(tmp_path / "one.txt", "{}")
    (tmp_path / "good.txt").write_text("a{}b\ntwo\t x \t\ty\n")
    assert read_classes(tmp_path / "good.txt", "the {}") == (["a{}b", "two"], [["the a{}b"], ["x", "y"]])


def test_report_writes_the_page_of_a_training_again(work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    page = work / "model" / "report.html"
    before = page.read_bytes()
    page.unlink()
    assert main(["report", str(work / "model")]) == 0
    assert page.read_bytes() == before and "report: " in capsys.readouterr().err
    unfinished = tmp_path / "m"
    (unfinished / "stages").mkdir(parents=True)
    for name in ("config.yaml", "stages/train_started.json"):
        (unfinished / name).write_bytes((work / "model" / name).read_bytes())
    assert "holds no finished training" in said(["report", str(unfinished)], capsys)
