"""For the tests of encoders: tiny random models written in the formats of open_clip and transformers, and inputs."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
from open_clip.tokenizer import SimpleTokenizer, default_bpe
from PIL import Image
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import (
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPTokenizer,
    PreTrainedTokenizerFast,
    SiglipConfig,
    SiglipImageProcessor,
    SiglipModel,
)

from noisycorr.models.encoders import DualEncoder

ARCHITECTURE = "tiny-test-clip"
WORDS = ("a", "red", "green", "blue", "square", "circle", "photo", "of", "the", "dog", "two", "horses")
TEXTS = ["a red square", "Two horses", "", "a photo of the dog " * 40, "blue circle"]
OPEN_CLIP_CONFIG: dict[str, Any] = {
    "embed_dim": 24,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 16},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 2},
}


def pictures(count: int = 5) -> list[Image.Image]:
    """Smooth random pictures of five shapes."""
    rng = np.random.default_rng(0)
    sides = [(40, 60), (64, 30), (32, 32), (224, 224), (100, 37)]
    return [
        Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).resize(sides[row % 5]) for row in range(count)
    ]


def encode(encoder: DualEncoder) -> tuple[torch.Tensor, torch.Tensor]:
    """Image features of `pictures` and text features of `TEXTS`, five rows each."""
    images = torch.stack([encoder.preprocess(picture) for picture in pictures()])
    return encoder.image(images), encoder.text(encoder.tokenize(TEXTS))


def randomise(model: torch.nn.Module, seed: int) -> torch.nn.Module:
    """Weights large enough that different inputs give clearly different features."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "logit" not in name:
                weight.normal_(0, 0.3, generator=generator)
    return model.eval()


def write_open_clip(folder: Path, *, seed: int = 0) -> torch.nn.Module:
    """Register `ARCHITECTURE` and write `model.safetensors`, `model.pt` and a local-dir folder `local`.

    Returns:
        The model itself, built by open_clip.
    """
    folder.mkdir(parents=True, exist_ok=True)
    config = folder / f"{ARCHITECTURE}.json"
    config.write_text(json.dumps(OPEN_CLIP_CONFIG))
    open_clip.add_model_config(config)
    model = randomise(open_clip.create_model(ARCHITECTURE), seed)
    state = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    save_file(state, folder / "model.safetensors")
    torch.save(state, folder / "model.pt")
    local = folder / "local"
    local.mkdir(exist_ok=True)
    save_file(state, local / "open_clip_model.safetensors")
    preprocess = {"mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25], "resize_mode": "squash"}
    (local / "open_clip_config.json").write_text(
        json.dumps({"model_cfg": OPEN_CLIP_CONFIG, "preprocess_cfg": preprocess})
    )
    return model


def write_clip(folder: Path, *, seed: int = 0) -> CLIPModel:
    """A CLIP of transformers with the real byte-pair vocabulary, which open_clip ships."""
    folder.mkdir(parents=True, exist_ok=True)
    special = {"<start_of_text>": "<|startoftext|>", "<end_of_text>": "<|endoftext|>"}
    vocabulary = {special.get(token, token): row for token, row in SimpleTokenizer().encoder.items()}
    (folder / "vocab.json").write_text(json.dumps(vocabulary), encoding="utf-8")
    merges = gzip.decompress(Path(default_bpe()).read_bytes()).decode().split("\n")[1 : 49152 - 256 - 2 + 1]
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n", encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "CLIPTokenizer"}))
    CLIPTokenizer.from_pretrained(folder).save_pretrained(folder)
    tower = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = CLIPConfig(
        text_config={**tower, "hidden_size": 16, "vocab_size": len(vocabulary)},
        vision_config={**tower, "image_size": 32, "patch_size": 16},
        projection_dim=24,
    )
    model = randomise(CLIPModel(config), seed)
    model.save_pretrained(folder)
    CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=32).save_pretrained(folder)
    return model


def write_siglip(folder: Path, *, seed: int = 0) -> SiglipModel:
    """A SigLIP of transformers with a dozen words; unlike the real one its tokenizer keeps the case."""
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = {token: row for row, token in enumerate(("<unk>", "</s>", *WORDS))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", eos_token="</s>", pad_token="</s>"
    ).save_pretrained(folder)
    tower = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = SiglipConfig(
        text_config={**tower, "vocab_size": len(vocabulary), "max_position_embeddings": 64},
        vision_config={**tower, "image_size": 32, "patch_size": 16},
    )
    model = randomise(SiglipModel(config), seed)
    model.save_pretrained(folder)
    SiglipImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    return model
