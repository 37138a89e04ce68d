"""Encoders that are fine-tuned: from a csv to a model that open_clip and transformers load; parts, order, resume."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from pictures import write_pictures
from PIL import Image
from tiny_checkpoints import ARCHITECTURE, TEXTS, pictures, write_clip, write_open_clip, write_siglip
from torch import Tensor
from torch.nn import functional
from transformers import AutoModel, AutoProcessor, AutoTokenizer

from noisycorr.__main__ import main
from noisycorr.models.encoders import load_trainable, scratch
from noisycorr.models.encoders.trainable import Trainable
from noisycorr.models.training.checkpoint import load_latest, save_checkpoint
from noisycorr.models.training.choice import Train
from noisycorr.models.training.learner import Learner, TrainSet
from noisycorr.models.training.loop import Hooks, backward, fit
from noisycorr.models.training.pictures import ImageStore, Pictures, PictureTowers, random_box
from noisycorr.models.training.tune_choice import Tune
from noisycorr.models.training.tuned import TunedNetwork, choose_part
from noisycorr.retrieval.strategies import load_strategy
from noisycorr.runtime.errors import UsageError

CPU = torch.device("cpu")
FAST = ["--epochs", "2", "--batch_size", "12", "--warmup", "2", "--lr", "1e-3", "--workers", "0", "-q",
        "--strategy", "plain"]  # fmt: skip
N = 36


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A csv of pictures, a run of `clean` on it, and tiny checkpoints of three families."""
    place = tmp_path_factory.mktemp("tuned")
    csv = write_pictures(place / "source", N)
    assert main(["clean", str(csv), "--output_folder", str(place / "run"), "--clip_model", "tiny", "-q"]) == 0
    write_open_clip(place / "open_clip")
    write_clip(place / "clip")
    write_siglip(place / "siglip")
    return place


def spec(work: Path, family: str) -> str:
    """As a user names it."""
    names = {"open_clip": f"open_clip:local-dir:{work}/open_clip/local", "clip": f"hf_clip:{work}/clip",
             "siglip": f"hf_clip:{work}/siglip",
             "file": f"open_clip:{ARCHITECTURE}@{work}/open_clip/model.safetensors"}  # fmt: skip
    return names[family]


def learner(work: Path, family: str = "open_clip", strategy: str = "plain", *, tune: Tune | None = None,
            **choice: Any) -> Learner:  # fmt: skip
    """Fine-tuning of the pictures, without the command line."""
    train = Train(**{"epochs": 2, "batch_size": 12, "warmup": 2, "lr": 1e-3, "save_every": 0.0, **choice})
    files = sorted((work / "source" / "images").iterdir())
    texts = [line.split(",")[2] for line in (work / "source" / "pairs.csv").read_text().splitlines()[1:]]
    dtype = torch.float64 if train.model_precision == "fp64" else torch.float32
    towers = PictureTowers(
        load_trainable(spec(work, family)), tune or Tune(train_part="whole", workers=0), ImageStore(files=files), texts,
        seed=train.seed, device=CPU, dtype=dtype, keys=[path.name for path in files],
    )  # fmt: skip
    data = TrainSet(towers=towers, rows=np.arange(N), image_group=np.arange(N), text_group=np.arange(N))
    return Learner(data, load_strategy(strategy), train, device=CPU)


def encode(trainable: Trainable, model: Any) -> tuple[Tensor, Tensor]:
    """Unit rows of five pictures and texts."""
    pixels = torch.stack([trainable.encoder.preprocess(picture) for picture in pictures()])
    ids, lengths = map(torch.from_numpy, trainable.tokens(TEXTS))
    with torch.no_grad():
        image, text = trainable.image(model, pixels), trainable.text(model, ids.long(), lengths)
    return functional.normalize(image, dim=-1), functional.normalize(text, dim=-1)


def shaken(network: TunedNetwork, seed: int = 0) -> TunedNetwork:
    """With what is trained changed, as a training would."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.tower.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return network


# ---- encoders


@pytest.mark.parametrize("family", ["open_clip", "file", "clip", "siglip"])
def test_what_is_trained_starts_as_the_frozen_encoder(work: Path, family: str):
    trainable = load_trainable(spec(work, family))
    frozen = trainable.encoder
    image, text = encode(trainable, trainable.fresh().eval())
    torch.testing.assert_close(
        image, frozen.image(torch.stack([frozen.preprocess(p) for p in pictures()])), rtol=0, atol=1e-6
    )
    torch.testing.assert_close(text, frozen.text(frozen.tokenize(TEXTS)), rtol=0, atol=1e-6)


@pytest.mark.parametrize("part", ["whole", "last_blocks", "lora"])
def test_open_clip_loads_what_was_trained(work: Path, tmp_path: Path, part: str):
    network = shaken(TunedNetwork(load_trainable(spec(work, "open_clip")), Tune(train_part=part, last_blocks=1)))
    network.log_temperature.data.fill_(-3.0)
    network.export(tmp_path)
    image, text = encode(network.trainable, network.tower)
    by_folder = open_clip.create_model_and_transforms(f"local-dir:{tmp_path}")
    by_file = open_clip.create_model_and_transforms(
        ARCHITECTURE, pretrained=str(tmp_path / "open_clip_model.safetensors")
    )
    for model, _, preprocess in (by_folder, by_file):
        model.eval()
        assert float(model.logit_scale.detach()) == pytest.approx(3.0, abs=1e-6)
        with torch.no_grad():
            tokens = open_clip.get_tokenizer(ARCHITECTURE)(TEXTS)
            torch.testing.assert_close(model.encode_text(tokens, normalize=True), text, rtol=0, atol=2e-6)
            if model is by_folder[0]:  # the architecture alone does not know this model's mean and deviation
                pixels = torch.stack([preprocess(picture) for picture in pictures()])
                torch.testing.assert_close(model.encode_image(pixels, normalize=True), image, rtol=0, atol=2e-6)
    start, _ = encode(network.trainable, network.trainable.encoder.model)
    assert (start - image).abs().max() > 1e-3


@pytest.mark.parametrize("part", ["whole", "last_blocks", "lora"])
@pytest.mark.parametrize("family", ["clip", "siglip"])
def test_transformers_loads_what_was_trained(work: Path, tmp_path: Path, family: str, part: str):
    network = shaken(TunedNetwork(load_trainable(spec(work, family)), Tune(train_part=part, last_blocks=1)))
    network.export(tmp_path)
    image, text = encode(network.trainable, network.tower)
    model = AutoModel.from_pretrained(tmp_path).eval()
    processor, tokenizer = AutoProcessor.from_pretrained(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    processor = getattr(processor, "image_processor", processor)
    length = model.config.text_config.max_position_embeddings
    tokens = tokenizer([t.lower() for t in TEXTS], padding="max_length", max_length=length, truncation=True,
                       return_tensors="pt")  # fmt: skip
    if family == "siglip":
        tokens.pop("attention_mask", None)
    with torch.no_grad():
        out = model(pixel_values=processor(pictures(), return_tensors="pt")["pixel_values"], **tokens)
    torch.testing.assert_close(out.image_embeds, image, rtol=0, atol=2e-6)
    torch.testing.assert_close(out.text_embeds, text, rtol=0, atol=2e-6)
    assert (
        float(model.logit_scale.detach()) == pytest.approx(-float(network.log_temperature.detach()), abs=1e-5)
        or family == "siglip"
    )


@pytest.mark.parametrize("family", ["open_clip", "clip", "siglip"])
@pytest.mark.parametrize("part", ["last_blocks", "lora"])
def test_only_the_chosen_part_moves(work: Path, family: str, part: str):
    one = learner(work, family, tune=Tune(train_part=part, last_blocks=1, workers=0))
    network = one.networks[0]
    before = {name: value.clone() for name, value in network.state_dict().items()}
    fit(one)
    changed = {name for name, value in network.state_dict().items() if not torch.equal(value, before[name])}
    assert changed and not changed & network.fixed()
    assert set(one.weights()) == {f"0.{name}" for name in before if name not in network.fixed()}
    words = {"lora": ("lora_", "log_temperature"), "last_blocks": ("1.", "proj", "ln", "norm", "head", "log_temp")}
    assert all(any(word in name for word in words[part]) for name in changed)
    for side in ("visual", "vision_model"), ("transformer", "text_model"):
        assert any(name.removeprefix("tower.").startswith(side) for name in changed)


def test_the_model_itself_keeps_its_logit_scale_out_of_it(work: Path):
    model = choose_part(load_trainable(spec(work, "open_clip")).fresh(), Tune(train_part="whole"))
    assert [name for name, p in model.named_parameters() if not p.requires_grad] == ["logit_scale"]


def test_batch_norms_keep_their_statistics():
    class Normed(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = torch.nn.BatchNorm2d(3)

    class Stub:
        temperature = 0.05

        def fresh(self) -> Normed:
            return Normed()

    network = TunedNetwork(Stub(), Tune(train_part="whole")).train()  # type: ignore[arg-type]
    assert network.training and not network.tower.norm.training


@pytest.mark.parametrize("kind", ["vit", "mini", "cnn"])
def test_small_encoders_are_random_until_they_are_trained(kind: str, tmp_path: Path):
    trainable = load_trainable(f"scratch:{kind}")
    assert trainable.encoder.name == load_trainable(f"scratch:{kind}").encoder.name
    models = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        models.append(trainable.fresh().eval())
    one, same, other = (encode(trainable, model)[0] for model in models)
    assert torch.equal(one, same) and not torch.equal(one, other)
    trainable.save(models[2], tmp_path, temperature=0.07)
    again = load_trainable(f"open_clip:local-dir:{tmp_path}")
    for found, expected in zip(encode(again, again.fresh().eval()), encode(trainable, models[2])):
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


# ---- pictures


def test_crops_are_a_function_of_seed_epoch_and_row(work: Path):
    files = sorted((work / "source" / "images").iterdir())

    def pixels(row: int, epoch: int | None, seed: int = 0, scale: float = 0.5) -> Tensor:
        trainable = load_trainable(spec(work, "open_clip"))
        store = ImageStore(files=files)
        found = Pictures(image_store=store, preprocess=trainable.encoder.preprocess, size=trainable.size,
                         aug_scale=scale, seed=seed)[row, epoch]  # fmt: skip
        assert isinstance(found, Tensor)
        return found

    first = pixels(0, 1)
    torch.manual_seed(3)
    assert torch.equal(first, pixels(0, 1)) and first.shape == (3, 32, 32)
    assert all((first != other).any() for other in (pixels(0, 2), pixels(0, 1, seed=1), pixels(1, 1), pixels(0, None)))
    assert torch.equal(pixels(0, 1, scale=1.0), pixels(0, None))


def test_boxes_lie_inside_and_keep_their_share():
    rng = np.random.default_rng(0)
    shares = []
    for _ in range(500):
        left, top, right, bottom = random_box(rng, (60, 60), 0.4)
        assert 0 <= left < right <= 60 and 0 <= top < bottom <= 60
        shares.append((right - left) * (bottom - top) / 3600)
    assert min(shares) > 0.35 and max(shares) > 0.9
    assert random_box(rng, (1, 500), 0.9)[2] <= 1


def test_workers_change_nothing(work: Path):
    alone = learner(work)
    fit(alone)
    helped = learner(work, tune=Tune(train_part="whole", workers=2))
    fit(helped)
    assert all(torch.equal(value, helped.weights()[name]) for name, value in alone.weights().items())


def test_a_batch_in_parts_has_the_gradient_of_the_whole(work: Path):
    def gradients(parts: int) -> list[Tensor]:
        one = learner(work, model_precision="fp64", accum_freq=parts)
        backward(one, 0, torch.arange(12), None, None)
        return [p.grad for p in one.networks[0].parameters() if p.grad is not None]

    for whole, apart in zip(gradients(1), gradients(3), strict=True):
        torch.testing.assert_close(apart, whole, rtol=0, atol=1e-10)


@pytest.mark.parametrize("part", ["whole", "lora"])
@pytest.mark.parametrize("stop", [2, 5])
def test_continued_from_any_step_is_bitwise_the_same(work: Path, tmp_path: Path, part: str, stop: int):
    tune = Tune(train_part=part, workers=0)
    alone = learner(work, strategy="coteach", tune=tune)
    fit(alone)
    killed, seen = learner(work, strategy="coteach", tune=tune, save_every=1e-9), []

    def progress(_: int) -> None:
        seen.append(1)
        if len(seen) == stop:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(killed, Hooks(save=lambda it: save_checkpoint(it, tmp_path), progress=progress))
    again = learner(work, strategy="coteach", tune=tune)
    assert load_latest(again, tmp_path) is not None and again.cursor.steps == stop - 1
    fit(again)
    assert all(torch.equal(value, again.weights()[name]) for name, value in alone.weights().items())
    assert again.cursor.history == alone.cursor.history


def test_a_picture_that_is_gone_is_named(work: Path, tmp_path: Path):
    one = learner(work)
    files = list(one.data.towers.pictures.image_store.files)  # type: ignore[attr-defined]
    object.__setattr__(one.data.towers.pictures.image_store, "files", [tmp_path / "gone.png", *files[1:]])  # type: ignore[attr-defined]
    with pytest.raises(RuntimeError, match=r"picture of pair '000.png' cannot be read any more: .*gone.png"):
        fit(one)


# ---- the command


@pytest.mark.parametrize(
    ("family", "part"), [("open_clip", "whole"), ("clip", "lora"), ("siglip", "last_blocks"), ("open_clip", "lora")]
)
def test_from_a_run_to_a_model_and_its_numbers(work: Path, tmp_path: Path, family: str, part: str,
                                               capsys: pytest.CaptureFixture[str]):  # fmt: skip
    model = tmp_path / "model"
    words = ["train", str(work / "run"), "--output_folder", str(model), "--clip_model", spec(work, family),
             "--train_part", part, "--last_blocks", "1", *FAST]  # fmt: skip
    assert main(words) == 0
    before = {path: path.read_bytes() for path in model.rglob("*") if path.is_file() and path.name != "metrics.jsonl"}
    assert main(words) == 0
    assert {path: path.read_bytes() for path in before} == before
    lines = [json.loads(line) for line in (model / "metrics.jsonl").read_text().splitlines()]
    assert all(0 <= line["loading_share"] <= 1 for line in lines if line["event"] == "epoch")
    capsys.readouterr()
    assert main(["evaluate", str(model)]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["test"]["pairs"] >= 2 and 0 < found["test"]["ensemble"]["rSum"] <= 600
    assert main(["evaluate", str(model), "--test_data", str(work / "run")]) == 0
    assert json.loads(capsys.readouterr().out)["test"]["pairs"] == N
    assert main([*words, "--aug_scale", "0.5"]) == 2
    assert "towers.aug_scale: was 0.9, now 0.5" in capsys.readouterr().err
    if family == "open_clip":
        open_clip.create_model_and_transforms(f"local-dir:{model}/networks/0")
    else:
        AutoModel.from_pretrained(model / "networks" / "0")


def test_from_a_csv_in_one_command_with_two_networks(work: Path, tmp_path: Path):
    words = ["train", str(work / "source" / "pairs.csv"), "--output_folder", str(tmp_path / "m"), "--clip_model",
             spec(work, "file"), "--train_part", "whole", *FAST[:-1], "coteach", "--test_fraction", "0"]  # fmt: skip
    assert main(words) == 0
    assert sorted(path.name for path in (tmp_path / "m" / "networks").iterdir()) == ["0", "1"]


def test_a_small_encoder_learns_from_nothing(work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    small = {"embed_dim": 16, "vision_cfg": {"image_size": 32, "patch_size": 16, "layers": 2, "width": 32,
             "head_width": 16}, "text_cfg": {**scratch.TEXT, "width": 32, "heads": 2, "layers": 1}}  # fmt: skip
    monkeypatch.setitem(scratch.CONFIGS, "vit", small)
    words = ["train", str(work / "run"), "--output_folder", str(tmp_path / "m"), "--clip_model", "scratch:vit",
             "--train_part", "whole", *FAST]  # fmt: skip
    assert main(words) == 0
    history = json.loads((tmp_path / "m" / "report.json").read_text())["history"]
    assert history[-1]["loss"][0] < history[0]["loss"][0]
    open_clip.create_model_and_transforms(f"local-dir:{tmp_path}/m/networks/0")


def test_pictures_out_of_a_table_train_the_same(work: Path, tmp_path: Path):
    rows = [line.split(",") for line in (work / "source" / "pairs.csv").read_text().splitlines()[1:]]
    table = {"key": [row[0] for row in rows], "caption": [row[2] for row in rows],
             "image": [(work / "source" / row[1]).read_bytes() for row in rows]}  # fmt: skip
    pq.write_table(pa.table(table), tmp_path / "pairs.parquet")
    run = tmp_path / "run"
    assert main(["clean", str(tmp_path / "pairs.parquet"), "--output_folder", str(run), "--clip_model", "tiny",
                 "-q"]) == 0  # fmt: skip
    for source, name in ((run, "bytes"), (work / "run", "files")):
        words = ["train", str(source), "--output_folder", str(tmp_path / name), "--clip_model", spec(work, "open_clip"),
                 "--train_part", "whole", *FAST]  # fmt: skip
        assert main(words) == 0
    weights = [(tmp_path / name / "networks" / "0" / "open_clip_model.safetensors").read_bytes()
               for name in ("bytes", "files")]  # fmt: skip
    assert weights[0] == weights[1]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--train_part", "whole"], "the encoder 'embedded' cannot be fine-tuned"),
        (["--clip_model", "scratch:vit"], "add --train_part whole"),
        (["--clip_model", "scratch:vit", "--train_part", "lora"], "needs a trained encoder"),
        (["--clip_model", "scratch:vti", "--train_part", "whole"], "there are scratch:vit, scratch:mini, scratch:cnn"),
        (["--train_part", "some"], "--train_part is 'some'"),
        (["--aug_scale", "0"], "--aug_scale is 0.0"),
        (["--lora_rank", "0"], "--lora_rank is 0"),
    ],
)
def test_wrong_use_is_one_sentence(work: Path, tmp_path: Path, words: list[str], told: str,
                                   capsys: pytest.CaptureFixture[str]):  # fmt: skip
    assert main(["train", str(work / "run"), "--output_folder", str(tmp_path / "m"), "-q", *words]) == 2
    message = capsys.readouterr().err.strip()
    assert told in message and "\n" not in message


def test_more_blocks_than_there_are(work: Path):
    with pytest.raises(UsageError, match=r"`last_blocks` is 9, but .*resblocks has 2 blocks"):
        choose_part(load_trainable(spec(work, "open_clip")).fresh(), Tune(train_part="last_blocks", last_blocks=9))


def test_a_source_that_changed_is_refused(work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    shutil.copytree(work / "source", tmp_path / "source")
    words = ["clean", str(tmp_path / "source" / "pairs.csv"), "--output_folder", str(tmp_path / "run"),
             "--clip_model", "tiny", "-q"]  # fmt: skip
    assert main(words) == 0
    Image.new("RGB", (9, 9)).save(tmp_path / "source" / "images" / "new.png")
    with (tmp_path / "source" / "pairs.csv").open("a") as file:
        file.write("k99,images/new.png,one more\n")
    words = ["train", str(tmp_path / "run"), "--output_folder", str(tmp_path / "m"), "--clip_model",
             spec(work, "open_clip"), "--train_part", "whole", *FAST]  # fmt: skip
    assert main(words) == 2
    assert "changed since it was embedded" in capsys.readouterr().err
