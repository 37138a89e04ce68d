"""How well networks retrieve: each one alone and all together, on rows of a corpus, shared by all processes."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from noisycorr.models.training.heads import RetrievalNetwork, Towers
from noisycorr.runtime import dist
from noisycorr.stats.recall import KS, Blocks, classification_metrics, feature_blocks, fold_metrics, mean_blocks

TOLERANCE = 1e-6  # embeddings are single precision
SET_TOLERANCE = 1e-5  # similarities of sets go through more of it


@torch.no_grad()
def encode_rows(network: RetrievalNetwork, towers: Towers, rows: np.ndarray, side: str) -> Tensor:
    """Encoded images or texts of some rows, (m, ...). Every process encodes its share and gets all of them.

    Args:
        network: In evaluation mode.
        towers: What it encodes.
        rows: int64 (m,).
        side: image or text.
    """
    shares = _parts(rows, towers.chunk)
    if side == "image":
        towers.expect((share[dist.my_slice(len(share))], None) for share in shares)
    give, encode = (towers.image, network.image) if side == "image" else (towers.text, network.text)
    out = []
    for share in shares:
        mine = torch.from_numpy(share[dist.my_slice(len(share))])
        out.append(dist.gather(encode(give(mine)), len(share)))
    return torch.cat(out)


@torch.no_grad()
def network_blocks(network: RetrievalNetwork, towers: Towers, images: np.ndarray, texts: np.ndarray) -> Blocks:
    """Similarities of some images with some texts, as `noisycorr.stats.recall` asks for them.

    Vectors are kept; sets are encoded anew for every block, which costs little beside comparing them.

    Args:
        network: Any.
        towers: What it encodes.
        images: int64 (n,) rows of which the images take part.
        texts: int64 (m,) rows of which the texts take part.
    """
    with evaluating(network):
        if not network.sets:
            image, text = (encode_rows(network, towers, rows, side) for rows, side in
                           ((images, "image"), (texts, "text")))  # fmt: skip
            return feature_blocks(image.cpu().numpy(), text.cpu().numpy())

    @torch.no_grad()
    def block(rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
        with evaluating(network):
            mine = images[rows][dist.my_slice(len(rows))]
            image = [network.image(towers.image(torch.from_numpy(part))) for part in _parts(mine, towers.chunk)]
            text = encode_rows(network, towers, texts[columns], "text")
            sims = [network.similarity(part, text) for part in image] or [text.new_zeros(0, len(columns))]
            return dist.gather(torch.cat(sims), len(rows)).cpu().numpy()

    return block


@contextlib.contextmanager
def evaluating(network: torch.nn.Module) -> Iterator[None]:
    """Evaluation mode for a while."""
    mode = network.training
    network.eval()
    try:
        yield
    finally:
        network.train(mode)


def retrieval(networks: Sequence[RetrievalNetwork], towers: Towers, rows: np.ndarray, shown: np.ndarray, *,
              folds: int = 1) -> dict[str, object]:  # fmt: skip
    """Retrieval among the pairs of some rows: texts of the same image are all right for it.

    Args:
        networks: One, or several that are averaged.
        towers: What they encode, by row.
        rows: int64 (m,), m >= 1.
        shown: int64 (m,): equal for the same image; parts are cut in this order.
        folds: Above 1, also the mean over so many parts of the images.

    Returns:
        `pairs`, `images`; `ensemble` with the metrics of `stats.recall`, and `singles`, a list with those of each;
        with several `folds`, that: `count`, and `ensemble` and `singles` again.
    """
    _, first, image_of = np.unique(shown, return_index=True, return_inverse=True)
    tolerance = SET_TOLERANCE if any(network.sets for network in networks) else TOLERANCE
    blocks = [network_blocks(network, towers, rows[first], rows) for network in networks]

    def measure(parts: int) -> dict[str, Any]:
        return _each(blocks, lambda one: fold_metrics(one, image_of, len(first), folds=parts, tolerance=tolerance))

    found = {"pairs": len(rows), "images": len(first), **measure(1)}
    return found if folds == 1 else found | {"folds": {"count": folds, **measure(folds)}}


def classification(networks: Sequence[RetrievalNetwork], towers: Towers, rows: np.ndarray, label: np.ndarray,
                   class_towers: Towers, sizes: Sequence[int]) -> dict[str, object]:  # fmt: skip
    """Zero-shot classification of images by the texts of classes; a class of several texts has their mean vector.

    Args:
        networks: One, or several that are averaged; not of sets.
        towers: What they encode, by row.
        rows: int64 (m,) rows of which the images take part.
        label: int64 (m,): their classes.
        class_towers: Its texts are those of the classes, one class after the other.
        sizes: How many texts each class has, >= 1.

    Returns:
        `images`, `classes`; `ensemble` with the metrics of `stats.recall.classification_metrics`, and `singles`, a
        list with those of each.
    """
    owner, blocks = np.repeat(np.arange(len(sizes)), sizes), []
    for network in networks:
        with evaluating(network):
            image = encode_rows(network, towers, rows, "image").cpu().numpy()
            text = encode_rows(network, class_towers, np.arange(len(owner)), "text").cpu().numpy()
        means = np.zeros((len(sizes), text.shape[1]))
        np.add.at(means, owner, text)
        blocks.append(feature_blocks(image, means))
    measured = _each(blocks, lambda one: classification_metrics(one, label, len(sizes), tolerance=TOLERANCE))
    return {"images": len(rows), "classes": len(sizes), **measured}


def _each(blocks: Sequence[Blocks], measure: Callable[[Blocks], dict[str, float]]) -> dict[str, Any]:
    """Metrics of all networks together, and of each alone."""
    singles = [measure(one) for one in blocks]
    return {"ensemble": measure(mean_blocks(blocks)) if len(blocks) > 1 else singles[0], "singles": singles}


def short(found: Mapping[str, object], prefix: str) -> dict[str, float]:
    """One line of it: rSum of the ensemble and of each network."""
    singles = found["singles"]
    assert isinstance(singles, list) and isinstance(found["ensemble"], dict)
    out = {f"{prefix}_rSum": found["ensemble"]["rSum"]}
    if len(singles) > 1:
        out |= {f"{prefix}_rSum_{number}": one["rSum"] for number, one in enumerate(singles)}
    return out


def recall_lines(found: Mapping[str, Any]) -> list[str]:
    """What `retrieval` found, for people: a line for each network, and one for all together if there are several."""
    named = {f"network {number + 1}": one for number, one in enumerate(found["singles"])}
    if len(named) == 1:
        named = {"": found["ensemble"]}
    else:
        named["together"] = found["ensemble"]

    def recall(metrics: Mapping[str, float], side: str) -> str:
        return "/".join(f"{metrics[f'{side}_retrieval_recall@{k}']:.1f}" for k in KS)

    return [
        f"{name}{', ' if name else ''}R@{'/'.join(map(str, KS))} of texts {recall(one, 'text')}, of images "
        f"{recall(one, 'image')}, rSum {one['rSum']:.1f}"
        for name, one in named.items()
    ]


def _parts(rows: np.ndarray, size: int) -> list[np.ndarray]:
    return [rows[start : start + size] for start in range(0, len(rows), size)]
