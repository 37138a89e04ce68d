"""Speed and memory of `noisycorr clean`: seconds, memory and bytes, and the growth from one size to the next.

    python scripts/bench_clean.py                                   # the README's table
    python scripts/bench_clean.py --parts start,pairs,decide,report,search --sizes 100000,1000000

Parts: `start` (`noisycorr --help`, beside an interpreter that does nothing), `embed` (our embedding stage and a bare
loop with the same model, in turns), `memory` (peak over shard counts), `pairs` (score, decide and ledger from stored
512-number embeddings), `decide` (another rule, and back again to the same bytes), `report` (report.html and
report.json), `search` (near-duplicates and neighbourhoods over 512 numbers). `pairs`, `decide` and `report` share one
made set. What reports memory runs in a process of its own. Cores are shared on most machines: CPU seconds are told
beside the wall clock.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import itertools
import json
import math
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from apart import apart, gigabytes

PARTS = ("start", "embed", "memory", "pairs", "decide", "report", "search")
WIDTH = 512
Result = dict[str, float | int | str | bool]


def main() -> None:
    """Run the parts that were asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", default="embed,pairs,memory")
    parser.add_argument("--sizes", default="100000,1000000", help="pairs of `pairs`, `decide`, `report` and `search`")
    parser.add_argument("--images", type=int, default=512, help="pictures of `embed`")
    parser.add_argument("--repeats", type=int, default=3, help="rounds of `embed`")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--child", nargs=2, metavar=("PART", "FOLDER"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        print(json.dumps(child(given.child[0], Path(given.child[1]))))
        return
    parts = given.parts.split(",")
    if unknown := set(parts) - set(PARTS):
        sys.exit(f"part {sorted(unknown)[0]!r} is not one of {', '.join(PARTS)}")
    print(f"{given.threads} threads\n\n| part | pairs | seconds | CPU seconds | peak GB | what else |\n"
          "|---|--:|--:|--:|--:|---|", flush=True)  # fmt: skip
    for part, work in (("start", start), ("embed", bench_embed), ("memory", bench_memory)):
        if part in parts:
            work(given)
    if sized := [part for part in PARTS[3:] if part in parts]:
        grow(given, list(dict.fromkeys(["pairs", *sized])) if {"decide", "report"} & set(sized) else sized)


def grow(given: argparse.Namespace, parts: list[str]) -> None:
    """Parts over made sets of each size, and the exponent from one size to the next."""
    seen: dict[str, list[tuple[int, float]]] = {}
    for size in map(int, given.sizes.split(",")):
        with tempfile.TemporaryDirectory() as folder:
            measure(given, f"make:{size}", folder)
            for part in parts:
                found = measure(given, part, folder)
                row(part, size, found)
                seen.setdefault(part, []).append((size, float(found["cpu"])))
    for part, points in seen.items():
        for (small, fast), (large, slow) in itertools.pairwise(points):
            exponent = math.log(slow / fast) / math.log(large / small)  # 1 is in proportion
            print(f"| {part} | {small:,} to {large:,} | | {slow / fast:.1f} times | | exponent {exponent:.2f} |")


def measure(given: argparse.Namespace, part: str, folder: str) -> Result:
    """One part in a process of its own."""
    return apart(__file__, "--child", part, folder, threads=given.threads)


def row(part: str, size: int | str, found: Result) -> None:
    """One line of the table."""
    rest = ", ".join(f"{name} {value}" for name, value in found.items() if name not in ("seconds", "cpu", "gigabytes"))
    shown = f"{size:,}" if isinstance(size, int) else size
    print(f"| {part} | {shown} | {found['seconds']:.1f} | {found['cpu']:.1f} | {found['gigabytes']:.2f} | {rest} |",
          flush=True)  # fmt: skip


def start(given: argparse.Namespace) -> None:
    """The help against an interpreter that does nothing: the smallest of five, alternating."""
    times: dict[str, list[float]] = {"-c pass": [], "-m noisycorr --help": []}
    for _ in range(5):
        for words, seconds in times.items():
            began = resource.getrusage(resource.RUSAGE_CHILDREN)
            subprocess.run([sys.executable, *words.split()], stdout=subprocess.DEVNULL, check=True)
            ended = resource.getrusage(resource.RUSAGE_CHILDREN)
            seconds.append(ended.ru_utime + ended.ru_stime - began.ru_utime - began.ru_stime)
    for words, seconds in times.items():
        print(f"| start | python {words} | | {min(seconds):.2f} | | bar: 0.5 |", flush=True)


def bench_embed(given: argparse.Namespace) -> None:
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
    for what, values, digits in (("bare loop, pairs/s", bare, 1), ("embedding stage, pairs/s", ours, 1),
                                 ("ratio (bar: 0.9)", ratios, 3)):  # fmt: skip
        low, middle, high = min(values), float(np.median(values)), max(values)
        told = f"{what}, min, median, max: {low:.{digits}f}, {middle:.{digits}f}, {high:.{digits}f}"
        print(f"| embed | {table.num_rows:,} | | | | {told} |", flush=True)


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


def bench_memory(given: argparse.Namespace) -> None:
    """Peak memory of read + embed + export with the tiny encoder, over shards of 250 pairs."""
    for shards in (4, 16, 64):
        with tempfile.TemporaryDirectory() as folder:
            table = _some_pictures(250)
            for number in range(shards):
                pq.write_table(table, Path(folder) / f"{number:05d}.parquet")
            row("memory", 250 * shards, measure(given, "clean", folder))


def child(task: str, folder: Path) -> Result:
    """The work of one process, and what it took."""
    part, _, size = task.partition(":")
    if part == "make":
        make_run(folder, int(size))
        return {}
    work: dict[str, Callable[[Path], Result]] = {"pairs": pairs, "decide": decide, "report": report, "search": search,
                                                 "clean": clean_shards}  # fmt: skip
    started, before = time.perf_counter(), time.process_time()
    result = work[part](folder)
    result.setdefault("seconds", time.perf_counter() - started)
    result.setdefault("cpu", time.process_time() - before)
    return result | {"gigabytes": gigabytes()}


def make_run(folder: Path, size: int, wrong: float = 0.3) -> None:
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


def stored_plan(folder: Path, **score: object):  # type: ignore[no-untyped-def]
    """Plan of a made set; nothing is searched unless it is asked for."""
    from noisycorr.clean.plan import Plan
    from noisycorr.clean.signals.pipeline import Score
    from noisycorr.data.readers import Source

    return Plan(source=Source(path=str(folder)), score=Score(margin=False, **score))  # type: ignore[arg-type]


PLAIN = {"neighbors": 0, "near_duplicates": False}


def pairs(folder: Path) -> Result:
    """Similarity, calibration, verdicts and ledger."""
    from noisycorr.clean.pipeline import decide_stage, score_stage
    from noisycorr.runtime.folder import Run

    run, plan = Run(folder), stored_plan(folder, **PLAIN)
    started, before = time.perf_counter(), time.process_time()
    score_stage(plan, run)
    decide_stage(plan, run)
    spent = {"seconds": time.perf_counter() - started, "cpu": time.process_time() - before}
    noise = run.stage("decide")["facts"]["noise_rate"]  # type: ignore[index]
    return {**spent, "noise": round(noise, 3), "true": 0.3, "bar": "25 s and 2 GB a million"}


def search(folder: Path) -> Result:
    """Both sides searched once, for near-duplicates and for neighbourhoods."""
    from noisycorr.clean.pipeline import score_stage
    from noisycorr.runtime.folder import Run

    run, plan = Run(folder), stored_plan(folder)
    started, before = time.perf_counter(), time.process_time()
    score_stage(plan, run)
    spent = {"seconds": time.perf_counter() - started, "cpu": time.process_time() - before}
    facts = run.stage("score")["facts"]  # type: ignore[index]
    recall = min(facts["image_neighbors"]["recall"], facts["text_neighbors"]["recall"])
    return {**spent, "recall": round(recall, 3), "method": facts["image_neighbors"]["method"], "bar": "600 s a million"}


def decide(folder: Path) -> Result:
    """Another rule, and the first one again: the ledger must be the same, byte for byte."""
    import dataclasses

    from noisycorr.clean.decide import Decide
    from noisycorr.clean.pipeline import decide_stage
    from noisycorr.runtime.folder import Run

    run, plan = Run(folder), stored_plan(folder, **PLAIN)
    before = hashes(folder / "ledger")
    started, cpu = time.perf_counter(), time.process_time()
    decide_stage(dataclasses.replace(plan, decide=Decide(fraction=0.5)), run)
    spent = {"seconds": time.perf_counter() - started, "cpu": time.process_time() - cpu}
    changed = hashes(folder / "ledger") != before
    decide_stage(plan, run)
    same = hashes(folder / "ledger") == before
    return {**spent, "changed": changed, "undo exact": same, "bar": "20 s a million"}


def report(folder: Path) -> Result:
    """The page and the numbers."""
    from noisycorr.clean.pipeline import report_stage
    from noisycorr.runtime.folder import Run, provenance, write_json

    run = Run(folder)
    write_json(run.path("provenance.json"), provenance())
    report_stage(run)
    size = (folder / "report.html").stat().st_size / 1e6
    return {"MB": round(size, 2), "bar": "60 s and 20 MB"}


def clean_shards(folder: Path) -> Result:
    """Embed, then all the rest and an export."""
    from noisycorr.clean.embed import Embed
    from noisycorr.clean.export import Export, export
    from noisycorr.clean.pipeline import clean
    from noisycorr.clean.plan import Plan
    from noisycorr.data.readers import Source, open_source
    from noisycorr.runtime.folder import Run

    plan = Plan(source=Source(path=str(folder)), embed=Embed(clip_model="tiny"))
    run = Run(folder / "run")
    clean(plan, run, stages=("embed",))
    peak = gigabytes()
    clean(plan, run, stages=("score", "decide"))
    export(run, open_source(plan.source), Export(output_format="webdataset"))
    return {"embed alone": round(peak, 3)}


def hashes(folder: Path) -> dict[str, str]:
    """SHA-256 of every file."""
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


if __name__ == "__main__":
    main()
