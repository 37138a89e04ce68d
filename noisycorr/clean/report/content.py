"""What the pictures and texts are like: sizes, formats, repetition, scripts, words, and where they came from."""

from __future__ import annotations

import functools
import re
import unicodedata
from collections import Counter
from typing import Any

import numpy as np

from noisycorr.clean.report.batches import Batch
from noisycorr.clean.report.frequency_sketch import FrequencySketch, Numbers, clip, decile_ratio, gini

TEXTS = 20_000  # texts whose letters and words are looked at
LENGTHS = (1, 5, 10, 20, 40, 80, 160, 320, 640)  # characters; the last bin is open
ASPECTS = (0.33, 0.5, 0.75, 0.95, 1.05, 1.33, 2.0, 3.0)  # width / height
HOST = re.compile(r"\s*[A-Za-z][\w+.-]*://(?:[^/?#@]*@)?([^/?#:@]+)")
WORD = re.compile(r"[^\W\d_]{3,}")
ADDRESS = ("url", "image_url", "image_urls", "source_url")
LICENCE = ("license", "licence", "style_license", "rights")


class Content:
    """Facts of pictures and texts, in bounded memory."""

    def __init__(self) -> None:
        self.sizes = {name: Numbers() for name in ("width", "height", "megapixels", "text_length")}
        self.formats: Counter[str] = Counter()
        self.aspects = np.zeros(len(ASPECTS) + 1, np.int64)
        self.animated = self.pictures = 0
        self.joint = np.zeros((len(LENGTHS), 10), np.int64)  # text length by p_clean
        self.texts, self.hashes = FrequencySketch(limit=100_000), FrequencySketch(limit=100_000)
        self.words, self.sources = FrequencySketch(limit=100_000), FrequencySketch(limit=2000)
        self.scripts: Counter[str] = Counter()
        self.letters = self.characters = 0

    def add(self, batch: Batch, cells: list[dict[str, Any]]) -> None:
        """Add the rows of a batch.

        Args:
            batch: n rows.
            cells: Their n dictionaries of other input columns.
        """
        self._add_images(batch)
        self._add_texts(batch)
        names = sorted(set().union(*cells))
        addresses = [name for name in names if name.lower() in ADDRESS]
        licences = [name for name in names if name.lower() in LICENCE]
        if addresses or licences:
            given = ((_first(row, addresses), _first(row, licences)) for row in cells)
            self.sources.add(f"{_domain(a)}\t{clip(b or 'not stated', 100)}" for a, b in given if a or b)

    def _add_images(self, batch: Batch) -> None:
        sampled, width, height = batch.sampled(), batch.floats("width"), batch.floats("height")
        self.sizes["width"].add(width, sampled)
        self.sizes["height"].add(height, sampled)
        self.sizes["megapixels"].add(width * height / 1e6, sampled)
        good = (width > 0) & (height > 0)
        self.aspects += np.bincount(np.digitize(width[good] / height[good], ASPECTS), minlength=len(self.aspects))
        self.pictures += int(good.sum())
        self.animated += int((batch.floats("image_frames") > 1).sum())
        self.formats.update(clip(name, 20) for name in batch.strings("image_format") if name)
        self.hashes.add(code for code in batch.strings("image_hash") if code)

    def _add_texts(self, batch: Batch) -> None:
        lengths, p_clean = batch.floats("text_length"), batch.floats("p_clean")
        self.sizes["text_length"].add(lengths, batch.sampled())
        known = np.isfinite(p_clean) & (lengths >= 1)
        place = np.digitize(lengths[known], LENGTHS) - 1, np.clip((p_clean[known] * 10).astype(int), 0, 9)
        np.add.at(self.joint, place, 1)
        chosen = batch.sampled(TEXTS)
        texts = batch.strings("text")
        self.texts.add(_name(text, length) for text, length in zip(texts, lengths.tolist()) if text)
        for text in (text for text, use in zip(texts, chosen.tolist()) if use and text):
            signs = Counter(text)
            scripts: Counter[str] = Counter()
            for sign, count in signs.items():
                if script := _script(sign):
                    scripts[script] += count
            self.characters += len(text)
            self.letters += scripts.total()
            self.scripts[min(scripts, key=lambda name: (-scripts[name], name)) if scripts else "no letters"] += 1
            self.words.add(set(WORD.findall(text.lower())))

    def result(self) -> dict[str, Any]:
        """JSON by topic."""
        frequencies = self.words.frequencies()
        sources = [(*name.split("\t", 1), count) for name, count in self.sources.top(20)]
        return {
            "sizes": {name: numbers.result() for name, numbers in self.sizes.items()},
            "pictures": self.pictures,
            "animated": self.animated,
            "formats": dict(self.formats.most_common(20)),
            "aspects": {"edges": list(ASPECTS), "counts": self.aspects.tolist()},
            "image_repeats": _repeats(self.hashes, 0),
            "text_repeats": _repeats(self.texts, 10),
            "length_by_p_clean": {"lengths": list(LENGTHS), "counts": self.joint.tolist()},
            "scripts": dict(sorted(self.scripts.items(), key=lambda item: (-item[1], item[0]))[:12]),
            "alphabetic_share": self.letters / self.characters if self.characters else None,
            "texts_looked_at": self.scripts.total(),
            "words": {
                "distinct": self.words.distinct(),
                "exact": self.words.exact,
                "top": [{"value": clip(word, 40), "count": count} for word, count in self.words.top(15)],
                "gini": gini(frequencies),
                "decile_ratio": decile_ratio(frequencies),
            },
            "sources": [{"domain": domain, "licence": licence, "count": n} for domain, licence, n in sources],
        }


def _repeats(tally: FrequencySketch, number: int) -> dict[str, Any]:
    top = [{"value": name, "count": count} for name, count in tally.top(number) if count > 1]
    return {
        "count": tally.total,
        "distinct": tally.distinct(),
        "repeated": tally.repeated(),
        "exact": tally.exact,
        "top": top,
    }


def _name(text: str, length: float) -> str:
    """The text itself, or of a long one its beginning and length."""
    return text if len(text) <= 200 else f"{clip(text, 180)} ({int(length):,} characters)"


def _first(row: dict[str, Any], names: list[str]) -> str | None:
    """The first of these cells that is a string."""
    return next((cell for name in names if isinstance(cell := row.get(name), str)), None)


def _domain(address: str | None) -> str:
    """Host name of a web address."""
    found = HOST.match(address or "")
    return clip(found[1].lower(), 80) if found else "not stated"


@functools.lru_cache(maxsize=65_536)
def _script(sign: str) -> str:
    """First word of a letter's Unicode name (Latin, Cyrillic, Cjk ...), or "" for what is no letter."""
    return unicodedata.name(sign, "other").split()[0].capitalize() if sign.isalpha() else ""
