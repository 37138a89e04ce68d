"""Split real sets for `noisycorr bench noise`: NAME/{train,valid,test}.parquet, every text of valid and test different.

python scripts/bench_sets.py DATA OUT

emoji        train: two drawings of each emoji; valid and test: halves of the emoji in a third drawing
openclipart  train: titles as they are, natural noise and all; valid and test: titles that stand once and share a word
             with the file name, which speaks for them
coco         photos with five captions each
fashion      is split already: the first rows of train-*.parquet, val.parquet, test.parquet
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

import numpy as np
import pandas as pd

SEED = 0
PARTS = ("train", "valid", "test")
HELD, TRAIN = 500, 3000  # pairs of clip art to select on, as many to report; and to train on


def emoji(data: Path) -> dict[str, pd.DataFrame]:
    """Seen concepts in a new drawing."""
    table = pd.read_parquet(data / "emoji/emoji.parquet")
    new = table[table["style"] == "fluent-emoji-flat"].drop_duplicates("label")
    half = np.random.default_rng(SEED).permutation(len(new)) < len(new) // 2
    old = table[table["style"].isin(["twemoji", "openmoji"])]
    return dict(zip(PARTS, (old, new[half], new[~half])))


def openclipart(data: Path) -> dict[str, pd.DataFrame]:
    """Natural noise in training; in the other parts the file name agrees with the title."""
    table = pd.read_parquet(data / "openclipart/openclipart.parquet")
    words = [set(re.findall(r"[a-z]{4,}", str(name).lower())) for name in table["filename"]]
    said = [set(re.findall(r"[a-z]{4,}", str(title).lower())) for title in table["title"]]
    agree = np.array([bool(a & b) for a, b in zip(words, said)])
    once = ~table["title"].str.lower().str.strip().duplicated(keep=False).to_numpy()
    rows = np.random.default_rng(SEED).permutation(np.flatnonzero(agree & once))
    valid, test = rows[:HELD], rows[HELD : 2 * HELD]
    others = np.setdiff1d(np.arange(len(table)), rows[: 2 * HELD])
    train = np.random.default_rng(SEED).permutation(others)[:TRAIN]
    return {name: table.iloc[np.sort(part)] for name, part in zip(PARTS, (train, valid, test))}


def coco(data: Path) -> dict[str, pd.DataFrame]:
    """One row a photo, with all its captions."""
    table = pd.read_parquet(data / "coco_mini/coco_mini.parquet")
    order = np.random.default_rng(SEED).permutation(len(table))
    return {name: table.iloc[np.sort(rows)] for name, rows in zip(PARTS, np.split(order, [51, 71]))}


def main(data: Path, out: Path) -> None:
    """Write the parts that are missing."""
    for make in (emoji, openclipart, coco):
        for name, table in make(data).items():
            path = out / make.__name__ / f"{name}.parquet"
            path.parent.mkdir(parents=True, exist_ok=True)
            table.to_parquet(path, index=False)
            print(f"{path}: {len(table):,} rows")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
