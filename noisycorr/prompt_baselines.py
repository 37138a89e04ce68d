"""What a tuned prompt is compared with: classifiers that cost seconds, on the same features.

Those that look at all images at once see the test images too, without their labels; the prompt does not.
"""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float

from noisycorr.prompt.build import class_vectors
from noisycorr.prompt.task import Task
from noisycorr.prompt.text import TextSide
from noisycorr.score.transclip import transclip
from noisycorr.score.transductive import balanced, linear_probe, neighbor_labels
from noisycorr.score.zlap import zlap


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
    from open_clip import SIMPLE_IMAGENET_TEMPLATES

    out = {"zero-shot": zero.argmax(1).cpu().numpy()}
    texts = {"template ensemble": [[template(name) for template in SIMPLE_IMAGENET_TEMPLATES] for name in task.names]}
    if descriptions:
        texts["class descriptions"] = [descriptions.get(name) or [f"a photo of a {name}"] for name in task.names]
    vectors = {name: class_vectors(side, some, joint.device) for name, some in texts.items()}
    out |= {name: (joint @ some.T).argmax(1).cpu().numpy() for name, some in vectors.items()}
    classes = vectors["template ensemble"].float().cpu().numpy()
    rows, n = np.flatnonzero(task.usable), len(task.usable)
    x, chances = joint.float().cpu().numpy()[rows], torch.softmax(zero, 1).cpu().numpy()[rows]
    for name, found in {
        "TransCLIP, all images at once": transclip(x, classes, scale=scale),
        "ZLaP, all images at once": zlap(x, classes),
        "balanced, all classes alike": balanced(chances),
        "neighbours of the image tower": neighbor_labels(chances, image[rows]),
    }.items():
        out[name] = np.zeros((n, len(task.names)), np.float32)
        out[name][rows] = found
    known = task.labelled
    if len(np.unique(task.label[known])) > 1:
        one = joint.float().cpu().numpy()
        out["linear probe on the labels"] = linear_probe(one[known], task.label[known], one, classes=len(task.names))
    return out
