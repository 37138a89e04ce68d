"""The reader of class lists: every form that one may have, and one sentence for each that it may not."""

from __future__ import annotations

from pathlib import Path

import pytest

from noisycorr.data.readers.class_names import read_class_names
from noisycorr.runtime.errors import UsageError


def write(folder: Path, name: str, text: str) -> Path:
    (folder / name).write_text(text, encoding="utf-8")
    return folder / name


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.txt", "cat\ndog\tbarks\tfetches\n"),
        ("names", "# pets\n\n  cat  \ndog\t barks \t\tfetches\n#\n"),
        ("bom.txt", "\ufeffcat\ndog\tbarks\tfetches\n"),
        ("a.yaml", "cat:\ndog: [barks, fetches]\n"),
        ("b.yml", "classes:\n  cat: ''\n  dog: [barks, null, fetches]\n"),
        ("c.yaml", "- cat\n- dog: [barks, fetches]\n"),
        ("d.yaml", "classes:\n- name: cat\n- {name: dog, definitions: [barks, fetches]}\n"),
        ("e.json", '{"cat": null, "dog": ["barks", "fetches"]}'),
        ("f.json", '["cat", {"name": "dog", "definition": [" barks ", "fetches"]}]'),
    ],
)
def test_every_form_is_read(name: str, text: str, tmp_path: Path):
    assert read_class_names(write(tmp_path, name, text)) == {"cat": [], "dog": ["barks", "fetches"]}


def test_names_keep_order_case_and_signs(tmp_path: Path):
    path = write(tmp_path, "a.txt", "zebra\nApple\napple\n#1 dad\nfire_truck\na{}b\n")
    assert list(read_class_names(path)) == ["zebra", "Apple", "apple", "#1 dad", "fire_truck", "a{}b"]
    assert list(read_class_names(write(tmp_path, "b.yaml", "- 7\n- 1.5\n- true\n"))) == ["7", "1.5", "True"]
    assert read_class_names(write(tmp_path, "c.yaml", "classes: a word of this name\n")) == {
        "classes": ["a word of this name"]
    }


@pytest.mark.parametrize(
    ("name", "text", "told"),
    [
        ("a.txt", "", "holds no classes, expected at least 2"),
        ("a.txt", "cat\n", "holds 1 classes, expected at least 2"),
        ("a.txt", "cat\ndog\ncat\n", "holds 'cat' twice: keep one"),
        ("a.txt", "cat\ndog\nCAT\n", "holds 'CAT' twice, first as 'cat'"),
        ("a.yaml", "cat: x\ncat: y\n", "stands twice"),
        ("a.yaml", "- cat\n- ''\n", "holds an empty name"),
        ("a.yaml", "- cat\n- null\n", "holds an empty name"),
        ("a.yaml", "5\n", "neither a list nor a mapping"),
        ("a.yaml", "", "neither a list nor a mapping"),
        ("a.yaml", "a: [\n", "could not be read: line"),
        ("a.json", "[1, 2", "could not be read"),
        ("a.yaml", "- [cat]\n- dog\n", "is no class"),
        ("a.yaml", "- {a: b, c: d}\n", "is no class"),
        ("a.yaml", "cat: {a: b}\ndog:\n", "the definition of 'cat'"),
        ("a.yaml", "a: &x [b]\nc: *x\n", "alias"),
    ],
)
def test_what_is_no_list_is_refused(name: str, text: str, told: str, tmp_path: Path):
    path = write(tmp_path, name, text)
    with pytest.raises(UsageError, match=f"`seen` .*{told}"):
        read_class_names(path, argument="seen", least=2, alike=str.casefold)


def test_files_that_are_none(tmp_path: Path):
    with pytest.raises(UsageError, match=r"is not a file: name a classes\.yaml"):
        read_class_names(tmp_path)
    (tmp_path / "a.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UsageError, match="could not be read"):
        read_class_names(tmp_path / "a.txt")
