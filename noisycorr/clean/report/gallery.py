"""Which pairs to show: the most telling few of each kind, found in one pass with small heaps."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from noisycorr.clean.report.batches import TEXT, Batch, Survey, read_binary
from noisycorr.clean.report.frequency_sketch import clip
from noisycorr.data.pairs import PROBLEMS
from noisycorr.runtime.folder import Run

SHOWN = 24  # thumbnails of a gallery
MEMBERS = 4  # of a near-duplicate group
REACH = 0.2  # how far from the threshold a pair may be to count as borderline
NEW = ("replaced", "flagged")  # galleries of new texts
CODES = 16  # kinds of image or text issue that are told apart
THUMBNAIL_BYTES = 192 * 1024
ALL_THUMBNAIL_BYTES = 10 * 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Card:
    """One pair as it is shown. `row` is its place in the whole set, `position` its place in `piece`."""

    row: int
    piece: str
    position: int
    key: str
    text: str | None
    text_length: int
    p_clean: float | None
    verdict: str
    reason: str
    label: str  # code of the issue, or of the reader's problem, or ""
    group: str | None
    group_kind: str | None
    keeper: bool
    proposed: str | None = None  # a new text
    p_given: float | None = None  # probability that the given text fits, by the scorers of `recaption`
    p_new: float | None = None  # that the new one does
    source: str = ""  # who made it
    jpeg: bytes | None = None
    size: tuple[int, int] = (0, 0)  # of the thumbnail, in pixels


class Best:
    """The `size` rows with the lowest rank; ties go to the earlier row."""

    def __init__(self, size: int = SHOWN) -> None:
        self.size = size
        self.items: list[tuple[float, float, int, Card]] = []

    def add(self, first: np.ndarray, second: np.ndarray, row: int, make: Callable[[int], Card]) -> None:
        """Offer a batch.

        Args:
            first: (n,) rank, lower = better; NaN = not to be shown.
            second: (n,) rank that decides between equal ones; NaN comes last.
            row: Row number of the first of them.
            make: Makes the card of the i-th.
        """
        second = np.where(np.isfinite(second), second, np.inf)
        good = np.isfinite(first)
        if len(self.items) == self.size:
            worst, last = self.items[-1][0], self.items[-1][1]
            good &= (first < worst) | ((first == worst) & (second < last))
        places = np.flatnonzero(good)
        order = places[np.lexsort((places, second[places], first[places]))][: self.size]
        self.items += [(float(first[i]), float(second[i]), row + int(i), make(int(i))) for i in order]
        self.items = sorted(self.items, key=lambda item: item[:3])[: self.size]

    def cards(self) -> list[Card]:
        """Best first."""
        return [item[3] for item in self.items]


class Galleries:
    """Candidates for every gallery.

    Args:
        threshold: `p_clean` below which a pair counts as mismatched.
        surveyed: The survey, which names the largest near-duplicate groups.
    """

    def __init__(self, threshold: float, surveyed: Survey) -> None:
        self.threshold = threshold
        self.ranked = {name: Best(SHOWN * 6) for name in ("wrong", "right", "borderline")}
        self.new = {name: Best(SHOWN * 6) for name in NEW}
        self.coded: dict[str, dict[str, Best]] = {"image": {}, "text": {}}
        self.groups: dict[str, list[Card]] = {name: [] for name in surveyed.groups}
        self.sizes = surveyed.groups

    def add(self, batch: Batch) -> None:
        """Offer the rows of a batch to every gallery."""
        p_clean, score = batch.floats("p_clean"), batch.floats("score_pair")
        lists = {name: batch.strings(name) for name in _STRINGS}
        lengths, keeper = batch.floats("text_length"), batch.flags("is_group_keeper")

        def card(i: int, kind: str | None = None) -> Card:
            code = (lists[f"{kind}_issue"][i] if kind else None) or lists["problem"][i] or ""
            reason = lists["reason"][i] or PROBLEMS.get(code, "")
            return Card(
                row=batch.row + i, piece=batch.piece, position=batch.start + i, key=lists["key"][i] or "",
                text=lists["text"][i], text_length=int(np.nan_to_num(lengths[i])),
                p_clean=float(p_clean[i]) if np.isfinite(p_clean[i]) else None,
                verdict=lists["verdict"][i] or "", reason=clip(reason, 400), label=clip(code, 40),
                group=lists["near_duplicate_group"][i], group_kind=lists["group_kind"][i], keeper=bool(keeper[i]),
            )  # fmt: skip

        low, near = p_clean < self.threshold, np.abs(p_clean - self.threshold)
        self.ranked["wrong"].add(np.where(low, p_clean, np.nan), score, batch.row, card)
        self.ranked["right"].add(np.where(low, np.nan, -p_clean), -score, batch.row, card)
        self.ranked["borderline"].add(np.where(near <= REACH, near, np.nan), score, batch.row, card)
        self._add_new(batch, card)
        for kind, by_code in self.coded.items():
            self._add_coded(kind, by_code, batch, lists, card)
        for i, group in enumerate(lists["near_duplicate_group"]):
            if group in self.groups:
                members = self.groups[group]
                if keeper[i]:
                    members.insert(0, card(i))
                elif len(members) < MEMBERS:
                    members.append(card(i))
                del members[MEMBERS:]

    def _add_new(self, batch: Batch, card: Callable[[int], Card]) -> None:
        """Pairs with a new text, those first that gain most."""
        action = np.array(batch.strings("recaption"), dtype=object)
        if not any(action):
            return
        texts, sources = batch.strings("text_proposed"), batch.strings("text_source")
        old, new = batch.floats("score_text_given"), batch.floats("score_text_new")

        def make(i: int) -> Card:
            return replace(
                card(i), proposed=clip(texts[i] or "", TEXT), source=clip(sources[i] or "", 60),
                p_given=float(old[i]) if np.isfinite(old[i]) else None,
                p_new=float(new[i]) if np.isfinite(new[i]) else None,
            )  # fmt: skip

        gain = np.nan_to_num(old) - new
        for name, actions in (("replaced", ("replace", "merge")), ("flagged", ("flag",))):
            self.new[name].add(np.where(np.isin(action, actions), gain, np.nan), -new, batch.row, make)

    def _add_coded(
        self, kind: str, by_code: dict[str, Best], batch: Batch, lists: dict[str, list[str | None]],
        card: Callable[[int, str | None], Card],
    ) -> None:  # fmt: skip
        flags, score = batch.flags(f"is_{kind}_issue"), batch.floats(f"{kind}_score")
        if not flags.any():
            return
        codes = np.array([code or "unnamed" for code in lists[f"{kind}_issue"]], dtype=object)
        for code in sorted(set(codes[flags])):
            if code in by_code or len(by_code) < CODES:
                best = by_code.setdefault(code, Best())
                first = np.where(flags & (codes == code), np.nan_to_num(score, nan=0.0), np.nan)
                best.add(first, np.zeros(len(first)), batch.row, lambda i: card(i, kind))

    def chosen(self) -> dict[str, list[Card]]:
        """At most `SHOWN` cards by gallery: wrong, right, borderline, image, text; and new texts if there are."""
        out = {name: cards for name, best in self.new.items() if (cards := _varied(best.cards()))}
        out |= {name: _varied(best.cards()) for name, best in self.ranked.items()}
        for kind, by_code in self.coded.items():
            out[kind] = _round_robin([by_code[code].cards() for code in sorted(by_code)])[:SHOWN]
        return out

    def chosen_groups(self) -> list[list[Card]]:
        """Groups of near-duplicates, largest first but every kind of group in turn; `SHOWN` cards at most."""
        kinds: dict[str, list[list[Card]]] = {}
        for cards in self.groups.values():
            if len(cards) > 1:
                kinds.setdefault(cards[0].group_kind or "", []).append(cards)
        return _round_robin([kinds[kind] for kind in sorted(kinds)])[: SHOWN // MEMBERS]


_STRINGS = (
    "key", "text", "verdict", "reason", "problem", "image_issue", "text_issue", "near_duplicate_group", "group_kind",
)  # fmt: skip


def with_thumbnails(run: Run, cards: list[Card]) -> list[Card]:
    """The same cards with their thumbnails, where there is a JPEG of bearable size; equal rows are read once."""
    wanted: dict[str, set[int]] = {}
    for card in cards:
        wanted.setdefault(card.piece, set()).add(card.position)
    thumbnails: dict[tuple[str, int], bytes] = {}
    for piece, positions in sorted(wanted.items()):
        values = read_binary(run.folder / "pairs" / f"{piece}.parquet", "thumbnail", sorted(positions))
        thumbnails |= {(piece, position): data for position, data in values.items()}
    out, spent = [], 0
    for card in cards:
        jpeg = thumbnails.get((card.piece, card.position), b"")
        size = jpeg_size(jpeg)
        if size is None or spent + len(jpeg) > ALL_THUMBNAIL_BYTES:
            out.append(card)
            continue
        spent += len(jpeg)
        out.append(replace(card, jpeg=jpeg, size=size))
    return out


def strip(run: Run, count: int) -> list[Card]:
    """Cards with thumbnails of the pairs with the lowest p_clean, for a look at a decided run."""
    best, row = Best(count), 0
    for path in sorted((run.folder / "ledger").glob("*.parquet")):
        table = pq.read_table(path, columns=["key", "p_clean", "score_pair", "verdict", "reason"])
        texts = pq.read_table(run.folder / "pairs" / path.name, columns=["text"]).column("text")
        p_clean, score = (table.column(name).to_numpy().astype(np.float64) for name in ("p_clean", "score_pair"))

        def card(i: int, table: pa.Table = table, texts: pa.ChunkedArray = texts, piece: str = path.stem,
                 p: np.ndarray = p_clean, start: int = row) -> Card:  # fmt: skip
            text, cells = (
                texts[i].as_py(),
                {name: table.column(name)[i].as_py() for name in ("key", "verdict", "reason")},
            )
            return Card(row=start + i, piece=piece, position=i, key=cells["key"], text=text,
                        text_length=len(text or ""), p_clean=float(p[i]), verdict=cells["verdict"] or "",
                        reason=cells["reason"] or "", label="", group=None, group_kind=None, keeper=False)  # fmt: skip

        best.add(p_clean, score, row, card)
        row += len(table)
    return with_thumbnails(run, best.cards())


def jpeg_size(data: bytes) -> tuple[int, int] | None:
    """Width and height if the bytes are a JPEG that a page may show."""
    if not data.startswith(b"\xff\xd8\xff") or len(data) > THUMBNAIL_BYTES:
        return None
    try:
        with Image.open(io.BytesIO(data), formats=["JPEG"]) as image:
            return image.size
    except (OSError, ValueError, Image.DecompressionBombError):
        return None


def _varied(cards: list[Card]) -> list[Card]:
    """The first `SHOWN` cards, with at most two of one text and one of a near-duplicate group."""
    out: list[Card] = []
    texts: dict[str | None, int] = {}
    groups: set[str] = set()
    for card in cards:
        if texts.get(card.text, 0) < 2 and (card.group is None or card.group not in groups):
            out.append(card)
            texts[card.text] = texts.get(card.text, 0) + 1
            groups |= {card.group} if card.group else set()
    return out[:SHOWN]


def _round_robin(lists: list[list[Any]]) -> list[Any]:
    """First of each list, then second of each, and so on."""
    longest = max((len(items) for items in lists), default=0)
    return [items[i] for i in range(longest) for items in lists if i < len(items)]
