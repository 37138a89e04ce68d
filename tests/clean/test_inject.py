"""noisycorr inject: what is written, that truth undoes it, equal bytes, resume, refusals."""

from __future__ import annotations

import hashlib
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from noisycorr.clean import inject as module
from noisycorr.clean.inject import Inject, inject
from noisycorr.data.noise.recipes import from_noise_index
from noisycorr.data.pairs import content_hash
from noisycorr.data.readers import Source, open_source
from noisycorr.runtime.errors import UsageError


def picture(row: int) -> bytes:
    """A PNG of one colour, another one for each row."""
    file = io.BytesIO()
    Image.new("RGB", (8, 8), (row % 256, row // 256, 90)).save(file, "PNG")
    return file.getvalue()


def write_source(folder: Path, rows: int = 30) -> Path:
    """A parquet with a picture, a title, a class, and columns of several types; row 3 has no text, row 4 no picture."""
    folder.mkdir(parents=True, exist_ok=True)
    table = {
        "image": [None if row == 4 else picture(row) for row in range(rows)],
        "title": [None if row == 3 else f"thing number {row}" for row in range(rows)],
        "key": [f"k{row:03d}" for row in range(rows)],
        "kind": [f"class {row % 3}" for row in range(rows)],
        "year": list(range(rows)),
        "size": [None if row == 0 else row / 4 for row in range(rows)],
        "tags": [["a", str(row)] for row in range(rows)],
        "text": ["another column of that name"] * rows,
    }
    pq.write_table(pa.table(table), folder / "source.parquet")
    return folder / "source.parquet"


def noisy(source: Path, out: Path, *, per_piece: int = 12, **choice: Any) -> dict[str, Any]:
    """Inject into a parquet source whose text is `title`."""
    reader = open_source(Source(path=str(source), caption_col="title", number_sample_per_shard=per_piece))
    return inject(reader, out, Inject(**choice))


def rows_of(folder: Path) -> list[dict[str, Any]]:
    tables = [pq.read_table(path) for path in sorted(folder.glob("*.parquet"))]
    return pa.concat_tables(tables).to_pylist()


def hashes(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


def test_every_row_stays_and_the_truth_undoes_the_noise(tmp_path: Path) -> None:
    source = write_source(tmp_path / "in")
    facts = noisy(source, tmp_path / "out", noise_ratio=0.5, seed=3)
    given, rows = pq.read_table(source).to_pylist(), rows_of(tmp_path / "out")
    assert facts == {"pairs": 30, "changed": 14, "wrong": 14, "files": 3}  # 29 rows have a text
    assert [row["key"] for row in rows] == [row["key"] for row in given]
    assert [row["image"] for row in rows] == [row["image"] for row in given]
    assert [row["truth_text"] for row in rows] == [row["title"] for row in given]
    titles = {row["key"]: row["title"] for row in given}
    for row in rows:
        assert row["text"] == titles[row["truth_source_key"]]
        assert row["truth_changed"] == (row["truth_source_key"] != row["key"]) == row["truth_wrong"]
    assert sum(row["truth_wrong"] for row in rows) == 14
    assert sorted(row["text"] or "" for row in rows) == sorted(row["title"] or "" for row in given)


def test_columns_keep_their_types_and_names_that_are_taken_move(tmp_path: Path) -> None:
    noisy(write_source(tmp_path / "in"), tmp_path / "out")
    schema = pq.read_schema(tmp_path / "out" / "00001.parquet")
    assert schema.names[:3] == ["image", "key", "text"]
    assert schema.field("image").type == pa.binary()
    assert schema.field("year").type == pa.int64()
    assert schema.field("size").type == pa.float64()
    assert schema.field("tags").type == pa.list_(pa.string())
    assert schema.field("truth_wrong").type == pa.bool_()
    row = rows_of(tmp_path / "out")[7]
    assert (row["year"], row["size"], row["tags"], row["kind"]) == (7, 1.75, ["a", "7"], "class 1")
    assert row["source_text"] == "another column of that name"


def test_the_copy_is_a_source_whose_truth_no_reader_picks(tmp_path: Path) -> None:
    noisy(write_source(tmp_path / "in"), tmp_path / "out", noise_ratio=0.4)
    reader = open_source(Source(path=str(tmp_path / "out")))
    assert {name: reader.picked[name] for name in ("image", "text", "key")} == {
        "image": "image",
        "text": "text",
        "key": "key",
    }
    pairs = [pair for piece in reader.pieces() for pair in reader.read(piece)]
    assert [pair.text for pair in pairs] == [row["text"] for row in rows_of(tmp_path / "out")]
    assert {pair.problem for pair in pairs} == {None, "text_missing", "image_missing"}
    with pytest.raises(UsageError, match="holds injected noise already"):
        inject(reader, tmp_path / "twice", Inject())


def test_equal_settings_give_equal_bytes_and_other_seeds_other_noise(tmp_path: Path) -> None:
    source = write_source(tmp_path / "in")
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        noisy(source, tmp_path / name, seed=seed)
    assert hashes(tmp_path / "a") == hashes(tmp_path / "b")
    assert hashes(tmp_path / "a")["00000.parquet"] != hashes(tmp_path / "c")["00000.parquet"]


def test_an_interrupted_copy_is_continued_to_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, out = write_source(tmp_path / "in"), tmp_path / "out"
    noisy(source, tmp_path / "whole")
    values = module._values

    def interrupted(row: int, *rest: Any) -> dict[str, Any]:
        if row == 20:
            raise KeyboardInterrupt
        return values(row, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(module, "_values", interrupted)
        with pytest.raises(KeyboardInterrupt):
            noisy(source, out)
    assert sorted(path.name for path in out.glob("*.parquet")) == ["00000.parquet"]
    (out / ".00001.parquet.1.tmp").write_bytes(b"left by a kill")
    first = (out / "00000.parquet").stat().st_mtime_ns
    facts = noisy(source, out)
    assert (out / "00000.parquet").stat().st_mtime_ns == first
    assert hashes(out) == hashes(tmp_path / "whole")
    assert noisy(source, out) == facts  # all there: only the record is read


def test_other_settings_and_foreign_folders_are_refused(tmp_path: Path) -> None:
    source = write_source(tmp_path / "in")
    noisy(source, tmp_path / "out", seed=1)
    before = hashes(tmp_path / "out")
    with pytest.raises(UsageError, match="seed: was 1, now 2"):
        noisy(source, tmp_path / "out", seed=2)
    with pytest.raises(UsageError, match="source is another one"):
        noisy(write_source(tmp_path / "other", 40), tmp_path / "out", seed=1)
    assert hashes(tmp_path / "out") == before
    with pytest.raises(UsageError, match="holds no noisy copy"):
        noisy(source, tmp_path / "in")
    assert [path.name for path in (tmp_path / "in").iterdir()] == ["source.parquet"]


def test_noise_json_and_index_hold_what_was_done(tmp_path: Path) -> None:
    source = write_source(tmp_path / "in")
    noisy(source, tmp_path / "out", noise_ratio=0.5, seed=5)
    record = json.loads((tmp_path / "out" / "noise.json").read_text())
    rows = rows_of(tmp_path / "out")
    assert (record["recipe"], record["inject"]["seed"], record["changed"]) == ("RandomSwap", 5, 14)
    numbers = {row["key"]: place for place, row in enumerate(rows)}
    moved = np.array([numbers[row["truth_source_key"]] for row in rows], np.int64)
    assert record["sha256"] == hashlib.sha256(moved.tobytes()).hexdigest()
    index = tmp_path / "out" / "noise_index.npy"
    assert np.array_equal(from_noise_index(index, 30), moved)
    noisy(source, tmp_path / "again", noise="noise_file", noise_file=str(index))
    assert [row["text"] for row in rows_of(tmp_path / "again")] == [row["text"] for row in rows]


def write_captions(folder: Path, images: int = 12) -> Path:
    """A jsonl of picture files with two captions each; the last file is missing."""
    folder.mkdir()
    lines = []
    for number in range(images):
        if number < images - 1:
            (folder / f"{number}.png").write_bytes(picture(number))
        texts = [f"caption {number} {letter}" for letter in "ab"]
        lines.append(json.dumps({"image": f"{number}.png", "captions": texts}))
    (folder / "list.jsonl").write_text("\n".join(lines))
    return folder / "list.jsonl"


def test_files_are_read_into_bytes_and_images_move_as_wholes(tmp_path: Path) -> None:
    reader = open_source(Source(path=str(write_captions(tmp_path / "in"))))
    facts = inject(reader, tmp_path / "out", Inject(unit="image", noise_ratio=0.5, seed=1))
    assert facts["wrong"] == facts["changed"] == 12  # six of twelve images, the missing one counted
    rows = rows_of(tmp_path / "out")
    shown = {content_hash(picture(number)): number for number in range(11)}
    for one, other in zip(rows[::2], rows[1::2]):
        assert one["text"].split()[1] == other["text"].split()[1]
        if one["image"] is not None:
            mine = shown[content_hash(one["image"])]
            assert one["image"] == other["image"]
            assert one["truth_wrong"] == (one["text"].split()[1] != str(mine))
    assert rows[-1]["image"] is None
    assert rows[-1]["image_key"] == rows[-2]["image_key"]


def test_classes_say_which_texts_are_hard(tmp_path: Path) -> None:
    source = write_source(tmp_path / "in", 60)
    noisy(source, tmp_path / "out", noise="hard_swap", label_col="kind", noise_ratio=0.5)
    rows = rows_of(tmp_path / "out")
    kinds = {row["key"]: row["kind"] for row in rows}
    assert sum(row["truth_wrong"] for row in rows) > 20
    assert all(kinds[row["truth_source_key"]] == row["kind"] for row in rows)
    with pytest.raises(UsageError, match="no column 'colour'"):
        noisy(source, tmp_path / "none", noise="hard_swap", label_col="colour")


def test_without_classes_the_nearest_texts_are_hard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def features(texts: list[str | None]) -> tuple[np.ndarray, str]:  # nearness = nearness of the number
        angle = np.array([0.0 if text is None else int(text.split()[-1]) / 60 for text in texts])
        return np.stack([np.cos(angle), np.sin(angle)], 1).astype(np.float32), "angles"

    monkeypatch.setattr(module, "_text_features", features)
    source = write_source(tmp_path / "in", 60)
    noisy(source, tmp_path / "out", noise="hard_swap", neighbors=1, noise_ratio=1.0)
    rows = [row for row in rows_of(tmp_path / "out") if row["text"]]
    steps = [abs(int(row["text"].split()[-1]) - int(row["truth_text"].split()[-1])) for row in rows]
    assert np.median(steps) <= 2
    assert json.loads((tmp_path / "out" / "noise.json").read_text())["encoder"] == "angles"


def test_text_vectors_come_once_for_each_text_and_blank_ones_are_zero() -> None:
    vectors, name = module._text_features(
        ["a red shirt", None, "a crimson shirt", "  ", "A steam engine", "a red shirt"]
    )
    wide = vectors.astype(np.float32)
    assert name.startswith("embedded")
    assert not wide[1].any() and not wide[3].any()
    assert np.array_equal(wide[0], wide[5])
    assert wide[0] @ wide[2] > 0.5 + wide[0] @ wide[4]


def test_texts_that_are_cut_replaced_or_removed(tmp_path: Path) -> None:
    source = write_source(tmp_path / "in")
    for noise, wrong in (("partial_caption", 0), ("generic_caption", 14), ("missing_text", 0)):
        facts = noisy(source, tmp_path / noise, noise=noise, noise_ratio=0.5)
        assert (facts["changed"], facts["wrong"]) == (14, wrong)
        assert not (tmp_path / noise / "noise_index.npy").exists()
        rows = [row for row in rows_of(tmp_path / noise) if row["truth_changed"]]
        assert len(rows) == 14
        assert all(row["text"] != row["truth_text"] for row in rows)
        assert {row["truth_source_key"] == row["key"] for row in rows} == {noise == "partial_caption"}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"noise": "swap"}, "expected one of random_swap"),
        ({"noise_ratio": 1.5}, "from 0 to 1"),
        ({"unit": "pair"}, "caption or image"),
        ({"unit": "image", "noise": "missing_text"}, "`unit` image is for"),
        ({"neighbors": 0}, "at least 1"),
        ({"label_col": "kind"}, "`label_col` is for hard_swap"),
        ({"noise": "noise_file"}, "go together"),
        ({"noise_file": "x.npy"}, "go together"),
    ],
)
def test_settings_without_meaning_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Inject(**fields)


def test_what_cannot_be_noised_is_refused(tmp_path: Path) -> None:
    source = write_source(tmp_path / "in")
    with pytest.raises(UsageError, match="not a file"):
        noisy(source, tmp_path / "a", noise="noise_file", noise_file=str(tmp_path / "no.npy"))
    with pytest.raises(UsageError, match="a swap needs 2"):
        noisy(source, tmp_path / "b", noise_ratio=0.03)
    reader = open_source(Source(path=str(source), caption_col="title"))
    reader.format = "embeddings"
    with pytest.raises(UsageError, match="Precomputed embeddings"):
        inject(reader, tmp_path / "c", Inject())


def test_a_source_that_changes_between_the_passes_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = write_source(tmp_path / "in")
    reader = open_source(Source(path=str(source), caption_col="title", number_sample_per_shard=12))
    read, calls = reader.read, []

    def shrinking(piece: Any) -> Any:
        calls.append(piece)
        pairs = list(read(piece))
        return iter(pairs if len(calls) <= 4 else pairs[:-1])  # three pieces, twice: the second one of pass two

    monkeypatch.setattr(reader, "read", shrinking)
    with pytest.raises(UsageError, match="lost pair 'k023'"):
        inject(reader, tmp_path / "out", Inject())
    assert [path.name for path in (tmp_path / "out").glob("*.parquet")] == ["00000.parquet"]
