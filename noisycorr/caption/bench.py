"""`noisycorr bench caption`: sets x noise x ratios x methods x seeds; what captioners learn from wrong texts.

A cell is one method on one set; its result is one small file, so that the same command continues. Methods that differ
in how they write alone, such as `filter` and `filter+samples=8`, share one training, whose seconds the first has.

Scores that levels, weights and filters go by are those that `noisycorr clean` would give to the noisy pairs; for the
noise `concept` those of a scorer learned elsewhere, as that of CLIP is: heads learned on these very pairs would learn
that siblings fit. Alignment and self-retrieval are measured by heads learned on the true texts of the training
pictures, which no method sees. Methods take the same number of steps: where fewer pairs are kept, they are seen more
often. All choose their epoch alike (`select`); `filter+select=loss` keeps the one of the best validation loss, as
published.
"""

from __future__ import annotations

import dataclasses
import functools
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from safetensors.numpy import load_file, save
from scipy import stats

from noisycorr.caption.bench_noise import NOISES, Noisy, put_noise
from noisycorr.caption.captioner.align import NAMES, Aligner, Encode, align_with, fit_aligner, remember
from noisycorr.caption.captioner.best import write_best
from noisycorr.caption.captioner.choice import NONE, CaptionTrain, Decode, Design, LevelChoice, Teach
from noisycorr.caption.captioner.teach import (
    CaptionTraining,
    Material,
    Recipe,
    choose_decoding,
    kept_rows,
    open_class,
    pair_shares,
    train_class,
)
from noisycorr.caption.images import text_features_of
from noisycorr.caption.metrics import cider_d, tokenize
from noisycorr.clean.bench import BenchResult, Metric, Row, grid, metric_tables, plot, run_grid, stored_cell
from noisycorr.clean.bench_sets import BenchSet, check_bench, judged, listed, read_set, read_spec
from noisycorr.clean.corpus import Corpus
from noisycorr.clean.signals.text_issues import TextLimits, shared_text_alikeness, text_issues
from noisycorr.clean.sources import encoder_identity
from noisycorr.data.noise.swaps import text_ids
from noisycorr.runtime.errors import UsageError
from noisycorr.runtime.folder import Run, atomic_path, fingerprint, new_run
from noisycorr.runtime.lock import at_work
from noisycorr.runtime.signature import Without, flat
from noisycorr.runtime.version import __version__
from noisycorr.stats.recall import feature_blocks, recall_at, retrieval_ranks

ONE: dict[str, Any] = {"samples": 0, "each_level": False}  # text for each picture
PLAIN: dict[str, Any] = {"level_by": NONE, "draw_by": NONE, "weight_by": NONE, "keep_fraction": "1", **ONE}
METHODS: dict[str, dict[str, Any]] = {
    "vanilla": PLAIN,
    "filter": {**PLAIN, "keep_fraction": "auto"},
    "weight": {**PLAIN, "weight_by": "p_clean"},
    "noc": {**PLAIN, "level_by": "score_pair", "level_gate": True},
    "choice": {**PLAIN, "search": "nucleus", "samples": 4, "align_weight": 1e6},
    "default": {},
    "oracle": PLAIN,
}
ELSEWHERE = 50  # pairs that a scorer can be learned on
TextScore = Callable[[Sequence[str], Sequence[Sequence[str]]], float]  # texts, references of each -> higher = better


def unigram_f1(texts: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """Mean over texts of the best F1 of its words, counted, with one of its references; 0 to 100."""

    def one(text: str, reference: str) -> float:
        a, b = Counter(text.lower().split()), Counter(reference.lower().split())
        return 2 * (a & b).total() / max(a.total() + b.total(), 1)

    return 100 * float(np.mean([max(one(t, r) for r in found) for t, found in zip(texts, references)]))


def cider(texts: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """Mean CIDEr-D times 100, as papers print it; pictures none of whose references holds a word are left out."""
    real = [[ref for ref in found if tokenize(ref)] for found in references]
    there = [row for row, found in enumerate(real) if found]
    return 100 * float(cider_d([texts[row] for row in there], [real[row] for row in there]).mean())


METRICS: dict[str, TextScore] = {"CIDEr-D": cider, "F1": unigram_f1}
SHOWN = (
    *(Metric(name=name, title=name) for name in (*METRICS, "R@1")),
    Metric(name="alignment", title="alignment", digits=3),
    *(Metric(name=f"poor {name}", title=f"poor {name}") for name in METRICS),
    Metric(name="unique", title="unique", digits=3),
    Metric(name="control_alignment", title="control_alignment", digits=3),
    Metric(name="seconds", title="seconds", better="none"),
)
LINES = {"set": lambda row: row["set"], "noise": lambda row: f"{row['ratio']:.0%} {row['noise']}"}


@dataclass(frozen=True, kw_only=True)
class Bench:
    """What the benchmark runs.

    Attributes:
        sets: NAME=SOURCE, or NAME=TRAIN|VALID|TEST for sets that come split, joined by commas.
        noises: random swaps texts among pairs; junk puts one of twenty stock phrases, the first most often, in their
            place; concept gives every picture of some concepts the text of another picture of the same concept;
            joined by commas.
        ratios: Shares of wrong pairs, joined by commas.
        methods: vanilla, filter, weight, noc, choice, default, oracle (right pairs alone), joined by commas; options
            follow as noc+levels=4. As in `caption train`, the default does not learn from texts that `clean` drops.
        seeds: Of noise and training, joined by commas.
        limit: Training pairs of each set, from the start; 0 = all.
        test_limit: Test pictures, from the start; 0 = all.
        val_limit: Validation pictures that are written for to choose, from the start; 0 = all.

    Raises:
        UsageError: If a list is empty, or holds a word that is not one of these.
    """

    sets: str = "sample=sample"
    noises: str = "random"
    ratios: str = "0,0.2,0.4,0.6"
    methods: str = "vanilla,filter,weight,noc,choice,default,oracle"
    seeds: str = "0,1,2"
    limit: int = 4000
    test_limit: int = 500
    val_limit: int = 500

    def __post_init__(self) -> None:
        check_bench(self, {"noises": NOISES}, split=True)

    def cells(self) -> list[Row]:
        """Every training on one set: `noise`, `ratio`, `method` and `seed`."""
        seeds, ratios = list(map(int, listed(self.seeds))), list(map(float, listed(self.ratios)))
        return grid(seed=seeds, noise=listed(self.noises), ratio=ratios, method=listed(self.methods))


@flat
def bench_caption(
    output_folder: str | PathLike[str], *, bench: Bench = Bench(),
    design: Annotated[Design, Without("image_dropout")] = Design(),
    train: Annotated[CaptionTrain, Without("seed", "resume", "save_every", "keep_checkpoints")] = CaptionTrain(),
    clip_model: str = "embedded", caption_col: str | None = None,
) -> BenchResult:  # fmt: skip
    """Compare captioners under known noise, on frozen features; with tables.

    Puts noise into the training pairs of each set, trains each method with the same budget, chooses on clean validation
    pairs and reports on clean test pairs. What is done is not done again.

    Args:
        output_folder: Folder for features, cells and tables; made if absent.
        clip_model: Encoder of sources that are not embedded yet. Texts that are written for a set are encoded by the
            encoder of its own runs.
        caption_col: Column of the texts of such sources; detected if none.

    Returns:
        The rows and tables.

    Raises:
        UsageError: If a set cannot be read, or has no encoder that texts can be compared by.
    """
    run = new_run(output_folder)
    recipes = {method: recipe_of(method, train, design) for method in listed(bench.methods)}
    with at_work(run.folder, "bench caption"):
        plan = [(partial(_prepared, text, bench, run, caption_col, clip_model), bench.cells())
                for text in listed(bench.sets)]  # fmt: skip
        return run_grid(
            run, plan, lambda prepared, cell: run_cell(prepared, cell, recipes[cell["method"]], run, bench), line=_line,
            settings={"bench": vars(bench), "train": train.settings()},
            tables=lambda rows: metric_tables(rows, SHOWN, LINES),
            draw=partial(plot, metric=SHOWN[0], x="ratio", x_title="share of wrong pairs",
                         panel=lambda row: f"{row['set']}, {row['noise']}"),
        )  # fmt: skip


def _line(row: Row) -> str:
    return (f"{row['set']} {row['ratio']:.0%} {row['noise']}, {row['method']}, seed {row['seed']}: CIDEr-D "
            f"{row['CIDEr-D']:.1f}, F1 {row['F1']:.1f}, alignment {row['alignment']:.3f}, R@1 {row['R@1']:.1f}, "
            f"{row['seconds']:.0f} s")  # fmt: skip


def recipe_of(spec: str, train: CaptionTrain, design: Design) -> Recipe:
    """The choices of a method `NAME+option=value+...`.

    Raises:
        UsageError: If there is no such method or option.
    """
    name, written = read_spec(spec, "methods", as_text=("keep_fraction", "guidances"))
    if name not in METHODS:
        raise UsageError(f"`methods` names {name!r}, expected some of {', '.join(METHODS)}.")
    values = {**METHODS[name], **written}
    train = dataclasses.replace(train, **{key: values.pop(key) for key in ("select",) if key in values})
    guidances = tuple(float(x) for x in str(values.pop("guidances", "0")).split(","))
    parts: dict[str, Any] = {"levels": LevelChoice(), "teach": Teach(), "decode": Decode(), "design": design}
    for part, choice in parts.items():
        own = {field.name for field in fields(choice)}
        parts[part] = dataclasses.replace(choice, **{key: value for key, value in values.items() if key in own})
        values = {key: value for key, value in values.items() if key not in own}
    if values:
        raise UsageError(f"`methods`: {next(iter(values))!r} in {spec!r} is no option of a captioner.")
    return Recipe(**parts, train=train, guidances=guidances)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Scored(Noisy):
    """With what `noisycorr clean` would say of them."""

    columns: Mapping[str, np.ndarray]
    aligner: Aligner
    taught: dict[str, CaptionTraining] = dataclasses.field(default_factory=dict)  # trainings on these pairs


def make_noisy(data: BenchSet, noise: str, ratio: float, seed: int, encode: Encode, folder: Path,
               val_limit: int) -> _Scored:  # fmt: skip
    """Put noise in, and score; scores are kept in the folder, for another command that goes on with these pairs."""
    found = put_noise(data, noise, ratio, seed, encode)
    parts = [noise, ratio, seed, len(data.texts), data.train.identity, __version__]
    elsewhere = _elsewhere(data, val_limit) if noise == "concept" else None
    identity = fingerprint(parts if elsewhere is None else [*parts, "siblings", val_limit, data.valid.identity])
    path = folder / "scores" / f"{data.name}-{identity}.safetensors"
    if not path.exists():
        columns, aligner = _score(found.corpus, seed, elsewhere)
        with atomic_path(path) as place:
            place.write_bytes(save({**columns, **{f"aligner_{name}": value for name, value in aligner.items()}}))
    kept = load_file(path)
    heads = {name.removeprefix("aligner_"): kept.pop(name) for name in list(kept) if name.startswith("aligner_")}
    return _Scored(**{field.name: getattr(found, field.name) for field in fields(found)}, columns=kept,
                   aligner=Aligner(**heads))  # fmt: skip


def _elsewhere(data: BenchSet, val_limit: int) -> Aligner:
    """Heads learned on validation pairs that nothing is written for, to choose by."""
    rest = np.flatnonzero(data.valid.usable)[val_limit or len(data.valid.usable) :]
    if len(rest) < ELSEWHERE:
        raise UsageError("`noises` concept learns its scorer on validation pairs beyond `val_limit`, of which "
                         f"{data.name} has {len(rest)}: lower it, so that {ELSEWHERE} are left.")  # fmt: skip
    return fit_aligner(data.valid.image[rest], data.valid.text[rest], np.ones(len(rest)))


def _score(corpus: Corpus, seed: int,
           elsewhere: Aligner | None) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:  # fmt: skip
    """Columns of the ledger, and the heads that score written texts."""
    joint = None if elsewhere is None else ([elsewhere.images(corpus.image)], [elsewhere.texts(corpus.text)])
    scored, p_clean = judged(corpus, seed, joint)
    aligner = elsewhere or fit_aligner(corpus.image, corpus.text, p_clean, seed=seed)
    columns = {"score_pair": np.ascontiguousarray(scored.pair.given, np.float32), "p_clean": p_clean}
    return columns, {name: np.ascontiguousarray(value, np.float32) for name in NAMES
                     if (value := getattr(aligner, name)) is not None}  # fmt: skip


def teaching(given: _Scored, method: str) -> np.ndarray:
    """bool (n,): pairs that teach a method; the default not those whose text `clean` drops, such as stock phrases."""
    if method == "oracle":
        return np.asarray(given.corpus.usable & ~given.wrong)
    if method != "default":
        return given.corpus.usable
    alike = shared_text_alikeness(text_ids(given.texts), given.corpus.image, image_groups=given.corpus.image_group)
    _, issue = text_issues(given.texts, TextLimits(), alikeness=alike)
    return np.asarray(given.corpus.usable & np.array([name is None for name in issue]))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Prepared:
    """A set with what its cells share."""

    data: BenchSet
    encode: Encode
    evaluator: Callable[[], Aligner]
    noisy: Callable[[str, float, int], _Scored]


def _prepared(text: str, bench: Bench, run: Run, caption_col: str | None, clip_model: str) -> _Prepared:
    data = read_set(text, run, bench.limit, caption_col, clip_model)
    encode = _encode(data.name, data.runs)

    @functools.lru_cache(maxsize=1)  # cells of one noise follow each other; its trainings are large
    def noisy(noise: str, ratio: float, seed: int) -> _Scored:
        return make_noisy(data, noise, ratio, seed, encode, run.folder, bench.val_limit)

    return _Prepared(data=data, encode=encode, noisy=noisy, evaluator=functools.cache(partial(_evaluator, data)))


def run_cell(prepared: _Prepared, cell: Row, recipe: Recipe, run: Run, bench: Bench) -> Row:
    """Train and test one cell, unless its result is there."""
    data = prepared.data
    inputs = {"set": [data.train.identity, data.valid.identity, data.test.identity], "pairs": len(data.texts),
              "cell": cell, "recipe": recipe.settings(), "limits": [bench.test_limit, bench.val_limit],
              "metrics": list(METRICS)}  # fmt: skip
    return stored_cell(run.folder, data.name, inputs, lambda: _train(prepared, cell, recipe, bench))


def _train(prepared: _Prepared, cell: Row, recipe: Recipe, bench: Bench) -> Row:
    data, given = prepared.data, prepared.noisy(cell["noise"], cell["ratio"], cell["seed"])
    method, started, encode = cell["method"].split("+")[0], time.process_time(), remember(prepared.encode)
    use, valid = np.flatnonzero(teaching(given, method)), np.flatnonzero(data.valid.usable)
    material = Material(
        image=given.corpus.image[use], texts=[given.texts[row] for row in use], encoder="bench",
        columns={name: values[use] for name, values in given.columns.items()}, made_by={},
        valid_image=data.valid.image[valid], valid_texts=[data.valid_texts[row] for row in valid],
    )  # fmt: skip
    recipe = _with_budget(recipe, material, int(given.corpus.usable.sum()), cell["seed"])
    group = _taught(material, recipe, method, given.taught)
    align = align_with(given.aligner, material.valid_image, encode)
    chosen = choose_decoding(group, material, recipe, align, bench.val_limit)
    seconds = round(time.process_time() - started, 1)
    picked = next(row for row in chosen if row["chosen"])
    row: Row = {"set": data.name, **cell, "pairs": len(group.rows), "level": picked["level"],
                "guidance": picked["guidance"], "epoch": picked.get("epoch"),
                "of_epochs": recipe.train.epochs}  # fmt: skip
    return row | _measure(group, data, method, prepared.evaluator(), given, encode, bench) | {"seconds": seconds}


def _with_budget(recipe: Recipe, material: Material, pairs: int, seed: int) -> Recipe:
    """As many epochs as make the steps that all pairs of the set would take."""
    kept = kept_rows(material.columns, len(material.texts), recipe.teach)
    share = pair_shares(material.columns, kept, recipe.teach)
    epochs = round(recipe.train.epochs * pairs / (len(kept) if share is None else share.sum()))
    return dataclasses.replace(recipe, train=dataclasses.replace(recipe.train, seed=seed, epochs=epochs))


def _taught(material: Material, recipe: Recipe, method: str, taught: dict[str, CaptionTraining]) -> CaptionTraining:
    """Trained, as it came from its training; done before for another way of writing, or now."""
    pairs = method if method in ("default", "oracle") else "all"
    said = fingerprint([pairs, {name: value for name, value in recipe.settings().items() if name != "decode"}])
    if said not in taught:
        taught[said] = open_class(material, recipe)
        train_class(taught[said])
    group = taught[said]
    group.trainer.load(group.trainer.best)  # all else that another way of writing left is set anew when it is chosen
    return group


def _measure(group: CaptionTraining, data: BenchSet, method: str, evaluator: Aligner, noisy: _Scored, encode: Encode,
             choice: Bench) -> dict[str, Any]:  # fmt: skip
    """Texts for test pictures, one for each picture, against all of its own."""
    trained = group.trained
    usable = np.flatnonzero(data.test.usable)
    _, first = np.unique(data.test.shown[usable], return_index=True)
    rows = usable[np.sort(first)][: choice.test_limit or None]
    references = [[data.test_texts[other] or "" for other in usable[data.test.shown[usable] == data.test.shown[row]]]
                  for row in rows]  # fmt: skip
    image = data.test.image[rows]
    written = write_best(trained, image, align_with(noisy.aligner, image, encode)).written.texts
    out: dict[str, Any] = dict(_numbers(written, references, image, evaluator, encode))
    if noisy.poor is not None and noisy.poor[rows].any():
        poor = np.flatnonzero(noisy.poor[rows]).tolist()
        some = [written[i] for i in poor], [references[i] for i in poor]
        out |= {"poor": len(poor)} | {f"poor {name}": metric(*some) for name, metric in METRICS.items()}
    levels = trained.levels
    if levels is not None and method == "noc":
        fed = [z for z in levels.fed() if z != levels.unscored]
        plain = dataclasses.replace(trained.decode, search="greedy", guidance=0.0)
        by_level = [_numbers(trained.write(image, z, plain).texts, references, image, evaluator, encode) for z in fed]
        out["by_level"] = [{"level": z, "count": levels.counts[z], **found} for z, found in zip(fed, by_level)]
        for name in ("alignment", *METRICS):
            values = [found[name] for found in by_level]
            out[f"control_{name}"] = float(stats.spearmanr(fed, values).statistic) if len(set(values)) > 1 else None
    out["examples"] = [[text, found[0]] for text, found in zip(written[:8], references)]
    return out


def _numbers(written: list[str], references: list[list[str]], image: np.ndarray, evaluator: Aligner,
             encode: Encode) -> dict[str, float]:  # fmt: skip
    a, b = evaluator.images(image), evaluator.texts(encode(written))
    _, ranks = retrieval_ranks(feature_blocks(a, b), np.arange(len(a)), len(a))
    found = {name: metric(written, references) for name, metric in METRICS.items()}
    found |= {"alignment": float((a * b).sum(1).mean()), "R@1": recall_at(ranks, 1),
              "unique": len(set(written)) / max(len(written), 1),
              "words": float(np.mean([len(text.split()) for text in written]))}  # fmt: skip
    return found


def _encode(name: str, runs: Sequence[Run]) -> Encode:
    """Texts to features by the encoder of the runs of a set, loaded when it is first needed.

    Raises:
        UsageError: If they have more than one, or none.
    """
    found, encode = sorted({encoder_identity(one) for one in runs}), text_features_of(runs[0])
    if encode is None or any(one.startswith("precomputed") for one in found):
        raise UsageError(f"the set {name} was made of embeddings without a model, so texts cannot be compared with its "
                         "pictures: embed the pictures by `noisycorr embed`.")  # fmt: skip
    if len(found) > 1:
        raise UsageError(f"the parts of the set {name} were embedded by {found[0]} and by {found[1]}: use one encoder.")
    return encode


def _evaluator(data: BenchSet) -> Aligner:
    """Heads learned on the true texts; only for numbers that are reported."""
    return fit_aligner(data.train.image, data.train.text, np.ones(len(data.texts)), seed=1)
