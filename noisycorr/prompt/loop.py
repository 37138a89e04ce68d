"""FPL, IFPL and GRIP: pseudo-labels, a prompt learned from them, better pseudo-labels, and so on.

    labels_1 from the zero-shot model;  for t = 1..T: prompt_t learned from labels_t; labels_t+1 from prompt_t

Source: Menghini et al., Enhancing CLIP with CLIP, NeurIPS 2023. Differs: labels are exclusive and sized as the images
suggest, they are chosen from a posterior that looks at similar images (`prompt/posterior.py`), each round really starts
from the first prompt, no label is held out for a validation that chooses nothing, and a round after which the model
contradicts itself, or similar images, is undone. Each of them is a choice.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from noisycorr.prompt.choice import Rounds, Steps
from noisycorr.prompt.fit import TrainSet, fit_round
from noisycorr.prompt.measure import doubts
from noisycorr.prompt.model import Prompted, restore, snapshot
from noisycorr.prompt.objective import transport_clean, trust
from noisycorr.prompt.posterior import Posterior, neighbor_clean
from noisycorr.prompt.select import Selected, capacities, per_round, select
from noisycorr.prompt.task import Task
from noisycorr.runtime.errors import UsageError

ROWS = 8192  # images that are classified at once


@dataclass(kw_only=True)
class State:
    """Where the loop stands; what a round leaves behind.

    Attributes:
        weights: The prompt.
        selected: Pseudo-labels of the last round; rows count the unlabelled images, labels the open classes.
        named: int64 (u,): open class that each unlabelled image had last, -1 = none yet.
        since: int64 (u,): round in which it first got it, from 1; 0 = none yet.
        history: One record for each round.
        stopped: True if the guard ended the loop; without a record in `history` it did not let it begin.
    """

    weights: dict[str, Tensor]
    selected: Selected | None = None
    named: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    since: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    history: list[dict[str, Any]] = field(default_factory=list)
    stopped: bool = False

    @property
    def zero_shot_failed(self) -> bool:
        """True if the guard did not let the loop begin."""
        return self.stopped and not self.history


@dataclass(frozen=True, slots=True)
class Reference:
    """What the guard compares with: a prompt that agrees less with it than zero-shot did has learned nothing good.

    In the middle that may happen by `guard_fit`; at the end it sends back to the prompt that was started from.

    Attributes:
        label: int64 (u,): classes of the unlabelled images by the posterior of the zero-shot model.
        least: Share of them that the zero-shot model itself says.
    """

    label: np.ndarray
    least: float


class Store(Protocol):
    """Where rounds are kept, so that a killed loop continues."""

    def load(self) -> State | None:
        """The state after the last finished round, or None."""

    def save(self, state: State) -> None:
        """After a round."""


def tune(
    task: Task, model: Prompted, zero: Float[Tensor, "n c"], rounds: Rounds, steps: Steps, *,
    posterior: Posterior | None = None, prior: Float[np.ndarray, " c"] | None = None,
    store: Store | None = None, on_round: Callable[[dict[str, Any]], None] | None = None,
    corrupt: Callable[[Selected], Selected] | None = None,
) -> State:  # fmt: skip
    """Run all rounds that are not done yet; the model ends with the prompt of the last one that was kept.

    Args:
        task: Images, classes, given labels.
        model: At the prompt to start from.
        zero: Zero-shot logits of all n images, at the model's scale.
        rounds: Which pseudo-labels.
        steps: How to learn.
        posterior: From the model's probabilities of unlabelled images to those that labels are chosen from; None = the
            same.
        prior: Share of each class among the unlabelled images; None = as `rounds.balance` says.
        store: Keeps rounds.
        on_round: Called with the record of each round.
        corrupt: Changes pseudo-labels, for experiments with known noise.

    Returns:
        The state at the end.
    """
    task.check()
    first = snapshot(model)
    stored = store.load() if store is not None else None
    state = stored or State(weights=first, named=np.full(len(task.unlabelled), -1),
                           since=np.zeros(len(task.unlabelled), np.int64))  # fmt: skip
    restore(model, state.weights)
    counts = schedule(task, rounds, prior)
    p = probabilities(model, task) if state.history else softmax(zero[task.unlabelled][:, task.open])
    reference = None
    if rounds.guard and not len(task.labelled) and not state.history and doubts(p)["warning"]:
        state.stopped = True  # nothing built on such an answer has gained
    elif posterior is not None and posterior.has_neighbor_vote and rounds.guard:
        before = softmax(zero[task.unlabelled][:, task.open])
        told_first = posterior.neighbor_vote(before).argmax(1)
        reference = Reference(told_first, float((before.argmax(1) == told_first).mean()))
    for number in range(len(state.history), len(counts)):
        if state.stopped:
            break
        selected = pick(p if posterior is None else posterior(p), counts[number], rounds, prior, task)
        selected = corrupt(selected) if corrupt is not None else selected
        begin = first if steps.reinit else state.weights
        train_set = make_lesson(task, selected, state, p, rounds, steps, number, posterior)
        if is_empty(train_set, selected, rounds, steps, number):
            break
        p = run_round(model, task, train_set, selected, state, p, begin, rounds, steps, number, reference)
        state.history[-1]["per_class"] = counts[number]
        if on_round is not None:
            on_round(state.history[-1])
        if store is not None:
            store.save(state)
    kept = [one for one in state.history if not one["tripped"]]
    if reference is not None and kept and kept[-1]["with_similar"] < reference.least:
        state.weights, state.stopped = first, True
    restore(model, state.weights)
    return state


def is_empty(train_set: TrainSet, selected: Selected, rounds: Rounds, steps: Steps, number: int) -> bool:
    """True if no label is left to learn from in a later round: what was learned before stays.

    Raises:
        UsageError: If it is so in the first round, with what to do.
    """
    if len(train_set) or number:
        return not len(train_set)
    if len(selected):
        raise UsageError(f"`clean` {steps.clean} believes none of the {len(selected):,} pseudo-labels: give `labels`.")
    if rounds.selector == "threshold":
        raise UsageError(f"no image is as sure as `threshold` {rounds.threshold:g}: lower it, or give `labels`.")
    raise UsageError(f"`selector` {rounds.selector} gives no pseudo-label: use another one, or give `labels`.")


def learn_labels(task: Task, model: Prompted, steps: Steps) -> None:
    """Learn from given labels alone, in one round: what pseudo-labels have to beat.

    With seen classes the softmax is over them, as in the released code.
    """
    mine, c = task.labelled, len(task.names)
    targets = np.zeros((len(mine), c), np.float32)
    targets[np.arange(len(mine)), task.label[mine]] = 1
    train_set = TrainSet(rows=mine, targets=targets, weight=np.ones(len(mine), np.float32),
                    is_labelled=np.ones(len(mine), bool), is_set=np.zeros(len(mine), bool),
                    allowed=task.seen if task.seen.any() else None)  # fmt: skip
    fit_round(model, train_set, steps, number=0)


def run_round(
    model: Prompted, task: Task, train_set: TrainSet, selected: Selected, state: State, before: np.ndarray,
    begin: dict[str, Tensor], rounds: Rounds, steps: Steps, number: int, reference: Reference | None = None,
) -> Float[np.ndarray, "u c"]:  # fmt: skip
    """Learn; if the guard trips, once more and slower; if it trips again, undo the round and stop.

    Returns:
        Probabilities of the prompt that was kept.
    """
    record: dict[str, Any] = {"round": number + 1, "selected": len(selected), "images": len(np.unique(selected.rows)),
                              "learned_from": len(train_set)}  # fmt: skip
    last_fit = state.history[-1]["fit"] if state.history else None
    for slower in (False, True):
        restore(model, begin)
        try:
            record |= fit_round(model, train_set, steps, number=number, slower=slower)
        except FloatingPointError:
            if not rounds.guard:
                raise
            record |= {"fit": 0.0, "agree": 0.0, "tripped": True}
            continue
        p = probabilities(model, task)
        record |= health(p, before, selected)
        sure = float(before.max(1).mean()) if not state.history else 1.0
        if reference is not None:
            record["with_similar"] = float((p.argmax(1) == reference.label).mean())
        lost = reference is not None and record["with_similar"] < reference.least - rounds.guard_fit
        record["tripped"] = rounds.guard and (lost or trips(record, last_fit, rounds, sure))
        if not record["tripped"]:
            break
    record["retried"] = slower
    if record["tripped"]:
        restore(model, state.weights)
        state.stopped, p = True, before
        record["fit"] = last_fit if last_fit is not None else record["fit"]
    else:
        state.weights, state.selected = snapshot(model), selected
        remember(state, selected, number)
    state.history.append(record)
    return p


def schedule(task: Task, rounds: Rounds, prior: np.ndarray | None) -> list[int]:
    """Labels of each class in each round."""
    whole = rounds.balance != "unknown" or prior is not None
    return per_round(rounds.strategy, images=len(task.unlabelled), classes=len(task.open), rounds=rounds.rounds,
                     per_class=rounds.per_class, max_fraction=1.0 if whole else 0.5)  # fmt: skip


def pick(p: np.ndarray, count: int, rounds: Rounds, prior: np.ndarray | None, task: Task) -> Selected:
    """The pseudo-labels of a round."""
    share = None if prior is None else prior[task.open]
    if share is None and rounds.balance == "estimated":
        share = 0.5 * p.mean(0, dtype=np.float64) / p.sum(1, dtype=np.float64).mean() + 0.5 / p.shape[1]
    return select(rounds.selector, p, capacities(count, len(task.open), share), threshold=rounds.threshold,
                  alpha=rounds.alpha, beta=rounds.beta, prior=share)  # fmt: skip


def make_lesson(
    task: Task, selected: Selected, state: State, p: np.ndarray, rounds: Rounds, steps: Steps, number: int,
    posterior: Posterior | None = None,
) -> TrainSet:  # fmt: skip
    """Given labels and pseudo-labels with their weights."""
    c, m = len(task.names), len(selected)
    soft = np.zeros((m, c), np.float32)
    if selected.targets is None:
        soft[np.arange(m), task.open[selected.label]] = 1
    else:
        soft[:, task.open] = selected.targets
    same = state.named[selected.rows] == selected.label
    age = np.where(same, number + 1 - state.since[selected.rows], 0)
    weight = trust(torch.from_numpy(selected.probability), torch.from_numpy(age), power=rounds.confidence,
                   decay=rounds.decay, floor=rounds.floor).numpy()  # fmt: skip
    keep = believable(selected, p, steps, posterior)
    mine = task.labelled
    given = np.zeros((len(mine), c), np.float32)
    given[np.arange(len(mine)), task.label[mine]] = 1
    chosen = np.flatnonzero(keep)
    if not len(mine) + len(chosen):  # nothing passed: learn from all rather than from nothing
        chosen = np.arange(m)
    labelled = np.arange(len(mine) + len(chosen)) < len(mine)
    return TrainSet(
        rows=np.concatenate([mine, task.unlabelled[selected.rows[chosen]]]),
        targets=np.concatenate([given, soft[chosen]]),
        weight=np.concatenate([np.ones(len(mine), np.float32), weight[chosen].astype(np.float32)]),
        is_labelled=labelled,
        is_set=~labelled & (selected.targets is not None),
        transductive=bool(task.seen.any()),
        one_round=rounds.strategy == "fpl",
    )


def believable(selected: Selected, p: np.ndarray, steps: Steps, posterior: Posterior | None) -> np.ndarray:
    """bool (m,): pseudo-labels that `steps.clean` lets pass."""
    m = len(selected)
    if steps.clean == "none" or m < 2:
        return np.ones(m, bool)
    if steps.clean == "ot":
        logits = torch.from_numpy(np.log(np.maximum(p[selected.rows], 1e-30)))
        return transport_clean(logits, torch.from_numpy(selected.label)).numpy()
    if posterior is None:
        raise ValueError("clean is neighbors, but no posterior knows which images are alike")
    return neighbor_clean(selected.label, posterior.similar(selected.rows, steps.clean_neighbors))


def probabilities(model: Prompted, task: Task, rows: np.ndarray | None = None, *, every: bool = False) -> np.ndarray:
    """What the model thinks of images.

    Args:
        model: With its prompt.
        task: Images and classes.
        rows: Which images; None = the unlabelled ones.
        every: Over all classes instead of the open ones.

    Returns:
        float32 (u, c), rows sum to 1.
    """
    asked = task.unlabelled if rows is None else rows
    with torch.no_grad():
        classes = model.classes()
        chosen = classes if every else classes[torch.from_numpy(task.open)]
        parts = [softmax(model.scale * model.images(asked[at : at + ROWS].tolist()) @ chosen.T)
                 for at in range(0, len(asked), ROWS)]  # fmt: skip
    return np.concatenate(parts) if parts else np.zeros((0, len(chosen)), np.float32)


def softmax(logits: Float[Tensor, "n c"]) -> Float[np.ndarray, "n c"]:
    """Rows that sum to 1, float32."""
    out: np.ndarray = torch.softmax(logits.detach(), 1).float().cpu().numpy()
    return out


def health(p: np.ndarray, before: np.ndarray, selected: Selected) -> dict[str, float]:
    """How a round left the model.

    Returns:
        `fit`: share of selected images that it gives their own pseudo-label; `agree`: share of unlabelled images that
        it classifies as the model before; both in [0, 1], a sudden fall means collapse.
    """
    now = p.argmax(1)
    fit = float((now[selected.rows] == selected.label).mean()) if len(selected) else 1.0
    return {"fit": fit, "agree": float((now == before.argmax(1)).mean())}


def trips(record: dict[str, Any], last_fit: float | None, rounds: Rounds, sure: float = 1.0) -> bool:
    """True if the guard sees a collapse: fewer own labels were learned, or too few images are predicted as before.

    In the first round `sure`, the mean probability of the zero-shot classes, is all the agreement that is asked for:
    a zero-shot model that doubts itself may rightly be contradicted.
    """
    fell = last_fit is not None and record["fit"] < last_fit - rounds.guard_fit
    return fell or record["agree"] < min(rounds.guard_agree, sure)


def remember(state: State, selected: Selected, number: int) -> None:
    """Note since when images have their labels; of several labels of one image the first counts."""
    rows, first = np.unique(selected.rows, return_index=True)
    label = selected.label[first]
    fresh = state.named[rows] != label
    named, since = state.named.copy(), state.since.copy()
    named[rows], since[rows[fresh]] = label, number + 1
    state.named, state.since = named, since
