"""How fast do captioners write and learn? Seconds with and without a cache, and the cost of levels.

    python scripts/bench_captioner.py

CPU seconds of one thread; steps in turns, writing best of two; random weights and vectors, texts of 20 words that never
end.
"""

from __future__ import annotations

import argparse
import dataclasses
import time
from collections.abc import Callable

import numpy as np
import torch

from noisycorr.caption.captioner.choice import CaptionTrain, Decode, Design
from noisycorr.caption.captioner.decode import Next, write
from noisycorr.caption.captioner.levels import Levels
from noisycorr.caption.captioner.stored import build
from noisycorr.caption.captioner.train import Trainer, TrainSet, take_step
from noisycorr.caption.captioner.words import Pieces


def best(work: Callable[[], object], repeats: int = 3) -> float:
    """Least CPU seconds."""
    found = []
    for _ in range(repeats):
        started = time.process_time()
        work()
        found.append(time.process_time() - started)
    return min(found)


def compare_steps(trainers: dict[str, Trainer], repeats: int) -> None:
    """Print CPU seconds of a step of each, in turns, so that what else the machine does meets all alike."""
    rows, found = np.arange(64), {name: [] for name in trainers}
    for turn in range(repeats + 3):
        for name in list(trainers)[:: 1 if turn % 2 else -1]:
            started = time.process_time()
            take_step(trainers[name], rows, 1000)
            if turn > 2:
                found[name].append(time.process_time() - started)
    for name, times in found.items():
        middle = float(np.median(times))
        print(f"step of 64 pairs {name}: {middle:.4f} s, {64 / middle:,.0f} samples/s (median of {repeats})")
    without, with_levels = (np.array(times) for times in found.values())
    rng = np.random.default_rng(0)
    draws = rng.integers(repeats, size=(2000, repeats))
    spread = np.quantile(np.median(with_levels[draws], 1) / np.median(without[draws], 1) - 1, (0.05, 0.95))
    cost = np.median(with_levels) / np.median(without) - 1
    print(f"cost of levels: {cost:+.1%} (90 % interval {spread[0]:+.1%} to {spread[1]:+.1%}); fastest steps: "
          f"{with_levels.min() / without.min() - 1:+.1%}")  # fmt: skip


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--pictures", type=int, default=64)
    parser.add_argument("--words", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=100)
    given = parser.parse_args()
    torch.set_num_threads(1)
    rng, device = np.random.default_rng(0), torch.device("cpu")
    words = Pieces.learn([" ".join(map(str, rng.integers(0, 4000, 8))) for _ in range(2000)], 1500)
    design = dataclasses.replace(Design(), longest=given.words)
    levels = Levels(edges=tuple(np.linspace(0, 1, 9)), counts=(8,) * 9, made_by={})
    n, length = 256, 14
    trainers = {}
    for name, some in (("without levels", None), ("with levels", levels)):
        network = build(design, words, None, image_dim=1280, cells=1, levels=some, precision="fp32")
        train_set = TrainSet(image=rng.normal(size=(n, 1280)).astype(np.float16), weight=np.ones(n),
                        tokens=rng.integers(3, words.size, (n, length)), length=np.full(n, length),
                        level=None if some is None else rng.integers(0, 8, n))  # fmt: skip
        trainers[name] = Trainer(network, train_set, CaptionTrain())
    compare_steps(trainers, given.repeats)
    network.eval()
    memory = network.memory(torch.randn(given.pictures, 1280), torch.zeros(given.pictures, dtype=torch.int64)).detach()
    for search in ("greedy", "beam"):
        decode = Decode(search=search, least_tokens=given.words, no_repeat_ngram=0)  # type: ignore[arg-type]

        def one(cached: bool, decode: Decode = decode) -> object:
            following = Next(network.decoder, [memory], 0.0, cached=cached)
            return write(following, given.pictures, words, decode, most=given.words, device=device)

        fast, slow = best(lambda one=one: one(True), 2), best(lambda one=one: one(False), 2)
        print(f"{search}, {given.pictures} pictures x {given.words} words: {fast:.2f} s with a cache, {slow:.2f} s "
              f"without, {slow / fast:.1f} times")  # fmt: skip


if __name__ == "__main__":
    main()
