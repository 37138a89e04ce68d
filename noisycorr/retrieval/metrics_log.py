"""Keep metrics.jsonl in step with the checkpoint that a training goes on from: each epoch once."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from noisycorr.runtime.folder import Run, atomic_path


def align_log(run: Run, history: Sequence[Mapping[str, Any]]) -> None:
    """Make the log hold exactly the epochs that are done.

    A training can be killed between a checkpoint and its line, in the middle of a line, or be begun anew. Lines of
    epochs that will be trained again go, half lines go, and an epoch without a line gets one, without its times.

    Args:
        run: Of the training.
        history: A record for each epoch that the checkpoint knows, as `Cursor` keeps them.
    """
    path = run.folder / "metrics.jsonl"
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    lines: list[dict[str, Any]] = []
    known: set[int] = set()
    for line in text.splitlines():
        record = _parsed(line)
        epoch = record.get("epoch")
        if record.get("event") != "epoch":
            lines.extend([record] if record else [])
        elif isinstance(epoch, int) and epoch < len(history) and epoch not in known:
            known.add(epoch)
            lines.append(record)
    lines += [{"event": "epoch", **epoch_values(record)} for record in history if record["epoch"] not in known]
    body = "".join(json.dumps(record) + "\n" for record in lines)
    if body != text:
        with atomic_path(run.path("metrics.jsonl")) as temporary:
            temporary.write_text(body, encoding="utf-8")


def epoch_values(record: Mapping[str, Any]) -> dict[str, Any]:
    """What the log says of an epoch, without times: its numbers and words, and the mean loss of all networks."""
    values = {name: value for name, value in record.items() if isinstance(value, (int, float, str))}
    losses = record["loss"]
    return values | {"loss": sum(losses) / len(losses)}


def _parsed(line: str) -> dict[str, Any]:
    """The record, or an empty one for half a line."""
    try:
        record = json.loads(line)
    except ValueError:
        return {}
    return record if isinstance(record, dict) else {}
