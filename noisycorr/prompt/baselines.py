"""What a tuned prompt is compared with: classifiers that cost seconds, on the same features.

Those that look at all images at once see the test images too, without their labels; the prompt does not.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from jaxtyping import Float

from noisycorr.prompt.build import class_vectors
from noisycorr.prompt.task import Task
from noisycorr.prompt.text import TextSide
from noisycorr.prompt.transclip import alike, iterate_transclip, transclip
from noisycorr.prompt.zlap import zlap
from noisycorr.stats.index import unit_rows
from noisycorr.stats.transductive import balanced, linear_probe, neighbor_labels

# As they are shown: those of the text tower, then those that look at all images.
BASELINES = (
    "zero-shot", "template ensemble", "class descriptions", "TransCLIP, all images at once", "ZLaP, all images at once",
    "balanced, all classes alike", "neighbours of the image tower", "TransCLIP, in the image tower",
    "linear probe on the labels",
)  # fmt: skip


def free_baselines(side: TextSide, task: Task, descriptions: dict[str, list[str]], joint: torch.Tensor,
                   zero: torch.Tensor, *, scale: float,
                   image: Float[np.ndarray, "n d"]) -> dict[str, np.ndarray]:  # fmt: skip
    """Predictions of classifiers that need no training, int64 (n,) each, or probabilities (n, c).

    Args:
        side: The text tower.
        task: Images and classes.
        descriptions: Texts for some classes, by name.
        joint: Images in the joint space, (n, d) of length 1.
        zero: Zero-shot logits (n, c).
        scale: Inverse temperature of the encoder.
        image: Features of the image tower alone, whose neighbours say more where the joint space was not trained.
    """
    out = {"zero-shot": zero.argmax(1).cpu().numpy()}
    vectors = {"template ensemble": ensemble_vectors(side, task.names, joint.device)}
    if descriptions:
        told = [descriptions.get(name) or [f"a photo of a {name}"] for name in task.names]
        vectors["class descriptions"] = class_vectors(side, told, joint.device)
    out |= {name: (joint @ some.T).argmax(1).cpu().numpy() for name, some in vectors.items()}
    return out | cheap_baselines(task, joint, zero, scale=scale, image=image, classes=vectors["template ensemble"])


def cheap_baselines(task: Task, joint: torch.Tensor, zero: torch.Tensor, *, scale: float,
                    image: Float[np.ndarray, "n d"], classes: Float[torch.Tensor, "c d"],
                    only: str | None = None) -> dict[str, np.ndarray]:  # fmt: skip
    """Those of `free_baselines` that no text tower is needed for: probabilities (n, c), zeros where there is no image.

    Args:
        task: As there.
        joint: As there.
        zero: As there.
        scale: As there.
        image: As there.
        classes: Class vectors of TransCLIP and ZLaP.
        only: The one that is wanted; None = all.
    """
    rows, n = np.flatnonzero(task.usable), len(task.usable)
    x, chances = joint.float().cpu().numpy()[rows], torch.softmax(zero, 1).cpu().numpy()[rows]
    text = classes.float().cpu().numpy()
    makers: dict[str, Callable[[], np.ndarray]] = {
        "TransCLIP, all images at once": lambda: transclip(x, text, scale=scale),
        "ZLaP, all images at once": lambda: zlap(x, text),
        "balanced, all classes alike": lambda: balanced(chances),
        "neighbours of the image tower": lambda: neighbor_labels(chances, image[rows]),
        "TransCLIP, in the image tower": lambda: settled(chances, image[rows]),
    }
    known = task.labelled
    if len(np.unique(task.label[known])) > 1:
        makers["linear probe on the labels"] = lambda: linear_probe(
            joint.float().cpu().numpy()[known], task.label[known], x, classes=len(task.names)
        )
    out = {}
    for name, make in makers.items():
        if only in (None, name):
            out[name] = np.zeros((n, len(task.names)), np.float32)
            out[name][rows] = make()
    return out


def ensemble_vectors(side: TextSide, names: Sequence[str], device: torch.device) -> Float[torch.Tensor, "c d"]:
    """Class vectors of the seven templates that CLIP's authors chose."""
    from open_clip import SIMPLE_IMAGENET_TEMPLATES

    return class_vectors(side, [[template(name) for template in SIMPLE_IMAGENET_TEMPLATES] for name in names], device)


def settled(chances: Float[np.ndarray, "n c"], image: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "n c"]:
    """TransCLIP's mixture in the centred features of the image tower, from the zero-shot answer."""
    x = unit_rows(np.asarray(image - image.mean(0), np.float32)).astype(np.float64)
    return iterate_transclip(x, np.log(np.maximum(np.asarray(chances, np.float64), 1e-12)), alike(x, 3)).z
