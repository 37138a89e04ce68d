"""A causal language model of transformers as the decoder of a captioner: prefix, LoRA, cache, folder."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from caption_data import open_small, world
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from noisycorr.captioner.choice import Decode
from noisycorr.captioner.stored import load_captioner
from noisycorr.captioner.teach import train_class
from noisycorr.captioner.train import backward
from noisycorr.pairs import UsageError


@pytest.fixture(scope="module")
def models_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny GPT-2 and a tiny Llama with a vocabulary of the small world."""
    folder = tmp_path_factory.mktemp("language")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=340, special_tokens=["<|endoftext|>"], show_progress=False,
                                  initial_alphabet=pre_tokenizers.ByteLevel.alphabet())  # fmt: skip
    tokenizer.train_from_iterator([text or "" for text in world().texts], trainer)
    words = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|endoftext|>", bos_token="<|endoftext|>")
    torch.manual_seed(0)
    size = {"vocab_size": len(words), "bos_token_id": 0, "eos_token_id": 0}
    gpt2 = GPT2Config(n_embd=16, n_layer=2, n_head=2, n_positions=64, **size)
    llama = LlamaConfig(hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
                        num_key_value_heads=1, max_position_embeddings=64, **size)  # fmt: skip
    for name, model in (("gpt2", GPT2LMHeadModel(gpt2)), ("llama", LlamaForCausalLM(llama))):
        model.save_pretrained(folder / name)
        words.save_pretrained(folder / name)
    return folder


@pytest.mark.parametrize(("name", "part"), [("gpt2", "whole"), ("gpt2", "lora"), ("llama", "lora"), ("llama", "none")])
def test_a_language_model_learns_and_comes_back(models_folder: Path, tmp_path: Path, name: str, part: str):
    group = open_small(decoder=str(models_folder / name), language_part=part, language_rank=2, epochs=3)
    before = {key: value.clone() for key, value in group.trained.network.state_dict().items()}
    train_class(group)
    history = group.trainer.at.history
    assert history[-1]["loss"] < history[0]["loss"] - 0.01
    after = group.trained.network.state_dict()
    moved = {key for key, value in before.items() if not torch.equal(value, after[key])}
    inside = {key for key in moved if key.startswith("decoder.model")}
    assert {"prefix.weight", "level.weight"} <= moved
    assert {"whole": len(inside) > 10, "lora": bool(inside) and all("lora" in key for key in inside),
            "none": not inside}[part]  # fmt: skip
    image = world().valid_image
    for decode in (Decode(search="greedy"), Decode(beams=2), Decode(guidance=1.0)):
        one, two = (group.trained.write(image, 1, decode, cached=cached) for cached in (True, False))
        assert one.texts == two.texts and np.allclose(one.log_prob, two.log_prob, atol=1e-4)
    group.trained.save_pretrained(tmp_path)
    assert load_captioner(tmp_path).write(image, 1).texts == group.trained.write(image, 1).texts


def test_levels_get_a_gradient_through_a_frozen_model(models_folder: Path):
    group = open_small(decoder=str(models_folder / "gpt2"), language_part="none")
    backward(group.trainer, np.arange(0, 120, 3))
    network = group.trained.network
    assert network.level is not None and network.level.weight.grad is not None
    assert (network.level.weight.grad.abs().sum(1) > 0).sum() >= 2
    assert all(p.grad is None for p in network.decoder.parameters())


def test_special_words_in_a_text_are_text(models_folder: Path):
    words = open_small(decoder=str(models_folder / "gpt2")).trained.words
    assert words.end not in words.encode("a red <|endoftext|> ball <|endoftext|>")
    assert words.decode(words.encode("a red ball")) == "a red ball"


def test_what_is_no_language_model(models_folder: Path, tmp_path: Path):
    with pytest.raises(UsageError, match="neither scratch nor a causal language model"):
        open_small(decoder=str(tmp_path))
    with pytest.raises(UsageError, match="does not fit: the language model has 64 places"):
        open_small(decoder=str(models_folder / "gpt2"), longest=62)
