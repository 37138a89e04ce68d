"""LoRA as a baseline of `noisycorr tune`: it learns, its tower loads in transformers, and where it is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from pictures import COLOURS, write_pictures
from safetensors.torch import load_file
from tiny_checkpoints import write_clip
from transformers import CLIPModel

from noisycorr.__main__ import main

N = 48


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures in folders by class, and a tiny CLIP."""
    pytest.importorskip("peft")
    place = tmp_path_factory.mktemp("lora")
    write_clip(place / "clip")
    write_pictures(place / "pictures", N)
    for row in range(N):
        colour = list(COLOURS)[(row % 12) // 3]
        (place / "data" / colour).mkdir(parents=True, exist_ok=True)
        (place / "pictures" / "images" / f"{row:03d}.png").rename(place / "data" / colour / f"{row:03d}.png")
    return place


def test_it_learns_and_its_tower_is_one_of_transformers(place: Path, capsys: pytest.CaptureFixture[str]):
    words = ["tune", str(place / "data"), "--output_folder", str(place / "out"), "--clip_model",
             f"hf_clip:{place / 'clip'}", "--methods", "linear,lora", "--epochs", "3", "--lora_epochs", "15",
             "--batch_size", "16", "--lora_lr", "0.02", "--linear_lr",
             "0.05", "--out_of_domain", f"again={place / 'data'}", "-q"]  # fmt: skip
    assert main(words) == 0, capsys.readouterr().err
    out = place / "out"
    report = json.loads((out / "report.json").read_text())
    assert set(report["methods"]) == {"linear", "lora"}
    found = report["methods"]["lora"]["accuracy"]
    assert found["train"]["top1"] > 0.5 and {"train", "again"} <= set(found)
    before, after = CLIPModel.from_pretrained(place / "clip"), CLIPModel.from_pretrained(out / "models/lora_encoder")
    moved = {name for name, weight in before.named_parameters() if not torch.equal(weight, after.get_parameter(name))}
    assert moved and all(name.startswith("vision_model.") for name in moved - {"logit_scale"})
    assert {"head.weight", "head.bias"} <= set(load_file(out / "models/lora.safetensors"))
    stored = (out / "report.json").read_bytes()
    for name in ("models/lora.safetensors", "report.json"):
        (out / name).unlink()
    assert main(words) == 0 and (out / "report.json").read_bytes() == stored, "the same command, the same bytes"


def test_features_alone_and_closed_towers_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    pytest.importorskip("peft")
    rng = np.random.default_rng(0)
    np.save(tmp_path / "image.npy", rng.normal(size=(40, 6)).astype(np.float32))
    np.save(tmp_path / "labels.npy", np.array(["cat", "dog"])[np.arange(40) % 2])
    line = ["tune", str(tmp_path), "--output_folder", str(tmp_path / "out"), "--methods", "lora", "-q"]
    assert main(line) == 2
    assert "leave lora out" in capsys.readouterr().err
