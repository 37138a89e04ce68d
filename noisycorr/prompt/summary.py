"""The numbers of a tuned prompt: report.json, and what a person at the terminal is told."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np

from noisycorr.prompt.inputs import Plan
from noisycorr.prompt.loop import State, schedule
from noisycorr.prompt.measure import accuracy, compare
from noisycorr.prompt.task import Task
from noisycorr.runtime import console, dist
from noisycorr.runtime.folder import Run

if TYPE_CHECKING:
    from noisycorr.prompt.inputs import Ready

RELEASED = 150  # epochs of each round in the released code


def summary(plan: Plan, ready: Ready, state: State, evidence: dict[str, Any], p: np.ndarray,
            settled: np.ndarray, seconds: float) -> dict[str, Any]:  # fmt: skip
    """The value of report.json; nothing in it depends on how long it took."""
    task, zero = ready.task, ready.baselines["zero-shot"]
    after = p.argmax(1)
    asked, kind = _measured(task, ready.truth)
    counts = [len(np.unique(state.selected.rows[state.selected.label == place])) if state.selected is not None else 0
              for place in range(len(task.open))]  # fmt: skip
    learned = dict(zip(task.open.tolist(), counts))
    encoded = int(task.usable.sum()) + ready.model.pictures_encoded
    per_round = [record.get("learned_from", 0) for record in state.history]
    report: dict[str, Any] = {
        "paradigm": task.paradigm, "images": int(task.usable.sum()), "unlabelled": len(task.unlabelled),
        "labelled": len(task.labelled), "test": int((task.held & task.usable).sum()), "classes": len(task.names),
        "encoder": ready.side.name, "scale": ready.model.scale, "doubts": evidence, "history": state.history,
        "stopped": state.stopped, "schedule": schedule(task, plan.rounds, ready.prior),
        "settings": {**dataclasses.asdict(plan.context), **dataclasses.asdict(plan.rounds),
                     **dataclasses.asdict(plan.steps)},
        "encodings": {"here": encoded,
                      "released": RELEASED * sum(per_round) + len(task.unlabelled) * len(per_round)},
        "changed": int((after[task.unlabelled] != zero[task.unlabelled]).sum()), "measured_on": kind,
        "absent": [task.names[k] for k in range(len(task.names)) if not (after[task.unlabelled] == k).any()],
    }  # fmt: skip
    by_class = []
    for k, name in enumerate(task.names):
        row = {"class": name, "zero_shot": int((zero[task.unlabelled] == k).sum()),
               "tuned": int((after[task.unlabelled] == k).sum()), "pseudo_labels": learned.get(k, 0)}  # fmt: skip
        mine = asked[ready.truth[asked] == k]
        if kind is not None:
            row |= {"images": len(mine), "accuracy_zero_shot": _or_none(accuracy(zero[mine], ready.truth[mine])),
                    "accuracy_tuned": _or_none(accuracy(after[mine], ready.truth[mine]))}  # fmt: skip
        by_class.append(row)
    report["by_class"] = by_class
    if kind is not None:
        truth = ready.truth[asked]
        report["measures"] = compare(zero[asked], after[asked], truth, len(task.names), task.seen)
        report["baselines"] = {
            name: accuracy(labels_of(found)[asked], truth) for name, found in ready.baselines.items()
        }
        if ready.posterior.mixes and not state.zero_shot_failed:
            report["settled"] = accuracy(settled.argmax(1)[asked], truth)
        report["label_precision"] = _precision(task, state, ready.truth)
    return report


def labels_of(found: np.ndarray) -> np.ndarray:
    """int64 (n,) classes from classes (n,), or from probabilities (n, c) of them."""
    return found if found.ndim == 1 else found.argmax(1)


def _measured(task: Task, truth: np.ndarray) -> tuple[np.ndarray, str | None]:
    """Rows to measure on: test images, else the unlabelled ones; none if their classes are not known."""
    test = np.flatnonzero(task.held & task.usable & (truth >= 0))
    if len(test):
        return test, "test images"
    pool = task.unlabelled[truth[task.unlabelled] >= 0]
    return pool, "the unlabelled images" if len(pool) else None


def _precision(task: Task, state: State, truth: np.ndarray) -> float | None:
    """Share of right pseudo-labels in the last round."""
    if state.selected is None:
        return None
    mine = truth[task.unlabelled[state.selected.rows]]
    right = mine == task.open[state.selected.label]
    return float(right[mine >= 0].mean()) if (mine >= 0).any() else None


def tell(record: dict[str, Any]) -> None:
    """One line for each round."""
    more = ", undone" if record["tripped"] else ", second try" if record["retried"] else ""
    say(f"round {record['round']}: {record['selected']:,} pseudo-labels, {record['fit']:.0%} of them learned, "
        f"{record['agree']:.0%} predicted as before{more}")  # fmt: skip


def tell_end(run: Run, report: dict[str, Any], seconds: float) -> None:
    """What came out."""
    if "measures" in report:
        measures = report["measures"]
        others = ", ".join(f"{name} {value:.1%}" for name, value in report["baselines"].items())
        mixed = f", tuned, with similar images {report['settled']:.1%}" if "settled" in report else ""
        say(f"accuracy on {report['measured_on']}: {others}; tuned {measures['after']:.1%}{mixed}")
        if measures["poor"] is not None:
            poor, rich = measures["poor"], measures["rich"]
            say(f"gain of the poorer half of the classes {poor:+.1%}, of the richer half {rich:+.1%}")
        if told := changes(report["by_class"]):
            say(f"by class: {told}; all of them in the report")
        if "harmonic" in measures:
            say(f"seen {measures['seen']:.1%}, unseen {measures['unseen']:.1%}, harmonic mean "
                f"{measures['harmonic']:.1%} (zero-shot {measures['harmonic_before']:.1%})")  # fmt: skip
    if report["stopped"] and not report["history"]:
        console.warn("the guard did not let the loop begin: the classifier is zero-shot's")
    elif report["stopped"]:
        console.warn("the guard stopped the loop: the last round contradicted itself and was undone")
    here, released = report["encodings"]["here"], report["encodings"]["released"]
    say(
        f"prompt: {report['changed']:,} of {report['unlabelled']:,} images changed their class, {seconds:.1f} s, "
        f"{here:,} image encodings (the released code would take {released:,}); report: {run.folder / 'report.html'}"
    )


def changes(by_class: list[dict[str, Any]], most: int = 4) -> str:
    """The classes that gained most and those that lost most, with accuracy before and after, and their images."""
    known = [row for row in by_class if row.get("accuracy_tuned") is not None]
    order = sorted(known, key=lambda row: row["accuracy_zero_shot"] - row["accuracy_tuned"])
    best = [row for row in order[:most] if row["accuracy_tuned"] > row["accuracy_zero_shot"]]
    worst = [row for row in order[-most:] if row["accuracy_tuned"] < row["accuracy_zero_shot"]]
    return ", ".join(f"{row['class']} {row['accuracy_zero_shot']:.0%} to {row['accuracy_tuned']:.0%} of {row['images']}"
                     for row in best + worst)  # fmt: skip


def say(message: str) -> None:
    """One line, from the main process."""
    if dist.is_main():
        (console.warn if message.startswith("warning:") else console.say)(message)


def _or_none(value: float) -> float | None:
    return None if np.isnan(value) else value
