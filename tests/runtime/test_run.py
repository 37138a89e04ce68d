"""Run folders: atomic writes, stages that are skipped or refused, what a kill leaves, and what may be deleted."""

from __future__ import annotations

import errno
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from noisycorr.runtime import folder as run_module
from noisycorr.runtime.folder import (
    RUN_CONTENT,
    Run,
    atomic_path,
    fingerprint,
    fingerprint_file,
    provenance,
    read_json,
    write_json,
)

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-3, 3)
    | st.sampled_from([0.0, 1.0, 0.5])
    | st.text("ab.é\ud800", max_size=2),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["a", "b", "a.b", "0", ""]), inner, max_size=3)
    ),
    max_leaves=6,
)
INPUTS = st.dictionaries(st.sampled_from(["a", "b", "a.b"]), JSON, max_size=3)


def files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


# ---- atomic writes


def test_a_file_appears_whole_when_the_block_ends(tmp_path: Path):
    target = tmp_path / "deep" / "er" / "file.txt"
    with atomic_path(target) as path:
        path.write_text("new")
        assert path.parent == target.parent and not target.exists()
        assert path.name.startswith(".") and path.name.endswith(f".{os.getpid()}.tmp")
    assert target.read_text() == "new" and files(tmp_path) == {"deep/er/file.txt"}


def test_who_reads_the_old_file_reads_it_to_its_end(tmp_path: Path):
    (tmp_path / "file.txt").write_text("old")
    with (tmp_path / "file.txt").open() as reader:
        with atomic_path(tmp_path / "file.txt") as path:
            path.write_text("new and longer")
        assert reader.read() == "old"
    assert (tmp_path / "file.txt").read_text() == "new and longer"


@pytest.mark.parametrize(
    "error", [ValueError("x"), KeyboardInterrupt(), OSError(errno.ENOSPC, "No space left on device")]
)
def test_an_error_leaves_the_old_file_and_no_rest(tmp_path: Path, error: BaseException):
    target = tmp_path / "file.txt"
    target.write_text("old")
    with pytest.raises(type(error)), atomic_path(target) as path:
        path.write_text("half of the ne")
        raise error
    assert target.read_text() == "old" and files(tmp_path) == {"file.txt"}


def test_a_block_that_writes_nothing_is_an_error(tmp_path: Path):
    (tmp_path / "file.txt").write_text("old")
    with pytest.raises(FileNotFoundError), atomic_path(tmp_path / "file.txt"):
        pass
    assert (tmp_path / "file.txt").read_text() == "old"


def test_a_disk_that_is_full_at_the_last_moment_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    write_json(tmp_path / "a.json", {"old": 1})
    monkeypatch.setattr(run_module.os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_json(tmp_path / "a.json", {"new": 2})
    assert read_json(tmp_path / "a.json") == {"old": 1} and files(tmp_path) == {"a.json"}


@settings(max_examples=50, deadline=None)
@given(JSON)
def test_json_comes_back_and_equal_values_give_equal_bytes(tmp_path_factory: pytest.TempPathFactory, value):
    path = tmp_path_factory.mktemp("json") / "value.json"
    write_json(path, value)
    assert read_json(path) == value
    first = path.read_bytes()
    write_json(path, json.loads(first))
    assert path.read_bytes() == first


# ---- fingerprints and stages


def test_fingerprints_do_not_depend_on_the_order_of_keys():
    assert fingerprint({"a": 1, "b": [1, {"c": None}]}) == fingerprint({"b": [1, {"c": None}], "a": 1})
    assert re.fullmatch(r"[0-9a-f]{16}", fingerprint({}))
    distinct = [{}, {"a": 1}, {"a": "1"}, {"a": 1.5}, {"a": None}, {"a": [1]}, {"b": 1}, [1, 2], [2, 1], "a"]
    assert len({fingerprint(value) for value in distinct}) == len(distinct)
    assert fingerprint({"path": Path("a")}) == fingerprint({"path": "a"})


def test_a_file_is_known_by_name_size_and_time(tmp_path: Path):
    path = tmp_path / "a.csv"
    path.write_text("one")
    os.utime(path, ns=(5, 7_000_000_000))
    assert fingerprint_file(path) == ["a.csv", 3, 7_000_000_000]
    path.write_text("three")
    os.utime(path, ns=(5, 7_000_000_000))
    assert fingerprint_file(path)[1] == 5
    (tmp_path / "other").mkdir()
    moved = path.rename(tmp_path / "other" / "a.csv")
    assert fingerprint_file(moved) == ["a.csv", 5, 7_000_000_000]


@settings(max_examples=150, deadline=None)
@given(INPUTS, INPUTS)
def test_a_stage_is_done_exactly_if_nothing_differs(tmp_path_factory: pytest.TempPathFactory, one, two):
    run = Run(tmp_path_factory.mktemp("run"))
    assert not run.is_done("score", one) and run.differences("score", one) == []
    run.finish("score", one, {"pairs": 3})
    assert run.is_done("score", one) and run.differences("score", one) == []
    assert run.is_done("score", json.loads(json.dumps(one)))
    assert run.is_done("score", two) == (not run.differences("score", two))
    assert run.stage("score") == {"fingerprint": fingerprint(one), "inputs": one, "facts": {"pairs": 3}}
    assert Run(run.folder).is_done("score", one) and not run.is_done("decide", one)


def test_differences_say_what_was_and_what_is(tmp_path: Path):
    run = Run(tmp_path)
    run.finish("embed", {"source": [["a.csv", 3, 7]], "encoder": "tiny", "choices": {"batch_size": 64, "gone": 1}})
    found = run.differences("embed", {"source": [["a.csv", 4, 7]], "encoder": "tiny", "choices": {"batch_size": 32}})
    assert found == [
        "choices.batch_size: was 64, now 32",
        "choices.gone: was 1, now nothing",
        "source.0.1: was 3, now 4",
    ]
    assert run.differences("embed", {"encoder": "x" * 500})[-1].count("x") < 100


def test_a_missing_value_is_not_none_and_an_empty_one_is_not_missing(tmp_path: Path):
    run = Run(tmp_path)
    run.finish("a", {"x": 1})
    assert run.differences("a", {"x": 1, "labels": None}) == ["labels: was nothing, now None"]
    run.finish("b", {"x": {}, "y": [1]})
    assert run.differences("b", {"y": [1.0]}) == ["x: was {}, now nothing", "y.0: was 1, now 1.0"]


def test_finishing_again_replaces_the_record(tmp_path: Path):
    run = Run(tmp_path)
    run.finish("score", {"a": 1}, {"n": 1})
    run.finish("score", {"a": 2})
    assert not run.is_done("score", {"a": 1}) and run.is_done("score", {"a": 2})
    assert (run.stage("score") or {})["facts"] == {} and files(tmp_path) == {"stages/score.json"}


# ---- what a kill leaves, and what may go


def dead_process() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_strays_of_dead_processes_are_swept_and_nothing_else(tmp_path: Path):
    run, dead, alive = Run(tmp_path), dead_process(), os.getppid()
    strays = [f".report.html.{dead}.tmp", f"pairs/.00001.parquet.{dead}.tmp", f"stages/.score.json.{os.getpid()}.tmp"]
    others = [
        f"pairs/.00002.parquet.{alive}.tmp", ".hidden.tmp", "notes.tmp", f"photos/.a.jpg.{dead}.tmp",
        "pairs/00001.parquet", ".editor.swp.tmp", f"pairs/visible.{dead}.tmp",
    ]  # fmt: skip
    for name in strays + others:
        run.path(name).write_text("x")
    run.sweep()
    assert files(tmp_path) == set(others)
    Run(tmp_path / "nowhere").sweep()
    assert not (tmp_path / "nowhere").exists()


def test_looking_at_a_folder_changes_nothing(tmp_path: Path):
    (tmp_path / f".a.{dead_process()}.tmp").write_text("x")
    before = files(tmp_path)
    run = Run(tmp_path)
    assert run.stage("embed") is None and not run.is_done("embed", {}) and run.differences("embed", {}) == []
    assert files(tmp_path) == before
    Run(tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_clear_removes_what_a_run_writes_and_nothing_foreign(tmp_path: Path):
    foreign = ["notes.txt", "photos/a.jpg", "pairs.csv", ".git/config", "scores.bak/x", "photos/pairs/b.jpg"]
    for name in foreign:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("mine")
    run = Run(tmp_path)
    run.finish("embed", {})
    run.log("embed", seconds=1.0)
    for name in RUN_CONTENT:
        run.path(name if "." in name else f"{name}/deep/00000.parquet").write_text("run")
    run.clear()
    assert files(tmp_path) == set(foreign)
    run.clear()
    assert files(tmp_path) == set(foreign)


def test_clear_does_not_follow_links(tmp_path: Path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "00000.parquet").write_text("precious")
    run = Run(tmp_path / "run")
    run.finish("embed", {})
    (run.folder / "pairs").symlink_to(tmp_path / "elsewhere")
    (run.folder / "report.html").symlink_to(tmp_path / "elsewhere" / "00000.parquet")
    run.clear()
    assert files(tmp_path) == {"elsewhere/00000.parquet"} and not (run.folder / "pairs").is_symlink()


def test_a_clear_that_is_killed_leaves_no_stage_that_seems_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    run = Run(tmp_path)
    for name in ("embed_started", "embed", "score"):
        run.finish(name, {})
    run.path("pairs", "00000_stats.json").write_text("{}")
    run.path("pairs", "00000.parquet").write_text("x")

    def killed(path: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(run_module.shutil, "rmtree", killed)
    with pytest.raises(KeyboardInterrupt):
        run.clear()
    assert not run.is_done("embed", {}) and not run.is_done("score", {})
    assert not (tmp_path / "pairs" / "00000_stats.json").exists()
    assert run.is_done("embed_started", {})  # the folder still knows what it belongs to


# ---- log and provenance


def test_the_log_is_one_json_object_a_line_and_only_grows(tmp_path: Path):
    run = Run(tmp_path)
    run.log("embed", pairs=3, seconds=0.5)
    run.log("score", note='with "quotes"\nand lines')
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["event"] for line in lines] == ["embed", "score"]
    assert lines[0]["pairs"] == 3 and lines[1]["note"].count("\n") == 1 and lines[0]["time"] > 1e9


def test_provenance_names_what_made_the_numbers():
    found = provenance()
    assert {"noisycorr", "python", "platform", "machine", "threads", "versions"} == set(found)
    assert {"torch", "numpy", "scipy", "pyarrow"} <= set(found["versions"]) and found["threads"] >= 1
    json.dumps(found)
