"""What goes wrong around a run: afterwards the same command gives the same bytes, or says clearly what is in its way.

Kills of `clean` itself are in test_kill.py, full disks in test_hostile.py; `scripts/soak.py` is the long version.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sources import sample_rows
from test_end_to_end import TINY

from noisycorr.__main__ import main
from noisycorr.runtime import folder as run_module

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a source, and a run of it that nothing happened to."""
    place = tmp_path_factory.mktemp("alone")
    rows = sample_rows(90)
    (place / "source").mkdir()
    for number in range(3):
        pq.write_table(
            pa.Table.from_pylist(rows[30 * number : 30 * number + 30]), place / "source" / f"{number}.parquet"
        )
    assert at(place, *words("parquet")) == 0
    return place


@pytest.fixture
def place(alone: Path, tmp_path: Path) -> Path:
    """A copy of the source alone, with its times, and no run."""
    subprocess.run(["cp", "-rp", str(alone / "source"), str(tmp_path / "source")], check=True)
    return tmp_path


def words(form: str = "parquet") -> list[str]:
    return ["clean", "source", "--output_folder", "out", *TINY, "--output_format", form]


def at(place: Path, *arguments: str) -> int:
    before = Path.cwd()
    os.chdir(place)
    try:
        return main(list(arguments))
    finally:
        os.chdir(before)


def contents(place: Path) -> dict[str, bytes]:
    out = place / "out"
    return {
        str(path.relative_to(out)): path.read_bytes()
        for path in sorted(out.rglob("*"))
        if path.is_file() and path.name != "metrics.jsonl"
    }


def started(place: Path, *arguments: str) -> subprocess.Popen[bytes]:
    paths = os.pathsep.join(filter(None, [str(HERE.parents[1]), os.environ.get("PYTHONPATH")]))
    return subprocess.Popen(
        [sys.executable, "-m", "noisycorr", *arguments], cwd=place, env=os.environ | {"PYTHONPATH": paths},
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip


def wait_for(pattern: str, folder: Path, process: subprocess.Popen[bytes]) -> None:
    """Until a file is there, or the process ended before."""
    limit = time.monotonic() + 300
    while not list(folder.glob(pattern)) and process.poll() is None and time.monotonic() < limit:
        time.sleep(0.005)


@pytest.mark.parametrize("moment", ["scores/*.parquet", "export/parquet/*.parquet"])
def test_killed_in_a_stage(moment: str, place: Path, alone: Path):
    process = started(place, *words())
    wait_for(moment, place / "out", process)
    process.kill()
    process.wait()
    # The last file may appear just before the end: whoever has cleared its lock must have finished.
    assert (place / "out" / "run.lock").exists() or contents(place) == contents(alone)
    assert at(place, *words()) == 0, "the lock of a dead run is taken over"
    assert contents(place) == contents(alone)


def test_an_interrupted_export_of_another_format(place: Path, alone: Path, monkeypatch: pytest.MonkeyPatch):
    assert at(place, *words()) == 0
    real, count = os.fsync, 0

    def fsync(file: int) -> None:
        nonlocal count
        count += 1
        if count == 2:
            raise KeyboardInterrupt
        real(file)

    monkeypatch.setattr(os, "fsync", fsync)
    more = [
        "export",
        "--output_folder",
        "out",
        "--output_format",
        "webdataset",
        "--number_sample_per_shard",
        "20",
        "-q",
    ]
    assert at(place, *more) == 1
    monkeypatch.setattr(os, "fsync", real)
    assert at(place, *more) == 0
    found = contents(place)
    assert at(place, *more) == 0 and contents(place) == found
    assert {name: data for name, data in found.items() if not name.startswith("export/webdataset")} == contents(alone)


@pytest.mark.parametrize("lost", ["pairs/00001.parquet", "embeddings/part-00001.safetensors"])
def test_a_part_deleted_under_us_is_named(lost: str, place: Path, capsys: pytest.CaptureFixture[str]):
    assert at(place, *words()) == 0
    (place / "out" / lost).unlink()
    capsys.readouterr()
    assert at(place, "score", "out", "--folds", "4", "-q") == 1
    told = capsys.readouterr().err.strip().splitlines()
    assert len(told) == 1 and Path(lost).name in told[0] and ("put it back" in told[0] or "No such file" in told[0])


@pytest.mark.parametrize("stage", ["scores/00001.parquet", "ledger/00001.parquet"])
def test_a_result_deleted_under_us_is_made_again(stage: str, place: Path, alone: Path):
    assert at(place, *words()) == 0
    (place / "out" / stage).unlink()
    assert at(place, *words()) == 0
    assert contents(place) == contents(alone)


def test_a_source_that_changed_is_refused(place: Path, capsys: pytest.CaptureFixture[str]):
    assert at(place, *words()) == 0
    before = contents(place)
    table = pq.read_table(place / "source" / "1.parquet")
    pq.write_table(table.slice(0, 20), place / "source" / "1.parquet")
    capsys.readouterr()
    assert at(place, *words()) == 2
    assert "holds embeddings of other data" in capsys.readouterr().err
    assert contents(place) == before, "what was there stays"
    (place / "source" / "1.parquet").unlink()
    assert at(place, *words()) == 2
    assert contents(place) == before


def test_a_read_only_output_is_told(place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    (place / "out").mkdir()
    if os.access(place / "out", os.W_OK) and os.geteuid() == 0:  # to root nothing is read-only
        real = os.open

        def open_(path: object, flags: int, *more: object, **others: object) -> int:
            if flags & os.O_CREAT and "out" in str(path):
                raise PermissionError(13, "Permission denied", str(path))
            return real(path, flags, *more, **others)  # type: ignore[arg-type]

        monkeypatch.setattr(os, "open", open_)
        monkeypatch.setattr(Path, "write_text", lambda self, *_, **__: open_(self, os.O_CREAT))
    else:
        (place / "out").chmod(0o500)
    try:
        capsys.readouterr()
        assert at(place, *words()) == 1
    finally:
        (place / "out").chmod(0o700)
    told = capsys.readouterr().err.strip()
    assert "Permission denied" in told and told.count("\n") == 0
    assert not list((place / "out").iterdir())


@pytest.mark.parametrize("jump", [-1e9, 1e9])
def test_a_clock_that_jumps_changes_nothing(jump: float, place: Path, alone: Path, monkeypatch: pytest.MonkeyPatch):
    assert at(place, *words()[:-2], "--stages", "embed") == 0
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + jump)
    for path in (place / "out").rglob("*"):
        os.utime(path, (max(1.0, real() + jump),) * 2)
    assert at(place, *words()) == 0
    assert contents(place) == contents(alone)


def test_memory_that_runs_out_is_told_and_continued(
    place: Path, alone: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def concatenate(*_: object, **__: object) -> np.ndarray:
        raise MemoryError

    with monkeypatch.context() as patched:
        patched.setattr("noisycorr.clean.embed.np.concatenate", concatenate)
        assert at(place, *words()) == 1
    assert "not enough memory" in capsys.readouterr().err
    assert at(place, *words()) == 0
    assert contents(place) == contents(alone)


def test_one_of_two_ranks_is_killed(place: Path, alone: Path):
    paths = os.pathsep.join(filter(None, [str(HERE.parents[1]), os.environ.get("PYTHONPATH")]))
    env = os.environ | {"PYTHONPATH": paths, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
              str(HERE / "dying_rank.py"), *words()[:-2], "--stages", "embed"]  # fmt: skip
    done = subprocess.run(launch, cwd=place, env=env, capture_output=True, text=True)
    assert done.returncode != 0
    left = sorted(path.name for path in (place / "out" / "pairs").glob("*_stats.json"))
    assert "00001_stats.json" not in left, "the piece of the rank that died"
    assert at(place, *words()) == 0, "one process does what is left"
    assert contents(place) == contents(alone)


def test_writes_are_whole_or_absent(tmp_path: Path):
    """The one way in which everything is written: whatever ends the block, the old file stands."""
    target = tmp_path / "file"
    target.write_text("old")
    for error in (OSError(28, "full"), MemoryError(), KeyboardInterrupt()):
        with pytest.raises(type(error)), run_module.atomic_path(target) as temporary:
            temporary.write_text("half")
            raise error
        assert target.read_text() == "old" and [path.name for path in tmp_path.iterdir()] == ["file"]
