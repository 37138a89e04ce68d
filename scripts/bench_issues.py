"""Finding label issues beside cleanlab: the same flags, seconds and memory, each in a process of its own.

    python scripts/bench_issues.py                                  # a million rows of 100 classes
    python scripts/bench_issues.py --rows 50000 --classes 20

The probabilities are float32, of a model that is right on some 80 % of the rows; 20 % of the labels are wrong, most of
them as one of two neighbouring classes. `J` is the Jaccard index of the two sets of flags. Times are of the call alone,
CPU seconds with those of cleanlab's workers; memory is the peak of the process less that of the loaded input, and for
several workers does not count theirs. Cores are shared on most machines: compare CPU seconds.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

import numpy as np
from apart import apart, gigabytes, spent

RULES = ("predicted_neq_given", "confident_learning", "prune_by_class", "prune_by_noise_rate", "both")
BLOCK = 100_000


def main() -> None:
    """One row for each rule."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--classes", type=int, default=100)
    parser.add_argument("--rules", default=",".join(RULES))
    parser.add_argument("--child", nargs=3, metavar=("WHO", "RULE", "FOLDER"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        print(json.dumps(child(given.child[0], given.child[1], Path(given.child[2]))))
        return
    print("| rule | flagged | J | ours: s, CPU s, MB | cleanlab, n_jobs=1 | cleanlab, default | faster (CPU) |\n"
          "|---|--:|--:|---|---|---|--:|", flush=True)  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        make(Path(folder), given.rows, given.classes)
        for rule in given.rules.split(","):
            found = {who: apart(__file__, "--child", who, rule, folder) for who in ("ours", "one", "default")}
            flags = {who: np.load(Path(folder) / f"{who}.npy") for who in found}
            overlap = (flags["ours"] & flags["one"]).sum() / max(1, (flags["ours"] | flags["one"]).sum())
            cells = [f"{one['seconds']:.2f}, {one['cpu']:.2f}, {one['megabytes']:.0f}" for one in found.values()]
            times = [f"{found[who]['cpu'] / found['ours']['cpu']:.1f}" for who in ("one", "default")]
            print(f"| {rule} | {flags['ours'].sum():,} | {overlap:.4f} | {' | '.join(cells)} | {' and '.join(times)} |",
                  flush=True)  # fmt: skip


def make(folder: Path, rows: int, classes: int) -> None:
    """p.npy (rows, classes) and y.npy."""
    rng = np.random.default_rng(0)
    true = rng.integers(classes, size=rows)
    logits = np.empty((rows, classes), np.float32)
    for start in range(0, rows, BLOCK):
        part = logits[start : start + BLOCK]
        part[:] = rng.standard_normal(part.shape, np.float32)
        part[np.arange(len(part)), true[start : start + BLOCK]] += 3.5
        np.exp(part, out=part)
        part /= part.sum(1, keepdims=True)
    moved = np.where(rng.random(rows) < 0.8, rng.integers(1, 3, rows), rng.integers(1, classes, rows))
    np.save(folder / "p.npy", logits)
    np.save(folder / "y.npy", np.where(rng.random(rows) < 0.2, (true + moved) % classes, true))


def child(who: str, rule: str, folder: Path) -> dict[str, float]:
    """The call, and what it took."""
    from noisycorr.classify.confident import label_issues

    if who != "ours":
        from cleanlab.filter import find_label_issues
    p, y = np.load(folder / "p.npy"), np.load(folder / "y.npy")
    memory, before, started = gigabytes(), spent(), time.perf_counter()
    if who == "ours":
        flags = label_issues(p, y, filter_by=rule)
    else:
        flags = find_label_issues(y, p, filter_by=rule, n_jobs=1 if who == "one" else None)
    took = {"seconds": time.perf_counter() - started, "cpu": spent() - before}
    peak = gigabytes()
    np.save(folder / f"{who}.npy", flags)
    return {**took, "megabytes": 1e3 * (peak - memory)}


if __name__ == "__main__":
    main()
