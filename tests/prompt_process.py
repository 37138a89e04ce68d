"""Run by torchrun: what two processes learn, for the test that they equal one. torchrun prompt_process.py FOLDER."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pictures import write_pictures
from PIL import Image
from safetensors.torch import save_file
from tiny_checkpoints import ARCHITECTURE, write_open_clip
from torch import Tensor

from noisycorr.models.encoders import load_encoder
from noisycorr.prompt.build import build, zero_shot
from noisycorr.prompt.choice import Context, Rounds, Steps
from noisycorr.prompt.loop import tune
from noisycorr.prompt.task import Task
from noisycorr.prompt.text import text_side
from noisycorr.runtime import dist

NAMES = ["red square", "green circle", "dog", "two blue horses", "photo"]
KINDS = ("text", "visual", "multimodal")


def prepare(place: Path) -> None:
    """Weights and pictures."""
    write_open_clip(place / "open_clip")
    write_pictures(place / "source", 18)


def learned(place: Path, kind: str) -> dict[str, Tensor]:
    """The prompt after two rounds, in float64."""
    import open_clip

    open_clip.add_model_config(place / "open_clip" / f"{ARCHITECTURE}.json")
    path = place / "open_clip" / "model.safetensors"
    encoder: Any = load_encoder(f"open_clip:{ARCHITECTURE}@{path}", device=torch.device("cpu"))
    files = sorted((place / "source" / "images").glob("*.png"))
    pixels = torch.stack([encoder.preprocess(Image.open(file)) for file in files]).double()
    encoder.model.double()
    with torch.no_grad():
        features = torch.nn.functional.normalize(encoder.model.encode_image(pixels), dim=-1)
    side, context = text_side(encoder), Context(prompt=kind, prompt_tokens=2, scale=5.0, depth="deep")  # type: ignore[arg-type]
    zero = zero_shot(side, NAMES, context, {}, torch.device("cpu")).double()
    n = len(files)
    label = np.full(n, -1)
    label[:3] = [0, 1, 2]
    task = Task(names=NAMES, keys=[str(row) for row in range(n)], usable=np.ones(n, bool), label=label,
                seen=np.zeros(5, bool), held=np.zeros(n, bool))  # fmt: skip
    model = build(encoder, side, NAMES, context, features=features, zero=zero, pixels=lambda rows: pixels[rows], seed=0,
                  device=torch.device("cpu"))  # fmt: skip
    steps = Steps(epochs=2, batch_size=7, optimizer="sgd", lr=0.05, loss="elr")
    rounds = Rounds(rounds=2, balance="uniform", guard=False)
    state = tune(task, model, 5.0 * features @ zero.T, rounds, dataclasses.replace(steps, clean="none"))
    return {name: value.detach().clone().contiguous() for name, value in state.weights.items()}


if __name__ == "__main__":
    torch.set_num_threads(1)
    assert dist.count() == 2
    for kind in KINDS:
        save_file(learned(Path(sys.argv[1]), kind), Path(sys.argv[1]) / f"{kind}.{dist.rank()}.safetensors")
    dist.wait()
