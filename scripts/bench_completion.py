"""Graph and text completion at scale: seconds, memory, recall.

    python scripts/bench_completion.py --rows 100000

Pictures are n x 512 in float16 around centres, 50 to a centre; texts n x 384, a third of them blank. With
`--search false` neighbours are drawn from the row's centre, which leaves the completion alone to be measured.
"""

from __future__ import annotations

import argparse
import time

import numpy as np
from apart import gigabytes

from noisycorr.classify.completion import Graph, build_graph, complete_texts, identity

K = 10


def main() -> None:
    """Make rows, build the graph, complete, and print one line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--search", choices=("true", "false"), default="true")
    given = parser.parse_args()
    n, rng = given.rows, np.random.default_rng(0)
    owner = rng.integers(max(n // 50, 1), size=n)
    image = around(owner, 512, 1)
    text = around(owner, 384, 2)
    has = rng.random(n) > 0.3
    text[~has] = 0
    made = gigabytes()
    started, wall = time.process_time(), time.perf_counter()
    graph = build_graph(image, K, seed=0) if given.search == "true" else drawn(image, owner, rng)
    found, found_wall = time.process_time() - started, time.perf_counter() - wall
    after = gigabytes()
    started = time.process_time()
    completed, support = complete_texts(text, graph, has)
    done = time.process_time() - started
    assert completed.any(axis=1).mean() > 0.9 and 0 < support.mean() < 1
    print(f"{n:,} rows: {graph.method}, recall {graph.recall:.3f}, graph {found:.0f} CPU s ({found_wall:.0f} s wall), "
          f"completion {done:.1f} CPU s, peak {made:.2f} GB for the data, {after:.2f} GB with the graph, "
          f"{gigabytes():.2f} GB in all")  # fmt: skip


def around(owner: np.ndarray, width: int, seed: int) -> np.ndarray:
    """float16 (n, width): a centre for each owner, and noise; block by block, so that memory stays small."""
    rng = np.random.default_rng(seed)
    centre = rng.standard_normal((owner.max() + 1, width), np.float32).astype(np.float16)
    out = np.empty((len(owner), width), np.float16)
    for start in range(0, len(owner), 16_384):
        some = owner[start : start + 16_384]
        out[start : start + len(some)] = centre[some] + 2.4 * (rng.random((len(some), width), np.float32) - 0.5)
    return out


def drawn(image: np.ndarray, owner: np.ndarray, rng: np.random.Generator) -> Graph:
    """Ten rows of the same centre for each row."""
    order = np.argsort(owner, kind="stable")
    first = np.searchsorted(owner[order], owner)
    size = np.bincount(owner)[owner]
    ids = order[first[:, None] + (rng.random((len(owner), K)) * size[:, None]).astype(int)]
    return Graph(ids=ids, weight=np.full(ids.shape, 0.7, np.float32), made_from=identity(image), method="drawn",
                 recall=float("nan"))  # fmt: skip


if __name__ == "__main__":
    main()
