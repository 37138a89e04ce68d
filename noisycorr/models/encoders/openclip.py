"""open_clip models: hub tags, hub repositories, local checkpoints and local folders."""

from __future__ import annotations

import difflib
import json
import re
import threading
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import open_clip
import torch
from jaxtyping import Float, Int
from open_clip.pretrained import download_pretrained_from_hf, get_pretrained_cfg
from PIL import Image
from torch import Tensor
from torch.nn import functional

from noisycorr.models.encoders.frozen import (
    JointEncoder,
    bounded_aspect,
    freeze,
    frozen_forward,
    hash_weights,
    reason,
)
from noisycorr.runtime.errors import UsageError

LOCAL_HINT = (
    "without a network, pass a local checkpoint as 'open_clip:ARCH@FILE.safetensors', or a folder that holds "
    "open_clip_config.json and the weights as 'open_clip:local-dir:FOLDER'"
)


@dataclass(frozen=True, kw_only=True)
class OpenClipSource:
    """Where an open_clip model comes from. One of `tag` and `path` is set, or neither where `schema` is.

    Attributes:
        architecture: A name of `open_clip.list_models()`, or a hub name or folder where `schema` is set.
        tag: Name of published weights.
        path: A local checkpoint.
        schema: `hf-hub` or `local-dir`.
    """

    architecture: str
    tag: str | None = None
    path: Path | None = None
    schema: str | None = None

    @property
    def label(self) -> str:
        """The source without paths of one machine, for the encoder's name."""
        if self.schema == "local-dir":
            return f"local-dir:{Path(self.architecture).resolve().name}"
        return (f"{self.schema}:" if self.schema else "") + self.architecture + (f"/{self.tag}" if self.tag else "")


def parse_open_clip(target: str) -> OpenClipSource:
    """The part of a spec after `open_clip:`, not yet checked against what exists.

    Raises:
        UsageError: If it names no weights.
    """
    for schema in ("local-dir", "hf-hub"):
        if target.startswith(f"{schema}:"):
            where = target.removeprefix(f"{schema}:")
            if not where:
                raise UsageError(f"'open_clip:{target}' names nothing after '{schema}:'; {LOCAL_HINT}")
            where = str(Path(where).expanduser()) if schema == "local-dir" else where
            return OpenClipSource(architecture=where, schema=schema)
    local = re.match(r"([^@]+?)(?:@|/(?=/))(.+)", target)
    if local:
        architecture, path = local.groups()
        return OpenClipSource(architecture=architecture.replace("/", "-"), path=Path(path).expanduser())
    architecture, _, tag = target.rpartition("/")
    if not architecture or not tag:
        raise UsageError(
            f"'open_clip:{target}' names no weights; write 'open_clip:ARCH/TAG', for example "
            f"'open_clip:ViT-B-32/laion2b_s34b_b79k'; {LOCAL_HINT}"
        )
    return OpenClipSource(architecture=architecture.replace("/", "-"), tag=tag)  # OpenAI writes ViT-B/32


def load_open_clip(target: str, *, dtype: torch.dtype | None = None) -> OpenClipEncoder:
    """Load the model that the part of a spec after `open_clip:` names.

    Args:
        target: `ARCH/TAG`, `ARCH@CHECKPOINT`, `ARCH//CHECKPOINT`, `local-dir:FOLDER` or `hf-hub:ORG/NAME`.
        dtype: Of the matrix products; None = float32.

    Raises:
        UsageError: If the name is unknown, or the weights cannot be reached, are unsafe to read or do not fit.
    """
    source = parse_open_clip(target)
    _check_names(source)
    for path in _weight_files(source):
        _check_safe(path)
    quick = source.tag is not None and bool(get_pretrained_cfg(source.architecture, source.tag).get("quick_gelu"))
    model_name = f"{source.schema}:{source.architecture}" if source.schema else source.architecture
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="QuickGELU mismatch")  # settled by `quick`
            model, preprocess = open_clip.create_model_from_pretrained(
                model_name,
                pretrained=source.tag or (str(source.path) if source.path else None),
                # The config of ViT-B-32 says GELU, but the weights of OpenAI were trained with QuickGELU.
                force_quick_gelu=quick,
                device="cpu",
            )
        tokenizer = open_clip.get_tokenizer(model_name)
    except Exception as error:  # open_clip checks what it reads by assertions, key errors and worse
        raise UsageError(
            f"open_clip could not load {target!r} ({reason(error)}); check that the weights belong to the "
            f"architecture and that its tokenizer can be reached; {LOCAL_HINT}"
        ) from error
    config = open_clip.get_model_config(model_name) | ({"quick_gelu": True} if quick else {})
    return OpenClipEncoder(model, preprocess, tokenizer, label=source.label, dtype=dtype, config=config)


class OpenClipEncoder(JointEncoder):
    """A model of open_clip with its own preprocessing and tokenizer; see `DualEncoder`. Rows have unit length.

    Args:
        model: Any model of open_clip with `encode_image` and `encode_text`; it is frozen in place.
        preprocess: PIL image to (3, h, w) float32.
        tokenizer: List of texts to (b, t) token ids.
        label: The name without the hash.
        dtype: Of the matrix products; None = float32.
        config: Of the architecture, as open_clip's JSON files hold it; needed to save the model.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        preprocess: Callable[[Image.Image], Tensor],
        tokenizer: Callable[[list[str]], Tensor],
        *,
        label: str,
        dtype: torch.dtype | None = None,
        config: dict[str, Any] | None = None,
    ) -> None:
        self.model: Any = freeze(model)
        self.config = offline_config(config or {})
        self._preprocess, self._tokenizer = preprocess, tokenizer
        self._lock = threading.Lock()  # tokenizers of transformers raise "Already borrowed" in threads
        digest = hash_weights(model.state_dict())
        self.name = f"open_clip:{label}@{digest[:12]}"
        self.weights_hash = digest[:16]
        self.preprocessing = f"open_clip {describe_preprocess(model)}"
        self.score_column = score_column(label)
        self.device = torch.device("cpu")
        self.dtype = dtype
        size = self.model.visual.image_size
        height, width = (size, size) if isinstance(size, int) else size
        self.image_dim = self.image(torch.zeros(1, 3, height, width)).shape[1]
        self.text_dim = self.text(self.tokenize([""])).shape[1]

    def preprocess(self, image: Image.Image) -> Float[Tensor, "3 h w"]:
        """One picture through the model's own inference transform."""
        return self._preprocess(bounded_aspect(image))

    def tokenize(self, texts: Sequence[str]) -> Int[Tensor, "b t"]:
        """Token ids, padded to the context length; what is longer is cut."""
        with self._lock:
            return self._tokenizer(list(texts))

    def image(self, images: Tensor) -> Float[Tensor, "b d"]:
        """Image features of unit length."""
        with frozen_forward(self.device, self.dtype):
            features = self.model.encode_image(images.to(self.device, non_blocking=True), normalize=False)
            return functional.normalize(features.float(), dim=-1)

    def text(self, tokens: Int[Tensor, "b t"]) -> Float[Tensor, "b d"]:
        """Text features of unit length."""
        with frozen_forward(self.device, self.dtype):
            features = self.model.encode_text(tokens.to(self.device, non_blocking=True), normalize=False)
            return functional.normalize(features.float(), dim=-1)

    def save_tokenizer(self, folder: Path) -> None:
        """Files of a tokenizer of transformers; open_clip's own needs none."""
        inner = getattr(self._tokenizer, "tokenizer", None)
        if inner is not None and hasattr(inner, "save_pretrained"):
            inner.save_pretrained(folder)


def score_column(label: str) -> str | None:
    """DataComp's name for the cosine of a model, None where the architecture is not a CLIP.

    >>> score_column("ViT-L-14-336/openai")
    'clip_l14_336_similarity_score'
    """
    architecture = label.split("/")[0]
    if ":" in architecture or "siglip" in architecture.lower():
        return None
    short = re.sub(r"^ViT-([A-Za-z]+)-(\d+)", r"\1\2", architecture.removesuffix("-quickgelu"))
    return f"clip_{re.sub(r'[^a-z0-9]+', '_', short.lower())}_similarity_score"


def offline_config(config: dict[str, Any]) -> dict[str, Any]:
    """The same architecture without weights that its parts would fetch before ours are read."""
    config = json.loads(json.dumps(config, default=str))
    for part, key in (("vision_cfg", "timm_model_pretrained"), ("text_cfg", "hf_model_pretrained")):
        if config.get(part, {}).get(key):
            config[part][key] = False
    return config


def describe_preprocess(model: torch.nn.Module) -> str:
    """Resizing and normalisation of a model in words."""
    config: dict[str, Any] = getattr(model.visual, "preprocess_cfg", None) or {}
    return ", ".join(f"{key} {config[key]}" for key in sorted(config))


def _check_names(source: OpenClipSource) -> None:
    if source.schema == "local-dir" and not (Path(source.architecture) / "open_clip_config.json").is_file():
        raise UsageError(f"the folder {source.architecture!r} holds no open_clip_config.json; {LOCAL_HINT}")
    if source.schema:
        return
    known = open_clip.list_models()
    if source.architecture not in known:
        close = difflib.get_close_matches(source.architecture, known, n=4) or known[:4]
        raise UsageError(f"open_clip has no architecture {source.architecture!r}; close to it are {', '.join(close)}")
    if source.path is not None and not source.path.is_file():
        raise UsageError(f"the checkpoint {str(source.path)!r} does not exist; expected a .safetensors or .pt file")
    if source.tag is not None and not get_pretrained_cfg(source.architecture, source.tag):
        tags = ", ".join(open_clip.list_pretrained_tags_by_model(source.architecture)) or "none"
        raise UsageError(
            f"open_clip has no weights {source.tag!r} for {source.architecture}; its tags are: {tags}; {LOCAL_HINT}"
        )


def _weight_files(source: OpenClipSource) -> list[Path]:
    """The files the weights will be read from, fetched from the hub where needed."""
    if source.path is not None:
        return [source.path]
    if source.schema == "local-dir":
        folder = Path(source.architecture)
        if list(folder.glob("*.safetensors")):  # open_clip prefers these
            return []
        return [path for suffix in ("bin", "pth", "pt") for path in folder.glob(f"*.{suffix}")]
    try:
        if source.schema == "hf-hub":
            return [Path(download_pretrained_from_hf(source.architecture))]
        return [Path(open_clip.download_pretrained(get_pretrained_cfg(source.architecture, str(source.tag))))]
    except Exception as error:  # the hub's client raises errors of several unrelated families
        raise UsageError(
            f"the weights of 'open_clip:{source.label}' could not be fetched ({reason(error)}); check the name "
            f"and the network; {LOCAL_HINT}"
        ) from error


def _check_safe(path: Path) -> None:
    """Refuse pickles that hold more than tensors: releases of open_clip before 3 would run what is in them."""
    if path.suffix in (".safetensors", ".npz", ".npy"):
        return
    try:
        torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # pickle, zip and runtime errors alike mean that it is no plain state dict
        raise UsageError(
            f"the checkpoint {path.name!r} is not a plain state dict and was not loaded, since a pickle can run code; "
            "save its state dict as .safetensors"
        ) from error
