"""What the parts of PC2 know: classes in use, purity of borrowed texts, and what oscillation tells.

python scripts/bench_pc2.py --sets "fashion=out/fashion:articleType,emoji=out/emoji:subgroup"

Each set is a run folder of `noisycorr embed` or `clean`, and a column of its source that holds a class. The class is
for the tables alone. Borrowing is forced (near=0), so that its purity can be seen where PC2 would turn it off.
"""

from __future__ import annotations

import argparse
import json

import numpy as np

from noisycorr.clean.bench_sets import read_set
from noisycorr.clean.corpus import swap_texts
from noisycorr.data.noise.recipes import RandomSwap
from noisycorr.data.store import read_facts
from noisycorr.models.training.choice import Train
from noisycorr.models.training.loop import fit
from noisycorr.retrieval.fit import make_learner
from noisycorr.retrieval.strategies import load_strategy
from noisycorr.retrieval.strategies.pc2 import partner_purity
from noisycorr.runtime.folder import Run
from noisycorr.stats.detection import auroc

HEAD = "| set | noise | classes in use | purity | chance | ratio | text fit | AUC, probe | AUC, wrong |"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", required=True)
    parser.add_argument("--ratios", default="0.2,0.4,0.6")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--limit", type=int, default=2000)
    given = parser.parse_args()
    print(HEAD)
    print("| --- | --: | --: | --: | --: | --: | --: | --: | --: |")
    for one in given.sets.split(","):
        name, _, rest = one.partition("=")
        folder, _, column = rest.rpartition(":")
        for ratio in map(float, given.ratios.split(",")):
            cells = [measure(folder, column, ratio, seed, given.limit) for seed in map(int, given.seeds.split(","))]
            shown = [f"{np.mean(values):.3g} ± {np.std(values):.2g}" for values in zip(*cells)]
            print(f"| {name} | {ratio:.0%} | {' | '.join(shown)} |", flush=True)


def measure(folder: str, column: str, ratio: float, seed: int, limit: int) -> list[float]:
    """One training; the numbers of a row."""
    run = Run(folder)
    data = read_set(f"set={folder}", run, limit, None, "embedded")
    given = dict(
        zip(read_facts(run, ["key"]).column("key").to_pylist(), read_facts(run, ["columns"]).column(0).to_pylist())
    )
    label = np.array([str(json.loads(given[key])[column]) for key in data.train.keys])
    injected = RandomSwap(ratio=ratio, unit="caption", seed=seed)(data.texts, image_ids=data.train.shown)
    corpus = swap_texts(data.train, injected.source_row)
    rows = np.flatnonzero(corpus.usable)
    learner = make_learner(corpus, rows, load_strategy("pc2", {"near": 0.0}), Train(seed=seed))
    fit(learner)
    source = injected.source_row[rows]
    partner = np.concatenate([memory.columns["partner"].numpy() for memory in learner.memories])
    purity, chance = partner_purity(partner, np.tile(label[rows], 2), np.tile(label[source], 2))
    record = learner.cursor.history[-1]
    moved = learner.evidence(0)["loss_oscillation"]

    def mean(start: str) -> float:
        return float(np.mean([value for key, value in record.items() if key.startswith(start)]))

    return [mean("classes_in_use"), purity, chance, purity / chance, mean("partner_fit"), mean("oscillation_auc"),
            auroc(-moved, injected.wrong[rows])]  # fmt: skip


if __name__ == "__main__":
    main()
