"""Class names and their definitions from one file: the only reader of class lists.

cat                                   # names.txt: a name on each line,
dog<tab>barks<tab>a mean person       # or a name and its definitions, with tabs between them

- cat                                 # classes.yaml or .json: a list,
- {name: dog, definition: barks}
- ape: an animal

jaguar: [a large cat, a car maker]    # or a mapping from names to a definition, or to several
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from noisycorr.runtime.errors import UsageError
from noisycorr.runtime.strict_yaml import load_yaml

YAML_SUFFIXES = (".yaml", ".yml", ".json")
Entry = tuple[str, list[str]]


def read_class_names(
    path: Path, *, argument: str = "classes", least: int = 1, alike: Callable[[str], str] = str
) -> dict[str, list[str]]:
    """Read a class list.

    Args:
        path: A .yaml, .yml or .json file with a list or a mapping (alone, or under the one key `classes`); any other
            file has a class on each line. Blank lines are left out, and so are comments: "#" with a space after it,
            because a name such as "#1 dad" may begin with that sign.
        argument: What the file was given as, for errors.
        least: How many classes there must be.
        alike: Two names for which it gives the same are one name.

    Returns:
        Definitions by name, in the order of the file; no definition where the file has none.

    Raises:
        UsageError: If the file cannot be read, or a class is malformed, empty, or stands twice.
    """
    path = path.expanduser()
    where = f"`{argument}` {path}"
    if not path.is_file():
        raise UsageError(f"{where} is not a file: name a classes.yaml, or a names.txt with a class on each line.")
    try:
        text = path.read_text(encoding="utf-8-sig")
        body = load_yaml(text) if path.suffix.lower() in YAML_SUFFIXES else None
    except (OSError, ValueError) as error:
        raise UsageError(f"{where} could not be read: {' '.join(str(error).split())[:300]}.") from error
    entries = _of_yaml(body, where) if path.suffix.lower() in YAML_SUFFIXES else _of_lines(text)
    _check(entries, where, least, alike)
    return dict(entries)


def _of_lines(text: str) -> list[Entry]:
    lines = [line.strip() for line in text.splitlines()]
    parts = [[part.strip() for part in line.split("\t")] for line in lines if line and not _is_comment(line)]
    return [(name, [sense for sense in senses if sense]) for name, *senses in parts]


def _is_comment(line: str) -> bool:
    return line.startswith("#") and (len(line) == 1 or line[1].isspace())


def _of_yaml(body: Any, where: str) -> list[Entry]:
    if isinstance(body, Mapping) and set(body) == {"classes"} and isinstance(body["classes"], Mapping | list):
        body = body["classes"]
    if isinstance(body, Mapping):
        return [(str(name).strip(), _definitions(value, name, where)) for name, value in body.items()]
    if not isinstance(body, list):
        raise UsageError(f"{where} holds neither a list nor a mapping of class names.")
    return [_of_item(item, where) for item in body]


def _of_item(item: Any, where: str) -> Entry:
    """A class of a list: its name, NAME: DEFINITION, or a mapping with `name` and `definition`."""
    if isinstance(item, Mapping) and "name" in item:
        definitions = item.get("definition", item.get("definitions"))
        return str(item["name"]).strip(), _definitions(definitions, item["name"], where)
    if isinstance(item, Mapping) and len(item) == 1:
        name, value = next(iter(item.items()))
        return str(name).strip(), _definitions(value, name, where)
    if isinstance(item, Mapping | list):
        raise UsageError(f"{where}: {item!r} is no class; write NAME, or NAME: DEFINITION.")
    return "" if item is None else str(item).strip(), []


def _definitions(value: Any, name: Any, where: str) -> list[str]:
    senses = value if isinstance(value, list) else [value]
    if any(isinstance(sense, Mapping | list) for sense in senses):
        raise UsageError(f"{where}: the definition of {name!r} is {value!r}, expected a text or several.")
    words = [str(sense).strip() for sense in senses if sense is not None]
    return [word for word in words if word]


def _check(entries: Sequence[Entry], where: str, least: int, alike: Callable[[str], str]) -> None:
    """Refuse lists with empty names, names that stand twice, or too few of them."""
    first: dict[str, str] = {}
    for name, _ in entries:
        key = alike(name)
        if not key:
            raise UsageError(f"{where} holds an empty name: leave it out.")
        if key in first:
            also = "" if first[key] == name else f", first as {first[key]!r}"
            raise UsageError(f"{where} holds {name!r} twice{also}: keep one, with all its definitions.")
        first[key] = name
    if len(entries) < least:
        raise UsageError(f"{where} holds {len(entries) or 'no'} classes, expected at least {least}.")
