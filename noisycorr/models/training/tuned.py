"""A network that is a whole encoder, and which part of it is trained: everything, the last blocks, or LoRA matrices."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from noisycorr.models.encoders.trainable import Trainable
from noisycorr.models.training.heads import RetrievalNetwork
from noisycorr.models.training.lora import add_lora, merged
from noisycorr.models.training.tune_choice import Tune
from noisycorr.runtime.errors import UsageError

BLOCKS = ("resblocks", "layers", "blocks", "stages", "layer")  # what lists of blocks are called
AFTER = ("ln_post", "proj", "head", "head_norm", "norm", "attn_pool", "ln_final", "text_projection",
         "visual_projection", "post_layernorm", "final_layer_norm")  # fmt: skip
NEVER = ("logit_scale", "logit_bias")  # our own temperature stands in for them


class TunedNetwork(RetrievalNetwork):
    """An encoder with its own preprocessing, trained as a whole or in part. Batch norms keep their statistics.

    Args:
        trainable: The encoder.
        tune: Which part is trained.
        heads: Modules of the strategy.
        temperature: First value; None = the encoder's own.
    """

    def __init__(self, trainable: Trainable, tune: Tune, *, heads: Mapping[str, nn.Module] | None = None,
                 temperature: float | None = None) -> None:  # fmt: skip
        super().__init__(temperature=trainable.temperature if temperature is None else temperature, heads=heads)
        self.trainable = trainable
        self.tower = choose_part(trainable.fresh().eval(), tune)
        self._fixed = {f"tower.{name}" for name, p in self.tower.named_parameters() if not p.requires_grad}

    def fixed(self) -> set[str]:
        """Weights of the encoder that are as they were."""
        return self._fixed

    def image(self, inputs: Tensor) -> Tensor:
        """Unit rows of pictures."""
        return self._unit(self.trainable.image(self.tower, inputs))

    def text(self, inputs: tuple[Tensor, Tensor]) -> Tensor:
        """Unit rows of token ids with their lengths."""
        return self._unit(self.trainable.text(self.tower, *inputs))

    def train(self, mode: bool = True) -> TunedNetwork:
        """Batch norms stay in evaluation mode: statistics of a batch would depend on how many processes there are."""
        super().train(mode)
        for module in self.tower.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()
        return self

    def facts(self) -> dict[str, Any]:
        """The encoder is in the folder `networks`, whole."""
        return {"kind": "tuned", "family": self.trainable.family}

    def export(self, folder: Path) -> None:
        """Write the encoder as its library reads it, LoRA matrices merged."""
        self.trainable.save(merged(self.tower), folder, temperature=float(self.temperature.detach()))


def choose_part(model: Any, tune: Tune) -> Any:
    """Switch the gradient on for the part that is trained; for LoRA, add its matrices.

    Raises:
        UsageError: If there are no such blocks, or peft is not installed.
    """
    model.requires_grad_(tune.train_part == "whole")
    if tune.train_part == "last_blocks":
        _open_last(model, tune.last_blocks)
    elif tune.train_part == "lora":
        model = add_lora(model, list(block_lists(model)), rank=tune.lora_rank, alpha=tune.lora_alpha)
    for name, parameter in model.named_parameters():
        if name in NEVER:
            parameter.requires_grad_(False)
    return model


def block_lists(model: nn.Module) -> dict[str, Any]:
    """The lists of blocks by name: one of the image tower and one of the text tower, as a rule."""
    kinds = (nn.ModuleList, nn.Sequential)
    found = {name: module for name, module in model.named_modules()
             if name.split(".")[-1] in BLOCKS and isinstance(module, kinds) and len(module) > 1}  # fmt: skip
    return {name: module for name, module in found.items() if not any(name.startswith(f"{x}.") for x in found)}


def _open_last(model: nn.Module, count: int) -> None:
    """The last blocks of each tower and all that comes after them."""
    lists = block_lists(model)
    if not lists:
        raise UsageError("`train_part` last_blocks finds no blocks in this encoder: use whole.")
    for name, blocks in lists.items():
        if count > len(blocks):
            raise UsageError(f"`last_blocks` is {count}, but {name} has {len(blocks)} blocks.")
        blocks[-count:].requires_grad_(True)
    for name, parameter in model.named_parameters():
        words = name.split(".")
        inside = any(name.startswith(f"{place}.") for place in lists) or "patch_embed" in words
        if not inside and set(words) & set(AFTER):
            parameter.requires_grad_(True)
