"""Write the four sets of `noisycorr bench prompt` as parquet files: key, image, text (the class name) and split.

python scripts/prompt_sets.py DATA OUT

DATA holds the folders caltech101, fashion, emoji and cifar10n with the columns that the script names. 1,300 pictures of
each set are the pool, whose class names no method sees beyond the few that it is given, and 700 the test. Drawn with
seed 0; classes with fewer than eight pictures are left out of fashion.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pandas as pd

POOL, TEST, FEWEST = 1300, 700, 8
CIFAR = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


def read_sets(data: Path) -> dict[str, tuple[pd.DataFrame, pd.DataFrame]]:
    """Pool and test candidates of each set, with the columns key, image and text."""
    caltech = [pd.read_parquet(data / "caltech101" / f"{part}.parquet") for part in ("train", "test")]
    for table in caltech:
        table["text"] = table["class_name"].str.replace("_", " ")
    fashion = pd.concat([pd.read_parquet(path) for path in sorted((data / "fashion").glob("train-*.parquet"))])
    fashion_test = pd.concat([pd.read_parquet(data / "fashion" / f"{part}.parquet") for part in ("val", "test")])
    for table in (fashion, fashion_test):
        table["text"] = table["articleType"]
    emoji = pd.read_parquet(data / "emoji" / "emoji.parquet")
    emoji["text"] = emoji["subgroup"].str.replace("-", " ")
    held = emoji["concept_split"] != "train"
    cifar = [pd.read_parquet(data / "cifar10n" / f"{part}.parquet") for part in ("train", "test")]
    for table, label in zip(cifar, ("clean_label", "label")):
        table["text"] = [CIFAR[int(place)] for place in table[label]]
    return {
        "caltech": (caltech[0], caltech[1]),
        "fashion": (fashion, fashion_test),
        "emoji": (emoji[~held], emoji[held]),
        "cifar10": (cifar[0], cifar[1]),
    }


def _bytes(image: object) -> bytes:
    """The bytes of a picture: a test picture that is in the pool too would be refused as a leak."""
    return image["bytes"] if isinstance(image, dict) else bytes(image)  # type: ignore[arg-type]


def main(data: Path, out: Path) -> None:
    """Write one file for each set."""
    out.mkdir(parents=True, exist_ok=True)
    for name, (pool, test) in read_sets(data).items():
        rng = np.random.default_rng(0)
        pool = pool.iloc[np.sort(rng.permutation(len(pool))[:POOL])]
        counts = pool["text"].value_counts()
        known = counts[counts >= (FEWEST if name == "fashion" else 1)].index
        pool = pool[pool["text"].isin(known)]
        test = test[test["text"].isin(known) & ~test["image"].map(_bytes).isin(set(pool["image"].map(_bytes)))]
        test = test.iloc[np.sort(rng.permutation(len(test))[:TEST])]
        both = [part[["key", "image", "text"]].assign(split=split) for part, split in ((pool, "train"), (test, "test"))]
        table = pd.concat(both, ignore_index=True)
        table["key"] = table["split"] + "/" + table["key"].astype(str)
        table.to_parquet(out / f"{name}.parquet", index=False)
        print(f"{name}: {len(pool)} pool, {len(test)} test, {len(known)} classes")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
