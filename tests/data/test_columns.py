"""Columns that stay Arrow: they read like lists, and their numbers are those of a dictionary."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from noisycorr.clean.signals import text_issues
from noisycorr.clean.signals.text_issues import TextLimits
from noisycorr.data import columns
from noisycorr.data.columns import Column, codes, rows_of
from noisycorr.data.noise import swaps as noise_swaps

ASCII = st.text(alphabet=st.characters(min_codepoint=0, max_codepoint=127), max_size=60)
ODD = st.sampled_from(["DSC_0001.JPG", "www.x.org", "untitled (3)", "&amp; <b>", "12345", "download", "a.b", "x://y"])


def column(values: list) -> Column:
    """In three pieces, one of them empty."""
    pieces = [pa.chunked_array([part], pa.string()) for part in (values[:2], [], values[2:])]
    return Column([lambda piece=piece: piece for piece in pieces], [len(piece) for piece in pieces])


def slow_codes(values: list) -> list[int]:
    """From the definition."""
    seen = list(dict.fromkeys(value for value in values if value is not None))
    return [-1 if value is None else seen.index(value) for value in values]


@given(st.lists(st.one_of(st.none(), st.text(max_size=2)), max_size=30))
def test_codes_are_places_in_order_of_appearance(values: list) -> None:
    assert codes(values).tolist() == slow_codes(values)


def test_codes_of_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(columns, "BLOCK", 2)
    values = ["b", None, "a", "b", "\ud800", "a", "", "\ud800"]
    assert codes(values).tolist() == [0, -1, 1, 0, 2, 1, 3, 2]
    assert codes(iter(values)).tolist() == slow_codes(values)
    whole = ["b", None, "a", "b", "", None]
    assert codes(column(whole)).tolist() == slow_codes(whole)
    assert codes([]).dtype == codes(column([])).dtype == np.int64


def test_a_column_reads_like_a_list(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(columns, "BLOCK", 2)
    values = ["one", None, "three", "four", "five"]
    found = column(values)
    assert list(found) == values and len(found) == 5
    assert [found[row] for row in range(5)] == values
    assert found[1:4] == values[1:4] and found[-1] == "five"
    assert list(Column.of(pa.chunked_array([values]))) == values
    rows = np.array([4, 0, 1])
    assert found.take(rows) == rows_of(found, rows) == rows_of(values, rows) == ["five", "one", None]


@given(st.one_of(ASCII, ODD))
def test_ascii_texts_are_judged_like_all_others(text: str) -> None:
    folded = text.casefold()
    slow = noise_swaps._gaps().sub(" ", folded).strip() or folded.strip()
    assert noise_swaps.normalise_text(text) == slow
    for pattern, characters in ((text_issues._BYTES, text_issues._ASCII_BYTES),
                                (text_issues._DIGIT, text_issues._ASCII_DIGITS),
                                (text_issues._SOLID, text_issues._ASCII_SOLID)):  # fmt: skip
        assert text_issues._count(pattern, characters, text) == len(pattern.findall(text))
    assert text_issues._is_suspicious(text) >= bool(text_issues._SUSPICIOUS.search(text))


WORDS = st.text(alphabet="aZ ,;'()!?-_.1\n\u00e9\ud800", max_size=8)


@given(st.lists(st.one_of(st.none(), ODD, WORDS, ASCII), max_size=8), st.integers(0, 3), st.integers(0, 16))
def test_what_is_found_spotless_at_a_glance_is_spotless(texts: list, least: int, most: int) -> None:
    limits = TextLimits(min_characters=least, max_characters=most)
    for text, spotless in zip(texts, text_issues._spotless(texts, limits)):
        assert not (spotless and list(text_issues._qualities((text or "").strip(), limits)))


def test_most_texts_are_spotless_at_a_glance() -> None:
    texts = ["a red car", "Women's hat (blue)", "ab", "Untitled", "a car, 1990", None, "caf\u00e9"]
    assert text_issues._spotless(texts, TextLimits()).tolist() == [True, True, False, False, False, False, False]


@pytest.mark.parametrize("least", [0, 1, 2, 40])
def test_a_text_of_enough_letters_is_not_too_short(least: int) -> None:
    limits = TextLimits(min_characters=least)
    texts = ["", "a", "ab", "abc d", "a b c d e", "b" * 39, "c" * 40, "d e" * 40]
    found = text_issues.text_issues(texts, limits)[1].tolist()
    letters = [sum(map(str.isalnum, text)) for text in texts]
    assert found[1:] == ["too_short" if count < least else None for count in letters[1:]]
