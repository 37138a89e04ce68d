"""Encoders as something to train: the same model, tokens and pictures as the frozen one, with a gradient, and back to
files that open_clip and transformers read.

    trainable = load_trainable("open_clip:ViT-B-32/laion2b_s34b_b79k")
    model = trainable.fresh()
    trainable.image(model, pixels), trainable.text(model, *trainable.tokens(captions))
    trainable.save(model, folder, temperature=0.01)
"""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from jaxtyping import Float, Int
from safetensors.torch import save
from torch import Tensor, nn

from noisycorr.models.encoders.encoder import DualEncoder

TOKENIZED = 4096  # texts at once
SCRATCH = "scratch:"


class Trainable(Protocol):
    """A dual encoder that can be fine-tuned.

    Attributes:
        family: open_clip or hf_clip: whose files `save` writes.
        encoder: The frozen encoder, with its preprocessing; stays as it is.
        size: Height and width of the pictures that the model takes.
        temperature: The model's own.
    """

    family: str
    encoder: DualEncoder
    size: tuple[int, int]
    temperature: float

    def fresh(self) -> Any:
        """A model to train: a copy of the pretrained one, or a random one from the generator of torch."""

    def tokens(self, texts: Sequence[str]) -> tuple[Int[np.ndarray, "n t"], Int[np.ndarray, " n"]]:
        """Token ids, and how many of them matter to the model, padding behind them left out."""

    def image(self, model: Any, pixels: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b d"]:
        """Image features with gradient, not normalised."""

    def text(self, model: Any, ids: Int[Tensor, "b t"], lengths: Int[Tensor, " b"]) -> Float[Tensor, "b d"]:
        """Text features with gradient, not normalised."""

    def save(self, model: Any, folder: Path, *, temperature: float) -> None:
        """Write the model as its library reads it.

        Args:
            model: As `fresh` gave it, trained; on any device.
            folder: Made if absent.
            temperature: Stored as the logit scale.
        """


class OpenClipTrainable:
    """A model of open_clip; see `Trainable`.

    Args:
        encoder: An `OpenClipEncoder`.
    """

    family = "open_clip"

    def __init__(self, encoder: Any) -> None:
        self.encoder = encoder
        size = encoder.model.visual.image_size
        self.size = (size, size) if isinstance(size, int) else tuple(size)
        self.temperature = float((-encoder.model.logit_scale.detach()).exp())
        model = encoder.model
        # Causal attention, read at the last token: what stands behind it has no influence.
        self._cuts = getattr(model, "text_pool_type", "") == "argmax" and getattr(model, "attn_mask", None) is not None

    def fresh(self) -> Any:
        """A copy of the pretrained model."""
        return copy.deepcopy(self.encoder.model)

    def tokens(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Ids of the model's own tokenizer."""
        parts = [self.encoder.tokenize(texts[row : row + TOKENIZED]).numpy() for row in range(0, len(texts), TOKENIZED)]
        ids = np.concatenate(parts).astype(np.int32)
        lengths = ids.argmax(1) + 1 if self._cuts else np.full(len(ids), ids.shape[1])
        return ids, lengths.astype(np.int32)

    def image(self, model: Any, pixels: Tensor) -> Tensor:
        """Image features."""
        features: Tensor = model.encode_image(pixels, normalize=False)
        return features

    def text(self, model: Any, ids: Tensor, lengths: Tensor) -> Tensor:
        """Text features; positions behind the last token of all are left out where they cannot matter."""
        if not self._cuts:
            features: Tensor = model.encode_text(ids, normalize=False)
            return features
        longest = int(lengths.max()) if len(lengths) else 1
        states = model.token_embedding(ids[:, :longest]) + model.positional_embedding[:longest]
        states = model.ln_final(model.transformer(states, attn_mask=model.attn_mask[:longest, :longest]))
        last = states[torch.arange(len(ids), device=ids.device), lengths.to(ids.device) - 1]
        projection = model.text_projection
        if projection is None:
            return last
        return projection(last) if isinstance(projection, nn.Module) else last @ projection

    def save(self, model: Any, folder: Path, *, temperature: float) -> None:
        """`open_clip_model.safetensors` for --pretrained, with a config that makes the folder a local-dir model."""
        folder.mkdir(parents=True, exist_ok=True)
        state = {name: value.detach().cpu().float().contiguous() if value.is_floating_point() else value.cpu()
                 for name, value in model.state_dict().items()}  # fmt: skip
        state["logit_scale"] = torch.full_like(state["logit_scale"], -np.log(temperature))
        (folder / "open_clip_model.safetensors").write_bytes(save(state))
        preprocess = {key: value for key, value in model.visual.preprocess_cfg.items() if key != "size"}
        config = {"model_cfg": self.encoder.config, "preprocess_cfg": preprocess}
        (folder / "open_clip_config.json").write_text(json.dumps(config, indent=2, default=str), encoding="utf-8")
        self.encoder.save_tokenizer(folder)


class TransformersTrainable:
    """A CLIP or SigLIP of transformers; see `Trainable`.

    Args:
        encoder: A `TransformersEncoder`.
    """

    family = "hf_clip"

    def __init__(self, encoder: Any) -> None:
        self.encoder = encoder
        side = encoder.model.config.vision_config.image_size
        self.size = (side, side)
        self.temperature = float((-encoder.model.logit_scale.detach()).exp())
        self._masked = encoder.model.config.model_type == "clip"

    def fresh(self) -> Any:
        """A copy of the pretrained model."""
        return copy.deepcopy(self.encoder.model)

    def tokens(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Ids of the model's own tokenizer."""
        parts = [self.encoder.tokenize(texts[row : row + TOKENIZED]) for row in range(0, len(texts), TOKENIZED)]
        ids = np.concatenate([part["input_ids"].numpy() for part in parts]).astype(np.int32)
        lengths = np.concatenate([part["attention_mask"].sum(1).numpy() for part in parts]).astype(np.int32)
        return ids, lengths if self._masked else np.full(len(ids), ids.shape[1], np.int32)

    def image(self, model: Any, pixels: Tensor) -> Tensor:
        """Image features."""
        from noisycorr.models.encoders.transformers import pooled

        return pooled(model.get_image_features(pixel_values=pixels))

    def text(self, model: Any, ids: Tensor, lengths: Tensor) -> Tensor:
        """Text features."""
        from noisycorr.models.encoders.transformers import pooled

        if not self._masked:  # SigLIP was trained on padded texts without a mask
            return pooled(model.get_text_features(input_ids=ids))
        longest = int(lengths.max()) if len(lengths) else 1
        mask = torch.arange(longest, device=ids.device) < lengths.to(ids.device)[:, None]
        return pooled(model.get_text_features(input_ids=ids[:, :longest], attention_mask=mask.long()))

    def save(self, model: Any, folder: Path, *, temperature: float) -> None:
        """A folder for `from_pretrained`, with tokenizer and image processor."""
        model = copy.deepcopy(model).float().cpu()
        with torch.no_grad():
            model.logit_scale.fill_(-np.log(temperature))
        model.save_pretrained(folder)
        self.encoder.save_processors(folder)
