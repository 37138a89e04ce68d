"""A folder is written by one run at a time; what a dead one left is taken over; status and doctor tell the truth."""

from __future__ import annotations

import json
import logging
import os
import platform
import subprocess
import sys
import time
from pathlib import Path

import pytest
from sources import sample_rows
from test_end_to_end import TINY

from noisycorr.__main__ import main
from noisycorr.runtime import console, lock
from noisycorr.runtime.errors import UsageError
from noisycorr.runtime.lock import NAME, Owner, locked, read_owner


def write_lock(folder: Path, **changes: object) -> Path:
    """The lock of a process that runs, namely of the one that started this one."""
    folder.mkdir(parents=True, exist_ok=True)
    owner = {"pid": os.getppid(), "host": platform.node(), "start": lock._start(os.getppid()), "command": "clean"}
    (folder / NAME).write_text(json.dumps(owner | changes))
    return folder / NAME


def dead_process() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_it_is_there_during_the_block_and_gone_after(tmp_path: Path):
    folder = tmp_path / "a" / "b"
    with locked(folder, "clean"):
        owner = read_owner(folder / NAME)
        assert owner is not None and (owner.pid, owner.host, owner.command) == (os.getpid(), platform.node(), "clean")
        assert [path.name for path in folder.iterdir()] == [NAME]
    assert not (tmp_path / "a").exists(), "a folder that holds nothing goes again"
    with pytest.raises(ZeroDivisionError), locked(folder, "clean"):
        (folder / "kept").write_text("")
        raise ZeroDivisionError
    assert [path.name for path in folder.iterdir()] == ["kept"]


def test_a_second_run_is_refused_with_process_and_host(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    path = write_lock(tmp_path / "out")
    before = path.read_bytes()
    assert main(["clean", "sample", "--output_folder", str(tmp_path / "out"), *TINY]) == 2
    told = capsys.readouterr().err
    assert f"process {os.getppid()} on host {platform.node()} (noisycorr clean)" in told and told.count("\n") == 1
    assert path.read_bytes() == before and [p.name for p in path.parent.iterdir()] == [NAME]
    twice = (locked(tmp_path / "other", "clean"), locked(tmp_path / "other", "clean"))
    with twice[0], pytest.raises(UsageError, match="this very process"), twice[1]:
        pass


@pytest.mark.parametrize("kind", ["dead", "another with its number", "silent elsewhere", "broken and old"])
def test_the_lock_of_a_dead_owner_is_taken_over(kind: str, tmp_path: Path):
    path = write_lock(tmp_path)
    if kind == "dead":
        write_lock(tmp_path, pid=dead_process())
    elif kind == "another with its number":
        write_lock(tmp_path, start=1)
    elif kind == "silent elsewhere":
        write_lock(tmp_path, host="elsewhere")
    else:
        path.write_text("{")
    if kind in ("silent elsewhere", "broken and old"):
        with pytest.raises(UsageError, match="is being written by"), locked(tmp_path, "clean"):
            pass
        os.utime(path, (time.time() - 3600,) * 2)
    with locked(tmp_path, "clean"):
        owner = read_owner(path)
        assert owner is not None and owner.pid == os.getpid()
    assert not list(tmp_path.iterdir())


def test_a_lock_that_was_taken_over_by_another_is_put_back(tmp_path: Path):
    path = write_lock(tmp_path)
    judged = Owner(pid=1, host="elsewhere", start=0, command="clean")
    lock._remove_dead(path, judged)
    assert read_owner(path) is not None and [p.name for p in tmp_path.iterdir()] == [NAME]


def test_the_heart_beats_and_silence_does_not_ask_our_clock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(lock, "BEAT", 0.02)
    with locked(tmp_path, "clean"):
        os.utime(tmp_path / NAME, (0, 0))
        waits = time.monotonic() + 60
        while (tmp_path / NAME).stat().st_mtime == 0 and time.monotonic() < waits:
            time.sleep(0.01)
        monkeypatch.setattr(time, "time", lambda: 1e12)
        assert lock.silence(tmp_path / NAME) < 60


def test_two_at_once_and_a_look_at_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    code = f"import time, pathlib\nfrom noisycorr.runtime.lock import locked\nwith locked(pathlib.Path({str(tmp_path)!r}), 'clean'):\n print('in', flush=True)\n time.sleep(60)"  # noqa: E501
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None and process.stdout.readline() == "in\n"
        with pytest.raises(UsageError, match=f"process {process.pid} on host"), locked(tmp_path, "clean"):
            pass
        assert main(["status", str(tmp_path)]) == 0
        assert f"at work: process {process.pid} on" in capsys.readouterr().out
    finally:
        process.kill()
        process.wait()
    assert main(["status", str(tmp_path)]) == 0
    assert f"dead, its lock will be taken over: process {process.pid}" in capsys.readouterr().out
    with locked(tmp_path, "clean"):
        pass


def test_status_of_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.Table.from_pylist(sample_rows(60)), tmp_path / "rows.parquet")
    out = str(tmp_path / "out")
    words = ["clean", str(tmp_path / "rows.parquet"), "--output_folder", out, *TINY, "--number_sample_per_shard", "20"]
    words = [word for word in words if word != "--quiet"]
    assert main([*words, "--stages", "embed"]) == 0
    (tmp_path / "out" / "stages" / "embed.json").unlink()
    (tmp_path / "out" / "pairs" / "00002_stats.json").unlink()
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")}
    capsys.readouterr()
    assert main(["status", out]) == 0
    told = capsys.readouterr().out
    assert "nobody writes it" in told and "embed: 2 of 3 pieces, 40 pairs" in told
    assert "decide: not done" in told and "the same command continues it" in told
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")}, "it changes nothing"
    assert main([*words, "--log_format", "json"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert {"time", "level", "message"} <= set(lines[0]) and any("embed: 60 pairs" in line["message"] for line in lines)
    assert main(["status", out]) == 0
    told = capsys.readouterr().out
    assert "embed: done, 3 of 3 pieces, 60 pairs" in told and "report: done" in told and "continues" not in told
    assert main(["status", str(tmp_path / "nowhere"), "--log-format", "json"]) == 2
    assert json.loads(capsys.readouterr().err)["level"] == "error"


def test_status_of_a_killed_job_that_goes_in_rounds(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "stages").mkdir()
    (tmp_path / "stages" / "prompt_started.json").write_text("{}")

    def told() -> str:
        assert main(["status", str(tmp_path)]) == 0
        return capsys.readouterr().out

    assert "prompt: begun\n" in told(), "it was killed in the first round"
    write_lock(tmp_path, pid=dead_process(), command="prompt")
    (tmp_path / "rounds").mkdir()
    for number in range(3):
        (tmp_path / "rounds" / f"{number:03d}.json").write_text("{}")
    assert "dead, its lock will be taken over" in told() and "prompt: begun, 3 rounds done, the last 0 s" in told()
    assert "not finished: the same command continues it" in told()
    (tmp_path / NAME).unlink()
    (tmp_path / "stages" / "prompt.json").write_text("{}")
    assert "prompt: done" in told() and "begun" not in told() and "not finished" not in told()


def test_a_job_killed_before_its_first_marker_is_not_finished(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    write_lock(tmp_path, pid=dead_process(), command="train")
    assert main(["status", str(tmp_path)]) == 0
    assert "not finished: the same command continues it" in capsys.readouterr().out


def test_progress_without_a_terminal_is_lines(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setattr(console, "LINE_EVERY", 0.01)
    for log_format in ("text", "json"):
        console.set_up(log_format=log_format)
        with console.bar(label="embed", total=50) as bar:
            for _ in range(5):
                time.sleep(0.012)
                bar.update(10)
        lines = capsys.readouterr().err.splitlines()
        assert lines and "\r" not in "".join(lines)
        if log_format == "json":
            last = json.loads(lines[-1])
            assert last["event"] == "progress" and last["stage"] == "embed" and last["total"] == 50
        else:
            assert lines[-1].startswith("embed: ") and " of 50 pairs, " in lines[-1]
    console.set_up(quiet=True)
    with console.bar(label="embed", total=50) as bar:
        time.sleep(0.012)
        bar.update(10)
    assert capsys.readouterr().err == ""
    logging.getLogger("noisycorr").handlers.clear()


def test_doctor(capsys: pytest.CaptureFixture[str], tmp_path: Path):
    assert main(["doctor", "--folder", str(tmp_path)]) == 0
    told = capsys.readouterr().out
    for word in ("noisycorr", "libraries", "disk", "embedded images", "device", "120 pairs were cleaned in"):
        assert word in told
    assert not list(tmp_path.iterdir())


def test_doctor_fails_where_the_self_test_does(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    from noisycorr.clean import pipeline as stages

    monkeypatch.setattr(stages, "clean", lambda *_, **__: 1 / 0)
    with pytest.raises(SystemExit) as ended:
        main(["doctor"])
    assert ended.value.code == 1 and "failed   self-test" in capsys.readouterr().out
