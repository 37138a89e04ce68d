"""How well networks retrieve: each one alone and all together, on rows of a corpus, shared by all processes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from noisycorr import dist
from noisycorr.learn.heads import Network, Towers
from noisycorr.recall import feature_blocks, mean_blocks, retrieval_metrics

CHUNK = 4096
TOLERANCE = 1e-6  # embeddings are single precision


@torch.no_grad()
def embed_rows(network: Network, towers: Towers, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Unit rows of images and texts, float32 (m, d) each. Every process encodes its share and gets all of them."""
    mode = network.training
    network.eval()
    images, texts = [], []
    for start in range(0, len(rows), CHUNK):
        part = torch.from_numpy(rows[start : start + CHUNK])
        mine = part[dist.my_slice(len(part))]
        images.append(dist.gather(network.image(towers.image(mine)), len(part)).cpu().numpy())
        texts.append(dist.gather(network.text(towers.text(mine)), len(part)).cpu().numpy())
    network.train(mode)
    return np.concatenate(images), np.concatenate(texts)


def retrieval(networks: Sequence[Network], towers: Towers, rows: np.ndarray, shown: np.ndarray) -> dict[str, object]:
    """Retrieval among the pairs of some rows: texts of the same image are all right for it.

    Args:
        networks: One, or several that are averaged.
        towers: Features by row.
        rows: int64 (m,), m >= 1.
        shown: int64 (m,): equal for the same image.

    Returns:
        `pairs`, `images`; `ensemble` with the metrics of `noisycorr.recall`, and `singles`, a list with those of each.
    """
    _, first, image_of = np.unique(shown, return_index=True, return_inverse=True)
    blocks, singles = [], []
    for network in networks:
        image, text = embed_rows(network, towers, rows)
        blocks.append(feature_blocks(image[first], text))
        singles.append(retrieval_metrics(blocks[-1], image_of, len(first), tolerance=TOLERANCE))
    together = singles[0]
    if len(blocks) > 1:
        together = retrieval_metrics(mean_blocks(blocks), image_of, len(first), tolerance=TOLERANCE)
    return {"pairs": len(rows), "images": len(first), "ensemble": together, "singles": singles}


def short(found: Mapping[str, object], prefix: str) -> dict[str, float]:
    """One line of it: rSum of the ensemble and of each network."""
    singles = found["singles"]
    assert isinstance(singles, list) and isinstance(found["ensemble"], dict)
    out = {f"{prefix}_rSum": found["ensemble"]["rSum"]}
    if len(singles) > 1:
        out |= {f"{prefix}_rSum_{number}": one["rSum"] for number, one in enumerate(singles)}
    return out
