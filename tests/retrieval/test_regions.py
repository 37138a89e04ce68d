"""Region features: layouts, vocabularies, published noise, bounded memory, and `noisycorr train --region`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from learning import learner as stored
from learning import train_set
from region_data import NOUNS, REGIONS, SIZES, WIDTH, write_regions, write_vocabulary
from safetensors.numpy import load_file

from noisycorr.__main__ import main
from noisycorr.clean.corpus import TRAIN
from noisycorr.data.readers.regions import count_vocabulary, find_tokens, read_regions, read_vocabulary, split_words
from noisycorr.models.training.checkpoint import load_latest, save_checkpoint
from noisycorr.models.training.choice import Train
from noisycorr.models.training.learner import Learner
from noisycorr.models.training.loop import Hooks, fit
from noisycorr.models.training.tune_choice import Regions
from noisycorr.retrieval.fit import make_learner
from noisycorr.retrieval.region_source import read_region_corpus
from noisycorr.retrieval.strategies import load_strategy
from noisycorr.runtime.errors import UsageError

SMALL: dict[str, Any] = {"word_dim": 12, "sim_dim": 8, "region_chunk": 3}
FAST = ["--word_dim", "12", "--sim_dim", "8", "--embed_dim", "12", "--batch_size", "10", "--warmup", "2", "-q"]


def learner(folder: Path, region: str, strategy: str = "plain", **choice: Any) -> Learner:
    """Training on the folder, without the command line."""
    train = Train(**{"epochs": 2, "batch_size": 10, "embed_dim": 12, "warmup": 2, "save_every": 0.0, **choice})
    corpus, towers, _ = read_region_corpus(str(folder), Regions(region=region, **SMALL), train)  # type: ignore[arg-type]
    assert corpus.given_split is not None
    return make_learner(corpus, np.flatnonzero(corpus.given_split == TRAIN), load_strategy(strategy), train, towers)


# ---- files


@pytest.mark.parametrize(("layout", "per_image"), [("txt", 5), ("txt", 1), ("tsv", 1), ("bpe", 1)])
def test_the_layouts_of_the_field(tmp_path: Path, layout: str, per_image: int):
    folder = write_regions(tmp_path / "x", per_image=per_image, layout=layout)
    tokens = find_tokens(folder)
    part = read_regions(folder, "train", tokens)
    assert tokens == ("bpe" if layout == "bpe" else "words")
    assert isinstance(part.images, np.memmap) and part.images.shape == (SIZES["train"], REGIONS, WIDTH)
    assert part.image_of.tolist() == [row // per_image for row in range(SIZES["train"] * per_image)]
    assert (part.ids is not None) == (layout == "bpe") and len(part.texts) == len(part.image_of)
    if layout == "tsv":
        assert part.texts[0].startswith("A ")
    cut = read_regions(folder, "train", tokens, limit=3)
    assert len(cut.images) == 3 and len(cut.texts) == 3 * per_image == len(cut.image_of)


def test_vocabularies(tmp_path: Path):
    given = read_vocabulary(write_vocabulary(tmp_path / "vocab.json"))
    assert given.encode("A dog, and a zebra") == [1, 4, 6, 3, 5, 4, 3, 2]
    assert split_words("It's A dog.") == ["it's", "a", "dog", "."]
    counted = count_vocabulary(["a dog"] * 4 + ["a cat"] * 3)
    assert set(counted.number) == {"<pad>", "<start>", "<end>", "<unk>", "a", "dog"} and counted.number["<pad>"] == 0
    by_ids = count_vocabulary([], [[1, 7], [2]])
    assert by_ids.frame([1, 7]) == [8, 1, 7, 9] and by_ids.size == 11
    with pytest.raises(UsageError, match="outside the vocabulary"):
        given.frame([99])
    (tmp_path / "bad.json").write_text("[]")
    with pytest.raises(UsageError, match="is no vocabulary"):
        read_vocabulary(tmp_path / "bad.json")


def test_files_that_do_not_fit_are_refused(tmp_path: Path):
    folder = write_regions(tmp_path / "x")
    with (folder / "dev_caps.txt").open("a") as file:
        file.write("one more\n")
    with pytest.raises(UsageError, match=r"10 images and dev_caps\.txt 11 captions"):
        read_regions(folder, "dev", "words")
    np.save(folder / "test_ims.npy", np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(UsageError, match="cannot be read as an array"):
        read_regions(folder, "test", "words")
    np.save(folder / "test_ims.npy", np.zeros((12, 3), np.float32))
    with pytest.raises(UsageError, match=r"expected floats \(images, regions, width\)"):
        read_regions(folder, "test", "words")
    ids = write_regions(tmp_path / "y", layout="bpe")
    (ids / "test_caps_bpe.txt").write_text("1,x\n" * 12)
    with pytest.raises(UsageError, match=r"line 1: '1,x' is no list of token ids"):
        read_regions(ids, "test", "bpe")


@pytest.mark.parametrize("unit", ["caption", "image"])
def test_published_noise(tmp_path: Path, unit: str):
    folder = write_regions(tmp_path / "x", per_image=5)
    n = SIZES["train"]
    index = np.arange(n) if unit == "image" else np.arange(5 * n) // 5
    index[:10] = np.roll(index[:10], 5)
    np.save(tmp_path / "noise.npy", index)
    corpus, towers, wrong = read_region_corpus(
        str(folder), Regions(region="gpo", noise_file=str(tmp_path / "noise.npy"), **SMALL), Train()
    )
    whole = 50 if unit == "image" else 10
    assert wrong[:whole].all() and not wrong[whole:].any()
    clean, _, unknown = read_region_corpus(str(folder), Regions(region="gpo", **SMALL), Train())
    assert (unknown == -1).all() and (clean.shown == corpus.shown).all()
    assert corpus.identity != clean.identity and len(towers) == len(corpus.keys)


# ---- networks


@pytest.mark.parametrize("region", ["sgr", "saf", "gpo"])
def test_encoded_sets_do_not_depend_on_padding(tmp_path: Path, region: str):
    one = learner(write_regions(tmp_path / "x"), region, model_precision="fp64")
    network, towers = one.networks[0].eval(), one.data.towers
    rows = torch.arange(8)
    ids, lengths = towers.text(rows)
    image = network.image(towers.image(rows))
    longer = torch.cat([ids, torch.zeros(8, 5, dtype=ids.dtype)], 1)
    sims = [network.similarity(image, network.text((x, lengths))) for x in (ids, longer)]
    torch.testing.assert_close(sims[0], sims[1], rtol=0, atol=1e-12)
    alone = network.similarity(image[2:3], network.text((ids[5:6], lengths[5:6])))
    torch.testing.assert_close(alone[0, 0], sims[0][2, 5], rtol=0, atol=1e-12)


@pytest.mark.parametrize("region", ["sgr", "saf", "gpo"])
def test_a_strategy_sees_unit_rows_and_similarities(tmp_path: Path, region: str):
    one = learner(write_regions(tmp_path / "x"), region)
    enc = one.look(0, torch.arange(10))
    assert enc.image.shape == enc.text.shape == (10, 12) and enc.sims.shape == (10, 10)
    torch.testing.assert_close(enc.image.norm(dim=1), torch.ones(10), rtol=0, atol=1e-5)
    torch.testing.assert_close(enc.text.norm(dim=1), torch.ones(10), rtol=0, atol=1e-5)
    assert region == "gpo" or ((enc.sims > 0) & (enc.sims < 1)).all()


@pytest.mark.parametrize("region", ["sgr", "saf"])
def test_chunks_change_nothing(tmp_path: Path, region: str):
    folder = write_regions(tmp_path / "x")
    states = []
    for chunk in (1, 4, 100):
        one = learner(folder, region, model_precision="fp64", dropout=0.3)
        one.networks[0].compare.chunk = chunk  # type: ignore[union-attr]
        fit(one)
        states.append(one.weights())
    for other in states[1:]:
        for name, value in states[0].items():
            torch.testing.assert_close(other[name], value, rtol=0, atol=1e-9)


@pytest.mark.parametrize("region", ["sgr", "saf", "gpo"])
@pytest.mark.parametrize("stop", [2, 6])
def test_continued_from_any_step_is_bitwise_the_same(tmp_path: Path, region: str, stop: int):
    folder = write_regions(tmp_path / "x")
    choice = {"dropout": 0.2, "strategy": "coteach"}
    alone = learner(folder, region, **choice)
    fit(alone)
    killed, seen = learner(folder, region, save_every=1e-9, **choice), []

    def progress(_: int) -> None:
        seen.append(1)
        if len(seen) == stop:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(killed, Hooks(save=lambda it: save_checkpoint(it, tmp_path / "c"), progress=progress))
    again = learner(folder, region, **choice)
    assert load_latest(again, tmp_path / "c") is not None and again.cursor.steps == stop - 1
    fit(again)
    assert all(torch.equal(value, again.weights()[name]) for name, value in alone.weights().items())


# ---- the command


@pytest.mark.parametrize(("region", "layout"), [("sgr", "txt"), ("saf", "tsv"), ("gpo", "bpe")])
def test_from_a_folder_to_numbers(tmp_path: Path, region: str, layout: str, capsys: pytest.CaptureFixture[str]):
    folder, model = write_regions(tmp_path / "x", layout=layout), tmp_path / "m"
    np.save(tmp_path / "noise.npy", np.concatenate([np.roll(np.arange(10), 1), np.arange(10, SIZES["train"])]))
    words = ["train", str(folder), "--output_folder", str(model), "--region", region, "--epochs", "3",
             "--strategy", "coteach", "--noise_file", str(tmp_path / "noise.npy"), *FAST]  # fmt: skip
    assert main(words) == 0
    split = pq.read_table(model / "split.parquet").column("split").to_pylist()
    assert {name: split.count(name) for name in ("train", "valid", "test")} == {
        "train": 40, "valid": 10, "test": 12}  # fmt: skip
    before = (model / "model.safetensors").read_bytes()
    assert main(words) == 0 and (model / "model.safetensors").read_bytes() == before
    capsys.readouterr()
    assert main(["evaluate", str(model)]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["test"]["pairs"] == SIZES["test"] and found["detection"]["pairs"] == SIZES["train"]
    assert len(load_file(model / "model.safetensors")) > 10
    assert main([*words, "--seed", "1"]) == 2


def test_it_learns(tmp_path: Path):
    folder = write_regions(tmp_path / "x", per_image=2)
    one = learner(folder, "gpo", epochs=12, lr=5e-3)
    fit(one)
    assert one.cursor.history[-1]["loss"][0] < 0.8 * one.cursor.history[0]["loss"][0]
    assert len(NOUNS) == 8


def test_a_restart_forgets_running_statistics_and_keeps_those_of_the_data(tmp_path: Path):
    one = learner(write_regions(tmp_path / "x"), "saf")
    norms = [module for module in one.networks[0].modules() if hasattr(module, "running_mean")]
    for norm in norms:
        norm.running_mean.fill_(5.0)
    one.restart()
    fresh = [module for module in one.networks[0].modules() if hasattr(module, "running_mean")]
    assert len(fresh) == len(norms) > 1 and all((norm.running_mean == 0).all() for norm in fresh)
    heads = stored("plain", train_set(20))
    heads.networks[0].image_mean.fill_(2.0)  # type: ignore[union-attr,operator]
    heads.restart()
    assert (heads.networks[0].image_mean == 2).all()  # type: ignore[union-attr,operator]


@pytest.mark.parametrize("region", ["sgr", "saf"])
def test_sets_learn_with_a_triplet_loss(tmp_path: Path, region: str):
    train = Train(epochs=15, batch_size=10, embed_dim=32, warmup=2, save_every=0.0, lr=5e-3)
    regions = Regions(region=region, word_dim=32, sim_dim=32)  # type: ignore[arg-type]
    corpus, towers, _ = read_region_corpus(str(write_regions(tmp_path / "x", per_image=2)), regions, train)
    assert corpus.given_split is not None
    rows = np.flatnonzero(corpus.given_split == TRAIN)
    one = make_learner(corpus, rows, load_strategy("plain", {"loss": "mean_triplet"}), train, towers)
    fit(one)
    losses = [record["loss"][0] for record in one.cursor.history]
    assert losses[-1] < 0.3 * losses[0], losses
    sims = one.look(0, torch.arange(0, 40, 2)).sims
    assert sims.diag().mean() > sims.mean() + 0.2


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ([], "add --region sgr, saf or gpo"),
        (["--region", "sgr", "--accum_freq", "2"], "--accum_freq does not go with sgr and saf"),
        (["--region", "sgr", "--train_part", "lora"], "leave out --train_part lora"),
        (["--region", "sgr", "--vocab", "none.json"], "--vocab none.json is no vocabulary"),
        (["--region", "sgr", "--noise_file", "none.npy"], "none.npy"),
        (["--region", "sgr", "--text_tokens", "bpe"], "has no train_ims.npy with train_caps_bpe.txt"),
        (["--region", "sgr", "--val_data", "x"], "brings its own dev split"),
        (["--region", "vse"], "expected one of none, sgr, saf, gpo"),
    ],
)
def test_wrong_use_is_one_sentence(tmp_path: Path, words: list[str], told: str, capsys: pytest.CaptureFixture[str]):
    folder = write_regions(tmp_path / "x")
    assert main(["train", str(folder), "--output_folder", str(tmp_path / "m"), *FAST, *words]) == 2
    message = capsys.readouterr().err.strip()
    assert told in message and "\n" not in message
    assert main(["train", str(tmp_path), "--output_folder", str(tmp_path / "n"), "--region", "sgr"]) == 2
    assert "needs a folder with train_ims.npy" in capsys.readouterr().err
