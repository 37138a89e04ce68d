"""Every block of docs/training.md runs, in the order of the page, on small data and a small encoder."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from pictures import COLOURS, write_pictures
from region_data import SIZES, write_regions
from tiny_checkpoints import write_open_clip

from noisycorr.__main__ import main

PAGE = Path(__file__).parents[1] / "docs" / "training.md"
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SMALL = {"clean": ["--clip_model", "tiny"], "train": ["--batch_size", "12", "--warmup", "2", "--workers", "0"]}


def blocks() -> list[tuple[str, str]]:
    """Language and text of each block."""
    return BLOCK.findall(PAGE.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with everything that the page names, where its commands run one after the other."""
    folder = tmp_path_factory.mktemp("docs")
    for name, seed in (("pairs", 0), ("others", 5)):
        csv = write_pictures(folder / name, 48, seed=seed)
        lines = csv.read_text().splitlines()
        rows = [line.replace("images/", f"{name}/images/") for line in lines[1:]]
        rows = [f"{row},{next(colour for colour in COLOURS if colour in row)}" for row in rows]
        (folder / f"{name}.csv").write_text("\n".join([lines[0] + ",colour", *rows]) + "\n")
    (folder / "classes.txt").write_text("\n".join(COLOURS) + "\n")
    write_regions(folder / "f30k_precomp", per_image=2)
    order = np.arange(2 * SIZES["train"])
    order[:10] = np.roll(order[:10], 2)
    np.save(folder / "noise.npy", order // 2)
    write_open_clip(folder / "tiny")
    return folder


def run_line(line: str, folder: Path) -> None:
    """One command, with a small encoder in place of the large one, and less of everything."""
    words = shlex.split(line)
    assert words.pop(0) == "noisycorr", f"the page has a command that is not run: {line}"
    words = [f"open_clip:local-dir:{folder}/tiny/local" if "laion2b" in word else word for word in words]
    words = ["1" if words[at - 1] == "--epochs" and "whole" in words else word for at, word in enumerate(words)]
    more = SMALL.get(words[0], [])
    if "--region" in words:
        more = ["--word_dim", "12", "--sim_dim", "8", "--embed_dim", "12", "--batch_size", "10", "--warmup", "2"]
    if words[0] == "train" and "--config" in words:
        more = []
    assert main([*words, *more, "-q"]) == 0, line


def test_every_block_of_the_page_runs(place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.chdir(place)
    monkeypatch.syspath_prepend(place)
    kinds = [kind for kind, _ in blocks()]
    assert kinds.count("bash") >= 5 and kinds.count("python") >= 3 and set(kinds) == {"bash", "python"}
    for kind, text in blocks():
        if kind == "bash":
            for line in text.splitlines():
                run_line(line, place)
        elif named := re.match(r"# (\w+\.py)\n", text):
            (place / named[1]).write_text(text, encoding="utf-8")
        else:
            exec(compile(text, str(PAGE), "exec"), {})
    assert "torch.Size([1," in capsys.readouterr().out


def test_the_worked_example_is_short():
    _, first = blocks()[0], blocks()[1]
    lines = [line for _, text in (blocks()[0], first) for line in text.splitlines() if line.strip()]
    assert len(lines) < 10
