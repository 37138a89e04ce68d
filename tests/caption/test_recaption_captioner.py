"""`noisycorr recaption --model`: from pictures with wrong texts to a captioner of them, and from it to the ledger."""

from __future__ import annotations

import csv
import dataclasses
import os
import shutil
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from pictures import write_pictures

from noisycorr.__main__ import main
from noisycorr.caption.captioner.stored import load_captioner
from noisycorr.caption.recaption.choice import Recaption
from noisycorr.caption.recaption.ledger import read_ledger
from noisycorr.caption.recaption.stage import RowWriter
from noisycorr.clean.signals.view import take
from noisycorr.data.store import open_features
from noisycorr.models.encoders import encode_texts, load_encoder
from noisycorr.models.training.batches import stream_seed
from noisycorr.runtime.folder import Run, read_json, write_json

N, WRONG = 240, 0.3
SIZE = ["--width", "32", "--layers", "1", "--attention_heads", "2", "--vocabulary", "360", "--prefix_tokens", "2",
        "--longest", "16", "--batch_size", "16", "--lr", "0.01", "--epochs", "16", "--levels", "3",
        "--level_least", "10", "-q"]  # fmt: skip


@dataclass(frozen=True)
class Made:
    """A folder with a cleaned run and a captioner of it; what is true of each picture, and which texts are wrong."""

    folder: Path
    true: list[str]
    wrong: np.ndarray


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """Pictures of which a share has the text of another one."""
    folder = tmp_path_factory.mktemp("captioner")
    source = write_pictures(folder / "source", N)
    rows = list(csv.DictReader(source.open()))
    true = [row["caption"].split(" number")[0] for row in rows]
    texts = [row["caption"] for row in rows]
    moved = np.random.default_rng(0).permutation(N)[: round(WRONG * N)]
    for row, other in zip(moved.tolist(), np.roll(moved, 1).tolist()):
        rows[row]["caption"] = texts[other]
    wrong = np.array([not row["caption"].startswith(said) for row, said in zip(rows, true)])
    with source.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    assert main(["clean", str(source), "--output_folder", str(folder / "run"), "--clip_model", "tiny",
                 "--no_near_duplicates", "--number_sample_per_shard", "100", "-q"]) == 0  # fmt: skip
    assert main(["caption", "train", str(folder / "run"), "--output_folder", str(folder / "model"), *SIZE]) == 0
    return Made(folder, true, wrong)


@pytest.fixture
def run(made: Made, tmp_path: Path) -> Run:
    """A copy of the run."""
    shutil.copytree(made.folder / "run", tmp_path / "run")
    return Run(tmp_path / "run")


def test_wrong_texts_give_way_to_better_ones(made: Made, run: Run, capsys: pytest.CaptureFixture[str]):
    given = [row["text"] for row in read_ledger(run).to_pylist()]
    model = str(made.folder / "model")
    words = ["recaption", "--output_folder", str(run.folder), "--model", model, "-q"]
    assert main(words) == 0
    rows = read_ledger(run).to_pylist()
    assert [row["text"] for row in rows] == given
    asked = [place for place, row in enumerate(rows) if row["text_proposed"] is not None]
    assert all(rows[i]["text_source"].startswith("captioner:") for i in asked)
    best = load_captioner(made.folder / "model")
    image = take(open_features(run, "image"), np.array(asked))
    for place, i in enumerate(asked):  # what was drawn is what is drawn at that level
        seeds = [0, *(stream_seed(0, "sample", number) for number in range(best.decode.samples))]
        ways = [best.write(image[place : place + 1], rows[i]["text_level"], decode, seed=seed, names=[i]).texts[0]
                for seed in seeds for decode in (best.decode, dataclasses.replace(best.decode, search="nucleus"),
                                                 dataclasses.replace(best.decode, search="greedy"))]  # fmt: skip
        assert rows[i]["text_proposed"] in ways
    taken = [i for i in asked if rows[i]["recaption"] == "replace"]
    assert len(taken) >= 10 and made.wrong[taken].mean() > 0.9
    better = [_alike(rows[i]["text_rectified"], made.true[i]) > _alike(rows[i]["text"], made.true[i]) for i in taken]
    assert np.mean(better) > 0.8, "closer to the truth than the wrong one was"
    page = (run.folder / "report.html").read_text(encoding="utf-8")
    assert "New texts" in page and rows[taken[0]]["text_rectified"] in page
    once = [path.read_bytes() for path in sorted((run.folder / "ledger").iterdir())]
    assert main(words) == 0 and [path.read_bytes() for path in sorted((run.folder / "ledger").iterdir())] == once
    wrong = [*words[:-2], str(made.folder / "run"), "-q"]  # a folder, but of no captioner
    assert main(wrong) == 2 and "holds no finished captioner" in capsys.readouterr().err
    assert [path.read_bytes() for path in sorted((run.folder / "ledger").iterdir())] == once, "nothing is taken back"


def test_the_captioner_writes_for_rows_in_any_company(made: Made, run: Run):
    model = made.folder / "model"
    write = RowWriter(load_captioner(model), run, "a", Recaption(disturbance=2.0), None)
    rows = np.array([150, 3, 77])
    alone = load_captioner(model).write(take(open_features(run, "image"), rows)).texts
    assert write(rows) == alone == [write(rows[i : i + 1])[0] for i in range(3)]
    many = np.arange(60)
    shaken = write.disturbed(many, 0)
    assert shaken == write.disturbed(many, 0) != write.undisturbed(many)
    calm = RowWriter(load_captioner(model), run, "a", Recaption(disturbance=0), None)
    assert calm.disturbed(many, 0) == calm.undisturbed(many)
    assert write.level == load_captioner(model).level
    encode = partial(encode_texts, load_encoder("tiny", device=torch.device("cpu")), batch_size=256)
    write = RowWriter(load_captioner(model), run, "a", Recaption(recaption_seed=3), encode)
    texts, levels = write.at_levels(many)
    assert texts == write(many) != load_captioner(model).write(take(open_features(run, "image"), many)).texts
    assert (
        [write.at_levels(many[i : i + 1]) for i in range(20)]
        == [  # type: ignore[attr-defined]
            ([text], [level]) for text, level in zip(texts[:20], levels)
        ]
    )


def test_other_seeds_write_other_texts(made: Made, run: Run, tmp_path: Path):
    words = ["recaption", "--model", str(made.folder / "model"), "-q", "--output_folder"]
    shutil.copytree(run.folder, tmp_path / "fresh")
    first = [*words, str(run.folder)]
    assert main(first) == 0 and main([*first, "--recaption_seed", "1"]) == 0
    assert main([*words, str(tmp_path / "fresh"), "--recaption_seed", "1"]) == 0
    again, fresh = (read_ledger(Run(folder)) for folder in (run.folder, tmp_path / "fresh"))
    for name in ("text_proposed", "text_level"):
        assert again.column(name).to_pylist() == fresh.column(name).to_pylist()
    np.testing.assert_array_equal(again.column("score_text_new"), fresh.column("score_text_new"))


def test_only_what_a_captioner_holds_makes_it_another(made: Made, run: Run, tmp_path: Path):
    shutil.copytree(made.folder / "model", tmp_path / "model")
    words = ["recaption", "--output_folder", str(run.folder), "-q", "--guard_steady", "-1", "--model",
             str(tmp_path / "model")]  # fmt: skip
    assert main(words) == 0
    ledger = {path: path.stat().st_mtime_ns for path in (run.folder / "ledger").iterdir()}
    texts = {path.name for path in (run.folder / "recaption").iterdir()}
    for path in (tmp_path / "model").glob("*.safetensors"):
        os.utime(path, (1, 1))
    assert main(words) == 0 and all(path.stat().st_mtime_ns == time for path, time in ledger.items())
    words[-1] = str(made.folder / "model")
    assert main([*words, "--gain", "0.4"]) == 0, "the same captioner in another folder"
    assert {path.name for path in (run.folder / "recaption").iterdir()} == texts


def test_a_captioner_of_another_encoder_or_unfinished_is_refused(
    made: Made, run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    before = read_ledger(run)
    words = ["recaption", "--output_folder", str(run.folder), "-q", "--model"]
    shutil.copytree(made.folder / "model", tmp_path / "other")
    body = read_json(tmp_path / "other" / "captioner.json")
    write_json(tmp_path / "other" / "captioner.json", body | {"encoder": "other@1"})
    assert main([*words, str(tmp_path / "other")]) == 2
    assert "reads pictures by other@1, but" in capsys.readouterr().err
    (tmp_path / "other" / "captioner.json").unlink()
    assert main([*words, str(tmp_path / "other")]) == 2
    assert "holds no finished captioner" in capsys.readouterr().err
    assert read_ledger(run).equals(before)


def _alike(text: str, true: str) -> int:
    """How many of colour and place agree."""
    return len({"red", "green", "blue", "white", "left", "right", "top"} & set(text.split()) & set(true.split()))
