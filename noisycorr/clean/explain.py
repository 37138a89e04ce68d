"""Why did this pair get its verdict? Its row of the ledger, and the neighbours that spoke for and against it."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq

from noisycorr.clean.signals.view import blocks, take
from noisycorr.data.pairs import PROBLEMS, is_truth
from noisycorr.data.store import open_features, pairs_path, part_ranges, read_facts
from noisycorr.runtime.errors import UsageError
from noisycorr.runtime.folder import Run
from noisycorr.stats.unit import unit

SHOWN = 300  # characters of a text
TOLD = 10  # pairs of one key


def explain(run: Run, key: str, *, count: int = 5) -> str:
    """A text for a person.

    Args:
        run: A folder whose decide stage is done.
        key: Key of the pair; the first ten pairs that carry it are explained.
        count: Neighbours on each side, >= 0.

    Returns:
        Several lines.

    Raises:
        UsageError: If the key is not in the ledger, or `count` is negative.
    """
    if count < 0:
        raise UsageError(f"`neighbors` is {count}, expected 0 or more.")
    rows = _find(run, key)
    if not rows:
        raise UsageError(f"key {key!r} is not in the ledger of {run.folder}; keys look like {_examples(run)}.")
    told = [_explain_row(run, row, count) for row in rows[:TOLD]]
    if len(rows) > TOLD:
        told.append(f"{len(rows) - TOLD} more pairs carry this key")
    return "\n\n".join(told)


def _find(run: Run, key: str) -> list[int]:
    found = []
    for index, start, _ in part_ranges(run):
        keys = pq.read_table(_ledger(run, index), columns=["key"]).column("key")
        found += [start + int(i) for i in np.flatnonzero(pc.equal(keys, key).to_numpy(zero_copy_only=False))]
    return found


def _examples(run: Run) -> list[str]:
    ranges = part_ranges(run)
    return pq.read_table(_ledger(run, ranges[0][0]), columns=["key"]).column("key")[:2].to_pylist() if ranges else []


def _ledger(run: Run, index: int) -> Any:
    path = run.folder / "ledger" / f"{index:05d}.parquet"
    if not path.exists():
        raise UsageError(f"{run.folder} has no ledger yet: run `noisycorr clean` or `noisycorr decide` first.")
    return path


def _explain_row(run: Run, row: int, count: int) -> str:
    index, start, _ = next(r for r in part_ranges(run) if r[1] <= row < r[1] + r[2])
    ledger = pq.read_table(_ledger(run, index)).slice(row - start, 1).to_pylist()[0]
    wanted = ["width", "height", "image_format", "problem", "problem_detail", "columns"]
    facts = pq.read_table(pairs_path(run, index), columns=wanted).slice(row - start, 1).to_pylist()[0]
    size = "(none)" if facts["width"] is None else f"{facts['width']} x {facts['height']} {facts['image_format'] or ''}"
    lines = [f"key      {_short(ledger['key'])}", f"text     {_short(ledger['text'])}", f"image    {size.rstrip()}",
             f"verdict  {ledger['verdict']}: {ledger['reason']}",
             f"rule     {ledger['rule']}", f"p_clean  {_number(ledger['p_clean'])}"]  # fmt: skip
    lines += _new_text(ledger)
    lines += _label(ledger) if "label_rectified" in ledger else []
    if facts["problem"]:
        lines.append(
            f"problem  {facts['problem']}: {_short(facts['problem_detail'] or PROBLEMS.get(facts['problem'], ''))}"
        )
    lines.append("scores (higher = better matched)")
    lines += [f"  {name:28s} {_number(ledger[name])}" for name in ledger if name.startswith("score_")]
    for name in ("image_issue", "text_issue", "near_duplicate_group"):
        if ledger[name]:
            lines.append(f"{name}  {ledger[name]}" + (f" ({ledger['group_kind']})" if "group" in name else ""))
    other = {k: v for k, v in json.loads(facts["columns"]).items() if not is_truth(k)}
    if other:
        lines.append("came with  " + _short(", ".join(f"{k} = {v}" for k, v in other.items())))
    if count:
        lines += _neighbors(run, row, "image", "text", count) + _neighbors(run, row, "text", "image", count)
    return "\n".join(lines)


def _new_text(ledger: dict[str, Any]) -> list[str]:
    """What `noisycorr recaption` did with the pair; nothing if it was not asked."""
    action = ledger.get("recaption")
    if action is None:
        return []
    if action == "none":
        return ["new text  none could be proposed"]
    words = {"keep": "proposed, not clearly better", "flag": "proposed, for a person to look at",
             "replace": "taken in place of the given one", "merge": "merged with the given one"}  # fmt: skip
    made = f"by {_short(ledger['text_source'])}"
    made += f", from {_short(ledger['text_donor'])}" if ledger["text_donor"] else ""
    made += f", level {ledger['text_level']}" if ledger["text_level"] is not None else ""
    new, given = _number(ledger["score_text_new"]), f"the given with {_number(ledger['score_text_given'])}"
    given = given if (ledger["text"] or "").strip() else "and there was no text"
    lines = [f"new text  {_short(ledger['text_proposed'])}", f"  {words.get(action, action)}; {made}",
             f"  fits with {new}, {given}"]  # fmt: skip
    return [*lines, f"  guard: {ledger['recaption_note']}"] if ledger["recaption_note"] else lines


def _label(ledger: dict[str, Any]) -> list[str]:
    """What an audit says of the label, and who lent the text behind it."""
    proposed = f"{_short(ledger['label_proposed'], 90)} ({_number(ledger['p_proposed'])})"
    lines = [
        f"label    {_short(ledger['label'], 90)} -> {_short(ledger['label_rectified'], 90)}",
        f"likeliest other class  {proposed}",
        f"of no class at all     {_number(ledger['out_of_set'])}",
        f"texts around it say    {_short(ledger['text_class'], 90)} (support {_number(ledger['text_support'])})",
    ]
    if donors := ledger["text_donors"]:
        lines.append("texts lent by          " + ", ".join(_short(key, 40) for key in donors[:TOLD]))
    return lines


def _neighbors(run: Run, row: int, side: str, other: str, count: int) -> list[str]:
    """Nearest rows on one side, each with how well the other side agrees, relative to the mean over the set."""
    here, there = open_features(run, side), open_features(run, other)
    query = unit(take(here, np.array([row])))
    if not query.any():
        return [f"no {side} to compare"]
    scores = np.concatenate([np.where(block.any(1), unit(block) @ query[0], -np.inf) for _, block in blocks(here)])
    scores[row] = -np.inf
    nearest = np.argsort(-scores, kind="stable")[:count]
    nearest = nearest[np.isfinite(scores[nearest])]  # of a small set all others may be fewer
    agree = _agreement(there, row, nearest)
    facts = read_facts(run, ["key", "text"])
    verb = "texts" if other == "text" else "images"
    lines = [f"nearest {side}s, and whether their {verb} agree with this pair's ({other} agreement from -1 to 1)"]
    for value, neighbor in zip(agree.tolist(), nearest.tolist()):
        word = "for    " if value > 0.3 else "against" if value < 0.1 else "unclear"
        known = "unknown      " if np.isnan(value) else f"{word} {value:+.2f}"
        text = _short(facts.column("text")[neighbor].as_py(), 90)
        key = _short(facts.column("key")[neighbor].as_py(), 90)
        lines.append(f"  {known}  {side} similarity {scores[neighbor]:.2f}  {key}  {text}")
    return lines


def _agreement(features: list[np.ndarray], row: int, others: np.ndarray) -> np.ndarray:
    """Cosine of these rows with this one, less what all have in common; NaN where one of the two is missing."""
    n = sum(map(len, features))
    sample = unit(take(features, np.sort(np.random.default_rng(0).choice(n, min(2000, n), replace=False))))
    mean = sample[sample.any(1)].mean(0) if sample.any() else np.zeros(sample.shape[1], np.float32)
    own, rest = unit(take(features, np.array([row]))), unit(take(features, others))
    agree = unit(rest - mean) @ unit(own - mean)[0]
    return np.where(rest.any(1) & own.any(), agree, np.nan)


def _short(text: str | None, limit: int = SHOWN) -> str:
    if text is None:
        return "(none)"
    flat = " ".join(text.split())
    flat = "".join(c if c.isprintable() else "?" for c in flat)  # a caption must not steer the terminal
    return flat if len(flat) <= limit else flat[: limit - 1] + "…"


def _number(value: float | None) -> str:
    return "unknown" if value is None or value != value else f"{value:.4f}"
