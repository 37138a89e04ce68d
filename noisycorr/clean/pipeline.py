"""The straight way: embed, score, decide, report. Each stage reads what the one before left in the run folder.

A stage is skipped when it finished with the same inputs, so the same command continues after a kill, and another rule
re-decides in seconds. Embeddings of other data or settings are refused, with what differs (law 3).
"""

from __future__ import annotations

import collections
import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import pyarrow.compute as pc
import pyarrow.parquet as pq

from noisycorr.clean.embed import embed_inputs, embed_pieces, warn_of_keys
from noisycorr.clean.plan import Plan, _refuse_other, open_plan, write_config
from noisycorr.data.readers import Piece, Reader
from noisycorr.data.store import part_facts, read_facts
from noisycorr.runtime import dist
from noisycorr.runtime.errors import UsageError
from noisycorr.runtime.folder import (
    RUN_CONTENT,
    SOURCE,
    Run,
    fingerprint,
    fingerprint_file,
    provenance,
    write_json,
)
from noisycorr.runtime.lock import refuse_other_kind
from noisycorr.runtime.stage import decided_with, invalidate_stage, require_stage, run_stage, say, tell

if TYPE_CHECKING:
    from noisycorr.models.encoders import DualEncoder

STAGES = ("embed", "score", "decide", "report")


class Repair(Protocol):
    """New texts between verdicts and report. Captioning lies above this floor, so the caller hands it in."""

    def check(self, plan: Plan) -> object:
        """Refuse what cannot be done, before hours of embedding."""

    def work(self, plan: Plan, run: Run) -> None:
        """Lay the new texts over the ledger."""


def clean(
    plan: Plan, run: Run, *, stages: Sequence[str] = STAGES, overwrite: bool = False, repair: Repair | None = None
) -> None:
    """Run the named stages in order; finished ones are skipped.

    Args:
        plan: All choices.
        run: The folder.
        stages: Any of `STAGES`.
        overwrite: Delete what an earlier run left in the folder.
        repair: Who gives new texts to pairs whose own does not fit, after the verdicts; None = nobody.

    Raises:
        UsageError: If a stage is unknown, or the folder holds embeddings of other data or settings.
    """
    unknown = [name for name in stages if name not in STAGES]
    if unknown or not stages:
        raise UsageError(f"`stages` names {(unknown or [''])[0]!r}, expected some of {', '.join(STAGES)}.")
    from noisycorr.clean.ledger import read_judgements

    wanted = plan.recaption != "none" or plan.recaption_options
    if wanted and repair is None:
        raise UsageError(f"`recaption` is {plan.recaption}, but nobody was handed in who writes: use noisycorr.clean.")
    if wanted and repair is not None:
        repair.check(plan)
    if plan.labels and "decide" in stages:
        read_judgements(Path(plan.labels))  # not after hours of embedding
    refuse_other_kind(run.folder, "embed_started", "embed")
    if overwrite and "embed" not in stages:
        raise UsageError("`overwrite` starts anew, but `stages` leaves out embed: leave out one of the two.")
    if "embed" in stages:
        embed_stage(plan, run, overwrite=overwrite)
    else:
        _refuse_other(plan, run)
    if not dist.is_main():
        return
    if "score" in stages:
        score_stage(plan, run)
    if "decide" in stages:
        decide_stage(plan, run, keep_new_texts=True)
        if wanted and repair is not None:
            repair.work(plan, run)
    if "report" in stages:
        report_stage(run)


def embed_stage(plan: Plan, run: Run, *, overwrite: bool = False) -> None:
    """Read, decode and encode every pair. Every process takes its share of the pieces.

    Args:
        plan: All choices.
        run: The folder.
        overwrite: Delete what an earlier run left there; only after source and encoder turned out to be usable.

    Raises:
        UsageError: If the folder holds embeddings of other data or settings, or the source itself.
    """
    reader, encoder = open_plan(plan)
    pieces = reader.pieces()
    say(f"reading {plan.source.path} as {reader.format}: " + ", ".join(f"{k} = {v}" for k, v in reader.picked.items()))
    _refuse_inside(run, pieces)
    _prepare(run, pieces, overwrite=overwrite)
    inputs = _embed_inputs(plan, reader, encoder)
    if differences := run.differences("embed_started", inputs):
        more = f" and {len(differences) - 2} more" if len(differences) > 2 else ""
        raise UsageError(
            f"{run.folder} holds embeddings of other data or settings ({'; '.join(differences[:2])}{more}): choose "
            "another `output_folder`, or add `overwrite` to start anew."
        )
    if run.is_done("embed", inputs) and len(part_facts(run)) == len(pieces):
        say("embed: nothing changed, skipped")
        return
    if dist.is_main():
        run.finish("embed_started", inputs, {"pieces": len(pieces)})
        write_json(
            run.path("provenance.json"), provenance() | {"encoder": encoder.name, "weights": encoder.weights_hash}
        )
        write_config(run, plan)
    dist.wait()
    started = time.perf_counter()
    if plan.embed.distributor == "ray":
        from noisycorr.clean.ray import embed_on_ray

        embed_on_ray(plan, pieces, run)
    else:
        embed_pieces(dist.my_share(pieces), reader, encoder, run, plan.embed)
    dist.wait()
    if dist.is_main():
        _finish_embed(run, inputs, encoder, len(pieces), time.perf_counter() - started)


def _embed_inputs(plan: Plan, reader: Reader, encoder: DualEncoder) -> dict[str, Any]:
    root = plan.source.image_root
    return embed_inputs(reader, encoder, plan.embed) | {
        "preprocessing": encoder.preprocessing,
        "number_sample_per_shard": plan.source.number_sample_per_shard,
        "image_root": str(Path(root).expanduser().resolve()) if root else None,
    }


def _finish_embed(run: Run, inputs: dict[str, Any], encoder: DualEncoder, pieces: int, seconds: float) -> None:
    done = part_facts(run)
    pairs = sum(part["pairs"] for part in done.values())
    problems: collections.Counter[str] = collections.Counter()
    for part in done.values():
        problems.update(part["problems"])
    run.log("embed", pairs=pairs, seconds=round(seconds, 3))
    facts = {"pairs": pairs, "encoder": encoder.name, "joint": encoder.joint, "score_column": encoder.score_column,
             "pieces": pieces, "device": dist.device().type}  # fmt: skip
    run.finish("embed", inputs, facts)
    say(f"embed: {pairs:,} pairs in {seconds:.1f} s ({pairs / max(seconds, 1e-9):.1f} pairs/s)")
    if problems:
        listed = ", ".join(f"{count:,} {code}" for code, count in problems.most_common())
        say(f"embed: {problems.total():,} pairs with a problem: {listed}")
    tell(warn_of_keys(run))


def score_stage(plan: Plan, run: Run) -> None:
    """Signals, near-duplicates and issues of every pair, from what is stored."""
    from noisycorr.clean.score import score_run

    inputs = {"embed": require_stage(run, "embed")["fingerprint"]}
    write_config(run, plan)
    for name in ("score", "duplicates", "image_limits", "text_limits"):
        inputs[name] = dataclasses.asdict(getattr(plan, name))
    files = [*each_part(run, "scores"), "scores/fit.json"]
    if plan.score.align == "trained":  # the scorer itself knows of no training
        from noisycorr.clean.signals.trained_heads import trained_heads

        run_stage(run, "score", inputs, lambda: score_run(plan, run, trained_heads), files)
    else:
        run_stage(run, "score", inputs, lambda: score_run(plan, run), files)


def decide_stage(plan: Plan, run: Run, *, keep_new_texts: bool = False) -> None:
    """Verdicts into the ledger, from stored scores.

    New texts of `recaption` are taken back, but not with `keep_new_texts` if nothing changed that they lie on.
    """
    from noisycorr.clean.ledger import decide_run, read_labels, touched

    labels = Path(plan.labels) if plan.labels else None
    score = require_stage(run, "score")["fingerprint"]
    if labels is not None:  # what cannot be used is refused before anything is taken back
        read_labels(labels, read_facts(run, ["key"]).column("key").to_pylist())
    write_config(run, plan)
    judged = fingerprint_file(labels) if labels else None
    inputs = {"score": score, "decide": dataclasses.asdict(plan.decide), "labels": judged}
    if plan.recaption == "none" and touched(run):
        if keep_new_texts and run.stage("recaption") and run.is_current("decide", inputs, each_part(run, "ledger")):
            say("decide: nothing changed, so the new texts of `noisycorr recaption` stay (`noisycorr decide` takes "
                "them back)")  # fmt: skip
            return
        say("decide: new texts of an earlier `noisycorr recaption` are taken back")
        invalidate_stage(run, "decide")

    def work() -> dict[str, Any]:
        invalidate_stage(run, "recaption")
        write_config(run, plan)  # it no longer names the recaption
        found = decide_run(plan.decide, run, labels)
        invalidate_stage(run, "recaption_started")
        return found

    run_stage(run, "decide", inputs, work, each_part(run, "ledger"))
    lines = require_stage(run, "decide")["facts"]["summary"]
    tell([*lines[:1], *_drop_reasons(run), *lines[1:]])


def _drop_reasons(run: Run) -> list[str]:
    """One line on why pairs were dropped, the commonest reason first; none if nothing was."""
    reasons: collections.Counter[str] = collections.Counter()
    for name in each_part(run, "ledger"):
        table = pq.read_table(run.folder / name, columns=["verdict", "reason"])
        why = table.filter(pc.equal(table.column("verdict"), "drop")).column("reason")
        for found in pc.value_counts(pc.replace_substring_regex(why, r"(: p_clean| of group) .*$", "")).to_pylist():
            reasons[found["values"]] += found["counts"]
    listed = "; ".join(f"{count:,} {reason}" for reason, count in reasons.most_common(5))
    return [f"dropped: {listed}" + ("; ..." if len(reasons) > 5 else "")] if reasons else []


def report_stage(run: Run) -> None:
    """report.html and report.json."""
    from noisycorr.clean.report import write_report

    shown = (run.folder / "config.yaml").read_text(encoding="utf-8")  # the page holds it
    inputs = {"decide": decided(run)["fingerprint"], "config": fingerprint(shown)}
    if (repaired := run.stage("recaption")) is not None:
        inputs["recaption"] = repaired["fingerprint"]
    run_stage(run, "report", inputs, lambda: {"file": write_report(run).name}, ["report.html", "report.json"])
    say(f"report: {run.folder / 'report.html'}")


def decided(run: Run) -> dict[str, Any]:
    """The record of the decide stage.

    Raises:
        UsageError: If the run was not decided, or was scored anew since.
    """
    if run.stage("decide") is None and run.stage("audit") is not None:
        return decided_with(run, "audit", "audit_score")
    record = require_stage(run, "decide")
    if record["inputs"]["score"] != require_stage(run, "score")["fingerprint"]:
        raise UsageError(f"{run.folder} was scored anew after its verdicts: run `noisycorr decide` on it first.")
    if (run.folder / "stages" / "recaption_started.json").exists() and run.stage("recaption") is None:
        raise UsageError(f"{run.folder} was being given new texts when that was interrupted: run the same command "
                         "again, or `noisycorr decide` to do without.")  # fmt: skip
    return record


def each_part(run: Run, folder: str) -> list[str]:
    """Files of a stage, one for each piece, relative to the run."""
    return [f"{folder}/{index:05d}.parquet" for index in part_facts(run)]


def _prepare(run: Run, pieces: Sequence[Piece], *, overwrite: bool) -> None:
    """Clear or tidy the folder before any process writes to it."""
    if dist.is_main():
        taken = [name for name in RUN_CONTENT if _holds_something(run.folder / name)] if overwrite else []
        if taken and not (run.folder / "stages" / "embed_started.json").exists():
            raise UsageError(f"{run.folder} holds {taken[0]!r}, but no run: `overwrite` deletes runs only.")
        if overwrite:
            run.clear()
            from noisycorr.data.readers.objects import drop_objects

            drop_objects(run.folder / SOURCE, {Path(piece.path).resolve().parent for piece in pieces})
        run.sweep()
    dist.wait()


def _holds_something(path: Path) -> bool:
    return any(path.iterdir()) if path.is_dir() else path.exists()


def _refuse_inside(run: Run, pieces: Sequence[Piece]) -> None:
    for path in {piece.path for piece in pieces}:
        place = Path(path).resolve()
        if any(place.is_relative_to((run.folder / name).resolve()) for name in RUN_CONTENT):
            raise UsageError(f"{path} lies where this run writes its own files: choose another `output_folder`.")
