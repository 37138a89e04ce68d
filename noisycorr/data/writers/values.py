"""Columns that came in as JSON, as values of tables, of JSON objects and of text cells."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from typing import Any

import pyarrow as pa

from noisycorr.data.readers.rows import json_value
from noisycorr.data.writers import Layout, Row

_EXACT = 1 << 53  # integers up to here are exact as float64
_SMALL, _LARGE = pa.int32(), pa.int64()  # while types are being found; both become int64


def json_type(value: Any) -> pa.DataType:
    """The Arrow type of one JSON value: bool, int, float64, string, list of those; string (JSON) for objects."""
    if value is None:
        return pa.null()
    if isinstance(value, bool):
        return pa.bool_()
    if isinstance(value, int):
        return _SMALL if abs(value) <= _EXACT else _LARGE if -(1 << 63) <= value < 1 << 63 else pa.string()
    if isinstance(value, float):
        return pa.float64()
    if isinstance(value, list):
        inner = pa.null()
        for item in value:
            inner = merge_types(inner, json_type(item))
        return pa.list_(inner)
    return pa.string()


def merge_types(one: pa.DataType, other: pa.DataType) -> pa.DataType:
    """The narrowest type that holds the values of both without loss; string where they have nothing in common."""
    if one == other or pa.types.is_null(other):
        return one
    if pa.types.is_null(one):
        return other
    if pa.types.is_list(one) and pa.types.is_list(other):
        return pa.list_(merge_types(one.value_type, other.value_type))
    if {one, other} == {_SMALL, _LARGE}:
        return _LARGE
    if {one, other} == {_SMALL, pa.float64()}:
        return pa.float64()
    return pa.string()


def final_type(merged: pa.DataType) -> pa.DataType:
    """The type to write: int64 for integers, string for a column without any value."""
    if pa.types.is_list(merged):
        return pa.list_(final_type(merged.value_type))
    if pa.types.is_integer(merged):
        return pa.int64()
    return pa.string() if pa.types.is_null(merged) else merged


def fit(value: Any, type_: pa.DataType) -> Any:
    """A JSON value as a column of this type can hold it; what has no place in it becomes its JSON text."""
    if value is None:
        return None
    if pa.types.is_string(type_):
        return value if isinstance(value, str) else json.dumps(json_value(value), ensure_ascii=False, sort_keys=True)
    if pa.types.is_list(type_):
        return [fit(item, type_.value_type) for item in value]
    return float(value) if pa.types.is_floating(type_) else value


def table(rows: Iterable[Mapping[str, Any]], schema: pa.Schema) -> pa.Table:
    """Rows of values as a table; columns that a row lacks are null in it."""
    rows = list(rows)
    arrays = [pa.array([fit(row.get(name), type_) for row in rows], type_) for name, type_ in _fields(schema)]
    return pa.Table.from_arrays(arrays, schema=schema)


def json_record(row: Row, layout: Layout) -> dict[str, Any]:
    """Everything known of a pair as one JSON object: input columns and ledger, NaN as null."""
    wanted = layout.fields
    return {
        name: json_value(value)
        for name, value in row.values.items()
        if wanted is None or name in wanted or name in ("key", "text")
    }


def json_line(value: Mapping[str, Any]) -> str:
    """One line of JSON without the newline; equal values give equal text."""
    return json.dumps(value, ensure_ascii=False, sort_keys=True, allow_nan=False)


_FORMULA = ("=", "+", "-", "@", "|", "%")


def cell_line(values: Iterable[Any], delimiter: str) -> str:
    """One line of a delimited table with its newline: "" for None and NaN, quotes where the reader needs them."""
    return delimiter.join(_cell(value, delimiter) for value in values) + "\n"


def harmless(value: Any) -> Any:
    """A cell for people: text that a spreadsheet would run as a formula gets an apostrophe, which it then hides."""
    return f"'{value}" if isinstance(value, str) and value.lstrip()[:1] in _FORMULA else value


def _cell(value: Any, delimiter: str) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    text = str(value)
    # A lone carriage return ends a line for pandas, and a quote opens a field: Python's csv leaves the first one bare.
    if any(mark in text for mark in (delimiter, '"', "\n", "\r")) or text != text.strip():
        return '"' + text.replace('"', '""') + '"'
    return text


def _fields(schema: pa.Schema) -> list[tuple[str, pa.DataType]]:
    return list(zip(schema.names, schema.types))
