"""LoRA in `noisycorr tune`: where pictures are there and the tower is open, its low-rank matrices learn with the head.

The dear alternative to a head on frozen features, to say what these miss. Writes models/lora.safetensors (the head),
models/lora_encoder (the tower, matrices merged, as its library reads it), and features/lora-NAME.npy of every set.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import yaml
from torch import Tensor, nn
from torch.nn import functional

from noisycorr.classify.heads.choice import NMTune
from noisycorr.classify.heads.nmtune import Adapter, TuneData, new_head
from noisycorr.clean.plan import stored_reader
from noisycorr.models.encoders import load_trainable
from noisycorr.models.encoders.trainable import Trainable
from noisycorr.models.training.batches import epoch_order, split_batches, stream_seed
from noisycorr.models.training.image_store import open_image_store
from noisycorr.models.training.lora import add_lora, merged
from noisycorr.models.training.pictures import Pictures, stacked
from noisycorr.models.training.rate import cosine_share
from noisycorr.models.training.tuned import block_lists
from noisycorr.runtime.errors import UsageError
from noisycorr.runtime.folder import Run

Pixels = Callable[[np.ndarray], Tensor]
ENCODED = 64  # pictures of one forward pass
CLIP_NORM = 1.0


def open_tower(place: str) -> Trainable:
    """The encoder of a run folder, to be trained.

    Raises:
        UsageError: If it is no run folder, or its encoder cannot be trained.
    """
    config = Path(place) / "config.yaml"
    if not config.is_file():
        raise UsageError(f"`methods` lora needs pictures, but {place} brings features only: leave lora out.")
    spec = str(yaml.safe_load(config.read_text(encoding="utf-8"))["clip_model"])
    try:
        return load_trainable(spec)
    except UsageError as error:
        raise UsageError(f"`methods` lora needs an open tower ({error}), or leave lora out.") from error


def open_pixels(place: str, trainable: Trainable, folder: Path) -> Pixels:
    """Preprocessed pictures of a run folder by row, decoded when they are asked for."""
    run = Run(place)
    image_store = open_image_store(run, stored_reader(run), folder)
    pictures = Pictures(
        image_store=image_store, preprocess=trainable.encoder.preprocess, size=(0, 0), aug_scale=1.0, seed=0
    )

    def pixels(rows: np.ndarray) -> Tensor:
        return stacked([pictures[(int(row), None)] for row in rows])

    return pixels


def fit_lora(trainable: Trainable, pixels: Pixels, rows: np.ndarray, data: TuneData,
             choice: NMTune) -> tuple[nn.Module, Adapter]:  # fmt: skip
    """Tower and head, from the pretrained one and the head that the linear probe starts from.

    Args:
        trainable: The encoder.
        pixels: Pictures by row of the source.
        rows: int64 (n,): rows that are learned from.
        data: Their frozen features, which set the length of what the head sees, and labels.
        choice: Settings; `lora_lr` for the matrices, `linear_lr` for the head.

    Returns:
        The model with its matrices merged, and the head, both in evaluation mode.

    Source: LoRA (Hu et al., ICLR 2022), as a baseline of the journal version of NMTune.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(stream_seed(choice.seed, "lora") % 2**63)
        model = trainable.fresh().eval().requires_grad_(False)
        places = [name for name in block_lists(model) if "text" not in name and name.startswith(("visual", "vision"))]
        if not places:
            raise UsageError("`methods` lora finds no blocks in the image tower of this encoder: leave lora out.")
        model = add_lora(model, places, rank=choice.lora_rank, alpha=2.0 * choice.lora_rank)
    head = new_head(data, choice, "linear")
    matrices = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW([{"params": matrices, "lr": choice.lora_lr}, {"params": list(head.parameters()),
                                   "lr": choice.linear_lr}], weight_decay=choice.wd)  # fmt: skip
    rates, labels = (choice.lora_lr, choice.linear_lr), torch.from_numpy(np.asarray(data.labels, np.int64))
    for epoch in range(choice.lora_epochs):
        batches = split_batches(epoch_order(len(labels), seed=choice.seed, epoch=epoch), choice.batch_size)
        for step, mine in enumerate(batches):
            done = (epoch + step / len(batches)) / choice.lora_epochs
            for group, rate in zip(optimizer.param_groups, rates):
                group["lr"] = rate * cosine_share(done)
            logits = head(trainable.image(model, pixels(rows[mine])).float())
            loss = functional.cross_entropy(logits, labels[torch.from_numpy(mine)], label_smoothing=choice.smoothing)
            if not torch.isfinite(loss):
                raise FloatingPointError(f"lora: the loss is not finite in epoch {epoch + 1}; lower `lora_lr`")
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(matrices, CLIP_NORM)
            optimizer.step()
    plain: nn.Module = merged(model)
    return plain.eval(), head.eval()


@torch.no_grad()
def encode(trainable: Trainable, model: nn.Module, pixels: Pixels, rows: np.ndarray, like: np.ndarray) -> np.ndarray:
    """Features of some rows, float32 with the shape of `like`; zeros for the others."""
    out = np.zeros(like.shape, np.float32)
    for start in range(0, len(rows), ENCODED):
        mine = rows[start : start + ENCODED]
        out[mine] = trainable.image(model, pixels(mine)).float().numpy()
    return out
