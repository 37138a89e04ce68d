"""Names, types and cells of exports."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pyarrow as pa
from export_run import (
    picture,
)

from noisycorr.data.writers.names import Names, image_suffix, safe_name
from noisycorr.data.writers.shards import table
from noisycorr.data.writers.values import cell_line, final_type, json_type, merge_types

# --- small parts ------------------------------------------------------------------------------------------------------


def test_flat_names_are_one_part_and_differ_in_more_than_capitals() -> None:
    names = Names(flat=True)
    assert [names.take(key) for key in ("a/b", "A", "a", "con?.jpg", " x ", "")] == [
        "a%2Fb", "A", "a_2", "con%3F%2Ejpg", "%20x%20", "_",
    ]  # fmt: skip
    assert safe_name("train/0001#2") == "train/0001#2"  # a sound key stays


def test_suffix_is_the_sources_own_where_it_is_known() -> None:
    jpeg = picture(0)
    assert image_suffix(jpeg, "JPEG", ("jpeg", "png")) == "jpeg"
    assert image_suffix(jpeg, None, ()) == "jpg"
    assert image_suffix(jpeg, "JPEG", ("img",)) == "img"
    assert image_suffix(picture(0, "PNG"), "PNG", ("jpg",)) == "png"
    assert image_suffix(Path("x/y.JPEG"), "JPEG", ()) == "jpeg"
    assert image_suffix(Path("x/y.php"), "PNG", ()) == "png"
    assert [image_suffix(*case) for case in ((b"<", None, ("jpeg", "png")), (b"<", None, ()), (None, None, ()))] == [
        "jpeg", "bin", "",
    ]  # fmt: skip


def test_types_of_json_columns_hold_every_value() -> None:
    def found(*values: Any) -> pa.DataType:
        kind = pa.null()
        for value in values:
            kind = merge_types(kind, json_type(value))
        return final_type(kind)

    assert found(None, None) == pa.string()
    assert found(1, None, True) == pa.string()
    assert found(1, 2.5) == pa.float64()
    assert found((1 << 60), 2.5) == pa.string()  # float64 would change the integer
    assert found(1 << 63) == pa.string()
    assert found([1], [], [2.5]) == pa.list_(pa.float64())
    assert found([], None) == pa.list_(pa.string())
    assert table([{"a": 1 << 63}, {}], pa.schema([("a", pa.string())])).to_pylist() == [
        {"a": str(1 << 63)},
        {"a": None},
    ]


def test_cells_survive_pandas() -> None:
    import pandas

    texts = ["a\tb", 'say "x"', "a\rb", "a\nb", " pad ", "'", ","]
    lines = cell_line(("t", "n"), "\t") + "".join(cell_line((text, float("nan")), "\t") for text in texts)
    read = pandas.read_csv(io.StringIO(lines, newline=""), sep="\t")
    assert read["t"].tolist() == texts and read["n"].isna().all()
