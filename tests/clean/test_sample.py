"""What ships with the package is what was looked at, to the byte."""

import hashlib
from pathlib import Path

import noisycorr

PINNED = {
    "openclipart.parquet": "c9e3ecc2fc2084b279a67b916cba55ea2eb9937805fa388d5ba09e541d2b07d1",
    "ATTRIBUTION.md": "6cf649f9c1274298ddaa7d954d0fdbe7591f72192248657d2ef8cd40ed035cd1",
}


def test_the_shipped_sample_has_the_pinned_hashes():
    folder = Path(noisycorr.__file__).parent / "data" / "sample"
    found = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir() if path.is_file()}
    assert found == PINNED
