"""Pictures through a frozen image tower, with learned vectors among its patches.

Hooks insert the vectors behind the class token, where there is one, before the first layer norm; they have no position
of their own. A deep prompt is put in their place again before every further layer. No code of the tower is touched.

Source: VPT-shallow and VPT-deep (Jia et al., ECCV 2022), at the place where GRIP's released code has them.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from noisycorr.models.encoders.trainable import OpenClipTrainable, TransformersTrainable
from noisycorr.runtime.errors import UsageError


class Vision:
    """The image tower of a CLIP or SigLIP that takes a prompt.

    Args:
        encoder: `OpenClipEncoder` or `TransformersEncoder`.

    Attributes:
        width: Of the vectors of the tower.
        layers: Of the tower.
        patch: Side of a patch in pixels.
        dim: Of the joint space.

    Raises:
        UsageError: If prompts cannot be put into the tower.
    """

    def __init__(self, encoder: Any) -> None:
        kind = type(encoder).__name__
        if kind not in ("OpenClipEncoder", "TransformersEncoder"):
            raise UsageError(
                f"the encoder {encoder.name} has no image tower for prompts: use `prompt` text, or `clip_model` "
                "open_clip:... or hf_clip:..."
            )
        self.model, self.dim = encoder.model, encoder.image_dim
        if kind == "OpenClipEncoder":
            self.trainable: Any = OpenClipTrainable(encoder)
            tower = encoder.model.visual
            if not hasattr(tower, "ln_pre") or not hasattr(getattr(tower, "transformer", None), "resblocks"):
                raise UsageError(
                    f"prompts cannot be put into the image tower of {encoder.name}: it is no open_clip ViT."
                )
            self._entry, self._before, self._at = tower.ln_pre, True, 1
            self._layers: list[nn.Module] = list(tower.transformer.resblocks)
            self._batch_first = bool(getattr(tower.transformer, "batch_first", True))
            self.width, self.patch = tower.positional_embedding.shape[-1], tower.conv1.kernel_size[0]
        else:
            self.trainable = TransformersTrainable(encoder)
            config, tower = encoder.model.config.vision_config, encoder.model.vision_model
            clip = hasattr(tower, "pre_layrnorm")
            self._entry = tower.pre_layrnorm if clip else tower.embeddings
            self._before, self._at, self._batch_first = clip, int(clip), True
            self._layers = list(tower.encoder.layers)
            self.width, self.patch = config.hidden_size, config.patch_size
        self.layers = len(self._layers)

    def __call__(self, pixels: Float[Tensor, "b 3 h w"], prompt: Float[Tensor, "l m w"]) -> Float[Tensor, "b d"]:
        """Image features, not normalised.

        Args:
            pixels: Preprocessed.
            prompt: One for the first layer (l = 1), or for each of the first l layers; m may be 0.
        """
        handles = [self._enter(prompt[0])]
        handles += [self._again(self._layers[number], prompt[number]) for number in range(1, len(prompt))]
        try:
            features: Tensor = self.trainable.image(self.model, pixels)
            return features
        finally:
            for handle in handles:
                handle.remove()

    def _enter(self, tokens: Tensor) -> Any:
        at = self._at

        def insert(states: Tensor) -> Tensor:
            mine = tokens.to(states.dtype).expand(len(states), -1, -1)
            return torch.cat([states[:, :at], mine, states[:, at:]], dim=1)

        if self._before:
            return self._entry.register_forward_pre_hook(lambda module, given: (insert(given[0]), *given[1:]))
        return self._entry.register_forward_hook(lambda module, given, output: insert(output))

    def _again(self, layer: nn.Module, tokens: Tensor) -> Any:
        at, count, batch_first = self._at, len(tokens), self._batch_first

        def replace(states: Tensor) -> Tensor:
            rows = states if batch_first else states.transpose(0, 1)
            mine = tokens.to(rows.dtype).expand(len(rows), -1, -1)
            rows = torch.cat([rows[:, :at], mine, rows[:, at + count :]], dim=1)
            return rows if batch_first else rows.transpose(0, 1)

        def hook(module: nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> Any:
            if given:
                return (replace(given[0]), *given[1:]), named
            return given, named | {"hidden_states": replace(named["hidden_states"])}

        return layer.register_forward_pre_hook(hook, with_kwargs=True)
