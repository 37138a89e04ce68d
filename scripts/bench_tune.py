"""NMTune, active labelling and classifiers that train nothing, measured on real sets. Tables for docs/tune.md.

    python scripts/bench_tune.py --data FOLDER --cache FOLDER --output FOLDER [--parts transductive,active,tune]

tune: a dual encoder (one hidden layer a side, 128 wide) is trained on fashion titles and emoji names with 0, 10 or
30 % of the texts swapped, by the engine of `noisycorr train`, and frozen. On its image features heads are tuned from
`--shots` labels and tested inside the domain and outside: emoji subgroups on drawings of a style that was not tuned
on, CIFAR-10 and Caltech on pictures turned by 15 degrees.

active: rounds of as many labels as there are classes, the first at random and the same for all; then by what the
classifier (logistic regression on 128 principal components) says of the pool. transductive: zero-shot ConSE space.
"""

from __future__ import annotations

import argparse
import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
from bench_features import BATCH, LIMITED, load_features
from PIL import Image
from safetensors.torch import load_file, save_file

from noisycorr.classify.heads.acquire import (
    balance_picks,
    class_balance,
    order_by_badge,
    order_by_coreset,
    order_by_entropy,
)
from noisycorr.classify.heads.choice import NMTune
from noisycorr.classify.heads.nmtune import TuneData, apply_head, fit_head
from noisycorr.classify.heads.spectrum import sampled_spectrum
from noisycorr.clean.bench import Metric, Row, joined, metric_table, stored_cell
from noisycorr.clean.bench_sets import listed
from noisycorr.clean.corpus import Corpus, swap_texts
from noisycorr.clean.signals.crossfit import reduce_width
from noisycorr.data.noise.recipes import RandomSwap
from noisycorr.data.readers.images import decode_image
from noisycorr.models.encoders.embedded import EmbeddedEncoder
from noisycorr.models.training.choice import Train
from noisycorr.models.training.heads import Network
from noisycorr.models.training.loop import fit
from noisycorr.prompt.transclip import transclip
from noisycorr.prompt.zlap import zlap
from noisycorr.retrieval.fit import make_learner
from noisycorr.retrieval.strategies import load_strategy
from noisycorr.runtime.folder import write_json
from noisycorr.stats.transductive import balanced, linear_probe, neighbor_labels, zero_shot

RATES = (0.0, 0.1, 0.3)
TESTED, TURNED, DEGREES = 1000, 200, 15
STYLES = ("noto", "fluent-emoji-flat")
SCALE = 30.0  # of the ConSE space, whose cosines spread wider than those of CLIP
ACCURACY = Metric(name="accuracy", title="Accuracy in %")
ACTIVE = (ACCURACY, Metric(name="class_mean", title="Mean accuracy of the classes in %"),
          Metric(name="balance", title="Balance of the labels", digits=3))  # fmt: skip
TUNE = (Metric(name="inside", title="Accuracy inside the domain in %", digits=2),
        Metric(name="outside", title="Accuracy outside of the domain in %", digits=2),
        Metric(name="sve", title="SVE of the features", digits=3, better="none"),
        Metric(name="lsvr", title="LSVR of the features", digits=3, better="none"))  # fmt: skip
ACQUISITIONS = ("random", "random+pcb", "entropy", "entropy+pcb", "badge", "badge+pcb")


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """What the benchmark needs of a set of n pairs.

    Attributes:
        texts: The n texts.
        image: float16 (n, 1280).
        text: float16 (n, 384).
    """

    texts: list[str]
    image: np.ndarray
    text: np.ndarray


Load = Callable[[str], Stored]


def load_stored(name: str, data: Path, cache: Path, encoder: EmbeddedEncoder) -> Stored:
    """A set from the cache, which is filled first if it lacks the set."""
    path = cache / f"{name}{'-6000' if name in LIMITED else ''}-{encoder.weights_hash}.npz"
    if not path.exists():
        load_features(name, data, 6000, cache, encoder)
    with np.load(path, allow_pickle=False) as file:
        return Stored(texts=[str(text) for text in file["texts"]], image=file["image"][file["row"]], text=file["text"])


def labels_of(texts: list[str]) -> np.ndarray:
    return np.unique(np.array(texts), return_inverse=True)[1]


# ---- classifiers that train nothing


def run_transductive(load: Load, encoder: EmbeddedEncoder) -> list[Row]:
    """Accuracy in percent by set and classifier."""
    out: list[Row] = []
    for name in ("caltech101", "cifar10n"):
        found = load(name)
        names = sorted(set(found.texts))
        label = labels_of(found.texts)
        first = np.array([found.texts.index(one) for one in names])
        image, text = encoder.joint_space(found.image.astype(np.float32), found.text[first].astype(np.float32))
        narrow = reduce_width([found.image], 384)
        start = zero_shot(image, text, scale=SCALE)
        prior = np.bincount(label) / len(label)
        answers = {
            "zero-shot": start,
            "TransCLIP": transclip(image, text, scale=SCALE),
            "ZLaP": zlap(image, text),
            "balanced, even": balanced(start),
            "balanced, true prior": balanced(start, prior=prior),
            "neighbours (joint)": neighbor_labels(start, image),
            "neighbours (image features)": neighbor_labels(start, narrow),
            "TransCLIP, then neighbours (image features)": neighbor_labels(transclip(image, text, scale=SCALE), narrow),
        }
        out += [{"set": name, "seed": None, "method": how, "accuracy": 100 * float((p.argmax(1) == label).mean())}
                for how, p in answers.items()]  # fmt: skip
    return out


# ---- active labelling


def run_active(load: Load, data: Path, seed: int, rounds: int) -> list[Row]:
    """Accuracy on held-out rows after each round, of every acquisition."""
    rows: list[Row] = []
    for name in ("caltech101", "cifar10n", "emoji"):
        found = load(name)
        label = labels_of(emoji_column(data, "subgroup") if name == "emoji" else found.texts)
        order = np.random.default_rng([seed, 5]).permutation(np.flatnonzero(np.bincount(label)[label] >= 5))[:2000]
        features, label = reduce_width([found.image[order]], 128), label[order]
        pool, test = np.arange(500, len(order)), np.arange(500)
        for how in ACQUISITIONS:
            rows += [{"set": name, "seed": seed, "method": how, **row}
                     for row in active_rounds(features, label, pool, test, how, seed, rounds)]  # fmt: skip
    return rows


def active_rounds(features: np.ndarray, label: np.ndarray, pool: np.ndarray, test: np.ndarray, how: str, seed: int,
                  rounds: int) -> list[dict[str, float]]:  # fmt: skip
    """One curve."""
    classes = int(label.max()) + 1
    budget = len(np.unique(label[pool]))
    known = np.random.default_rng([seed, 7]).choice(pool, budget, replace=False)
    out = []
    for step in range(rounds):
        asked = np.concatenate([test, pool])
        chances = np.zeros((len(features), classes))
        chances[asked] = linear_probe(features[known], label[known], features[asked], classes=classes, strength=30)
        right = chances[test].argmax(1) == label[test]
        by_class = [right[label[test] == one].mean() for one in np.unique(label[test])]
        even = class_balance(np.bincount(label[known], minlength=classes)[np.unique(label[pool])])
        out.append({"round": step, "labels": len(known), "accuracy": 100 * float(right.mean()),
                    "class_mean": 100 * float(np.mean(by_class)), "balance": even})  # fmt: skip
        rest = np.setdiff1d(pool, known)
        acquisition, _, pcb = how.partition("+")
        wanted = min(len(rest), max(budget, len(pool) // 10) if pcb else budget)
        if acquisition == "random":
            picked = np.random.default_rng([seed, 9, step]).choice(rest, len(rest) if pcb else budget, replace=False)
        elif acquisition == "entropy":
            picked = order_by_entropy(chances, rest, wanted)
        elif acquisition == "coreset":
            picked = order_by_coreset(features, rest, wanted, known)
        else:
            picked = order_by_badge(features, chances, rest, wanted, seed=seed * 100 + step)
        if pcb:
            count = np.bincount(label[known], minlength=classes)
            picked = balance_picks(picked, chances.argmax(1), count, budget, seed=seed * 100 + step)
        known = np.concatenate([known, picked])
    return out


def emoji_column(data: Path, name: str) -> list[str]:
    return [
        str(value) for value in pq.read_table(data / "emoji/emoji.parquet", columns=[name]).column(name).to_pylist()
    ]


# ---- NMTune


def tower(rate: float, load: Load, cache: Path) -> Network:
    """A dual encoder trained with this share of wrong texts; cached."""
    path = cache / f"bench-tune-tower-{rate:g}.safetensors"
    network = Network(1280, 384, dim=128, hidden=256)
    if not path.exists():
        sets = [load("fashion"), load("emoji")]
        take = [np.arange(3000), np.arange(len(sets[1].texts))]
        image, text = (np.concatenate([getattr(one, side)[rows] for one, rows in zip(sets, take)])
                       for side in ("image", "text"))  # fmt: skip
        texts = [one.texts[row] for one, rows in zip(sets, take) for row in rows]
        shown, yes = np.arange(len(texts)), np.ones(len(texts), bool)
        corpus = Corpus(keys=[str(row) for row in shown], image=image, text=text, usable=yes, kept=yes, shown=shown,
                        image_group=shown, text_group=labels_of(texts))  # fmt: skip
        noisy = swap_texts(corpus, RandomSwap(ratio=rate, unit="caption", seed=0)(texts, image_ids=shown).source_row)
        choice = Train(epochs=8, batch_size=256, embed_dim=128, hidden=256, dropout=0.0, lr=1e-3, seed=0)
        learner = make_learner(noisy, shown, load_strategy("plain"), choice)
        fit(learner)
        save_file({name: value.contiguous() for name, value in learner.networks[0].state_dict().items()}, path)
    network.load_state_dict(load_file(path))
    return network.eval()


def through(features: np.ndarray, rate: float, load: Load, cache: Path) -> np.ndarray:
    """Image features of the tower, before they are brought to length 1."""
    wide = torch.from_numpy(np.asarray(features, np.float32))
    network = tower(rate, load, cache)
    with torch.no_grad():
        return network.image_head((wide - network.image_mean) / network.image_std).numpy()


def turned(name: str, data: Path, rows: np.ndarray, cache: Path, encoder: EmbeddedEncoder) -> np.ndarray:
    """Features of pictures turned by 15 degrees; cached."""
    path = cache / f"bench-tune-turned{DEGREES}-{name}-{len(rows)}.npy"
    if path.exists():
        return np.load(path)
    file = data / {"caltech101": "caltech101/train.parquet", "cifar10n": "cifar10n/train.parquet"}[name]
    images = pq.read_table(file, columns=["image"]).column("image").take(rows).to_pylist()
    out = []
    for start in range(0, len(images), BATCH):
        part = []
        for raw in images[start : start + BATCH]:
            picture = decode_image(raw, max_pixels=10**8).image.convert("RGB")
            part.append(encoder.preprocess(picture.rotate(DEGREES, Image.Resampling.BILINEAR)))
        out.append(encoder.image(torch.stack(part)).numpy())
    features = np.concatenate(out).astype(np.float16)
    np.save(path, features)
    return features


Task = tuple[str, np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]


def tasks(load: Load, data: Path, cache: Path, encoder: EmbeddedEncoder, seed: int, shots: int) -> list[Task]:
    """Name; features and labels to tune on, inside and outside of the domain."""
    rng = np.random.default_rng([seed, 11])
    out: list[Task] = []
    for name in ("caltech101", "cifar10n"):
        found = load(name)
        label = labels_of(found.texts)
        fixed = np.random.default_rng(1).permutation(len(label))[:TURNED]  # the same for all seeds, so encoded once
        far = turned(name, data, fixed, cache, encoder)
        rest = rng.permutation(np.setdiff1d(np.arange(len(label)), fixed))
        own, test = rest[:shots], np.concatenate([rest[shots:], fixed])[:TESTED]
        out.append((name, found.image[own], label[own], found.image[test], label[test], far, label[fixed]))
    emoji = load("emoji")
    label = labels_of(emoji_column(data, "subgroup"))
    style, part = np.array(emoji_column(data, "style")), np.array(emoji_column(data, "concept_split"))
    for held in STYLES:
        own = rng.permutation(np.flatnonzero((style != held) & (part == "train")))[:shots]
        near, far_rows = (np.flatnonzero(where & (part != "train")) for where in (style != held, style == held))
        out.append((f"emoji, {held} held out", emoji.image[own], label[own], emoji.image[near], label[near],
                    emoji.image[far_rows], label[far_rows]))  # fmt: skip
    return out


def run_tune(load: Load, data: Path, cache: Path, encoder: EmbeddedEncoder, seed: int, shots: int) -> list[Row]:
    """Accuracy inside and outside of the domain of each method on each tower."""
    rows: list[Row] = []
    for name, own, y, near, near_y, far, far_y in tasks(load, data, cache, encoder, seed, shots):
        seen, place = np.unique(y, return_inverse=True)
        code = np.full(max(y.max(), near_y.max(), far_y.max()) + 1, -1)
        code[seen] = np.arange(len(seen))
        for rate in RATES:
            feats = [through(x, rate, load, cache) for x in (own, near, far)]
            row = {"set": name, "noise": rate, "seed": seed, "labels": len(y), **sampled_spectrum(feats[0])}
            answers: dict[str, list[np.ndarray]] = {}
            for method in ("linear", "mlp", "nmtune"):
                head = fit_head(TuneData(features=feats[0], labels=place, classes=len(seen)), NMTune(seed=seed), method)
                answers[method] = [apply_head(head, x)[0] for x in feats[1:]]
            answers["logistic"] = [linear_probe(feats[0], place, x, classes=len(seen)) for x in feats[1:]]
            for method, (inside, outside) in answers.items():
                right = [100 * float((p.argmax(1) == code[z]).mean()) for p, z in ((inside, near_y), (outside, far_y))]
                rows.append(row | {"method": method, "inside": right[0], "outside": right[1]})
    return rows


def tables(rows: list[Row]) -> str:
    """Everything that was measured, mean and standard deviation over seeds."""
    lines = {"set": lambda row: str(row["set"])}
    active = {**lines, "round": lambda row: str(row.get("round", ""))}
    noise = {"noise": lambda row: f"{row['noise']:.0%}"}  # over all sets
    # Zero-shot answers have no seed to vary, and accuracy is asked for at different places in each part.
    return joined(
        [row for row in rows if row["seed"] is not None] or [{"seed": 0}],
        metric_table([row for row in rows if row["part"] == "transductive"], ACCURACY, lines),
        *(metric_table([row for row in rows if row["part"] == "active"], metric, active) for metric in ACTIVE),
        *(
            metric_table([row for row in rows if row["part"] == "tune"], metric, head)
            for head in (noise, {**lines, **noise})
            for metric in TUNE
        ),
    )


def main() -> None:
    """Run the parts and store their rows."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of the sets")
    parser.add_argument(
        "--cache", type=Path, required=True, help="folder of features, as scripts/bench_detect.py fills"
    )
    parser.add_argument("--output", type=Path, required=True, help="folder of the numbers")
    parser.add_argument("--parts", default="transductive,active,tune")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--shots", type=int, default=1500, help="labels that heads are tuned from")
    parser.add_argument("--rounds", type=int, default=4)
    given = parser.parse_args()
    torch.set_num_threads(1)
    encoder = EmbeddedEncoder()
    load = functools.cache(lambda name: load_stored(name, given.data, given.cache, encoder))
    work: dict[str, Callable[[int], list[Row]]] = {
        "transductive": lambda seed: run_transductive(load, encoder),
        "active": lambda seed: run_active(load, given.data, seed, given.rounds),
        "tune": lambda seed: run_tune(load, given.data, given.output, encoder, seed, given.shots),
    }
    given.output.mkdir(parents=True, exist_ok=True)
    rows: list[Row] = []
    for part in listed(given.parts):
        for seed in range(1 if part == "transductive" else given.seeds):
            inputs = {"part": part, "seed": seed, "weights": encoder.weights_hash}
            inputs |= {"active": {"rounds": given.rounds}, "tune": {"shots": given.shots}}.get(part, {})
            found = stored_cell(given.output, part, inputs, lambda part=part, seed=seed: {"rows": work[part](seed)})
            rows += [{"part": part, **row} for row in found["rows"]]
    write_json(given.output / "bench.json", {"rows": rows})
    print(tables(rows))


if __name__ == "__main__":
    main()
