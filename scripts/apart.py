"""Work in a process of its own, on a set number of threads, and what it took."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from typing import Any

THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


def apart(script: str, *words: str, threads: int = 1) -> Any:
    """Run a script of ours with these words; the JSON on its last line."""
    env = os.environ | dict.fromkeys(THREADS, str(threads))
    done = subprocess.run([sys.executable, script, *words], check=True, stdout=subprocess.PIPE, env=env)
    return json.loads(done.stdout.splitlines()[-1])


def spent() -> float:
    """CPU seconds of this process and of the workers that have ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def gigabytes() -> float:
    """Largest resident size of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
