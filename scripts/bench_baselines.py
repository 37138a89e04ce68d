"""Baselines of the detection benchmark: what the field does with a mismatched pair, on the same frozen features.

    infonce      cosine of two learned heads, as it stands
    infonce+gmm  the same heads, two Gaussians on the per-pair loss (NCR, Huang et al., NeurIPS 2021)
    coteaching   two networks that choose the small-loss pairs for each other (Han et al., NeurIPS 2018), NCR style
    cleanlab     confident learning (Northcutt et al., JAIR 2021) with clusters of texts as classes
    conse+gmm    cosine of a zero-shot space (Norouzi et al., ICLR 2014), two Gaussians

Each gets what ours gets: frozen features, ids of equal texts and of equal pictures, and a choice of its few settings
without truth, by how well held-out given pairs are told from re-paired ones. Epochs are chosen like this in every run,
the rest with the first seed of every row of the tables.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from sklearn.cluster import KMeans
from sklearn.linear_model import LogisticRegression
from sklearn.mixture import GaussianMixture
from torch import Tensor, nn
from torch.nn import functional

from noisycorr.stats.detection import auroc

# Learning rates of 3e-4 to 3e-3 and weight decay up to 1 made no difference of note where they were tried; dropout did.
BATCH, TAU, RATE, DECAY = 256, 0.07, 1e-3, 1e-2
DROPOUTS = (0.1, 0.5)
EPOCHS, STEPS = 25, 400  # at most 25 epochs, on small sets 400 steps
PATIENCE = 6  # epochs without a better checkpoint before training ends
CLUSTERS = (25, 100)
STRENGTHS = (0.001, 0.01, 0.1)
WARM = 5  # epochs of learning from all pairs before co-teaching begins to choose


@dataclass(frozen=True, slots=True, kw_only=True)
class Given:
    """What a method sees of n pairs; no truth.

    Attributes:
        image: float32 (n, d) principal components of the image features, mean 0, mean square 1.
        text: float32 (n, e) text features, likewise.
        text_id: int (n,): equal for equal texts.
        image_id: int (n,): equal for the same or near-duplicate pictures.
        conse: float32 (n,) cosine in the zero-shot space.
        clusters: Function of a number k: int (n,) cluster of each text among at most k.
        seed: Of everything random.
    """

    image: np.ndarray
    text: np.ndarray
    text_id: np.ndarray
    image_id: np.ndarray
    conse: np.ndarray
    clusters: Callable[[int], np.ndarray]
    seed: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What a method says.

    Attributes:
        score: (n,) higher = better matched.
        p_clean: (n,) in [0, 1].
        noise_rate: Estimated share of wrong pairs; None where the method has to be told.
    """

    score: np.ndarray
    p_clean: np.ndarray
    noise_rate: float | None


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """Settings that were tuned without truth: dropout of the heads; clusters and regularisation of cleanlab."""

    dropout: float
    clusters: int
    strength: float


class Heads(nn.Module):
    """Two heads of two layers into a common space of unit vectors."""

    def __init__(self, image: int, text: int, dropout: float, *, hidden: int = 256, width: int = 128) -> None:
        super().__init__()
        self.image, self.text = (
            nn.Sequential(nn.Linear(size, hidden), nn.GELU(), nn.Dropout(dropout), nn.Linear(hidden, width))
            for size in (image, text)
        )

    def forward(self, image: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
        """Unit vectors (b, 128) of both sides."""
        return functional.normalize(self.image(image), dim=-1), functional.normalize(self.text(text), dim=-1)


class Trainer:
    """One pair of heads in training, with the checkpoint that did best on held-out pairs.

    Args:
        given: The pairs.
        dropout: Between the layers.
        seed: Of weights, dropout and batches.
    """

    def __init__(self, given: Given, dropout: float, seed: int) -> None:
        torch.manual_seed(seed)
        self.given, self.rng = given, np.random.default_rng([seed, 1])
        self.image, self.text = torch.from_numpy(given.image), torch.from_numpy(given.text)
        self.text_id, self.image_id = torch.from_numpy(given.text_id), torch.from_numpy(given.image_id)
        self.heads = Heads(given.image.shape[1], given.text.shape[1], dropout)
        self.optimizer = torch.optim.AdamW(self.heads.parameters(), lr=RATE, weight_decay=DECAY)
        self.held, self.rest = hold_out(given)
        each = -(-len(self.rest) // BATCH)
        self.epochs = max(EPOCHS, -(-STEPS // each))
        self.patience = max(PATIENCE, self.epochs // 8)
        self.best, self.separation, self.stale = copy.deepcopy(self.heads.state_dict()), -1.0, 0

    def epoch(self, rows: np.ndarray) -> None:
        """One pass over some rows in random order, then a look at the held-out ones."""
        self.heads.train()
        order = self.rng.permutation(rows)
        for batch in np.array_split(order, max(1, round(len(order) / BATCH))):
            some = torch.from_numpy(batch)
            one, two = self.heads(self.image[some], self.text[some])
            loss = info_nce(one, two, self.text_id[some], self.image_id[some]).mean()
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
        found = self.held_out()
        self.stale += 1
        if found > self.separation:
            self.best, self.separation, self.stale = copy.deepcopy(self.heads.state_dict()), found, 0

    def held_out(self) -> float:
        """AUROC of held-out given pairs against held-out re-paired ones."""
        one, two = self.project(self.held)
        return separation(
            (one * two).sum(1), lambda image, text: (one[image] * two[text]).sum(1), self.given, self.held
        )

    def project(self, rows: np.ndarray | slice = slice(None)) -> tuple[np.ndarray, np.ndarray]:
        """Unit vectors (n, 128) of the images and texts of all rows, or of some."""
        self.heads.eval()
        with torch.no_grad():
            one, two = self.heads(self.image[rows], self.text[rows])
        return one.numpy(), two.numpy()

    def losses(self) -> np.ndarray:
        """InfoNCE loss (n,) of every pair, in random batches without dropout."""
        one, two = map(torch.from_numpy, self.project())
        out = np.zeros(len(one))
        order = self.rng.permutation(len(out))
        for batch in np.array_split(order, max(1, round(len(order) / BATCH))):
            some = torch.from_numpy(batch)
            out[batch] = info_nce(one[some], two[some], self.text_id[some], self.image_id[some]).numpy()
        return out

    def restore(self) -> None:
        """Go back to the best checkpoint."""
        self.heads.load_state_dict(self.best)


def info_nce(image: Tensor, text: Tensor, text_id: Tensor, image_id: Tensor) -> Tensor:
    """Loss (b,) of both directions; pairs with the same text or the same picture are not each other's negatives."""
    same = (text_id[:, None] == text_id) | (image_id[:, None] == image_id)
    same.fill_diagonal_(False)
    logits = (image @ text.T / TAU).masked_fill(same, -1e4)
    return -(logits.log_softmax(1).diagonal() + logits.log_softmax(0).diagonal()) / 2


def hold_out(given: Given) -> tuple[np.ndarray, np.ndarray]:
    """Rows of a tenth of the pictures (at least 100 rows), and the other rows."""
    ids, inverse = np.unique(given.image_id, return_inverse=True)
    share = min(0.3, max(0.1, 100 / len(inverse)))
    chosen = np.random.default_rng([given.seed, 2]).permutation(len(ids)) < share * len(ids)
    return np.flatnonzero(chosen[inverse]), np.flatnonzero(~chosen[inverse])


def separation(
    own: np.ndarray, score: Callable[[np.ndarray, np.ndarray], np.ndarray], given: Given, rows: np.ndarray
) -> float:
    """AUROC of `own`, scores of the given pairs `rows`, against `score(i, j)` of re-paired ones (places in rows)."""
    rng = np.random.default_rng([given.seed, 3])
    one, two = rng.integers(len(rows), size=(2, 8 * len(rows)))
    good = (given.text_id[rows[one]] != given.text_id[rows[two]]) & (
        given.image_id[rows[one]] != given.image_id[rows[two]]
    )
    null = score(one[good], two[good])
    return auroc(np.concatenate([own, null]), np.repeat([False, True], [len(own), len(null)]))


def two_gaussians(loss: np.ndarray) -> np.ndarray:
    """Posterior (n,) of the component of smaller loss, as NCR fits it: losses scaled to 0..1."""
    scaled = (loss - loss.min()) / max(float(np.ptp(loss)), 1e-12)
    model = GaussianMixture(2, max_iter=10, tol=1e-2, reg_covar=5e-4, random_state=0).fit(scaled[:, None])
    return model.predict_proba(scaled[:, None])[:, int(np.argmin(model.means_[:, 0]))]


def train(given: Given, dropout: float) -> Trainer:
    """Heads learned on all pairs but the held-out ones, at the best checkpoint."""
    trainer = Trainer(given, dropout, given.seed)
    for _ in range(trainer.epochs):
        trainer.epoch(trainer.rest)
        if trainer.stale >= trainer.patience:
            break
    trainer.restore()
    return trainer


def infonce(given: Given, chosen: Chosen) -> dict[str, Answer]:
    """Cosine (its threshold needs the true noise rate, so no estimate), and two Gaussians on the loss."""
    trainer = train(given, chosen.dropout)
    cosine = np.einsum("nd,nd->n", *trainer.project())
    loss = trainer.losses()
    p_clean = two_gaussians(loss)
    scaled = (cosine - cosine.min()) / max(float(np.ptp(cosine)), 1e-12)
    return {
        "infonce": Answer(score=cosine, p_clean=scaled, noise_rate=None),
        "infonce+gmm": Answer(score=-loss, p_clean=p_clean, noise_rate=float(1 - p_clean.mean())),
    }


def coteaching(given: Given, chosen: Chosen) -> dict[str, Answer]:
    """After a warm-up each network learns from the pairs that two Gaussians on its peer's loss call clean."""
    pair = [Trainer(given, chosen.dropout, 2 * given.seed + 1000 + number) for number in range(2)]
    for epoch in range(pair[0].epochs):
        rest = [trainer.rest for trainer in pair]
        if epoch >= WARM:
            clean = [two_gaussians(trainer.losses()[trainer.rest]) for trainer in pair]
            rest = [trainer.rest[_clean_rows(p)] for trainer, p in zip(pair, clean[::-1])]
        for trainer, rows in zip(pair, rest):
            trainer.epoch(rows)
        if epoch >= WARM and min(trainer.stale for trainer in pair) >= pair[0].patience:
            break
    loss, p_clean = np.zeros(len(given.image)), np.zeros(len(given.image))
    for trainer in pair:
        trainer.restore()
        own = trainer.losses()
        loss, p_clean = loss + own / 2, p_clean + two_gaussians(own) / 2
    return {"coteaching": Answer(score=-loss, p_clean=p_clean, noise_rate=float(1 - p_clean.mean()))}


def _clean_rows(p_clean: np.ndarray) -> np.ndarray:
    """Pairs above one half; if the fit collapsed to less than a tenth of all, the best tenth."""
    chosen = p_clean > 0.5
    return chosen if chosen.mean() >= 0.1 else p_clean >= np.quantile(p_clean, 0.9)


def cleanlab(given: Given, chosen: Chosen) -> dict[str, Answer]:
    """Self-confidence of out-of-sample class probabilities, and the share of errors in the estimated joint."""
    from cleanlab.count import estimate_joint
    from cleanlab.rank import get_self_confidence_for_each_label

    label = given.clusters(chosen.clusters)
    probabilities = np.zeros((len(label), int(label.max()) + 1))
    ids, inverse = np.unique(given.image_id, return_inverse=True)
    fold = np.random.default_rng([given.seed, 4]).permutation(np.arange(len(ids)) % 5)[inverse]
    for part in range(5):
        rows = fold == part
        probabilities[rows] = _classify(given.image, label, ~rows, rows, chosen.strength)
    score = get_self_confidence_for_each_label(label, probabilities)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about classes of few examples
        joint = estimate_joint(label, probabilities)
    return {"cleanlab": Answer(score=score, p_clean=score, noise_rate=float(1 - np.trace(joint)))}


def _classify(image: np.ndarray, label: np.ndarray, learn: np.ndarray, ask: np.ndarray, strength: float) -> np.ndarray:
    """Class probabilities of the rows `ask`; a class that was not learned gets almost nothing."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about steps that ran out: 60 are enough for ranks
        model = LogisticRegression(C=strength, max_iter=60, tol=1e-3).fit(image[learn], label[learn])
    out = np.full((int(ask.sum()) if ask.dtype == bool else len(ask), int(label.max()) + 1), 1e-6)
    out[:, model.classes_] = model.predict_proba(image[ask])
    return out / out.sum(1, keepdims=True)


def conse(given: Given, chosen: Chosen) -> dict[str, Answer]:
    """Zero-shot cosine; nothing is learned or tuned."""
    p_clean = two_gaussians(-given.conse.astype(np.float64))
    return {"conse+gmm": Answer(score=given.conse, p_clean=p_clean, noise_rate=float(1 - p_clean.mean()))}


BASELINES: dict[str, Callable[[Given, Chosen], dict[str, Answer]]] = {
    "infonce": infonce, "coteaching": coteaching, "cleanlab": cleanlab, "conse+gmm": conse,
}  # fmt: skip


def choose(given: Given) -> Chosen:
    """Settings by held-out separation from re-paired pairs; no truth."""
    dropouts = {dropout: train(given, dropout).separation for dropout in DROPOUTS}
    held, rest = hold_out(given)
    found: dict[tuple[int, float], float] = {}
    for count in sorted({int(given.clusters(k).max()) + 1 for k in CLUSTERS}):
        label = given.clusters(count)
        for strength in STRENGTHS:
            log = np.log(_classify(given.image, label, rest, held, strength))
            found[count, strength] = _of_labels(log, label[held], given, held)
    clusters, strength = max(found, key=lambda key: found[key])
    return Chosen(dropout=max(DROPOUTS, key=lambda d: dropouts[d]), clusters=clusters, strength=strength)


def _of_labels(log: np.ndarray, label: np.ndarray, given: Given, rows: np.ndarray) -> float:
    own = log[np.arange(len(rows)), label]
    return separation(own, lambda image, text: log[image, label[text]], given, rows)


def text_clusters(text: np.ndarray) -> Callable[[int], np.ndarray]:
    """A function from k to the cluster (n,) of each text, at most as many as there are distinct ones."""
    distinct, inverse = np.unique(text.astype(np.float32), axis=0, return_inverse=True)

    @cache
    def clusters(count: int) -> np.ndarray:
        if len(distinct) <= count:
            return inverse
        found = KMeans(count, n_init=1, random_state=0).fit_predict(distinct)
        return np.unique(found, return_inverse=True)[1][inverse]

    return clusters
