"""LoRA on the blocks of an encoder, through peft, and back to a model without it."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from noisycorr.runtime.errors import UsageError


class PlainAttention(nn.Module):
    """`nn.MultiheadAttention` of one sequence with itself, made of two linear layers that can be adapted.

    peft adapts `nn.MultiheadAttention` too, but by adding to its weights before each pass and subtracting after it:
    they drift, and a training that continues from stored weights would not be the same.
    """

    def __init__(self, attention: nn.MultiheadAttention) -> None:
        super().__init__()
        width, bias = attention.embed_dim, attention.in_proj_bias is not None
        self.heads = attention.num_heads
        self.qkv, self.out = nn.Linear(width, 3 * width, bias=bias), nn.Linear(width, width, bias=bias)
        self.qkv.weight, self.qkv.bias = attention.in_proj_weight, attention.in_proj_bias
        self.out.weight, self.out.bias = attention.out_proj.weight, attention.out_proj.bias

    def forward(self, query: Tensor, key: Tensor, value: Tensor, *, need_weights: bool = False,
                attn_mask: Tensor | None = None) -> tuple[Tensor, None]:  # fmt: skip
        """(b, t, d) to (b, t, d); key and value must be the query."""
        b, t, d = query.shape
        parts = self.qkv(query).view(b, t, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(parts[0], parts[1], parts[2], attn_mask=attn_mask)
        return self.out(mixed.transpose(1, 2).reshape(b, t, d)), None

    def back(self) -> nn.MultiheadAttention:
        """The attention that it was made of, with the weights of now."""
        bias = self.qkv.bias is not None
        attention = nn.MultiheadAttention(self.out.in_features, self.heads, bias=bias, batch_first=True)
        attention.in_proj_weight, attention.in_proj_bias = self.qkv.weight, self.qkv.bias  # type: ignore[assignment]
        attention.out_proj.weight, attention.out_proj.bias = self.out.weight, self.out.bias
        return attention


def add_lora(model: nn.Module, places: Sequence[str], *, rank: int, alpha: float) -> Any:
    """Add low-rank matrices to all linear layers in some parts of a model; only they have a gradient.

    Args:
        model: Frozen; changed in place.
        places: Names of its lists of blocks.
        rank: Of the matrices.
        alpha: Their product is scaled by alpha / rank.

    Raises:
        UsageError: If peft is not installed, or there are no linear layers.

    Source: LoRA (Hu et al., ICLR 2022).
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise UsageError("`train_part` lora needs peft: pip install 'noisycorr[lora]'.") from error
    inside = tuple(f"{place}." for place in places)
    for name, module in list(model.named_modules()):
        if name.startswith(inside) and type(module) is nn.MultiheadAttention and module.batch_first:
            _replace(model, name, PlainAttention(module))
    targets = [name for name, module in model.named_modules() if name.startswith(inside) and type(module) is nn.Linear]
    if not targets:
        raise UsageError("`train_part` lora finds no linear layers in the blocks of this encoder: use whole.")
    config = LoraConfig(r=rank, lora_alpha=alpha, target_modules=targets, lora_dropout=0.0)  # type: ignore[arg-type]
    return inject_adapter_in_model(config, model)


def merged(model: Any) -> Any:
    """The model without LoRA layers: what they learned is added to the weights. The given one stays as it is."""
    try:
        from peft.tuners.tuners_utils import BaseTunerLayer
    except ImportError:
        return model
    if not any(isinstance(module, BaseTunerLayer) for module in model.modules()):
        return model
    model = copy.deepcopy(model)
    with torch.no_grad():
        for name, layer in [(n, m) for n, m in model.named_modules() if isinstance(m, BaseTunerLayer)]:
            layer.merge()
            _replace(model, name, layer.get_base_layer())
    for name, attention in [(n, m) for n, m in model.named_modules() if isinstance(m, PlainAttention)]:
        _replace(model, name, attention.back())
    return model


def _replace(model: nn.Module, name: str, module: nn.Module) -> None:
    place, _, last = name.rpartition(".")
    setattr(model.get_submodule(place), last, module)
