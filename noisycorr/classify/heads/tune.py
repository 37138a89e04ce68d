"""`noisycorr tune`: from frozen features and labels to heads, and what they are worth inside and outside of the domain.

models/METHOD.safetensors   heads; models/heads.json says what their outputs mean
predictions.parquet         every row: key, split, label, and what the head that validates best says
report.json, report.html    accuracy of every method on every set, and the spectrum before and after
"""

from __future__ import annotations

import collections
import dataclasses
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from noisycorr.classify.heads.choice import NMTune, Rows
from noisycorr.classify.heads.labelled import Labelled, is_array, is_run, read_labelled, split_place
from noisycorr.classify.heads.nmtune import TuneData, apply_head, fit_head, load_head, save_head
from noisycorr.classify.heads.report import write_tuning_report
from noisycorr.classify.heads.spectrum import sampled_spectrum
from noisycorr.clean.corpus import TEST, TRAIN, UNUSED, VALID
from noisycorr.clean.embed import Embed
from noisycorr.clean.pipeline import clean
from noisycorr.clean.plan import Plan as CleanPlan
from noisycorr.data.readers import Source
from noisycorr.models.training.batches import stream_seed
from noisycorr.runtime import console, dist
from noisycorr.runtime.errors import UsageError
from noisycorr.runtime.folder import RUN_CONTENT, Run, atomic_path, fingerprint, provenance, write_array, write_json
from noisycorr.runtime.stage import write_yaml
from noisycorr.runtime.version import __version__

WORDS = {TRAIN: "train", VALID: "valid", TEST: "test", UNUSED: "unused"}


@dataclass(frozen=True, kw_only=True)
class Plan:
    """All choices of `noisycorr tune`.

    Attributes:
        source: Where the rows come from; its path may be a run folder, a .npy file, or a source of pictures.
        clip_model: Encoder of a source that is not embedded yet.
        rows: Labels and splits.
        tune: How heads are tuned.
    """

    source: Source
    clip_model: str
    rows: Rows
    tune: NMTune


@dataclass(frozen=True, kw_only=True)
class Sets:
    """What is tuned on and tested on.

    Attributes:
        names: c classes, sorted.
        own: The rows of the source.
        label: int (n,) of `own`, -1 where there is none.
        split: int8 (n,): what each row is for.
        second: (n, d) other views of `own`, or None.
        second_identity: Changes when they do.
        others: Features and labels of sets to test on, by name.
        left_out: How many rows of each set have no place, and why.
        places: Where the source ("data") and the others are.
        kept: bool (m,): which rows of each other set are tested on.
    """

    names: list[str]
    own: Labelled
    label: np.ndarray
    split: np.ndarray
    second: np.ndarray | None
    second_identity: dict[str, Any] | None
    others: dict[str, tuple[np.ndarray, np.ndarray]]
    left_out: dict[str, dict[str, int]]
    places: dict[str, str]
    kept: dict[str, np.ndarray]


def tune(plan: Plan, run: Run, *, overwrite: bool = False) -> dict[str, Any] | None:
    """Tune every method and write the folder. The same command continues an interrupted one.

    Every process takes its part in embedding; the main one tunes, so that two processes give what one gives.

    Args:
        plan: All choices.
        run: The folder.
        overwrite: Delete what an earlier command left there; embeddings of the same source stay.

    Returns:
        The report; None in processes other than the main one.

    Raises:
        UsageError: If the folder holds something else, or rows or labels do not suffice.
    """
    places = _embedded(plan, run)
    if not dist.is_main():  # nobody waits: a barrier has a time limit, and tuning may take longer
        return None
    sets = _sets(plan, places)
    inputs = _inputs(plan, sets)
    if overwrite:
        _clear(run)
    if differences := run.differences("tune_started", inputs):
        raise UsageError(f"{run.folder} holds heads of other data or settings ({'; '.join(differences[:2])}): choose "
                         "another `output_folder`, or add `overwrite` to start anew.")  # fmt: skip
    started = run.folder / "stages" / "tune_started.json"
    if not started.exists() and (taken := [n for n in RUN_CONTENT if (run.folder / n).exists()]):
        raise UsageError(f"{run.folder} holds {taken[0]!r} already: choose another `output_folder`.")
    run.sweep()
    run.finish("tune_started", inputs)
    write_json(run.path("provenance.json"), provenance())
    _write_config(plan, run)
    heads = {name: _lora(plan, sets, run) if name == "lora" else _head(plan.tune, sets, run, name)
             for name in plan.tune.named()}  # fmt: skip
    report = _report(plan, sets, heads, run)
    write_json(run.path("report.json"), report)
    write_tuning_report(run)
    run.finish("tune", inputs, {"best": report["best"]})
    for line in summary_lines(report):
        console.say(line)
    return report


def _embedded(plan: Plan, run: Run) -> dict[str, str]:
    """Place of each set: sources are embedded into the folder first."""
    wanted = {"data": plan.source.path, **({"test": plan.rows.test_data} if plan.rows.test_data else {})}
    wanted |= {f"ood-{name}": place for name, place in plan.rows.others().items()}
    if plan.rows.second_view:
        wanted["second"] = plan.rows.second_view
    out = {}
    for name, place in wanted.items():
        path = split_place(place)[0]
        if Path(path).resolve() == run.folder.resolve():
            raise UsageError(f"{path} is the run of the features: choose another `output_folder` for the heads.")
        if is_run(path) or is_array(path):
            out[name] = place
            continue
        inner = Run(run.folder / "features" / name)
        source = dataclasses.replace(plan.source, path=path)
        clean(CleanPlan(source=source, embed=Embed(clip_model=plan.clip_model)), inner, stages=("embed",))
        dist.wait()
        out[name] = str(inner.folder)
    return out


def _read(plan: Plan, place: str, *, labels: str | None = None, need: bool = True) -> Labelled:
    path, beside = split_place(place)
    label_col = plan.rows.label_col if is_run(path) else None
    return read_labelled(path, side=plan.rows.side, labels=beside or labels, label_col=label_col, need=need)


def _sets(plan: Plan, places: dict[str, str]) -> Sets:
    own = _read(plan, places["data"], labels=plan.rows.labels)
    has = np.array([word is not None for word in own.words])
    split = split_rows(own, has & own.usable, plan.rows, plan.tune.seed)
    names = sorted({str(own.words[row]) for row in np.flatnonzero(split == TRAIN).tolist()})
    if len(names) < 2:
        raise UsageError(f"{plan.source.path} has {len(names)} classes with rows to train on, expected at least 2.")
    label = _labels(own, names)
    left_out = {"source": _left_out(own, label)}
    split[label < 0] = UNUSED  # classes without a row to train on
    second, second_identity = None, None
    if "second" in places:
        views = _read(plan, places["second"], need=False)
        second, second_identity = views.features, dict(views.identity)
        if second.shape != own.features.shape:
            raise UsageError(f"`second_view` has features {second.shape}, the first view {own.features.shape}.")
        split[~np.isfinite(second).all(1)] = UNUSED
    others, kept = {}, {}
    for name, place in places.items():
        if name in ("data", "second"):
            continue
        rows = _read(plan, place)
        if rows.features.shape[1] != own.features.shape[1]:
            raise UsageError(f"{place} has features of {rows.features.shape[1]} numbers, the source of "
                             f"{own.features.shape[1]}: use one encoder.")  # fmt: skip
        theirs = _labels(rows, names)
        left_out[name.removeprefix("ood-")] = _left_out(rows, theirs)
        keep = (theirs >= 0) & rows.usable
        if not keep.any():
            raise UsageError(f"{place} has no row of the {len(names)} classes of the source, such as {names[:3]}.")
        others[name.removeprefix("ood-")] = (rows.features[keep], theirs[keep])
        kept[name.removeprefix("ood-")] = keep
    if np.sum(split == TRAIN) < 2:
        raise UsageError(f"{plan.source.path} leaves {np.sum(split == TRAIN)} rows to train on, expected 2 or more.")
    return Sets(names=names, own=own, label=label, split=split, second=second,
                second_identity=second_identity, others=others, left_out=left_out, kept=kept,
                places={name.removeprefix("ood-"): split_place(one)[0] for name, one in places.items()})  # fmt: skip


def split_rows(own: Labelled, usable: np.ndarray, rows: Rows, seed: int) -> np.ndarray:
    """What each row is for: as the column `split` says, else whole groups at random. int8 (n,)."""
    if own.given_split is not None:
        return np.where(usable, own.given_split, UNUSED).astype(np.int8)
    test = 0.0 if rows.test_data else rows.test_fraction
    out = np.full(len(usable), UNUSED, np.int8)
    picked = np.flatnonzero(usable)
    groups, back, counts = np.unique(own.group[picked], return_inverse=True, return_counts=True)
    order = np.random.default_rng(stream_seed(seed, "tune split")).permutation(len(groups))
    ends = np.cumsum(counts[order]) / max(len(picked), 1)
    kind = np.full(len(groups), TRAIN, np.int8)
    kind[order[ends <= rows.val_fraction + test]] = VALID
    kind[order[ends <= test]] = TEST
    out[picked] = kind[back]
    return out


def _labels(rows: Labelled, names: list[str]) -> np.ndarray:
    number_of = {name: number for number, name in enumerate(names)}
    return np.array([-1 if word is None else number_of.get(word, -1) for word in rows.words])


def _left_out(rows: Labelled, label: np.ndarray) -> dict[str, int]:
    """Rows are never lost silently: how many are not used, by reason."""
    without = np.array([word is None for word in rows.words])
    found = {"without a label": without, "without features": ~without & ~rows.usable,
             "of a class without training rows": ~without & rows.usable & (label < 0)}  # fmt: skip
    return {why: int(which.sum()) for why, which in found.items() if which.any()}


def _inputs(plan: Plan, sets: Sets) -> dict[str, Any]:
    """What the heads depend on. Methods and sets to test on are not in it: one more can be asked about later."""
    return {
        "rows": dict(sets.own.identity), "settings": plan.tune.settings(), "side": plan.rows.side,
        "classes": fingerprint(sets.names), "split": fingerprint(sets.split.tolist()),
        "labels": fingerprint(sets.label.tolist()), "second_view": sets.second_identity,
        "noisycorr": __version__,
    }  # fmt: skip


def _head(choice: NMTune, sets: Sets, run: Run, method: str) -> Path:
    """Tune one method, unless it is there."""
    path = run.path("models", f"{method}.safetensors")
    if path.exists():
        console.say(f"{method}: nothing changed, skipped")
        return path
    rows = np.flatnonzero(sets.split == TRAIN)
    second = None if sets.second is None else np.asarray(sets.second[rows], np.float32)
    data = TuneData(features=np.asarray(sets.own.features[rows], np.float32), labels=sets.label[rows],
                    classes=len(sets.names), second=second)  # fmt: skip
    checkpoint, begun = run.path("checkpoints", f"{method}.safetensors"), time.perf_counter()
    with console.bar(label=method, total=choice.epochs, unit="epoch") as progress:

        def told(epoch: int, parts: dict[str, float]) -> None:
            run.log("epoch", method=method, epoch=epoch, **parts)
            progress.update(epoch + 1 - progress.n)

        network = fit_head(data, choice, method, checkpoint=checkpoint, on_epoch=told)
    save_head(network, path)
    checkpoint.unlink(missing_ok=True)
    run.log("tuned", method=method, seconds=round(time.perf_counter() - begun, 3))
    return path


def _lora(plan: Plan, sets: Sets, run: Run) -> Path:
    """Tune tower and head, and encode every set anew, unless it is there."""
    from noisycorr.classify.heads.lora import encode, fit_lora, open_pixels, open_tower

    path = run.path("models", "lora.safetensors")
    if path.exists():
        console.say("lora: nothing changed, skipped")
        return path
    if plan.rows.side != "image":
        raise UsageError("`methods` lora tunes the image tower: use `side` image, or leave lora out.")
    trainable, begun = open_tower(sets.places["data"]), time.perf_counter()
    pixels = open_pixels(sets.places["data"], trainable, run.folder / "pictures" / "data")
    rows = np.flatnonzero(sets.split == TRAIN)
    data = TuneData(features=np.asarray(sets.own.features[rows], np.float32), labels=sets.label[rows],
                    classes=len(sets.names))  # fmt: skip
    model, head = fit_lora(trainable, pixels, rows, data, plan.tune)
    usable = np.flatnonzero(sets.own.usable)
    write_array(run.path("features", "lora-data.npy"), encode(trainable, model, pixels, usable, sets.own.features))
    for name, keep in sets.kept.items():
        open_tower(sets.places[name])
        theirs = open_pixels(sets.places[name], trainable, run.folder / "pictures" / name)
        shape = np.empty((len(keep), sets.own.features.shape[1]), np.float32)
        found = encode(trainable, model, theirs, np.flatnonzero(keep), shape)[keep]
        write_array(run.path("features", f"lora-{name}.npy"), found)
    trainable.save(model, run.path("models", "lora_encoder"), temperature=trainable.temperature)
    save_head(head, path)
    run.log("tuned", method="lora", seconds=round(time.perf_counter() - begun, 3))
    return path


def _seen_by(method: str, sets: Sets, run: Run) -> Sets:
    """The sets with the features that a method's head reads: those of its own tower, for lora."""
    if method != "lora":
        return sets
    read = {name: np.load(run.folder / "features" / f"lora-{name}.npy", allow_pickle=False)
            for name in ("data", *sets.others)}  # fmt: skip
    others = {name: (read[name], label) for name, (_, label) in sets.others.items()}
    return dataclasses.replace(sets, own=dataclasses.replace(sets.own, features=read["data"]), others=others)


def _report(plan: Plan, sets: Sets, heads: dict[str, Path], run: Run) -> dict[str, Any]:
    own = {WORDS[kind]: np.flatnonzero(sets.split == kind) for kind in (TRAIN, VALID, TEST)}
    methods: dict[str, Any] = {}
    measured: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    for name, path in heads.items():
        network, mine = load_head(path), _seen_by(name, sets, run)
        measured = {where: (mine.own.features[rows], sets.label[rows]) for where, rows in own.items() if len(rows)}
        measured |= mine.others
        accuracy = {where: _accuracy(apply_head(network, features)[0], label)
                 for where, (features, label) in measured.items()}  # fmt: skip
        tuned = apply_head(network, mine.own.features[own["train"]])[1]
        methods[name] = {"accuracy": accuracy, "spectrum": sampled_spectrum(tuned, seed=plan.tune.seed)}
    best = _best(methods)
    _predictions(_seen_by(best, sets, run), heads[best], run)
    facts = {"classes": sets.names, "dim": sets.own.features.shape[1], "best": best, "settings": plan.tune.settings()}
    write_json(run.path("models", "heads.json"), facts)
    return {
        "best": best, "chosen_on": "valid" if "valid" in measured else None, "methods": methods,
        "sets": {name: len(label) for name, (_, label) in measured.items()},
        "out_of_domain": sorted(plan.rows.others()), "classes": len(sets.names), "left_out": sets.left_out,
        "spectrum": sampled_spectrum(sets.own.features[own["train"]], seed=plan.tune.seed),
        "settings": plan.tune.settings(),
    }  # fmt: skip


def _accuracy(chances: np.ndarray, label: np.ndarray) -> dict[str, float]:
    """Share of right rows, and its mean over classes, both in [0, 1]."""
    right = chances.argmax(1) == label
    by_class = [right[label == one].mean() for one in np.unique(label)]
    return {"top1": float(right.mean()), "class_mean": float(np.mean(by_class))}


def _best(methods: dict[str, Any]) -> str:
    """The method that validates best; of equals the simpler. Without validation rows the last of them."""
    names = list(methods)
    if "valid" not in methods[names[0]]["accuracy"]:
        return names[-1]
    return max(names, key=lambda name: methods[name]["accuracy"]["valid"]["top1"])


def _predictions(sets: Sets, path: Path, run: Run) -> None:
    usable = np.flatnonzero(sets.own.usable)
    chances = apply_head(load_head(path), sets.own.features[usable])[0]
    top, label = chances.argmax(1), sets.label[usable]
    p_given = np.where(label >= 0, chances[np.arange(len(label)), np.maximum(label, 0)], np.nan)
    table = pa.table({
        "key": [sets.own.keys[row] for row in usable],
        "split": [WORDS[int(sets.split[row])] for row in usable],
        "label": [sets.own.words[row] for row in usable.tolist()],
        "predicted": [sets.names[one] for one in top],
        "p_predicted": pa.array(chances.max(1), pa.float32()),
        "p_label": pa.array(p_given.astype(np.float32), pa.float32()),
    })  # fmt: skip
    with atomic_path(run.path("predictions.parquet")) as temporary:
        pq.write_table(table, temporary)


def summary_lines(report: Mapping[str, Any]) -> list[str]:
    """One line a method, and what was left out."""
    out = []
    for name, found in report["methods"].items():
        numbers = ", ".join(f"{where} {100 * one['top1']:.1f}" for where, one in found["accuracy"].items())
        out.append(f"{name}: accuracy {numbers}{' (chosen)' if name == report['best'] else ''}")
    for name, why in report["left_out"].items():
        reasons: collections.Counter[str] = collections.Counter(why)
        out += [f"{name}: {count:,} rows {reason} are left out" for reason, count in reasons.items()]
    return out


def _write_config(plan: Plan, run: Run) -> None:
    flat: dict[str, Any] = {"output_folder": str(run.folder), "clip_model": plan.clip_model}
    for choice in (plan.source, plan.rows, plan.tune):
        flat |= dataclasses.asdict(choice)
    write_yaml(run.path("config.yaml"), flat)


def _clear(run: Run) -> None:
    if run.folder.exists():
        owner = run.folder / "stages" / "tune_started.json"
        taken = [name for name in RUN_CONTENT if (run.folder / name).exists()]
        if taken and not owner.exists():
            raise UsageError(f"{run.folder} holds {taken[0]!r}, but no heads: `overwrite` deletes heads only.")
        run.clear()
