"""The long version of tests/faults: kill every stage at random moments, with every kind of export, many times.

    python scripts/soak.py --times 50                     # appends a line to --record, if it is given

Each round takes one of the formats, kills the command up to four times, lets it finish, kills `decide` with another
rule and back, and compares every file with a run that was left alone. Ends with 1 if anything differs.
"""

from __future__ import annotations

import argparse
import random
import shutil
import sys
import tempfile
import time
from datetime import datetime, timezone
from pathlib import Path

import kill_test

FORMATS = ("webdataset", "parquet", "csv", "jsonl", "coco", "clip-retrieval", "issues")


def redecide(place: Path, chance: random.Random) -> None:
    """Another rule, killed at a random moment of it, then the first rule again."""
    base = [sys.executable, "-m", "noisycorr", "decide", "--output_folder", "out", "-q"]
    kill_test.kill_once([*base, "--fraction", "0.5"], place, chance.randint(10, 40), chance)
    kill_test.finish(base, place)


def main() -> int:
    """Run the rounds; 0 if nothing differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=50, help="rounds (default: 50)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments (default: 0)")
    parser.add_argument("--minutes", type=float, default=0, help="stop after so many, 0 = never (default: 0)")
    parser.add_argument("--record", type=Path, help="file to append the result to")
    given = parser.parse_args()
    chance, started = random.Random(given.seed), time.monotonic()
    rounds = kills = bad = 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        source, place = kill_test.write_source(folder / "source"), folder / "run"  # one place: csv holds its paths
        alone: dict[str, dict[str, str]] = {}
        for number in range(given.times):
            if given.minutes and time.monotonic() - started > 60 * given.minutes:
                break
            form = FORMATS[number % len(FORMATS)]
            words = kill_test.command(source, form)
            if form not in alone:
                place.mkdir()
                kill_test.finish(words, place)
                alone[form] = kill_test.hashes(place / "out")
                shutil.rmtree(place)
            record = kill_test.run_round(words, place, alone[form], chance.randint(1, 4), chance)
            redecide(place, chance)
            found = kill_test.hashes(place / "out")
            lost = [
                path for path, value in alone[form].items() if path.startswith("ledger/") and found.get(path) != value
            ]
            rounds, kills, bad = rounds + 1, kills + len(record.kills), bad + bool(record.differences or lost)
            different = ", ".join([*record.differences, *lost]) or "none"
            shutil.rmtree(place)
            print(
                f"{number:4d}  {form:15s} kills {len(record.kills)}  {record.seconds:6.1f} s  {different}", flush=True
            )
    when = f"{datetime.now(timezone.utc):%Y-%m-%d %H:%M} UTC"
    told = f"{when}, seed {given.seed}: {rounds} rounds, {kills} kills, {bad} different"
    print(told)
    if given.record:
        with given.record.open("a", encoding="utf-8") as file:
            file.write(f"{told}\n")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
