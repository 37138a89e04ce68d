"""`noisycorr classify train` that is killed by SIGKILL and continued by the same command, as a user does it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from pictures import COLOURS, write_pictures

from noisycorr.__main__ import main
from noisycorr.models.training.checkpoint import checkpoints

FILES = ("model.safetensors", "labels.parquet", "report.json")  # report.html names its folder


def test_killed_and_continued_leaves_the_same_bytes(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    table = write_pictures(tmp_path / "data", 40)
    lines = table.read_text().splitlines()
    colour = [line.split(",a ")[1].split()[0] for line in lines[1:]]
    given = [colour[(row + 3) % 40] if row % 5 == 0 else colour[row] for row in range(40)]  # one in five is wrong
    table.write_text("\n".join([f"{lines[0]},label", *(f"{a},{b}" for a, b in zip(lines[1:], given))]) + "\n")
    (tmp_path / "classes.yaml").write_text("".join(f"{name}: a {name} square\n" for name in COLOURS))
    assert main(["embed", str(table), "--output_folder", str(tmp_path / "run"), "--clip_model", "tiny", "--workers",
                 "1", "-q"]) == 0  # fmt: skip
    line = ["classify", "train", str(tmp_path / "run"), "--classes", str(tmp_path / "classes.yaml"), "--epochs", "40",
            "--batch_size", "8", "--embed_dim", "6", "--hidden", "8", "--save_every", "0",
            "--output_folder"]  # fmt: skip
    assert main([*line, str(tmp_path / "alone")]) == 0
    killed = tmp_path / "killed"
    paths = filter(None, [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH")])
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(paths)}
    process = subprocess.Popen([sys.executable, "-m", "noisycorr", *line, str(killed)], env=environment)
    started = time.monotonic()
    while not checkpoints(killed / "checkpoints"):  # 39 epochs are still to come
        assert process.poll() is None and time.monotonic() - started < 300
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not (killed / "stages" / "classify.json").exists(), "it was killed at work"
    capsys.readouterr()
    assert main([*line, str(killed)]) == 0
    assert "continues from step-" in capsys.readouterr().err
    for name in FILES:
        assert (tmp_path / "alone" / name).read_bytes() == (killed / name).read_bytes(), name
