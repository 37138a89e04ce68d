"""What is typed, in Python and at the command line: clean and its stages, inject, doctor, status."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Annotated, Any

from noisycorr.clean.decide import Decide
from noisycorr.clean.doctor import Finding, check_up
from noisycorr.clean.embed import Embed
from noisycorr.clean.export import Export, export
from noisycorr.clean.inject import Inject
from noisycorr.clean.inject import inject as write_noisy
from noisycorr.clean.pipeline import STAGES, Repair, decided, embed_stage
from noisycorr.clean.pipeline import clean as run_stages
from noisycorr.clean.plan import OwnDuplicates, Plan
from noisycorr.clean.result import CleanRun, Formats, tell_export
from noisycorr.clean.signals.duplicates import Duplicates
from noisycorr.clean.signals.image_issues import ImageLimits
from noisycorr.clean.signals.pipeline import Score
from noisycorr.clean.signals.text_issues import TextLimits
from noisycorr.data.readers import Reading, open_source
from noisycorr.runtime import console, dist
from noisycorr.runtime.errors import UsageError
from noisycorr.runtime.folder import new_run
from noisycorr.runtime.lock import at_work
from noisycorr.runtime.signature import HandedIn, Named, flat
from noisycorr.runtime.status import status as read_status

Lent = Annotated[Repair | None, HandedIn()]


@flat
def clean(
    source: Any, output_folder: str | PathLike[str] | None = None, *, overwrite: bool = False,
    labels: str | PathLike[str] | None = None, recaption: Annotated[str, Named()] = "none",
    recaption_options: Mapping[str, Any] | str | None = None, output_format: Formats | None = None,
    stages: str | Sequence[str] = ",".join(STAGES), reading: Reading = Reading(), embed: Embed = Embed(),
    score: Score = Score(), duplicates: OwnDuplicates = Duplicates(), image_limits: ImageLimits = ImageLimits(),
    text_limits: TextLimits = TextLimits(), decide: Decide = Decide(), repair: Lent = None,
) -> CleanRun:  # fmt: skip
    """Say which pairs are wrong, how sure that is, and write the ledger and the report.

    All stages in one pass over the data: read, decode and embed, score, decide, report; with `output_format` also
    export. The same call continues an interrupted run, and does nothing again whose inputs are unchanged.

    Args:
        source: File, folder, brace pattern, several joined by '::', hf://NAME, or 'sample' for the set that comes with
            the package; in Python also a DataFrame, an Arrow table, a Hugging Face dataset, or a list of (image, text).
        output_folder: Run folder, made if absent; by default noisycorr_out/NAME, after the source.
        overwrite: Delete what an earlier run left in the folder.
        labels: File of pairs that a person judged: csv, tsv or jsonl with key and label.
        recaption: Give new texts to pairs whose own does not fit: none, retrieval (borrow those of trusted pictures),
            or a folder of `noisycorr caption train`; options are those of `noisycorr recaption`.
        recaption_options: Options of recaption as a mapping.
        output_format: Export what is kept, too; `noisycorr export` has more options.
        stages: Which stages to run, joined by commas.
        repair: Who gives the new texts; the front door hands it in.

    Returns:
        The run: `summary`, `to_pandas()`, `explain(key)`, `decide(...)`, `export(...)` and more.

    Raises:
        UsageError: If the source cannot be read, an argument is out of its range, or the folder holds other data.
    """
    from noisycorr.clean.sources import folder_for, path_of

    run = new_run(folder_for(source, output_folder, reading))
    with at_work(run.folder, "clean"):
        place = path_of(source, run, reading, overwrite=overwrite)
        plan = Plan(
            source=reading.at(place), embed=embed, score=score, duplicates=duplicates,
            image_limits=image_limits, text_limits=text_limits, decide=decide, labels=as_text(labels),
            recaption=recaption, recaption_options=as_yaml(recaption_options),
        )  # fmt: skip
        choice = None
        if output_format is not None:
            choice = Export(output_format=output_format, number_sample_per_shard=reading.number_sample_per_shard)
        names = [name.strip() for name in (stages.split(",") if isinstance(stages, str) else stages)]
        run_stages(plan, run, stages=names, overwrite=overwrite, repair=repair)
        if choice is not None and dist.is_main():
            decided(run)
            tell_export(export(run, open_source(plan.source), choice))
    return CleanRun(run.folder)


@flat
def embed(
    source: Any, output_folder: str | PathLike[str] | None = None, *, overwrite: bool = False,
    labels: str | PathLike[str] | None = None, recaption: Annotated[str, Named()] = "none",
    recaption_options: Mapping[str, Any] | str | None = None, reading: Reading = Reading(), embed: Embed = Embed(),
    score: Score = Score(), duplicates: OwnDuplicates = Duplicates(), image_limits: ImageLimits = ImageLimits(),
    text_limits: TextLimits = TextLimits(), decide: Decide = Decide(),
) -> CleanRun:  # fmt: skip
    """Read, decode and embed every pair: the first stage of `clean` alone, for many processes or machines.

    Take the flags that `clean` will get: it finds the embeddings and goes on from there.

    Args:
        source: File, folder, brace pattern, several joined by '::', hf://NAME, or 'sample' for the set that comes with
            the package.
        output_folder: Run folder, made if absent; by default noisycorr_out/NAME, after the source.
        overwrite: Delete what an earlier run left in the folder.
        labels: File of pairs that a person judged; for the config that is written.
        recaption: As for `clean`; for the config that is written.
        recaption_options: Options of recaption as a mapping.

    Returns:
        The run.

    Raises:
        UsageError: If the source cannot be read, or the folder holds other data.
    """
    from noisycorr.clean.sources import folder_for, path_of

    run = new_run(folder_for(source, output_folder, reading))
    with at_work(run.folder, "embed"):
        place = path_of(source, run, reading, overwrite=overwrite)
        plan = Plan(
            source=reading.at(place), embed=embed, score=score, duplicates=duplicates,
            image_limits=image_limits, text_limits=text_limits, decide=decide, labels=as_text(labels),
            recaption=recaption, recaption_options=as_yaml(recaption_options),
        )  # fmt: skip
        embed_stage(plan, run, overwrite=overwrite)
    return CleanRun(run.folder)


@flat
def inject(
    source: Any, output_folder: str | PathLike[str], *, reading: Reading = Reading(), noise: Inject = Inject()
) -> Path:
    """Write a copy of a source with known noise; the truth stands in truth_* columns that no scorer may read.

    Args:
        source: File, folder, brace pattern, several joined by '::', hf://NAME, or 'sample' for the set that comes with
            the package.
        output_folder: Folder for the parquet files; made if absent.

    Returns:
        The folder, which `clean` takes as a source.

    Raises:
        UsageError: If the source cannot be read, or the folder holds something else.
    """
    from noisycorr.clean.sources import path_of

    run = new_run(output_folder)
    with at_work(run.folder, "inject"):
        facts = write_noisy(open_source(reading.at(path_of(source, run, reading))), run.folder, noise)
    console.say(f"inject: {facts['changed']:,} of {facts['pairs']:,} texts changed, {facts['wrong']:,} pairs are "
                f"wrong now, in {run.folder}")  # fmt: skip
    return run.folder


def doctor(folder: str | PathLike[str] = ".", *, self_test: bool = True) -> list[Finding]:
    """Say what this machine has, and whether noisycorr works on it: versions, devices, disk, models, a self-test.

    At the command line the exit status is 1 if something that the defaults need is missing or does not work.

    Args:
        folder: Folder whose free space is told.
        self_test: Clean 120 pairs of the sample in a folder of its own, in seconds.
    """
    return list(check_up(Path(folder), self_test=self_test))


def status(folder: str | PathLike[str]) -> str:
    """Say how far a run is: who writes it, which stages and pieces are done, how fast, and when it was last heard of.

    Works on a run that is at work, one that ended and one that was killed, from any machine that sees the folder.

    Args:
        folder: Run folder.

    Raises:
        UsageError: If it holds no run.
    """
    return "\n".join(read_status(Path(folder)))


def as_text(path: str | PathLike[str] | None) -> str | None:
    """A path as configs store it."""
    return None if path is None else str(path)


def as_yaml(options: Mapping[str, Any] | str | None) -> str | None:
    """Options of a named class as configs store them.

    Raises:
        UsageError: If they are neither text nor a mapping.
    """
    if options is None or isinstance(options, str):
        return options
    if not isinstance(options, Mapping):
        raise UsageError(f"options are {options!r}, expected a mapping such as {{'gain': 0.2}}.")
    return json.dumps(dict(options)) if options else None
