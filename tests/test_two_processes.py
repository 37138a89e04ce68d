"""Two processes give the gradient of one, also for encoders that are fine-tuned and for sets of regions."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from pictures import write_pictures
from region_data import write_regions
from safetensors.numpy import load_file
from tiny_checkpoints import write_open_clip

HERE = Path(__file__).parent


@pytest.mark.parametrize("kind", ["tuned", "sgr", "saf", "gpo"])
def test_two_processes_have_the_gradient_of_one(kind: str, tmp_path: Path):
    place = tmp_path / "place"
    if kind == "tuned":
        write_pictures(place / "source", 36)
        write_open_clip(place / "open_clip")
    else:
        write_regions(place)
    paths = [str(HERE), str(HERE.parent), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    for name, start in (("one", [sys.executable]), ("two", torchrun)):
        more = {"ACCELERATE_USE_CPU": "true"} if name == "two" else {}
        words = [*start, str(HERE / "two_processes.py"), kind, str(place), str(tmp_path / f"{name}.safetensors")]
        done = subprocess.run(words, capture_output=True, text=True, env=environment | more)
        assert done.returncode == 0, done.stderr
    one, two = (load_file(tmp_path / f"{name}.safetensors") for name in ("one", "two"))
    assert one.keys() == two.keys() and any(name.startswith("gradient") for name in one)
    differences = {name: float(abs(one[name] - two[name]).max()) for name in one}
    assert max(differences.values()) < 1e-10, sorted(differences.items(), key=lambda item: -item[1])[:3]
    assert any(abs(one[name]).max() > 1e-4 for name in one if name.startswith("gradient"))
