"""The verbs of captioners. Everything heavy is imported where it is used, so that the help comes at once."""

from __future__ import annotations

import dataclasses
import json
import typing
from pathlib import Path
from typing import Any

from jsonargparse import Namespace

from noisycorr.clean.plan import stored_plan
from noisycorr.clean.plan_flags import FOLDER, NEED_FOLDER, make_choice
from noisycorr.runtime.flags import Parser, add_choice, pick
from noisycorr.runtime.folder import new_run, open_run

SOURCE = "Run folder of `noisycorr clean`, or any source that it reads, which is then embedded and scored first"
PICTURES = "Run folder of `noisycorr clean` or `embed`, or any source; only its pictures are read"
NEED = "the source is missing: name a run folder or a source"
LEVEL = ("best, the one that was best aligned on validation pairs; given, that of each pair by its own score; each, "
         "all levels, of which the best aligned text is taken; or a number")  # fmt: skip
FOUND = frozenset({"guidance"})  # found on validation pairs


class CaptionTrain:
    """Train a captioner on all pairs, told how well each is aligned.

    Works on the image vectors that `noisycorr clean` stored. Levels, weights and kept pairs come from its ledger; the
    level to write with is chosen on validation pairs. The same command continues an interrupted training.
    """

    name, usage, parallel = "caption train", "SOURCE --output_folder FOLDER", True

    @staticmethod
    def flags(parser: Parser) -> None:
        """The pairs, the levels, the network, and how to train and write."""
        from noisycorr.caption.captioner.choice import CaptionTrain as Choice
        from noisycorr.caption.captioner.choice import Decode, Design, Held, LevelChoice, Teach
        from noisycorr.data.readers import Source

        parser.add_word("path", "SOURCE", SOURCE, need=NEED)
        parser.add("output_folder", str, None, "Folder for the captioner; made if absent", need=NEED_FOLDER)
        parser.add("config", str | None, None, "YAML file with any of these keys, `path` among them; flags win over it")
        parser.add_switch("overwrite", "Delete what an earlier training left in the folder")
        for choice in (LevelChoice, Teach, Design, Choice, Held):
            add_choice(parser, choice)
        add_choice(parser, Decode, skip=FOUND)
        parser.add("clip_model", str, "embedded", "Encoder of a source that is not embedded yet, as for `clean`")
        add_choice(parser, Source, skip=frozenset({"path"}))

    @staticmethod
    def run(given: Namespace) -> None:
        """Train."""
        from noisycorr.caption.captioner.choice import CaptionTrain as Choice
        from noisycorr.caption.captioner.choice import Decode, Design, Held, LevelChoice, Teach
        from noisycorr.data.readers import Source

        levels, teach, held = (make_choice(given, "", kind) for kind in (LevelChoice, Teach, Held))
        design, train, decode = (make_choice(given, "", kind) for kind in (Design, Choice, Decode))
        source, run = Source(**pick(given, Source)), new_run(given.output_folder)
        from noisycorr.caption.captioner.teach import Recipe
        from noisycorr.caption.train import Plan, train_captioner

        recipe = Recipe(levels=levels, teach=teach, design=design, train=train, decode=decode,
                        guidances=held.strengths)  # fmt: skip
        plan = Plan(source=source, clip_model=given.clip_model, recipe=recipe, held=held)
        train_captioner(plan, run, overwrite=given.overwrite)


class CaptionGenerate:
    """Write a text for every picture, and score it; the pairs themselves are not changed.

    Writes captions/NNNNN.parquet with key, row, text, level, score (alignment, higher = better), log_prob and ended.
    The same command continues an interrupted one.
    """

    name, usage, parallel = "caption generate", "SOURCE --model FOLDER --output_folder FOLDER", True

    @staticmethod
    def flags(parser: Parser) -> None:
        """The pictures, the model, and how to write."""
        from noisycorr.caption.captioner.choice import Decode
        from noisycorr.data.readers import Source

        parser.add_word("path", "SOURCE", PICTURES, need=NEED)
        parser.add("model", str, None, "Folder of `noisycorr caption train`",
                   need="`model` is missing: name a folder of `noisycorr caption train`")  # fmt: skip
        parser.add("output_folder", str, None, "Folder for the texts; made if absent", need=NEED_FOLDER)
        parser.add("level", str, "best", LEVEL)
        parser.add("seed", int, 0, "Of the nucleus")
        parser.add_switch("same_encoder", "Embeddings that came without their encoder are of that of the model's")
        told = _abouts(Decode)
        hints = typing.get_type_hints(Decode)
        group = parser.add_argument_group("How texts are written; what is not given is as it was chosen in training")
        for field in dataclasses.fields(Decode):
            parser.add(field.name, hints[field.name] | None, None, told[field.name], group=group)
        add_choice(parser, Source, skip=frozenset({"path"}))

    @staticmethod
    def run(given: Namespace) -> None:
        """Write."""
        from noisycorr.caption.captioner.choice import Decode
        from noisycorr.data.readers import Source

        asked = {name: value for name, value in pick(given, Decode).items() if value is not None}
        source, run = Source(**pick(given, Source)), new_run(given.output_folder)
        from noisycorr.caption.train import generate

        generate(run, source, Path(given.model), given.level, asked, given.seed, same_encoder=given.same_encoder)


def _abouts(choice: type) -> dict[str, Any]:
    """What the docstring of a choice says of each field."""
    import docstring_parser

    told = docstring_parser.parse(choice.__doc__ or "")
    return {param.arg_name: " ".join((param.description or "").split()) for param in told.params}


class Recaption:
    """Give pairs whose text does not fit a new one, where that is clearly better; then report.

    Borrows texts of trusted pictures, or asks a captioner. Old and new text are scored by scorers that saw neither. The
    given text is never touched: the ledger gains text_rectified, and `noisycorr decide` takes everything back.
    """

    name, usage, parallel = "recaption", "--output_folder FOLDER", False

    @staticmethod
    def flags(parser: Parser) -> None:
        """The run, who proposes, and the rule."""
        from noisycorr.caption.recaption.rule import Recaption as Choice

        parser.add("output_folder", str, None, FOLDER, need=NEED_FOLDER)
        parser.add("model", str, "retrieval", "retrieval, or a folder of `noisycorr caption train`")
        add_choice(parser, Choice)

    @staticmethod
    def run(given: Namespace) -> None:
        """Recaption, and write the report again."""
        from noisycorr.caption.recaption.rule import Recaption as Choice

        choice = Choice(**pick(given, Choice))
        run = open_run(given.output_folder)
        from noisycorr.caption.recaption.stage import recaption_stage, stored_options
        from noisycorr.clean.pipeline import report_stage
        from noisycorr.runtime.stage import require_stage

        require_stage(run, "decide")
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
        from noisycorr.caption.score import score_captions

        run = open_run(given.output_folder) if given.output_folder else None
        references = Path(given.references) if given.references else None
        extra = [] if given.metrics == "none" else [name.strip() for name in given.metrics.split(",")]
        print(json.dumps(score_captions(Path(given.captions), references, run, extra), indent=2, sort_keys=True))
