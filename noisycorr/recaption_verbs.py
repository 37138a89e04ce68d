"""The verbs of captions: give new texts to pairs, and score captions. Everything heavy is imported where it is used."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

from jsonargparse import Namespace

from noisycorr.flags import Parser, add_choice, pick
from noisycorr.plan_flags import FOLDER, NEED_FOLDER, open_run, stored_plan


class Recaption:
    """Give pairs whose text does not fit a new one, where that is clearly better; then report.

    Borrows texts of trusted pictures, or asks a captioner. Old and new text are scored by scorers that saw neither. The
    given text is never touched: the ledger gains text_rectified, and `noisycorr decide` takes everything back.
    """

    name, usage, parallel = "recaption", "--output_folder FOLDER", False

    @staticmethod
    def flags(parser: Parser) -> None:
        """The run, who proposes, and the rule."""
        from noisycorr.recaption.rule import Recaption as Choice

        parser.add("output_folder", str, None, FOLDER, need=NEED_FOLDER)
        parser.add("model", str, "retrieval", "retrieval, or a folder of `noisycorr caption train`")
        add_choice(parser, Choice)

    @staticmethod
    def run(given: Namespace) -> None:
        """Recaption, and write the report again."""
        from noisycorr.recaption.rule import Recaption as Choice

        choice = Choice(**pick(given, Choice))
        run = open_run(given.output_folder)
        from noisycorr.recaption_stage import recaption_stage, stored_options
        from noisycorr.stages import need, report_stage

        need(run, "decide")
        plan = dataclasses.replace(stored_plan(run), recaption=given.model, recaption_options=stored_options(choice))
        recaption_stage(plan, run)
        report_stage(run)


class CaptionScore:
    """Score captions of any system: BLEU, ROUGE-L and CIDEr-D against references, and how different they are.

    Captions and references are csv, tsv, jsonl or parquet with the columns key and caption; a key may have several
    references. With the run folder of the pictures, also CLIPScore and self-retrieval by its encoder.
    """

    name, usage, parallel = "caption score", "CAPTIONS --references FILE", False

    @staticmethod
    def flags(parser: Parser) -> None:
        """The files."""
        parser.add_word("captions", "CAPTIONS", "File of captions", need="the captions are missing: name a file")
        parser.add("references", str | None, None, "File of references; without it only what needs none is measured")
        parser.add("output_folder", str | None, None, "Run folder whose pictures have these keys")
        parser.add("metrics", str, "none", "Metrics of the package pycocoevalcap, in Java: meteor, spice, or both with "
                   "a comma")  # fmt: skip

    @staticmethod
    def run(given: Namespace) -> None:
        """Print JSON to stdout."""
        from noisycorr.caption_score import score_captions

        run = open_run(given.output_folder) if given.output_folder else None
        references = Path(given.references) if given.references else None
        extra = [] if given.metrics == "none" else [name.strip() for name in given.metrics.split(",")]
        print(json.dumps(score_captions(Path(given.captions), references, run, extra), indent=2, sort_keys=True))
