"""What each verb of the command line takes and does: a class with `flags` and `run`, and its docstring as help.

Everything heavy is imported where it is used, so that the help comes at once.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

from jsonargparse import Namespace

from noisycorr.clean.plan_flags import (
    FOLDER,
    NEED_FOLDER,
    NEED_SOURCE,
    SHARED,
    SOURCE,
    labels_flag,
    make_choice,
    make_plan,
    plan_choices,
    plan_flags,
    stored_plan,
    stored_reader,
)
from noisycorr.runtime import console
from noisycorr.runtime.errors import UsageError
from noisycorr.runtime.flags import Parser, add_choice, pick
from noisycorr.runtime.folder import Run, new_run, open_run

if TYPE_CHECKING:
    from noisycorr.clean.export import Export as ExportChoice
    from noisycorr.data.readers import Reader


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
        from noisycorr.clean.pipeline import embed_stage

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
        from noisycorr.clean.pipeline import decide_stage, report_stage, score_stage

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
        from noisycorr.clean.pipeline import decide_stage, report_stage

        plan = dataclasses.replace(stored_plan(run), decide=rule, labels=given.labels, recaption="none",
                                   recaption_options=None)  # fmt: skip
        decide_stage(plan, run)
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
            raise UsageError(f"`neighbors` is {given.neighbors}, expected 1 to 100.")
        run = open_run(given.output_folder)
        from noisycorr.clean.explain import explain
        from noisycorr.clean.pipeline import decided

        decided(run)
        print(explain(run, given.key, count=given.neighbors))


class Export:
    """Write kept (or dropped) pairs as webdataset, parquet, hf, csv, jsonl, coco, uids, clip-retrieval or issues."""

    name, usage, parallel = "export", "--output_folder FOLDER", False

    @staticmethod
    def flags(parser: Parser) -> None:
        """The run, and what to write."""
        from noisycorr.clean.export import Export as Choice

        parser.add("output_folder", str, None, FOLDER, need=NEED_FOLDER)
        add_choice(parser, Choice)

    @staticmethod
    def run(given: Namespace) -> None:
        """Export."""
        from noisycorr.clean.export import Export as Choice

        choice = Choice(**pick(given, Choice))
        run = open_run(given.output_folder)
        _export(run, stored_reader(run), choice)


class Inject:
    """Write a copy of a source with known noise; the truth stands in truth_* columns that no scorer may read."""

    name, usage, parallel = "inject", "SOURCE --output_folder FOLDER", False

    @staticmethod
    def flags(parser: Parser) -> None:
        """The source, the recipe and where to write."""
        from noisycorr.clean.inject import Inject as Choice
        from noisycorr.data.readers import Source

        parser.add_word("path", "SOURCE", SOURCE, need=NEED_SOURCE)
        parser.add("output_folder", str, None, "Folder for the parquet files; made if absent",
                   need="`output_folder` is missing: name the folder for the noisy copy")  # fmt: skip
        add_choice(parser, Source, skip=frozenset({"path"}))
        add_choice(parser, Choice)

    @staticmethod
    def run(given: Namespace) -> None:
        """Inject."""
        from noisycorr.clean.inject import Inject as Choice
        from noisycorr.clean.inject import inject
        from noisycorr.data.readers import Source, open_source

        source, choice = Source(**pick(given, Source)), Choice(**pick(given, Choice))
        new_run(given.output_folder)
        facts = inject(open_source(source), Path(given.output_folder), choice)
        console.say(f"inject: {facts['changed']:,} of {facts['pairs']:,} texts changed, {facts['wrong']:,} pairs are "
                    f"wrong now, in {given.output_folder}")  # fmt: skip


def _export_choice(given: Namespace) -> ExportChoice | None:
    """What `clean` exports, with shards as large as those of its source."""
    if given.output_format is None:
        return None
    from noisycorr.clean.export import Export as Choice

    return Choice(output_format=given.output_format, number_sample_per_shard=given.number_sample_per_shard)


def _export(run: Run, reader: Reader, choice: ExportChoice) -> None:
    from noisycorr.clean.export import export
    from noisycorr.clean.pipeline import decided

    decided(run)
    facts = export(run, reader, choice)
    others = {
        name: value for name, value in facts.items() if name.startswith(("without", "left_out", "keys", "images"))
    }
    listed = "".join(f", {value:,} {name.replace('_', ' ')}" for name, value in others.items() if value)
    shards = "1 shard" if facts["shards"] == 1 else f"{facts['shards']:,} shards"
    console.say(f"export: {facts['rows']:,} pairs in {shards}{listed}, in {facts['folder']}")
