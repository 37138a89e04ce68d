"""`noisycorr bench webly`: sets x noise x methods x seeds, from sources or runs of `clean` that have classes."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, fields
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from noisycorr.classify.classes import class_names, column_values, encode_names
from noisycorr.classify.webly.choice import TrainClasses
from noisycorr.classify.webly.study import WeblySet, run_cell
from noisycorr.classify.webly.tables import write_tables
from noisycorr.clean.bench_sets import listed
from noisycorr.clean.signals.crossfit import reduce_width
from noisycorr.clean.sources import embedded_run
from noisycorr.data.store import open_features, read_facts
from noisycorr.models.training.batches import stream_seed
from noisycorr.runtime import console
from noisycorr.runtime.errors import UsageError, check_least
from noisycorr.runtime.folder import Run, provenance, write_json

if TYPE_CHECKING:
    from noisycorr.classify.webly.study import Cell

TEST, UNKNOWN = 0.3, 0.15  # share of the groups that test; share of the classes that are held back as unknown
GROUPS = 8  # of classes, for confusions of similar ones


def bench_webly(choice: BenchWebly, train: TrainClasses, run: Run, *, caption_col: str | None,
                clip_model: str) -> list[dict[str, Any]]:  # fmt: skip
    """Run what is missing, and write the tables.

    Args:
        choice: What to run.
        train: The budget of each training, the same for all; its seed is not used.
        run: The folder.
        caption_col: Column of the texts of sources that are not embedded yet.
        clip_model: Their encoder.

    Returns:
        All rows.
    """
    write_json(run.path("provenance.json"), provenance())
    write_json(run.path("bench.json"), {"bench": vars(choice), "train": train.settings()})
    plans = []
    for text in listed(choice.sets):
        cells = choice.cells(natural="label" in parse_set(text)[2])
        plans.append((partial(load_set, text, choice, run, caption_col, clip_model), cells))
    total = sum(len(cells) for _, cells in plans)
    if not total:
        raise UsageError(f"`noise` {choice.noise} goes to none of the sets: natural needs a set with +label=COLUMN.")
    rows: list[dict[str, Any]] = []
    for load, cells in plans:
        data = load() if cells else None
        for cell in cells:
            assert data is not None
            rows.append(run_cell(data, cell, train, run))
            console.say(f"{len(rows)}/{total} {_line(rows[-1])}")
        if cells:
            write_tables(rows, run.folder)
    return rows


def load_set(text: str, choice: BenchWebly, run: Run, caption_col: str | None, clip_model: str) -> WeblySet:
    """A set from its spec, embedded into the folder if it is not a run already.

    Raises:
        UsageError: If it lacks a column, or has fewer than 4 classes of enough samples.
    """
    name, place, columns = parse_set(text)
    source = embedded_run(place, run.folder / "features" / name, caption_col=caption_col, clip_model=clip_model)
    image, words = (np.concatenate(open_features(source, side)) for side in ("image", "text"))
    found = {kind: column_values(source, column) for kind, column in columns.items()}
    rows = np.flatnonzero(image.any(1) & np.array([value is not None for value in found["class"]]))
    rng = np.random.default_rng(stream_seed("webly", name))
    if choice.limit and len(rows) > choice.limit:
        rows = np.sort(rng.permutation(rows)[: choice.limit])
    values = [str(found["class"][row]) for row in rows]
    names, count = np.unique(values, return_counts=True)
    large = names[count >= choice.fewest]
    held = set() if "label" in columns else set(rng.permutation(large)[: round(UNKNOWN * len(large))].tolist())
    classes = [str(one) for one in large if one not in held]
    if len(classes) < 4:
        raise UsageError(f"the set {name} has {len(classes)} classes of {choice.fewest} samples or more; at least 4 "
                         "are needed: lower `fewest`.")  # fmt: skip
    place_of = {one: number for number, one in enumerate(classes)}
    truth = np.array([place_of.get(value, -1) for value in values])
    given = None
    if "label" in columns:
        given = np.array([place_of.get(str(found["label"][row]), -1) for row in rows])
        rows, truth, given = (x[(given >= 0) & (truth >= 0)] for x in (rows, truth, given))
    blocks = _groups(source, found.get("group"), rows)
    _, inverse = np.unique(blocks, return_inverse=True)
    side = rng.random(inverse.max() + 1) < TEST
    if not side.any() or side.all():
        raise UsageError(f"the set {name} has {len(side)} groups of samples, too few to train and test on: name "
                         "another +group=COLUMN, or none.")  # fmt: skip
    names_there = encode_names(source, class_names(classes), clip_model)
    stage = source.stage("embed") or {}
    features = reduce_width([image[rows]], choice.width) if choice.width else image[rows]
    return WeblySet(
        name=name, image=features, text=words[rows], has_text=np.asarray(words[rows].any(1)), truth=truth, given=given,
        group=_similar(names_there), class_text=names_there, test=side[inverse],
        identity=[stage.get("fingerprint"), columns, choice.fewest, choice.limit, choice.width],
    )  # fmt: skip


def _groups(source: Run, values: list[Any] | None, rows: np.ndarray) -> np.ndarray:
    """What must stay on one side: the given column, or equal pictures."""
    if values is None:
        values = read_facts(source, ["image_hash"]).column("image_hash").to_pylist()
    return np.array([f"row {row}" if values[row] is None else str(values[row]) for row in rows])


def _similar(names: np.ndarray) -> np.ndarray:
    """int64 (c,): classes of similar names, by k-means."""
    from sklearn.cluster import KMeans

    wide = names.astype(np.float64)
    found: np.ndarray = KMeans(min(GROUPS, len(wide)), n_init=3, random_state=0).fit_predict(wide)
    return found


def _line(row: dict[str, Any]) -> str:
    more = [f"{word} {row[key]:.3f}" for key, word in (("auroc", "AUROC"), ("precision", "precision of changes"))
            if row[key] is not None] + [f"{row['seconds']:.0f} s"]  # fmt: skip
    mixed = f" (mixed {100 * row['mixed']:.1f})" if row["mixed"] is not None else ""
    return (f"{row['set']} {row['noise']}, {row['method']}, seed {row['seed']}: top-1 {100 * row['top1']:.1f}{mixed}, "
            f"{', '.join(more)}")  # fmt: skip


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
                raise UsageError(f"`{field.name}` is empty.")
        check_least(self, {"anchors": 1, "fewest": 2, "limit": 0, "width": 0})
        for kind in listed(self.noise):
            if kind not in KINDS:
                raise UsageError(f"`noise` names {kind!r}, expected some of {', '.join(KINDS)}.")
        for text in listed(self.sets):
            parse_set(text)

    def cells(self, natural: bool) -> list[Cell]:
        """Every training on one set, seed by seed, so that an interrupted benchmark has whole rows."""
        from noisycorr.classify.webly.study import Cell, method_of

        try:
            seeds = [int(seed) for seed in listed(self.seeds)]
        except ValueError as error:
            raise UsageError(f"`seeds` must be whole numbers: {error}.") from error
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
        raise UsageError(f"`sets` has {text!r}, expected NAME=SOURCE:class=COLUMN, then +group=COLUMN, +label=COLUMN.")
    return name.strip(), place, columns
