"""Pairs with concepts, a share of them with the text of another one, as a view and as a source of embeddings."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from noisycorr.clean.signals.view import PairEmbeddings
from noisycorr.data.noise.swaps import text_ids

NOUNS = ("dog", "cat", "boat", "tree", "house", "cup", "shoe", "lamp", "plane", "horse", "chair", "knife")
COLOURS = ("red", "blue", "green", "white")


def concept_pairs(
    n: int = 480, noise: float = 0.4, *, seed: int = 0
) -> tuple[PairEmbeddings, list[str], np.ndarray, np.ndarray]:
    """PairEmbeddings, texts, the row whose text each pair has, and which are wrong: 12 things in 4 colours."""
    rng = np.random.default_rng(seed)
    kind = rng.integers(len(NOUNS), size=n), rng.integers(len(COLOURS), size=n)
    spots, tints = rng.normal(size=(len(NOUNS), 24)), 0.6 * rng.normal(size=(len(COLOURS), 24))
    said, hues = rng.normal(size=(len(NOUNS), 16)), 0.6 * rng.normal(size=(len(COLOURS), 16))
    image = (spots[kind[0]] + tints[kind[1]] + 0.25 * rng.normal(size=(n, 24))).astype(np.float32)
    text = (said[kind[0]] + hues[kind[1]] + 0.1 * rng.normal(size=(n, 16))).astype(np.float32)
    words = [f"a {COLOURS[c]} {NOUNS[k]} number {i}" for i, (k, c) in enumerate(zip(*kind))]
    source = np.arange(n)
    chosen = rng.permutation(n)[: round(noise * n)]
    source[chosen] = np.roll(chosen, 1)
    wrong = kind[0][source] != kind[0]
    texts = [words[row] for row in source]
    image, text = [image[: n // 3], image[n // 3 :]], [text[source][: n // 3], text[source][n // 3 :]]
    view = PairEmbeddings(image=image, text=text, text_id=text_ids(texts), image_id=np.arange(n),
                          present=np.ones(n, bool), seed=seed)  # fmt: skip
    return view, texts, source, wrong


def write_source(folder: Path, n: int = 480, noise: float = 0.4, *, seed: int = 0) -> Path:
    """A folder that `noisycorr clean` reads as embeddings, with the truth in truth_wrong."""
    view, texts, _, wrong = concept_pairs(n, noise, seed=seed)
    folder.mkdir(parents=True)
    np.save(folder / "image.npy", np.concatenate(view.image))
    np.save(folder / "text.npy", np.concatenate(view.text))
    lines = [f"k{i},{text},{int(bad)}" for i, (text, bad) in enumerate(zip(texts, wrong))]
    (folder / "pairs.csv").write_text("key,caption,truth_wrong\n" + "\n".join(lines) + "\n", encoding="utf-8")
    return folder
