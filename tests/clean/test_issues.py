"""Issues of images and texts: facts, limits, boilerplate against class names, real sets."""

from __future__ import annotations

import io
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from reference.duplicates_reference import alikeness as slow_alikeness
from reference.duplicates_reference import phash as slow_phash

from noisycorr.clean.signals.image_issues import IMAGE_ISSUES, ImageLimits, image_issues
from noisycorr.clean.signals.text_issues import TEXT_ISSUES, TextLimits, _alikeness, shared_text_alikeness, text_issues
from noisycorr.data.noise.swaps import text_ids
from noisycorr.data.pairs import PAIRS
from noisycorr.data.readers.facts import image_facts, perceptual_hash

DATA = Path(__file__).parents[2].parent / "shared" / "data"
needs_data = pytest.mark.skipif(not DATA.exists(), reason="the real data sets are not beside the project")


def noise(width: int = 224, height: int = 224, seed: int = 0) -> Image.Image:
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (12, 12, 3), dtype=np.uint8))
    return small.resize((width, height), Image.Resampling.BICUBIC)


def table(*rows: dict[str, object]) -> pa.Table:
    good = {"key": "k", "image_hash": "x", "width": 200, "height": 100, "image_std": 50.0, "image_entropy": 6.0,
            "image_edges": 9.0, "image_frames": 1}  # fmt: skip
    return pa.Table.from_pylist([good | row for row in rows], schema=PAIRS)


def test_facts_equal_their_definitions():
    picture = noise(90, 60)
    grey = np.asarray(picture.convert("L"), float)
    std, entropy, edges, _ = image_facts(picture)
    assert std == pytest.approx(grey.std(), abs=1e-6)
    share = np.unique(grey, return_counts=True)[1] / grey.size
    assert entropy == pytest.approx(-(share * np.log2(share)).sum(), abs=1e-9)
    steps = [abs(grey[y, x] - grey[y, x + 1]) for y in range(60) for x in range(89)]
    steps += [abs(grey[y, x] - grey[y + 1, x]) for y in range(59) for x in range(90)]
    assert edges == pytest.approx(np.mean(steps), abs=1e-9)


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "P", "1", "CMYK", "I;16"])
def test_facts_of_odd_pictures(mode):
    for size in ((1, 1), (1, 300), (3000, 2), (700, 700)):
        std, entropy, edges, bits = image_facts(Image.new(mode, size))
        assert (std, entropy, edges) == (0, 0, 0) and 0 <= bits < 2**64
    assert image_facts(Image.new("RGB", (50, 50), "white"))[3] == image_facts(Image.new("RGB", (9, 80), "red"))[3]


def test_phash_equals_a_loop_and_the_package():
    picture = noise(32, 32, seed=3)
    assert perceptual_hash(picture) == slow_phash(np.asarray(picture.convert("L"), float))
    package = pytest.importorskip("imagehash", reason="the imagehash package is not installed")
    for width, height in ((224, 224), (90, 300), (1200, 800)):
        picture = noise(width, height, seed=width)
        assert bin(perceptual_hash(picture) ^ int(str(package.phash(picture)), 16)).count("1") <= 2


def test_phash_of_near_copies_is_near():
    bits = [perceptual_hash(noise(seed=seed)) for seed in range(20)]
    for seed in range(20):
        small = noise(seed=seed).resize((100, 100))
        assert bin(perceptual_hash(small) ^ bits[seed]).count("1") <= 2
        assert all(bin(bits[seed] ^ bits[other]).count("1") > 8 for other in range(seed))


def test_facts_are_fast():
    picture = noise()
    image_facts(picture)
    best = min(_seconds(lambda: [image_facts(picture) for _ in range(20)]) / 20 for _ in range(5))
    assert best < 0.003  # under 0.001 on an idle core


def _seconds(call) -> float:
    start = time.process_time()
    call()
    return time.process_time() - start


def test_image_codes_in_order_of_weight():
    facts = table(
        {},
        {"image_hash": None, "width": None, "height": None, "image_std": None, "problem": "image_missing"},
        {"width": None, "height": None, "problem": "image_unreadable"},
        {"image_hash": None, "width": None, "height": None, "problem": "image_too_large"},
        {"width": None, "height": None},  # bytes came, no decoder took them
        {"width": 20, "height": 300},
        {"width": 1001, "height": 200},
        {"width": 1000, "height": 200},
        {"image_std": 0.2, "width": 8, "height": 8, "image_entropy": 0.0, "image_edges": 0.0},
        {"image_entropy": 0.2, "image_edges": 0.2},
        {"image_entropy": 0.2, "image_edges": 5.0},
        {"image_std": None, "image_entropy": None, "image_edges": None, "image_frames": 3},
        {"problem": "text_missing"},
    )
    score, code = image_issues(facts, ImageLimits())
    assert code.tolist() == [
        None, "missing", "unreadable", "unreadable", "unreadable", "tiny", "extreme_aspect", None, "blank",
        "low_information", None, None, None,
    ]  # fmt: skip
    assert np.array_equal(score < 0.5, code != None) and score.dtype == np.float32  # noqa: E711
    assert score[0] == 1 and score[1] == score[2] == 0 and score[7] == 0.5
    assert set(code[code != None]) == set(IMAGE_ISSUES)  # noqa: E711
    known = np.arange(13) == 1
    assert image_issues(facts, ImageLimits(), present=known)[1][:3].tolist() == [None, None, "unreadable"]


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 500), st.integers(1, 500), st.floats(0, 100), st.floats(0, 8), st.floats(0, 50))
def test_image_score_is_below_half_exactly_for_issues(width, height, std, entropy, edges):
    facts = {"width": width, "height": height, "image_std": std, "image_entropy": entropy, "image_edges": edges}
    score, code = image_issues(table(facts), ImageLimits())
    expected = (
        "blank" if np.float32(std) < 1 else
        "tiny" if min(width, height) < 32 else
        "extreme_aspect" if max(width, height) > 5 * min(width, height) else
        "low_information" if np.float32(entropy) < 0.3 and np.float32(edges) < 0.3 else None
    )  # fmt: skip
    assert code[0] == expected and (score[0] < 0.5) == (expected is not None) and 0 <= score[0] <= 1


TEXTS: list[tuple[str | None, str | None]] = [
    ("A red cat on a mat.", None),
    (None, "empty"),
    (" \n\t", "empty"),
    ("\x00\x01\x02abc", "binary"),
    ("caf\ufffd table by the sea", None),
    ("\udcff\udcfe name", "binary"),
    ("https://example.com/a/b?c=1", "url"),
    ("www.example.com", "url"),
    ("someone@example.org", "url"),
    ("Nice red shoes for men and women, see example.com", None),
    ("DSC_0123.JPG", "file_name"),
    ("DSC01234", "file_name"),
    ("IMG-20200131-WA0007", "file_name"),
    ("IMG_2020", "file_name"),
    ("untitled-3.png", "file_name"),
    ("Untitled", "file_name"),
    ("holiday photo 3.jpeg", "file_name"),
    ("uploads/2020/cat.webp", "file_name"),
    ("Screenshot 2020-03-04 at 10.20.11.png", "file_name"),
    ("photo of a cat", None),
    ("Sunset photo taken in 2012", None),
    ("<a href='x'><img src='y'></a> cat", "markup"),
    ("&nbsp;&nbsp;&gt; cat", "markup"),
    ("Salt &amp; pepper shakers made of wood", None),
    ("[quote=me]hi[/quote]", "markup"),
    ("20040825", "digits"),
    ("12 / 34-56", "digits"),
    ("Boeing 747", None),
    ("M16", None),
    ("x", "too_short"),
    ("...", "too_short"),
    ("ox", None),
    ("猫", None),
    ("🍎", None),
    ("Ωμ", None),
    ("word " * 500, "too_long"),
    ("Mañana será otro día", None),
    ("Women's T-shirt, size 38/40", None),
]


@pytest.mark.parametrize(("text", "expected"), TEXTS)
def test_text_codes(text, expected):
    score, code = text_issues([text], TextLimits())
    assert code[0] == expected
    assert (score[0] < 0.5) == (expected is not None) and 0 <= score[0] <= 1


@settings(max_examples=200, deadline=None)
@given(st.one_of(st.none(), st.text(max_size=80)))
def test_any_text_is_judged(text):
    score, code = text_issues([text], TextLimits())
    assert (score[0] < 0.5) == (code[0] is not None) and 0 <= score[0] <= 1
    assert code[0] is None or code[0] in TEXT_ISSUES


@pytest.mark.parametrize("part", ["<", "a@", "a.", "x/.", "((1", "{{", "img ", "a b.", "&#", "[b=", "1", "www."])
@pytest.mark.parametrize("length", [250, 1_000_000])
def test_hostile_texts_take_no_time(part, length):
    text = (part * length)[:length]
    assert _seconds(lambda: text_issues([text], TextLimits())) < 1.0


def clustered(n_texts: int, each: int, d: int = 24) -> tuple[list[str | None], np.ndarray]:
    rng = np.random.default_rng(0)
    which = np.repeat(np.arange(n_texts), each)
    image = rng.standard_normal((n_texts, d))[which] * 0.8 + rng.standard_normal((len(which), d)) + 3.0
    return [f"class {name}" for name in which], image.astype(np.float32)


def test_alikeness_equals_a_loop():
    rng = np.random.default_rng(0)
    members, others = rng.integers(-2, 3, (7, 3)).astype(float), rng.integers(-2, 3, (9, 3)).astype(float)
    assert _alikeness(members, others) == pytest.approx(slow_alikeness(members, others), abs=1e-12)


def test_boilerplate_fires_on_unrelated_images_only():
    texts, image = clustered(30, 12)
    rng = np.random.default_rng(1)
    for row in rng.choice(len(texts), 40, replace=False):
        texts[row] = "Welcome to our shop!" if row % 2 else "welcome to our SHOP"
    alikeness = shared_text_alikeness(text_ids(texts), image)
    boiler = np.array([str(text).lower().startswith("welcome") for text in texts])
    assert (alikeness[boiler] < 0.6).all() and len(np.unique(alikeness[boiler])) == 1
    assert np.nanmin(alikeness[~boiler]) > 0.65
    score, code = text_issues(texts, TextLimits(), alikeness=alikeness)
    assert set(code[boiler]) == {"boilerplate"} and set(code[~boiler]) == {None}
    assert (score[boiler] < 0.5).all() and (score[~boiler] >= 0.5).all()
    assert set(text_issues(texts, TextLimits(boilerplate_alikeness=0), alikeness=alikeness)[1]) == {None}
    parts = [image[:100].astype(np.float16), image[100:].astype(np.float16)]
    assert np.allclose(alikeness, shared_text_alikeness(text_ids(texts), parts), atol=0.01, equal_nan=True)


def test_copies_of_one_image_are_one_image():
    texts, image = clustered(30, 12)
    texts += ["our new banner"] * 12
    image = np.concatenate([image, np.repeat(image[:4], 3, axis=0)])
    groups = np.full(len(texts), -1)
    groups[-12:] = np.repeat([0, 1, 2, 3], 3)
    assert not np.isnan(shared_text_alikeness(text_ids(texts), image)[-1])
    assert np.isnan(shared_text_alikeness(text_ids(texts), image, image_groups=groups)[-1])
    assert shared_text_alikeness(text_ids(texts), image, image_groups=groups, at_least=4)[-1] > 0


def test_nothing_to_compare_is_no_boilerplate():
    _, image = clustered(1, 20)
    assert np.isnan(shared_text_alikeness(text_ids(["dog"] * 20), image)).all()  # there is no other text
    assert np.isnan(shared_text_alikeness(text_ids(["dog"] * 20), np.zeros_like(image))).all()
    assert np.isnan(shared_text_alikeness(text_ids([None, ""] * 10), image)).all()
    assert shared_text_alikeness(text_ids([]), np.zeros((0, 4), np.float32)).shape == (0,)


def test_impossible_limits_are_refused():
    with pytest.raises(ValueError, match="url_share"):
        TextLimits(url_share=1.5)
    with pytest.raises(ValueError, match="min_characters"):
        TextLimits(min_characters=-1)
    with pytest.raises(ValueError, match="max_aspect"):
        ImageLimits(max_aspect=0.5)
    with pytest.raises(ValueError, match="blank_std"):
        ImageLimits(blank_std=float("nan"))


def photos(name: str, column: str, rows: int) -> tuple[list[Image.Image], list[str | None]]:
    import pyarrow.parquet as pq

    read = pq.read_table(DATA / name, columns=["image", column]).slice(0, rows)
    return [Image.open(io.BytesIO(data)).convert("RGB") for data in read["image"].to_pylist()], read[column].to_pylist()


@needs_data
@pytest.mark.parametrize(
    ("name", "column", "most"),
    [
        ("coco_mini/coco_mini.parquet", "key", 0),
        ("caltech101/val.parquet", "key", 0),
        ("fashion/val.parquet", "key", 1),
    ],
)
def test_real_photos_have_few_issues(name, column, most):
    images, _ = photos(name, column, 300)
    facts = [dict(zip(("image_std", "image_entropy", "image_edges"), image_facts(image))) for image in images]
    rows = [fact | {"width": image.width, "height": image.height} for fact, image in zip(facts, images)]
    assert np.sum(image_issues(table(*rows), ImageLimits())[1] != None) <= most  # noqa: E711


@needs_data
def test_real_texts_have_few_issues():
    import pyarrow.parquet as pq

    for name, column, most in (
        ("fashion/train-000.parquet", "title", 0), ("openclipart/openclipart.parquet", "title", 8),
        ("caltech101/train.parquet", "class_name", 0), ("emoji/emoji.parquet", "label_ja", 0),
    ):  # fmt: skip
        _, code = text_issues(pq.read_table(DATA / name, columns=[column])[column].to_pylist(), TextLimits())
        assert np.sum(code != None) <= most, (name, code[code != None])  # noqa: E711


@needs_data
def test_class_names_of_real_photos_are_no_boilerplate():
    import torch

    from noisycorr.models.encoders.embedded import EmbeddedEncoder

    images, names = photos("caltech101/train.parquet", "class_name", 160)
    encoder = EmbeddedEncoder()
    image = encoder.image(torch.stack([encoder.preprocess(photo.resize((96, 96))) for photo in images])).numpy()
    for row in range(0, 160, 10):
        names[row] = "Photo courtesy of the museum"
    alikeness = shared_text_alikeness(text_ids(names), image)
    _, code = text_issues(names, TextLimits(), alikeness=alikeness)
    assert set(np.flatnonzero(code == "boilerplate").tolist()) == set(range(0, 160, 10))
    assert np.isfinite(alikeness).sum() > 100
