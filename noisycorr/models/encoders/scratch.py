"""Small dual encoders with random weights, to train from nothing: minutes on a CPU, and an open_clip model in the end.

`scratch:vit` is a vision transformer of 64 x 64 pixels, `scratch:cnn` a ConvNeXt of 96 x 96. Both have a text
transformer of four blocks on the byte pairs of CLIP, cut at 32 tokens. `scratch:mini` sees 32 x 32 pixels, and is a
tenth of the work.
"""

from __future__ import annotations

import copy
from typing import Any

import torch

from noisycorr.models.encoders.trainable import OpenClipTrainable
from noisycorr.runtime.errors import UsageError

TEXT = {"context_length": 32, "vocab_size": 49408, "width": 192, "heads": 3, "layers": 4}
CONFIGS: dict[str, dict[str, Any]] = {
    "vit": {
        "embed_dim": 192,
        "vision_cfg": {"image_size": 64, "patch_size": 8, "layers": 6, "width": 192, "head_width": 64},
        "text_cfg": TEXT,
    },
    "mini": {
        "embed_dim": 128,
        "vision_cfg": {"image_size": 32, "patch_size": 8, "layers": 4, "width": 128, "head_width": 32},
        "text_cfg": {**TEXT, "context_length": 24, "width": 128, "heads": 4, "layers": 2},
    },
    "cnn": {
        "embed_dim": 192,
        "vision_cfg": {"image_size": 96, "timm_model_name": "convnext_atto", "timm_model_pretrained": False,
                       "timm_pool": "avg", "timm_proj": "linear"},
        "text_cfg": TEXT,
    },
}  # fmt: skip
PREPROCESS = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5), "interpolation": "bicubic", "resize_mode": "squash"}


class ScratchTrainable(OpenClipTrainable):
    """An open_clip model whose weights are random every time; see `Trainable`."""

    def fresh(self) -> Any:
        """A random model from the generator of torch."""
        return _build(self.encoder.config)


def load_scratch(name: str) -> ScratchTrainable:
    """A small dual encoder to train from nothing.

    Args:
        name: One of `CONFIGS`.

    Raises:
        UsageError: If there is no such.
    """
    from open_clip import SimpleTokenizer
    from open_clip.transform import PreprocessCfg, image_transform_v2

    from noisycorr.models.encoders.openclip import OpenClipEncoder

    if name not in CONFIGS:
        raise UsageError(
            f"the encoder 'scratch:{name}' is not known; there are {', '.join(map('scratch:'.__add__, CONFIGS))}"
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # the name holds a hash of weights, and should be the same every time
        model = _build(CONFIGS[name])
    preprocess = image_transform_v2(PreprocessCfg(**model.visual.preprocess_cfg), is_train=False)
    tokenizer = SimpleTokenizer(context_length=CONFIGS[name]["text_cfg"]["context_length"])
    encoder = OpenClipEncoder(model, preprocess, tokenizer, label=f"scratch-{name}", config=CONFIGS[name])
    encoder.score_column = None
    return ScratchTrainable(encoder)


def _build(config: dict[str, Any]) -> Any:
    from open_clip import CLIP
    from open_clip.model import set_model_preprocess_cfg

    model = CLIP(**copy.deepcopy(config))
    set_model_preprocess_cfg(model, {"size": model.visual.image_size, "mode": "RGB", "fill_color": 0, **PREPROCESS})
    return model
