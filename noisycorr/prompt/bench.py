"""`noisycorr bench prompt`: sets x methods x seeds, from sources or runs whose texts are class names."""

from __future__ import annotations

import dataclasses
import time
from dataclasses import dataclass, field
from functools import partial
from os import PathLike
from typing import Annotated, Any, Literal

import numpy as np
import torch
import yaml

from noisycorr.clean.bench import BenchResult, Metric, Row, grid, joined, metric_table, plot, run_grid, stored_cell
from noisycorr.clean.bench_sets import check_bench, listed, read_spec
from noisycorr.data.readers import Source
from noisycorr.models.encoders import load_encoder
from noisycorr.models.training.batches import stream_seed
from noisycorr.prompt.baselines import cheap_baselines, ensemble_vectors
from noisycorr.prompt.build import build, scale_of, zero_shot
from noisycorr.prompt.choice import Context, Rounds, Steps
from noisycorr.prompt.inputs import Images, Plan, read_images
from noisycorr.prompt.loop import learn_labels, probabilities, tune
from noisycorr.prompt.measure import accuracy, compare
from noisycorr.prompt.posterior import Posterior
from noisycorr.prompt.select import Selected
from noisycorr.prompt.task import Task
from noisycorr.prompt.text import TextSide, text_side
from noisycorr.runtime import dist
from noisycorr.runtime.errors import UsageError, check_words
from noisycorr.runtime.folder import Run, new_run
from noisycorr.runtime.lock import at_work
from noisycorr.runtime.signature import Without, flat

POOL = 0.8  # share of the pool that a seed draws
SEEN = 0.62  # share of the classes that are seen, where `methods` asks for it
OWN = {"shots": 0, "seen": False, "wrong": 0.0}
FREE = {"ensemble": "template ensemble", "transclip": "TransCLIP, all images at once",
        "zlap": "ZLaP, all images at once", "balanced": "balanced, all classes alike",
        "neighbors": "neighbours of the image tower", "mixture": "TransCLIP, in the image tower",
        "probe": "linear probe on the labels"}  # fmt: skip
METHODS = ("zero-shot", "prompt", "labels", *FREE)
METHOD = {"method": lambda row: row["method"]}
ACCURACY = Metric(
    name="after", title="Accuracy on test images, in %; in brackets: seeds that gain over zero-shot", scale=100,
    better="none", note=lambda rows: f" ({sum(row['gain'] > 0 for row in rows)}/{len(rows)})",
)  # fmt: skip
HARMONIC = Metric(
    name="harmonic", title="Harmonic mean of seen and unseen classes, in %; in brackets: zero-shot", scale=100,
    better="none", note=lambda rows: f" ({100 * np.mean([row['harmonic_before'] for row in rows]):.1f})",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Bench:
    """What the benchmark runs.

    Attributes:
        sets: NAME=SOURCE joined by commas; texts are class names, and a column `split` says which images are test.
        methods: Joined by commas: zero-shot, prompt, labels (given labels alone), or the free baselines ensemble,
            transclip, zlap, balanced, neighbors, mixture and probe, with options as prompt+strategy=fpl; any flag of
            `noisycorr prompt` is one, and shots=2 (labels of each class), seen=true
            (62 % of the classes are labelled, pseudo-labels name the others), wrong=0.4 (share of pseudo-labels that
            are made wrong).
        seeds: Of the part of the pool, the given labels and the prompt, joined by commas.
        measured: test measures on the test images, rest on the part of the pool that a seed leaves out: there, with
            other seeds, settings are chosen.

    Raises:
        UsageError: If a list is empty, or a method or option is unknown.
    """

    sets: str
    methods: str = (
        "zero-shot,ensemble,transclip,zlap,balanced,neighbors,mixture,prompt+strategy=fpl,prompt,labels+shots=2,"
        "prompt+shots=2"
    )
    seeds: str = "0,1,2,3,4"
    measured: Literal["test", "rest"] = "test"

    def __post_init__(self) -> None:
        check_words(self)
        check_bench(self, {})
        for method in listed(self.methods):
            parse_method(method, Context(), Rounds(), Steps())


@dataclass(frozen=True, kw_only=True)
class Method:
    """One method with its options.

    Attributes:
        kind: One of `METHODS`.
        shots: Given labels of each class.
        seen: Give all labels of 62 % of the classes.
        wrong: Share of pseudo-labels that are made wrong in each round.
        context: What is learned.
        rounds: Which pseudo-labels.
        steps: How.
    """

    kind: str
    shots: int
    seen: bool
    wrong: float
    context: Context
    rounds: Rounds
    steps: Steps


@dataclass(frozen=True, kw_only=True)
class BenchSet:
    """One set, its pool and test images, as `Images` and class of each."""

    name: str
    images: Images
    names: list[str]
    truth: np.ndarray
    joint: torch.Tensor
    kept: dict[str, torch.Tensor] = field(default_factory=dict)

    def ensemble(self, side: TextSide) -> torch.Tensor:
        """Class vectors of CLIP's seven templates, made once."""
        if "ensemble" not in self.kept:
            self.kept["ensemble"] = ensemble_vectors(side, self.names, self.joint.device)
        return self.kept["ensemble"]


def parse_method(spec: str, context: Context, rounds: Rounds, steps: Steps) -> Method:
    """The method that a spec names, its options on top of the given choices.

    Raises:
        UsageError: If there is no such method or option.
    """
    kind, written = read_spec(spec, "methods")
    if kind not in METHODS:
        raise UsageError(f"`methods` names {kind!r}, expected one of {', '.join(METHODS)}.")
    own: dict[str, Any] = dict(OWN)
    for key, told in written.items():
        homes = [choice for choice in (context, rounds, steps) if hasattr(choice, key)]
        if key in own:
            own[key] = told
        elif not homes:
            raise UsageError(f"`methods`: {spec!r} has the unknown option {key!r}.")
        elif homes[0] is context:
            context = dataclasses.replace(context, **{key: told})
        elif homes[0] is rounds:
            rounds = dataclasses.replace(rounds, **{key: told})
        else:
            steps = dataclasses.replace(steps, **{key: told})
    if kind == "labels" and not (own["shots"] or own["seen"]):
        raise UsageError(f"`methods`: {spec!r} has no labels: add shots=2 or seen=true.")
    return Method(kind=kind, context=context, rounds=rounds, steps=steps, **own)


@flat
def bench_prompt(
    output_folder: str | PathLike[str], *, bench: Bench, context: Context = Context(), rounds: Rounds = Rounds(),
    steps: Annotated[Steps, Without("seed")] = Steps(), clip_model: str = "embedded",
) -> BenchResult:  # fmt: skip
    """Compare prompt tuning with zero-shot and with given labels alone, on sets whose texts are class names.

    Works on stored features. What is done is not done again.

    Args:
        output_folder: Folder for features, cells and tables; made if absent.
        clip_model: Encoder of sources that are not embedded yet, or bring embeddings of it.

    Returns:
        The rows and tables.

    Raises:
        UsageError: If a set cannot be read, or has no test images.
    """
    run = new_run(output_folder)
    methods = {spec: parse_method(spec, context, rounds, steps) for spec in listed(bench.methods)}
    cells = grid(seed=list(map(int, listed(bench.seeds))), method=list(methods))
    with at_work(run.folder, "bench prompt"):
        plan = [(partial(load_set, text, run, clip_model), cells) for text in listed(bench.sets)]
        return run_grid(
            run, plan, lambda loaded, cell: run_cell(*loaded, methods[cell["method"]], cell, run,
                                                     measured=bench.measured),
            line=_line, tables=tables,
            settings={"bench": vars(bench), "context": vars(context), "rounds": vars(rounds), "steps": vars(steps)},
            draw=partial(plot, metric=ACCURACY, x="set", x_title="set", panel=lambda row: "accuracy in %"),
        )  # fmt: skip


def _line(row: Row) -> str:
    return (f"{row['set']} seed {row['seed']} {row['method']}: {row['after']:.1%} (zero-shot {row['before']:.1%}), "
            f"{row['seconds']:.0f} s")  # fmt: skip


def load_set(text: str, run: Run, clip_model: str) -> tuple[BenchSet, TextSide]:
    """A set, embedded into the folder if it is not a run already, and the text tower of its encoder."""
    name, _, place = text.partition("=")
    plan = Plan(source=Source(path=place, caption_col=None), classes="", clip_model=clip_model)
    images = read_images(plan, Run(run.folder / "features" / name))
    stored = yaml.safe_load((images.runs[0].folder / "config.yaml").read_text(encoding="utf-8"))
    given = (images.runs[0].stage("embed") or {})["facts"]["encoder"].startswith("precomputed")
    encoder = load_encoder(clip_model if given else stored["clip_model"], device=dist.device(),
                           precision=stored["model_precision"])  # fmt: skip
    names = sorted({text for text in images.texts if text})
    known = {name: number for number, name in enumerate(names)}
    truth = np.array([known.get(text or "", -1) for text in images.texts], np.int64)
    joint = encoder.joint_space(images.features, np.zeros((0, encoder.text_dim), np.float32))[0]
    if not images.is_test.any():
        raise UsageError(f"the set {name} has no test images: give it a column split with train and test.")
    data = BenchSet(name=name, images=images, names=names, truth=truth, joint=torch.from_numpy(joint).to(dist.device()))
    return data, text_side(encoder)


def run_cell(data: BenchSet, side: TextSide, method: Method, cell: Row, run: Run, *, measured: str = "test") -> Row:
    """One method on one set with one seed, unless its result is there.

    Returns:
        One row of the tables: accuracies in [0, 1] on test images, `gain`, what `compare` tells, and `seconds` of CPU.
    """
    if method.context.prompt not in ("text", "residual"):
        raise UsageError("the benchmark works on stored features: only `prompt` text or residual goes with it.")
    seed = cell["seed"]
    inputs = {"set": [(one.stage("embed") or {})["fingerprint"] for one in data.images.runs], "seed": seed,
              "method": dataclasses.asdict(method), "measured": measured}  # fmt: skip

    def work() -> Row:
        started = time.process_time()
        row = _measure(data, side, method, seed, measured)
        return row | {"gain": row["after"] - row["before"], "seconds": round(time.process_time() - started, 1)}

    # Two ways of writing one method share a cell: the row says how it was asked for.
    return stored_cell(run.folder, data.name, inputs, work) | {"set": data.name, **cell}


def _measure(data: BenchSet, side: TextSide, method: Method, seed: int, measured: str) -> Row:
    device = data.joint.device
    task = draw_task(data, method, seed, measured)
    zero = zero_shot(side, data.names, method.context, {}, device)
    logits = scale_of(side, method.context) * data.joint @ zero.T
    test = np.flatnonzero(task.held & task.usable & (data.truth >= 0))
    before = logits[test].argmax(1).cpu().numpy()
    row: Row = {"pool": len(task.unlabelled), "test": len(test), "classes": len(data.names)}
    after = before
    if method.kind in FREE:
        after = free_answer(data, side, task, logits, method)[test]
    elif method.kind != "zero-shot":
        steps = dataclasses.replace(method.steps, seed=seed)
        model = build(None, side, data.names, method.context, features=data.joint, zero=zero, pixels=None, seed=seed,
                      device=device)  # fmt: skip
        chances = torch.softmax(logits, 1).cpu().numpy()
        posterior = Posterior(task, data.images.features, chances, method.rounds, seed=seed)
        zero_shot_failed = False
        if method.kind == "labels":
            learn_labels(task, model, steps)
        else:
            corrupt = partial(make_wrong, len(task.open), method.wrong, seed) if method.wrong else None
            state = tune(task, model, logits, method.rounds, steps, posterior=posterior, corrupt=corrupt)
            zero_shot_failed = state.zero_shot_failed
            row |= {"stopped": state.stopped, "retried": sum(one["retried"] for one in state.history),
                    "precision": precision(task, data.truth, state.selected)}  # fmt: skip
        every = np.flatnonzero(task.usable)
        p = np.zeros((len(task.keys), len(data.names)), np.float32)
        p[every] = probabilities(model, task, every, every=True)
        after = p[test].argmax(1)
        if posterior.mixes:
            answers = (p if zero_shot_failed else posterior.answers(p))[test].argmax(1)
            row |= {"settled": accuracy(answers, data.truth[test])}
            if task.seen.any():
                row |= {"settled_harmonic": compare(before, answers, data.truth[test], len(data.names),
                                                    task.seen)["harmonic"]}  # fmt: skip
    return row | compare(before, after, data.truth[test], len(data.names), task.seen)


def free_answer(data: BenchSet, side: TextSide, task: Task, logits: torch.Tensor, method: Method) -> np.ndarray:
    """Classes of all images by a baseline that needs no training, int64 (n,)."""
    rows = np.flatnonzero(task.usable)
    if method.kind == "ensemble":
        return (data.joint @ data.ensemble(side).T).argmax(1).cpu().numpy()
    found = cheap_baselines(task, data.joint, logits, scale=scale_of(side, method.context), image=data.images.features,
                            classes=zero_shot(side, data.names, method.context, {}, data.joint.device),
                            only=FREE[method.kind])  # fmt: skip
    if FREE[method.kind] not in found:
        raise UsageError(f"`methods`: {method.kind} needs labels: add shots=2 or seen=true.")
    out = np.zeros(len(task.usable), np.int64)
    out[rows] = found[FREE[method.kind]][rows].argmax(1)
    return out


def draw_task(data: BenchSet, method: Method, seed: int, measured: str = "test") -> Task:
    """A part of the pool with few labels, or with all those of some classes; test images, or the rest of the pool."""
    rng = np.random.default_rng(stream_seed(seed, "bench prompt"))
    images, c = data.images, len(data.names)
    usable = images.features.any(1) & (data.truth >= 0)
    pool = np.flatnonzero(usable & ~images.is_test)
    rest = np.zeros(len(usable), bool)
    rest[pool[rng.permutation(len(pool))[int(POOL * len(pool)) :]]] = True
    usable &= ~(rest if measured == "test" else images.is_test)
    held = images.is_test if measured == "test" else rest
    label = np.full(len(images.keys), -1, np.int64)
    order = rng.permutation(np.flatnonzero(usable & ~held))
    seen = np.zeros(c, bool)
    if method.shots:
        for k in range(c):
            mine = order[data.truth[order] == k][: method.shots]
            label[mine] = k
    if method.seen:
        seen[rng.permutation(c)[: int(SEEN * c)]] = True
        mine = order[seen[data.truth[order]]]
        label[mine] = data.truth[mine]
    return Task(names=data.names, keys=images.keys, usable=usable, label=label, seen=seen, held=held)


def make_wrong(classes: int, share: float, seed: int, selected: Selected) -> Selected:
    """Give a share of the pseudo-labels, drawn at random, another class, drawn at random; an experiment with noise."""
    rng = np.random.default_rng(stream_seed(seed, "wrong", len(selected)))
    count = round(share * len(selected))
    chosen = rng.permutation(len(selected))[:count]
    label = selected.label.copy()
    label[chosen] = (label[chosen] + rng.integers(1, classes, count)) % classes
    return dataclasses.replace(selected, label=label)


def precision(task: Task, truth: np.ndarray, selected: Selected | None) -> float | None:
    """Share of right pseudo-labels."""
    if selected is None or not len(selected):
        return None
    return float((truth[task.unlabelled[selected.rows]] == task.open[selected.label]).mean())


def tables(rows: list[Row]) -> str:
    """Accuracy by method and set, mean and standard deviation over seeds; and gains by method over all sets."""
    rows = [*rows, *with_similar(rows)]
    tail = {
        "mean gain": lambda mine: f"{100 * np.mean([row['gain'] for row in mine]):+.1f}",
        "poor / rich half": _halves,
    }
    accuracy_table = metric_table(rows, ACCURACY, METHOD, columns="set", tail=tail)
    return joined(rows, accuracy_table, metric_table(rows, HARMONIC, METHOD, columns="set"))


def _halves(rows: list[Row]) -> str:
    """Mean gain of the classes that zero-shot knows badly, and of those that it knows well."""
    halves = [[row[side] for row in rows if row[side] is not None] for side in ("poor", "rich")]
    return " / ".join(f"{100 * np.mean(some):+.1f}" if some else "–" for some in halves)


def with_similar(rows: list[Row]) -> list[Row]:
    """Rows of prompts whose answers look at similar images of the pool."""
    return [
        row | {"method": f"{row['method']}, with similar images", "after": row["settled"], "poor": None, "rich": None,
               "gain": row["settled"] - row["before"], "harmonic": row.get("settled_harmonic")}
        for row in rows if row.get("settled") is not None
    ]  # fmt: skip
