"""`noisycorr VERB ...`: a table of verbs over the functions of the package, and the few that join capabilities."""

from __future__ import annotations

import contextlib
import json
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import noisycorr
from noisycorr.retrieval.plan import Evaluation
from noisycorr.runtime import command, dist
from noisycorr.runtime.command import Verb
from noisycorr.runtime.errors import UsageError
from noisycorr.runtime.flags import Parser
from noisycorr.runtime.lock import at_work
from noisycorr.runtime.signature import flat, parameters


def run(config_file: str | Path, *, overwrite: bool = False) -> Any:
    """Run the stages that a config file names; skip those whose inputs are unchanged.

    The keys are the arguments of `clean`; `path` is the source and `stages` a list of stages. The config.yaml of a run
    folder is such a file.

    Args:
        config_file: YAML file with keys of `noisycorr clean`.
        overwrite: Delete what an earlier run left in the folder.

    Raises:
        UsageError: If the file is none, or a key is unknown.
    """
    from noisycorr.runtime.flags import read_words

    clean = next(verb for verb in VERBS if verb.name == "clean")
    parser = command.make_parser(clean)
    given = read_words(parser, [], Path(config_file))
    values = {item.name: given[item.name] for item in parameters(noisycorr.clean)}
    return noisycorr.clean(**values | {"overwrite": values["overwrite"] or overwrite})


def report(run: str | Path) -> Path:
    """Write report.html and report.json of a finished run again.

    Args:
        run: Folder of any job.

    Raises:
        UsageError: If it holds nothing finished.
    """
    path: Path = noisycorr.open_run(run).write_report()
    return path


@flat
def evaluate(
    run: str | Path, *, truth: str | Path | None = None, evaluation: Evaluation = Evaluation()
) -> dict[str, Any] | None:
    """Compare a ledger with known truth, or open the test split of a trained model.

    Of a run of `clean`: AUROC, AUPRC, precision and recall, calibration, noise-rate error. Of a folder of `train`:
    recall at 1, 5 and 10 in both directions, of each network and of all together, and detection if truth is known.

    Args:
        run: Folder of `clean` or `train`.
        truth: csv, tsv, jsonl or parquet with key and truth_wrong; by default the column truth_wrong of the source, as
            `noisycorr inject` writes it.

    Raises:
        UsageError: If no truth is known, or an argument does not go with what the folder holds.
    """
    if (Path(run) / "stages" / "train_started.json").is_file():
        measured: dict[str, Any] = noisycorr.open_run(run).evaluate(**vars(evaluation))
        return measured if dist.is_main() else None
    if not dist.is_main():
        return None
    if given := [name for name, value in vars(evaluation).items() if value != getattr(Evaluation(), name)]:
        raise UsageError(f"`{given[0]}` is for trained models, but {run} holds none.")
    result = noisycorr.open_run(run)
    if not isinstance(result, noisycorr.CleanRun):
        raise UsageError(f"{run} holds {result.kind}, but `noisycorr evaluate` compares pairs or opens a test split.")
    return result.evaluate(truth=truth)


def doctor_lines(findings: Sequence[Any]) -> str:
    """Findings as lines; ends the process with status 1 if something failed."""
    print("\n".join(f"{item.state:8s} {item.what:24s} {item.told}" for item in findings), flush=True)
    if any(item.state == "failed" for item in findings):
        raise SystemExit(1)
    return ""


def as_json(value: Any) -> str:
    """JSON for people and programs."""
    return json.dumps(value, indent=2, sort_keys=True)


def tables_of(result: Any) -> str:
    """The tables of a bench."""
    return str(result.table)


def unless_written(suggestions: Any) -> str:
    """The csv, unless it went to a file."""
    return "" if suggestions.file else str(suggestions)


class _Former:
    """A verb that is a class as yet."""

    config = False

    def __init__(self, kind: Any) -> None:
        self.kind, self.name, self.parallel = kind, kind.name, kind.parallel

    def summary(self) -> str:
        return (self.kind.__doc__ or "").split("\n")[0]

    def parser(self) -> Any:
        parser = Parser(self.name, self.kind.usage, textwrap.dedent("    " + (self.kind.__doc__ or "")).strip())
        self.kind.flags(parser)
        command.common_flags(parser)
        return parser

    def call(self, given: Any, opens: Any) -> None:
        folder = given.get("output_folder")
        with at_work(Path(folder), self.name) if folder else contextlib.nullcontext():
            self.kind.run(given)


CLEAN, CAPTION, HERE = "noisycorr.clean.result:CleanRun", "noisycorr.caption.verbs", "noisycorr.__main__"
CLASSIFY = "noisycorr.classify.verbs"
VERBS: tuple[Any, ...] = (
    Verb("clean", "noisycorr.clean.verbs:clean", parallel=True, config=True, front="clean"),
    Verb("run", f"{HERE}:run", parallel=True),
    Verb("embed", "noisycorr.clean.verbs:embed", parallel=True, config=True),
    Verb("score", f"{CLEAN}.score"),
    Verb("decide", f"{CLEAN}.decide"),
    Verb("recaption", f"{CAPTION}:recaption", old={"lenders": "donors"}),
    Verb("report", f"{HERE}:report"),
    Verb("explain", f"{CLEAN}.explain", shows=str),
    Verb("export", f"{CLEAN}.export"),
    Verb("evaluate", f"{HERE}:evaluate", parallel=True, shows=as_json),
    Verb("inject", "noisycorr.clean.verbs:inject", old={"class_col": "label_col"}),
    Verb("train", "noisycorr.retrieval.verbs:train", parallel=True, config=True,
         old={"precision": "model_precision"}),
    Verb("audit", f"{CLASSIFY}:audit", parallel=True, config=True),
    Verb("classify train", f"{CLASSIFY}:classify", parallel=True, config=True,
         old={"class_col": "label_col", "precision": "model_precision"}),
    Verb("prompt", "noisycorr.prompt.verbs:prompt", parallel=True, config=True),
    Verb("tune", f"{CLASSIFY}:tune", parallel=True, config=True),
    Verb("annotate", f"{CLASSIFY}:annotate", shows=unless_written),
    Verb("caption train", f"{CAPTION}:train_captioner", parallel=True, config=True,
         old={"precision": "model_precision"}),
    Verb("caption generate", f"{CAPTION}:generate_captions", parallel=True),
    Verb("caption score", f"{CAPTION}:caption_score", shows=as_json, old={"output_folder": "run"}),
    Verb("status", "noisycorr.clean.verbs:status", shows=str),
    Verb("doctor", "noisycorr.clean.verbs:doctor", shows=doctor_lines),
    Verb("bench noise", "noisycorr.retrieval.bench:bench_noise", config=True, shows=tables_of,
         old={"precision": "model_precision"}),
    Verb("bench webly", "noisycorr.classify.webly.bench:bench_webly", config=True, shows=tables_of,
         old={"precision": "model_precision"}),
    Verb("bench prompt", "noisycorr.prompt.bench:bench_prompt", config=True, shows=tables_of),
    Verb("bench caption", "noisycorr.caption.bench:bench_caption", config=True, shows=tables_of,
         old={"precision": "model_precision"}),
)  # fmt: skip


VERBS = tuple(verb if isinstance(verb, Verb) else _Former(verb) for verb in VERBS)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb. Exit status: 0 done, 1 failed, 2 bad usage."""
    return command.main(VERBS, noisycorr.open_run, arguments)


if __name__ == "__main__":
    sys.exit(main())
