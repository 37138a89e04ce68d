"""Why a pair got its verdict: its row, its neighbours against a slow search, odd keys, texts and sets."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import save_file

from noisycorr.clean.explain import _new_text, explain
from noisycorr.data.pairs import PAIRS
from noisycorr.runtime.errors import UsageError
from noisycorr.runtime.folder import Run, write_json

HOSTILE = "red\x1b[31m\u202e\nkey\x07"


def decided_run(folder: Path, n: int = 12, *, piece: int = 5, keys: dict[int, str] | None = None) -> Run:
    """A decided run of n pairs in two clusters; row 2 lacks its text, row 3 its image."""
    run, rng = Run(folder), np.random.default_rng(0)
    cluster = np.arange(n) % 2
    image = (np.eye(6)[cluster] * 3 + 0.3 * rng.normal(size=(n, 6))).astype(np.float16)
    text = (np.eye(4)[cluster] * 3 + 0.3 * rng.normal(size=(n, 4))).astype(np.float16)
    if n > 3:
        text[2], image[3] = 0, 0
        text[4] = text[5]  # row 4 is mismatched
    pairs, ledger = [], []
    for i in range(n):
        known = {"key": (keys or {}).get(i, f"k{i}"), "text": f"text {i} " + "long " * 100 * (i == 7)}
        known["text"] = {2: None, 6: HOSTILE}.get(i, known["text"])
        columns = json.dumps({"truth_wrong": i == 4, "licence": "CC0\x1b[2J", "year": 2000 + i})
        picture = {"width": 64, "height": 48, "image_format": "PNG"}
        broken = {"problem": "image_unreadable", "problem_detail": "PNG: \x1b[0m"}
        pairs.append(known | {"uid": f"u{i}", "columns": columns} | (broken if i == 3 else picture))
        ledger.append(
            known
            | {"verdict": "drop" if i == 4 else "keep", "reason": "because", "rule": "p_clean>=0.5"}
            | {"image_issue": "unreadable" if i == 3 else None, "text_issue": None}
            | {"near_duplicate_group": "abc" if i < 2 else None, "group_kind": "pair" if i < 2 else None}
            | {"p_clean": np.nan if i in (2, 3) else i / n, "score_pair": float(i), "score_margin": -1.5}
        )
    for index, start in enumerate(range(0, n, piece)):
        part = slice(start, start + piece)
        save_file({"image": image[part], "text": text[part]}, run.path("embeddings", f"part-{index:05d}.safetensors"))
        pq.write_table(pa.Table.from_pylist(pairs[part], schema=PAIRS), run.path("pairs", f"{index:05d}.parquet"))
        write_json(run.path("pairs", f"{index:05d}_stats.json"), {"pairs": len(pairs[part])})
        schema = pa.schema([(name, pa.string()) for name in ledger[0] if not isinstance(ledger[0][name], float)])
        for name in ("p_clean", "score_pair", "score_margin"):
            schema = schema.append(pa.field(name, pa.float32()))
        pq.write_table(pa.Table.from_pylist(ledger[part], schema=schema), run.path("ledger", f"{index:05d}.parquet"))
    np.savez(folder / "features.npz", image=image.astype(float), text=text.astype(float))
    return run


def told(text: str, side: str) -> list[tuple[str, float | None, float, str]]:
    """(word, agreement, similarity, key) of the neighbours on one side."""
    pattern = rf"  (for|against|unclear|unknown) +([+-]\d\.\d\d)? +{side} similarity (-?\d\.\d\d)  (\S+)"
    found = [match for line in text.splitlines() if (match := re.match(pattern, line))]
    return [(match[1], float(match[2]) if match[2] else None, float(match[3]), match[4]) for match in found]


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


def test_the_row_of_the_ledger_is_told(tmp_path: Path):
    text = explain(decided_run(tmp_path), "k4")
    for line in ("key      k4", "text     text 4", "image    64 x 48 PNG", "verdict  drop: because", "p_clean  0.3333"):
        assert line in text.splitlines()
    assert re.search(r"score_pair +4\.0000", text) and re.search(r"score_margin +-1\.5000", text)
    assert "year = 2004" in text and "near_duplicate_group" not in text
    assert "near_duplicate_group  abc (pair)" in explain(decided_run(tmp_path), "k0")


def test_truth_is_not_told(tmp_path: Path):
    assert "truth" not in explain(decided_run(tmp_path), "k4")


@pytest.mark.parametrize("side", ["image", "text"])
@pytest.mark.parametrize("row", [0, 4, 7])
def test_neighbours_equal_a_slow_search(tmp_path: Path, side: str, row: int):
    run = decided_run(tmp_path)
    features = np.load(tmp_path / "features.npz")
    here, there = features[side], features["text" if side == "image" else "image"]
    units = [v / np.linalg.norm(v) for v in there if v.any()]
    mean = np.mean(units, axis=0)
    near = sorted((i for i in range(12) if i != row and here[i].any()), key=lambda i: -cosine(here[row], here[i]))[:4]
    found = told(explain(run, f"k{row}", count=4), side)
    assert [key for *_, key in found] == [f"k{i}" for i in near]
    for (word, agree, similarity, _), i in zip(found, near):
        assert similarity == pytest.approx(cosine(here[row], here[i]), abs=0.006)
        if not there[i].any():
            assert word == "unknown" and agree is None
            continue
        want = cosine(there[row] / np.linalg.norm(there[row]) - mean, there[i] / np.linalg.norm(there[i]) - mean)
        assert agree == pytest.approx(want, abs=0.006)
        assert word == ("for" if want > 0.3 else "against" if want < 0.1 else "unclear")


def test_neighbours_speak_against_a_mismatched_pair_and_for_a_right_one(tmp_path: Path):
    run = decided_run(tmp_path)
    assert {word for word, *_ in told(explain(run, "k4", count=3), "image")} <= {"against", "unknown"}
    assert {word for word, *_ in told(explain(run, "k8", count=3), "image")} & {"for"}


def test_missing_sides_are_said_not_guessed(tmp_path: Path):
    run = decided_run(tmp_path)
    no_text, no_image = explain(run, "k2"), explain(run, "k3")
    assert "text     (none)" in no_text and "no text to compare" in no_text
    assert {word for word, *_ in told(no_text, "image")} == {"unknown"}
    assert (
        "image    (none)" in no_image and "no image to compare" in no_image and "problem  image_unreadable" in no_image
    )
    assert "p_clean  unknown" in no_image and "image_issue  unreadable" in no_image


def test_nothing_that_came_in_steers_the_terminal(tmp_path: Path):
    run = decided_run(tmp_path, keys={6: "k\x1b]0;title\x07", 8: "k\x1b[31m"})
    for key in ("k\x1b]0;title\x07", "k\x1b[31m", "k3", "k7", "k10"):
        text = explain(run, key, count=11)
        assert all(letter.isprintable() for letter in text.replace("\n", ""))
        assert "red?[31m? key?" in text or "k6" not in text
    assert max(map(len, explain(run, "k7").splitlines())) < 420


def test_a_key_that_stands_often_is_told_ten_times(tmp_path: Path):
    run = decided_run(tmp_path, keys=dict.fromkeys(range(12), "same"))
    text = explain(run, "same", count=1)
    assert text.count("verdict  ") == 10 and text.endswith("2 more pairs carry this key")
    assert "more pairs" not in explain(decided_run(tmp_path / "few", keys={1: "k0"}), "k0")


@pytest.mark.parametrize(("n", "count"), [(1, 5), (2, 5), (12, 0), (12, 100)])
def test_small_sets_and_counts(tmp_path: Path, n: int, count: int):
    text = explain(decided_run(tmp_path, n), "k0", count=count)
    assert len(told(text, "image")) == min(count, n - 1 - (n > 3))
    assert "k0" not in [key for *_, key in told(text, "image")] and "inf" not in text


def test_what_cannot_be_explained_is_refused(tmp_path: Path):
    run = decided_run(tmp_path)
    with pytest.raises(UsageError, match=r"'other' is not in the ledger .* \['k0', 'k1'\]"):
        explain(run, "other")
    with pytest.raises(UsageError, match="`neighbors` is -1"):
        explain(run, "k0", count=-1)
    (tmp_path / "ledger" / "00001.parquet").unlink()
    with pytest.raises(UsageError, match="no ledger"):
        explain(run, "k11")
    with pytest.raises(UsageError, match="not in the ledger"):
        explain(Run(tmp_path / "empty"), "k0")


def test_a_new_text_where_there_was_none():
    row = dict.fromkeys(("text_donor", "text_level", "recaption_note", "score_text_given"), None)
    row |= {"recaption": "replace", "text_proposed": "a dog", "text_source": "x", "score_text_new": 0.9}
    assert "  fits with 0.9000, and there was no text" in _new_text(row | {"text": None})
    assert "  fits with 0.9000, the given with 0.2000" in _new_text(row | {"text": "a cat", "score_text_given": 0.2})
