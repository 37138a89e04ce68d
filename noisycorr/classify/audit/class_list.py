"""The classes of an audit: names with their definitions, WordNet ids looked up, and labels resolved to them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from noisycorr.data.pairs import is_truth
from noisycorr.data.readers.class_names import read_class_names
from noisycorr.runtime.errors import UsageError, listed

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
    """Read a class list as `noisycorr.data.readers.class_names` does; ids are looked up in WordNet.

    Names are compared without regard to case, spaces, underscores and hyphens.

    Raises:
        UsageError: If the file is missing or malformed, a name stands twice, or there are fewer than two classes.
    """
    return make_classes(read_class_names(path, least=2, alike=plain_name))


def make_classes(definitions: Mapping[str, Sequence[str]]) -> ClassList:
    """Classes from definitions by name; a WordNet id without a definition gets that of its synset."""
    senses, undefined = [], []
    for name, given in definitions.items():
        known = list(given)
        if not known and SYNSET.fullmatch(name):
            known = _wordnet(name)
        senses.append(tuple(dict.fromkeys(known)) or (name,))
        undefined += [] if known else [name]
    return ClassList(names=tuple(definitions), senses=tuple(senses), undefined=tuple(undefined))


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
        labels = _resolve([row.get(label_col) for row in rows], classes, label_col)
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
        labels = _resolve([row.get(best) for row in rows], classes, best)
    if not (labels.one >= 0).any():
        sample = next((value for value in labels.raw if value), "nothing")
        raise UsageError(f"Not one value of column {labels.column!r} is in `classes`: it holds for example {sample!r}, "
                         f"the list {classes.names[0]!r}.")  # fmt: skip
    return labels


def _resolve(values: Sequence[Any], classes: ClassList, column: str) -> Labels:
    position = {plain_name(name): i for i, name in enumerate(classes.names)}
    numbers = all(v is None or (isinstance(v, int) and not isinstance(v, bool)) for v in values)
    # The classes themselves may be called 0 to 9: then a number is a name and no place in the list.
    by_number = numbers and not any(str(v) in position for v in values if v is not None)
    first, tags, raw, several = np.full(len(values), -1), [], [], False
    for row, value in enumerate(values):
        listed = value if isinstance(value, list | tuple) else [value]
        # A class may have a separator in its name, such as "cat | dog": only what is no name as a whole is split.
        if isinstance(value, str) and plain_name(value) not in position and SEPARATORS.search(value):
            listed = SEPARATORS.split(value)
        words = [item for item in listed if item is not None and str(item).strip()]
        several |= len(words) > 1 or isinstance(value, list | tuple)
        raw.append(" | ".join(str(word) for word in words))
        if by_number:
            known = [int(word) for word in words if 0 <= int(word) < len(classes.names)]
        else:
            known = [position[plain_name(str(word))] for word in words if plain_name(str(word)) in position]
        first[row] = known[0] if known else -1
        tags.append(tuple(sorted(set(known))))
    note = "numbers are taken for places in the class list, from 0" if by_number else ""
    return Labels(one=first, tags=tags if several else None, raw=raw, column=column, note=note)


def _share(found: Labels, values: Sequence[Any]) -> float:
    return float((found.one >= 0).sum() / max(len(values), 1))


def plain_name(name: str) -> str:
    """A name without regard to case, spaces, underscores and hyphens."""
    return " ".join(re.split(r"[\s_-]+", name.strip().casefold()))


def _wordnet(name: str) -> list[str]:
    """Lemmas and definition of a synset, by nltk's or wn's WordNet."""
    try:
        from nltk.corpus import wordnet

        synset = (wordnet.synset_from_pos_and_offset(name[0], int(name[1:])) if re.fullmatch(r"n\d{8}", name)
                  else wordnet.synset(name))  # fmt: skip
        return [f"{', '.join(word.replace('_', ' ') for word in synset.lemma_names())}: {synset.definition()}"]
    except Exception as first:
        try:
            import wn

            synset = wn.synset(f"oewn-{name[1:]}-{name[0]}" if re.fullmatch(r"n\d{8}", name) else name)
            return [f"{', '.join(synset.lemmas())}: {synset.definition()}"]
        except Exception:
            raise UsageError(
                f"class {name!r} looks like a WordNet id, but WordNet is not installed or does not hold it "
                f"({type(first).__name__}): install nltk and its data `wordnet`, or write NAME: DEFINITION."
            ) from first
