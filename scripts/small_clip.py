"""Train the small CLIP of `noisycorr bench prompt` from nothing: minutes on one core.

python scripts/small_clip.py DATA SETS OUT [--epochs 6]

DATA holds the folders fashion and emoji, SETS what scripts/prompt_sets.py wrote: no picture of these is learned from.
OUT/pairs.parquet gets the pairs (titles of fashion, labels and tags of emoji); OUT/model is what `noisycorr train` makes
of them, and `open_clip:local-dir:OUT/model/networks/0` the encoder. What is done is not done again.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
import pandas as pd

from noisycorr.cli import main as noisycorr
from noisycorr.run import atomic_path

FASHION = 14_000  # of 22,000 titles


def pairs(data: Path, sets: Path) -> pd.DataFrame:
    """key, image, text and split of all pairs to learn from; 500 measure retrieval."""
    fashion = pd.concat([pd.read_parquet(path) for path in sorted((data / "fashion").glob("train-*.parquet"))])
    emoji = pd.read_parquet(data / "emoji" / "emoji.parquet")
    emoji = emoji[emoji["concept_split"] == "train"]
    fashion["text"], emoji["text"] = fashion["title"], emoji["label"] + ", " + emoji["subgroup"].str.replace("-", " ")
    parts = []
    for name, table in (("fashion", fashion), ("emoji", emoji)):
        taken = {key.split("/", 1)[1] for key in pd.read_parquet(sets / f"{name}.parquet", columns=["key"])["key"]}
        table = table[~table["key"].astype(str).isin(taken)]
        parts.append(table[["key", "image", "text"]].assign(key=name + "/" + table["key"].astype(str)))
    parts[0] = parts[0].iloc[np.sort(np.random.default_rng(0).permutation(len(parts[0]))[:FASHION])]
    whole = pd.concat(parts, ignore_index=True)
    whole = whole.iloc[np.random.default_rng(1).permutation(len(whole))].reset_index(drop=True)
    return whole.assign(split=np.where(np.arange(len(whole)) < 500, "test", "train"))


def main() -> int:
    """Write the pairs, then train."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    for name in ("data", "sets", "out"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--epochs", type=int, default=6)
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    if not (given.out / "pairs.parquet").exists():
        with atomic_path(given.out / "pairs.parquet") as path:
            pairs(given.data, given.sets).to_parquet(path, index=False)
    return noisycorr(["train", str(given.out / "pairs.parquet"), "--caption_col", "text", "--id_col", "key",
                      "--output_folder", str(given.out / "model"), "--clip_model", "scratch:mini", "--train_part",
                      "whole", "--strategy", "plain", "--epochs", str(given.epochs), "--batch_size", "256"])  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
