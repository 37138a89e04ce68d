"""A tiny folder of region features in the field's layouts, with captions that can be learned."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

NOUNS = ("dog", "cat", "car", "tree", "boat", "man", "bird", "house")
SIZES = {"train": 40, "dev": 10, "test": 12}
REGIONS, WIDTH = 5, 16


def write_regions(folder: Path, *, per_image: int = 1, layout: str = "txt", seed: int = 0) -> Path:
    """Each image shows two things, and its captions name them.

    Args:
        folder: To write to.
        per_image: Captions of each image.
        layout: txt, tsv, or bpe for token ids.
        seed: Of everything.
    """
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    codes = np.random.default_rng(99).normal(size=(len(NOUNS), WIDTH))
    for split, n in SIZES.items():
        things = np.stack([rng.choice(len(NOUNS), 2, replace=False) for _ in range(n)])
        images = 0.3 * rng.normal(size=(n, REGIONS, WIDTH))
        for slot in range(4):
            images[:, slot] += codes[things[:, slot % 2]]
        np.save(folder / f"{split}_ims.npy", images.astype(np.float32))
        lines = []
        for row, pair in enumerate(things):
            for number in range(per_image):
                one, two = pair if number % 2 == 0 else pair[::-1]
                if layout == "bpe":
                    lines.append(f"{one + 1},{two + 1}")
                else:
                    text = f"A {NOUNS[one]} and a {NOUNS[two]}" + (" together" if (row + number) % 3 else "")
                    lines.append(f"id{row}\t{text}" if layout == "tsv" else text)
        name = {"txt": "caps.txt", "tsv": "caps.tsv", "bpe": "caps_bpe.txt"}[layout]
        (folder / f"{split}_{name}").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def write_vocabulary(path: Path) -> Path:
    """The field's JSON."""
    words = ["<pad>", "<start>", "<end>", "<unk>", "a", "and", *NOUNS]
    body = {"word2idx": {word: row for row, word in enumerate(words)},
            "idx2word": {str(row): word for row, word in enumerate(words)}, "idx": len(words)}  # fmt: skip
    path.write_text(json.dumps(body), encoding="utf-8")
    return path
