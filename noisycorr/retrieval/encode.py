"""Pictures and texts, or their features, to the vectors of a trained model."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from noisycorr.data.readers.images import BadImage, decode_image
from noisycorr.models.encoders import DualEncoder
from noisycorr.models.training.heads import Network, RetrievalNetwork
from noisycorr.models.training.tuned import TunedNetwork
from noisycorr.retrieval.scoreboard import evaluating
from noisycorr.runtime.errors import UsageError

BATCH = 64
TAKEN = {"image": "PIL images or paths of pictures", "text": "texts"}


def encode(
    networks: Sequence[RetrievalNetwork], values: Any, side: str, encoder_of_run: Callable[[], DualEncoder]
) -> Float[np.ndarray, "n k"]:
    """Unit rows whose dot products are the mean similarity of all networks.

    Each network has a space of its own; their vectors stand side by side, divided by the root of their number.

    Args:
        networks: Of one training.
        values: Pictures or texts, one or several; for heads on stored features also these, (n, d).
        side: image or text.
        encoder_of_run: Loads the encoder of the pairs that heads were trained on.

    Returns:
        float32 (n, d times the number of networks).

    Raises:
        UsageError: If the networks have no such space, or do not take such values.
    """
    first = networks[0]
    if not isinstance(first, (Network, TunedNetwork)):
        raise UsageError("this model was trained on region features, which no encoder here makes of a picture: "
                         "`noisycorr evaluate` measures it.")  # fmt: skip
    features = _as_array(values)
    if isinstance(first, Network):
        if features is None:
            features = encoder_features(encoder_of_run(), _listed(values, side), side)
        width = first.shape[f"{side}_dim"]
        if features.ndim != 2 or features.shape[1] != width:
            raise UsageError(f"the {side} features have shape {features.shape}, expected (n, {width}); or give "
                             f"{TAKEN[side]}.")  # fmt: skip
        return _side_by_side(networks, len(features), side, lambda _, rows: _as_input(first, features[rows]))
    if features is not None:
        raise UsageError(f"this model is a fine-tuned encoder, which takes {TAKEN[side]}, but an array of shape "
                         f"{features.shape} was given.")  # fmt: skip
    items = _listed(values, side)
    return _side_by_side(networks, len(items), side, lambda network, rows: _tuned_input(network, items[rows], side))


def encoder_features(encoder: DualEncoder, items: Sequence[Any], side: str) -> Float[np.ndarray, "n d"]:
    """Features of pictures or texts, as `clean` stores them."""
    parts = []
    for start in range(0, len(items), BATCH):
        part = items[start : start + BATCH]
        if side == "image":
            found = encoder.image(torch.stack([encoder.preprocess(opened(item)) for item in part]))
        else:
            found = encoder.text(encoder.tokenize(part))
        parts.append(found.float().cpu().numpy())
    width = encoder.image_dim if side == "image" else encoder.text_dim
    return np.concatenate(parts) if parts else np.zeros((0, width), np.float32)


def opened(picture: Image.Image | str | os.PathLike[str]) -> Image.Image:
    """A picture in RGB.

    Raises:
        UsageError: If it cannot be read.
    """
    if isinstance(picture, Image.Image):
        return picture.convert("RGB")
    try:
        return decode_image(Path(picture)).image
    except (BadImage, OSError) as error:
        raise UsageError(f"the picture {picture} cannot be read: {error}.") from error


@torch.no_grad()
def _side_by_side(
    networks: Sequence[RetrievalNetwork], count: int, side: str, give: Callable[[Any, slice], Any]
) -> np.ndarray:
    out = []
    for network in networks:
        run = network.image if side == "image" else network.text
        with evaluating(network):
            parts = [run(give(network, slice(at, at + BATCH))) for at in range(0, count, BATCH)]
        width = network.shape["dim"] if isinstance(network, Network) else 0
        out.append(torch.cat(parts).cpu().numpy() if parts else np.zeros((0, width)))
    return (np.concatenate(out, axis=1) / np.sqrt(len(networks))).astype(np.float32)


def _as_input(network: RetrievalNetwork, features: np.ndarray) -> Tensor:
    weight = network.log_temperature
    return torch.from_numpy(np.ascontiguousarray(features)).to(weight.device, weight.dtype)


def _tuned_input(network: TunedNetwork, items: Sequence[Any], side: str) -> Any:
    trainable, weight = network.trainable, network.log_temperature
    if side == "image":
        pixels = torch.stack([trainable.encoder.preprocess(opened(item)) for item in items])
        return pixels.to(weight.device, weight.dtype)
    ids, lengths = map(torch.from_numpy, trainable.tokens(items))
    return ids.long().to(weight.device), lengths


def _as_array(values: Any) -> np.ndarray | None:
    """An array of numbers, or None if it is something else."""
    if isinstance(values, Tensor):
        values = values.detach().cpu().numpy()
    return values if isinstance(values, np.ndarray) and values.dtype.kind in "fiu" else None


def _listed(values: Any, side: str) -> list[Any]:
    """One or several as a list.

    Raises:
        UsageError: If they are of no type that is taken.
    """
    kinds: tuple[type, ...] = (str,) if side == "text" else (str, os.PathLike, Image.Image)
    items = [values] if isinstance(values, kinds) else list(values) if isinstance(values, Iterable) else [values]
    if bad := [item for item in items if not isinstance(item, kinds)]:
        raise UsageError(f"a {side} is a {type(bad[0]).__name__}, expected {TAKEN[side]}, or an array of features.")
    return items
