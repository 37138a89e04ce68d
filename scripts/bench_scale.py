"""What a large set costs: one table of seconds, memory and bytes, and the growth from one size to the next.

    python scripts/bench_scale.py                                   # 100,000 pairs
    python scripts/bench_scale.py --sizes 100000,1000000            # the bars are for a million
    python scripts/bench_scale.py --parts search --sizes 50000,100000

Parts: `pairs` (score, calibrate, decide and ledger from stored 512-number embeddings), `decide` (another rule, and back
again to the same bytes), `report` (report.html and report.json), `search` (near-duplicates and neighbourhoods over
512 numbers), `start` (`noisycorr --help`, beside an interpreter that does nothing). The first three share one made
set. Every measurement runs in a process of its own, whose peak memory is told. Cores are shared on most machines:
CPU seconds are told beside the wall clock.
"""

from __future__ import annotations

import argparse
import hashlib
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
from pathlib import Path

import bench_clean

PARTS = ("start", "pairs", "decide", "report", "search")
Result = dict[str, float | int | str | bool]


def main() -> None:
    """Run the parts that were asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", default="start,pairs,decide,report,search")
    parser.add_argument("--sizes", default="100000")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--child", nargs=2, metavar=("PART", "FOLDER"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        print(json.dumps(child(given.child[0], Path(given.child[1]))))
        return
    parts = given.parts.split(",")
    if unknown := set(parts) - set(PARTS):
        sys.exit(f"part {sorted(unknown)[0]!r} is not one of {', '.join(PARTS)}")
    print("| part | pairs | seconds | CPU seconds | peak GB | what else |\n|---|--:|--:|--:|--:|---|", flush=True)
    if "start" in parts:
        start()
    seen: dict[str, list[tuple[int, float]]] = {}
    for size in map(int, given.sizes.split(",")):
        with tempfile.TemporaryDirectory() as folder:
            measure(given.threads, "make", folder, f"{size}")
            if {"decide", "report"} & set(parts):
                parts = list(dict.fromkeys(["pairs", *parts]))
            for part in (part for part in PARTS[1:] if part in parts):
                found = measure(given.threads, part, folder)
                row(part, size, found)
                seen.setdefault(part, []).append((size, float(found["cpu"])))
    for part, points in seen.items():
        for (small, fast), (large, slow) in itertools.pairwise(points):
            print(f"| {part} | {small:,} to {large:,} | | {slow / fast:.1f} times | | exponent "
                  f"{exponent(small, fast, large, slow):.2f} |")  # fmt: skip


def exponent(small: int, fast: float, large: int, slow: float) -> float:
    """How time grows with size: 1 is in proportion."""
    return math.log(slow / fast) / math.log(large / small)


def row(part: str, size: int | str, found: Result) -> None:
    """One line of the table."""
    rest = ", ".join(f"{name} {value}" for name, value in found.items() if name not in ("seconds", "cpu", "gigabytes"))
    shown = f"{size:,}" if isinstance(size, int) else size
    print(f"| {part} | {shown} | {found['seconds']:.1f} | {found['cpu']:.1f} | {found['gigabytes']:.2f} | {rest} |",
          flush=True)  # fmt: skip


def start() -> None:
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


def measure(threads: int, part: str, folder: str, *more: str) -> Result:
    """One part in a process of its own."""
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
    words = [sys.executable, __file__, "--child", ":".join([part, *more]), folder]
    done = subprocess.run(
        words, check=True, stdout=subprocess.PIPE, env=os.environ | dict.fromkeys(names, f"{threads}")
    )
    return json.loads(done.stdout.splitlines()[-1])


def child(task: str, folder: Path) -> Result:
    """The work of one process, and what it took."""
    part, _, size = task.partition(":")
    if part == "make":
        bench_clean._make_run(folder, int(size))
        return {}
    work: Callable[[Path], Result] = {"pairs": pairs, "decide": decide, "report": report, "search": search}[part]
    started, before = time.perf_counter(), time.process_time()
    result = work(folder)
    result.setdefault("seconds", time.perf_counter() - started)
    result.setdefault("cpu", time.process_time() - before)
    return result | {"gigabytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6}


def pairs(folder: Path) -> Result:
    """Similarity, calibration, verdicts and ledger."""
    found = bench_clean._stored(folder)
    return {"noise": round(float(str(found["noise_rate"])), 3), "true": 0.3, "bar": "25 s a million"}


def decide(folder: Path) -> Result:
    """Another rule, and the first one again: the ledger must be the same, byte for byte."""
    from noisycorr.clean.decide import Decide
    from noisycorr.clean.pipeline import decide_stage
    from noisycorr.clean.plan import Plan
    from noisycorr.clean.signals.pipeline import Score
    from noisycorr.data.readers import Source
    from noisycorr.runtime.folder import Run

    run = Run(folder)
    score = Score(neighbors=0, margin=False, near_duplicates=False)
    before = hashes(folder / "ledger")
    plan = Plan(source=Source(path=str(folder)), score=score, decide=Decide(fraction=0.5))
    started, cpu = time.perf_counter(), time.process_time()
    decide_stage(plan, run)
    spent = {"seconds": time.perf_counter() - started, "cpu": time.process_time() - cpu}
    changed = hashes(folder / "ledger") != before
    decide_stage(Plan(source=Source(path=str(folder)), score=score), run)
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


def search(folder: Path) -> Result:
    """Both sides searched once, for near-duplicates and for neighbourhoods."""
    found = bench_clean._search(folder)
    return {"recall": round(float(str(found["recall"])), 3), "method": str(found["method"]), "bar": "600 s a million"}


def hashes(folder: Path) -> dict[str, str]:
    """SHA-256 of every file."""
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


if __name__ == "__main__":
    main()
