"""Prompts in towers of open_clip, transformers and the embedded encoder: identity, gradients only on the prompt."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tiny_checkpoints import ARCHITECTURE, pictures, write_clip, write_open_clip, write_siglip

from noisycorr.models.encoders import load_encoder
from noisycorr.prompt.keep import save_prompt, write_classifier
from noisycorr.prompt.model import UnifiedPrompt
from noisycorr.prompt.text import ClassTexts, plain_texts, text_side, word_vectors
from noisycorr.prompt.vision import Vision
from noisycorr.runtime.errors import UsageError
from noisycorr.runtime.folder import Run

CPU = torch.device("cpu")
NAMES = ["dog", "red square", "two blue horses"]
KINDS = ("open_clip", "clip", "siglip")


@pytest.fixture(scope="module")
def encoders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Tiny models of three families."""
    place = tmp_path_factory.mktemp("towers")
    write_open_clip(place / "open_clip")
    write_clip(place / "clip")
    write_siglip(place / "siglip")
    specs = {"open_clip": f"open_clip:{ARCHITECTURE}@{place / 'open_clip' / 'model.safetensors'}",
             "clip": f"hf_clip:{place / 'clip'}", "siglip": f"hf_clip:{place / 'siglip'}"}  # fmt: skip
    found: dict[str, Any] = {kind: load_encoder(spec, device=CPU) for kind, spec in specs.items()}
    return found | {"open_clip_place": place / "open_clip"}


@pytest.mark.parametrize("kind", KINDS)
def test_the_placeholder_s_own_vectors_change_nothing(kind: str, encoders: dict[str, Any]):
    side = text_side(encoders[kind])
    texts = ClassTexts(side, NAMES, 3, device=CPU)
    word = "x x x"
    plain = plain_texts(side, [f"{word} {name}" for name in NAMES], CPU)
    with torch.no_grad():
        injected = texts(word_vectors(side, word, CPU))
    assert torch.equal(injected, plain)
    assert torch.allclose(
        plain, encoders[kind].text(encoders[kind].tokenize([f"{word} {n}" for n in NAMES])), atol=1e-5
    )
    assert not side.embedding._forward_hooks, "hooks are gone after each call"


@pytest.mark.parametrize("kind", KINDS)
def test_vectors_of_words_are_the_template(kind: str, encoders: dict[str, Any]):
    side = text_side(encoders[kind])
    start = word_vectors(side, "a photo of a", CPU)
    assert start.shape == (1, 4, side.width)
    texts = ClassTexts(side, NAMES, 4, device=CPU)
    with torch.no_grad():
        assert torch.equal(texts(start), plain_texts(side, [f"a photo of a {name}" for name in NAMES], CPU))


@pytest.mark.parametrize("kind", KINDS)
def test_only_the_prompt_gets_a_gradient_and_each_class_its_own(kind: str, encoders: dict[str, Any]):
    side = text_side(encoders[kind])
    texts = ClassTexts(side, NAMES, 2, device=CPU)
    prompt = torch.randn(3, 2, side.width, generator=torch.Generator().manual_seed(0), requires_grad=True)
    direction = torch.randn(side.dim, generator=torch.Generator().manual_seed(1))
    (texts(prompt)[1] @ direction).backward()
    assert prompt.grad is not None and prompt.grad[1].abs().max() > 0 and not prompt.grad[[0, 2]].any()
    assert all(p.grad is None for p in encoders[kind].model.parameters())
    with torch.no_grad():
        assert torch.allclose(texts(prompt, [2, 0]), texts(prompt)[[2, 0]], atol=1e-6)


@pytest.mark.parametrize("kind", ["open_clip", "clip"])
def test_names_that_do_not_fit_are_refused(kind: str, encoders: dict[str, Any]):
    side = text_side(encoders[kind])
    with pytest.raises(UsageError, match="does not fit"):
        ClassTexts(side, ["dog", "horse " * 80], 4, device=CPU)
    with pytest.raises(UsageError, match="prompt vectors"):
        ClassTexts(side, ["dog"], 100, device=CPU)
    with pytest.raises(UsageError, match="no text tower"):
        text_side(load_encoder("tiny", device=CPU))


@pytest.mark.parametrize("kind", KINDS)
def test_an_empty_visual_prompt_changes_nothing_and_a_full_one_does(kind: str, encoders: dict[str, Any]):
    encoder = encoders[kind]
    vision = Vision(encoder)
    pixels = torch.stack([encoder.preprocess(picture) for picture in pictures()])
    with torch.no_grad():
        plain = vision.trainable.image(encoder.model, pixels)
        for layers in (1, vision.layers):
            assert torch.equal(vision(pixels, torch.zeros(layers, 0, vision.width)), plain)
    prompt = torch.randn(vision.layers, 2, vision.width, generator=torch.Generator().manual_seed(0), requires_grad=True)
    found = vision(pixels, prompt)
    assert (found - plain).abs().max() > 1e-3
    found.sum().backward()
    assert prompt.grad is not None and all(prompt.grad[layer].abs().max() > 0 for layer in range(vision.layers))
    assert all(p.grad is None for p in encoder.model.parameters())
    with torch.no_grad():
        deep, shallow = vision(pixels, prompt), vision(pixels, prompt[:1])
        assert (deep - shallow).abs().max() > 1e-4
        assert torch.equal(vision.trainable.image(encoder.model, pixels), plain), "hooks are gone"


def test_a_visual_prompt_stands_where_a_slow_forward_puts_it(encoders: dict[str, Any]):
    encoder = encoders["open_clip"]
    vision, tower = Vision(encoder), encoder.model.visual
    pixels = torch.stack([encoder.preprocess(picture) for picture in pictures(2)])
    prompt = torch.randn(1, 2, vision.width, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        patches = tower.conv1(pixels).flatten(2).transpose(1, 2)
        start = tower.class_embedding.expand(2, 1, -1)
        states = torch.cat([start, patches], 1) + tower.positional_embedding
        states = torch.cat([states[:, :1], prompt.expand(2, -1, -1), states[:, 1:]], 1)
        states = tower.transformer(tower.ln_pre(states))
        expected = tower.ln_post(states)[:, 0] @ tower.proj
        assert torch.allclose(vision(pixels, prompt), expected, atol=1e-5)


def test_upt_sees_all_or_only_its_pair():
    torch.manual_seed(0)
    for attention in ("full", "pair"):
        maker = UnifiedPrompt(8, 12, count=3, patch=4, attention=attention, inner=16)
        text, visual = maker()
        assert text.shape == (1, 3, 8) and visual.shape == (1, 3, 12)
        text[0, 0].sum().backward()
        assert maker.visual_part.grad is not None
        touched = maker.visual_part.grad[0].abs().amax(1) > 1e-9
        assert touched.tolist() == ([True] * 3 if attention == "full" else [True, False, False])


def test_the_embedded_sentence_encoder_takes_a_prompt():
    try:
        encoder = load_encoder("embedded", device=CPU)
    except UsageError as error:
        pytest.skip(str(error))
    side = text_side(encoder)
    texts = ClassTexts(side, NAMES, 4, device=CPU)
    start = word_vectors(side, "a photo of a", CPU)
    with torch.no_grad():
        joint = plain_texts(side, [f"a photo of a {name}" for name in NAMES], CPU)
        assert torch.equal(texts(start), joint)
    raw = encoder.text(encoder.tokenize([f"a photo of a {name}" for name in NAMES])).numpy()
    import numpy as np

    expected = encoder.joint_space(np.zeros((0, 1280), np.float32), raw)[1]
    assert np.abs(joint.numpy() - expected).max() < 1e-5


def learned(encoder: Any, place: Path) -> tuple[dict[str, torch.Tensor], np.ndarray]:
    """A prompt for each class and the classifier, through the files that `noisycorr prompt` writes."""
    side = text_side(encoder)
    context = torch.randn(3, 4, side.width, generator=torch.Generator().manual_seed(0))
    texts = ClassTexts(side, NAMES, 4, device=CPU)
    save_prompt(place / "prompt.safetensors", {"context": context}, {"encoder": side.name, "names": NAMES})
    with torch.no_grad():
        write_classifier(Run(place), texts(context).numpy(), NAMES)
    return load_file(place / "prompt.safetensors"), np.load(place / "classifier.npy", allow_pickle=False)


def overwrite(context: torch.Tensor) -> Any:
    """The hook that the documentation shows: positions 1 to m become the prompt."""
    return lambda module, given, output: torch.cat([output[:, :1], context, output[:, 1 + context.shape[1] :]], dim=1)


def test_the_files_work_in_plain_open_clip(encoders: dict[str, Any], tmp_path: Path):
    import open_clip

    weights, classifier = learned(encoders["open_clip"], tmp_path)
    checkpoint = str(encoders["open_clip_place"] / "model.safetensors")
    model = open_clip.create_model(ARCHITECTURE, pretrained=checkpoint).eval()
    tokens = open_clip.get_tokenizer(ARCHITECTURE)([f"x x x x {name}" for name in NAMES])
    model.token_embedding.register_forward_hook(overwrite(weights["context"]))
    with torch.no_grad():
        text = model.encode_text(tokens, normalize=True).numpy()
        image = model.encode_image(torch.randn(2, 3, 32, 32), normalize=True).numpy()
    assert np.allclose(text, classifier, atol=1e-5)
    assert (image @ classifier.T).shape == (2, 3) and np.abs(image @ classifier.T).max() <= 1 + 1e-5


def test_the_files_work_in_plain_transformers(encoders: dict[str, Any], tmp_path: Path):
    from transformers import CLIPModel, CLIPTokenizer

    weights, classifier = learned(encoders["clip"], tmp_path)
    place = encoders["open_clip_place"].parent / "clip"
    model = CLIPModel.from_pretrained(place).eval()
    batch = CLIPTokenizer.from_pretrained(place)([f"x x x x {name}" for name in NAMES], padding=True,
                                                 return_tensors="pt")  # fmt: skip
    model.text_model.get_input_embeddings().register_forward_hook(overwrite(weights["context"]))
    with torch.no_grad():
        found = model.get_text_features(**batch)
    text = found if isinstance(found, torch.Tensor) else found.pooler_output
    assert np.allclose(torch.nn.functional.normalize(text, dim=-1).numpy(), classifier, atol=1e-5)
