"""A backbone, a classifier, the modules of a method, and slow copies of some of them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from noisycorr.models.encoders.backbones import Backbone
from noisycorr.models.training.heads import RetrievalNetwork, RowDropout
from noisycorr.models.training.tune_choice import Tune
from noisycorr.models.training.tuned import choose_part

JITTER = 0.4  # brightness of the strong view of a picture


class FeatureBackbone(nn.Module):
    """Stored features, centred and scaled, then one hidden layer if there is one.

        v = (x - mean) / scale,   or   gelu(W (x - mean) / scale + b)

    The scale is one number, the root of the mean variance: dividing each feature by its own would blow up the faintest
    principal components, in which there is little but noise to learn by heart.

    Args:
        width: Of the features.
        hidden: Of the layer; 0 = the features themselves, so that nothing is trained before the classifier.
    """

    def __init__(self, width: int, hidden: int = 0) -> None:
        super().__init__()
        self.mean: Tensor
        self.scale: Tensor
        self.dim = hidden or width
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("scale", torch.ones(1))
        self.body = nn.Sequential(nn.Linear(width, hidden), nn.GELU()) if hidden else nn.Identity()

    def standardise(self, features: Float[np.ndarray, "n d"]) -> None:
        """Take mean and scale of the training features."""
        wide = np.asarray(features, np.float64)
        self.mean.copy_(torch.from_numpy(wide.mean(0)))
        self.scale.fill_(max(float(np.sqrt(wide.var(0).mean())), 1e-12))

    def forward(self, x: Float[Tensor, "b w"]) -> Float[Tensor, "b d"]:
        """Features, not of unit length."""
        out: Tensor = self.body((x - self.mean) / self.scale)
        return out


class PictureBackbone(nn.Module):
    """An image encoder that is fine-tuned. Batch norms keep their statistics.

    Args:
        encoder: Where it comes from.
        tune: Which part is trained.
    """

    def __init__(self, encoder: Backbone, tune: Tune) -> None:
        super().__init__()
        self.encoder, self.dim = encoder, encoder.dim
        self.tower = choose_part(encoder.fresh().eval(), tune)

    def forward(self, pixels: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b d"]:
        """Features, not of unit length."""
        return self.encoder.image(self.tower, pixels)

    def fixed(self) -> set[str]:
        """Weights that are as they were published."""
        return {name for name, p in self.named_parameters() if not p.requires_grad}

    def __deepcopy__(self, memo: dict[int, Any]) -> PictureBackbone:
        """Another model; the encoder that it came from is shared."""
        made = PictureBackbone.__new__(PictureBackbone)
        nn.Module.__init__(made)
        made.encoder, made.dim, made.tower = self.encoder, self.dim, copy.deepcopy(self.tower, memo)
        made.train(self.training)
        return made

    def train(self, mode: bool = True) -> PictureBackbone:
        """Batch norms stay in evaluation mode: statistics of a batch would depend on how many processes there are."""
        super().train(mode)
        for module in self.tower.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()
        return self


class StrongView(RowDropout):
    """Another view of what goes into a backbone: features lose some numbers, pictures are flipped and lit otherwise.

    The random numbers belong to the global batch, as those of `RowDropout`.
    """

    def forward(self, x: Tensor) -> Tensor:
        """As it is in evaluation mode."""
        if x.ndim == 2 or not self.training:
            return super().forward(x)
        size, rows = self.window or (len(x), slice(None))
        draw = torch.rand(size, 2, device=x.device)[rows].to(x.dtype)
        light = 1 + JITTER * (2 * draw[:, 1] - 1)
        return torch.where(draw[:, 0, None, None, None] < 0.5, x.flip(-1), x) * light[:, None, None, None]


class ClassNetwork(RetrievalNetwork):
    """What learns from labels.

    Args:
        backbone: Images to features; its `dim` says how wide.
        classes: c.
        modules: Gives the modules of the method for a width of the features.
        slow: Parts that have a slow copy: backbone, classifier, or names of modules.
        view: Share of the features that the strong view drops, in [0, 1).
    """

    def __init__(self, backbone: nn.Module, classes: int, modules: Callable[[int], Mapping[str, nn.Module]], *,
                 slow: Sequence[str] = (), view: float = 0.2) -> None:  # fmt: skip
        dim: int = backbone.dim  # type: ignore[assignment]
        super().__init__(heads=modules(dim))
        self.log_temperature.requires_grad_(False)  # no similarity of texts is learned here
        self.backbone, self.view = backbone, StrongView(view)
        self.classifier = nn.Linear(dim, classes, bias=False)
        own = backbone.fixed() if isinstance(backbone, PictureBackbone) else set()
        self._fixed = {f"backbone.{name}" for name in own}
        self.slow = nn.ModuleDict({name: copy.deepcopy(self._part(name)).requires_grad_(False) for name in slow})

    def image(self, inputs: Any) -> Float[Tensor, "b d"]:
        """Features of images."""
        out: Tensor = self.backbone(inputs)
        return out

    def other_view(self, inputs: Any, *, slow: bool) -> Float[Tensor, "b d"]:
        """Features of the strong view, by the backbone or its slow copy."""
        backbone = self.slow["backbone"] if slow and "backbone" in self.slow else self.backbone
        out: Tensor = backbone(self.view(inputs))
        return out

    @torch.no_grad()
    def follow(self, decay: float) -> None:
        """Move the slow copies: theta_slow <- decay * theta_slow + (1 - decay) * theta. Buffers stay their own."""
        for name, module in self.slow.items():
            for kept, current in zip(module.parameters(), self._part(name).parameters()):
                kept.lerp_(current, 1 - decay)

    def fixed(self) -> set[str]:
        """Weights of an image encoder that are as they were published."""
        return self._fixed

    def facts(self) -> dict[str, Any]:
        """Widths, and the image encoder."""
        out = {"kind": "classes", "dim": self.classifier.in_features, "classes": self.classifier.out_features}
        return out | ({"backbone": self.backbone.encoder.name} if isinstance(self.backbone, PictureBackbone) else {})

    def _part(self, name: str) -> nn.Module:
        return self.backbone if name == "backbone" else self.classifier if name == "classifier" else self.heads[name]
