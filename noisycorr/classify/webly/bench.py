"""`noisycorr bench webly`: sets x noise x methods x seeds, from sources or runs of `clean` that have classes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from os import PathLike
from typing import Annotated, Any

import numpy as np

from noisycorr.classify.classes import class_names, column_values, encode_names
from noisycorr.classify.webly.choice import RETRIEVAL_ONLY, TrainClasses
from noisycorr.classify.webly.study import WeblySet, method_of, run_cell
from noisycorr.clean.bench import BenchResult, Metric, Row, grid, markdown, metric_tables, plot, run_grid, shown
from noisycorr.clean.bench_sets import check_bench, listed
from noisycorr.clean.signals.crossfit import reduce_width
from noisycorr.clean.sources import embedded_run
from noisycorr.data.store import open_features, read_facts
from noisycorr.models.training.batches import stream_seed
from noisycorr.runtime.errors import UsageError, check_least
from noisycorr.runtime.folder import Run, new_run
from noisycorr.runtime.lock import at_work
from noisycorr.runtime.signature import Without, flat

TEST, UNKNOWN = 0.3, 0.15  # share of the groups that test; share of the classes that are held back as unknown
GROUPS = 8  # of classes, for confusions of similar ones
KINDS = ("diffuse", "semantic", "natural")
METRICS = (
    Metric(name="top1", title="Top-1 accuracy on clean test samples of known classes, %", scale=100),
    Metric(name="mixed", title="The same, mean over the classes that share a name with another, %", scale=100),
    Metric(name="macro", title="The same, mean over all classes, %", scale=100),
    Metric(name="auroc", title="AUROC of wrong training labels by what the method thinks of them at the end", digits=3),
    Metric(name="precision", title="Share of changed labels that are right now", digits=3),
    Metric(name="recall", title="Share of wrong labels of samples of a known class that were put right", digits=3),
    Metric(name="cf1", title="Open set: mean C-F1 over thresholds", digits=3),
    Metric(name="seconds", title="CPU seconds of one training", better="none"),
)
FACTS = (
    Metric(name="wrong", title="wrong labels", scale=100),
    Metric(name="auc_raw", title="AUROC of the text match, texts as they came", digits=3),
    Metric(name="auc_completed", title="AUROC of the text match, completed", digits=3),
    Metric(name="anchor_precision", title="trusted samples that are right", digits=3),
)
LINES: dict[str, Callable[[Row], str]] = {"set": lambda row: row["set"], "noise": lambda row: row["noise"]}


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


@dataclass(frozen=True, kw_only=True)
class Bench:
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
        check_bench(self, {"noise": KINDS})
        check_least(self, {"anchors": 1, "fewest": 2})
        for text in listed(self.sets):
            parse_set(text)

    def cells(self, natural: bool) -> list[Row]:
        """Every training on one set: `noise`, `method`, `seed` and `anchors`."""
        for method in listed(self.methods):
            method_of(method)
        kinds = [kind for kind in listed(self.noise) if (kind == "natural") == natural]
        return grid(
            seed=list(map(int, listed(self.seeds))), noise=kinds, method=listed(self.methods), anchors=[self.anchors]
        )


@flat
def bench_webly(
    output_folder: str | PathLike[str], *, bench: Bench = Bench(),
    train: Annotated[
        TrainClasses, Without("seed", "resume", "save_every", "keep_checkpoints", *RETRIEVAL_ONLY)
    ] = TrainClasses(),
    clip_model: str = "embedded", caption_col: str | None = None,
) -> BenchResult:  # fmt: skip
    """Compare methods that learn a classifier from wrong labels, on frozen features; with tables.

    Puts diffuse or semantic noise into labels and texts of each set, or takes the labels that people gave, trains each
    method with the same budget, and reports on clean test samples. What is done is not done again.

    Args:
        output_folder: Folder for features, cells and tables; made if absent.
        clip_model: Encoder of sources that are not embedded yet, and of class names where the embeddings came without
            an encoder.
        caption_col: Column of their texts; detected if none.

    Returns:
        The rows and tables.

    Raises:
        UsageError: If a set cannot be read, lacks a column, or has too few classes.
    """
    run = new_run(output_folder)
    plan = []
    for text in listed(bench.sets):
        if cells := bench.cells(natural="label" in parse_set(text)[2]):
            plan.append((partial(load_set, text, bench, run, caption_col, clip_model), cells))
    if not plan:
        raise UsageError(f"`noise` {bench.noise} goes to none of the sets: natural needs a set with +label=COLUMN.")
    with at_work(run.folder, "bench webly"):
        return run_grid(
            run, plan, lambda data, cell: run_cell(data, cell, train, run), line=_line, tables=tables,
            settings={"bench": vars(bench), "train": train.settings()},
            draw=partial(plot, metric=METRICS[0], x="noise", x_title="noise", panel=LINES["set"]),
        )  # fmt: skip


def load_set(text: str, choice: Bench, run: Run, caption_col: str | None, clip_model: str) -> WeblySet:
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


def _line(row: Row) -> str:
    more = [f"{word} {row[key]:.3f}" for key, word in (("auroc", "AUROC"), ("precision", "precision of changes"))
            if row[key] is not None] + [f"{row['seconds']:.0f} s"]  # fmt: skip
    mixed = f" (mixed {100 * row['mixed']:.1f})" if row["mixed"] is not None else ""
    return (f"{row['set']} {row['noise']}, {row['method']}, seed {row['seed']}: top-1 {100 * row['top1']:.1f}{mixed}, "
            f"{', '.join(more)}")  # fmt: skip


def tables(rows: list[Row]) -> str:
    """What the noise made of the sets, and a table for each metric."""
    head = [*LINES, "samples", "classes", *(fact.title for fact in FACTS)]
    lines = []
    for place in dict.fromkeys((row["set"], row["noise"]) for row in rows):
        some = [row for row in rows if (row["set"], row["noise"]) == place]
        by_seed = {row["seed"]: row for row in some}.values()  # the same for all methods
        facts = [shown(fact.values(by_seed), fact.digits) for fact in FACTS]
        lines.append([*place, f"{some[0]['samples']:,}", f"{some[0]['classes']}", *facts])
    return "\n\n".join([markdown(head, lines, "The sets, after noise"), metric_tables(rows, METRICS, LINES)])
