"""The straight way: embed, score, decide, report. Each stage reads what the one before left in the run folder.

A stage is skipped when it finished with the same inputs, so the same command continues after a kill, and another rule
re-decides in seconds. Embeddings of other data or settings are refused, with what differs (law 3).
"""

from __future__ import annotations

import dataclasses
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from noisycorr import dist
from noisycorr.decide import Decide
from noisycorr.embed import Embed, embed_inputs, embed_pieces, part_sizes
from noisycorr.encoders import DualEncoder, load_encoder
from noisycorr.encoders.precomputed import PrecomputedEncoder
from noisycorr.formats import Reader, Source, open_source
from noisycorr.pairs import UsageError
from noisycorr.run import Run, atomic_path, fingerprint, fingerprint_file, provenance, write_json
from noisycorr.score.duplicates import Duplicates
from noisycorr.score.image_issues import ImageLimits
from noisycorr.score.pipeline import Score
from noisycorr.score.text_issues import TextLimits

STAGES = ("embed", "score", "decide", "report")


@dataclass(frozen=True, kw_only=True)
class Plan:
    """All choices of one run.

    Attributes:
        source: Where the pairs come from.
        embed: How they become numbers.
        score: How they are scored.
        duplicates: What counts as a near-duplicate.
        image_limits: What counts as an image issue.
        text_limits: What counts as a text issue.
        decide: Which are kept.
        labels: File of pairs that a person judged, or None.
    """

    source: Source
    embed: Embed = field(default_factory=Embed)
    score: Score = field(default_factory=Score)
    duplicates: Duplicates = field(default_factory=Duplicates)
    image_limits: ImageLimits = field(default_factory=ImageLimits)
    text_limits: TextLimits = field(default_factory=TextLimits)
    decide: Decide = field(default_factory=Decide)
    labels: str | None = None


def say(message: str) -> None:
    """One line for the person at the terminal, on stderr; only from the main process."""
    if dist.is_main():
        print(message, file=sys.stderr, flush=True)


def clean(plan: Plan, run: Run, *, stages: tuple[str, ...] = STAGES) -> None:
    """Run the named stages in order; finished ones are skipped.

    Args:
        plan: All choices.
        run: The folder.
        stages: Any of `STAGES`.

    Raises:
        UsageError: If a stage is unknown, or the folder holds embeddings of other data or settings.
    """
    unknown = [name for name in stages if name not in STAGES]
    if unknown:
        raise UsageError(f"Stage {unknown[0]!r} is not known, expected some of {', '.join(STAGES)}.")
    if "embed" in stages:
        embed_stage(plan, run)
    if not dist.is_main():
        return
    if "score" in stages:
        score_stage(plan, run)
    if "decide" in stages:
        decide_stage(plan, run)
    if "report" in stages:
        report_stage(run)


def open_plan(plan: Plan) -> tuple[Reader, DualEncoder]:
    """The reader of the source, and the encoder (or its stand-in for precomputed embeddings)."""
    reader = open_source(plan.source)
    given = None
    if reader.format == "embeddings":
        given = next((found for piece in reader.pieces() if (found := reader.embeddings(piece)) is not None), None)
    if given is not None:
        encoder: DualEncoder = PrecomputedEncoder(fingerprint(reader.identity), given[0].shape[1], given[1].shape[1])
    else:
        encoder = load_encoder(plan.embed.clip_model, device=dist.device(), precision=plan.embed.model_precision)
    return reader, encoder


def embed_stage(plan: Plan, run: Run) -> None:
    """Read, decode and encode every pair. Every process takes its share of the pieces."""
    reader, encoder = open_plan(plan)
    say(f"reading {plan.source.path} as {reader.format}: " + ", ".join(f"{k} = {v}" for k, v in reader.picked.items()))
    inputs = embed_inputs(reader, encoder, plan.embed) | {"preprocessing": encoder.preprocessing}
    differences = run.differences("embed_started", inputs)
    if differences:
        raise UsageError(
            f"{run.folder} holds embeddings of other data or settings ({'; '.join(differences[:3])}): choose another "
            "--output_folder, or add --overwrite to start anew."
        )
    if run.is_done("embed", inputs):
        say("embed: nothing changed, skipped")
        return
    if dist.is_main():
        run.finish("embed_started", inputs)
        write_json(run.path("provenance.json"), provenance() | {"encoder": encoder.name, "weights": encoder.weights_hash})
        _write_config(run, plan)
    dist.wait()
    started = time.perf_counter()
    pieces = reader.pieces()
    embed_pieces(dist.my_share(pieces), reader, encoder, run, plan.embed)
    dist.wait()
    if not dist.is_main():
        return
    pairs = sum(part_sizes(run).values())
    seconds = time.perf_counter() - started
    run.log("embed", pairs=pairs, seconds=round(seconds, 3))
    facts = {"pairs": pairs, "encoder": encoder.name, "joint": encoder.joint, "score_column": encoder.score_column,
             "pieces": len(pieces), "device": str(dist.device())}  # fmt: skip
    run.finish("embed", inputs, facts)
    say(f"embed: {pairs:,} pairs in {seconds:.1f} s ({pairs / max(seconds, 1e-9):.1f} pairs/s)")


def score_stage(plan: Plan, run: Run) -> None:
    """Signals, near-duplicates and issues of every pair, from what is stored."""
    from noisycorr.scoring import score_run

    inputs = {"embed": _need(run, "embed")["fingerprint"]}
    for name in ("score", "duplicates", "image_limits", "text_limits"):
        inputs[name] = dataclasses.asdict(getattr(plan, name))
    _timed(run, "score", inputs, lambda: score_run(plan, run))


def decide_stage(plan: Plan, run: Run) -> None:
    """Verdicts into the ledger, from stored scores."""
    from noisycorr.ledger import decide_run

    labels = Path(plan.labels) if plan.labels else None
    if labels is not None and not labels.is_file():
        raise UsageError(f"--labels {labels} is not a file; expected a csv, tsv or jsonl with columns key and label.")
    inputs = {
        "score": _need(run, "score")["fingerprint"],
        "decide": dataclasses.asdict(plan.decide),
        "labels": fingerprint_file(labels) if labels else None,
    }
    _timed(run, "decide", inputs, lambda: decide_run(plan.decide, run, labels))
    facts = _need(run, "decide")["facts"]
    for line in facts["summary"]:
        say(line)


def report_stage(run: Run) -> None:
    """report.html and report.json."""
    from noisycorr.report import write_report

    inputs = {"decide": _need(run, "decide")["fingerprint"]}
    if (run.folder / "report.html").exists() and run.is_done("report", inputs):
        say("report: nothing changed, skipped")
    else:
        _timed(run, "report", inputs, lambda: {"file": write_report(run).name})
    say(f"report: {run.folder / 'report.html'}")


def _timed(run: Run, name: str, inputs: dict[str, Any], work: Callable[[], dict[str, Any]]) -> None:
    if run.is_done(name, inputs):
        say(f"{name}: nothing changed, skipped")
        return
    (run.folder / "stages" / f"{name}.json").unlink(missing_ok=True)  # its files are about to change
    started = time.perf_counter()
    facts = work()
    run.finish(name, inputs, facts)
    seconds = time.perf_counter() - started
    run.log(name, seconds=round(seconds, 3))
    say(f"{name}: {seconds:.1f} s")


def _need(run: Run, name: str) -> dict[str, Any]:
    record = run.stage(name)
    if record is None:
        raise UsageError(f"{run.folder} holds no finished stage '{name}': run `noisycorr clean` into it first.")
    return record


def _write_config(run: Run, plan: Plan) -> None:
    config: dict[str, Any] = {"output_folder": str(run.folder)}
    for part in (f.name for f in dataclasses.fields(plan)):
        value = getattr(plan, part)
        config[part] = dataclasses.asdict(value) if dataclasses.is_dataclass(value) else value  # type: ignore[arg-type]
    with atomic_path(run.path("config.yaml")) as path:
        path.write_text(yaml.safe_dump(config, sort_keys=True, allow_unicode=True), encoding="utf-8")


