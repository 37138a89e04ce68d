"""Frozen image and text encoders: one protocol, and `load_encoder` that turns a spec such as `embedded` into one.

    encoder = load_encoder("open_clip:ViT-B-32/laion2b_s34b_b79k", device=torch.device("cpu"))
    image = encoder.image(torch.stack([encoder.preprocess(picture) for picture in pictures]))
    text = encoder.text(encoder.tokenize(captions))

Every encoder is in eval mode, takes no gradient, and is identified by the hash of its weights.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from noisycorr.models.encoders.encoder import DualEncoder, encode_texts
from noisycorr.models.encoders.frozen import autocast_dtype
from noisycorr.models.encoders.trainable import SCRATCH, OpenClipTrainable, Trainable, TransformersTrainable
from noisycorr.runtime.errors import UsageError

ACCEPTED = (
    "'embedded' (the default, needs no download), "
    "'open_clip:ARCH/TAG' (weights from the hub), 'open_clip:ARCH@CHECKPOINT' or 'open_clip:ARCH//CHECKPOINT' "
    "(a local .safetensors or .pt), 'open_clip:local-dir:FOLDER', 'open_clip:hf-hub:ORG/NAME', "
    "'hf_clip:NAME_OR_FOLDER' (CLIP or SigLIP of transformers) and 'tiny' (random, for tests)"
)

__all__ = ["DualEncoder", "encode_texts", "load_encoder"]


def load_encoder(spec: str, *, device: torch.device, precision: str = "fp32") -> DualEncoder:
    """Load the encoder that a spec names.

    Args:
        spec: One of the forms in `ACCEPTED`. `transformers:` means the same as `hf_clip:`.
        device: Where the forward passes run.
        precision: `fp32`, `bf16` or `fp16`. The halves are autocast: weights stay float32 and so do the features
            that come out. On a CPU `fp16` is refused.

    Raises:
        UsageError: If the spec or precision is not one of these, or if the weights cannot be reached or read.
    """
    dtype = autocast_dtype(precision, device)
    kind, _, target = spec.partition(":")
    encoder: DualEncoder
    # Imported here so that `--help` and the other encoders do not wait for open_clip and transformers.
    if spec == "embedded":
        from noisycorr.models.encoders.embedded import EmbeddedEncoder

        encoder = EmbeddedEncoder(dtype=dtype)
    elif spec == "tiny":
        from noisycorr.models.encoders.tiny import TinyEncoder

        encoder = TinyEncoder(dtype=dtype)
    elif kind == "open_clip" and target:
        from noisycorr.models.encoders.openclip import load_open_clip

        encoder = load_open_clip(target, dtype=dtype)
    elif kind in ("hf_clip", "transformers") and target:
        from noisycorr.models.encoders.transformers import load_transformers

        encoder = load_transformers(target, dtype=dtype)
    else:
        raise UsageError(f"the encoder {spec!r} is not known; accepted are {ACCEPTED}")
    return encoder.to(device)


def load_trainable(spec: str) -> Trainable:
    """What a spec of `load_encoder` names, if it can be trained; or `scratch:vit` and `scratch:cnn`.

    Raises:
        UsageError: If it cannot be trained, or the weights cannot be reached or read.
    """
    if spec.startswith(SCRATCH):
        from noisycorr.models.encoders.scratch import load_scratch

        return load_scratch(spec.removeprefix(SCRATCH))
    if spec.partition(":")[0] not in ("open_clip", "hf_clip", "transformers"):
        raise UsageError(
            f"the encoder {spec!r} cannot be fine-tuned: use `clip_model` open_clip:..., hf_clip:... or scratch:vit, "
            "or `train_part` heads"
        )
    encoder: Any = load_encoder(spec, device=torch.device("cpu"))
    return OpenClipTrainable(encoder) if spec.startswith("open_clip:") else TransformersTrainable(encoder)


def load_saved(family: str, folder: Path) -> Trainable:
    """What `Trainable.save` wrote."""
    return load_trainable(f"open_clip:local-dir:{folder}" if family == "open_clip" else f"hf_clip:{folder}")
