"""From an encoder and class names to a model with a prompt, and its zero-shot classifier."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from noisycorr.models.training.batches import stream_seed
from noisycorr.prompt.choice import WORDS_RANDOM, Context
from noisycorr.prompt.model import (
    JointPrompt,
    Pixels,
    Prompted,
    ResidualPrompt,
    TextPrompt,
    UnifiedPrompt,
    VisualPrompt,
    visual_start,
)
from noisycorr.prompt.text import ClassTexts, TextSide, plain_texts, word_vectors
from noisycorr.prompt.vision import Vision
from noisycorr.runtime.errors import UsageError

EMBEDDED_SCALE = 10.0  # on a calibrated scale ConSE's cosines want less than CLIP's; see docs/prompt.md


def class_vectors(side: TextSide, texts: Sequence[Sequence[str]], device: torch.device) -> Float[Tensor, "c d"]:
    """One vector of unit length for each class: the mean of the vectors of its texts.

    Source: prompt ensembling (Radford et al., 2021).
    """
    flat = plain_texts(side, [text for some in texts for text in some], device)
    parts = flat.split([len(some) for some in texts])
    return functional.normalize(torch.stack([part.mean(0) for part in parts]), dim=-1)


def zero_shot(
    side: TextSide, names: Sequence[str], context: Context, descriptions: Mapping[str, Sequence[str]],
    device: torch.device,
) -> Float[Tensor, "c d"]:  # fmt: skip
    """The classifier to start from: templates, or descriptions of a class where there are any."""
    texts = [list(descriptions.get(name) or context.texts(name)) for name in names]
    return class_vectors(side, texts, device)


def scale_of(side: TextSide, context: Context) -> float:
    """What cosines are multiplied with."""
    if context.scale:
        return context.scale
    return EMBEDDED_SCALE if side.name.startswith("embedded") else side.scale


def build(
    encoder: Any, side: TextSide, names: Sequence[str], context: Context, *, features: Float[Tensor, "n d"],
    zero: Float[Tensor, "c d"], pixels: Pixels | None, seed: int, device: torch.device,
) -> Prompted:  # fmt: skip
    """The model that the choice names, at the prompt to start from.

    Args:
        encoder: Frozen.
        side: Its text tower.
        names: Class names.
        context: What is learned.
        features: Image vectors of unit length, for a text prompt.
        zero: Class vectors, for a visual prompt.
        pixels: Preprocessed pictures by row, for prompts of the image tower.
        seed: Of random vectors.
        device: Where the towers are.

    Raises:
        UsageError: If the encoder has no tower that takes the prompt, or there are no pictures.
    """
    scale = scale_of(side, context)
    generator = torch.Generator().manual_seed(stream_seed(seed, "context"))
    if context.prompt == "text":
        if context.prompt_init == WORDS_RANDOM:
            start = torch.randn(1, context.prompt_tokens, side.width, generator=generator) * 0.02
        else:
            start = word_vectors(side, context.prompt_init, device)
        start = start.to(device=device, dtype=features.dtype)
        texts = ClassTexts(side, names, start.shape[1], device=device)
        repeated = start.repeat(len(names), 1, 1) if context.context == "class" else start
        return TextPrompt(texts, repeated, features, scale=scale)
    if context.prompt == "residual":
        return ResidualPrompt(zero.to(features), features, scale=scale)
    vision = Vision(encoder)
    if pixels is None:
        raise UsageError(f"`prompt` {context.prompt} needs pictures, but this source brings embeddings: use text.")
    if context.prompt == "visual":
        layers = vision.layers if context.depth == "deep" else 1
        start = visual_start(layers, context.prompt_tokens, vision.width, generator).to(device, features.dtype)
        return VisualPrompt(vision, pixels, start, zero, scale=scale)
    texts = ClassTexts(side, names, context.prompt_tokens, device=device)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(stream_seed(seed, "context"))
        maker = UnifiedPrompt(side.width, vision.width, count=context.prompt_tokens, patch=vision.patch,
                              attention=context.upt_attention)  # fmt: skip
    return JointPrompt(maker.to(device, features.dtype), texts, vision, pixels, scale=scale)
