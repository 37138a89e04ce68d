"""Which column holds the image, the text, the address and the key: by the names people use, best first.

Names are compared without regard to case. A column of hidden truth (`truth_*`) is never picked. Where the text can only
be a class number, it is picked last and said so in the note.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from noisycorr.data.pairs import is_truth
from noisycorr.data.readers.source import Source
from noisycorr.runtime.errors import UsageError, listed

CAPTION_NAMES = ("text", "caption", "title", "sentence", "captions", "top_caption", "all_captions")
TEXT_NAMES = (*CAPTION_NAMES, "class_name", "description", "name", "label")
IMAGE_NAMES = (
    "image", "img", "jpg", "png", "image_bytes", "bytes", "image_path", "filepath", "file_name", "filename", "path",
)  # fmt: skip
URL_NAMES = ("url", "image_url", "image_urls")
KEY_NAMES = ("uid", "key", "__key__", "id", "image_id", "sample_id", "filename")
LABEL_NAMES = ("aggre_label", "given_label", "noisy_label", "label")  # human labels as given, before any other *_label
CORRECTED_LABELS = ("clean_label", "true_label", "gold_label")  # the answer, not the data: never picked

# What a column holds. "image" is the struct {bytes, path} of Hugging Face datasets; "null" has no value yet.
KINDS = ("bytes", "image", "string", "strings", "integer", "null", "other")


@dataclass(frozen=True, kw_only=True)
class Columns:
    """Names of the columns that make a pair; None where there is none.

    Attributes:
        image: Bytes, struct {bytes, path}, or path.
        text: String, list of strings, or integer.
        url: Address of the image; never fetched.
        key: The source's own name of a row.
        note: What the user should know about this choice, or "".
    """

    image: str | None = None
    text: str | None = None
    url: str | None = None
    key: str | None = None
    note: str = ""

    def picked(self) -> dict[str, str]:
        """The choice as it is shown to the user: only what was found."""
        names = {"image": self.image, "text": self.text, "url": self.url, "key": self.key, "note": self.note}
        return {role: name for role, name in names.items() if name}


def pick_columns(
    kinds: Mapping[str, str], source: Source, *, need_image: bool = True, need_text: bool = True
) -> Columns:
    """Choose the columns of a table.

    Args:
        kinds: Every column of the table (of all its files together) and what it holds, one of `KINDS`.
        source: Names that were given are taken as they are; the others are detected.
        need_image: False where images come from elsewhere, for example as embeddings.
        need_text: False where texts do.

    Returns:
        The names. If there is an address but no image, `image` is None and the note says so.

    Raises:
        UsageError: If a given column does not exist, or image or text cannot be found.
    """
    for flag, name in (("image_col", source.image_col), ("caption_col", source.caption_col),
                       ("url_col", source.url_col), ("id_col", source.id_col)):  # fmt: skip
        if name is not None and name not in kinds:
            raise UsageError(f"There is no column {name!r} (`{flag}`) in {source.path}; it has: {listed(kinds)}.")
    open_kinds = {name: kind for name, kind in kinds.items() if not is_truth(name.lower())}
    url = source.url_col or _first(open_kinds, URL_NAMES, ("string", "strings", "null"))
    image = source.image_col or _image_column(open_kinds, source)
    if image is None and url is None and need_image:
        raise UsageError(
            f"No image column was found in {source.path}: name it with `image_col` (or `url_col` if there are only "
            f"addresses); the columns are: {listed(kinds)}."
        )
    text = source.caption_col or _text_column(open_kinds, image)
    if text is None and need_text:
        raise UsageError(
            f"No text column was found in {source.path}: name it with `caption_col`; the columns are: {listed(kinds)}."
        )
    usable = {name: kind for name, kind in open_kinds.items() if name not in (image, text, url)}
    exported = {"key", "uid", "p_clean", "verdict"} <= kinds.keys()  # by us: their `uid` is not their key
    key_names = ("key", *KEY_NAMES) if exported else KEY_NAMES
    key = source.id_col or _first(usable, key_names, ("string", "integer"))
    notes = []
    if image is None and need_image:
        notes.append(f"there are only addresses (column {url}), which are never fetched: every image is missing")
    if text is not None and kinds[text] == "integer":
        what = "the class number" if _is_given_label(text) else "a number"
        notes.append(f"the text is {what} in column {text}, written as digits")
    return Columns(image=image, text=text, url=url, key=key, note="; ".join(notes))


def pick_text_field(kinds: Mapping[str, str], source: Source) -> str | None:
    """The JSON field that holds the text beside an image, by the rules of `pick_columns`, or None."""
    if source.caption_col is not None:
        return source.caption_col
    return _text_column({name: kind for name, kind in kinds.items() if not is_truth(name.lower())}, None)


def kind_of_arrow(type_: pa.DataType) -> str:
    """What an Arrow column holds, one of `KINDS`."""
    if isinstance(type_, pa.ExtensionType):
        type_ = type_.storage_type
    if pa.types.is_dictionary(type_):
        type_ = type_.value_type
    if pa.types.is_null(type_):
        return "null"
    if _is_arrow_text(type_):
        return "string"
    if pa.types.is_integer(type_):
        return "integer"
    if pa.types.is_binary(type_) or pa.types.is_large_binary(type_) or pa.types.is_fixed_size_binary(type_):
        return "bytes"
    if pa.types.is_struct(type_) and {type_.field(i).name for i in range(type_.num_fields)} == {"bytes", "path"}:
        return "image"
    is_list = pa.types.is_list(type_) or pa.types.is_large_list(type_) or pa.types.is_fixed_size_list(type_)
    if is_list and _is_arrow_text(type_.value_type):
        return "strings"
    return "other"


def kind_of_values(values: Iterable[Any], *, digits_are_numbers: bool = False) -> str:
    """What a few values of one column have in common, one of `KINDS`.

    Args:
        values: Python values as JSON or CSV gives them.
        digits_are_numbers: Take strings of digits as integers, for formats that know only strings.
    """
    kinds = {_kind_of_value(value, digits_are_numbers) for value in values}
    return merge_kinds(kinds)


def merge_kinds(kinds: Iterable[str]) -> str:
    """One kind for a column that several files (or rows) show: empty ones do not count, numbers give way to strings."""
    seen = set(kinds) - {"null"}
    if not seen:
        return "null"
    if len(seen) == 1:
        return seen.pop()
    if seen <= {"integer", "string"}:
        return "string"
    if seen <= {"string", "strings"}:
        return "strings"
    return "bytes" if seen <= {"bytes", "image"} else "other"


def _image_column(kinds: Mapping[str, str], source: Source) -> str | None:
    taken = (source.caption_col, source.url_col, source.id_col)
    usable = {name: kind for name, kind in kinds.items() if name not in taken}
    return _first(usable, IMAGE_NAMES, ("bytes", "image")) or _first(usable, IMAGE_NAMES, ("string",))


def _text_column(kinds: Mapping[str, str], image: str | None) -> str | None:
    usable = {name: kind for name, kind in kinds.items() if name != image}
    named = _first(usable, TEXT_NAMES, ("string", "strings", "bytes", "null"))
    if named is not None:
        return named
    labels = {name: kind for name, kind in usable.items() if _is_given_label(name)}
    names = (*LABEL_NAMES, *(name.lower() for name in labels))
    label = _first(labels, names, ("string",)) or _first(labels, names, ("integer",))
    return label or _first(usable, CAPTION_NAMES, ("integer",))  # a caption such as "2008"


def _is_given_label(name: str) -> bool:
    name = name.lower()
    return (name == "label" or name.endswith("_label")) and name not in CORRECTED_LABELS


def _first(kinds: Mapping[str, str], names: Iterable[str], accepted: tuple[str, ...]) -> str | None:
    folded: dict[str, str] = {}
    for name, kind in kinds.items():
        if kind in accepted:
            folded.setdefault(name.lower(), name)
    # The exact spelling wins where two columns differ in case only.
    return next((name if kinds.get(name) in accepted else folded[name] for name in names if name in folded), None)


def _kind_of_value(value: Any, digits_are_numbers: bool) -> str:
    if value is None or value == "" or value == [] or (isinstance(value, float) and value != value):
        return "null"
    if isinstance(value, str):
        return "integer" if digits_are_numbers and value.strip().lstrip("+-").isdigit() else "string"
    if isinstance(value, bytes):
        return "bytes"
    if isinstance(value, int) and not isinstance(value, bool):
        return "integer"
    if isinstance(value, list) and all(isinstance(item, str) or item is None for item in value):
        return "strings"
    return "other"


def _is_arrow_text(type_: pa.DataType) -> bool:
    return pa.types.is_string(type_) or pa.types.is_large_string(type_) or "string_view" in str(type_)
