"""Pictures as grids of tokens: one token for the whole and g x g for its parts, by the image tower of an encoder.

Frozen, they are computed once and kept in half precision; with a gradient, the tower is a part of the captioner.

Source: NoC (Kang et al., ICCV 2023): class token and 4 x 4 averaged patch tokens of a CLIP tower.
Differs: tokens are taken before the projection into the joint space, whose place the captioner's own linear map takes;
towers without a class token put the mean of their map in its place.
"""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from noisycorr.models.encoders.frozen import frozen_forward
from noisycorr.models.training.pictures import ImageStore, Pictures
from noisycorr.runtime import console, dist
from noisycorr.runtime.errors import UsageError
from noisycorr.runtime.folder import atomic_path, fingerprint, read_json, write_array, write_json

BATCH = 32  # pictures that are decoded and encoded at once
PART = 4 * BATCH  # of tokens that are kept when a command is killed
MADE = 2  # goes up when tokens of the same pictures change
Seen = tuple[Tensor | None, Tensor]  # class token (b, f) or None, and map (b, f, h, w)


class Tower(nn.Module):
    """Pixels to tokens.

    Args:
        inner: The image side of an encoder.
        look: From it and pixels to a class token, if it has one, and a map.
        side: g.
        dtype: Of matrix products where the tower is frozen, as the encoder has it; None = that of the weights.
    """

    def __init__(self, inner: nn.Module, look: Callable[[Any, Tensor], Seen], side: int,
                 dtype: torch.dtype | None = None) -> None:  # fmt: skip
        super().__init__()
        self.inner, self.look, self.side, self.dtype = inner, look, side, dtype

    def forward(self, pixels: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b m f"]:
        """m = 1 + g * g tokens of each picture."""
        whole, grid = self.look(self.inner, pixels)
        cells = functional.adaptive_avg_pool2d(grid, self.side).flatten(2).transpose(1, 2)
        return torch.cat([(grid.mean((2, 3)) if whole is None else whole)[:, None], cells], 1)

    def train(self, mode: bool = True) -> Tower:
        """Always as in use: statistics of batches would depend on how many processes there are."""
        return super().train(False)


def _embedded(backbone: Any, pixels: Tensor) -> Seen:
    return None, backbone.forward_features((pixels.to(next(backbone.parameters()).dtype) - 127) / 128)


def _tiny(convolution: Any, pixels: Tensor) -> Seen:
    return None, convolution(pixels.to(convolution.weight.dtype) / 127.5 - 1).relu()


def _open_clip(visual: Any, pixels: Tensor) -> Seen:
    pixels = pixels.to(next(visual.parameters()).dtype)
    options: dict[str, Any] = {"indices": 1, "normalize_intermediates": True, "intermediates_only": True}
    if hasattr(visual, "class_embedding"):
        found = visual.forward_intermediates(pixels, output_extra_tokens=True, **options)
        return found["image_intermediates_prefix"][-1][:, 0], found["image_intermediates"][-1]
    return None, visual.forward_intermediates(pixels, **options)["image_intermediates"][-1]


def _transformers(vision: Any, pixels: Tensor) -> Seen:
    states = vision(pixel_values=pixels.to(next(vision.parameters()).dtype)).last_hidden_state
    whole = None
    if hasattr(vision.embeddings, "class_embedding"):  # CLIP, which normalises the class token alone
        states = vision.post_layernorm(states)
        whole, states = states[:, 0], states[:, 1:]
    side = round(states.shape[1] ** 0.5)
    return whole, states.transpose(1, 2).unflatten(2, (side, -1))


def make_tower(encoder: Any, side: int, *, tuned: bool = False) -> Tower:
    """The image tower of an encoder.

    Args:
        encoder: From `load_encoder`.
        side: g.
        tuned: With a gradient, as a copy.

    Raises:
        UsageError: If this kind of encoder shows no grid.
    """
    model: Any = getattr(encoder, "model", None)
    inner: Any = None
    look: Callable[[Any, Tensor], Seen] = _embedded
    if hasattr(encoder, "backbone"):
        inner, look = encoder.backbone, _embedded
    elif hasattr(encoder, "convolution"):
        inner, look = encoder.convolution, _tiny
    elif hasattr(model, "vision_model"):
        inner, look = model.vision_model, _transformers
    elif hasattr(getattr(model, "visual", None), "forward_intermediates"):
        inner, look = model.visual, _open_clip
    if inner is None:
        raise UsageError(f"{encoder.name} shows no grid of its pictures: use `image_grid` 0, its stored vectors.")
    if tuned:
        inner = copy.deepcopy(inner).requires_grad_(True)
    return Tower(inner, look, side, getattr(encoder, "dtype", None)).eval()


class Pixels:
    """Preprocessed pictures of rows, decoded whenever they are asked for; zeros where there is no picture.

    Args:
        image_store: Where the pictures are.
        encoder: Whose preprocessing is used.
    """

    def __init__(self, image_store: ImageStore, encoder: Any) -> None:
        from PIL import Image

        self.nothing = torch.zeros_like(encoder.preprocess(Image.new("RGB", (32, 32))))
        self.shape = (len(image_store), *self.nothing.shape)
        self.pictures = Pictures(
            image_store=image_store, preprocess=encoder.preprocess, size=self.shape[-2:], aug_scale=1, seed=0
        )
        self.ndim = 4

    def __len__(self) -> int:
        return len(self.pictures.image_store)

    def __getitem__(self, rows: Int[np.ndarray, " k"]) -> np.ndarray:
        with ThreadPoolExecutor(4) as pool:
            return torch.stack(list(pool.map(self._one, rows.tolist()))).numpy() if len(rows) else np.zeros(
                (0, *self.shape[1:]), np.float32)  # fmt: skip

    def _one(self, row: int) -> Tensor:
        found = self.pictures[row, None]
        if isinstance(found, str):
            return self.nothing
        if not found.any():  # zeros stand for no picture, and this one is black
            found = found.clone()
            found.view(-1)[0] = 1
        return found


class Some:
    """Some rows of something large, copied only when they are asked for.

    Args:
        whole: An array, a memory map or `Pixels`.
        rows: int64 (n,).
    """

    def __init__(self, whole: Any, rows: Int[np.ndarray, " n"]) -> None:
        self.whole, self.rows = whole, np.asarray(rows, np.int64)
        self.shape, self.ndim = (len(self.rows), *whole.shape[1:]), len(whole.shape)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, place: Any) -> np.ndarray:
        return np.asarray(self.whole[self.rows[place]])


def grid_file(folder: Path, pixels: Pixels, tower: Tower, name: str, say: Callable[[str], Any]) -> np.ndarray:
    """Tokens of all pictures as a memory map float16 (n, m, f), computed once.

    They are made in parts that processes share, and a killed command goes on with the parts that are missing.

    Args:
        folder: For `tokens.npy`.
        pixels: Of n pictures.
        tower: Frozen.
        name: Of what the tokens depend on: pictures, weights, size of the grid.
        say: Told the size.
    """
    path, marker = folder / "tokens.npy", folder / "tokens.json"
    identity = fingerprint([name, tower.side, len(pixels), MADE])
    done = marker.is_file() and read_json(marker)["identity"] == identity
    parts, starts = folder / f"tokens-{identity}", range(0, len(pixels), PART)
    if not done:
        shape = (len(pixels), *grid_tokens(tower, np.zeros((1, *pixels.shape[1:]), np.float32)).shape[1:])
        if dist.is_main():
            say(f"{shape[1]} tokens of width {shape[2]} for {len(pixels):,} pictures: {2 * np.prod(shape) / 1e6:,.1f} "
                f"MB in half precision in {path}")  # fmt: skip
        lacking = [start for start in dist.my_share(starts) if not (parts / f"{start:09d}.npy").exists()]
        with console.bar(label="image tokens", total=len(lacking) * PART, hidden=not dist.is_main()) as bar:
            for start in lacking:
                rows = np.arange(start, min(start + PART, len(pixels)))
                found = [grid_tokens(tower, pixels[rows[i : i + BATCH]]) for i in range(0, len(rows), BATCH)]
                write_array(parts / f"{start:09d}.npy", np.concatenate(found))
                bar.update(PART)
    dist.wait()
    if dist.is_main() and not done:
        _join(path, [parts / f"{start:09d}.npy" for start in starts], shape)
        write_json(marker, {"identity": identity, "shape": list(shape), "bytes": path.stat().st_size})
        for left in folder.glob("tokens-*"):
            shutil.rmtree(left)
    dist.wait()
    return np.load(path, mmap_mode="r")


def grid_tokens(tower: Tower, pixels: Float[np.ndarray, "b 3 h w"]) -> Float[np.ndarray, "b m f"]:
    """float16 tokens of a frozen tower, zeros where there is no picture."""
    device = next(tower.parameters()).device
    with frozen_forward(device, tower.dtype):
        tokens = tower(torch.from_numpy(pixels).to(device)).float().cpu().numpy()
    tokens[~pixels.any((1, 2, 3))] = 0
    with np.errstate(over="ignore"):
        return np.asarray(np.nan_to_num(tokens.astype(np.float16), posinf=0, neginf=0))


def _join(path: Path, parts: Sequence[Path], shape: tuple[int, ...]) -> None:
    for left in path.parent.glob(f".{path.name}.*.tmp"):  # of a killed process, and large
        left.unlink()
    with atomic_path(path) as place:
        out, start = np.lib.format.open_memmap(place, mode="w+", dtype=np.float16, shape=shape), 0
        for part in parts:
            found = np.load(part, allow_pickle=False)
            out[start : start + len(found)] = found
            start += len(found)
        out.flush()
