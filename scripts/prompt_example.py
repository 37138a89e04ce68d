"""Write the example of `noisycorr prompt`: pictures of the shipped sample whose folder says what they show.

python scripts/prompt_example.py OUT

OUT/clipart.parquet gets key, image, text (the class, which only measures) and split; OUT/classes.txt the class names.
At most 40 pictures of a class; a third of each is the test.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pandas as pd

from noisycorr.runtime.folder import atomic_path

SAMPLE = Path(__file__).resolve().parents[1] / "noisycorr" / "data" / "sample" / "openclipart.parquet"
MOST = 40
CLASSES = {
    "animals/birds": "bird", "animals/bugs": "insect", "animals/fish": "fish", "animals/mammals": "mammal",
    "buildings/homes": "house", "computer/hardware": "computer hardware", "food/beverages": "drink",
    "food/desserts": "dessert", "food/fruit": "fruit", "people/clothing/hats": "hat", "people/smilies": "smiley",
    "plants/flowers": "flower", "recreation/games/cards": "playing card", "recreation/music": "musical instrument",
    "recreation/sports": "sport", "shapes/arrows": "arrow", "shapes/stars": "star", "shapes/jigsaw": "jigsaw puzzle",
    "signs_and_symbols/flags": "flag", "tools/weapons": "weapon", "transportation/boating": "boat",
    "transportation/roadsigns": "road sign", "transportation/vehicles": "car",
}  # fmt: skip


def main(out: Path) -> None:
    """Write both files."""
    table = pd.read_parquet(SAMPLE)
    parts = []
    for folder, name in CLASSES.items():
        inside = (table["folder"] == folder) | table["folder"].str.startswith(f"{folder}/")
        mine = table[inside].drop_duplicates(subset="image").sort_values("key").head(MOST)
        split = ["test" if place % 3 == 2 else "train" for place in range(len(mine))]
        parts.append(mine[["key", "image"]].assign(text=name, split=split))
    whole = pd.concat(parts, ignore_index=True).drop_duplicates(subset="image")
    out.mkdir(parents=True, exist_ok=True)
    with atomic_path(out / "clipart.parquet") as path:
        whole.to_parquet(path, index=False)
    with atomic_path(out / "classes.txt") as path:
        path.write_text("".join(f"{name}\n" for name in CLASSES.values()), encoding="utf-8")
    print(f"{len(whole)} pictures of {len(CLASSES)} classes: {out / 'clipart.parquet'}, {out / 'classes.txt'}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
