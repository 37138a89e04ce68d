"""The benchmark of the project: how well are injected mismatches found, against what the field does?

    python scripts/bench_detect.py --data ../shared/data --output results.json

Each row of the tables is one set, kind of noise, unit and ratio; each number is the mean and standard deviation over
seeds, which change the noise and everything random in the methods. Noise: `random` swaps, or `hard` swaps with one of
the ten nearest texts; `caption` moves texts one by one, `image` all texts of a picture together, which is the same
where no picture stands twice (such rows are computed once and shown twice). All methods get the same frozen features.

Results are written after every row; the same command continues, and skips rows that are there for the same seeds and
limit. `--redo noisycorr` computes one method anew and keeps the rest.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import itertools
import math
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bench_baselines import BASELINES, Answer, Chosen, Given, choose, text_clusters
from bench_features import FILES, NATURAL, Features, load_features

from noisycorr.clean.signals.pipeline import Heads, Score, score_pairs
from noisycorr.clean.signals.trained_heads import trained_heads
from noisycorr.clean.signals.view import PairEmbeddings, own_cosine
from noisycorr.data.noise.recipes import HardSwap, Injected, RandomSwap
from noisycorr.data.noise.swaps import text_ids
from noisycorr.models.encoders.embedded import EmbeddedEncoder
from noisycorr.runtime.folder import read_json, write_json
from noisycorr.stats.detection import detection

OURS, TRAINED = "noisycorr", "noisycorr+trained"  # the second with --align trained
METHODS = {OURS: [OURS], TRAINED: [TRAINED], "infonce": ["infonce", "infonce+gmm"]} | {
    name: [name] for name in list(BASELINES)[1:]
}
METRICS = {  # title, decimals, is more better
    "auroc": ("AUROC of wrong pairs (1 is perfect, 0.5 chance)", 3, True),
    "auprc": ("AUPRC of wrong pairs (chance is their share)", 3, True),
    "ece": ("Calibration error of p_clean (ECE, 0 is perfect)", 3, False),
    "noise_rate_error": ("Error of the estimated noise rate (0 is perfect; infonce has to be told)", 3, False),
}
Row = dict[str, Any]
Key = tuple[str, str, str, float]


def main() -> None:
    """Compute what is missing, then print the tables."""
    given = _arguments()
    torch.set_num_threads(1)
    wanted = list(itertools.product(given.sets, ("random", "hard"), ("caption", "image"), given.ratios))
    rows: list[Row] = read_json(given.output)["rows"] if given.output.exists() else []
    for key, name in itertools.product(wanted, given.redo):
        (_find(rows, key, given) or {"methods": {}})["methods"].pop(name, None)
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as temporary:
        cache = given.cache or Path(temporary)
        for name in given.sets:
            cells = [key for key in wanted if key[0] == name]
            if all(_missing(_find(rows, key, given), given) == [] for key in cells):
                continue
            features = load_features(name, given.data, given.limit, cache, EmbeddedEncoder())
            clusters = text_clusters(features.text)
            for key in cells:
                found = _find(rows, key, given)
                if missing := _missing(found, given):
                    row = compute(features, clusters, key, given.seeds, missing, found or {}, rows)
                    rows = [other for other in rows if _key(other) != key] + [row | {"limit": given.limit}]
                    write_json(given.output, {"rows": rows})
                    _say(f"{time.perf_counter() - started:6.0f} s  {_line(row)}")
    print(tables([found for key in wanted if (found := _find(rows, key, given))]))


def _arguments() -> argparse.Namespace:
    def listed(kind: type) -> Any:
        return lambda text: [kind(part) for part in text.split(",") if part]

    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of the sets")
    parser.add_argument("--sets", type=listed(str), default=list(FILES)[:5], help=f"of {', '.join(FILES)}")
    parser.add_argument("--seeds", type=listed(int), default=[0, 1, 2])
    parser.add_argument("--ratios", type=listed(float), default=[0.2, 0.4, 0.6])
    parser.add_argument("--methods", type=listed(str), default=list(METHODS), help=f"of {', '.join(METHODS)}")
    parser.add_argument("--redo", type=listed(str), default=[], help="methods to compute again")
    parser.add_argument("--limit", type=int, default=6000, help="rows of fashion and cifar10n")
    parser.add_argument("--output", type=Path, required=True, help="JSON of all results")
    parser.add_argument("--cache", type=Path, default=None, help="folder to keep features in")
    given = parser.parse_args()
    for flag, known in (("sets", FILES), ("methods", METHODS), ("redo", METHODS)):
        if unknown := [name for name in getattr(given, flag) if name not in known]:
            parser.error(f"--{flag}: {unknown[0]!r} is not one of {', '.join(known)}")
    given.redo = [answer for name in given.redo for answer in METHODS[name]]
    return given


def compute(features: Features, clusters: Any, key: Key, seeds: list[int], methods: list[str], known: Row,
            rows: list[Row]) -> Row:  # fmt: skip
    """One row of the tables.

    Args:
        features: The set.
        clusters: Of its texts, as in `Given`, before the noise.
        key: Set, noise, unit and ratio.
        seeds: Of noise and methods.
        methods: Names of `METHODS` to compute.
        known: What is there already, of the other methods; or {}.
        rows: All rows; one of the same noise is copied.

    Returns:
        JSON: `methods` holds for each answer one list of numbers per metric, in the order of the seeds.
    """
    noises = [corrupt(features, key, seed) for seed in seeds]
    digest = hashlib.sha256(np.concatenate([noise.source_row for noise in noises]).tobytes()).hexdigest()[:16]
    row: Row = {"methods": {}, **known, **dict(zip(("set", "noise", "unit", "ratio"), key)), "seeds": seeds}
    row |= {"pairs": len(features.texts), "wrong": [float(noise.wrong.mean()) for noise in noises], "digest": digest}
    same = [other for other in rows if (other["set"], other["digest"], other["seeds"]) == (key[0], digest, seeds)]
    twin = next((other for other in same if _key(other) != key), None)
    chosen: Chosen | None = None
    for method in methods:
        if twin is not None and all(name in twin["methods"] for name in METHODS[method]):
            row["methods"] |= {name: twin["methods"][name] for name in METHODS[method]}
            row |= {"chosen": twin["chosen"]} if "chosen" in twin else {}
            continue
        for name in METHODS[method]:
            row["methods"][name] = {metric: [] for metric in (*METRICS, "seconds")}
        for seed, noise in zip(seeds, noises):
            if method not in (OURS, TRAINED) and chosen is None:
                chosen = choose(_seen(features, clusters, noise, seed))
                row["chosen"] = dataclasses.asdict(chosen)
            started = time.process_time()
            if method in (OURS, TRAINED):
                answers = {method: ours(features, noise, seed, trained_heads if method == TRAINED else None)}
            else:
                assert chosen is not None
                answers = BASELINES[method](_seen(features, clusters, noise, seed), chosen)
            seconds = time.process_time() - started
            for name, answer in answers.items():
                for metric, value in (measure(answer, noise.wrong) | {"seconds": seconds}).items():
                    row["methods"][name][metric].append(value)
    return row


def corrupt(features: Features, key: Key, seed: int) -> Injected:
    """The noise of one row and seed."""
    _, noise, unit, ratio = key
    if noise == "random":
        return RandomSwap(ratio=ratio, unit=unit, seed=seed)(features.texts, image_ids=features.shown)  # type: ignore[arg-type]
    recipe = HardSwap(ratio=ratio, unit=unit, seed=seed)  # type: ignore[arg-type]
    return recipe(features.texts, image_ids=features.shown, features=features.text)


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


def measure(answer: Answer, wrong: np.ndarray) -> dict[str, float | None]:
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
    names = [name for names in METHODS.values() for name in names if any(name in row["methods"] for row in rows)]
    out = []
    for metric, (title, digits, more) in METRICS.items():
        head = ["set", "noise", "unit", "ratio", "wrong", *names]
        lines, means = [], dict[str, list[float]]()
        for row in rows:
            found = {name: _mean_std(row["methods"].get(name, {}).get(metric, [])) for name in names}
            known = {name: mean for name, (mean, _) in found.items() if not math.isnan(mean)}
            best = round((max if more else min)(known.values()), digits) if known else None
            cells = [_cell(*found[name], digits, best) for name in names]
            mark = "*" if row["set"] in NATURAL else ""
            wrong = f"{np.mean(row['wrong']):.3f}"
            lines.append([row["set"] + mark, row["noise"], row["unit"], f"{row['ratio']:g}", wrong, *cells])
            for name, mean in known.items():
                means.setdefault(name, []).append(mean)
        ends = [f"{np.mean(means[name]):.{digits}f}" if name in means else "" for name in names]
        out += [f"### {title}", "", _markdown([head, *lines, ["mean", "", "", "", "", *ends]]), ""]
    seconds = {name: [s for row in rows for s in row["methods"].get(name, {}).get("seconds", [])] for name in names}
    told = ", ".join(f"{name} {np.mean(values):.1f}" for name, values in seconds.items() if values)
    out.append(f"Mean CPU seconds a run (tuning and features not counted): {told}.")
    if any(row["set"] in NATURAL for row in rows):
        out.append("\n\\* Texts of this set were partly wrong before: what was found of that counts as false here.")
    return "\n".join(out)


def _cell(mean: float, deviation: float, digits: int, best: float | None) -> str:
    if math.isnan(mean):
        return "–"
    text = f"{mean:.{digits}f} ± {deviation:.{digits}f}"
    return f"**{text}**" if round(mean, digits) == best else text


def _mean_std(values: Iterable[float | None]) -> tuple[float, float]:
    known = [value for value in values if value is not None]
    if not known:
        return math.nan, math.nan
    return float(np.mean(known)), float(np.std(known, ddof=1)) if len(known) > 1 else 0.0


def _markdown(rows: list[list[str]]) -> str:
    rule = ["---"] * 3 + ["--:"] * (len(rows[0]) - 3)
    return "\n".join(f"| {' | '.join(row)} |" for row in (rows[0], rule, *rows[1:]))


def _key(row: Row) -> Key:
    return row["set"], row["noise"], row["unit"], row["ratio"]


def _find(rows: list[Row], key: Key, given: argparse.Namespace) -> Row | None:
    """The stored row for the same seeds and limit."""
    same = (row for row in rows if _key(row) == key and (row["seeds"], row["limit"]) == (given.seeds, given.limit))
    return next(same, None)


def _missing(row: Row | None, given: argparse.Namespace) -> list[str]:
    done = row["methods"] if row else {}
    return [method for method in given.methods if not all(name in done for name in METHODS[method])]


def _line(row: Row) -> str:
    found = ", ".join(f"{name} {_mean_std(values['auroc'])[0]:.3f}" for name, values in row["methods"].items())
    return f"{row['set']} {row['noise']} {row['unit']} {row['ratio']:g}: AUROC {found}"


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
