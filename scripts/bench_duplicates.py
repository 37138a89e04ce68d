"""Finding near-duplicate images beside imagededup and cleanvision, on the same files with planted copies.

    pip install imagededup cleanvision                              # in an environment of their own beside this one
    python scripts/bench_duplicates.py --data DIR                   # 20,000 files from the parquet sets below DIR
    python scripts/bench_duplicates.py --data DIR --size 4000 --finders clean,imagededup

A fifth of the files are copies of one of the others: scaled to 60 %, JPEG quality 40, 5 % cropped, darker or brighter.
A link is a pair of files that a finder calls near-duplicates. A link between a copy and its original is right, any
other link of a copy is wrong; links among originals are not judged, because many of them are real. Finders: `clean`
(decoding, encoder, perceptual hash and search as `noisycorr clean` does), `hash` (our perceptual hash and a search of
all hashes alone), `imagededup` (PHash with its default distance, and with the distance of best F1, chosen on the
answer), `cleanvision` (its near_duplicates). Each runs in a process of its own, on one thread and one worker; imports
and loading of weights do not count. Cores are shared on most machines: compare CPU seconds.
"""

from __future__ import annotations

import argparse
import importlib.util
import io
import itertools
import json
import random
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from apart import apart, spent
from PIL import Image, ImageEnhance

PEERS = ("imagededup", "cleanvision")
FINDERS = ("hash", "clean", *PEERS)
Links = set[tuple[str, str]]


def main() -> None:
    """One row for each finder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder of parquet files with a column image")
    parser.add_argument("--sets", default="caltech101,coco_mini,emoji,fashion,openclipart", help="folders in --data")
    parser.add_argument("--size", type=int, default=20_000)
    parser.add_argument("--finders", default=",".join(FINDERS))
    parser.add_argument("--distance", type=int, default=6, help="bits that hashes of `hash` may differ in (default: 6)")
    parser.add_argument("--clip_model", default="embedded", help="encoder of `clean`")
    parser.add_argument("--child", nargs=2, metavar=("FINDER", "FOLDER"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        print(json.dumps(child(given.child[0], Path(given.child[1]), given)))
        return
    if given.data is None:
        parser.error("--data is needed: a folder of parquet files with images")
    with tempfile.TemporaryDirectory() as name:
        answer = plant([given.data / one for one in given.sets.split(",")], Path(name), given.size)
        print(f"{given.size:,} files, {len(answer):,} planted copies\n", flush=True)
        print("| finder | seconds | CPU s | recall | precision | F1 |\n|---|--:|--:|--:|--:|--:|", flush=True)
        for finder in given.finders.split(","):
            if finder in PEERS and importlib.util.find_spec(finder) is None:
                print(f"{finder} is not installed and was left out: pip install {finder}")
                continue
            found = apart(__file__, *sys.argv[1:], "--child", finder, name)
            rows = {label: score({tuple(link) for link in links}, answer) for label, links in found["links"].items()}
            best = max(rows, key=lambda label: rows[label][2])
            for label in dict.fromkeys([next(iter(rows)), best]):
                cells = " | ".join(f"{value:.3f}" for value in rows[label])
                print(f"| {label} | {found['seconds']:.1f} | {found['cpu']:.1f} | {cells} |", flush=True)


def plant(sets: list[Path], folder: Path, size: int) -> Links:
    """Write the files; returns the links of copies with their originals."""
    chance = random.Random(0)
    pictures = list(itertools.islice(_pictures(sets), size - size // 5))
    if len(pictures) < size - size // 5:
        sys.exit(f"the sets hold {len(pictures)} different pictures of 48 px and more, too few for --size {size}")
    names = []
    for number, body in enumerate(pictures):
        names.append(f"{number:06d}.{'jpg' if body[:2] == bytes([255, 216]) else 'png'}")
        (folder / names[-1]).write_bytes(body)
    answer = set()
    for number, original in enumerate(chance.sample(range(len(pictures)), size // 5)):
        copy = f"copy{number:06d}.jpg"
        _changed(Image.open(io.BytesIO(pictures[original])).convert("RGB"), number % 5).save(
            folder / copy, "JPEG", quality=40 if number % 5 == 1 else 90
        )
        answer.add((names[original], copy))
    return answer


def _pictures(sets: list[Path]) -> Iterable[bytes]:
    """Different pictures of the sets, in turn, so that each set gives an equal share while it lasts."""
    seen: set[bytes] = set()
    turns = [_of_set(folder) for folder in sets]
    while turns:
        for turn in list(turns):
            body = next(turn, None)
            if body is None:
                turns.remove(turn)
            elif body not in seen:
                seen.add(body)
                yield body


def _of_set(folder: Path) -> Iterable[bytes]:
    for path in sorted(folder.glob("*.parquet")):
        if "image" not in pq.read_schema(path).names:
            continue
        for value in pq.read_table(path, columns=["image"]).column(0).to_pylist():
            body = value["bytes"] if isinstance(value, dict) else value
            if body and min(Image.open(io.BytesIO(body)).size) >= 48:
                yield body


def _changed(image: Image.Image, kind: int) -> Image.Image:
    width, height = image.size
    if kind == 0:
        return image.resize((max(1, width * 6 // 10), max(1, height * 6 // 10)))
    if kind == 2:
        return image.crop((width // 40, height // 40, width - width // 40, height - height // 40))
    return image if kind == 1 else ImageEnhance.Brightness(image).enhance(0.8 if kind == 3 else 1.15)


def score(found: Links, answer: Links) -> tuple[float, float, float]:
    """Recall, precision and F1 of the links of copies."""
    found = {pair for pair in found if any(name.startswith("copy") for name in pair)}
    right = len(found & answer)
    recall, precision = right / len(answer), right / max(1, len(found))
    return recall, precision, 2 * recall * precision / max(1e-12, recall + precision)


def child(finder: str, folder: Path, given: argparse.Namespace) -> dict[str, object]:
    """Links of one finder by the name of its setting, and what it took."""
    finders: dict[str, Callable[[list[Path], argparse.Namespace], Callable[[], dict[str, Iterable[tuple[str, str]]]]]]
    finders = {"hash": by_hash, "clean": by_clean, "imagededup": by_imagededup, "cleanvision": by_cleanvision}
    work = finders[finder](sorted(folder.iterdir()), given)
    started, before = time.perf_counter(), spent()
    links = work()
    took = {"seconds": time.perf_counter() - started, "cpu": spent() - before}
    return {**took, "links": {name: sorted({tuple(sorted(pair)) for pair in found}) for name, found in links.items()}}


def by_hash(files: list[Path], given: argparse.Namespace) -> Callable[[], dict[str, Iterable[tuple[str, str]]]]:
    """The perceptual hash alone."""
    import faiss

    from noisycorr.data.readers.facts import perceptual_hash
    from noisycorr.data.readers.images import decode_image

    def work() -> dict[str, Iterable[tuple[str, str]]]:
        hashes = np.array([perceptual_hash(decode_image(path).image) for path in files], ">u8")
        bits = np.frombuffer(hashes.tobytes(), np.uint8).reshape(-1, 8)
        index = faiss.IndexBinaryFlat(64)
        index.add(bits)
        ends, _, found = index.range_search(bits, given.distance + 1)
        one = np.repeat(np.arange(len(files)), np.diff(ends.astype(np.int64)))
        pairs = ((files[a].name, files[b].name) for a, b in zip(one[one < found], found[one < found]))
        return {f"noisycorr, hash alone, {given.distance} bits": pairs}

    return work


def by_clean(files: list[Path], given: argparse.Namespace) -> Callable[[], dict[str, Iterable[tuple[str, str]]]]:
    """What `clean` does with pictures: hash of the bytes, perceptual hash, features, search, groups."""
    import torch

    from noisycorr.clean.embed import content_hash
    from noisycorr.clean.signals.duplicates import Duplicates, near_duplicates
    from noisycorr.data.readers.facts import image_facts
    from noisycorr.data.readers.images import decode_image, read_image
    from noisycorr.models.encoders import load_encoder

    encoder = load_encoder(given.clip_model, device=torch.device("cpu"))

    def work() -> dict[str, Iterable[tuple[str, str]]]:
        features, hashes, known = [], [], []
        for start in range(0, len(files), 64):
            bodies = [read_image(path) for path in files[start : start + 64]]
            pictures = [decode_image(body).image for body in bodies]
            known += [content_hash(body) for body in bodies]
            hashes += [image_facts(picture)[3] for picture in pictures]
            batch = torch.stack([encoder.preprocess(picture) for picture in pictures])
            features.append(encoder.image(batch).numpy().astype(np.float16))
        texts = [None] * len(files)
        groups = near_duplicates(features, np.zeros((len(files), 1), np.float16), known, hashes, texts,
                                 choice=Duplicates(), threads=1).image  # fmt: skip
        members: dict[int, list[str]] = {}
        for row, group in enumerate(groups.tolist()):
            members.setdefault(group, []).append(files[row].name)
        members.pop(-1, None)
        return {"noisycorr clean": {pair for group in members.values() for pair in itertools.combinations(group, 2)}}

    return work


def by_imagededup(files: list[Path], given: argparse.Namespace) -> Callable[[], dict[str, Iterable[tuple[str, str]]]]:
    """PHash; times are those of its default distance."""
    from imagededup.methods import PHash

    finder, seen = PHash(verbose=False), {}

    def work() -> dict[str, Iterable[tuple[str, str]]]:
        encodings = finder.encode_images(image_dir=files[0].parent, num_enc_workers=0)
        found = finder.find_duplicates(encoding_map=encodings, scores=True, num_dist_workers=0)
        for distance in (10, 8, 6, 4, 2, 0):
            seen[f"imagededup PHash, {distance} bits"] = {
                (one, other) for one, others in found.items() for other, bits in others if bits <= distance
            }
        return seen

    return work


def by_cleanvision(files: list[Path], given: argparse.Namespace) -> Callable[[], dict[str, Iterable[tuple[str, str]]]]:
    """Its near-duplicates and, as the two are apart there, its exact ones."""
    from cleanvision import Imagelab

    def work() -> dict[str, Iterable[tuple[str, str]]]:
        lab = Imagelab(data_path=str(files[0].parent), verbose=False)
        lab.find_issues({"near_duplicates": {}, "exact_duplicates": {}}, n_jobs=1, verbose=False)
        sets = [group for kind in ("near_duplicates", "exact_duplicates") for group in lab.info[kind]["sets"]]
        names = [[Path(path).name for path in group] for group in sets]
        return {"cleanvision": {pair for group in names for pair in itertools.combinations(group, 2)}}

    return work


if __name__ == "__main__":
    main()
