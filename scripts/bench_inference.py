"""Decoding, preprocessing and embedding beside clip-retrieval's inference: the same files, model and weights.

    pip install clip-retrieval                                      # in an environment of its own beside this one
    python scripts/bench_inference.py --data FILE.parquet           # 400 pictures, ViT-S-32-alt with random weights

Writes pictures and texts of a parquet file (columns image and title, or --text) into a folder and embeds them with
`noisycorr embed` and with clip-retrieval's `clip_inference`, each in a process of its own, one thread and one worker.
Loading the weights does not count: the time of 8 pictures is taken off. Cores are shared on most machines: compare CPU
seconds.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from apart import THREADS, spent

FEW = 8


def main() -> None:
    """One row for each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--text", default="title")
    parser.add_argument("--size", type=int, default=400)
    parser.add_argument("--model", default="ViT-S-32-alt", help="architecture of open_clip")
    parser.add_argument("--child", nargs=2, metavar=("WHO", "FOLDER"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        who, place = given.child[0], Path(given.child[1])  # its own prints would stand between ours
        (place / f"{who}.json").write_text(json.dumps(child(who, place, f"{given.model}/")), encoding="utf-8")
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write(folder, given)
        print(
            f"{given.size} pairs, {given.model}\n\n| | wall s | CPU s | pairs a CPU second |\n|---|--:|--:|--:|",
            flush=True,
        )
        rates = {}
        for who in ("noisycorr", "clip_retrieval"):
            if importlib.util.find_spec(who) is None:
                print(f"{who} is not installed and was left out: pip install clip-retrieval")
                continue
            words = [sys.executable, __file__, *sys.argv[1:], "--child", who, name]
            subprocess.run(words, check=True, stdout=subprocess.DEVNULL, env=os.environ | dict.fromkeys(THREADS, "1"))
            found = json.loads((folder / f"{who}.json").read_text(encoding="utf-8"))
            rates[who] = (given.size - FEW) / found["cpu"]
            print(f"| {who} | {found['wall']:.1f} | {found['cpu']:.1f} | {rates[who]:.1f} |", flush=True)
        if len(rates) == 2:
            print(f"\n{rates['noisycorr'] / rates['clip_retrieval']:.2f} times")


def write(folder: Path, given: argparse.Namespace) -> None:
    """The folders few/ and all/ of pictures with texts, and weights.pt of the model."""
    import open_clip
    import torch

    torch.manual_seed(0)
    torch.save(open_clip.create_model(given.model).state_dict(), folder / "weights.pt")
    rows = pq.read_table(given.data, columns=["image", given.text]).slice(0, given.size).to_pylist()
    for place, count in (("few", FEW), ("all", given.size)):
        (folder / place).mkdir()
        for number, row in enumerate(rows[:count]):
            body = row["image"]["bytes"] if isinstance(row["image"], dict) else row["image"]
            (folder / place / f"{number:06d}.jpg").write_bytes(body)
            (folder / place / f"{number:06d}.txt").write_text(str(row[given.text]), encoding="utf-8")


def child(who: str, folder: Path, model: str) -> dict[str, float]:
    """What all pictures took more than a few."""
    took = []
    for number, place in enumerate(("few", "few", "all")):  # once for what only the first run has to do
        started, before = time.perf_counter(), spent()
        (ours if who == "noisycorr" else theirs)(folder / place, folder / f"{who}-{number}", model, folder)
        took.append((time.perf_counter() - started, spent() - before))
    return {"wall": took[2][0] - took[1][0], "cpu": took[2][1] - took[1][1]}


def ours(source: Path, output: Path, model: str, folder: Path) -> None:
    """`noisycorr embed`."""
    from noisycorr import __main__ as cli

    spec = f"open_clip:{model}{folder / 'weights.pt'}"
    cli.main(["embed", str(source), "--output_folder", str(output), "--clip_model", spec, "--workers", "1", "-q"])
    if not list((output / "embeddings").glob("*.safetensors")):
        sys.exit("noisycorr embedded nothing")


def theirs(source: Path, output: Path, model: str, folder: Path) -> None:
    """clip-retrieval's inference, a side at a time: version 2.45 fails on a folder that holds both."""
    from clip_retrieval.clip_inference import clip_inference

    for image in (True, False):
        place = output / ("image" if image else "text")
        clip_inference(
            input_dataset=str(source), output_folder=str(place), input_format="files", enable_image=image,
            enable_text=not image, enable_metadata=False, num_prepro_workers=1, use_jit=False, batch_size=64,
            clip_model=f"open_clip:{model}{folder / 'weights.pt'}",
        )  # fmt: skip
    if not len(np.load(output / "image" / "img_emb" / "img_emb_0.npy")):
        sys.exit("clip-retrieval embedded nothing")


if __name__ == "__main__":
    main()
