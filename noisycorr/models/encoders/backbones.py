"""Image encoders to fine-tune as classifiers: those of timm and torchvision, and the image side of a dual encoder.

    backbone = load_backbone("timm:resnet50@resnet50.safetensors")
    model = backbone.fresh()
    backbone.image(model, pixels)                                     # (b, dim)

Their classifiers are taken off. Weights come from the hub of the library, from a file, or from nowhere (`@none`).
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor, nn

from noisycorr.models.encoders import load_trainable
from noisycorr.models.encoders.frozen import bounded_aspect, hash_weights, reason
from noisycorr.models.encoders.trainable import SCRATCH, Trainable
from noisycorr.runtime.errors import UsageError

FORMS = ("timm:NAME, torchvision:NAME, each with @FILE for local weights (.safetensors, or .pt and .pth with tensors "
         "only) or @none for random ones, timm:local-dir:FOLDER, open_clip:..., hf_clip:..., scratch:vit or "
         "scratch:cnn")  # fmt: skip
NONE = "none"
TEXT_SIDE = ("text_model", "text_projection")  # of transformers


class Backbone(Protocol):
    """An image encoder that can be fine-tuned."""

    @property
    def name(self) -> str:
        """Library, model and the start of the SHA-256 of the weights, or `random`."""

    @property
    def preprocessing(self) -> str:
        """What `preprocess` does, in words."""

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the pictures that the model takes."""

    @property
    def dim(self) -> int:
        """Width d of a feature."""

    @property
    def random(self) -> bool:
        """Does every training begin at other weights?"""

    def preprocess(self, image: Image.Image) -> Tensor:
        """One picture of any size to (3, h, w) on the CPU."""

    def fresh(self) -> Any:
        """A model to train: a copy of the pretrained one, or a random one from the generator of torch."""

    def image(self, model: Any, pixels: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b d"]:
        """Features with gradient, not normalised."""


@dataclass(frozen=True, kw_only=True)
class PlainBackbone:
    """A model of timm or torchvision without its classifier; see `Backbone`."""

    name: str
    preprocessing: str
    size: tuple[int, int]
    dim: int
    random: bool
    transform: Callable[[Image.Image], Tensor]
    build: Callable[[], nn.Module]
    model: nn.Module

    def preprocess(self, image: Image.Image) -> Tensor:
        """The transform that the library gives the model for testing."""
        return self.transform(bounded_aspect(image))

    def fresh(self) -> nn.Module:
        """See `Backbone`."""
        return self.build() if self.random else copy.deepcopy(self.model)

    def image(self, model: nn.Module, pixels: Tensor) -> Tensor:
        """See `Backbone`."""
        features: Tensor = model(pixels)
        return features


class ImageSide:
    """The image side of a dual encoder; the text side is not kept. See `Backbone`.

    Args:
        trainable: The dual encoder.
        random: Does it begin at random weights?
    """

    def __init__(self, trainable: Trainable, *, random: bool) -> None:
        self.trainable, self.random, self.size = trainable, random, trainable.size
        encoder = trainable.encoder
        self.name, self.preprocessing, self.dim = encoder.name, encoder.preprocessing, encoder.image_dim

    def preprocess(self, image: Image.Image) -> Tensor:
        """As the encoder does."""
        return self.trainable.encoder.preprocess(image)

    def fresh(self) -> Any:
        """See `Backbone`."""
        model = self.trainable.fresh()
        if self.trainable.family == "open_clip":
            return model.visual
        for part in TEXT_SIDE:
            if hasattr(model, part):
                setattr(model, part, None)
        return model

    def image(self, model: Any, pixels: Tensor) -> Tensor:
        """See `Backbone`."""
        if self.trainable.family != "open_clip":
            return self.trainable.image(model, pixels)
        features = model(pixels)
        out: Tensor = features[0] if isinstance(features, tuple) else features  # CoCa gives its tokens, too
        return out


def load_backbone(spec: str) -> Backbone:
    """The image encoder that a spec names, one of `FORMS`.

    Raises:
        UsageError: If there is no such model, or its weights cannot be reached or read.
    """
    library, _, target = spec.partition(":")
    if library == "timm" and target:
        return _timm(target)
    if library == "torchvision" and target:
        return _torchvision(target)
    if library in ("open_clip", "hf_clip", "transformers", "scratch"):
        return ImageSide(load_trainable(spec), random=spec.startswith(SCRATCH))
    raise UsageError(f"`backbone` {spec!r} is not known; accepted are {FORMS}.")


def _timm(target: str) -> PlainBackbone:
    import timm
    from timm.data import create_transform, resolve_model_data_config

    if target.startswith("local-dir:"):
        name, weights = str(Path(target.removeprefix("local-dir:")).expanduser().resolve()), ""
        label, name = Path(name).name, f"local-dir:{name}"
    else:
        name, _, weights = target.partition("@")
        label = name
        if not timm.is_model(name):
            raise UsageError(f"`backbone` timm:{name}: timm has no such model; timm.list_models() lists them.")

    def build(pretrained: bool = False) -> nn.Module:
        made: nn.Module = timm.create_model(name, pretrained=pretrained, num_classes=0)
        return made

    try:
        model = build(pretrained=not weights)
    except Exception as error:
        raise _unreachable(f"timm:{target}", error) from error
    config = resolve_model_data_config(model)
    if weights not in ("", NONE):
        _fill(model, Path(weights), ("fc", "classifier", "head.fc", "head", "heads"))
    return _plain(f"timm:{label}", model, build, create_transform(**config, is_training=False),
                  tuple(config["input_size"][1:]), random=weights == NONE)  # fmt: skip


def _torchvision(target: str) -> PlainBackbone:
    from torchvision import models

    name, _, weights = target.partition("@")
    if name not in models.list_models(module=models):
        raise UsageError(f"`backbone` torchvision:{name}: torchvision has no such classifier; "
                         "torchvision.models.list_models() lists them.")  # fmt: skip
    published = models.get_model_weights(name).DEFAULT

    def build(given: Any = None) -> nn.Module:
        made: nn.Module = models.get_model(name, weights=given)
        place = [key for key, module in made.named_modules() if isinstance(module, nn.Linear)][-1]
        made.set_submodule(place, nn.Identity())
        return made

    try:
        model = build(None if weights else published)
    except Exception as error:
        raise _unreachable(f"torchvision:{target}", error) from error
    if weights not in ("", NONE):
        _fill(model, Path(weights), ("fc", "classifier", "head", "heads"))
    transform = published.transforms()
    side = transform.crop_size[0]
    return _plain(f"torchvision:{name}", model, build, transform, (side, side), random=weights == NONE)


def _plain(name: str, model: nn.Module, build: Callable[[], nn.Module], transform: Any, size: tuple[int, int], *,
           random: bool) -> PlainBackbone:  # fmt: skip
    model = model.float().eval()
    with torch.no_grad():
        out = model(torch.zeros(1, 3, *size))
    if not isinstance(out, Tensor) or out.ndim != 2:
        raise UsageError(f"`backbone` {name} does not give one vector for a picture.")
    words = " ".join(str(transform).split())
    label = "random" if random else hash_weights(model.state_dict())[:12]
    return PlainBackbone(name=f"{name}@{label}", preprocessing=words, size=size, dim=out.shape[1], random=random,
                         transform=transform, build=build, model=model)  # fmt: skip


def _fill(model: nn.Module, path: Path, heads: tuple[str, ...]) -> None:
    """Take weights from a file; those of a classifier are left out.

    Raises:
        UsageError: If it cannot be read, or holds another model.
    """
    path = path.expanduser()
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            state = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
            state = state.get("state_dict", state)
    except Exception as error:
        raise UsageError(f"`backbone`: the weights {path} could not be read: {reason(error)}.") from error
    own = model.state_dict()
    extra = [key for key in state if key not in own and not any(key.startswith(f"{head}.") for head in heads)]
    missing = [key for key in own if key not in state and not key.endswith("num_batches_tracked")]
    other = [key for key in own if key in state and own[key].shape != state[key].shape]
    if wrong := [*missing, *extra, *other]:
        raise UsageError(f"`backbone`: {path} holds weights of another model: {wrong[0]} does not fit.")
    model.load_state_dict({key: value for key, value in state.items() if key in own}, strict=False)


def _unreachable(spec: str, error: Exception) -> UsageError:
    return UsageError(f"`backbone` {spec}: its weights cannot be reached ({reason(error)}); name a local file as "
                      f"{spec.split('@')[0]}@FILE, or {spec.split('@')[0]}@none for random weights.")  # fmt: skip
