"""The benchmark of the project: how well are injected mismatches found, against what the field does?

    python scripts/bench_detect.py --data ../shared/data --output FOLDER

Each row of the tables is one set, kind of noise, unit and ratio; each number is the mean and standard deviation over
seeds, which change the noise and everything random in the methods. Noise: `random` swaps, or `hard` swaps with one of
the ten nearest texts; `caption` moves texts one by one, `image` all texts of a picture together, which is the same
where no picture stands twice (such rows are computed once and shown twice). All methods get the same frozen features.

Every cell is a file in FOLDER/cells, NAME-METHOD-*.json; the same command continues, and to compute one method anew,
delete its files. FOLDER/bench.md has the tables.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import tempfile
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bench_baselines import BASELINES, Answer, Chosen, Given, choose, text_clusters
from bench_features import FILES, NATURAL, Features, load_features

from noisycorr.clean.bench import Metric, Row, grid, joined, metric_table, plot, run_grid, stored_cell
from noisycorr.clean.signals.pipeline import Heads, Score, score_pairs
from noisycorr.clean.signals.trained_heads import trained_heads
from noisycorr.clean.signals.view import PairEmbeddings, own_cosine
from noisycorr.data.noise.recipes import HardSwap, Injected, RandomSwap
from noisycorr.data.noise.swaps import text_ids
from noisycorr.models.encoders.embedded import EmbeddedEncoder
from noisycorr.runtime.folder import Run
from noisycorr.stats.detection import detection

OURS, TRAINED = "noisycorr", "noisycorr+trained"  # the second with --align trained
METHODS = {OURS: [OURS], TRAINED: [TRAINED], "infonce": ["infonce", "infonce+gmm"]} | {
    name: [name] for name in list(BASELINES)[1:]
}
METRICS = (
    Metric(name="auroc", title="AUROC of wrong pairs (1 is perfect, 0.5 chance)", digits=3),
    Metric(name="auprc", title="AUPRC of wrong pairs (chance is their share)", digits=3),
    Metric(name="ece", title="Calibration error of p_clean (ECE, 0 is perfect)", digits=3, better="less"),
    Metric(name="noise_rate_error", title="Error of the estimated noise rate (0 is perfect; infonce has to be told)",
           digits=3, better="less"),
    Metric(name="seconds", title="CPU seconds (tuning and features not counted)", better="none"),
)  # fmt: skip
LINES = {"set": lambda row: row["set"] + "*" * (row["set"] in NATURAL), "noise": lambda row: row["noise"],
         "unit": lambda row: row["unit"], "ratio": lambda row: f"{row['ratio']:g}"}  # fmt: skip
FOOTNOTE = "\\* Texts of this set were partly wrong before: what was found of that counts as false here.\n"


def main() -> None:
    """Compute what is missing, then print the tables."""
    given = _arguments()
    torch.set_num_threads(1)
    answers = [(answer, method) for method in given.methods for answer in METHODS[method]]
    cells = grid(seed=given.seeds, noise=["random", "hard"], unit=["caption", "image"], ratio=given.ratios,
                 method=[answer for answer, _ in answers])  # fmt: skip
    with tempfile.TemporaryDirectory() as temporary:
        cache, encoder = given.cache or Path(temporary), EmbeddedEncoder()
        load = partial(
            _Loaded.of, data=given.data, limit=given.limit, cache=cache, encoder=encoder, first=given.seeds[0]
        )
        plan = [(partial(load, name), cells) for name in given.sets]
        result = run_grid(
            Run(given.output), plan, lambda data, cell: run_cell(data, cell, dict(answers)[cell["method"]], given),
            settings={"sets": given.sets, "limit": given.limit}, tables=tables,
            line=lambda row: " ".join(f"{name} {value}" for name, value in row.items()),
            draw=partial(plot, metric=METRICS[0], x="ratio", x_title="share of wrong pairs",
                         panel=lambda row: f"{row['set']}, {row['noise']} by {row['unit']}"),
        )  # fmt: skip
    print(result.table)


def _arguments() -> argparse.Namespace:
    def listed(kind: type) -> Any:
        return lambda text: [kind(part) for part in text.split(",") if part]

    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of the sets")
    parser.add_argument("--sets", type=listed(str), default=list(FILES)[:5], help=f"of {', '.join(FILES)}")
    parser.add_argument("--seeds", type=listed(int), default=[0, 1, 2])
    parser.add_argument("--ratios", type=listed(float), default=[0.2, 0.4, 0.6])
    parser.add_argument("--methods", type=listed(str), default=list(METHODS), help=f"of {', '.join(METHODS)}")
    parser.add_argument("--limit", type=int, default=6000, help="rows of fashion and cifar10n")
    parser.add_argument("--output", type=Path, required=True, help="folder of cells and tables")
    parser.add_argument("--cache", type=Path, default=None, help="folder to keep features in")
    given = parser.parse_args()
    for flag, known in (("sets", FILES), ("methods", METHODS)):
        if unknown := [name for name in getattr(given, flag) if name not in known]:
            parser.error(f"--{flag}: {unknown[0]!r} is not one of {', '.join(known)}")
    return given


@dataclass(frozen=True, eq=False)
class _Loaded:
    """A set, and what is tuned on it without truth: with the first seed of every row of the tables.

    Attributes:
        features: The set.
        clusters: Of its texts, as in `Given`, before the noise.
        weights: Of the encoder.
        first: Seed to tune with.
    """

    features: Features
    clusters: Any
    weights: str
    first: int

    @classmethod
    def of(cls, name: str, *, data: Path, limit: int, cache: Path, encoder: EmbeddedEncoder, first: int) -> _Loaded:
        """Load the features."""
        features = load_features(name, data, limit, cache, encoder)
        return cls(features, text_clusters(features.text), encoder.weights_hash, first)

    @functools.cache  # noqa: B019  # lives as long as the set
    def corrupt(self, noise: str, unit: str, ratio: float, seed: int) -> Injected:
        """The noise of one row and seed."""
        if noise == "random":
            return RandomSwap(ratio=ratio, unit=unit, seed=seed)(self.features.texts, image_ids=self.features.shown)  # type: ignore[arg-type]
        recipe = HardSwap(ratio=ratio, unit=unit, seed=seed)  # type: ignore[arg-type]
        return recipe(self.features.texts, image_ids=self.features.shown, features=self.features.text)

    @functools.cache  # noqa: B019
    def chosen(self, noise: str, unit: str, ratio: float) -> Chosen:
        """Settings of the baselines."""
        injected = self.corrupt(noise, unit, ratio, self.first)
        return choose(_seen(self.features, self.clusters, injected, self.first))


def run_cell(data: _Loaded, cell: Row, method: str, given: argparse.Namespace) -> Row:
    """One answer of a method; rows of equal noise share a file, and so do all answers of a method."""
    key, seed = (cell["noise"], cell["unit"], cell["ratio"]), cell["seed"]
    noise, name = data.corrupt(*key, seed), data.features.name
    digests = [hashlib.sha256(data.corrupt(*key, one).source_row.tobytes()).hexdigest() for one in (seed, data.first)]

    def work() -> Row:
        if method in (OURS, TRAINED):
            started = time.process_time()
            answers = {method: ours(data.features, noise, seed, trained_heads if method == TRAINED else None)}
        else:
            chosen = data.chosen(*key)
            started = time.process_time()
            answers = BASELINES[method](_seen(data.features, data.clusters, noise, seed), chosen)
        seconds = time.process_time() - started
        return {answer: measure(found, noise.wrong) | {"seconds": seconds} for answer, found in answers.items()}

    inputs = {"set": name, "pairs": len(data.features.texts), "weights": data.weights, "seed": seed, "noise": digests,
              "first": data.first, "method": method}  # fmt: skip
    found = stored_cell(given.output, f"{name}-{method}", inputs, work)[cell["method"]]
    return {"set": name, **cell, "wrong": float(noise.wrong.mean()), **found}


def ours(features: Features, noise: Injected, seed: int, heads_of: Heads | None = None) -> Answer:
    """What `noisycorr clean` does with these features."""
    source = noise.source_row
    view = PairEmbeddings(
        image=[features.image],
        text=[features.text[source]],
        text_id=text_ids(noise.texts),
        image_id=features.group,
        present=np.ones(len(source), bool),
        seed=seed,
        picture=features.shown,
    )
    joint = ([features.joint[0]], [features.joint[1][source]])
    scored = score_pairs(view, joint, Score(seed=seed), learn=True, heads_of=heads_of)
    p_clean = scored.fit(scored.pair.given)
    known = np.isfinite(scored.fit.noise_rate)  # where nothing can be said, nothing is marked: an estimate of 0
    return Answer(score=scored.pair.given, p_clean=p_clean, noise_rate=scored.fit.noise_rate if known else 0.0)


def _seen(features: Features, clusters: Any, noise: Injected, seed: int) -> Given:
    source = noise.source_row
    text = features.text.astype(np.float32)[source]
    return Given(
        image=_standard(features.narrow),
        text=_standard(text),
        text_id=text_ids(noise.texts),
        image_id=features.group,
        conse=own_cosine([features.joint[0]], [features.joint[1][source]]),
        clusters=lambda count: clusters(count)[source],
        seed=seed,
    )


def _standard(values: np.ndarray) -> np.ndarray:
    """Mean 0 in each column, mean square 1 over all: directions keep their weight."""
    values = values - values.mean(0)
    return (values / np.sqrt((values**2).mean())).astype(np.float32)


def measure(answer: Answer, wrong: np.ndarray) -> Row:
    """The four metrics; None where one does not apply."""
    found = detection(answer.p_clean, wrong, score=answer.score, noise_rate=answer.noise_rate)
    error = None if answer.noise_rate is None else found.noise_rate_error
    return {
        "auroc": found.ranking.auroc,
        "auprc": found.ranking.auprc,
        "ece": found.calibration.ece,
        "noise_rate_error": error,
    }


def tables(rows: list[Row]) -> str:
    """Markdown: one table for each metric, one row for each set, noise, unit and ratio; the best mean is bold."""
    tail = {"wrong": lambda some: f"{np.mean([row['wrong'] for row in some]):.3f}"}
    text = joined(rows, *(metric_table(rows, metric, LINES, tail=tail, mean=True) for metric in METRICS))
    return f"{text}\n{FOOTNOTE}" if any(row["set"] in NATURAL for row in rows) else text


if __name__ == "__main__":
    main()
