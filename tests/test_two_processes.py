"""Two processes have the gradient of one and its parameters in the end: every strategy, and every kind of network."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from pictures import write_pictures
from region_data import write_regions
from safetensors.torch import load_file
from tiny_checkpoints import write_open_clip
from two_processes import CLASSES, NETWORKS, found

from noisycorr.classify.webly.methods import BUILT_IN as METHODS
from noisycorr.retrieval.strategies import BUILT_IN

HERE = Path(__file__).parent
pytestmark = pytest.mark.xdist_group("two processes")  # they share one launch
CASES = [*BUILT_IN, *NETWORKS, *(f"{CLASSES}{name}" for name in METHODS), f"{CLASSES}pictures", "captioner"]
PATIENCE = 900


def launch(place: Path) -> str:
    """Start the two processes and wait for them; what they said if they failed."""
    write_pictures(place / "tuned" / "source", 36)
    write_open_clip(place / "tuned" / "open_clip")
    write_regions(place / "regions")
    paths = filter(None, [str(HERE), str(HERE.parent), os.environ.get("PYTHONPATH")])
    more = {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", "PYTHONPATH": os.pathsep.join(paths)}
    words = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
             str(HERE / "two_processes.py"), str(place), *CASES]  # fmt: skip
    done = subprocess.run(words, capture_output=True, text=True, env=os.environ | more, timeout=PATIENCE)
    return done.stderr if done.returncode else ""


@pytest.fixture(scope="module")
def launched(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Folder with what two processes found, and what they said if they failed; one launch for all workers of xdist."""
    base = tmp_path_factory.getbasetemp()
    place = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "two_processes"
    told, told_whole = place / "told", place / "told_whole"
    try:
        place.mkdir()
    except FileExistsError:
        waits = time.monotonic() + PATIENCE
        while not told_whole.exists():
            assert time.monotonic() < waits, "the worker that launches the two processes does not come back"
            time.sleep(0.2)
        return place, told_whole.read_text(encoding="utf-8")
    said = "the launch itself failed"
    try:
        said = launch(place)
    finally:
        told.write_text(said, encoding="utf-8")
        told.rename(told_whole)
    return place, said


@pytest.mark.parametrize("case", CASES)
def test_two_processes_agree_with_one(case: str, launched: tuple[Path, str]):
    place, said = launched
    alone = found(case, place)
    assert any(name.startswith("gradient") and abs(value).max() > 1e-4 for name, value in alone.items())
    for rank in range(2):
        file = place / f"{case}.{rank}.safetensors"
        assert file.exists(), said
        shared = load_file(file)
        assert shared.keys() == alone.keys()
        for name, value in alone.items():
            gap = float((shared[name] - value).abs().max()) if value.numel() else 0.0
            assert gap < 1e-10, f"{name} differs by {gap:.1e} in process {rank}"
