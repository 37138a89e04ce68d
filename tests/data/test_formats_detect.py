"""Which columns are picked, and values that become JSON."""

from __future__ import annotations

import json
import math

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from noisycorr.data.readers import Source
from noisycorr.data.readers.detect import kind_of_arrow, kind_of_values, merge_kinds, pick_columns
from noisycorr.data.readers.rows import DEPTH_LIMIT, TEXT_LIMIT, clean_text, json_value, key_text
from noisycorr.runtime.errors import UsageError, listed

SOURCE = Source(path="x")


@pytest.mark.parametrize(
    ("kinds", "image", "text", "key"),
    [
        ({"key": "string", "image": "bytes", "title": "string"}, "image", "title", "key"),
        ({"URL": "string", "jpg": "bytes", "TEXT": "string"}, "jpg", "TEXT", None),
        ({"caption": "string", "text": "string", "image": "image"}, "image", "text", None),
        ({"image": "string", "image_bytes": "bytes", "caption": "string"}, "image_bytes", "caption", None),
        ({"filepath": "string", "title": "string", "filename": "string"}, "filepath", "title", "filename"),
        ({"filename": "string", "description": "string", "id": "integer"}, "filename", "description", "id"),
        ({"image": "bytes", "label": "integer", "class_name": "string"}, "image", "class_name", None),
        ({"image": "bytes", "label": "string", "label_de": "string"}, "image", "label", None),
        ({"image": "bytes", "clean_label": "integer", "aggre_label": "integer"}, "image", "aggre_label", None),
        ({"image": "bytes", "a_label": "integer", "b_label": "string"}, "image", "b_label", None),
        ({"image": "bytes", "truth_text": "string", "worse_label": "integer"}, "image", "worse_label", None),
        ({"image": "bytes", "text": "other", "captions": "strings"}, "image", "captions", None),
        ({"image": "bytes", "text": "string", "key": "string", "uid": "string"}, "image", "text", "uid"),
        (
            {"image": "bytes", **dict.fromkeys(("text", "uid", "key", "p_clean", "verdict"), "string")},
            "image",
            "text",
            "key",
        ),
        ({"SAMPLE_ID": "integer", "uid": "string", "image": "bytes", "Text": "null"}, "image", "Text", "uid"),
        ({"image": "bytes", "text": "string", "image_id": "integer", "__key__": "string"}, "image", "text", "__key__"),
        ({"image": "bytes", "text": "integer", "n": "integer"}, "image", "text", None),
        ({"image": "bytes", "text": "integer", "label": "integer"}, "image", "label", None),
    ],
)
def test_names_are_picked_in_order(kinds: dict[str, str], image: str, text: str, key: str | None) -> None:
    columns = pick_columns(kinds, SOURCE)
    assert (columns.image, columns.text, columns.key) == (image, text, key)


def test_given_names_come_first() -> None:
    kinds = {"image": "bytes", "photo": "bytes", "text": "string", "alt": "string", "key": "string", "n": "integer"}
    columns = pick_columns(kinds, Source(path="x", image_col="photo", caption_col="alt", id_col="n"))
    assert (columns.image, columns.text, columns.key) == ("photo", "alt", "n")


def test_clean_labels_are_not_data() -> None:
    with pytest.raises(UsageError, match="No text column"):
        pick_columns({"image": "bytes", "clean_label": "integer", "truth_label": "string"}, SOURCE)


@given(
    st.dictionaries(st.sampled_from(["truth_text", "TRUTH_caption", "Truth_image", "truth_x_label"]), st.just("string"))
)
def test_truth_is_never_picked(truth: dict[str, str]) -> None:
    columns = pick_columns({**truth, "image": "bytes", "name": "string"}, SOURCE)
    assert (columns.image, columns.text, columns.url, columns.key) == ("image", "name", None, None)


@pytest.mark.parametrize(
    ("type_", "kind"),
    [
        (pa.string(), "string"), (pa.large_string(), "string"), (pa.string_view(), "string"), (pa.binary(), "bytes"),
        (pa.large_binary(), "bytes"), (pa.dictionary(pa.int32(), pa.string()), "string"), (pa.uint8(), "integer"),
        (pa.list_(pa.string()), "strings"), (pa.list_(pa.int32()), "other"), (pa.null(), "null"),
        (pa.struct([("bytes", pa.binary()), ("path", pa.string())]), "image"), (pa.float32(), "other"),
        (pa.struct([("a", pa.int8())]), "other"), (pa.bool_(), "other"),
    ],
)  # fmt: skip
def test_kinds_of_arrow(type_: pa.DataType, kind: str) -> None:
    assert kind_of_arrow(type_) == kind


def test_kinds_of_values() -> None:
    assert kind_of_values(["a", None, ""]) == "string"
    assert kind_of_values(["1", "-2"]) == "string"
    assert kind_of_values(["1", "-2", ""], digits_are_numbers=True) == "integer"
    assert kind_of_values(["1", "x"], digits_are_numbers=True) == "string"
    assert kind_of_values([["a"], []]) == "strings"
    assert kind_of_values([True]) == kind_of_values([{"a": 1}]) == kind_of_values([1.5]) == "other"
    assert kind_of_values([]) == kind_of_values([None, math.nan]) == "null"
    assert merge_kinds(["null", "integer"]) == "integer"
    assert merge_kinds(["strings", "string"]) == "strings"


def test_text_is_kept_as_it_came() -> None:
    assert clean_text(" <b>a</b>\n") == (" <b>a</b>\n", None)
    assert clean_text(3) == ("3", None)
    assert clean_text(math.nan) == clean_text("\t\n ") == clean_text(None) == (None, "text_missing")
    assert clean_text("x" * TEXT_LIMIT) == ("x" * TEXT_LIMIT, None)
    assert clean_text("x" * (TEXT_LIMIT + 1)) == ("x" * TEXT_LIMIT, "text_too_long")
    assert clean_text(b"\xff") == ("\ufffd", "text_not_utf8")


def test_keys() -> None:
    assert key_text(None, 12) == key_text("", 12) == key_text(math.nan, 12) == "000000012"
    assert (key_text(3.0, 0), key_text(7, 0), key_text("a/b", 0), key_text(b"k", 0)) == ("3", "7", "a/b", "k")


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters()) | st.binary() | st.datetimes(),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(st.characters(), max_size=3), inner, max_size=3)
    ),
    max_leaves=10,
)


@given(anything)
def test_any_value_becomes_strict_json(value: object) -> None:
    json.dumps(json_value(value), allow_nan=False, ensure_ascii=False).encode("utf-8")


def test_nesting_is_bounded() -> None:
    deep: list[object] = []
    for _ in range(5000):
        deep = [deep]
    assert f"nested deeper than {DEPTH_LIMIT}" in json.dumps(json_value(deep))


def test_names_of_the_data_stay_on_one_short_line() -> None:
    assert listed(["b", "a", ""]) == "(none), a, b" and listed([]) == "none"
    assert str(UsageError(listed(["x\ny\x1b[31m\ud800", "é"]))) == "x\\ny\\x1b[31m\\ud800, é"
    assert listed(["n" * 61, "n" * 60]) == f"{'n' * 60}, {'n' * 59}…"
    assert listed(f"{i:03}" for i in range(45)).endswith("039 and 5 more")
