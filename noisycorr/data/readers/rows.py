"""From one row of a table to its pairs: clean text, safe image paths, JSON values. Nothing here ever raises."""

from __future__ import annotations

import datetime
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from noisycorr.data.pairs import Pair
from noisycorr.data.readers.detect import Columns
from noisycorr.data.readers.source import Source

TEXT_LIMIT = 10_000  # characters; what is longer is cut and marked
DEPTH_LIMIT = 32  # levels of nesting kept of a column

_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:(//|[^\\/]*;base64,)")


def row_pairs(values: Mapping[str, Any], columns: Columns, root: Path, row: int) -> Iterator[Pair]:
    """The pairs of one row: one, or one for each text where the text column holds a list.

    Args:
        values: The row; columns that are absent count as empty.
        columns: What the columns mean.
        root: Folder that image paths start from and may not leave; absolute.
        row: Number of the row in the source, from 0; the key where the row has none.

    Yields:
        Pairs with keys KEY, or KEY#0, KEY#1, ... with a column `image_key` for a list of texts.
    """
    key = key_text(values.get(columns.key) if columns.key else None, row)
    value = values.get(columns.image) if columns.image else None
    image, image_problem = load_image(value, root)
    rest = other_columns(values, columns)
    text_value = values.get(columns.text) if columns.text else None
    yield from text_pairs(key, image, image_problem, text_value, rest, image_detail(value, image_problem))


def text_pairs(
    key: str,
    image: bytes | Path | None,
    problem: str | None,
    text_value: Any,
    rest: Mapping[str, Any],
    detail: str | None = None,
) -> Iterator[Pair]:
    """One image with its text, or with each text of a list.

    Args:
        key: Key of the image.
        image: Bytes, path or None.
        problem: What is wrong with the image or the whole row; it goes before what is wrong with a text.
        text_value: A text, a list of texts, or None.
        rest: Other columns.
        detail: More about that problem.

    Yields:
        One pair, or for a list one for each element: KEY#0, KEY#1, ... with `image_key`. An empty list is text_missing.
    """
    if not isinstance(text_value, (list, tuple)):
        text, text_problem = clean_text(text_value)
        yield Pair(key=key, image=image, text=text, columns=rest, problem=problem or text_problem, detail=detail)
    elif not text_value:
        yield Pair(key=key, image=image, columns=rest, problem=problem or "text_missing", detail=detail)
    else:
        rest = {**rest, "image_key": key}
        for position, item in enumerate(text_value):
            text, text_problem = clean_text(item)
            name = f"{key}#{position}"
            yield Pair(key=name, image=image, text=text, columns=rest, problem=problem or text_problem, detail=detail)


def bad_row(row: int, raw: str) -> Pair:
    """The pair of a row that could not be parsed; its beginning is kept in the column `raw`."""
    return Pair(key=key_text(None, row), columns={"raw": clean_string(raw)} if raw else {}, problem="row_unreadable")


def other_columns(values: Mapping[str, Any], columns: Columns) -> dict[str, Any]:
    """Every column that is not image bytes, text or key, as JSON values. `uid` and image paths stay."""
    rest: dict[str, Any] = {}
    for name, value in values.items():
        if name == columns.text or (name == columns.key and name.lower() in ("key", "__key__")):
            continue
        if name == columns.image and not isinstance(value, str):
            if isinstance(value, Mapping) and value.get("path"):
                rest.setdefault(clean_string(f"{name}_path"), json_value(value["path"]))
            continue
        rest["uid" if name.lower() == "uid" else clean_string(name)] = json_value(value)
    return rest


def key_text(value: Any, row: int) -> str:
    """A key as a string; the row number in nine digits where there is none."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, (bytes, bytearray)):
        value = bytes(value).decode("utf-8", "replace")
    if value is None or value == "" or value != value:
        return f"{row:09d}"
    return clean_string(str(value))


def clean_text(value: Any) -> tuple[str | None, str | None]:
    """A caption as it came in, and what is wrong with it.

    Args:
        value: String, bytes, number or None.

    Returns:
        The text (None if it is missing or blank) and text_missing, text_not_utf8, text_too_long or None. What is not
        UTF-8 is replaced by U+FFFD; what is too long is cut at `TEXT_LIMIT` characters.
    """
    problem = None
    if isinstance(value, (bytes, bytearray, memoryview)):
        value = bytes(value).decode("utf-8", "surrogateescape")
    if value is None or value != value:
        return None, "text_missing"
    if isinstance(value, (Mapping, Sequence)) and not isinstance(value, str):
        value = json.dumps(json_value(value), ensure_ascii=False)
    text = str(value)
    if not text.strip():
        return None, "text_missing"
    if len(text) > TEXT_LIMIT:
        text, problem = text[:TEXT_LIMIT], "text_too_long"
    cleaned = clean_string(text)
    if cleaned != text:
        problem = "text_not_utf8"
    return cleaned, problem


def clean_string(text: str) -> str:
    """The string without lone surrogates (they stand for bytes that are not UTF-8), replaced by U+FFFD."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def load_image(value: Any, root: Path) -> tuple[bytes | Path | None, str | None]:
    """The image of a row: bytes, or a path inside `root`, or None with image_missing or name_unsafe.

    Args:
        value: Bytes, a struct {bytes, path}, a path, an address (never fetched), or None.
        root: Folder that paths start from and may not leave.
    """
    if isinstance(value, Mapping):
        value = value["bytes"] if value.get("bytes") is not None else value.get("path")
    if isinstance(value, (bytes, bytearray, memoryview)):
        return bytes(value), None
    if isinstance(value, str) and value:
        return resolve_image(value, root)
    return None, "image_missing"


def resolve_image(value: str, root: Path) -> tuple[Path | None, str | None]:
    """Where an image path leads: the path, or None with name_unsafe if it leaves `root`, image_missing if not there.

    Symbolic links below `root` are followed: they belong to the user, only the path is the data's.
    """
    if "\0" in value or len(value) > 4096 or is_address(value):
        return None, "image_missing"
    path = Path(os.path.normpath(root / value))
    if not path.is_relative_to(root):
        return None, "name_unsafe"
    try:
        return (path, None) if path.is_file() else (None, "image_missing")
    except (OSError, ValueError):
        return None, "image_missing"


def is_address(value: str) -> bool:
    """True for an address such as https://..., which is no path and never fetched."""
    return _ADDRESS.match(value) is not None


def image_detail(value: Any, problem: str | None) -> str | None:
    """Which file it is that `load_image` found no way to; None if no path stands there."""
    path = value.get("path") if isinstance(value, Mapping) else value
    if problem is None or not isinstance(path, str) or not path:
        return None
    path = clean_string(path[:250])
    if problem == "name_unsafe":
        return path
    return f"an address is never fetched: {path}" if is_address(path) else f"no such file: {path}"


def arrow_rows(batch: pa.RecordBatch | pa.Table, class_names: Mapping[str, list[str]]) -> Iterator[dict[str, Any]]:
    """The rows of an Arrow batch as Python values. One value that has none (a far date) does not stop the rest.

    Args:
        batch: A few rows; they are turned into Python values together.
        class_names: For columns of class numbers, the name of each class.

    Yields:
        Column name to value. A string that is not UTF-8 comes as its bytes.
    """
    columns: dict[str, list[Any]] = {}
    for position, name in enumerate(batch.schema.names):
        column = batch.column(position)
        try:
            columns[name] = column.to_pylist()
        except (ValueError, OverflowError, pa.ArrowException):
            columns[name] = [_python_value(scalar) for scalar in column]
        if names := class_names.get(name):
            columns[name] = [names[v] if isinstance(v, int) and 0 <= v < len(names) else None for v in columns[name]]
    for row in range(batch.num_rows):
        yield {name: values[row] for name, values in columns.items()}


def _python_value(scalar: pa.Scalar) -> Any:
    try:
        return scalar.as_py()
    except (ValueError, OverflowError, pa.ArrowException):
        if isinstance(scalar, (pa.StringScalar, pa.LargeStringScalar)):
            return scalar.as_buffer().to_pybytes()
        if isinstance(scalar, (pa.ListScalar, pa.LargeListScalar)):
            return [_python_value(item) for item in scalar.values]
        return None


def image_root(source: Source, path: Path) -> Path:
    """The folder that image paths named in `path` start from; absolute."""
    root = Path(source.image_root).expanduser() if source.image_root is not None else path.parent
    return Path(os.path.normpath(root.absolute()))


def json_value(value: Any, depth: int = 0) -> Any:
    """A column's value as JSON can hold it: NaN becomes None, dates ISO strings, bytes their number."""
    if value is None or isinstance(value, (bool, int)):
        return value
    if isinstance(value, float):
        return value if value - value == 0 else None  # NaN and infinities are not JSON
    if isinstance(value, str):
        return clean_string(value)
    if isinstance(value, (bytes, bytearray, memoryview)):
        return f"<{len(value)} bytes>"
    if isinstance(value, (datetime.date, datetime.time)):
        return value.isoformat()
    if isinstance(value, datetime.timedelta):
        return value.total_seconds()
    if depth >= DEPTH_LIMIT:
        return f"<nested deeper than {DEPTH_LIMIT}>"
    if isinstance(value, Mapping):
        return {clean_string(str(name)): json_value(item, depth + 1) for name, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [json_value(item, depth + 1) for item in value]
    return clean_string(str(value))
