"""Encoders: equal to the libraries they wrap, identified by their weights, safe to load, clear when used wrongly."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import open_clip.pretrained
import pytest
import tiny_checkpoints as tiny
import torch
from PIL import Image
from tiny_checkpoints import TEXTS, encode, pictures
from torch.nn import functional
from transformers import AutoProcessor

from noisycorr.models.encoders import DualEncoder, load_encoder
from noisycorr.models.encoders.transformers import pooled
from noisycorr.runtime.errors import UsageError

CPU = torch.device("cpu")
KINDS = ("open_clip", "clip", "siglip", "embedded", "tiny")
torch.set_num_threads(1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("checkpoints")


@pytest.fixture(scope="module")
def models(folder: Path) -> dict[str, Any]:
    return {
        "open_clip": tiny.write_open_clip(folder / "open_clip"),
        "clip": tiny.write_clip(folder / "clip"),
        "siglip": tiny.write_siglip(folder / "siglip"),
    }


@pytest.fixture(scope="module")
def specs(folder: Path, models: dict[str, Any]) -> dict[str, str]:
    return {
        "open_clip": f"open_clip:{tiny.ARCHITECTURE}@{folder / 'open_clip' / 'model.safetensors'}",
        "clip": f"hf_clip:{folder / 'clip'}",
        "siglip": f"hf_clip:{folder / 'siglip'}",
        "embedded": "embedded",
        "tiny": "tiny",
    }


@pytest.fixture(scope="module")
def encoders(specs: dict[str, str]) -> dict[str, DualEncoder]:
    return {kind: load_encoder(spec, device=CPU) for kind, spec in specs.items()}


@pytest.mark.parametrize("kind", KINDS)
def test_shapes_and_norms(encoders: dict[str, DualEncoder], kind: str) -> None:
    encoder = encoders[kind]
    image, text = encode(encoder)
    assert image.shape == (5, encoder.image_dim) and text.shape == (5, encoder.text_dim)
    assert image.dtype == text.dtype == torch.float32
    assert not image.requires_grad and not text.requires_grad
    assert bool(image.isfinite().all()) and bool(text.isfinite().all())
    assert torch.cdist(image, image).fill_diagonal_(1).min() > 1e-4  # different pictures, different features
    if encoder.joint:
        torch.testing.assert_close(image.norm(dim=1), torch.ones(5))
        torch.testing.assert_close(text.norm(dim=1), torch.ones(5))
    assert encoder.name.endswith("@" + encoder.weights_hash[:12]) and len(encoder.weights_hash) == 16
    assert encoder.to(CPU) is encoder


@pytest.mark.parametrize("kind", KINDS)
def test_a_second_load_gives_the_same_bits(encoders: dict[str, DualEncoder], specs: dict[str, str], kind: str) -> None:
    again = load_encoder(specs[kind], device=CPU)
    assert again.name == encoders[kind].name and again.preprocessing == encoders[kind].preprocessing
    for mine, theirs in zip(encode(again), encode(encoders[kind])):
        assert torch.equal(mine, theirs)


def test_open_clip_equals_the_library(encoders: dict[str, DualEncoder], models: dict[str, Any], folder: Path) -> None:
    for encoder in (
        encoders["open_clip"],
        load_encoder(f"open_clip:{tiny.ARCHITECTURE}/{folder / 'open_clip' / 'model.pt'}", device=CPU),
    ):
        _, _, transform = open_clip.create_model_and_transforms(tiny.ARCHITECTURE)
        tokens = open_clip.get_tokenizer(tiny.ARCHITECTURE)(TEXTS)
        with torch.no_grad():
            image, text, _ = models["open_clip"](torch.stack([transform(picture) for picture in pictures()]), tokens)
        mine = encode(encoder)
        torch.testing.assert_close(mine[0], image)
        torch.testing.assert_close(mine[1], text)
        assert encoder.score_column == "clip_tiny_test_clip_similarity_score"


def test_open_clip_local_folder_brings_its_preprocessing(encoders: dict[str, DualEncoder], folder: Path) -> None:
    local = load_encoder(f"open_clip:local-dir:{folder / 'open_clip' / 'local'}", device=CPU)
    assert local.weights_hash == encoders["open_clip"].weights_hash
    assert local.name.startswith("open_clip:local-dir:local@")
    assert "squash" in local.preprocessing
    white = local.preprocess(Image.new("RGB", (50, 20), "white"))
    torch.testing.assert_close(white, torch.full((3, 32, 32), 2.0))  # (1 - mean 0.5) / std 0.25


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_transformers_equals_the_library(
    encoders: dict[str, DualEncoder], models: dict[str, Any], folder: Path, kind: str
) -> None:
    processor = AutoProcessor.from_pretrained(folder / kind)
    lower = [text.lower() for text in TEXTS]
    length = 64 if kind == "siglip" else 77
    inputs = processor(
        text=lower, images=pictures(), padding="max_length", truncation=True, max_length=length, return_tensors="pt"
    )
    if kind == "siglip":  # trained without a mask
        inputs.pop("attention_mask", None)
    with torch.no_grad():
        outputs = models[kind](**inputs)
    image, text = encode(encoders[kind])
    torch.testing.assert_close(image, outputs.image_embeds)
    torch.testing.assert_close(text, outputs.text_embeds)


def test_clip_of_both_libraries_reads_the_same_tokens(encoders: dict[str, DualEncoder]) -> None:
    plain = ["a red square, isn't it?", "Two HORSES at 10:30"]
    theirs = open_clip.get_tokenizer("ViT-B-32")(plain)
    mine = encoders["clip"].tokenize(plain)
    lengths = mine["attention_mask"].sum(1)
    assert mine["input_ids"].shape == (2, 77)
    for row, length in enumerate(lengths.tolist()):
        assert mine["input_ids"][row, :length].tolist() == theirs[row, :length].tolist()
        assert not theirs[row, length:].any()


def test_siglip_reads_lower_case_and_all_positions(encoders: dict[str, DualEncoder]) -> None:
    tokens = encoders["siglip"].tokenize(["A Red SQUARE", "a red square"])
    assert tokens["input_ids"].shape == (2, 64)
    assert torch.equal(tokens["input_ids"][0], tokens["input_ids"][1])
    assert tokens["input_ids"][0, -1] == 1  # padding on the right


def test_pooled_accepts_both_releases_of_transformers(models: dict[str, Any]) -> None:
    features = torch.ones(2, 3)

    class Output:
        pooler_output = features

    assert pooled(features) is features and pooled(Output()) is features


@pytest.mark.parametrize("kind", KINDS)
def test_text_features_do_not_depend_on_the_batch(encoders: dict[str, DualEncoder], kind: str) -> None:
    encoder = encoders[kind]
    texts = [" ".join(TEXTS[row % 5].split()[: row % 7]) + f" {row}" for row in range(70)]
    together = encoder.text(encoder.tokenize(texts))
    for row in (0, 6, 33, 69):
        alone = encoder.text(encoder.tokenize([texts[row]]))[0]
        torch.testing.assert_close(together[row], alone, atol=2e-6, rtol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_preprocess_and_tokenize_in_threads(encoders: dict[str, DualEncoder], kind: str) -> None:
    encoder = encoders[kind]
    many = pictures(24)
    batches = [TEXTS[: 1 + row % 5] for row in range(48)]
    serial = [encoder.preprocess(picture) for picture in many]
    tokens = [encoder.text(encoder.tokenize(batch)) for batch in batches[:5]]
    with ThreadPoolExecutor(8) as pool:
        assert all(torch.equal(a, b) for a, b in zip(serial, pool.map(encoder.preprocess, many), strict=True))
        for row, batch in enumerate(pool.map(encoder.tokenize, batches)):
            if row < 5:
                assert torch.equal(encoder.text(batch), tokens[row])


@pytest.mark.parametrize("kind", ["open_clip", "clip", "siglip", "embedded"])
def test_one_thread_at_a_time_in_a_tokenizer(
    monkeypatch: pytest.MonkeyPatch, encoders: dict[str, DualEncoder], kind: str
) -> None:
    name = "tokenizer" if kind == "embedded" else "_tokenizer"
    inner = getattr(encoders[kind], name)
    inside = []

    def probe(*texts: Any, **options: Any) -> Any:
        assert not inside, "two threads in one tokenizer"
        inside.append(1)
        time.sleep(0.002)
        inside.clear()
        return inner(*texts, **options)

    monkeypatch.setattr(encoders[kind], name, probe)
    with ThreadPoolExecutor(4) as pool:
        assert len(list(pool.map(encoders[kind].tokenize, [TEXTS] * 12))) == 12


@pytest.mark.parametrize("kind", ["open_clip", "clip", "siglip"])
def test_a_very_long_picture_is_cut_before_it_is_scaled(
    monkeypatch: pytest.MonkeyPatch, encoders: dict[str, DualEncoder], kind: str
) -> None:
    name = "_preprocess" if kind == "open_clip" else "_processor"
    inner = getattr(encoders[kind], name)
    seen = []

    def probe(image: Image.Image | None = None, *, images: Image.Image | None = None, **options: Any) -> Any:
        picture = image or images
        assert picture is not None
        seen.append(picture.size)
        return inner(picture, **options)

    monkeypatch.setattr(encoders[kind], name, probe)
    for size in ((100_000, 1), (2, 100_000), (640, 10)):
        assert encoders[kind].preprocess(Image.new("RGB", size)).shape == (3, 32, 32)
    assert seen == [(64, 1), (2, 128), (640, 10)]


@pytest.mark.parametrize("kind", ["open_clip", "clip", "embedded", "tiny"])
def test_bf16_is_near_and_not_the_same(encoders: dict[str, DualEncoder], specs: dict[str, str], kind: str) -> None:
    half = load_encoder(specs[kind], device=CPU, precision="bf16")
    assert half.weights_hash == encoders[kind].weights_hash
    image, text = encode(half)
    exact_image, exact_text = encode(encoders[kind])
    assert image.dtype == text.dtype == torch.float32
    assert not torch.equal(image, exact_image)
    assert functional.cosine_similarity(image, exact_image).min() > 0.98
    assert functional.cosine_similarity(text[[0, 1, 3, 4]], exact_text[[0, 1, 3, 4]]).min() > 0.98


@pytest.mark.parametrize("kind", ["open_clip", "clip", "siglip"])
def test_joint_space_of_clip_is_the_cosine(encoders: dict[str, DualEncoder], kind: str) -> None:
    encoder = encoders[kind]
    image, text = (features.numpy() for features in encode(encoder))
    image[2] = 0  # a pair without a picture
    joined = encoder.joint_space(image.astype(np.float16), text.astype(np.float16))
    np.testing.assert_allclose(joined[0] @ joined[1].T, image @ text.T, atol=2e-3)
    assert not joined[0][2].any() and joined[0].dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(joined[1], axis=1), 1, atol=1e-6)
    with pytest.raises(UsageError, match="use the encoder that made them"):
        encoder.joint_space(image[:, :-1], text)
