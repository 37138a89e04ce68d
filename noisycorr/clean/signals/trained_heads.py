"""Two-layer heads as one more signal of the cleaner: they see finer differences than linear ones, and cost more."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch
from jaxtyping import Float, Int

from noisycorr.clean.signals.crossfit import reduce_width
from noisycorr.clean.signals.view import PairEmbeddings
from noisycorr.models.training.choice import Train
from noisycorr.models.training.heads import Network, StoredTowers
from noisycorr.models.training.learner import Learner, TrainSet
from noisycorr.models.training.loop import Hooks, fit
from noisycorr.models.training.plain import Plain
from noisycorr.runtime import console, dist

WIDTH = 384  # principal components of each side
CHUNK = 4096
PASSES = 10  # over the pairs of a fold
FEWEST, STEPS = 200, 2_000  # steps of a fold: enough for small sets, and large ones cost minutes

Sides = tuple[Float[np.ndarray, "n d"], Float[np.ndarray, "n d"]]


def trained_heads(view: PairEmbeddings, fold: Int[np.ndarray, " n"]) -> Sides:
    """Every pair encoded by heads that never saw its fold, trained with a loss that forgives wrong pairs.

    Args:
        view: The pairs; near-duplicate pictures must share a fold.
        fold: Which pairs are held out together.

    Returns:
        Unit rows of images and of texts; the cosine of two rows of one fold says how well they match, those of
        different folds cannot be compared. Rows without image or text are zero.

    Source: generalised cross-entropy (Zhang and Sabuncu, NeurIPS 2018); cross-fitting as in `crossfit.py`.
    """
    towers = StoredTowers(*(reduce_width(side, WIDTH) for side in (view.image, view.text)), device=dist.device(),
                          dtype=torch.float32)  # fmt: skip
    choice = Train(seed=view.seed)
    image, text = (np.zeros((view.n, choice.embed_dim), np.float32) for _ in range(2))
    with console.bar(label="trained heads", total=None, hidden=not dist.is_main()) as bar:
        for part in np.unique(fold[view.present]):
            rows, held = np.flatnonzero(view.present & (fold != part)), np.flatnonzero(view.present & (fold == part))
            if len(rows) >= 2:
                network = _train(view, towers, rows, choice, Hooks(progress=bar.update))
                image[held], text[held] = _encode(network, towers, held)
    return image, text


def _train(view: PairEmbeddings, towers: StoredTowers, rows: np.ndarray, choice: Train, hooks: Hooks) -> Network:
    """Heads of some rows; of a large set every k-th row and fewer passes, of a small one more."""
    rows = rows[:: -(-len(rows) // (STEPS * choice.batch_size))]
    steps = -(-len(rows) // choice.batch_size)
    epochs = min(max(PASSES, -(-FEWEST // steps)), max(1, STEPS // steps))
    data = TrainSet(towers=towers, rows=rows, image_group=view.image_id[rows], text_group=view.text_id[rows])
    learner = Learner(data, Plain(loss="gce"), dataclasses.replace(choice, epochs=epochs), device=dist.device())
    network = learner.networks[0]
    assert isinstance(network, Network)
    network.standardise(*(side(torch.from_numpy(rows)).cpu().numpy() for side in (towers.image, towers.text)))
    fit(learner, hooks)
    return network.eval()


@torch.no_grad()
def _encode(network: Network, towers: StoredTowers, rows: np.ndarray) -> Sides:
    image, text = [], []
    for start in range(0, len(rows), CHUNK):
        part = torch.from_numpy(rows[start : start + CHUNK])
        image.append(network.vectors(network.image(towers.image(part))).cpu().numpy())
        text.append(network.vectors(network.text(towers.text(part))).cpu().numpy())
    return np.concatenate(image), np.concatenate(text)
