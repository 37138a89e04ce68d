"""A small folder of pictures with captions that can be learned, as a csv, for the tests of fine-tuning."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

COLOURS = {"red": (220, 30, 30), "green": (30, 200, 40), "blue": (40, 60, 230), "white": (240, 240, 240)}
PLACES = {"left": (0.0, 0.25, 0.5, 0.75), "right": (0.5, 0.25, 1.0, 0.75), "top": (0.25, 0.0, 0.75, 0.5)}


def write_pictures(folder: Path, n: int = 36, *, seed: int = 0) -> Path:
    """`pairs.csv` with the columns key, image and caption; each picture has its own noise, so that none is twice."""
    rng = np.random.default_rng(seed)
    (folder / "images").mkdir(parents=True)
    kinds = [(colour, place) for colour in COLOURS for place in PLACES]
    lines = ["key,image,caption"]
    for row in range(n):
        colour, place = kinds[row % len(kinds)]
        pixels = rng.integers(0, 256, (40, 48, 3)).astype(np.uint8)
        left, top, right, bottom = (round(x * side) for x, side in zip(PLACES[place], (48, 40, 48, 40)))
        pixels[top:bottom, left:right] = COLOURS[colour]
        Image.fromarray(pixels).save(folder / "images" / f"{row:03d}.png")
        lines.append(f"k{row},images/{row:03d}.png,a {colour} square on the {place} number {row}")
    (folder / "pairs.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder / "pairs.csv"
