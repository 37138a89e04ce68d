"""Token grids of image towers, frozen and tuned, and texts chosen by a scorer, from pictures to files."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from caption_data import open_small, world
from pictures import write_pictures
from tiny_checkpoints import pictures, write_clip, write_open_clip, write_siglip

from noisycorr.__main__ import main
from noisycorr.caption.bench import _Scored, make_noisy, teaching
from noisycorr.caption.bench_noise import JUNK, put_noise
from noisycorr.caption.captioner.align import Aligner
from noisycorr.caption.captioner.choice import Design
from noisycorr.caption.captioner.decoder import CrossDecoder
from noisycorr.caption.captioner.network import CaptionNetwork
from noisycorr.caption.captioner.stored import load_captioner
from noisycorr.caption.captioner.tower import Some, grid_file, make_tower
from noisycorr.caption.recaption.ledger import read_ledger
from noisycorr.clean.bench_sets import BenchSet
from noisycorr.clean.corpus import Corpus
from noisycorr.clean.sources import encoder_identity
from noisycorr.models.encoders import load_encoder
from noisycorr.runtime import dist
from noisycorr.runtime.errors import UsageError
from noisycorr.runtime.folder import Run, read_json, write_json

CPU = torch.device("cpu")
SIZE = ["--width", "24", "--layers", "1", "--attention_heads", "2", "--vocabulary", "360", "--prefix_tokens", "2",
        "--longest", "12", "--batch_size", "16", "--lr", "0.01", "--levels", "3", "--level_least", "10",
        "--val_most", "12", "-q"]  # fmt: skip


# Towers


@pytest.mark.parametrize("name", ["open_clip", "clip", "siglip", "tiny"])
def test_tokens_are_those_of_the_library(tmp_path: Path, name: str):
    spec = "tiny"
    if name == "open_clip":
        write_open_clip(tmp_path)
        spec = f"open_clip:local-dir:{tmp_path / 'local'}"
    elif name != "tiny":
        (write_clip if name == "clip" else write_siglip)(tmp_path)
        spec = f"hf_clip:{tmp_path}"
    encoder = load_encoder(spec, device=CPU)
    pixels = torch.stack([encoder.preprocess(picture) for picture in pictures(3)])
    with torch.no_grad():
        small, large = (make_tower(encoder, side)(pixels) for side in (1, 2))
    assert small.shape[:2] == (3, 2) and large.shape[:2] == (3, 5)
    if name != "tiny":  # whose map of 7 x 7 is not cut into four equal parts
        torch.testing.assert_close(large[:, 1:].mean(1), small[:, 1])
    with torch.no_grad():
        if name == "open_clip":
            visual = encoder.model.visual  # type: ignore[attr-defined]
            torch.testing.assert_close(large[:, 0] @ visual.proj, encoder.model.encode_image(pixels))  # type: ignore[attr-defined]
        elif name == "clip":
            vision = encoder.model.vision_model  # type: ignore[attr-defined]
            found = vision(pixel_values=pixels)
            torch.testing.assert_close(large[:, 0], found.pooler_output)
            torch.testing.assert_close(large[:, 1:], vision.post_layernorm(found.last_hidden_state[:, 1:]))
        else:
            torch.testing.assert_close(small[:, 0], small[:, 1])  # the mean stands for a class token
        if name == "siglip":
            vision = encoder.model.vision_model  # type: ignore[attr-defined]
            assert vision.post_layernorm.weight.std() > 0.1, "a norm that does nothing would not be missed"
            torch.testing.assert_close(large[:, 1:], vision(pixel_values=pixels).last_hidden_state)


def test_a_tuned_tower_is_a_copy_with_gradients():
    encoder = load_encoder("tiny", device=CPU)
    pixels = torch.stack([encoder.preprocess(picture) for picture in pictures(2)])
    tower = make_tower(encoder, 2, tuned=True).train()
    assert not tower.training, "statistics of a batch would differ between one process and two"
    tower(pixels).sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in tower.parameters())
    assert not any(p.requires_grad for p in encoder.convolution.parameters())  # type: ignore[attr-defined]


class Elsewhere(torch.nn.Module):
    """A tower on a device that shows where pixels come from."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1, device="meta"))

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        raise RuntimeError(f"pixels on {pixels.device}")


def test_pixels_go_where_the_tower_is():
    material = world(20)
    pixels = np.zeros((20, 3, 4, 4), np.float32)
    with pytest.raises(RuntimeError, match="pixels on meta"):
        open_small(dataclasses.replace(material, image=pixels, tower=Elsewhere()))


@pytest.mark.parametrize("cells", [1, 5])
def test_a_process_without_rows_goes_on(cells: int):
    network = CaptionNetwork(CrossDecoder(20, width=8, layers=1, heads=2, longest=6, dropout=0.0, norm_first=True),
                             image_dim=6, cells=cells, prefix_tokens=2, levels=3)  # fmt: skip
    none = torch.zeros((0, 6) if cells == 1 else (0, 5, 6))
    memory = network.memory(none, torch.zeros(0, dtype=torch.int64))
    assert memory.shape == (0, (2 if cells == 1 else 5) + 1, 8)
    network.losses(memory, torch.zeros((0, 6), dtype=torch.int64), torch.zeros(0, dtype=torch.int64)).sum().backward()


class Counted:
    """Pixels that remember how many were asked for, in all and at once."""

    def __init__(self, pixels: np.ndarray) -> None:
        self.pixels, self.shape, self.most, self.rows = pixels, pixels.shape, 0, 0

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        self.most, self.rows = max(self.most, len(rows)), self.rows + len(rows)
        return self.pixels[rows]


def test_mean_and_spread_of_pixels_are_taken_in_blocks():
    encoder = load_encoder("tiny", device=CPU)
    tower = make_tower(encoder, 2, tuned=True)
    size = encoder.preprocess(pictures(1)[0]).shape
    pixels = Counted(np.random.default_rng(0).integers(0, 256, (150, *size)).astype(np.float32))
    with torch.no_grad():
        tokens = tower(torch.from_numpy(pixels.pixels)).double().flatten(0, 1)
    network = CaptionNetwork(CrossDecoder(20, width=8, layers=1, heads=2, longest=6, dropout=0.0, norm_first=True),
                             image_dim=tokens.shape[1], cells=5, prefix_tokens=2, levels=0, tower=tower)  # fmt: skip
    network.standardise(pixels)
    assert pixels.most <= 32
    torch.testing.assert_close(network.image_mean.double(), tokens.mean(0), rtol=1e-6, atol=1e-6)
    std = tokens.std(0, correction=0)
    torch.testing.assert_close(network.image_std.double(), torch.where(std < 1e-6 * std.max(), 1.0, std))


def test_tokens_are_not_made_again_after_a_kill(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("noisycorr.caption.captioner.tower.BATCH", 2)
    monkeypatch.setattr("noisycorr.caption.captioner.tower.PART", 4, raising=False)
    encoder = load_encoder("tiny", device=CPU)
    tower = make_tower(encoder, 2)
    rng, size = np.random.default_rng(0), encoder.preprocess(pictures(1)[0]).shape
    shown = rng.integers(0, 256, (21, *size)).astype(np.float32)
    shown[5] = 0
    asked: list[int] = []

    class Dying(Counted):
        left = 15

        def __getitem__(self, rows: np.ndarray) -> np.ndarray:
            self.left -= len(rows)
            if self.left < 0:
                raise KeyboardInterrupt
            asked.extend(rows.tolist())
            return super().__getitem__(rows)

    told: list[str] = []
    with pytest.raises(KeyboardInterrupt):
        grid_file(tmp_path, Dying(shown), tower, "a", told.append)  # type: ignore[arg-type]
    assert asked == list(range(14)) and not (tmp_path / "tokens.npy").exists()
    found = grid_file(tmp_path, (whole := Dying(shown)), tower, "a", told.append)  # type: ignore[arg-type]
    assert asked[14:] == list(range(12, 21)), "three parts of four were kept"
    with torch.no_grad():
        right = tower(torch.from_numpy(shown)).numpy().astype(np.float16)
    right[5] = 0
    np.testing.assert_allclose(found, right, rtol=1e-3)
    assert found.dtype == np.float16 and "5 tokens of width" in told[0] and "for 21 pictures" in told[0]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["tokens.json", "tokens.npy"]
    whole.left = 0
    np.testing.assert_array_equal(grid_file(tmp_path, whole, tower, "a", told.append), found)  # type: ignore[arg-type]
    with pytest.raises(KeyboardInterrupt):
        grid_file(tmp_path, whole, tower, "b", told.append)  # type: ignore[arg-type]


def test_processes_share_the_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("noisycorr.caption.captioner.tower.PART", 32, raising=False)
    tower = make_tower(load_encoder("tiny", device=CPU), 1)
    shown = np.random.default_rng(1).integers(0, 256, (100, 3, 32, 32)).astype(np.float32)
    alone = np.array(grid_file(tmp_path / "alone", Counted(shown), tower, "a", print))  # type: ignore[arg-type]
    second: list[int] = []

    def other() -> None:  # what the other process does until the main one comes to its first wait
        if not second:
            second.append(1)
            monkeypatch.setattr(dist, "my_share", lambda items: list(items)[1::2])
            monkeypatch.setattr(dist, "is_main", lambda: False)
            monkeypatch.setattr(dist, "wait", lambda: None)
            with pytest.raises(FileNotFoundError):  # it would wait for the main one
                grid_file(tmp_path / "both", theirs, tower, "a", print)  # type: ignore[arg-type]
            monkeypatch.setattr(dist, "is_main", lambda: True)

    mine, theirs = Counted(shown), Counted(shown)
    monkeypatch.setattr(dist, "my_share", lambda items: list(items)[::2])
    monkeypatch.setattr(dist, "wait", other)
    both = grid_file(tmp_path / "both", mine, tower, "a", print)  # type: ignore[arg-type]
    np.testing.assert_array_equal(both, alone)
    assert (mine.rows, theirs.rows) == (64, 36)


def test_encoders_without_a_grid_and_wrong_sizes_are_refused():
    class Plain:
        name = "plain"

    with pytest.raises(UsageError, match="plain shows no grid of its pictures: use `image_grid` 0"):
        make_tower(Plain(), 2)
    with pytest.raises(UsageError, match="`tower` tuned needs the tower's tokens"):
        Design(tower="tuned")
    with pytest.raises(UsageError, match="expected 0 to 32"):
        Design(image_grid=33)


def test_some_rows_of_something_large():
    whole = np.arange(24).reshape(8, 3)
    some = Some(Some(whole, np.array([7, 1, 2, 5])), np.array([2, 0]))
    assert some.shape == (2, 3) and len(some) == 2
    assert some[np.array([1])].tolist() == [whole[7].tolist()] and some[:].tolist() == whole[[2, 7]].tolist()


# From pictures to files


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cleaned run of 100 pictures, one of which is missing, and a captioner on a grid of tokens."""
    folder = tmp_path_factory.mktemp("towers")
    source = write_pictures(folder / "source", 100)
    next(path for path in sorted(folder.glob("source*/**/*")) if path.suffix in (".png", ".jpg")).write_bytes(b"no")
    assert main(["clean", str(source), "--output_folder", str(folder / "run"), "--clip_model", "tiny",
                 "--no_near_duplicates", "--number_sample_per_shard", "60", "-q"]) == 0  # fmt: skip
    assert main(train(folder, "grid", "--image_grid", "2", "--epochs", "6")) == 0
    return folder


def train(folder: Path, name: str, *more: str) -> list[str]:
    return ["caption", "train", str(folder / "run"), "--output_folder", str(folder / name), *SIZE, *more]


def generate(folder: Path, model: str, name: str, *more: str) -> list[str]:
    return ["caption", "generate", str(folder / "run"), "--model", str(folder / model), "--output_folder",
            str(folder / name), "-q", *more]  # fmt: skip


def written(folder: Path, name: str) -> list[dict[str, object]]:
    return [row for path in sorted((folder / name / "captions").iterdir()) for row in pq.read_table(path).to_pylist()]


def test_tokens_of_a_frozen_tower_are_kept_in_half_precision(place: Path):
    folder = place / "grid" / "pictures" / "train"
    tokens, told = np.load(folder / "tokens.npy", mmap_mode="r"), json.loads((folder / "tokens.json").read_text())
    assert tokens.dtype == np.float16 and tokens.shape[:2] == (100, 5)
    assert told["shape"] == list(tokens.shape) and told["bytes"] == (folder / "tokens.npy").stat().st_size
    missing = ~tokens.any((1, 2))
    assert missing.sum() == 1, "the picture that cannot be decoded"
    trained = load_captioner(place / "grid")
    assert trained.network.cells == 5 and trained.network.tower is None
    assert main(generate(place, "grid", "grid-texts", "--samples", "0", "--each_level", "false")) == 0
    rows = written(place, "grid-texts")
    assert len(rows) == 100 and [row["text"] is None for row in rows] == missing.tolist()
    assert [row["text"] for row in rows if row["text"] is not None] == trained.write(tokens[~missing]).texts


def test_recaption_reads_tokens_too(place: Path, tmp_path: Path):
    shutil.copytree(place / "run", tmp_path / "run")
    words = [
        "recaption",
        "--output_folder",
        str(tmp_path / "run"),
        "--model",
        str(place / "grid"),
        "--below",
        "1",
        "-q",
    ]
    assert main(words) == 0
    assert (tmp_path / "run" / "pictures" / "recaption" / "tokens.npy").is_file()
    assert {row["text_level"] for row in read_ledger(Run(tmp_path / "run")).to_pylist()} <= {
        None, load_captioner(place / "grid").level}  # fmt: skip


def test_a_tuned_tower_learns_is_stored_and_continued(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    words = train(place, "tuned", "--image_grid", "2", "--tower", "tuned", "--tower_lr", "0.01", "--epochs", "3")
    assert main(words) == 0
    before = (place / "tuned" / "captioner.safetensors").read_bytes()
    trained = load_captioner(place / "tuned")
    assert trained.network.tower is not None
    weight = load_encoder("tiny", device=CPU).convolution.weight  # type: ignore[attr-defined]
    assert not torch.allclose(trained.network.tower.inner.weight, weight), "the tower learned"
    for name in ("captioner.json", "captioner.safetensors", "stages/caption.json"):
        (place / "tuned" / name).unlink()  # as if killed while it chose a level
    steps = sorted((place / "tuned" / "checkpoints").iterdir())
    shutil.rmtree(steps[-1])
    assert main(words) == 0 and (place / "tuned" / "captioner.safetensors").read_bytes() == before
    assert main(generate(place, "tuned", "tuned-texts")) == 0
    assert sum(row["text"] is not None for row in written(place, "tuned-texts")) == 99
    words[words.index("--tower_lr") + 1] = "0.02"
    assert main(words) == 2 and "holds another training" in capsys.readouterr().err


# The benchmark


def test_the_benchmark_goes_on_where_it_was(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    small = [*SIZE[: SIZE.index("--levels")], "--epochs", "2", "--val_limit", "8", "--test_limit", "0"]
    words = ["bench", "caption", "--output_folder", str(tmp_path), "--sets", f"made={place / 'run'}", "--clip_model",
             "tiny", "--ratios", "0.3", "--seeds", "1", *small]  # fmt: skip
    noc = "noc+levels=2+level_least=5"
    assert main([*words, "--methods", noc]) == 0
    scores = {path: path.stat().st_mtime_ns for path in (tmp_path / "scores").iterdir()}
    assert len(scores) == 1
    assert main([*words, "--methods", f"{noc},default,choice"]) == 0
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "scores").iterdir()} == scores
    rows = json.loads((tmp_path / "bench.json").read_text())["rows"]
    assert [row["method"].split("+")[0] for row in rows] == ["noc", "default", "choice"]
    assert len(list((tmp_path / "cells").iterdir())) == 3 and "control_alignment" in rows[0]
    assert "poor" not in capsys.readouterr().out
    words[words.index("--ratios") + 1] = "0.6"
    words += ["--noises", "concept", "--methods", "vanilla"]
    assert main(words) == 2 and "validation pairs beyond --val_limit" in capsys.readouterr().err
    words[words.index("--sets") + 1] = "made=" + "|".join([str(place / "run")] * 3)
    assert main(words) == 0
    row = json.loads((tmp_path / "bench.json").read_text())["rows"][0]
    assert row["poor"] > 0 and 0 <= row["poor F1"] <= 100 and "**poor CIDEr-D**" in capsys.readouterr().out


def test_the_benchmark_encodes_texts_as_the_set_was_embedded(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def asked(sets: str) -> int:
        small = [*SIZE[: SIZE.index("--levels")], "--epochs", "1", "--val_limit", "4", "--test_limit", "4"]
        return main(["bench", "caption", "--output_folder", str(tmp_path / "out"), "--sets", f"made={sets}",
                     "--ratios", "0.3", "--seeds", "0", "--methods", "vanilla", *small])  # fmt: skip

    loaded: list[str] = []
    real = load_encoder
    monkeypatch.setattr(
        "noisycorr.clean.sources.load_encoder", lambda spec, **more: (loaded.append(spec), real(spec, **more))[1]
    )
    assert asked(str(place / "run")) == 0 and set(loaded) == {"tiny"}, "not --clip_model, which is for other sources"
    shutil.copytree(place / "run", tmp_path / "other")
    stage = tmp_path / "other" / "stages" / "embed.json"
    body = read_json(stage)
    body["facts"]["encoder"] = "else@1"
    write_json(stage, body)
    name = encoder_identity(Run(place / "run"))
    assert asked("|".join([str(place / "run"), str(place / "run"), str(tmp_path / "other")])) == 2
    assert f"were embedded by else@1 and by {name}: use one encoder" in capsys.readouterr().err
    body["facts"]["encoder"] = "precomputed"
    write_json(stage, body)
    assert asked(str(tmp_path / "other")) == 2
    assert "was made of embeddings without a model" in capsys.readouterr().err


def test_scores_of_concepts_depend_on_the_validation_pairs(tmp_path: Path):
    rng = np.random.default_rng(0)

    def corpus(seed: int) -> Corpus:
        own, row = np.random.default_rng(seed), np.arange(120)
        text = (6 * np.eye(4, 12)[row % 4] + own.normal(size=(120, 12))).astype(np.float32)
        image = (text + 0.1 * own.normal(size=(120, 12))).astype(np.float32)
        return Corpus(keys=[str(i) for i in row], image=image, text=text, usable=np.ones(120, bool),
                      kept=np.ones(120, bool), shown=row, image_group=row, text_group=row,
                      identity={"embed": seed})  # fmt: skip

    texts: list[str | None] = [f"number {i}" for i in range(120)]
    for noise, files in (("concept", 2), ("random", 3)):
        for valid in (1, 2, 2):
            data = BenchSet(name="made", train=corpus(0), texts=texts, valid=corpus(valid), test=corpus(3))
            make_noisy(data, noise, 0.3, 0, lambda some: rng.normal(size=(len(some), 12)), tmp_path, 40)
        assert len(list((tmp_path / "scores").iterdir())) == files


def test_noise_in_whole_concepts_swaps_texts_within_them():
    rng = np.random.default_rng(0)
    kinds = np.repeat(np.arange(6), 30)
    text = (8 * np.eye(6, 12)[kinds] + 0.3 * rng.normal(size=(180, 12))).astype(np.float32)
    row = np.arange(180)
    corpus = Corpus(keys=[str(i) for i in row], image=text, text=text, usable=np.ones(180, bool),
                    kept=np.ones(180, bool), shown=row, image_group=row, text_group=row)  # fmt: skip
    texts: list[str | None] = [f"number {i} kind {k}" for i, k in enumerate(kinds.tolist())]
    data = BenchSet(name="made", train=corpus, texts=texts, valid=corpus, test=corpus)
    noisy = put_noise(data, "concept", 0.3, 0, lambda some: np.ones((len(some), 12), np.float32))
    assert 0.3 <= noisy.wrong.mean() < 0.6 and noisy.poor is not None
    np.testing.assert_array_equal(noisy.poor, noisy.wrong, "the pictures of these concepts are also told in the test")
    for i, (found, given) in enumerate(zip(noisy.texts, texts)):
        assert (found != given) == noisy.wrong[i] and kinds[texts.index(found)] == kinds[i]
        np.testing.assert_array_equal(noisy.corpus.text[i], text[texts.index(found)])
    assert sorted(map(str, noisy.texts)) == sorted(map(str, texts)), "no text is lost"
    junk = put_noise(data, "junk", 0.5, 0, lambda some: np.ones((len(some), 12), np.float32))
    assert junk.wrong.sum() == 90 and {junk.texts[i] for i in np.flatnonzero(junk.wrong)} <= set(JUNK)


# Chosen by the scorer


def test_each_level_and_samples_on_the_command_line(place: Path):
    trained = load_captioner(place / "grid")
    assert trained.levels is not None
    assert main(generate(place, "grid", "each", "--level", "each", "--search", "greedy")) == 0
    alone = []
    for level in trained.levels.trained():
        assert (
            main(
                generate(place, "grid", f"level{level}", "--level", str(level), "--search", "greedy", "--samples", "0")
            )
            == 0
        )
        alone.append(written(place, f"level{level}"))
    for row, rows in zip(written(place, "each"), zip(*alone)):
        if row["text"] is not None:
            best = max(rows, key=lambda one: one["score"])
            assert (row["text"], row["level"]) == (best["text"], best["level"])
            assert row["score"] == pytest.approx(best["score"], abs=1e-6)
    assert main(generate(place, "grid", "one", "--search", "nucleus", "--samples", "0", "--each_level", "false")) == 0
    assert main(generate(place, "grid", "many", "--search", "nucleus", "--align_weight", "1e6")) == 0
    one, many = ([row["score"] for row in written(place, name) if row["text"] is not None] for name in ("one", "many"))
    assert np.mean(many) > np.mean(one)  # type: ignore[arg-type]
    again = written(place, "many")
    shutil.rmtree(place / "many")
    assert main(generate(place, "grid", "many", "--search", "nucleus", "--align_weight", "1e6")) == 0
    assert str(written(place, "many")) == str(again)


def test_the_default_does_not_learn_from_stock_phrases():
    row, rng = np.arange(60), np.random.default_rng(0)
    image = rng.normal(size=(60, 8)).astype(np.float32)
    corpus = Corpus(keys=[str(i) for i in row], image=image, text=image, usable=np.ones(60, bool),
                    kept=np.ones(60, bool), shown=row, image_group=row, text_group=row)  # fmt: skip
    stock = row % 3 == 0
    texts: list[str | None] = ["best price online" if bad else f"a thing of kind {i}" for i, bad in enumerate(stock)]
    given = _Scored(corpus=corpus, texts=texts, wrong=stock, columns={}, aligner=Aligner(), taught={})
    np.testing.assert_array_equal(teaching(given, "default"), ~stock)
    assert teaching(given, "vanilla").all() and not (teaching(given, "oracle") & stock).any()
