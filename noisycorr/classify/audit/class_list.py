"""The classes of an audit: names and definitions from a file, and labels resolved to them.

- tiger cat: a cat with a coat like a tiger's          # classes.yaml: name: definition,
- jaguar: [a large spotted cat, a car maker]           # or name: several definitions, one for each sense,
- n02123045                                            # or a name alone; WordNet ids where WordNet is installed
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from noisycorr.data.pairs import is_truth
from noisycorr.runtime.errors import UsageError, listed
from noisycorr.runtime.strict_yaml import load_yaml

SYNSET = re.compile(r"n\d{8}|[\w'.-]+\.[nvars]\.\d{2}")
LABEL_NAMES = ("label", "labels", "class", "class_name", "category", "categories", "target", "query", "tags", "tag",
               "synset", "wnid", "noisy_label", "web_label", "subgroup")  # fmt: skip
ANSWERS = ("clean_label", "true_label", "gold_label")  # the answer, not the data: never picked
SEPARATORS = re.compile(r"\s*[|;]\s*")
KNOWN_SHARE = 0.5  # of the values of a detected label column, that must be in the list


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassList:
    """c classes.

    Attributes:
        names: As in the file.
        senses: Definitions of each, at least one: its name where the file gives none.
        undefined: Names of classes without a definition: they are matched by their name.
    """

    names: tuple[str, ...]
    senses: tuple[tuple[str, ...], ...]
    undefined: tuple[str, ...]

    @property
    def texts(self) -> tuple[list[str], np.ndarray]:
        """What is encoded, "name: definition", and the class of each."""
        texts, owner = [], []
        for place, (name, senses) in enumerate(zip(self.names, self.senses)):
            for sense in senses:
                spaced = name.replace("_", " ").replace("-", " ")
                texts.append(spaced if sense == name else f"{spaced}: {sense}")
                owner.append(place)
        return texts, np.array(owner)


@dataclass(frozen=True, slots=True, kw_only=True)
class Labels:
    """Given labels of n rows.

    Attributes:
        one: int (n,): class, -1 = none or unknown; of rows with several the first.
        tags: For each row all its classes, sorted; None if no row has several.
        raw: As they came in, "" = none.
        column: Where they stood.
        note: What the user should know, or "".
    """

    one: np.ndarray
    tags: list[tuple[int, ...]] | None
    raw: list[str]
    column: str
    note: str


def read_classes(path: Path) -> ClassList:
    """Read classes.yaml (a list or a mapping) or names.txt (a name a line, or NAME<tab>DEFINITION).

    Raises:
        UsageError: If the file is missing or malformed, a name stands twice, or there are fewer than two classes.
    """
    if not path.is_file():
        raise UsageError(f"`classes` {path} is not a file: name a classes.yaml or a names.txt.")
    try:
        text = path.read_text(encoding="utf-8-sig")
        items = _yaml_items(text, path) if path.suffix.lower() in (".yaml", ".yml", ".json") else _text_items(text)
    except UsageError:
        raise
    except (OSError, ValueError) as error:
        raise UsageError(f"`classes` {path} could not be read: {' '.join(str(error).split())}.") from error
    return make_classes(items, str(path))


def make_classes(items: Sequence[tuple[str, Sequence[str]]], where: str = "the list") -> ClassList:
    """Classes from names and definitions; names are compared without regard to case, spaces and underscores."""
    names, senses, undefined = [], [], []
    for name, given in items:
        found = [sense.strip() for sense in given if sense.strip()]
        if not found and SYNSET.fullmatch(name):
            name, found = _wordnet(name)
        names.append(name)
        senses.append(tuple(dict.fromkeys(found)) or (name,))
        undefined += [] if found else [name]
    twice = [name for name, count in Counter(map(_plain, names)).items() if count > 1]
    if twice:
        raise UsageError(f"`classes` {where} holds {twice[0]!r} twice: keep one, with all its definitions.")
    if len(names) < 2:
        raise UsageError(f"`classes` {where} holds {len(names)} classes, expected at least two.")
    return ClassList(names=tuple(names), senses=tuple(senses), undefined=tuple(undefined))


def resolve_labels(rows: Sequence[Mapping[str, Any]], classes: ClassList, label_col: str | None, where: str) -> Labels:
    """Labels of rows as places in the class list.

    Args:
        rows: Columns of each row.
        classes: The list.
        label_col: The column, or None to take the one whose values are most often in the list.
        where: Name of the source, for messages.

    Raises:
        UsageError: If the column does not exist, or holds hardly anything of the list.
    """
    names = list(dict.fromkeys(name for row in rows for name in row))
    open_names = [name for name in names if not is_truth(name.lower())]
    if label_col is not None:
        if label_col not in names:
            raise UsageError(f"There is no column {label_col!r} (`label_col`) in {where}; it has: {listed(names)}.")
        found = _resolve([row.get(label_col) for row in rows], classes, label_col)
    else:
        tried = [name for name in open_names if name.lower() not in ANSWERS]
        best, share = None, 0.0
        for name in sorted(tried, key=lambda x: (x.lower() not in LABEL_NAMES, x)):
            probe = [row.get(name) for row in rows[:: max(1, len(rows) // 2000)]]
            value = _share(_resolve(probe, classes, name), probe)
            if value > share + 1e-9:
                best, share = name, value
        if best is None or share < KNOWN_SHARE:
            raise UsageError(f"No column of {where} holds names of `classes`: name it with `label_col`; the columns "
                             f"are: {listed(names)}.")  # fmt: skip
        found = _resolve([row.get(best) for row in rows], classes, best)
    if not (found.one >= 0).any():
        sample = next((value for value in found.raw if value), "nothing")
        raise UsageError(f"Not one value of column {found.column!r} is in `classes`: it holds for example {sample!r}, "
                         f"the list {classes.names[0]!r}.")  # fmt: skip
    return found


def _resolve(values: Sequence[Any], classes: ClassList, column: str) -> Labels:
    place = {_plain(name): i for i, name in enumerate(classes.names)}
    numbers = all(v is None or (isinstance(v, int) and not isinstance(v, bool)) for v in values)
    by_number = numbers and not any(str(v) in place for v in values if v is not None)
    one, tags, raw, several = np.full(len(values), -1), [], [], False
    for row, value in enumerate(values):
        listed = value if isinstance(value, list | tuple) else [value]
        if isinstance(value, str) and _plain(value) not in place and SEPARATORS.search(value):
            listed = SEPARATORS.split(value)
        words = [item for item in listed if item is not None and str(item).strip()]
        several |= len(words) > 1 or isinstance(value, list | tuple)
        raw.append(" | ".join(str(word) for word in words))
        if by_number:
            found = [int(word) for word in words if 0 <= int(word) < len(classes.names)]
        else:
            found = [place[_plain(str(word))] for word in words if _plain(str(word)) in place]
        one[row] = found[0] if found else -1
        tags.append(tuple(sorted(set(found))))
    note = "numbers are taken for places in the class list, from 0" if by_number else ""
    return Labels(one=one, tags=tags if several else None, raw=raw, column=column, note=note)


def _share(found: Labels, values: Sequence[Any]) -> float:
    return float((found.one >= 0).sum() / max(len(values), 1))


def _plain(name: str) -> str:
    return " ".join(re.split(r"[\s_-]+", name.strip().casefold()))


def plain_name(name: str) -> str:
    """A name without regard to case, spaces, underscores and hyphens."""
    return _plain(name)


def _yaml_items(text: str, path: Path) -> list[tuple[str, Sequence[str]]]:
    body = load_yaml(text)
    if isinstance(body, Mapping) and set(body) == {"classes"}:
        body = body["classes"]
    if isinstance(body, Mapping):
        _refuse_twice(text, path)
        return [(str(name), _senses(value, name, path)) for name, value in body.items()]
    if not isinstance(body, list):
        raise UsageError(f"`classes` {path} holds neither a list nor a mapping of classes.")
    out: list[tuple[str, Sequence[str]]] = []
    for item in body:
        if isinstance(item, Mapping) and "name" in item:
            out.append(
                (str(item["name"]), _senses(item.get("definition", item.get("definitions")), item["name"], path))
            )
        elif isinstance(item, Mapping) and len(item) == 1:
            name, value = next(iter(item.items()))
            out.append((str(name), _senses(value, name, path)))
        elif isinstance(item, str | int):
            out.append((str(item), []))
        else:
            raise UsageError(f"`classes` {path}: {item!r} is no class; write NAME: DEFINITION.")
    return out


def _refuse_twice(text: str, path: Path) -> None:
    """YAML keeps the last of two equal keys in silence."""
    tree = yaml.compose(text)
    if isinstance(tree, yaml.MappingNode):
        nodes = [tree, *(value for _, value in tree.value if isinstance(value, yaml.MappingNode))]
        for node in nodes:
            for name, count in Counter(_plain(str(key.value)) for key, _ in node.value).items():
                if count > 1:
                    raise UsageError(f"`classes` {path} holds {name!r} twice: keep one, with all its definitions.")


def _senses(value: Any, name: Any, path: Path) -> list[str]:
    if value is None:
        return []
    listed = value if isinstance(value, list) else [value]
    if any(isinstance(item, Mapping | list) for item in listed):
        raise UsageError(f"`classes` {path}: the definition of {name!r} is {value!r}, expected a text or several.")
    return [str(item) for item in listed if item is not None]


def _text_items(text: str) -> list[tuple[str, Sequence[str]]]:
    lines = [line.split("\t") for line in text.splitlines() if line.strip() and not line.startswith("#")]
    return [(line[0].strip(), line[1:]) for line in lines]


def _wordnet(name: str) -> tuple[str, list[str]]:
    """Lemma and definition of a synset, by nltk's or wn's WordNet."""
    try:
        from nltk.corpus import wordnet

        synset = (wordnet.synset_from_pos_and_offset(name[0], int(name[1:])) if re.fullmatch(r"n\d{8}", name)
                  else wordnet.synset(name))  # fmt: skip
        return name, [f"{', '.join(word.replace('_', ' ') for word in synset.lemma_names())}: {synset.definition()}"]
    except Exception as first:
        try:
            import wn

            synset = wn.synset(f"oewn-{name[1:]}-{name[0]}" if re.fullmatch(r"n\d{8}", name) else name)
            return name, [f"{', '.join(synset.lemmas())}: {synset.definition()}"]
        except Exception:
            raise UsageError(
                f"class {name!r} looks like a WordNet id, but WordNet is not installed or does not hold it "
                f"({type(first).__name__}): install nltk and its data `wordnet`, or write NAME: DEFINITION."
            ) from first
