"""Labelled sets of the audit benchmark, with the noise of web labels made on purpose or, on CIFAR-10N, by people.

diffuse: 25 % of the labels flipped, 70 % of these inside the same category; classes held out until they are 20 % of the
rows, whose pictures get labels of the others at random (out of the set). semantic: for eight pairs of similar classes
60 % of the pictures of B carry the label A; 10 % of all flipped, 15 % out of the set. natural: CIFAR-10N, worst of
three people. Texts: three words of label and tags, a title, or a class name; 30 % blank, 15 % of another picture.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from bench_features import CIFAR, load_features

from noisycorr.classify.prototypes import Prototypes, text_prototypes
from noisycorr.data.noise.labels import diffuse_noise, noisy_texts, semantic_noise
from noisycorr.models.encoders.embedded import EmbeddedEncoder
from noisycorr.runtime.folder import write_array

SETS = ("caltech101", "fashion", "emoji", "cifar10n")
NOISES = ("diffuse", "semantic", "natural")
SIMILAR, FEWEST = 10, 10  # classes like each; rows of a class that is paired with another


@dataclass(frozen=True, slots=True, kw_only=True)
class Labelled:
    """n pictures with c classes before any noise.

    Attributes:
        image: float16 (n, 1280).
        narrow: float32 (n, 384).
        joint: float16 (n, 384) pictures in the space of ConSE.
        text: float16 (n, 384) of the words around each picture; (n, 0) where the set has none.
        label: int (n,) true class.
        names: c names.
        definitions: c definitions.
        category: int (c,).
        group: int (n,) near-duplicates.
        given: Labels that people gave, or None.
    """

    image: np.ndarray
    narrow: np.ndarray
    joint: np.ndarray
    text: np.ndarray
    label: np.ndarray
    names: list[str]
    definitions: list[str]
    category: np.ndarray
    group: np.ndarray
    given: np.ndarray | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """What an auditor sees, and the truth to judge it by.

    Attributes:
        rows: int (m,): rows of the set.
        text: float32 (m, 384), zeros where blank.
        has_text: bool (m,).
        given: int (m,): labels as given.
        truth: int (m,): true class, -1 = out of the set.
        prototypes: Of the classes that are in the set.
        joint_prototypes: The same in the joint space.
    """

    rows: np.ndarray
    text: np.ndarray
    has_text: np.ndarray
    given: np.ndarray
    truth: np.ndarray
    prototypes: Prototypes
    joint_prototypes: Prototypes

    @property
    def wrong(self) -> np.ndarray:
        """bool (m,)."""
        return self.given != self.truth


def load_set(name: str, data: Path, limit: int, cache: Path, encoder: EmbeddedEncoder) -> Labelled:
    """Features from the cache of `bench_features`, labels and words from the files."""
    features = load_features(name, data, limit, cache, encoder)
    n, given = len(features.texts), None
    if name == "caltech101":
        kept = [text.replace("_", " ") for text in features.texts]
        definitions = {text: text for text in kept}
        text, category = features.text, {}
    elif name == "cifar10n":
        table = pq.read_table(data / "cifar10n" / "train.parquet", columns=["worse_label"]).slice(0, n)
        given, kept = table.column("worse_label").to_numpy(), features.texts
        definitions, text, category = {text: text for text in CIFAR}, np.zeros((n, 0)), {}
    elif name == "emoji":
        table = pq.read_table(data / "emoji" / "emoji.parquet", columns=["label", "tags", "group", "subgroup"])
        rows = table.to_pylist()
        kept = [row["subgroup"] for row in rows]
        category = {row["subgroup"]: row["group"] for row in rows}
        definitions = {row["subgroup"]: _spaced(f"{row['subgroup']}: {row['group']}") for row in rows}
        text = _cached(cache / f"audit-emoji-{encoder.weights_hash}.npy", lambda: _text_features(_three(rows), encoder))
    else:
        columns = ["articleType", "masterCategory", "subCategory"]
        files = sorted(data.glob("fashion/train-*.parquet"))
        rows = [row for file in files for row in pq.read_table(file, columns=columns).to_pylist()][:n]
        kept = [row["articleType"] for row in rows]
        category = {row["articleType"]: row["subCategory"] for row in rows}
        definitions = {row["articleType"]: f"{row['articleType']}, {row['subCategory']}" for row in rows}
        text = features.text
    names, label = np.unique(kept, return_inverse=True)
    kinds = {value: i for i, value in enumerate(sorted(set(category.values())))}
    if given is not None:
        place = {text: i for i, text in enumerate(names)}
        given = np.array([place[CIFAR[value]] for value in given])
    return Labelled(image=features.image, narrow=features.narrow, joint=features.joint[0], text=text, label=label,
                    names=[str(text) for text in names], definitions=[definitions[str(text)] for text in names],
                    category=np.array([kinds.get(category.get(str(text), ""), 0) for text in names]),
                    group=features.group, given=given)  # fmt: skip


def make_case(data: Labelled, noise: str, seed: int, encoder: EmbeddedEncoder) -> Case:
    """The set with noise of one seed."""
    classes = len(data.names)
    sense = _text_features(data.definitions, encoder)
    inside = np.ones(classes, bool)
    if noise != "natural":
        inside = _hold_out(data, 0.20 if noise == "diffuse" else 0.15, np.random.default_rng([seed, 101]))
    truth = np.where(inside[data.label], (np.cumsum(inside) - 1)[data.label], -1)
    chosen = np.flatnonzero(inside)
    given = _noisy(data, noise, seed, truth, sense[chosen], data.category[chosen])
    text, has_text = _texts(data.text, seed)
    joint = encoder.joint_space(np.zeros((0, 1280), np.float32), sense[chosen])[1]
    owner = np.arange(len(chosen))
    return Case(rows=np.arange(len(given)), text=text, has_text=has_text, given=given, truth=truth,
                prototypes=text_prototypes(sense[chosen], owner, len(owner)),
                joint_prototypes=text_prototypes(joint, owner, len(owner)))  # fmt: skip


def _noisy(data: Labelled, noise: str, seed: int, truth: np.ndarray, sense: np.ndarray,
           category: np.ndarray) -> np.ndarray:  # fmt: skip
    """Labels of the classes that are in the set; similar ones are of one category, or the ten nearest by definition."""
    count = len(sense)
    if noise == "natural":
        assert data.given is not None
        return data.given.copy()
    like = sense @ sense.T
    np.fill_diagonal(like, -np.inf)
    near = np.argsort(-like, axis=1)[:, :SIMILAR]
    if noise == "diffuse":
        alike = category[:, None] == category
        if not category.any():
            alike = np.zeros((count, count), bool)
            np.put_along_axis(alike, near, True, axis=1)
        return diffuse_noise(truth, count, alike, seed=seed).label
    large = np.bincount(truth[truth >= 0], minlength=count) >= FEWEST
    return semantic_noise(truth, count, partners=np.where(large[near] & large[:, None], near, -1), seed=seed).label


def _hold_out(data: Labelled, share: float, rng: np.random.Generator) -> np.ndarray:
    inside, out = np.ones(len(data.names), bool), 0
    size = np.bincount(data.label, minlength=len(data.names))
    for one in rng.permutation(len(data.names)):
        if out >= share * len(data.label):
            break
        if size[one] < 0.08 * len(data.label):
            inside[one], out = False, out + size[one]
    return inside


def _texts(text: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Texts with blanks and foreign ones; and which exist."""
    n = len(text)
    if not text.shape[1]:
        return np.zeros((n, 384), np.float32), np.zeros(n, bool)
    source, has = noisy_texts(n, seed=seed)
    return np.where(has[:, None], text[source].astype(np.float32), np.float32(0)), has


def _three(rows: list[dict[str, Any]]) -> list[str]:
    """Three random words of label and tags of each picture."""
    rng = np.random.default_rng(7)
    words = [[*row["label"].split(), *row["tags"]] for row in rows]
    return [" ".join(found[i] for i in rng.permutation(len(found))[:3]) for found in words]


def _cached(path: Path, make: Callable[[], np.ndarray]) -> np.ndarray:
    if not path.exists():
        write_array(path, make().astype(np.float16))
    return np.asarray(np.load(path))


def _text_features(texts: list[str], encoder: EmbeddedEncoder) -> np.ndarray:
    distinct = sorted(set(texts))
    with torch.inference_mode():
        vectors = np.concatenate(
            [encoder.text(encoder.tokenize(distinct[i : i + 256])).numpy() for i in range(0, len(distinct), 256)]
        )
    place = {text: i for i, text in enumerate(distinct)}
    return vectors[[place[text] for text in texts]].astype(np.float32)


def _spaced(text: str) -> str:
    return text.replace("-", " ").replace("_", " ")
