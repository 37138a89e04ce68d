"""What each verb of the command line takes and does. A verb is a class with `flags` and `run`, and its docstring as help."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser, Namespace

from noisycorr.cli import PARTS, SKIPPED, add_choice, pick, read_config
from noisycorr.decide import Decide
from noisycorr.embed import Embed
from noisycorr.export import Export, export
from noisycorr.formats import Source, open_source
from noisycorr.pairs import UsageError
from noisycorr.run import Run
from noisycorr.score.duplicates import Duplicates
from noisycorr.score.image_issues import ImageLimits
from noisycorr.score.pipeline import Score
from noisycorr.score.text_issues import TextLimits
from noisycorr.stages import STAGES, Plan, clean, decide_stage, embed_stage, report_stage, say, score_stage

CHOICES: dict[str, type] = {
    "source": Source, "embed": Embed, "score": Score, "duplicates": Duplicates, "image_limits": ImageLimits,
    "text_limits": TextLimits, "decide": Decide,
}  # fmt: skip


def plan_flags(parser: ArgumentParser, *, source: bool = True) -> None:
    """Flags of all choices of a run."""
    if source:
        parser.add_argument("path", type=str, help="File, folder, brace pattern, several joined by '::', hf://NAME, or 'sample'")
    parser.add_argument("--output_folder", type=str, required=True, help="Run folder; created if absent")
    parser.add_argument("--config", action="config", help="YAML file with any of these keys; flags win over it")
    parser.add_argument("--overwrite", action="store_true", help="Delete what an earlier run left in the folder")
    parser.add_argument("--labels", type=str | None, default=None, help="csv, tsv or jsonl: key and label of judged pairs")
    for part in PARTS:
        add_choice(parser, CHOICES[part], skip=SKIPPED.get(part))


def make_plan(given: Namespace) -> Plan:
    """The plan that parsed flags describe."""
    parts: dict[str, Any] = {}
    for part in PARTS:
        fields = pick(given, CHOICES[part])
        if part == "duplicates":
            fields = {k: v for k, v in fields.items() if k not in SKIPPED["duplicates"]} | {"seed": given.seed}
        parts[part] = _make(CHOICES[part], fields)
    return Plan(**parts, labels=given.labels)


def _make(choice: type, fields: dict[str, Any]) -> Any:
    try:
        return choice(**fields)
    except ValueError as error:  # UsageError passes through as it is
        raise UsageError(f"{error}.") from error


def stored_plan(run: Run) -> Plan:
    """The plan that a run folder was made with."""
    body = read_config(run.folder / "config.yaml")
    parts = {part: _make(CHOICES[part], body[part]) for part in PARTS}
    return Plan(**parts, labels=body.get("labels"))


def open_run(folder: str) -> Run:
    """An existing run folder; UsageError if there is none."""
    if not (Path(folder) / "config.yaml").is_file():
        raise UsageError(f"{folder} is not a run folder: run `noisycorr clean SOURCE --output_folder {folder}` first.")
    return Run(folder)


class Clean:
    """Say which pairs are wrong, how sure that is, and write the ledger and the report.

    All stages in one pass over the data: read, decode and embed, score, decide, report; with --output_format also export.
    """

    @staticmethod
    def flags(parser: ArgumentParser) -> None:
        """All choices of a run."""
        plan_flags(parser)
        parser.add_argument("--output_format", type=str | None, default=None, help="Export what is kept in this format, too")
        parser.add_argument("--stages", type=list[str], default=list(STAGES), help="Which stages to run")

    @staticmethod
    def run(given: Namespace) -> None:
        """Run the stages, then export if asked."""
        plan = make_plan(given)
        run = Run(given.output_folder)
        if given.overwrite:
            run.clear()
        clean(plan, run, stages=tuple(given.stages))
        if given.output_format:
            _export(run, plan, Export(output_format=given.output_format))


class Run_:
    """Run the stages that a config names; skip those whose inputs are unchanged."""

    __name__ = "run"

    @staticmethod
    def flags(parser: ArgumentParser) -> None:
        """The config file."""
        parser.add_argument("config_file", type=str, help="YAML with the keys of `noisycorr clean`; `stages` names the stages")

    @staticmethod
    def run(given: Namespace) -> None:
        """Turn the config into the flags of `clean`."""
        body = read_config(Path(given.config_file))
        parser = ArgumentParser()
        Clean.flags(parser)
        if "path" not in body or "output_folder" not in body:
            raise UsageError(f"{given.config_file} needs the keys path and output_folder.")
        parser.exit_on_error = False
        try:
            Clean.run(parser.parse_object(body))
        except Exception as error:
            if type(error).__name__ == "ArgumentError":
                raise UsageError(f"{given.config_file}: {' '.join(str(error).split())}.") from error
            raise


class Embed_:
    """Read, decode and embed every pair; the first stage of `clean` alone, for many processes or machines."""

    @staticmethod
    def flags(parser: ArgumentParser) -> None:
        """All choices of a run: they are written into its config."""
        plan_flags(parser)

    @staticmethod
    def run(given: Namespace) -> None:
        """Embed."""
        run = Run(given.output_folder)
        if given.overwrite:
            run.clear()
        embed_stage(make_plan(given), run)


class Score_:
    """Score an embedded set anew, for example with other signals."""

    @staticmethod
    def flags(parser: ArgumentParser) -> None:
        """The run, and how to score."""
        parser.add_argument("--output_folder", type=str, required=True, help="Run folder")
        for part in ("score", "duplicates", "image_limits", "text_limits"):
            add_choice(parser, CHOICES[part], skip=SKIPPED.get(part))

    @staticmethod
    def run(given: Namespace) -> None:
        """Score, from stored embeddings."""
        run = open_run(given.output_folder)
        parts = {}
        for part in ("score", "duplicates", "image_limits", "text_limits"):
            fields = pick(given, CHOICES[part])
            if part == "duplicates":
                fields = {k: v for k, v in fields.items() if k not in SKIPPED[part]} | {"seed": given.seed}
            parts[part] = _make(CHOICES[part], fields)
        score_stage(dataclasses.replace(stored_plan(run), **parts), run)


class Decide_:
    """Decide anew from stored scores, with another rule or with labels; touches no image."""

    @staticmethod
    def flags(parser: ArgumentParser) -> None:
        """The run, and the rule."""
        parser.add_argument("--output_folder", type=str, required=True, help="Run folder")
        parser.add_argument("--labels", type=str | None, default=None, help="csv, tsv or jsonl: key and label of judged pairs")
        add_choice(parser, Decide)

    @staticmethod
    def run(given: Namespace) -> None:
        """Write the ledger and the report again."""
        run = open_run(given.output_folder)
        plan = dataclasses.replace(stored_plan(run), decide=_make(Decide, pick(given, Decide)), labels=given.labels)
        decide_stage(plan, run)
        report_stage(run)


class Report:
    """Write report.html and report.json of a decided run again."""

    @staticmethod
    def flags(parser: ArgumentParser) -> None:
        """The run."""
        parser.add_argument("--output_folder", type=str, required=True, help="Run folder")

    @staticmethod
    def run(given: Namespace) -> None:
        """Report."""
        report_stage(open_run(given.output_folder))


class Explain:
    """Say why a pair got its verdict, with the nearest neighbours that spoke for and against it."""

    @staticmethod
    def flags(parser: ArgumentParser) -> None:
        """The key and the run."""
        parser.add_argument("key", type=str, help="Key of the pair, as it stands in the ledger")
        parser.add_argument("--output_folder", type=str, required=True, help="Run folder")
        parser.add_argument("--neighbors", type=int, default=5, help="Neighbours to show on each side")

    @staticmethod
    def run(given: Namespace) -> None:
        """Print to stdout."""
        from noisycorr.explain import explain

        print(explain(open_run(given.output_folder), given.key, count=given.neighbors))


class Export_:
    """Write kept (or dropped) pairs as webdataset, parquet, hf, csv, jsonl, coco, uids, clip-retrieval or issues."""

    @staticmethod
    def flags(parser: ArgumentParser) -> None:
        """The run, and what to write."""
        parser.add_argument("--output_folder", type=str, required=True, help="Run folder")
        add_choice(parser, Export)

    @staticmethod
    def run(given: Namespace) -> None:
        """Export."""
        run = open_run(given.output_folder)
        _export(run, stored_plan(run), _make(Export, pick(given, Export)))


class Inject:
    """Write a copy of a source with known noise; the truth stands in truth_* columns that no scorer may read."""

    @staticmethod
    def flags(parser: ArgumentParser) -> None:
        """The source, the recipe and where to write."""
        from noisycorr.inject import Inject as Choice

        parser.add_argument("path", type=str, help="As for `clean`")
        parser.add_argument("--output_folder", type=str, required=True, help="Folder for the parquet shards")
        add_choice(parser, Source, skip={"path"})
        add_choice(parser, Choice)

    @staticmethod
    def run(given: Namespace) -> None:
        """Inject."""
        from noisycorr.inject import Inject as Choice
        from noisycorr.inject import inject

        reader = open_source(_make(Source, pick(given, Source)))
        facts = inject(reader, Path(given.output_folder), _make(Choice, pick(given, Choice)))
        say(f"inject: {facts['changed']:,} of {facts['pairs']:,} texts changed, {facts['wrong']:,} wrong now")


class Evaluate:
    """Compare the ledger with known truth: AUROC, AUPRC, precision and recall, calibration, noise-rate error."""

    @staticmethod
    def flags(parser: ArgumentParser) -> None:
        """The run, and where the truth is."""
        parser.add_argument("--output_folder", type=str, required=True, help="Run folder")
        parser.add_argument("--truth", type=str | None, default=None,
                            help="csv or jsonl with key and truth_wrong; default: the column truth_wrong of the source")  # fmt: skip

    @staticmethod
    def run(given: Namespace) -> None:
        """Print JSON to stdout."""
        from noisycorr.evaluate_run import evaluate_run

        truth = Path(given.truth) if given.truth else None
        print(json.dumps(evaluate_run(open_run(given.output_folder), truth), indent=2, sort_keys=True))


def _export(run: Run, plan: Plan, choice: Export) -> None:
    facts = export(run, open_source(plan.source), choice)
    say(f"export: {facts}")


VERBS = (Clean, Run_, Embed_, Score_, Decide_, Report, Explain, Export_, Inject, Evaluate)
for _verb, _name in ((Run_, "run"), (Embed_, "embed"), (Score_, "score"), (Decide_, "decide"), (Export_, "export")):
    _verb.__name__ = _name
