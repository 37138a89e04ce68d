"""Image encoders as classifiers: what is loaded, what is refused, and `classify train --backbone` on pictures."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import timm
import torch
from pictures import COLOURS, write_pictures
from PIL import Image
from safetensors.torch import load_file, save_file
from tiny_checkpoints import write_clip, write_open_clip

from noisycorr.__main__ import main
from noisycorr.classify.webly.choice import Finetune
from noisycorr.classify.webly.network import PictureBackbone
from noisycorr.models.encoders.backbones import load_backbone
from noisycorr.models.training.tune_choice import Tune
from noisycorr.runtime.errors import UsageError

SMALL = "test_resnet"  # the smallest convolutional network of timm


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files of weights: of a network of timm with its classifier, the same by torch, an open_clip and a CLIP folder."""
    place = tmp_path_factory.mktemp("weights")
    torch.manual_seed(0)
    state = timm.create_model(SMALL, pretrained=False, num_classes=7).state_dict()
    save_file({name: value.contiguous() for name, value in state.items()}, place / "small.safetensors")
    torch.save(state, place / "small.pth")
    write_open_clip(place / "open")
    write_clip(place / "clip")
    return place


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures of four colours with labels, one of them broken, embedded by the random encoder."""
    place = tmp_path_factory.mktemp("pictures")
    table = write_pictures(place / "data", 36)
    lines = table.read_text().splitlines()
    labelled = [f"{line},{line.split(',a ')[1].split()[0]}" for line in lines[1:]]
    table.write_text("\n".join([f"{lines[0]},label", *labelled]) + "\n")
    (place / "data" / "images" / "007.png").write_bytes(b"no picture")
    assert main(["embed", str(table), "--output_folder", str(place / "run"), "--clip_model", "tiny", "--workers", "1",
                 "-q"]) == 0  # fmt: skip
    return place / "run"


def picture(seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (40, 50, 3), dtype=np.uint8))


def test_weights_of_a_file_are_those_of_the_network_without_its_classifier(weights: Path):
    found = [load_backbone(f"timm:{SMALL}@{weights / name}") for name in ("small.safetensors", "small.pth")]
    assert found[0].name == found[1].name and not found[0].random
    whole = timm.create_model(SMALL, pretrained=False, num_classes=7).eval()
    whole.load_state_dict(load_file(weights / "small.safetensors"))
    x = found[0].preprocess(picture())[None]
    assert x.shape == (1, 3, *found[0].size)
    with torch.no_grad():
        features = found[0].image(found[0].fresh().eval(), x)
        torch.testing.assert_close(features, whole.forward_head(whole.forward_features(x), pre_logits=True))
    assert features.shape == (1, found[0].dim)


def test_random_weights_come_from_the_generator():
    encoder = load_backbone(f"timm:{SMALL}@none")
    made = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        made.append(torch.cat([p.flatten() for p in encoder.fresh().parameters()]))
    assert encoder.random and encoder.name.endswith("@random")
    assert torch.equal(made[0], made[1]) and not torch.equal(made[0], made[2])


def test_a_torchvision_network_loses_its_classifier(tmp_path: Path):
    from torchvision import models

    torch.manual_seed(0)
    whole = models.get_model("shufflenet_v2_x0_5", num_classes=5).eval()
    torch.save({"state_dict": whole.state_dict()}, tmp_path / "net.pt")
    encoder = load_backbone(f"torchvision:shufflenet_v2_x0_5@{tmp_path / 'net.pt'}")
    x = encoder.preprocess(picture())[None]
    with torch.no_grad():
        torch.testing.assert_close(whole.fc(encoder.image(encoder.fresh(), x)), whole(x))
    assert encoder.dim == 1024 and encoder.size == (224, 224) and "224" in encoder.preprocessing


@pytest.mark.parametrize("spec", ["open_clip:local-dir:{}/open/local", "hf_clip:{}/clip"])
def test_of_a_dual_encoder_only_the_image_side_is_kept(spec: str, weights: Path):
    encoder = load_backbone(spec.format(weights))
    from noisycorr.models.encoders import load_trainable

    both = load_trainable(spec.format(weights))
    x = encoder.preprocess(picture())[None]
    model = encoder.fresh()
    with torch.no_grad():
        torch.testing.assert_close(encoder.image(model, x), both.image(both.fresh(), x))
    own = sum(p.numel() for p in model.parameters())
    assert own < sum(p.numel() for p in both.fresh().parameters())
    assert not any("token_embedding" in name for name, _ in model.named_parameters())
    assert PictureBackbone(encoder, Tune(train_part="last_blocks", last_blocks=1)).fixed()


@pytest.mark.parametrize(
    ("spec", "told"),
    [("resnet50", "not known"), ("timm:nonsuch", "no such model"), ("torchvision:nonsuch", "no such classifier"),
     ("timm:test_vit@{}/small.safetensors", "another model"), ("timm:test_vit@{}/none.pt", "could not be read"),
     ("timm:local-dir:{}/nowhere", "cannot be reached")],
)  # fmt: skip
def test_what_cannot_be_loaded_is_told(spec: str, told: str, weights: Path):
    with pytest.raises(UsageError, match=told):
        load_backbone(spec.format(weights))


def test_choices_of_what_is_trained():
    for wrong in ({"backbone_rate": 0.0}, {"train_part": "heads"}, {"train_part": "lora"},
                  {"backbone": "scratch:cnn", "train_part": "lora"},
                  {"backbone": "timm:x@none", "train_part": "last_blocks"}):  # fmt: skip
        with pytest.raises(UsageError, match=f"`{list(wrong)[-1]}`"):
            Finetune(**wrong)  # type: ignore[arg-type]


def words(run: Path, out: Path, *more: str) -> list[str]:
    return ["classify", "train", str(run), "--output_folder", str(out), "--epochs", "3", "--batch_size", "8", "--lr",
            "0.02", "--warmup", "2", "--embed_dim", "6", "--hidden", "8", "--workers", "0", *more]  # fmt: skip


def test_an_encoder_is_fine_tuned_continued_and_tested(
    run: Path, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    spec = f"timm:{SMALL}@{weights / 'small.safetensors'}"
    line = words(run, tmp_path / "out", "--backbone", spec, "--method", "mopro")
    assert main(line) == 0
    said = capsys.readouterr().err
    assert "1 samples without a readable image are left out" in said
    facts = json.loads((tmp_path / "out" / "model.json").read_text())
    assert facts["backbone"].startswith(f"timm:{SMALL}@") and facts["dim"] == load_backbone(spec).dim
    now, before = load_file(tmp_path / "out" / "model.safetensors"), load_file(weights / "small.safetensors")
    name = next(name for name in before if name.endswith("conv1.weight"))
    assert not torch.equal(now[f"0.backbone.tower.{name}"], before[name]), "the encoder was trained"
    keys = pq.read_table(tmp_path / "out" / "labels.parquet").column("key").to_pylist()
    assert "k7" not in keys and len(keys) > 20
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["test"]["samples"] > 0 and 0 <= report["test"]["top1"] <= 1
    body = (tmp_path / "out" / "model.safetensors").read_bytes()
    assert main(line) == 0 and (tmp_path / "out" / "model.safetensors").read_bytes() == body
    assert main([*line, "--aug_scale", "0.5"]) == 2
    assert "other data, method or settings" in capsys.readouterr().err


def test_only_the_last_blocks_move(run: Path, weights: Path, tmp_path: Path):
    line = words(run, tmp_path / "out", "--backbone", f"open_clip:local-dir:{weights / 'open' / 'local'}", "--method",
                 "plain", "--train_part", "last_blocks", "--last_blocks", "1")  # fmt: skip
    assert main(line) == 0
    kept = load_file(tmp_path / "out" / "model.safetensors")
    assert any("resblocks.1" in name for name in kept) and not any("resblocks.0" in name for name in kept)


def test_embeddings_without_pictures_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    import pyarrow as pa

    source = tmp_path / "source"
    source.mkdir()
    rng = np.random.default_rng(0)
    for side in ("image", "text"):
        np.save(source / f"{side}.npy", rng.normal(size=(12, 5)).astype(np.float32))
    label = [list(COLOURS)[row % 2] for row in range(12)]
    pq.write_table(pa.table({"key": [f"k{row}" for row in range(12)], "text": label, "label": label}),
                   source / "pairs.parquet")  # fmt: skip
    line = words(source, tmp_path / "out", "--backbone", f"timm:{SMALL}@none", "--method", "plain")
    assert main(line) == 2
    assert "needs pictures" in capsys.readouterr().err
