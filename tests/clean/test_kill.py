"""A run that is killed and continued, or shared by two processes, leaves the same bytes as one left alone."""

from __future__ import annotations

import importlib.util
import json
import os
import random
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "kill_test.py"
Alone = tuple[list[str], dict[str, str]]


@pytest.fixture(scope="module")
def script() -> ModuleType:
    """The script as a module."""
    spec = importlib.util.spec_from_file_location("kill_test", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["kill_test"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("kill")


@pytest.fixture(scope="module")
def alone(script: ModuleType, work: Path) -> Alone:
    """The command and the hashes of a run left alone; one thread, as torchrun gives its processes."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    return script.run_alone(work, tars=2)


def test_killed_twice_and_continued(script: ModuleType, work: Path, alone: Alone):
    words, expected = alone
    kinds = {name.split("/")[0] for name in expected}
    assert kinds >= {"pairs", "embeddings", "scores", "ledger", "export", "stages", "report.html", "report.json"}
    record = script.run_round(words, work / "killed", expected, 2, random.Random(1))
    assert record.differences == []
    assert record.kills and record.kills[0] < len(expected), "it was killed at work"


def test_two_processes_continue_what_one_began(script: ModuleType, work: Path, alone: Alone):
    words, expected = alone
    place = work / "shared"
    place.mkdir()
    early = [*words[: words.index("--output_format")], "-q", "--stages", "embed"]
    script.kill_once(early, place, 12, random.Random(0))
    stray = place / "out" / "pairs" / f".00003.parquet.{dead_process()}.tmp"
    stray.parent.mkdir(parents=True, exist_ok=True)
    stray.write_bytes(b"left by a killed process")
    alive = place / "out" / "pairs" / f".00003.parquet.{os.getpid()}.tmp"
    alive.write_bytes(b"being written by another process")
    both = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *words[1:]]
    done = subprocess.run(
        both[:-1], cwd=place, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == 0, done.stderr
    told = [
        line for line in done.stderr.splitlines() if line.startswith(("reading ", "embed: ", "score: ", "export: "))
    ]
    assert len(told) == 4, "one process speaks for both"
    assert not stray.exists() and alive.exists()
    alive.unlink()
    assert script.hashes(place / "out") == expected
    assert json.loads((place / "out" / "stages" / "embed.json").read_text())["facts"]["pairs"] == 120


def dead_process() -> int:
    """Number of a process that is no more."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid
