"""Injected noise: exact counts, undone by its truth, equal for equal seeds."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reference.noise_reference import texts_by_image

from noisycorr.data.noise.recipes import (
    GenericCaption,
    HardSwap,
    Injected,
    MissingText,
    NoiseFile,
    PartialCaption,
    RandomSwap,
    apply_source_rows,
    from_noise_index,
    save_noise_index,
)
from noisycorr.data.noise.swaps import normalise_text, text_ids
from noisycorr.runtime.errors import UsageError

WORDS = st.sampled_from(["cat", "Cat!", "dog", "red shirt", "blue shirt", "", "  ", None, "猫", "🍎", "🍊"])


def distinct(n: int) -> list[str | None]:
    return [f"text number {row}" for row in range(n)]


def features(n: int, d: int = 8, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((n, d)).astype(np.float32)


def undone(injected: Injected) -> list[str | None]:
    out: list[str | None] = [None] * len(injected.texts)
    for row, source in enumerate(injected.source_row.tolist()):
        out[source] = injected.texts[row]
    return out


@settings(max_examples=60, deadline=None)
@given(st.lists(WORDS, min_size=2, max_size=60), st.floats(0, 1), st.integers(0, 9), st.booleans())
def test_swaps_change_exactly_the_ratio_and_are_undone(texts, ratio, seed, hard):
    able = sum(bool(text and text.strip()) for text in texts)
    expected = round(ratio * able)
    recipe = HardSwap(ratio=ratio, seed=seed, neighbors=3) if hard else RandomSwap(ratio=ratio, seed=seed)
    if expected == 1:
        with pytest.raises(UsageError, match="needs 2"):
            recipe(texts, features=features(len(texts)))
        return
    injected = recipe(texts, features=features(len(texts)))
    assert injected.changed.sum() == expected
    assert np.array_equal(injected.changed, injected.source_row != np.arange(len(texts)))
    assert np.array_equal(np.sort(injected.source_row), np.arange(len(texts)))
    assert injected.texts == [texts[row] for row in injected.source_row]
    assert undone(injected) == texts
    new = [normalise_text(text) for text in injected.texts]
    old = [normalise_text(text) for text in texts]
    assert injected.wrong.tolist() == [a != b for a, b in zip(new, old)]


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(1, 5), min_size=2, max_size=20), st.floats(0, 1), st.integers(0, 9))
def test_image_unit_moves_all_texts_of_an_image_together(sizes, ratio, seed):
    image_ids = np.repeat(np.arange(len(sizes)), sizes)
    order = np.random.default_rng(seed).permutation(len(image_ids))  # rows of an image need not be consecutive
    image_ids = image_ids[order]
    texts = distinct(len(image_ids))
    expected = round(ratio * len(sizes))
    if expected == 1:
        return
    injected = RandomSwap(ratio=ratio, unit="image", seed=seed)(texts, image_ids=image_ids)
    came_from = [set(image_ids[injected.source_row[image_ids == image]].tolist()) for image in range(len(sizes))]
    assert all(len(images) == 1 for images in came_from)
    assert sum(images != {image} for image, images in enumerate(came_from)) == expected
    assert np.array_equal(injected.wrong, injected.changed)
    if len(set(sizes)) == 1:
        assert undone(injected) == texts


@pytest.mark.parametrize("ratio", [0.2, 0.4, 0.6])
def test_caption_unit_breaks_images_as_the_published_files_do(ratio):
    image_ids = np.repeat(np.arange(4000), 5)
    injected = RandomSwap(ratio=ratio, seed=3)(distinct(20000), image_ids=image_ids)
    whole = (image_ids[injected.source_row] == image_ids).reshape(-1, 5).all(1).mean()
    assert whole == pytest.approx((1 - ratio) ** 5, abs=0.02)
    assert np.array_equal(injected.wrong, injected.changed)  # never onto the same image
    image = RandomSwap(ratio=ratio, unit="image", seed=3)(distinct(20000), image_ids=image_ids)
    assert image.wrong.reshape(-1, 5).all(1).mean() == ratio


@pytest.mark.parametrize(
    "recipe",
    [
        RandomSwap(ratio=0.5, seed=4),
        RandomSwap(ratio=0.5, unit="image", seed=4),
        HardSwap(ratio=0.5, seed=4),
        PartialCaption(ratio=0.5, seed=4),
        GenericCaption(ratio=0.5, seed=4),
        MissingText(ratio=0.5, seed=4),
    ],
)
def test_equal_seeds_give_equal_noise_and_others_do_not(recipe):
    texts, ids, vectors = distinct(80), np.arange(80) // 2, features(80)
    one = recipe(texts, image_ids=ids, features=vectors)
    two = recipe(texts, image_ids=ids, features=vectors)
    other = type(recipe)(**{**vars(recipe), "seed": 5})(texts, image_ids=ids, features=vectors)
    assert one.texts == two.texts and np.array_equal(one.source_row, two.source_row)
    assert one.texts != other.texts
    assert one.changed.sum() == 40


def test_equal_titles_avoid_each_other_and_stay_right_where_they_cannot():
    texts: list[str | None] = ["Star!"] * 30 + ["star"] * 20 + distinct(70)
    injected = RandomSwap(ratio=1.0, seed=0)(texts)
    assert injected.changed.all() and injected.wrong.all()
    crowded = RandomSwap(ratio=1.0, seed=0)(["star"] * 50 + distinct(10))
    assert crowded.changed.all() and 16 <= crowded.wrong.sum() <= 20


def test_a_text_moved_to_a_caption_mate_is_not_wrong():
    injected = apply_source_rows(["a", "b", "c", "d"], np.array([1, 0, 3, 2]), np.array(["x", "x", "y", "z"], object))
    assert injected.changed.all()
    assert injected.wrong.tolist() == [False, False, True, True]


def test_hard_swap_stays_in_the_class():
    labels = np.array(["duck", "goose", "swan", "crow"]).repeat(50)
    injected = HardSwap(ratio=0.5, seed=1)(distinct(200), labels=labels)
    assert (labels[injected.source_row] == labels).all() and injected.wrong.sum() == 100


def test_hard_swap_of_lone_classes_takes_the_next_label():
    labels = np.array(["a", "a", "b/duck", "b/goose", "c/cup", "c/mug"])
    injected = HardSwap(ratio=1.0)(distinct(6), labels=labels)
    assert injected.source_row.tolist() == [1, 0, 3, 2, 5, 4]
    alone = HardSwap(ratio=1.0)(distinct(4), labels=np.array([7, 5, 5, 5]))
    assert alone.changed.all()


def test_hard_swap_by_features_finds_near_texts_and_excludes_equal_ones(monkeypatch):
    monkeypatch.setattr("noisycorr.data.noise.swaps.CELL", 64)  # so that sets are cut into cells
    centres = features(20, 16, seed=1) * 4
    which = np.arange(400) % 20
    vectors = centres[which] + features(400, 16, seed=2)
    texts: list[str | None] = [f"kind {kind} version {row // 40}" for row, kind in enumerate(which)]
    injected = HardSwap(ratio=0.8, seed=1, neighbors=3)(texts, features=vectors)
    assert injected.changed.sum() == 320 and injected.wrong.sum() == 320
    random = RandomSwap(ratio=0.8, seed=1)(texts)
    near = (which[injected.source_row] == which)[injected.changed].mean()
    far = (which[random.source_row] == which)[random.changed].mean()
    assert near > 0.7 > 0.2 > far
    with pytest.raises(UsageError, match="neither"):
        HardSwap(ratio=0.8)(texts)


def test_partial_caption_keeps_a_run_of_words():
    texts: list[str | None] = ["one two three four five six", "word", None] * 20
    injected = PartialCaption(ratio=1.0, keep=0.5, seed=2)(texts)
    assert injected.changed.sum() == 20 and not injected.wrong.any()
    kept = [text for text, changed in zip(injected.texts, injected.changed) if changed]
    assert all(len(str(text).split()) == 3 and str(text) in "one two three four five six" for text in kept)
    assert len(set(kept)) > 1
    assert injected.source_row.tolist() == list(range(60))


def test_generic_and_missing_texts():
    texts: list[str | None] = ["image", "a red cat", None, ""]
    generic = GenericCaption(ratio=1.0)(texts)
    assert generic.changed.tolist() == generic.wrong.tolist() == [True, True, False, False]
    assert generic.source_row.tolist() == [-1, -1, 2, 3] and generic.texts[0] != "image"
    missing = MissingText(ratio=1.0)(texts)
    assert missing.texts == ["", "", None, ""] and missing.source_row.tolist() == [-1, -1, 2, 3]
    assert missing.changed.tolist() == [True, True, False, False] and not missing.wrong.any()


@pytest.mark.parametrize("ratio", [-0.1, 1.1, float("nan")])
@pytest.mark.parametrize("recipe", [RandomSwap, HardSwap, PartialCaption, GenericCaption, MissingText])
def test_impossible_ratios_are_refused(recipe, ratio):
    with pytest.raises(ValueError, match="expected 0 to 1"):
        recipe(ratio=ratio)


def test_other_impossible_choices_are_refused():
    with pytest.raises(ValueError, match="unit"):
        RandomSwap(unit="word")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="keep"):
        PartialCaption(keep=1.0)
    with pytest.raises(ValueError, match="neighbors"):
        HardSwap(neighbors=0)
    with pytest.raises(ValueError, match="image_ids"):
        RandomSwap(ratio=1.0)(["a", "b"], image_ids=np.arange(3))


@pytest.mark.parametrize("unit", ["caption", "image"])
@pytest.mark.parametrize("per_image", [1, 5])
def test_noise_index_round_trip(tmp_path, unit, per_image):
    texts, image_ids = distinct(200), np.arange(200) // per_image
    recipe = RandomSwap(ratio=0.4, unit=unit, seed=6)
    injected = recipe(texts, image_ids=image_ids)
    path = tmp_path / "0.4_noise.npy"
    save_noise_index(path, injected, recipe, texts_per_image=per_image)
    again = NoiseFile(noise_file=str(path))(texts, image_ids=image_ids)
    index = np.load(path, allow_pickle=False).tolist()
    expected = texts_by_image(index, [str(text) for text in texts])
    for result in (injected, again):
        rows = [sorted(str(result.texts[row]) for row in np.flatnonzero(image_ids == image)) for image in expected]
        assert rows == list(expected.values())
    assert np.array_equal(injected.wrong, again.wrong)
    notes = json.loads(path.with_suffix(".json").read_text())
    assert notes["recipe"] == "RandomSwap" and notes["seed"] == 6 and notes["ratio"] == 0.4 and notes["unit"] == unit


def test_noise_index_of_images_equals_its_expansion():
    rng = np.random.default_rng(0)
    index = rng.permutation(40)
    assert np.array_equal(from_noise_index(index, 200), from_noise_index(index.repeat(5), 200))
    texts = [str(text) for text in distinct(200)]
    source = from_noise_index(index, 200)
    got = {image: sorted(texts[row] for row in source[image * 5 : image * 5 + 5]) for image in range(40)}
    assert got == texts_by_image(index.tolist(), texts)
    captions = rng.permutation(np.arange(200) // 5)
    source = from_noise_index(captions, 200)
    assert (source == np.arange(200)).sum() == (captions == np.arange(200) // 5).sum()


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (np.arange(7), "shape"),
        (np.arange(20).reshape(2, 10), "shape"),
        (np.arange(10) / 2, "type float64"),
        (np.array([], np.int64), "shape"),
        (np.arange(20), "shape"),
        (np.array([0, 1, 2, 3, 4, 5, 6, 7, 8, 8]), "no permutation"),
        (np.array([0, 1, 2, 3, 4, 5, 6, 7, 8, -1]), "no permutation"),
        (np.array([1, 1, 1, 1, 1, 2, 2, 2, 2, 2]), "no permutation"),
    ],
)
def test_unfit_noise_indices_are_refused(array, words):
    with pytest.raises(UsageError, match=words):
        from_noise_index(array, 10)


def test_hostile_noise_files_are_refused(tmp_path: Path):
    pickled = tmp_path / "pickled.npy"
    np.save(pickled, np.array([{"a": 1}], object), allow_pickle=True)
    archive = tmp_path / "archive.npy"
    with archive.open("wb") as file:
        np.savez(file, a=np.arange(3))
    (tmp_path / "empty.npy").write_bytes(b"")
    for name in ("pickled.npy", "archive.npy", "empty.npy", "absent.npy"):
        with pytest.raises(UsageError, match=name.replace(".", r"\.")):
            from_noise_index(tmp_path / name, 10)
    recipe = RandomSwap(ratio=1.0)
    save_noise_index(tmp_path / "x.npy", recipe(distinct(10)), recipe)
    np.save(tmp_path / "x.npy", np.arange(10))
    with pytest.raises(UsageError, match="checksum"):
        from_noise_index(tmp_path / "x.npy", 10)
    for other in (GenericCaption(ratio=1.0), PartialCaption(ratio=1.0)):
        with pytest.raises(UsageError, match="no permutation"):
            save_noise_index(tmp_path / "y.npy", other(distinct(10)), other)


def test_normalised_texts():
    assert normalise_text("  A  red-CAT!! ") == "a red cat" == normalise_text("a\u00a0Red\u3000cat。")
    assert normalise_text("🍎") != normalise_text("🍊") and normalise_text("?!") != normalise_text("...")
    assert normalise_text("STRASSE") == normalise_text("straße") and normalise_text("ｃａｔ") == "cat"
    assert text_ids(["a", "", "A.", None, "b"]).tolist() == [0, -1, 0, -1, 1]
