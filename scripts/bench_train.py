"""How fast do methods train, and what does doubting cost? Steps per second, detection pass, share of data loading.

    python scripts/bench_train.py --strategies plain,coteach

Made-up features of the widths of the embedded encoder, one thread, the same batches for all; `step` is relative to the
plain method with one network, `judge` to one epoch of training of the same method.
"""

from __future__ import annotations

import argparse
import time

import numpy as np
import torch

from noisycorr.clean.corpus import Corpus
from noisycorr.models.training.choice import Train
from noisycorr.models.training.learner import Learner
from noisycorr.models.training.loop import few_threads, plan_epoch, take_step
from noisycorr.retrieval.fit import make_learner
from noisycorr.retrieval.strategies import load_strategy


def made_up(n: int) -> Corpus:
    """Pairs of related random features, 1,280 and 384 wide."""
    rng = np.random.default_rng(0)
    things = rng.normal(size=(n, 32))
    rows = np.arange(n)
    return Corpus(
        keys=[str(row) for row in rows], image=(things @ rng.normal(size=(32, 1280))).astype(np.float16),
        text=(things @ rng.normal(size=(32, 384))).astype(np.float16), usable=np.ones(n, bool), kept=np.ones(n, bool),
        shown=rows, image_group=rows, text_group=rows,
        columns={"p_clean": rng.uniform(size=n).astype(np.float32)},
    )  # fmt: skip


def measure(learner: Learner, repeats: int) -> tuple[float, float, float]:
    """Best seconds of one epoch of steps, of one detection pass, and the share of an epoch spent loading."""
    epochs, passes, share = [], [], 0.0
    with few_threads(learner):
        for _ in range(repeats):
            plan = [plan_epoch(learner, number) for number in learner.trained]
            steps = max(len(batches) for batches, _ in plan)
            learner.cursor.step, learner.loading, started = 0, 0.0, time.perf_counter()
            while learner.cursor.step < steps:
                take_step(learner, plan, steps)
            epochs.append(time.perf_counter() - started)
            share = learner.loading / epochs[-1]
            started = time.perf_counter()
            for number in learner.judges if learner.strategy.judges else []:
                learner.strategy.decide(learner.evidence(number), learner.memories[number])
            passes.append(time.perf_counter() - started)
    return min(epochs), min(passes), share


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--strategies", default="plain,coteach,weighted", help="names, joined by commas")
    parser.add_argument("--pairs", type=int, default=4000)
    parser.add_argument("--batch_size", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=3)
    given = parser.parse_args()
    torch.set_num_threads(1)
    corpus, base = made_up(given.pairs), 0.0
    print("| method | networks | samples/s | step | judge | loading |\n|---|---|---|---|---|---|")
    for name in ["plain", *(n for n in given.strategies.split(",") if n != "plain")]:
        choice = Train(batch_size=given.batch_size, epochs=1000)
        learner = make_learner(corpus, np.arange(given.pairs), load_strategy(name), choice)
        epoch, judge, share = measure(learner, given.repeats)
        base = base or epoch
        count = len(learner.trained)
        print(f"| {name} | {count} | {count * given.pairs / epoch:,.0f} | {epoch / base:.2f} x | {judge / epoch:.2f} | "
              f"{share:.1%} |", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
