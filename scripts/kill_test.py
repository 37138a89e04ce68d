"""Kill `noisycorr clean` at random moments, continue it with the same command, and compare it with a run left alone.

    python scripts/kill_test.py --times 20

Each round starts the command in a fresh folder, sends SIGKILL one to `--kills` times, and then lets it finish. Every
file that a run writes must then be the same byte by byte; only metrics.jsonl, which holds times, may differ. Prints a
table, and exits with 1 if anything differs.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import io
import random
import subprocess
import sys
import tarfile
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image, ImageDraw

COLOURS = {"red": (200, 50, 40), "green": (40, 150, 70), "blue": (40, 80, 200), "grey": (120, 120, 120)}
SHAPES = ("circle", "square", "triangle", "bar")
FREE = {"metrics.jsonl"}  # holds times


@dataclass
class Round:
    """What happened in one round.

    Attributes:
        kills: For each kill, how many files of the run were there.
        seconds: Length of the round.
        differences: Files that are not those of the run left alone.
    """

    kills: list[int] = field(default_factory=list)
    seconds: float = 0.0
    differences: list[str] = field(default_factory=list)


def write_source(folder: Path, *, tars: int = 4, pairs: int = 60, seed: int = 0) -> Path:
    """Shapes on white with their names, a fifth of them with another one's name, as webdataset shards.

    Args:
        folder: Created.
        tars: Number of shards.
        pairs: Pairs in each.
        seed: Equal seeds give equal bytes.

    Returns:
        The folder.
    """
    chance = random.Random(seed)
    folder.mkdir(parents=True)
    for number in range(tars):
        with tarfile.open(folder / f"{number:05d}.tar", "w") as tar:
            for pair in range(pairs):
                colour, shape = chance.choice(list(COLOURS)), chance.choice(SHAPES)
                text = f"a {colour} {shape} number {chance.randrange(50)}"
                if chance.random() < 0.2:
                    text = f"a {chance.choice(list(COLOURS))} {chance.choice(SHAPES)}"
                key = f"{number:05d}{pair:04d}"
                for suffix, data in (("png", _picture(colour, shape, chance)), ("txt", text.encode())):
                    member = tarfile.TarInfo(f"{key}.{suffix}")
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))
    return folder


def _picture(colour: str, shape: str, chance: random.Random) -> bytes:
    image = Image.new("RGB", (48, 48), (250, 250, 250))
    draw = ImageDraw.Draw(image)
    left, top, side = chance.randrange(12), chance.randrange(12), chance.randrange(20, 34)
    box = (left, top, left + side, top + side)
    if shape == "circle":
        draw.ellipse(box, fill=COLOURS[colour])
    elif shape == "square":
        draw.rectangle(box, fill=COLOURS[colour])
    elif shape == "triangle":
        draw.polygon([(left, top + side), (left + side, top + side), (left + side // 2, top)], fill=COLOURS[colour])
    else:
        draw.rectangle((left, top + side // 3, left + side, top + side // 2), fill=COLOURS[colour])
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def command(source: Path, output_format: str = "webdataset") -> list[str]:
    """The command that is killed: small pieces, a fast encoder, all stages and an export."""
    words = ["clean", str(source), "--output_folder", "out", "--clip_model", "tiny", "--number_sample_per_shard", "25"]
    return [sys.executable, "-m", "noisycorr", *words, "--output_format", output_format, "-q"]


def hashes(folder: Path) -> dict[str, str]:
    """SHA-256 of every file of a run by its path, temporary ones included, without those that hold times."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in FREE
    }


def finish(words: list[str], place: Path) -> float:
    """Run the command in a folder to its end; returns the seconds it took."""
    started = time.monotonic()
    done = subprocess.run(words, cwd=place, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"the command ended with {done.returncode} in {place}:\n{done.stderr}")
    return time.monotonic() - started


def kill_once(words: list[str], place: Path, files: int, chance: random.Random) -> int | None:
    """Start the command and kill it at a random moment of its work.

    Args:
        words: The command.
        place: Folder to run it in.
        files: How many files the run has in the end.
        chance: The moment: when some number of files has come or changed, and a few milliseconds on.

    Returns:
        Number of files of the run at that moment, or None if the command was done before.
    """
    state = _state(place)
    changes = chance.randint(1, max(1, files - len(state)))
    process = subprocess.Popen(words, cwd=place, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        while process.poll() is None and changes > 0:
            time.sleep(0.002)
            before, state = state, _state(place)
            changes -= len(set(state.items()) - set(before.items()))
        time.sleep(chance.uniform(0, 0.02))
    finally:
        process.kill()
        process.wait()
    return len(_state(place)) if process.returncode else None


def _state(place: Path) -> dict[str, int]:
    """Times of change of all files of a run, temporary ones too."""
    found = {}
    for path in (place / "out").rglob("*"):
        with contextlib.suppress(FileNotFoundError):  # it was there for a moment
            if path.is_file():
                found[str(path)] = path.stat().st_mtime_ns
    return found


def run_alone(work: Path, *, tars: int = 4) -> tuple[list[str], dict[str, str]]:
    """Make the source and run the command once without being killed.

    Args:
        work: An empty folder.
        tars: Shards of the source.

    Returns:
        The command, and the hashes of what it leaves.
    """
    words = command(write_source(work / "source", tars=tars))
    (work / "alone").mkdir()
    finish(words, work / "alone")
    return words, hashes(work / "alone" / "out")


def run_round(words: list[str], place: Path, expected: dict[str, str], kills: int, chance: random.Random) -> Round:
    """Kill the command at random moments, let it finish, and compare.

    Args:
        words: The command.
        place: Created.
        expected: Hashes of the run left alone.
        kills: How often to kill it, if it is not done before.
        chance: The moments; what stands on the disk then depends on the machine all the same.
    """
    place.mkdir()
    started, record = time.monotonic(), Round()
    for _ in range(kills):
        files = kill_once(words, place, len(expected), chance)
        if files is None:
            break
        record.kills.append(files)
    finish(words, place)
    found = hashes(place / "out")
    record.differences = sorted(name for name in {*expected, *found} if expected.get(name) != found.get(name))
    record.seconds = time.monotonic() - started
    return record


def main() -> int:
    """Run the rounds and print the table; 0 if nothing differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=20, help="rounds (default: 20)")
    parser.add_argument("--kills", type=int, default=4, help="most kills in a round (default: 4)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments (default: 0)")
    given = parser.parse_args()
    chance, rounds = random.Random(given.seed), []
    with tempfile.TemporaryDirectory() as folder:
        words, expected = run_alone(Path(folder))
        print(f"{len(expected)} files in a run left alone")
        print("round  kills  files at each kill        seconds  differences")
        for number in range(given.times):
            place = Path(folder) / f"round-{number:03d}"
            record = run_round(words, place, expected, chance.randint(1, given.kills), chance)
            rounds.append(record)
            files, different = " ".join(map(str, record.kills)), ", ".join(record.differences) or "none"
            print(f"{number:5d}  {len(record.kills):5d}  {files:24s}  {record.seconds:7.1f}  {different}", flush=True)
    bad = sum(bool(record.differences) for record in rounds)
    print(f"{len(rounds)} rounds, {sum(len(r.kills) for r in rounds)} kills, {bad} rounds with differences")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
