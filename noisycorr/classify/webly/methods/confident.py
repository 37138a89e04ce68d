"""Confident learning, then training on what it leaves: label errors are counted with probabilities of held-out samples.

Which labels are errors, `score/confident.py` says: pruning by noise rate.

Source: Northcutt, Jiang and Chuang, "Confident Learning", JAIR 2021.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from noisycorr.classify.confident import label_issues
from noisycorr.classify.webly.contract import Batch, Method
from noisycorr.classify.webly.losses import soft_cross_entropy
from noisycorr.models.training.batches import stream_seed
from noisycorr.models.training.contract import Loss, Trust
from noisycorr.models.training.memory import Memory


@dataclass(frozen=True, kw_only=True)
class Confident(Method):
    """Confident learning on the features at the start, then cross-entropy.

    Attributes:
        folds: Of the held-out probabilities, >= 2.
        ridge: Inverse strength of the penalty of the logistic regression that gives them.
    """

    folds: int = 5
    ridge: float = 0.01

    judges = True
    banks = True

    def asks(self, epoch: int, epochs: int) -> bool:
        """Before the first epoch."""
        return epoch == 0

    def observe(self, batch: Batch, memory: Memory) -> dict[str, Tensor]:
        """The features go into the memory."""
        memory.write("features", batch.rows, batch.features)
        return {"given": batch.labels.to(batch.features.dtype)}

    def decide(self, signals: Mapping[str, np.ndarray], memory: Memory) -> Trust:
        """Who is left."""
        labels = signals["given"].astype(np.int64)
        p = held_out(memory.columns["features"].cpu().numpy(), labels, self.folds, self.ridge)
        wrong = label_issues(p, labels)
        own = p[np.arange(len(labels)), labels]
        return Trust(p_clean=own.clip(0, 1), clean=~wrong, facts={"left_out": float(wrong.mean())})

    def learn(self, batch: Batch, memory: Memory, trust: Trust | None, peer: Batch | None) -> Loss:
        """Cross-entropy."""
        return Loss(per_pair=soft_cross_entropy(batch.logits, batch.targets))


def held_out(features: np.ndarray, labels: np.ndarray, folds: int, ridge: float) -> np.ndarray:
    """Probabilities (n, c) of logistic regressions that did not see the sample; classes of one sample get 0."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    n, c = len(labels), int(labels.max()) + 1
    wide = features.astype(np.float64)
    wide = (wide - wide.mean(0)) / np.maximum(wide.std(0), 1e-9)
    order = np.random.default_rng(stream_seed("folds")).permutation(n)
    rank = np.empty(n, np.int64)
    rank[order[np.argsort(labels[order], kind="stable")]] = np.arange(n)  # each class is dealt evenly
    fold, out = rank % folds, np.zeros((n, c))
    for part in range(folds):
        seen = fold != part
        if seen.all() or len(np.unique(labels[seen])) < 2:
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            model = LogisticRegression(C=ridge, max_iter=100).fit(wide[seen], labels[seen])
        out[np.ix_(~seen, model.classes_)] = model.predict_proba(wide[~seen])
    return out
