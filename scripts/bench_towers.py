"""Methods on whole encoders under known noise: from random weights, and from an encoder trained on other pairs.

    python scripts/bench_towers.py --data DATA/fashion --output out --pairs 2000 --base_pairs 3000 --epochs 8

Noise goes into the first `pairs` titles of fashion; the base learns from `base_pairs` right ones that follow. One
network for every method, the epoch chosen on clean validation pairs, recall on clean test pairs. Prints one table; what
is done is not done again.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from noisycorr.__main__ import main as noisycorr
from noisycorr.clean.bench import Row, markdown, stored_cell
from noisycorr.data.noise.recipes import RandomSwap
from noisycorr.runtime.folder import read_json

SHOWN = ("rSum", "text_retrieval_recall@1", "image_retrieval_recall@1", "seconds")
METHODS = {
    "InfoNCE": ["--strategy", "plain"],
    "GCE": ["--strategy", "plain", "--strategy.loss", "gce"],
    "coteach": ["--strategy", "coteach", "--strategy.peer", "none"],
    "pc2": ["--strategy", "pc2", "--strategy.peer", "none"],
    "best": ["--strategy", "best", "--strategy.peer", "none"],
    "oracle": ["--strategy", "plain"],
}


def call(*words: str) -> None:
    """One command of the tool; its errors end the script."""
    with contextlib.redirect_stdout(io.StringIO()):
        failed = noisycorr([*words, "-q"])
    if failed:
        raise SystemExit(f"failed: noisycorr {' '.join(words)}")


def write_sets(data: Path, out: Path, given: argparse.Namespace) -> None:
    """noisy, right (the pairs of noisy that stayed right) and base; and clean's opinion of the noisy ones."""
    table = pa.concat_tables([pq.read_table(path) for path in sorted(data.glob("train-*.parquet"))])
    noisy = table.slice(0, given.pairs)
    titles = noisy.column("title").to_pylist()
    found = RandomSwap(ratio=given.ratio, unit="caption", seed=given.seed)(titles, image_ids=np.arange(len(titles)))
    swapped = noisy.set_column(
        noisy.column_names.index("title"), "title", pa.array([titles[row] for row in found.source_row])
    )
    sets = {"noisy": swapped, "right": noisy.filter(pa.array(~found.wrong)),
            "base": table.slice(given.pairs, given.base_pairs)}  # fmt: skip
    for name, rows in sets.items():
        if not (out / f"{name}.parquet").exists():
            pq.write_table(rows, out / f"{name}.parquet")
        verb = ["clean"] if name == "noisy" else ["embed"]
        call(*verb, str(out / f"{name}.parquet"), "--caption_col", "title", "--output_folder", str(out / name))
    for name in ("val", "test"):
        call("embed", str(data / f"{name}.parquet"), "--caption_col", "title", "--output_folder", str(out / name))


def train(run: Path, folder: Path, model: str, words: list[str], given: argparse.Namespace, epochs: int,
          lr: float) -> Row:  # fmt: skip
    """One training and its test; seconds of CPU count for trainings that were not done before."""

    def work() -> Row:
        started = time.process_time()
        call("train", str(run), "--output_folder", str(folder), "--clip_model", model, "--train_part", "whole", *words,
             "--epochs", str(epochs), "--lr", str(lr), "--batch_size", "64", "--seed", str(given.seed),
             "--evaluate", "false", "--val_data", str(given.output / "val"))  # fmt: skip
        seconds = time.process_time() - started
        call("evaluate", str(folder), "--test_data", str(given.output / "test"))
        return read_json(folder / "evaluation.json")["test"]["ensemble"] | {"seconds": seconds}

    sizes = [given.pairs, given.base_pairs, given.ratio, given.seed]
    return stored_cell(given.output, folder.name, {"words": words, "model": model, "epochs": epochs, "lr": lr,
                                                   "sets": sizes}, work)  # fmt: skip


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of fashion")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--pairs", type=int, default=2000)
    parser.add_argument("--base_pairs", type=int, default=4000)
    parser.add_argument("--start", default="scratch:mini", help="or scratch:vit, ten times the work")
    parser.add_argument("--ratio", type=float, default=0.4)
    parser.add_argument("--epochs", type=int, default=6, help="from random weights; a base is tuned for half as many")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--methods", default=",".join(METHODS))
    given = parser.parse_args()
    given.output.mkdir(parents=True, exist_ok=True)
    write_sets(given.data, given.output, given)
    base = given.output / "base_model"
    train(given.output / "base", base, given.start, METHODS["InfoNCE"], given, given.epochs, 1e-3)
    tuned = f"open_clip:local-dir:{base / 'networks' / '0'}"
    starts = ((given.start, given.start, given.epochs, 1e-3), ("base", tuned, max(1, given.epochs // 2), 3e-4))
    lines = []
    for start, model, epochs, lr in starts:
        for method in given.methods.split(","):
            run = given.output / ("right" if method == "oracle" else "noisy")
            folder = given.output / f"{start.replace(':', '-')}-{method}"
            row = train(run, folder, model, METHODS[method], given, epochs, lr)
            lines.append([start, method, *(f"{row[name]:.1f}" for name in SHOWN)])
    print(markdown(["start", "method", *SHOWN], lines))


if __name__ == "__main__":
    main()
