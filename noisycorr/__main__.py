"""`noisycorr VERB ...`: verbs are stages, flags are the fields of the choices. Dashes and underscores are the same.

noisycorr clean sample --output_folder out
noisycorr decide --output_folder out --precision 0.95
"""

from __future__ import annotations

import contextlib
import difflib
import errno
import io
import json
import os
import sys
import textwrap
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from jsonargparse import Namespace

from noisycorr.caption.verbs import BenchCaption, CaptionGenerate, CaptionScore, CaptionTrain, Recaption
from noisycorr.classify.audit.verbs import Audit
from noisycorr.classify.heads.verbs import Annotate, Tune
from noisycorr.classify.webly.verbs import BenchWebly, ClassifyTrain
from noisycorr.clean.doctor import Doctor, Status
from noisycorr.clean.plan_flags import FOLDER, NEED_FOLDER, make_choice, make_plan, plan_flags
from noisycorr.clean.verbs import Decide, Embed, Explain, Export, Inject, Score, _export, _export_choice
from noisycorr.prompt.verbs import BenchPrompt, Prompt
from noisycorr.retrieval.verbs import BenchNoise, Train
from noisycorr.runtime import console, dist
from noisycorr.runtime.errors import UsageError
from noisycorr.runtime.flags import Parser, Verb, add_choice, read_words
from noisycorr.runtime.folder import new_run, open_run
from noisycorr.runtime.lock import locked
from noisycorr.runtime.version import __version__

ABOUT = "Which image-text pairs are wrong, how sure we are, and a cleaned set with every decision explained."
READING = ("explain", "status")  # verbs that write nothing into their folder
FULL = (errno.ENOSPC, errno.EDQUOT)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb. Exit status: 0 done, 1 failed, 2 bad usage."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        return _run(words)
    except UsageError as error:
        _complain(str(error))
        return 2
    except BrokenPipeError:  # the reader of our output has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        if console.is_verbose():
            traceback.print_exc()
        _complain(_failure(error))
        return 1
    except MemoryError:
        _complain("there is not enough memory; a smaller --number_sample_per_shard or --batch_size needs less.")
        return 1
    except FloatingPointError as error:  # a training that diverged
        _complain(str(error))
        return 1
    except KeyboardInterrupt:
        _complain("interrupted; the same command continues.")
        return 1


def _run(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help", "help"):
        print(_help(), end="")
        return 0 if words else 2
    if words[0] == "--version":
        print(f"noisycorr {__version__}")
        return 0
    verb, words = _find(words)
    parser = make_parser(verb)
    if {"-h", "--help"} & set(_before_dashes(words)):
        parser.print_help()
        return 0
    given = read_words(parser, words)
    if given.quiet and given.verbose:
        raise UsageError("--quiet and --verbose exclude each other: give one of them.")
    for name in ("TRANSFORMERS_VERBOSITY", "DATASETS_VERBOSITY"):
        os.environ.setdefault(name, "info" if given.verbose else "error")
    console.set_up(quiet=given.quiet, verbose=given.verbose, log_format=given.log_format)
    if isinstance(sys.stdout, io.TextIOWrapper):  # a terminal that lacks a letter of a caption is no failure
        sys.stdout.reconfigure(errors="backslashreplace")
    if verb.parallel or dist.is_main():
        with _lock(verb, given):
            verb.run(given)
    dist.leave()
    return 0


def make_parser(verb: type[Verb]) -> Parser:
    """The parser of one verb."""
    parser = Parser(verb.name, verb.usage, _about(verb))
    verb.flags(parser)
    parser.add_switch("quiet", "Warnings only, no progress", short="q")
    parser.add_switch("verbose", "Tell more", short="v")
    parser.add("log_format", Literal["text", "json"], "text", "What comes on stderr: text, or one JSON object a line")
    return parser


def _lock(verb: type[Verb], given: Namespace) -> contextlib.AbstractContextManager[None]:
    """Nobody else writes the folder meanwhile; one process locks for all of its group."""
    folder = given.get("output_folder")
    if not folder or verb.name in READING or not dist.is_main():
        return contextlib.nullcontext()
    return locked(Path(folder), verb.name)


def _find(words: list[str]) -> tuple[type[Verb], list[str]]:
    """The verb, which may have two words such as `bench noise`, and what follows it."""
    names = {verb.name: verb for verb in VERBS}
    word = words[0]
    for count in (2, 1):
        if (name := " ".join(words[:count])) in names:
            return names[name], words[count:]
    if word.startswith("-"):
        raise UsageError(
            f"{word} stands before the verb: write `noisycorr VERB {word} ...` with one of {', '.join(names)}."
        )
    if seconds := [name.split()[1] for name in names if name.startswith(f"{word} ")]:
        given = repr(words[1]) if len(words) > 1 else "nothing"
        raise UsageError(f"after {word} comes {' or '.join(seconds)}, but {given} was given.")
    near = difflib.get_close_matches(word, names, 1)
    raise UsageError(
        f"{word!r} is not a verb; " + (f"did you mean {near[0]}?" if near else f"expected one of {', '.join(names)}.")
    )


def _help() -> str:
    width = max(len(verb.name) for verb in VERBS)
    lines = ["usage: noisycorr VERB ...", "", ABOUT, "", "verbs:"]
    for verb in VERBS:
        indent = " " * (width + 4)
        lines.append(
            textwrap.fill(
                _about(verb).split("\n")[0], 100, initial_indent=f"  {verb.name:{width}s}  ", subsequent_indent=indent
            )
        )
    lines += ["", "`noisycorr VERB --help` lists the options of a verb; in their names - and _ are the same."]
    lines += ["Exit status: 0 done, 1 failed, 2 bad usage.", "", "for example:"]
    lines += ["  noisycorr clean sample --output_folder out", "  noisycorr decide --output_folder out --precision 0.95"]
    return "\n".join(lines) + "\n"


def _about(verb: type[Verb]) -> str:
    return textwrap.dedent("    " + (verb.__doc__ or "")).strip()


def _before_dashes(words: list[str]) -> list[str]:
    return words[: words.index("--")] if "--" in words else words


def _failure(error: OSError) -> str:
    """What to tell about a failed system call."""
    place = f" ({error.filename})" if error.filename else ""
    if error.errno in FULL:
        return f"the disk is full{place}: free space and run the same command again, what was finished is kept."
    if isinstance(error, FileNotFoundError) and error.errno is None:  # so the reader of tables says it
        return f"{error} is gone: put it back, or start anew with --overwrite."
    reason = error.strerror or str(error) or type(error).__name__
    return f"{reason}{place}: when that is solved, the same command continues; what was finished is kept."


def _complain(message: str) -> None:
    if os.environ.get("RANK", "0") == "0":  # one process speaks for all
        line = " ".join(message.split())
        if console.is_json():
            console.fail(line)
            return
        print(f"noisycorr: {line}{'' if line.endswith(('.', '?')) else '.'}", file=sys.stderr)


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
        from noisycorr.clean.pipeline import clean

        stages = [name.strip() for name in given.stages.split(",")]
        repair = None
        if plan.recaption != "none" or plan.recaption_options:
            from noisycorr.caption.recaption.stage import RecaptionStage

            repair = RecaptionStage()
        clean(plan, run, stages=stages, overwrite=given.overwrite, repair=repair)
        if choice is not None and dist.is_main():
            from noisycorr.data.readers import open_source

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
            from noisycorr.retrieval.report import write_training_report

            console.say(f"report: {write_training_report(run)}")
            return
        if run.stage("decide") is None and run.stage("audit") is not None:
            from noisycorr.classify.audit.audit import report

            report(run)
            return
        from noisycorr.clean.pipeline import report_stage

        report_stage(run)


class Evaluate:
    """Compare a ledger with known truth, or open the test split of a trained model.

    Of a run of `clean`: AUROC, AUPRC, precision and recall, calibration, noise-rate error. Of a folder of `train`:
    recall at 1, 5 and 10 in both directions, of each network and of all together, and detection if truth is known.
    """

    name, usage, parallel = "evaluate", "--output_folder FOLDER", True

    @staticmethod
    def flags(parser: Parser) -> None:
        """The run, where the truth is, and what to ask of a trained model."""
        from noisycorr.retrieval.plan import Evaluation

        parser.add("output_folder", str, None, FOLDER, need=NEED_FOLDER)
        parser.add("truth", str | None, None, "csv, tsv, jsonl or parquet with key and truth_wrong; by default the "
                   "column truth_wrong of the source, as `noisycorr inject` writes it")  # fmt: skip
        add_choice(parser, Evaluation)

    @staticmethod
    def run(given: Namespace) -> None:
        """Print JSON to stdout."""
        from noisycorr.retrieval.plan import Evaluation

        asked = make_choice(given, "evaluation", Evaluation)
        if (Path(given.output_folder) / "stages" / "train_started.json").is_file():
            from noisycorr.retrieval.evaluate import evaluate_model

            found = evaluate_model(open_run(given.output_folder), asked)
            if dist.is_main():
                print(json.dumps(found, indent=2, sort_keys=True))
            return
        if not dist.is_main():
            return
        if given_names := [name for name, value in vars(asked).items() if value != getattr(Evaluation(), name)]:
            raise UsageError(f"--{given_names[0]} is for trained models, but {given.output_folder} holds none.")
        from noisycorr.clean.evaluate import evaluate_run
        from noisycorr.clean.pipeline import decided

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


if __name__ == "__main__":
    sys.exit(main())
