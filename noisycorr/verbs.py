"""What each verb of the command line takes and does: a class with `flags` and `run`, and its docstring as help.

Everything heavy is imported where it is used, so that the help comes at once.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from jsonargparse import Namespace

from noisycorr import console, dist
from noisycorr.audit_verbs import Audit
from noisycorr.caption_verbs import BenchCaption, CaptionGenerate, CaptionTrain
from noisycorr.classify_verbs import BenchWebly, ClassifyTrain
from noisycorr.doctor_verbs import Doctor, Status
from noisycorr.flags import Parser, add_choice, pick, read_words
from noisycorr.lock import locked
from noisycorr.pairs import UsageError
from noisycorr.plan_flags import (
    FOLDER,
    NEED_FOLDER,
    NEED_SOURCE,
    SHARED,
    SOURCE,
    labels_flag,
    make_choice,
    make_plan,
    new_run,
    open_run,
    plan_choices,
    plan_flags,
    stored_plan,
    stored_reader,
)
from noisycorr.prompt_verbs import BenchPrompt, Prompt
from noisycorr.recaption_verbs import CaptionScore, Recaption
from noisycorr.run import Run
from noisycorr.train_verbs import BenchNoise, Train
from noisycorr.tune_verbs import Annotate, Tune

if TYPE_CHECKING:
    from noisycorr.export import Export as ExportChoice
    from noisycorr.formats import Reader


class Verb(Protocol):
    """What the command line needs to know of a verb; the first line of its docstring is its summary.

    Attributes:
        name: As it is typed.
        usage: The words that are always needed.
        parallel: True if every process has its share of the work; else only the main one runs it.
    """

    name: str
    usage: str
    parallel: bool

    @staticmethod
    def flags(parser: Parser) -> None:
        """Add the flags."""

    @staticmethod
    def run(given: Namespace) -> None:
        """Do the work."""


class Clean:
    """Say which pairs are wrong, how sure that is, and write the ledger and the report.

    All stages in one pass over the data: read, decode and embed, score, decide, report; with --output_format also
    export. The same command continues an interrupted run, and does nothing again whose inputs are unchanged.
    """

    name, usage, parallel = "clean", "SOURCE --output_folder FOLDER", True

    @staticmethod
    def flags(parser: Parser) -> None:
        """All choices of a run."""
        plan_flags(parser)
        parser.add("output_format", str | None, None, "Export what is kept, too: webdataset, parquet, hf, csv, jsonl, "
                   "coco, uids, clip-retrieval or issues; `noisycorr export` has more options")  # fmt: skip
        parser.add("stages", str, "embed,score,decide,report", "Which stages to run, joined by commas")

    @staticmethod
    def run(given: Namespace) -> None:
        """Run the stages, then export if asked."""
        plan, run = make_plan(given), new_run(given.output_folder)
        choice = _export_choice(given)
        from noisycorr.stages import clean

        stages = [name.strip() for name in given.stages.split(",")]
        clean(plan, run, stages=stages, overwrite=given.overwrite)
        if choice is not None and dist.is_main():
            from noisycorr.formats import open_source

            _export(run, open_source(plan.source), choice)


class RunConfig:
    """Run the stages that a config file names; skip those whose inputs are unchanged.

    The keys are the flags of `noisycorr clean`; `path` is the source and `stages` a list of stages. The config.yaml of
    a run folder is such a file.
    """

    name, usage, parallel = "run", "CONFIG.yaml", True

    @staticmethod
    def flags(parser: Parser) -> None:
        """The config file."""
        parser.add_word("config_file", "CONFIG", "YAML file with keys of `noisycorr clean`",
                        need="the config is missing: name a YAML file")  # fmt: skip
        parser.add_switch("overwrite", "Delete what an earlier run left in the folder")

    @staticmethod
    def run(given: Namespace) -> None:
        """What `clean` does with the same keys."""
        parser = Parser(Clean.name, Clean.usage, "")
        Clean.flags(parser)
        body = read_words(parser, [], Path(given.config_file))
        body.overwrite = body.overwrite or given.overwrite
        with locked(Path(body.output_folder), RunConfig.name) if dist.is_main() else contextlib.nullcontext():
            Clean.run(body)


class Embed:
    """Read, decode and embed every pair: the first stage of `clean` alone, for many processes or machines.

    Take the flags that `clean` will get: it finds the embeddings and goes on from there.
    """

    name, usage, parallel = "embed", "SOURCE --output_folder FOLDER", True

    @staticmethod
    def flags(parser: Parser) -> None:
        """All choices of a run: they are written into its config."""
        plan_flags(parser)

    @staticmethod
    def run(given: Namespace) -> None:
        """Embed."""
        plan, run = make_plan(given), new_run(given.output_folder)
        from noisycorr.stages import embed_stage

        embed_stage(plan, run, overwrite=given.overwrite)


class Score:
    """Score an embedded set anew, for example with other signals, then decide and report.

    What is not given has the default shown here. The rule stays the one of the run.
    """

    name, usage, parallel = "score", "--output_folder FOLDER", False
    parts = ("score", "duplicates", "image_limits", "text_limits")

    @staticmethod
    def flags(parser: Parser) -> None:
        """The run, and how to score."""
        parser.add("output_folder", str, None, FOLDER, need=NEED_FOLDER)
        for part in Score.parts:
            add_choice(parser, plan_choices()[part], skip=SHARED.get(part, frozenset()))

    @staticmethod
    def run(given: Namespace) -> None:
        """Score, from stored embeddings."""
        parts = {part: make_choice(given, part, plan_choices()[part]) for part in Score.parts}
        run = open_run(given.output_folder)
        from noisycorr.stages import decide_stage, report_stage, score_stage

        plan = dataclasses.replace(stored_plan(run), **parts, recaption="none", recaption_options=None)
        score_stage(plan, run)
        decide_stage(plan, run)
        report_stage(run)


class Decide:
    """Decide anew from stored scores, with another rule or with labels, then report; touches no image.

    What is not given has the default shown here.
    """

    name, usage, parallel = "decide", "--output_folder FOLDER", False

    @staticmethod
    def flags(parser: Parser) -> None:
        """The run, and the rule."""
        parser.add("output_folder", str, None, FOLDER, need=NEED_FOLDER)
        labels_flag(parser)
        add_choice(parser, plan_choices()["decide"])

    @staticmethod
    def run(given: Namespace) -> None:
        """Write the ledger and the report again."""
        rule = make_choice(given, "decide", plan_choices()["decide"])
        run = open_run(given.output_folder)
        from noisycorr.stages import decide_stage, report_stage

        plan = dataclasses.replace(stored_plan(run), decide=rule, labels=given.labels, recaption="none",
                                   recaption_options=None)  # fmt: skip
        decide_stage(plan, run)
        report_stage(run)


class Report:
    """Write report.html and report.json of a decided run again, or report.html of a training."""

    name, usage, parallel = "report", "--output_folder FOLDER", False

    @staticmethod
    def flags(parser: Parser) -> None:
        """The run."""
        parser.add("output_folder", str, None, FOLDER, need=NEED_FOLDER)

    @staticmethod
    def run(given: Namespace) -> None:
        """Report."""
        run = open_run(given.output_folder)
        if (run.folder / "stages" / "train_started.json").is_file():
            if not (run.folder / "report.json").is_file():
                raise UsageError(f"{run.folder} holds no finished training: run the same `noisycorr train` to its end.")
            from noisycorr.report.training import write_training_report

            console.say(f"report: {write_training_report(run)}")
            return
        if run.stage("decide") is None and run.stage("audit") is not None:
            from noisycorr.audit import report

            report(run)
            return
        from noisycorr.stages import report_stage

        report_stage(run)


class Explain:
    """Say why a pair got its verdict, with the nearest neighbours that spoke for and against it."""

    name, usage, parallel = "explain", "KEY --output_folder FOLDER", False

    @staticmethod
    def flags(parser: Parser) -> None:
        """The key and the run."""
        parser.add_word("key", "KEY", "Key of the pair, as it stands in the ledger",
                        need="the key is missing: name a pair")  # fmt: skip
        parser.add("output_folder", str, None, FOLDER, need=NEED_FOLDER)
        parser.add("neighbors", int, 5, "Neighbours to show on each side, 1 to 100")

    @staticmethod
    def run(given: Namespace) -> None:
        """Print to stdout."""
        if not 1 <= given.neighbors <= 100:
            raise UsageError(f"--neighbors is {given.neighbors}, expected 1 to 100.")
        run = open_run(given.output_folder)
        from noisycorr.explain import explain
        from noisycorr.stages import decided

        decided(run)
        print(explain(run, given.key, count=given.neighbors))


class Export:
    """Write kept (or dropped) pairs as webdataset, parquet, hf, csv, jsonl, coco, uids, clip-retrieval or issues."""

    name, usage, parallel = "export", "--output_folder FOLDER", False

    @staticmethod
    def flags(parser: Parser) -> None:
        """The run, and what to write."""
        from noisycorr.export import Export as Choice

        parser.add("output_folder", str, None, FOLDER, need=NEED_FOLDER)
        add_choice(parser, Choice)

    @staticmethod
    def run(given: Namespace) -> None:
        """Export."""
        from noisycorr.export import Export as Choice

        choice = Choice(**pick(given, Choice))
        run = open_run(given.output_folder)
        _export(run, stored_reader(run), choice)


class Inject:
    """Write a copy of a source with known noise; the truth stands in truth_* columns that no scorer may read."""

    name, usage, parallel = "inject", "SOURCE --output_folder FOLDER", False

    @staticmethod
    def flags(parser: Parser) -> None:
        """The source, the recipe and where to write."""
        from noisycorr.formats import Source
        from noisycorr.inject import Inject as Choice

        parser.add_word("path", "SOURCE", SOURCE, need=NEED_SOURCE)
        parser.add("output_folder", str, None, "Folder for the parquet files; made if absent",
                   need="--output_folder is missing: name the folder for the noisy copy")  # fmt: skip
        add_choice(parser, Source, skip=frozenset({"path"}))
        add_choice(parser, Choice)

    @staticmethod
    def run(given: Namespace) -> None:
        """Inject."""
        from noisycorr.formats import Source, open_source
        from noisycorr.inject import Inject as Choice
        from noisycorr.inject import inject

        source, choice = Source(**pick(given, Source)), Choice(**pick(given, Choice))
        new_run(given.output_folder)
        facts = inject(open_source(source), Path(given.output_folder), choice)
        console.say(f"inject: {facts['changed']:,} of {facts['pairs']:,} texts changed, {facts['wrong']:,} pairs are "
                    f"wrong now, in {given.output_folder}")  # fmt: skip


class Evaluate:
    """Compare a ledger with known truth, or open the test split of a trained model.

    Of a run of `clean`: AUROC, AUPRC, precision and recall, calibration, noise-rate error. Of a folder of `train`:
    recall at 1, 5 and 10 in both directions, of each network and of all together, and detection if truth is known.
    """

    name, usage, parallel = "evaluate", "--output_folder FOLDER", True

    @staticmethod
    def flags(parser: Parser) -> None:
        """The run, where the truth is, and what to ask of a trained model."""
        from noisycorr.learn.eval_choice import Evaluation

        parser.add("output_folder", str, None, FOLDER, need=NEED_FOLDER)
        parser.add("truth", str | None, None, "csv, tsv, jsonl or parquet with key and truth_wrong; by default the "
                   "column truth_wrong of the source, as `noisycorr inject` writes it")  # fmt: skip
        add_choice(parser, Evaluation)

    @staticmethod
    def run(given: Namespace) -> None:
        """Print JSON to stdout."""
        from noisycorr.learn.eval_choice import Evaluation

        asked = make_choice(given, "evaluation", Evaluation)
        if (Path(given.output_folder) / "stages" / "train_started.json").is_file():
            from noisycorr.train_evaluate import evaluate_model

            found = evaluate_model(open_run(given.output_folder), asked)
            if dist.is_main():
                print(json.dumps(found, indent=2, sort_keys=True))
            return
        if not dist.is_main():
            return
        if given_names := [name for name, value in vars(asked).items() if value != getattr(Evaluation(), name)]:
            raise UsageError(f"--{given_names[0]} is for trained models, but {given.output_folder} holds none.")
        from noisycorr.evaluate_run import evaluate_run
        from noisycorr.stages import decided

        run = open_run(given.output_folder)
        decided(run)
        truth = Path(given.truth) if given.truth else None
        print(json.dumps(evaluate_run(run, truth), indent=2, sort_keys=True))


VERBS: tuple[type[Verb], ...] = (
    Clean, RunConfig, Embed, Score, Decide, Recaption, Report, Explain, Export, Inject,
    Train, Evaluate, Audit, ClassifyTrain, Prompt, Tune, Annotate,
    CaptionTrain, CaptionGenerate, CaptionScore,
    Status, Doctor,
    BenchNoise, BenchWebly, BenchPrompt, BenchCaption,
)  # fmt: skip


def _export_choice(given: Namespace) -> ExportChoice | None:
    """What `clean` exports, with shards as large as those of its source."""
    if given.output_format is None:
        return None
    from noisycorr.export import Export as Choice

    return Choice(output_format=given.output_format, number_sample_per_shard=given.number_sample_per_shard)


def _export(run: Run, reader: Reader, choice: ExportChoice) -> None:
    from noisycorr.export import export
    from noisycorr.stages import decided

    decided(run)
    facts = export(run, reader, choice)
    others = {
        name: value for name, value in facts.items() if name.startswith(("without", "left_out", "keys", "images"))
    }
    listed = "".join(f", {value:,} {name.replace('_', ' ')}" for name, value in others.items() if value)
    shards = "1 shard" if facts["shards"] == 1 else f"{facts['shards']:,} shards"
    console.say(f"export: {facts['rows']:,} pairs in {shards}{listed}, in {facts['folder']}")
