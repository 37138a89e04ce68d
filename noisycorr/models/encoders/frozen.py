"""What the frozen encoders share: precision, identity of weights, encoding by length, rows of unit length."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor, nn

from noisycorr.runtime.errors import UsageError
from noisycorr.stats.unit import unit

PRECISIONS: dict[str, torch.dtype | None] = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
CHUNK = 32  # rows of one forward pass on a CPU: larger ones leave its cache and are slower, measured
MAX_ASPECT = 64
Self = TypeVar("Self", bound="JointEncoder")


def autocast_dtype(precision: str, device: torch.device) -> torch.dtype | None:
    """The dtype of matrix products for a precision, or None for plain float32.

    Raises:
        UsageError: If the precision is unknown or the device cannot run it.
    """
    if precision not in PRECISIONS:
        raise UsageError(f"precision {precision!r} is not known; use one of {', '.join(PRECISIONS)}")
    if precision == "fp16" and device.type == "cpu":
        raise UsageError("precision 'fp16' does not run on a CPU; use 'fp32' or 'bf16', or a GPU")
    return PRECISIONS[precision]


@contextlib.contextmanager
def frozen_forward(device: torch.device, dtype: torch.dtype | None) -> Iterator[None]:
    """No gradients, and matrix products in `dtype` (None = as the weights are)."""
    with torch.inference_mode(), torch.autocast(device.type, dtype=dtype, enabled=dtype is not None):
        yield


def freeze(model: nn.Module) -> Any:
    """The same model in eval mode, float32, its parameters without gradient.

    Typed Any, because its `encode_image`, `config` and the like are unknown to nn.Module.
    """
    return model.float().eval().requires_grad_(False)


def hash_weights(state: Mapping[str, Tensor]) -> str:
    """SHA-256 (64 hex digits) over names, dtypes, shapes and bytes of a state dict, in the order of the names."""
    digest = hashlib.sha256()
    for key in sorted(state):
        tensor = state[key].detach().cpu().contiguous()
        digest.update(f"{key} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def encode_by_length(
    tokens: Mapping[str, Tensor], encode: Callable[[dict[str, Tensor]], Tensor], *, chunk: int
) -> Float[Tensor, "b e"]:
    """Encode right-padded texts in chunks of like length without the padding they do not need.

    Args:
        tokens: Tensors (b, t), among them `attention_mask` with 1 on tokens and 0 on the padding after them.
        encode: One chunk of the same tensors to (rows, e).
        chunk: Rows of one forward pass.

    Returns:
        One row for each text, in the order that came. The result depends on padding only by rounding, about 1e-7.
    """
    lengths = tokens["attention_mask"].sum(dim=1)
    order = torch.argsort(lengths, stable=True)
    parts = []
    for rows in order.split(chunk):
        longest = max(1, int(lengths[rows].max()))
        parts.append(encode({name: tensor[rows, :longest] for name, tensor in tokens.items()}))
    features = torch.cat(parts)
    return features[torch.argsort(order).to(features.device)]


def bounded_aspect(image: Image.Image) -> Image.Image:
    """The picture in RGB; of one longer than 64 times its width only the middle.

    Transforms that scale the shorter side to 224 would make 1.5 GB out of a picture of 10,000 x 1 pixels, only to
    keep the square in its middle.
    """
    width, height = image.size
    longest = MAX_ASPECT * min(width, height)
    left, top = max(0, width - longest) // 2, max(0, height - longest) // 2
    if left or top:
        image = image.crop((left, top, left + min(width, longest), top + min(height, longest)))
    return image.convert("RGB")


def check_width(name: str, side: str, features: np.ndarray, width: int) -> None:
    """Refuse features that another encoder made.

    Raises:
        UsageError: If `features` is not (n, width).
    """
    if features.ndim != 2 or features.shape[1] != width:
        raise UsageError(
            f"the {side} features have shape {features.shape}, but the encoder {name} makes (n, {width}); "
            "use the encoder that made them"
        )


class JointEncoder:
    """An encoder whose two sides live in one space already, as those of CLIP models do; see `DualEncoder`.

    Attributes:
        model: Of any library; `to` moves it.
        device: Where it is.
    """

    joint = True
    model: Any
    device: torch.device
    name: str
    image_dim: int
    text_dim: int

    def joint_space(self, image: np.ndarray, text: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The features themselves, scaled to unit length again (float16 loses a little of it).

        Raises:
            UsageError: If the widths are not this model's.
        """
        check_width(self.name, "image", image, self.image_dim)
        check_width(self.name, "text", text, self.text_dim)
        return unit(image), unit(text)

    def to(self: Self, device: torch.device) -> Self:
        """Move the weights in place."""
        self.model.to(device)
        self.device = device
        return self


def reason(error: Exception) -> str:
    """The start of another library's error, short enough to stand inside one sentence."""
    first = (str(error).strip() or type(error).__name__).splitlines()[0]
    return first if len(first) <= 160 else first[:157] + "..."


@contextlib.contextmanager
def no_progress_bar() -> Iterator[None]:
    """Let transformers load weights without a bar of its own."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
