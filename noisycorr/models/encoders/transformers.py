"""CLIP and SigLIP models of transformers, from the hub or from a local folder."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor
from torch.nn import functional
from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoTokenizer

from noisycorr.models.encoders.frozen import (
    CHUNK,
    JointEncoder,
    bounded_aspect,
    encode_by_length,
    freeze,
    frozen_forward,
    hash_weights,
    reason,
)
from noisycorr.runtime.errors import UsageError

FAMILIES = ("clip", "siglip")  # SigLIP 2 at fixed resolution is a "siglip" too
WIDTHS = {768: "b", 1024: "l", 1280: "h"}  # width of a vision transformer to its letter in DataComp's names
LOCAL_HINT = "without a network, pass a local folder with config.json, model.safetensors, preprocessor and tokenizer"


def load_transformers(name: str, *, dtype: torch.dtype | None = None) -> TransformersEncoder:
    """Load a CLIP or SigLIP model by its hub name or from a folder. No code of a repository is ever run.

    Args:
        name: Such as `openai/clip-vit-base-patch32`, or a folder written by `save_pretrained`.
        dtype: Of the matrix products; None = float32.

    Raises:
        UsageError: If it cannot be reached, is no CLIP or SigLIP, or has no complete .safetensors weights.
    """
    folder = Path(name).expanduser()
    if name.startswith((".", "~", "/")) and not folder.is_dir():
        raise UsageError(f"the model folder {name!r} does not exist; expected one written by save_pretrained")
    source = str(folder) if folder.is_dir() else name
    try:
        config = AutoConfig.from_pretrained(source, trust_remote_code=False)
    except Exception as error:  # of the hub's client, of transformers, or of a broken JSON file
        raise UsageError(_unreachable(name, error)) from error
    if config.model_type not in FAMILIES:
        raise UsageError(_wrong_family(name, config.model_type))
    try:
        model, report = AutoModel.from_pretrained(
            source, use_safetensors=True, trust_remote_code=False, output_loading_info=True
        )
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
        processor = AutoImageProcessor.from_pretrained(source, trust_remote_code=False)
    except Exception as error:  # the same, of safetensors, or of a package that a tokenizer needs
        raise UsageError(_unreachable(name, error)) from error
    if report["missing_keys"]:  # transformers would only warn, and leave random weights in their place
        missing = ", ".join(sorted(report["missing_keys"])[:3])
        raise UsageError(f"the weights of 'hf_clip:{name}' lack {missing}; the checkpoint is not complete")
    label = folder.resolve().name if folder.is_dir() else name
    return TransformersEncoder(model, tokenizer, processor, label=label, dtype=dtype)


class TransformersEncoder(JointEncoder):
    """A CLIP or SigLIP model of transformers with its own processors; see `DualEncoder`. Rows have unit length.

    Args:
        model: `CLIPModel` or `SiglipModel`; it is frozen in place.
        tokenizer: Its tokenizer.
        processor: Its image processor.
        label: The name without the hash.
        dtype: Of the matrix products; None = float32.
    """

    def __init__(
        self, model: torch.nn.Module, tokenizer: Any, processor: Any, *, label: str, dtype: torch.dtype | None = None
    ) -> None:
        self.model: Any = freeze(model)
        self._tokenizer, self._processor = tokenizer, processor
        # SigLIP pools the last position, CLIP is cut at the padding: both need the padding on the right.
        self._tokenizer.padding_side = "right"
        self._lock = threading.Lock()  # a fast tokenizer raises "Already borrowed" when two threads call it
        self._is_siglip = self.model.config.model_type == "siglip"
        self._max_tokens = self.model.config.text_config.max_position_embeddings
        digest = hash_weights(model.state_dict())
        self.name = f"hf_clip:{label}@{digest[:12]}"
        self.weights_hash = digest[:16]
        kept = ("size", "crop_size", "resample", "image_mean", "image_std")
        facts = {key: value for key, value in processor.to_dict().items() if key in kept}
        self.preprocessing = f"{type(processor).__name__} " + ", ".join(f"{key} {facts[key]}" for key in sorted(facts))
        self.score_column = None if self._is_siglip else score_column(self.model.config.vision_config)
        self.device = torch.device("cpu")
        self.dtype = dtype
        side = self.model.config.vision_config.image_size
        self.image_dim = self.image(torch.zeros(1, 3, side, side)).shape[1]
        self.text_dim = self.text(self.tokenize([""])).shape[1]

    def preprocess(self, image: Image.Image) -> Float[Tensor, "3 h w"]:
        """One picture through the model's own image processor."""
        return self._processor(images=bounded_aspect(image), return_tensors="pt")["pixel_values"][0]

    def tokenize(self, texts: Sequence[str]) -> dict[str, Tensor]:
        """Token ids and mask, padded to the model's length (CLIP 77, SigLIP 64); what is longer is cut."""
        # SigLIP learned from lower-case text, but not every tokenizer on the hub does that by itself.
        prepared = [text.lower() for text in texts] if self._is_siglip else list(texts)
        with self._lock:
            batch = self._tokenizer(
                prepared,
                padding="max_length",
                truncation=True,
                max_length=self._max_tokens,
                return_attention_mask=True,
                return_tensors="pt",
            )
        return {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}

    def image(self, images: Tensor) -> Float[Tensor, "b d"]:
        """Image features of unit length."""
        with frozen_forward(self.device, self.dtype):
            features = self.model.get_image_features(pixel_values=images.to(self.device, non_blocking=True))
            return functional.normalize(pooled(features).float(), dim=-1)

    def text(self, tokens: dict[str, Tensor]) -> Float[Tensor, "b d"]:
        """Text features of unit length."""
        chunk = CHUNK if self.device.type == "cpu" else max(1, len(tokens["input_ids"]))
        with frozen_forward(self.device, self.dtype):
            if self._is_siglip:
                # Trained on padded texts without a mask, so all 64 positions count.
                return self._features({"input_ids": tokens["input_ids"]})
            return encode_by_length(tokens, self._features, chunk=chunk)

    def _features(self, tokens: dict[str, Tensor]) -> Tensor:
        batch = {name: tensor.to(self.device, non_blocking=True) for name, tensor in tokens.items()}
        return functional.normalize(pooled(self.model.get_text_features(**batch)).float(), dim=-1)

    def save_processors(self, folder: Path) -> None:
        """Files of tokenizer and image processor."""
        self._tokenizer.save_pretrained(folder)
        self._processor.save_pretrained(folder)


def pooled(output: Any) -> Tensor:
    """The projected features of `get_image_features` and its twin: transformers 4 returns the tensor itself,
    transformers 5 a model output that holds it as `pooler_output`."""
    return output if isinstance(output, Tensor) else output.pooler_output


def score_column(vision: Any) -> str | None:
    """DataComp's name for the cosine of a CLIP model, from the config of its vision tower; None for odd widths."""
    letter = WIDTHS.get(vision.hidden_size)
    size = "" if vision.image_size == 224 else f"_{vision.image_size}"
    return f"clip_{letter}{vision.patch_size}{size}_similarity_score" if letter else None


def _unreachable(name: str, error: Exception) -> str:
    return (
        f"the weights of 'hf_clip:{name}' could not be fetched or read ({reason(error)}); check the name and the "
        f"network; {LOCAL_HINT}"
    )


def _wrong_family(name: str, model_type: str) -> str:
    if model_type == "siglip2":
        return (
            f"'hf_clip:{name}' is a SigLIP 2 of variable resolution (NaFlex), which is not supported; use one of fixed "
            "resolution, such as google/siglip2-base-patch16-224"
        )
    return f"'hf_clip:{name}' is a model of type {model_type!r}; expected one of {', '.join(FAMILIES)}"
