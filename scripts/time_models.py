"""How much of `noisycorr clean` is spent in models: seconds of the encoders' forward passes over those of the whole.

    OMP_NUM_THREADS=1 python scripts/time_models.py                 # the shipped sample
    OMP_NUM_THREADS=1 python scripts/time_models.py SOURCE --clip_model tiny

CPU seconds are told beside the wall clock, because cores are shared on most machines; forward passes are counted in the
thread that runs them, so let one thread do the multiplications. Imports and loading of the weights count as the rest.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

from noisycorr import __main__ as cli
from noisycorr.models.encoders.embedded import EmbeddedEncoder
from noisycorr.models.encoders.tiny import TinyEncoder

Spent = dict[str, list[float]]


def main() -> int:
    """Run `clean` and print one line for each kind of work."""
    spent: Spent = {}
    for kind in (EmbeddedEncoder, TinyEncoder):
        for name in ("image", "text", "preprocess", "tokenize"):
            setattr(kind, name, run_stage(getattr(kind, name), name, spent))
    words = sys.argv[1:] or ["sample"]
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        status = cli.main(["clean", *words, "--output_folder", f"{folder}/out", "-q"])
    wall, cpu = time.perf_counter() - started, time.process_time()
    print(f"{'what':12s} wall s   CPU s   share of the CPU time")
    for name, (wall_part, cpu_part) in spent.items():
        print(f"{name:12s} {wall_part:6.1f}  {cpu_part:6.1f}   {cpu_part / cpu:.1%}")
    models = sum(spent[name][1] for name in ("image", "text") if name in spent)
    print(f"{'all':12s} {wall:6.1f}  {cpu:6.1f}   in models {models / cpu:.1%}")
    return int(status or 0)


def run_stage(work: Callable[..., Any], name: str, spent: Spent) -> Callable[..., Any]:
    """The same function, with its time added up."""

    def wrapped(*given: Any) -> Any:
        started, cpu = time.perf_counter(), time.thread_time()
        try:
            return work(*given)
        finally:
            total = spent.setdefault(name, [0.0, 0.0])
            total[0] += time.perf_counter() - started
            total[1] += time.thread_time() - cpu

    return wrapped


if __name__ == "__main__":
    sys.exit(main())
