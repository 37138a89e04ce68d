"""A small world for the tests of captioners: vectors that tell of a colour and a thing, and texts that say so."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from noisycorr.caption.captioner.choice import CaptionTrain, Decode, Design, LevelChoice, Teach
from noisycorr.caption.captioner.teach import CaptionTraining, Material, Recipe, open_class

COLOURS, THINGS = ("red", "green", "blue", "white"), ("ball", "house", "tree", "boat", "bird")
JUNK = "best price online"
SMALL = Design(width=24, layers=1, attention_heads=2, vocabulary=360, prefix_tokens=2, longest=16, dropout=0.1)
LEVELS = LevelChoice(levels=2, bins="uniform", level_least=5, level_dropout=0.2)


def world(n: int = 120, *, junk: float = 0.4, seed: int = 0) -> Material:
    """n training pairs of which a share has a stock phrase and a low score, and 20 clean validation pairs."""
    rng = np.random.default_rng(seed)
    kinds = rng.integers(0, (len(COLOURS), len(THINGS)), (n + 20, 2))
    hot = np.concatenate([np.eye(len(COLOURS))[kinds[:, 0]], np.eye(len(THINGS))[kinds[:, 1]]], 1)
    image = (hot + 0.05 * rng.normal(size=hot.shape)).astype(np.float32)
    texts: list[str | None] = [f"a {COLOURS[c]} {THINGS[t]} on a table" for c, t in kinds]
    wrong = np.arange(n) < junk * n
    score = np.where(wrong, 0.1, 0.9) + 0.05 * rng.normal(size=n)
    return Material(
        image=image[:n], texts=[JUNK if bad else text for bad, text in zip(wrong, texts)], encoder="made up",
        columns={"score_pair": score, "p_clean": np.clip(score, 0, 1)}, made_by={"scorer": "made up"},
        valid_image=image[n:], valid_texts=texts[n:],
    )  # fmt: skip


def recipe(**changes: Any) -> Recipe:
    """Small choices; fields of any of them by name."""
    parts: dict[str, Any] = {"levels": LEVELS, "teach": Teach(draw_by="none"), "design": SMALL,
                             "train": CaptionTrain(epochs=2, batch_size=16, lr=5e-3, save_every=0),
                             "decode": Decode()}  # fmt: skip
    for name, part in parts.items():
        own = {key: value for key, value in changes.items() if hasattr(part, key)}
        parts[name] = type(part)(**{**vars(part), **own})
    return Recipe(**parts, guidances=changes.get("guidances", (0.0,)))


def open_small(material: Material | None = None, **changes: Any) -> CaptionTraining:
    """A captioner before its first step."""
    torch.set_num_threads(1)
    return open_class(material or world(), recipe(**changes))
