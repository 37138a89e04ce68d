"""Near-duplicates: against loops, chains, missing parts, stable names; copies of real photos."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageEnhance
from reference.duplicates_reference import alike

from noisycorr.clean.signals import duplicates
from noisycorr.clean.signals.duplicates import DuplicateGroups, Duplicates, group_names, keepers, near_duplicates
from noisycorr.data.readers.facts import perceptual_hash

DATA = Path(__file__).parents[2].parent / "shared" / "data"


def unit(rows: np.ndarray) -> np.ndarray:
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def random_rows(n: int, d: int = 32, seed: int = 0) -> np.ndarray:
    return unit(np.random.default_rng(seed).standard_normal((n, d)))


def find(
    image: np.ndarray,
    *,
    text: np.ndarray | None = None,
    hashes: list[str | None] | None = None,
    phash: list[int | None] | None = None,
    texts: list[str | None] | None = None,
    choice: Duplicates | None = None,
) -> DuplicateGroups:
    n = len(image)
    return near_duplicates(
        image,
        random_rows(n, seed=99) if text is None else text,
        hashes or [None] * n,
        phash,
        texts or [f"text {row}" for row in range(n)],
        choice=choice or Duplicates(),
    )


def test_groups_agree_with_loops():
    rng = np.random.default_rng(3)
    base = random_rows(40, 16, seed=1)
    which = rng.integers(40, size=150)
    image = unit(base[which] + rng.choice([0.01, 0.08, 0.2], size=(150, 1)) * rng.standard_normal((150, 16)))
    image[[7, 8]] = 0
    hashes: list[str | None] = [f"h{row}" if row % 10 else None for row in range(150)]
    hashes[8] = hashes[21] = hashes[77] = "same"
    phash: list[int | None] = [int(rng.integers(2**62)) if row % 4 else None for row in range(150)]
    for row in range(0, 148, 3):
        phash[row + 1] = None if phash[row] is None else int(phash[row]) ^ 5
    choice = Duplicates(image_threshold=0.97, phash_threshold=0.8, phash_distance=2, neighbors=149)
    group = find(image, hashes=hashes, phash=phash, choice=choice).image

    def same(one: int, other: int) -> bool:
        return alike(one, other, image, hashes, phash, 0.97, 2, 0.8)

    def copies(row: int) -> list[int]:
        return [
            other for other in range(150) if other == row or (hashes[row] is not None and hashes[other] == hashes[row])
        ]

    def centre(hub: int, members: list[int]) -> bool:
        return all(any(same(a, b) or a == b for a in copies(hub) for b in copies(row)) for row in members)

    assert group[8] == group[21] == group[77] == min(np.flatnonzero(group == group[8]))
    for number in np.unique(group[group >= 0]):
        members = np.flatnonzero(group == number).tolist()
        assert number == members[0] and len(members) > 1
        assert any(centre(hub, members) for hub in members)
    linked = {row for row in range(150) if any(same(row, other) for other in range(150) if other != row)}
    assert set(np.flatnonzero(group >= 0).tolist()) <= linked
    for row in linked - set(np.flatnonzero(group >= 0).tolist()):  # whom its likes have left for another centre
        assert all(group[other] >= 0 for other in range(150) if other != row and same(row, other))
    assert sum(group >= 0) > 40


def test_a_chain_is_not_one_group():
    angle = np.deg2rad(np.arange(0, 90, 3.0))
    image = np.stack([np.cos(angle), np.sin(angle)], axis=1).astype(np.float32)
    threshold = float(np.cos(np.deg2rad(7)))
    group = find(image, choice=Duplicates(image_threshold=threshold, neighbors=4)).image
    for number in np.unique(group[group >= 0]):
        rows = np.flatnonzero(group == number)
        assert np.rad2deg(angle[rows.max()] - angle[rows.min()]) <= 14.01
    assert len(np.unique(group)) >= 6 and (group >= 0).mean() > 0.8


@pytest.mark.parametrize("wide", [20_000, 5])
def test_clusters_larger_than_the_neighbourhood_hold_together(monkeypatch, wide):
    monkeypatch.setattr(duplicates, "WIDE", wide)
    image = random_rows(80)
    image[:12] = unit(image[:1] + 0.005 * random_rows(12, seed=5))
    group = find(image, choice=Duplicates(neighbors=4)).image
    assert (group[:12] == 0).all() and (group[12:] == -1).all()


def test_blank_pictures_share_a_hash_and_are_not_joined_by_it():
    image = random_rows(6)
    assert (find(image, phash=[0] * 6).image == -1).all()
    close = unit(image[:1] + 0.1 * random_rows(6, seed=2))
    assert 0.8 < float(close[0] @ close[1]) < 0.995
    choice = Duplicates(image_threshold=0.999)
    assert (find(close, phash=[1, 0, 3, 2, 1, 1], choice=choice).image == 0).all()
    assert (find(close, phash=[2**n * 7 for n in range(0, 60, 10)], choice=choice).image == -1).all()
    assert (find(close, phash=[None] * 6, choice=choice).image == -1).all()


def test_pairs_need_both_and_texts_compare_normalised():
    image, text = random_rows(8), random_rows(8, seed=1)
    image[1] = image[0]
    image[3] = image[2]
    text[5] = text[4] + 1e-3
    texts: list[str | None] = ["A red cat!", "a red CAT", "a dog", "a bird", "u", "v", None, ""]
    groups = find(image, text=text, texts=texts)
    assert groups.image.tolist() == [0, 0, 2, 2, -1, -1, -1, -1]
    assert groups.text.tolist() == [0, 0, -1, -1, 4, 4, -1, -1]
    assert groups.pair.tolist() == [0, 0, -1, -1, -1, -1, -1, -1]
    assert (groups.score[:2] <= 0.01).all() and (groups.score[2:] >= 0.5).all() and (groups.score <= 1).all()


def test_missing_images_and_texts_are_never_alike():
    image, text = random_rows(5), random_rows(5, seed=1)
    image[:3], text[:3] = 0, 0
    groups = find(image, text=text, phash=[0, 0, 0, 1, 2], texts=[None, "", " ", "a", "b"])
    assert (groups.image == -1).all() and (groups.text == -1).all() and groups.score[0] == 1
    unread = find(image, hashes=["x", "x", None, None, "y"])
    assert unread.image.tolist() == [0, 0, -1, -1, -1]
    empty = find(np.zeros((0, 4), np.float32), text=np.zeros((0, 4), np.float32))
    assert len(empty.pair) == 0


def test_keepers():
    group = np.array([0, 0, 0, 3, 3, -1])
    score = np.array([0.2, 0.9, 0.9, np.nan, -5.0, np.nan])
    area = np.array([10.0, 20.0, 30.0, 9.0, np.nan, 1.0])
    assert np.flatnonzero(keepers(group, score, area, keeper="best_score")).tolist() == [2, 4, 5]
    assert np.flatnonzero(keepers(group, score, area, keeper="largest")).tolist() == [2, 3, 5]
    assert np.flatnonzero(keepers(group, score, area, keeper="first")).tolist() == [0, 3, 5]
    assert keepers(np.zeros(0, int), np.zeros(0), np.zeros(0), keeper="best_score").shape == (0,)


def test_names_survive_a_shuffle_and_tell_the_kind():
    image, text = random_rows(9), random_rows(9, seed=1)
    image[1] = image[0]
    image[3] = image[2]
    texts: list[str | None] = ["cat", "cat", "dog", "cow", "hen", "hen", "ox", "ass", "sow"]
    uids = [f"uid{row * 7 % 9}" for row in range(9)]
    names, kinds = group_names(find(image, text=text, texts=texts), uids)
    assert kinds.tolist() == ["pair", "pair", "image", "image", "text", "text", None, None, None]
    assert names[0] == names[1] != names[2] == names[3] and len(names[0]) == 16 and names[8] is None
    for seed in range(5):
        order = np.random.default_rng(seed).permutation(9)
        shuffled = find(image[order], text=text[order], texts=[texts[row] for row in order])
        again, _ = group_names(shuffled, [uids[row] for row in order])
        assert again.tolist() == names[order].tolist()


def test_misuse_is_refused():
    for bad in (
        {"image_threshold": 1.1},
        {"text_threshold": float("nan")},
        {"phash_distance": 65},
        {"neighbors": 0},
        {"keeper": "last"},
    ):
        with pytest.raises(ValueError, match="expected"):
            Duplicates(**bad)
    with pytest.raises(ValueError, match="same number"):
        near_duplicates(random_rows(3), random_rows(3), [None] * 2, None, ["a"] * 3, choice=Duplicates())


def _copies(image: Image.Image) -> list[Image.Image]:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=40)
    small = image.resize((image.width * 3 // 5, image.height * 3 // 5), Image.Resampling.BICUBIC)
    return [Image.open(buffer).convert("RGB"), small, ImageEnhance.Brightness(image).enhance(1.15)]


@pytest.mark.skipif(not (DATA / "coco_mini").exists(), reason="the real data sets are not beside the project")
def test_copies_of_real_photos_are_found():
    import pyarrow.parquet as pq
    import torch

    from noisycorr.models.encoders.embedded import EmbeddedEncoder

    table = pq.read_table(DATA / "coco_mini" / "coco_mini.parquet", columns=["image"]).slice(0, 16)
    photos = [Image.open(io.BytesIO(data)).convert("RGB") for data in table["image"].to_pylist()]
    everything = [*photos, *(copy for photo in photos for copy in _copies(photo))]
    encoder = EmbeddedEncoder()
    image = encoder.image(torch.stack([encoder.preprocess(photo) for photo in everything])).numpy()
    original = np.concatenate([np.arange(16), np.repeat(np.arange(16), 3)])
    group = find(image, phash=[perceptual_hash(photo) for photo in everything]).image
    copies = np.arange(16, 64)
    assert (group[copies] == original[copies]).mean() > 0.9
    assert all(len(set(original[group == number])) == 1 for number in np.unique(group[group >= 0]))
