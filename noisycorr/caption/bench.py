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
import itertools
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from safetensors.numpy import load_file, save
from scipy import stats

from noisycorr.caption.bench_noise import NOISES, Noisy, put_noise
from noisycorr.caption.bench_tables import tables
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
from noisycorr.caption.metrics import cider_d, tokenize
from noisycorr.caption.train import encoder_of
from noisycorr.clean.bench_sets import BenchSet, listed, read_set, read_spec, read_value, runs_of_set
from noisycorr.clean.corpus import Corpus
from noisycorr.clean.signals.pipeline import Score, score_pairs
from noisycorr.clean.signals.text_issues import TextLimits, shared_text_alikeness, text_issues
from noisycorr.clean.signals.view import PairEmbeddings
from noisycorr.clean.sources import encoder_identity
from noisycorr.data.noise.swaps import text_ids
from noisycorr.runtime import console
from noisycorr.runtime.errors import UsageError
from noisycorr.runtime.folder import Run, atomic_path, fingerprint, provenance, read_json, write_json
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
Made = TypeVar("Made")
Metric = Callable[[Sequence[str], Sequence[Sequence[str]]], float]  # texts, references of each -> higher = better


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


METRICS: dict[str, Metric] = {"CIDEr-D": cider, "F1": unigram_f1}


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
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, str) and not listed(value):
                raise UsageError(f"`{field.name}` is empty.")
            if isinstance(value, int) and value < 0:
                raise UsageError(f"`{field.name}` is {value}, expected 0 (all) or more.")
        for name in listed(self.noises):
            if name not in NOISES:
                raise UsageError(f"`noises` names {name!r}, expected one of {', '.join(NOISES)}.")
        for name in listed(self.sets):
            if "=" not in name or name.count("|") not in (0, 2):
                raise UsageError(f"`sets` has {name!r}, expected NAME=SOURCE or NAME=TRAIN|VALID|TEST.")

    def cells(self) -> list[dict[str, Any]]:
        """Every training on one set, seed by seed."""
        try:
            ratios, seeds = [float(x) for x in listed(self.ratios)], [int(x) for x in listed(self.seeds)]
        except ValueError as error:
            raise UsageError(f"`ratios` and `seeds` must be numbers: {error}.") from error
        if any(not 0 <= ratio <= 1 for ratio in ratios):
            raise UsageError(f"`ratios` is {self.ratios}, expected shares in 0 to 1.")
        return [{"noise": noise, "ratio": ratio, "method": method, "seed": seed}
                for seed, noise, ratio, method in itertools.product(seeds, listed(self.noises), ratios,
                                                                    listed(self.methods))]  # fmt: skip


def recipe_of(spec: str, train: CaptionTrain, design: Design) -> Recipe:
    """The choices of a method `NAME+option=value+...`.

    Raises:
        UsageError: If there is no such method or option.
    """
    name, written = read_spec(spec, "methods")
    if name not in METHODS:
        raise UsageError(f"`methods` names {name!r}, expected some of {', '.join(METHODS)}.")
    values = dict(METHODS[name])
    for key, value in written.items():
        values[key] = value if key in ("keep_fraction", "guidances") else read_value(value)
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
    view = PairEmbeddings(image=[corpus.image], text=[corpus.text], text_id=corpus.text_group,
                          image_id=corpus.image_group, present=corpus.usable,
                          seed=seed, picture=corpus.shown)  # fmt: skip
    joint = None if elsewhere is None else ([elsewhere.images(corpus.image)], [elsewhere.texts(corpus.text)])
    scored = score_pairs(view, joint, Score(seed=seed), learn=joint is None)
    p_clean = np.nan_to_num(scored.fit(scored.pair.given))
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


def run_cell(data: BenchSet, noisy: Callable[[], _Scored], cell: dict[str, Any], recipe: Recipe, run: Run,
             choice: Bench, evaluator: Callable[[], Aligner], encode: Encode) -> dict[str, Any]:  # fmt: skip
    """Train and test one cell, unless its result is there."""
    inputs = {"set": [data.train.identity, data.valid.identity, data.test.identity], "pairs": len(data.texts),
              "cell": cell, "recipe": recipe.settings(), "limits": [choice.test_limit, choice.val_limit],
              "metrics": list(METRICS),
              "noisycorr": __version__}  # fmt: skip
    path = run.folder / "cells" / f"{data.name}-{fingerprint(inputs)}.json"
    if path.exists():
        return dict(read_json(path))
    given, started, encode = noisy(), time.process_time(), remember(encode)
    use = np.flatnonzero(teaching(given, cell["method"].split("+")[0]))
    valid = np.flatnonzero(data.valid.usable)
    material = Material(
        image=given.corpus.image[use], texts=[given.texts[row] for row in use], encoder="bench",
        columns={name: values[use] for name, values in given.columns.items()}, made_by={},
        valid_image=data.valid.image[valid], valid_texts=[data.valid_texts[row] for row in valid],
    )  # fmt: skip
    method = cell["method"].split("+")[0]
    recipe = _with_budget(recipe, material, int(given.corpus.usable.sum()), cell["seed"])
    group = _taught(material, recipe, method, given.taught)
    align = align_with(given.aligner, material.valid_image, encode)
    chosen = choose_decoding(group, material, recipe, align, choice.val_limit)
    trained_seconds = time.process_time() - started
    picked = next(row for row in chosen if row["chosen"])
    row: dict[str, Any] = {"set": data.name, **cell, "pairs": len(group.rows), "level": picked["level"],
                           "guidance": picked["guidance"], "epoch": picked.get("epoch"),
                           "of_epochs": recipe.train.epochs}  # fmt: skip
    row |= _measure(group, data, method, evaluator(), given, encode, choice)
    row["seconds"] = round(trained_seconds, 1)
    write_json(path, row)
    return row


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


def bench(choice: Bench, train: CaptionTrain, design: Design, run: Run, *, caption_col: str | None,
          clip_model: str) -> list[dict[str, Any]]:  # fmt: skip
    """Run what is missing, and write `bench.json` and `bench.md`.

    Args:
        choice: What to run.
        train: The budget of each training; its seed is not used.
        design: The network of each.
        run: The folder.
        caption_col: Column of the texts of sources that are not embedded yet.
        clip_model: Their encoder. Texts that are written for a set are encoded by the encoder of its own runs.
    """
    cells = choice.cells()
    recipes = {method: recipe_of(method, train, design) for method in listed(choice.methods)}
    write_json(run.path("provenance.json"), provenance())
    sets = [runs_of_set(text, run, caption_col, clip_model) for text in listed(choice.sets)]
    encoders, rows = [_encode(name, runs) for name, runs in sets], []
    for (name, runs), encode in zip(sets, encoders):
        data = read_set(name, runs, choice.limit)
        evaluator = _once(partial(_evaluator, data))
        made: dict[str, Callable[[], _Scored]] = {}
        for cell in cells:
            key = f"{cell['noise']} {cell['ratio']} {cell['seed']}"
            if key not in made:
                made = {key: _once(partial(make_noisy, data, cell["noise"], cell["ratio"], cell["seed"], encode,
                                           run.folder, choice.val_limit))}  # fmt: skip
            row = run_cell(data, made[key], cell, recipes[cell["method"]], run, choice, evaluator, encode)
            rows.append(row)
            console.say(f"{len(rows)}/{len(cells) * len(sets)} {row['set']} {row['ratio']:.0%} "
                        f"{row['noise']}, {row['method']}, seed {row['seed']}: CIDEr-D {row['CIDEr-D']:.1f}, F1 "
                        f"{row['F1']:.1f}, alignment {row['alignment']:.3f}, "
                        f"R@1 {row['R@1']:.1f}, {row['seconds']:.0f} s")  # fmt: skip
    write_json(run.path("bench.json"), {"bench": vars(choice), "train": train.settings(), "rows": rows})
    run.path("bench.md").write_text(tables(rows, list(METRICS)), encoding="utf-8")
    return rows


def _encode(name: str, runs: Sequence[Run]) -> Encode:
    """Texts to features by the encoder of the runs of a set, loaded when it is first needed.

    Raises:
        UsageError: If they have more than one, or none.
    """
    found, encode = sorted({encoder_identity(one) for one in runs}), encoder_of(runs[0])
    if encode is None or any(one.startswith("precomputed") for one in found):
        raise UsageError(f"the set {name} was made of embeddings without a model, so texts cannot be compared with its "
                         "pictures: embed the pictures by `noisycorr embed`.")  # fmt: skip
    if len(found) > 1:
        raise UsageError(f"the parts of the set {name} were embedded by {found[0]} and by {found[1]}: use one encoder.")
    return encode


def _evaluator(data: BenchSet) -> Aligner:
    """Heads learned on the true texts; only for numbers that are reported."""
    return fit_aligner(data.train.image, data.train.text, np.ones(len(data.texts)), seed=1)


def _once(make: Callable[[], Made]) -> Callable[[], Made]:
    """Make it when it is first asked for, and keep it."""
    return functools.cache(make)
