"""The fuzz tests for longer: rounds with other seeds, until the time is over or something fails.

    python scripts/fuzz.py --minutes 10 --examples 300

A failure is printed by hypothesis with the input that makes it; put that as an `@example` on the test.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

TESTS = Path(__file__).parents[1] / "tests" / "faults" / "test_fuzz.py"


def main() -> int:
    """Run rounds; the exit status of the first that fails, else 0."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--examples", type=int, default=300, help="of each test in a round")
    parser.add_argument("--seed", type=int, default=0, help="of the first round")
    given = parser.parse_args()
    started, rounds = time.monotonic(), 0
    while rounds == 0 or time.monotonic() - started < 60 * given.minutes:
        words = [sys.executable, "-m", "pytest", "-q", "-x", str(TESTS), f"--hypothesis-seed={given.seed + rounds}"]
        env = os.environ | {"NOISYCORR_FUZZ_EXAMPLES": str(given.examples)}
        done = subprocess.run(words, env=env, check=False, capture_output=True, text=True, errors="replace")
        rounds += 1
        if done.returncode:
            print(done.stdout, done.stderr)
            print(f"round {rounds} failed, with --seed {given.seed + rounds - 1}")
            return done.returncode
    print(f"{rounds} rounds of {given.examples} examples each, nothing found, {time.monotonic() - started:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
