"""The small CLIP of `noisycorr bench prompt`, trained from nothing in minutes on one core.

python scripts/small_clip.py DATA SETS OUT [--epochs 8]

DATA holds the folders fashion and emoji, SETS what scripts/prompt_sets.py wrote: no picture of these is learned from.
OUT/model is an open_clip model (`open_clip:local-dir:OUT/model`), OUT/fashion, emoji, caltech and cifar10 are the sets
with its features, which `noisycorr bench prompt --clip_model open_clip:local-dir:OUT/model` reads. The same command
continues after the last whole epoch; what is done is not done again.
"""

from __future__ import annotations

import argparse
import io
import math
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from open_clip.loss import ClipLoss
from PIL import Image
from safetensors.torch import load_file, save_file

from noisycorr.models.encoders.scratch import load_scratch
from noisycorr.runtime.folder import atomic_path, write_array

FASHION, BATCH, RATE, TEMPERATURE = 14_000, 256, 1e-3, 0.07


def pairs(data: Path, sets: Path) -> tuple[list[bytes], list[str]]:
    """Pictures and texts: titles of fashion, labels and subgroups of emoji."""
    fashion = pd.concat([pd.read_parquet(path) for path in sorted((data / "fashion").glob("train-*.parquet"))])
    emoji = pd.read_parquet(data / "emoji" / "emoji.parquet")
    emoji = emoji[emoji["concept_split"] == "train"]
    fashion["text"], emoji["text"] = fashion["title"], emoji["label"] + ", " + emoji["subgroup"].str.replace("-", " ")
    parts = []
    for name, table in (("fashion", fashion), ("emoji", emoji)):
        taken = {key.split("/", 1)[1] for key in pd.read_parquet(sets / f"{name}.parquet", columns=["key"])["key"]}
        parts.append(table[~table["key"].astype(str).isin(taken)][["image", "text"]])
    parts[0] = parts[0].iloc[np.random.default_rng(0).permutation(len(parts[0]))[:FASHION]]
    whole = pd.concat(parts)
    return whole["image"].tolist(), whole["text"].tolist()


def pixels(images: list[bytes], encoder: object) -> torch.Tensor:
    """All pictures as the model wants them, float16 (n, 3, 32, 32)."""
    found = [encoder.preprocess(Image.open(io.BytesIO(raw)).convert("RGB")).half() for raw in images]  # type: ignore[attr-defined]
    return torch.stack(found)


def train(data: Path, sets: Path, out: Path, epochs: int) -> None:
    """Contrastive training; OUT/part.safetensors is what a killed run continues from."""
    trainable = load_scratch("mini")
    if (out / "model" / "open_clip_config.json").exists():
        return
    images, texts = pairs(data, sets)
    x, (ids, _) = pixels(images, trainable.encoder), trainable.tokens(texts)
    tokens = torch.from_numpy(ids).long()
    torch.manual_seed(0)
    model = trainable.fresh().train()
    with torch.no_grad():
        model.logit_scale.fill_(math.log(1 / TEMPERATURE))
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.1)
    loss_of, start, part = ClipLoss(), 0, out / "part.safetensors"
    if part.exists():  # moments of the optimizer begin anew
        state = load_file(part)
        start = int(state.pop("epochs"))
        model.load_state_dict(state)
    steps = len(x) // BATCH
    for epoch in range(start, epochs):
        order = np.random.default_rng([0, epoch]).permutation(len(x))
        began, total = time.monotonic(), 0.0
        for step in range(steps):
            done = (epoch * steps + step) / (epochs * steps)
            for group in optimizer.param_groups:
                group["lr"] = RATE * min(1.0, (epoch * steps + step + 1) / 50) * 0.5 * (1 + math.cos(math.pi * done))
            row = torch.from_numpy(order[step * BATCH : (step + 1) * BATCH])
            image = x[row].float()
            image = torch.where(torch.rand(len(row), 1, 1, 1) < 0.5, image.flip(3), image)
            loss = loss_of(model.encode_image(image, normalize=True), model.encode_text(tokens[row], normalize=True),
                           model.logit_scale.exp().clamp(max=100))  # fmt: skip
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            total += float(loss.detach()) / steps
        state = {name: value.detach().contiguous() for name, value in model.state_dict().items()}
        with atomic_path(part) as path:
            save_file(state | {"epochs": torch.tensor(epoch + 1)}, path)
        print(f"epoch {epoch + 1}: loss {total:.3f}, {time.monotonic() - began:.0f} s", flush=True)
    trainable.save(model.eval(), out / "model", temperature=float((-model.logit_scale.detach()).exp().clamp(min=0.01)))


def features(sets: Path, out: Path, name: str) -> None:
    """OUT/NAME: image.npy, text.npy and pairs.parquet, a source that brings its embeddings."""
    from noisycorr.models.encoders import load_encoder

    if (out / name / "pairs.parquet").exists():
        return
    encoder = load_encoder(f"open_clip:local-dir:{out / 'model'}", device=torch.device("cpu"))
    table = pd.read_parquet(sets / f"{name}.parquet")
    (out / name).mkdir(parents=True, exist_ok=True)
    x = pixels(table["image"].tolist(), encoder).float()
    found = {"image": torch.cat([encoder.image(part) for part in x.split(BATCH)]),
             "text": encoder.text(encoder.tokenize(table["text"].tolist()))}  # fmt: skip
    for side, vectors in found.items():
        write_array(out / name / f"{side}.npy", vectors.numpy().astype(np.float32))
    with atomic_path(out / name / "pairs.parquet") as path:
        table[["key", "text", "split"]].to_parquet(path, index=False)


def main() -> None:
    """Train, then encode the sets; of the last two no picture nor class was learned from."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    for name in ("data", "sets", "out"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--epochs", type=int, default=8)
    given = parser.parse_args()
    torch.set_num_threads(1)
    given.out.mkdir(parents=True, exist_ok=True)
    train(given.data, given.sets, given.out, given.epochs)
    for name in ("fashion", "emoji", "caltech", "cifar10"):
        features(given.sets, given.out, name)


if __name__ == "__main__":
    main()
