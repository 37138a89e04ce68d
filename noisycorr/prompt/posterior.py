"""What pseudo-labels are chosen from: the model's probabilities, put right by images that look alike.

The image tower of an encoder often tells images apart that its joint space does not: a CLIP that was trained on little,
or two towers that were never trained together. TransCLIP's mixture, in the features of the image tower alone and with
the prompt's and the zero-shot probabilities as the first answer, brings that into every round.
"""

from __future__ import annotations

import functools

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy import sparse

from noisycorr.prompt.choice import Rounds
from noisycorr.prompt.task import Task
from noisycorr.prompt.transclip import Settled, alike, answer, iterate_transclip
from noisycorr.stats.index import neighbors as nearest
from noisycorr.stats.index import unit_rows

LEAST = 1e-12  # of a probability whose logarithm is taken
MOST = 60_000_000  # images x classes beyond which the mixture would want more than a few GB


class Posterior:
    """From the model's probabilities to those that labels are chosen from.

    Args:
        task: Images and classes.
        features: Of the image tower, (n, e).
        zero: Zero-shot probabilities (n, c), rows sum to 1.
        rounds: Which posterior.
        seed: Of the approximate search of large sets.
    """

    def __init__(self, task: Task, features: Float[np.ndarray, "n e"], zero: Float[np.ndarray, "n c"], rounds: Rounds,
                 *, seed: int) -> None:  # fmt: skip
        self._task, self._zero, self._kind, self._seed = task, np.asarray(zero, np.float64), rounds.posterior, seed
        self._near: np.ndarray | None = None
        self._rows = np.concatenate([task.unlabelled, task.labelled])
        self._features = features
        small = len(self._rows) > 3 and len(self._rows) * len(task.names) <= MOST
        self.mixes = self._kind == "mixture" and small
        self.has_neighbor_vote = small and (self.mixes or rounds.guard)
        if self._kind == "neighbors":
            self._near = lookalikes(features[task.unlabelled], rounds.neighbors, seed=seed)

    @functools.cached_property
    def _x(self) -> Float[np.ndarray, "n e"]:
        middle = self._features[self._rows].mean(0)
        return unit_rows(np.asarray(self._features - middle, np.float32)).astype(np.float64)

    @functools.cached_property
    def _graph(self) -> sparse.csr_matrix:
        return alike(self._x[self._rows], 3, seed=self._seed)

    def __call__(self, p: Float[np.ndarray, "u o"]) -> Float[np.ndarray, "u o"]:
        """Probabilities of the unlabelled images among the open classes, from the model's."""
        return self.neighbor_vote(p) if self.mixes else averaged(p, self._near)

    def neighbor_vote(self, p: Float[np.ndarray, "u o"]) -> Float[np.ndarray, "u o"]:
        """The mixture's answer, whatever labels are chosen from: what the guard compares a prompt with."""
        whole = np.zeros((len(p), len(self._task.names)))
        whole[:, self._task.open] = p
        chances = self._by_mixture(whole).z[: len(p)][:, self._task.open]
        return (chances / np.maximum(chances.sum(1, keepdims=True), LEAST)).astype(np.float32)

    def similar(self, rows: Int[np.ndarray, " m"], count: int) -> Int[np.ndarray, "m k"]:
        """Places in `rows` of the most similar others of these unlabelled images, -1 where there is none."""
        return nearest(self._x[self._task.unlabelled[rows]], min(count, len(rows) - 1), seed=self._seed).ids

    def answers(self, p: Float[np.ndarray, "n c"]) -> Float[np.ndarray, "n c"]:
        """Probabilities of all images and classes, each image on its own: test images change nothing.

        Args:
            p: The model's, rows sum to 1, or zeros where there is no image.
        """
        if not self.mixes:
            return p
        mixture = self._by_mixture(np.asarray(p, np.float64)[self._task.unlabelled])
        out = np.zeros(p.shape)
        out[self._rows] = mixture.z
        others = np.setdiff1d(np.flatnonzero(self._task.usable), self._rows)
        if len(others):
            start = _logarithm(_between(np.asarray(p, np.float64)[others], self._zero[others]))
            out[others] = answer(mixture, self._x[self._rows], self._x[others], start, seed=self._seed)
        return out.astype(np.float32)

    def _by_mixture(self, p: Float[np.ndarray, "u c"]) -> Settled:
        """Classes from unlabelled images, that only open classes are for, and labelled ones, whose class is told."""
        first = _between(p, self._zero[self._task.unlabelled])
        first[:, self._task.seen] = 0
        given_labels = np.zeros((len(self._task.labelled), p.shape[1]))
        given_labels[np.arange(len(given_labels)), self._task.label[self._task.labelled]] = 1
        return iterate_transclip(self._x[self._rows], _logarithm(np.concatenate([first, given_labels])), self._graph)


def _between(p: np.ndarray, zero: np.ndarray) -> np.ndarray:
    """sqrt(p q), rows sum to 1: the prompt alone would confirm itself round by round."""
    both: np.ndarray = np.sqrt(np.maximum(p, 0) * zero)
    return both / np.maximum(both.sum(1, keepdims=True), LEAST)


def _logarithm(p: np.ndarray) -> np.ndarray:
    out: np.ndarray = np.log(np.maximum(p / np.maximum(p.sum(1, keepdims=True), LEAST), LEAST))
    return out


def averaged(p: Float[np.ndarray, "u c"], neighbors: Int[np.ndarray, "u k"] | None) -> Float[np.ndarray, "u c"]:
    """(p_i + mean over neighbours of p_j) / 2; as it is where there are no neighbours.

    Source: none; one step of the label propagation that `neighbors` of a transductive method would repeat.
    """
    if neighbors is None or not neighbors.shape[1]:
        return p
    out = p.copy()
    known = neighbors >= 0
    total = np.zeros_like(p)
    for place in range(neighbors.shape[1]):
        total += p[neighbors[:, place]] * known[:, place, None]
    some = known.any(1)
    out[some] = 0.5 * p[some] + 0.5 * total[some] / known[some].sum(1, keepdims=True)
    return out


def lookalikes(features: Float[np.ndarray, "u d"], count: int, *, seed: int) -> Int[np.ndarray, "u k"] | None:
    """Rows of the most similar other images in the encoder's own image space, centred; None for no neighbours."""
    if not count or len(features) < 3:
        return None
    wide = np.asarray(features, np.float32)
    return nearest(wide - wide.mean(0), min(count, len(wide) - 1), seed=seed).ids


def neighbor_clean(label: Int[np.ndarray, " m"], near: Int[np.ndarray, "m k"]) -> Bool[np.ndarray, " m"]:
    """True where no class has more votes among the neighbours than the label that the image has.

        v_ic = #{j in N(i): y_j = c};     clean_i = (v_{i, y_i} = max_c v_ic  and  v_{i, y_i} > 0)

    Wrong labels that are spread over the classes rarely win a vote, even where most labels are wrong, as long as images
    of one class are each other's neighbours.

    Args:
        label: Class of each image, >= 0.
        near: Its most similar other images, as places in `label`; -1 stands for none.

    Source: Bahri, Jiang and Gupta, Deep k-NN for Noisy Labels, ICML 2020.
    Differs: neighbours come from the frozen image tower instead of a first model's logits; a tie is believed.
    """
    m, k = near.shape
    if not k:
        return np.ones(m, bool)
    votes = np.where(near >= 0, label[np.maximum(near, 0)], -1)
    own = (votes == label[:, None]).sum(1)
    most = np.zeros(m, np.int64)
    for place in range(k):
        here = votes[:, place, None]
        most = np.maximum(most, ((votes == here) & (here >= 0)).sum(1))
    return (own > 0) & (own == most)
