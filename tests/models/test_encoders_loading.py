"""Loading encoders: what a spec may say, and that unsafe, unfit or unreachable weights are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import huggingface_hub.constants
import open_clip
import open_clip.pretrained
import pytest
import tiny_checkpoints as tiny
import torch
from safetensors.torch import load_file, save_file
from transformers import BertConfig, Siglip2Config

from noisycorr.models.encoders import DualEncoder, load_encoder
from noisycorr.models.encoders.openclip import parse_open_clip, score_column
from noisycorr.models.encoders.transformers import score_column as vision_column
from noisycorr.runtime.errors import UsageError

CPU = torch.device("cpu")
torch.set_num_threads(1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("checkpoints")


@pytest.fixture(scope="module")
def model(folder: Path) -> torch.nn.Module:
    return tiny.write_open_clip(folder / "open_clip")


@pytest.fixture(scope="module")
def encoder(model: torch.nn.Module, folder: Path) -> DualEncoder:
    return load_encoder(f"open_clip:{tiny.ARCHITECTURE}@{folder / 'open_clip' / 'model.safetensors'}", device=CPU)


@pytest.mark.parametrize(("precision", "expected"), [("fp16", "CPU"), ("int8", "fp32, bf16, fp16")])
def test_precisions_that_do_not_run(precision: str, expected: str) -> None:
    with pytest.raises(UsageError, match=expected):
        load_encoder("tiny", device=CPU, precision=precision)


def test_hash_of_an_encoder_follows_its_file(encoder: DualEncoder, folder: Path, tmp_path: Path) -> None:
    state = load_file(folder / "open_clip" / "model.safetensors")
    state["visual.conv1.weight"][0, 0, 0, 0] += 1e-3
    save_file(state, tmp_path / "changed.safetensors")
    changed = load_encoder(f"open_clip:{tiny.ARCHITECTURE}@{tmp_path / 'changed.safetensors'}", device=CPU)
    assert changed.weights_hash != encoder.weights_hash
    assert changed.name != encoder.name


class Malicious:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.marker,))


def test_a_pickle_that_runs_code_is_refused(model: torch.nn.Module, folder: Path, tmp_path: Path) -> None:
    marker = tmp_path / "executed"
    state = {**model.state_dict(), "extra": Malicious(marker)}
    torch.save(state, tmp_path / "evil.pt")
    torch.load(tmp_path / "evil.pt", weights_only=False)
    assert marker.exists()  # the file does run code where it is let
    marker.unlink()
    local = tmp_path / "local"
    local.mkdir()
    (local / "open_clip_config.json").write_text((folder / "open_clip" / "local" / "open_clip_config.json").read_text())
    (tmp_path / "evil.pt").rename(local / "model.bin")
    for spec in (f"open_clip:{tiny.ARCHITECTURE}@{local / 'model.bin'}", f"open_clip:local-dir:{local}"):
        with pytest.raises(UsageError, match="can run code"):
            load_encoder(spec, device=CPU)
    assert not marker.exists()


def test_code_of_a_repository_never_runs(tmp_path: Path) -> None:
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'executed')!r}, 'w')\nclass Config: pass\n")
    (tmp_path / "config.json").write_text('{"model_type": "evil", "auto_map": {"AutoConfig": "evil.Config"}}')
    with pytest.raises(UsageError, match="could not be fetched or read"):
        load_encoder(f"hf_clip:{tmp_path}", device=CPU)
    assert not (tmp_path / "executed").exists()


def test_tag_goes_through_the_download_and_sets_quick_gelu(
    monkeypatch: pytest.MonkeyPatch, encoder: DualEncoder, folder: Path
) -> None:
    weights = {"file": str(folder / "open_clip" / "model.safetensors"), "mean": (0.5,) * 3, "std": (0.5,) * 3}
    tags = {"plain": weights, "openai": {**weights, "quick_gelu": True}}
    monkeypatch.setitem(open_clip.pretrained._PRETRAINED, tiny.ARCHITECTURE, tags)
    plain = load_encoder(f"open_clip:{tiny.ARCHITECTURE}/plain", device=CPU)
    quick = load_encoder(f"open_clip:{tiny.ARCHITECTURE}/openai", device=CPU)
    assert quick.name == f"open_clip:{tiny.ARCHITECTURE}/openai@{encoder.weights_hash[:12]}"
    tokens = plain.tokenize(["a red square", "Two horses", ""])
    assert torch.equal(plain.text(tokens), encoder.text(tokens))
    reference = open_clip.create_model(tiny.ARCHITECTURE, pretrained=weights["file"], force_quick_gelu=True).eval()
    with torch.no_grad():
        torch.testing.assert_close(quick.text(tokens), reference.encode_text(tokens, normalize=True))
    assert not torch.allclose(quick.text(tokens), plain.text(tokens))


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("clip", "embedded.*open_clip:ARCH/TAG.*hf_clip:NAME_OR_FOLDER.*tiny"),
        ("open_clip:", "accepted are"),
        ("hf_clip:", "accepted are"),
        ("open_clip:ViT-B-32", "names no weights.*ViT-B-32/laion2b_s34b_b79k"),
        ("open_clip:ViT-B-33/openai", "no architecture 'ViT-B-33'.*ViT-B-32"),
        ("open_clip:ViT-B-32/openia", "no weights 'openia'.*openai"),
        ("open_clip:ViT-B-32@nowhere.pt", "'nowhere.pt' does not exist"),
        ("open_clip:local-dir:", "names nothing"),
        ("open_clip:local-dir:./nowhere", "no open_clip_config.json"),
        ("hf_clip:./nowhere", "does not exist"),
    ],
)
def test_wrong_specs_say_what_is_accepted(spec: str, expected: str) -> None:
    with pytest.raises(UsageError, match=expected):
        load_encoder(spec, device=CPU)


@pytest.mark.parametrize(
    "spec",
    [
        "open_clip:ViT-B-32/laion2b_s34b_b79k",
        "open_clip:hf-hub:laion/CLIP-ViT-B-32-laion2B-s34B-b79K",
        "hf_clip:openai/clip-vit-base-patch32",
        "transformers:google/siglip2-base-patch16-224",
    ],
)
def test_hub_names_without_a_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, spec: str) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)  # the variable was read at import
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(UsageError, match=r"could not be fetched.*pass a local (checkpoint|folder)"):
        load_encoder(spec, device=CPU)


def test_checkpoints_that_do_not_fit(folder: Path, model: torch.nn.Module, tmp_path: Path) -> None:
    weights = folder / "open_clip" / "model.safetensors"
    with pytest.raises(UsageError, match="belong to the architecture"):
        load_encoder(f"open_clip:RN50@{weights}", device=CPU)
    BertConfig().save_pretrained(tmp_path / "bert")
    with pytest.raises(UsageError, match="type 'bert'; expected one of clip, siglip"):
        load_encoder(f"hf_clip:{tmp_path / 'bert'}", device=CPU)
    Siglip2Config().save_pretrained(tmp_path / "naflex")
    with pytest.raises(UsageError, match="NaFlex"):
        load_encoder(f"hf_clip:{tmp_path / 'naflex'}", device=CPU)


def test_incomplete_weights_are_not_filled_with_noise(tmp_path: Path) -> None:
    tiny.write_clip(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    del state["text_projection.weight"]
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UsageError, match=r"lack text_projection\.weight"):
        load_encoder(f"hf_clip:{tmp_path}", device=CPU)
    (tmp_path / "model.safetensors").unlink()
    torch.save(state, tmp_path / "pytorch_model.bin")
    with pytest.raises(UsageError, match="could not be fetched or read"):
        load_encoder(f"hf_clip:{tmp_path}", device=CPU)


def test_spec_grammar_of_open_clip() -> None:
    assert parse_open_clip("ViT-B/32/openai") == parse_open_clip("ViT-B-32/openai")
    assert parse_open_clip("ViT-B-32//a/b@c.pt").path == Path("/a/b@c.pt")
    assert parse_open_clip("ViT-B-32@a//b.pt").path == Path("a//b.pt")
    assert parse_open_clip("hf-hub:org/name").label == "hf-hub:org/name"
    assert parse_open_clip("local-dir:/machine/models/mine").label == "local-dir:mine"


def test_score_columns_are_those_of_datacomp() -> None:
    assert score_column("ViT-B-32/laion2b_s34b_b79k") == "clip_b32_similarity_score"
    assert score_column("ViT-L-14-quickgelu/dfn2b") == "clip_l14_similarity_score"
    assert score_column("ViT-L-14-336/openai") == "clip_l14_336_similarity_score"
    assert score_column("RN50/openai") == "clip_rn50_similarity_score"
    assert score_column("ViT-B-16-SigLIP/webli") is None

    class Vision:
        hidden_size, patch_size, image_size = 768, 32, 224

    assert vision_column(Vision()) == "clip_b32_similarity_score"
    Vision.hidden_size, Vision.patch_size, Vision.image_size = 1024, 14, 336
    assert vision_column(Vision()) == "clip_l14_336_similarity_score"
    Vision.hidden_size = 33
    assert vision_column(Vision()) is None
