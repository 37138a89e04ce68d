"""Speed and memory of `noisycorr clean`. Prints a Markdown table; ratios are measured side by side in one run.

    python scripts/bench_clean.py                       # all parts but the search over a million
    python scripts/bench_clean.py --parts neighbors --sizes 100000,1000000

Parts: `embed` (our embedding stage against a bare loop with the same model), `stored` (scoring and deciding from stored
512-number embeddings), `neighbors` (near-duplicates and neighbourhood agreement), `memory` (peak over shard counts).
Each measurement that reports memory runs in a process of its own.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

PARTS = ("embed", "stored", "neighbors", "memory")
WIDTH = 512


def main() -> None:
    """Run the parts that were asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", default="embed,stored,memory")
    parser.add_argument("--sizes", default="100000,1000000", help="pairs of `stored` and `neighbors`")
    parser.add_argument("--images", type=int, default=512, help="pictures of `embed`")
    parser.add_argument("--repeats", type=int, default=3, help="rounds of `embed`")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--child", default="", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        print(json.dumps(_child(json.loads(given.child))))
        return
    sizes = [int(size) for size in given.sizes.split(",")]
    print(f"| part | what | value |\n|---|---|---|\n| machine | threads | {given.threads} |", flush=True)
    for part in given.parts.split(","):
        if part not in PARTS:
            sys.exit(f"part {part!r} is not one of {', '.join(PARTS)}")
        {"embed": bench_embed, "stored": bench_stored, "neighbors": bench_neighbors, "memory": bench_memory}[part](
            given, sizes
        )


def row(part: str, what: str, value: str) -> None:
    """One line of the table."""
    print(f"| {part} | {what} | {value} |", flush=True)


def bench_embed(given: argparse.Namespace, sizes: list[int]) -> None:
    """Throughput of the embedding stage over a bare loop on the same pictures, alternating, `--repeats` rounds each."""
    import torch

    from noisycorr.clean.embed import Embed, embed_pieces
    from noisycorr.data.readers import Source, open_source
    from noisycorr.models.encoders import load_encoder
    from noisycorr.runtime.folder import Run

    torch.set_num_threads(given.threads)
    encoder = load_encoder("embedded", device=torch.device("cpu"))
    choice = Embed()
    with tempfile.TemporaryDirectory() as folder:
        table = _some_pictures(given.images)
        pq.write_table(table, Path(folder) / "pictures.parquet")
        reader = open_source(Source(path=f"{folder}/pictures.parquet"))
        bare_loop(table.slice(0, 64), encoder, choice.batch_size, given.threads)  # warm up
        ratios, ours, bare = [], [], []
        for number in range(given.repeats):
            started = time.perf_counter()
            bare_loop(table, encoder, choice.batch_size, given.threads)
            bare.append(table.num_rows / (time.perf_counter() - started))
            started = time.perf_counter()
            embed_pieces(reader.pieces(), reader, encoder, Run(f"{folder}/run{number}"), choice)
            ours.append(table.num_rows / (time.perf_counter() - started))
            ratios.append(ours[-1] / bare[-1])
    row("embed", f"bare loop, {table.num_rows} pairs, pairs/s (min, median, max)", _spread(bare))
    row("embed", "embedding stage, pairs/s", _spread(ours))
    row("embed", "ratio, stage / bare loop (bar: 0.9)", _spread(ratios, 3))


def bare_loop(table: pa.Table, encoder, batch_size: int, workers: int) -> None:  # type: ignore[no-untyped-def]
    """Decode, preprocess and run both towers; nothing is stored. Workers decode the next batch meanwhile."""
    import torch
    from PIL import Image

    def load(data: bytes):  # type: ignore[no-untyped-def]
        return encoder.preprocess(Image.open(io.BytesIO(data)).convert("RGB"))

    images, texts = table.column("image").to_pylist(), table.column("title").to_pylist()
    starts = range(0, len(images), batch_size)
    with ThreadPoolExecutor(workers) as pool:
        waiting = [pool.submit(load, data) for data in images[:batch_size]]
        for start in starts:
            ready = [future.result() for future in waiting]
            waiting = [pool.submit(load, data) for data in images[start + batch_size : start + 2 * batch_size]]
            encoder.image(torch.stack(ready))
            encoder.text(encoder.tokenize(texts[start : start + batch_size]))


def _some_pictures(count: int) -> pa.Table:
    """Pairs of the shipped sample, repeated if more are asked for."""
    import noisycorr

    path = next((Path(noisycorr.__file__).parent / "data" / "sample").glob("*.parquet"))
    table = pq.read_table(path, columns=["key", "image", "title"])
    return pa.concat_tables([table] * (count // table.num_rows + 1)).slice(0, count).combine_chunks()


def bench_stored(given: argparse.Namespace, sizes: list[int]) -> None:
    """Similarity, calibration, verdicts, ledger from stored embeddings (bars: 1 M in 30 s and 2 GB; flat to 1.3x)."""
    per_pair = []
    for size in sizes:
        with tempfile.TemporaryDirectory() as folder:
            _in_child(given, {"do": "make", "folder": folder, "size": size})
            result = _in_child(given, {"do": "stored", "folder": folder})
        per_pair.append(result["seconds"] / size)
        row("stored", f"{size:,} pairs: score + decide, seconds", f"{result['seconds']:.1f}")
        row("stored", f"{size:,} pairs: peak memory, GB", f"{result['gigabytes']:.2f}")
        row("stored", f"{size:,} pairs: noise rate told (true 0.30)", f"{result['noise_rate']:.3f}")
    if len(per_pair) > 1:
        row("stored", "time per pair, largest / smallest set (bar: 1.3)", f"{per_pair[-1] / per_pair[0]:.2f}")


def bench_neighbors(given: argparse.Namespace, sizes: list[int]) -> None:
    """Near-duplicates and neighbourhood agreement (bars: 4 GB; measured recall >= 0.95)."""
    seconds = []
    for size in sizes:
        with tempfile.TemporaryDirectory() as folder:
            _in_child(given, {"do": "make", "folder": folder, "size": size})
            result = _in_child(given, {"do": "neighbors", "folder": folder})
        seconds.append(result["seconds"])
        row("neighbors", f"{size:,} pairs x {WIDTH}, both sides: seconds", f"{result['seconds']:.0f}")
        row("neighbors", f"{size:,} pairs: peak memory, GB", f"{result['gigabytes']:.2f}")
        row("neighbors", f"{size:,} pairs: recall on a sample, method", f"{result['recall']:.3f}, {result['method']}")
    if len(seconds) > 1:
        row("neighbors", f"time grows by, for {sizes[-1] / sizes[0]:.0f}x the pairs", f"{seconds[-1] / seconds[0]:.1f}")


def bench_memory(given: argparse.Namespace, sizes: list[int]) -> None:
    """Peak memory of read + embed + export with the tiny encoder, over shards of 250 pairs."""
    peaks = []
    for shards in (4, 16, 64):
        with tempfile.TemporaryDirectory() as folder:
            table = _some_pictures(250)
            for number in range(shards):
                pq.write_table(table, Path(folder) / f"{number:05d}.parquet")
            result = _in_child(given, {"do": "clean", "folder": folder})
        peaks.append(result["gigabytes"])
        row("memory", f"{shards} shards of 250 pairs: peak of embed + export, GB", f"{peaks[-1]:.3f}")
    row("memory", "largest / smallest", f"{peaks[-1] / peaks[0]:.2f}")


def _in_child(given: argparse.Namespace, task: dict[str, object]) -> dict[str, float]:
    command = [sys.executable, __file__, "--threads", str(given.threads), "--child", json.dumps(task)]
    threads = {name: str(given.threads) for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")}
    done = subprocess.run(
        command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=os.environ | threads
    )
    return json.loads(done.stdout.splitlines()[-1])


def _child(task: dict[str, str]) -> dict[str, object]:
    """The work of one measured process."""
    if task["do"] == "make":
        _make_run(Path(task["folder"]), int(task["size"]))
        return {}
    work = {"stored": _stored, "neighbors": _search, "clean": _clean}[task["do"]]
    result = work(Path(task["folder"]))
    result["gigabytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    return result


def _make_run(folder: Path, size: int, wrong: float = 0.3) -> None:
    """A run folder with embeddings of clustered pairs, 30 % of them mismatched, as the embed stage leaves it."""
    from safetensors.numpy import save_file

    from noisycorr.data.pairs import PAIRS
    from noisycorr.runtime.folder import Run, write_json

    run, rng = Run(folder), np.random.default_rng(0)
    centers = rng.standard_normal((2000, WIDTH), np.float32)
    titles = _some_pictures(2400).column("title").to_pylist()
    for index, start in enumerate(range(0, size, 10_000)):
        n = min(10_000, size - start)
        concept = rng.integers(len(centers), size=n)
        other = np.where(rng.random(n) < wrong, rng.integers(len(centers), size=n), concept)
        image = centers[concept] + rng.standard_normal((n, WIDTH), np.float32)
        text = centers[other] + rng.standard_normal((n, WIDTH), np.float32)
        run.path("embeddings", "x")
        save_file({"image": image.astype(np.float16), "text": text.astype(np.float16)},
                  folder / "embeddings" / f"part-{index:05d}.safetensors")  # fmt: skip
        rows = range(start, start + n)
        facts = {
            "key": [f"{i:09d}" for i in rows],
            "uid": [f"{i:032x}" for i in rows],
            "text": [f"{titles[c % len(titles)]} {titles[i % len(titles)]}" for c, i in zip(other.tolist(), rows)],
            "columns": ["{}"] * n,
            "image_hash": [f"{i:032x}" for i in rows],
            "width": [256] * n,
            "height": [256] * n,
        }
        facts |= {name: [None] * n for name in PAIRS.names if name not in facts}
        table = pa.table({f.name: pa.array(facts[f.name], f.type) for f in PAIRS})
        pq.write_table(table, run.path("pairs", f"{index:05d}.parquet"))
        write_json(run.path("pairs", f"{index:05d}_stats.json"), {"pairs": n, "problems": {}})
    run.finish("embed", {"made": size}, {"pairs": size, "joint": True, "encoder": "made", "score_column": None})


def _stored(folder: Path) -> dict[str, object]:
    from noisycorr.clean.pipeline import decide_stage, score_stage
    from noisycorr.clean.plan import Plan
    from noisycorr.clean.signals.pipeline import Score
    from noisycorr.data.readers import Source
    from noisycorr.runtime.folder import Run

    run = Run(folder)
    plan = Plan(source=Source(path=str(folder)), score=Score(neighbors=0, margin=False, near_duplicates=False))
    started = time.perf_counter()
    score_stage(plan, run)
    decide_stage(plan, run)
    seconds = time.perf_counter() - started
    return {"seconds": seconds, "noise_rate": run.stage("decide")["facts"]["noise_rate"]}  # type: ignore[index]


def _search(folder: Path) -> dict[str, object]:
    from noisycorr.clean.pipeline import score_stage
    from noisycorr.clean.plan import Plan
    from noisycorr.clean.signals.pipeline import Score
    from noisycorr.data.readers import Source
    from noisycorr.runtime.folder import Run

    run = Run(folder)
    started = time.perf_counter()
    score_stage(Plan(source=Source(path=str(folder)), score=Score(margin=False)), run)
    seconds = time.perf_counter() - started
    facts = run.stage("score")["facts"]  # type: ignore[index]
    recall = min(facts["image_neighbors"]["recall"], facts["text_neighbors"]["recall"])
    return {"seconds": seconds, "recall": recall, "method": facts["image_neighbors"]["method"]}


def _clean(folder: Path) -> dict[str, object]:
    from noisycorr.clean.export import Export, export
    from noisycorr.clean.pipeline import Embed, clean
    from noisycorr.clean.plan import Plan
    from noisycorr.data.readers import Source, open_source
    from noisycorr.runtime.folder import Run

    plan = Plan(source=Source(path=str(folder)), embed=Embed(clip_model="tiny"))
    run = Run(folder / "run")
    clean(plan, run, stages=("embed",))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    clean(plan, run, stages=("score", "decide"))
    export(run, open_source(plan.source), Export(output_format="webdataset"))
    return {"embed": peak}


def _spread(values: list[float], digits: int = 1) -> str:
    low, middle, high = min(values), float(np.median(values)), max(values)
    return f"{low:.{digits}f}, {middle:.{digits}f}, {high:.{digits}f}"


if __name__ == "__main__":
    main()
