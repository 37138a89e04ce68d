"""What `noisycorr bench webly` runs. Light, so that the help comes at once."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

from noisycorr.learn.bench_words import listed
from noisycorr.pairs import UsageError, check_least

if TYPE_CHECKING:
    from noisycorr.webly.study import Cell

KINDS = ("diffuse", "semantic", "natural")


@dataclass(frozen=True, kw_only=True)
class BenchWebly:
    """What the benchmark of classifiers runs.

    Attributes:
        sets: NAME=SOURCE:class=COLUMN, joined by commas; SOURCE is a run folder, or what `clean` reads. More follows as
            +group=COLUMN (samples of equal value never stand on both sides of the split) and +label=COLUMN (labels as
            people gave them, for natural noise).
        noise: diffuse, semantic, natural, or some of them joined by commas; natural goes to sets with a label column,
            and the others to those without.
        methods: Methods, joined by commas; options follow as capro+faithful=true. oracle is plain training on the right
            labels alone.
        seeds: Of noise and training, joined by commas.
        anchors: Trusted samples of each class.
        fewest: Classes with fewer samples are held back as unknown.
        limit: Samples of each set, a random choice; 0 = all.
        width: Principal components kept of the image features; 0 = the features as they are.

    Raises:
        UsageError: If a list is empty, or holds a word that is not one of these.
    """

    sets: str = "sample=sample:class=folder"
    noise: str = "diffuse,semantic,natural"
    methods: str = "plain,confident,elr,elr_plus,nested,pls,pls_lsa,mopro,capro,oracle"
    seeds: str = "0,1,2"
    anchors: int = 10
    fewest: int = 20
    limit: int = 6000
    width: int = 256

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, str) and not listed(value):
                raise UsageError(f"--{field.name} is empty.")
        check_least(self, {"anchors": 1, "fewest": 2, "limit": 0, "width": 0})
        for kind in listed(self.noise):
            if kind not in KINDS:
                raise UsageError(f"--noise names {kind!r}, expected some of {', '.join(KINDS)}.")
        for text in listed(self.sets):
            parse_set(text)

    def cells(self, natural: bool) -> list[Cell]:
        """Every training on one set, seed by seed, so that an interrupted benchmark has whole rows."""
        from noisycorr.webly.study import Cell, method_of

        try:
            seeds = [int(seed) for seed in listed(self.seeds)]
        except ValueError as error:
            raise UsageError(f"--seeds must be whole numbers: {error}.") from error
        for method in listed(self.methods):
            method_of(method)
        kinds = [kind for kind in listed(self.noise) if (kind == "natural") == natural]
        return [Cell(noise=kind, method=method, seed=seed, anchors=self.anchors)  # type: ignore[arg-type]
                for seed, kind, method in itertools.product(seeds, kinds, listed(self.methods))]  # fmt: skip


def parse_set(text: str) -> tuple[str, str, dict[str, str]]:
    """Name, source and columns of `NAME=SOURCE:class=COLUMN+group=COLUMN+label=COLUMN`.

    Raises:
        UsageError: If it is something else.
    """
    name, sign, rest = text.partition("=")
    place, colon, options = rest.rpartition(":")
    columns = dict(part.split("=", 1) for part in options.split("+") if "=" in part)
    if not (sign and colon and place) or "class" not in columns or not set(columns) <= {"class", "group", "label"}:
        raise UsageError(f"--sets has {text!r}, expected NAME=SOURCE:class=COLUMN, then +group=COLUMN, +label=COLUMN.")
    return name.strip(), place, columns
