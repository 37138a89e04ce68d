"""The readers of bytes under a fuzzer that is guided by coverage (atheris): nothing but a refusal may come out.

    pip install "noisycorr[fuzz]"                               # atheris: Linux, Python below 3.14
    python scripts/fuzz_bytes.py --minutes 10                   # all targets, one after the other
    python scripts/fuzz_bytes.py --targets yaml,array --minutes 2

Each target of `fuzz_targets.py` begins with its small sound inputs. An input that crashes a reader, loses a row,
writes outside of its folder, starts a program or a connection, takes more than `--seconds` of CPU time or more than
`--megabytes` on top of what the start took, is kept in `--keep`, its traceback is printed, and the exit status is 1.
Put the bytes into `tests/faults/test_fuzz_bytes.py`, so that they stay tested.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import importlib.util
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

ABSENT = ('atheris is not installed: pip install "noisycorr[fuzz]" (Linux, Python below 3.14), or in an environment '
          "beside this one: pip install atheris.")  # fmt: skip
COVERS = ("fuzz_targets", "noisycorr.data.readers", "noisycorr.data.pairs", "noisycorr.runtime.strict_yaml",
          "noisycorr.runtime.flags", "noisycorr.classify.audit.class_list", "noisycorr.clean.ledger",
          "noisycorr.classify.heads.labelled", "noisycorr.prompt.keep", "noisycorr.models.encoders.backbones",
          "tarfile", "gzip", "json", "csv", "yaml", "PIL")  # fmt: skip
WALL = 20  # times the CPU seconds of one input, after which a hanging process is stopped: machines are busy


def main() -> int:
    """Run the targets; 0 if nothing was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10, help="of all targets together (default: 10)")
    parser.add_argument("--targets", help="some of them, joined by commas (default: all)")
    parser.add_argument("--seed", type=int, default=0, help="0 is another one each time (default: 0)")
    parser.add_argument("--seconds", type=float, default=10, help="CPU time that one input may take (default: 10)")
    parser.add_argument("--megabytes", type=int, default=1000, help="memory that inputs may take (default: 1000)")
    parser.add_argument("--keep", type=Path, default=Path("fuzz_found"), help="folder of what fails (default: here)")
    parser.add_argument("--child", nargs=2, metavar=("TARGET", "FOLDER"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if importlib.util.find_spec("atheris") is None:
        print(ABSENT, file=sys.stderr)
        return 2
    if given.child:
        fuzz(given.child[0], Path(given.child[1]), given)
        return 0
    sys.path.insert(0, str(Path(__file__).parent))
    from fuzz_targets import TARGETS

    names = given.targets.split(",") if given.targets else list(TARGETS)
    if unknown := [name for name in names if name not in TARGETS]:
        parser.error(f"target {unknown[0]!r} is not one of {', '.join(TARGETS)}")
    found = [name for name in names if not run_child(name, given, 60 * given.minutes / len(names))]
    print(f"found something in {', '.join(found)}: see {given.keep}" if found else
          f"{len(names)} targets, {given.minutes:g} minutes, nothing found")  # fmt: skip
    return 1 if found else 0


def run_child(name: str, given: argparse.Namespace, seconds: float) -> bool:
    """One target in a process of its own (the fuzzer ends the process that it runs in); True if nothing was found."""
    given.keep.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        words = [sys.executable, __file__, "--child", name, folder, "--keep", str(given.keep.resolve()),
                 "--seconds", f"{given.seconds}", "--megabytes", f"{given.megabytes}", "--seed", f"{given.seed}",
                 "--minutes", f"{seconds / 60}"]  # fmt: skip
        done = subprocess.run(words, check=False, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                              errors="replace", env=os.environ | {"OMP_NUM_THREADS": "1"})  # fmt: skip
        count = len(list((Path(folder) / "corpus").glob("*")))
    lines = done.stdout.splitlines()
    told = next((line.strip() for line in reversed(lines) if line.startswith(("#", "Done"))), "")
    print(f"{name:10s} exit {done.returncode}, {count} inputs of different coverage, {told}", flush=True)
    if done.returncode:
        print("\n".join(line for line in lines if not line.startswith("#"))[-6000:], flush=True)
    return done.returncode == 0


def fuzz(name: str, folder: Path, given: argparse.Namespace) -> None:
    """Fuzz one target until the time is over; does not return."""
    import atheris

    sys.path.insert(0, str(Path(__file__).parent))
    with atheris.instrument_imports(include=list(COVERS), enable_loader_override=False):
        import fuzz_targets

        target = fuzz_targets.TARGETS[name]
        _without_faults(target, folder / "in")  # what is imported late is watched, too, and is there before the guard
    warnings.simplefilter("ignore")
    corpus, place = folder / "corpus", folder / "in"
    corpus.mkdir()
    for seed in target.seeds():
        (corpus / hashlib.sha1(seed).hexdigest()).write_bytes(seed)
    start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    def one(data: bytes) -> None:
        place.mkdir()
        began = time.process_time()
        try:
            with fuzz_targets.guarded(place):
                target.run(data, place)
        finally:
            shutil.rmtree(place)
        if (spent := time.process_time() - began) > given.seconds:
            raise fuzz_targets.Breach(f"{spent:.1f} s of CPU time")
        if (grown := (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - start) / 1e3) > given.megabytes:
            raise fuzz_targets.Breach(f"{grown:.0f} MB of memory")

    atheris.Setup(
        [sys.argv[0], str(corpus), f"-max_total_time={max(1, round(60 * given.minutes))}", f"-seed={given.seed}",
         f"-artifact_prefix={given.keep}/{name}-", f"-timeout={round(WALL * given.seconds)}", "-rss_limit_mb=0",
         "-max_len=4096", "-print_final_stats=0", "-verbosity=1"],
        one,
    )  # fmt: skip
    atheris.Fuzz()


def _without_faults(target: Any, place: Path) -> None:
    """Run each seed once, whatever comes of it."""
    for seed in target.seeds():
        place.mkdir()
        with contextlib.suppress(Exception):
            target.run(seed, place)
        shutil.rmtree(place)


if __name__ == "__main__":
    sys.exit(main())
