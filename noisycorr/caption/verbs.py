"""What is typed, in Python and at the command line: train_captioner, generate_captions, caption_score, recaption.

What works on networks is imported where it is used, so that the help comes at once.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

from noisycorr.caption.captioner.choice import CaptionTrain, Decode, Design, Held, LevelChoice, Teach
from noisycorr.caption.recaption.choice import Recaption
from noisycorr.data.readers import Reading
from noisycorr.runtime.folder import Run, open_run
from noisycorr.runtime.lock import at_work
from noisycorr.runtime.result import Result
from noisycorr.runtime.signature import Unset, Without, flat
from noisycorr.runtime.stage import require_stage

if TYPE_CHECKING:
    from noisycorr.caption.result import Captioner, Captions
    from noisycorr.clean.result import CleanRun


@flat
def train_captioner(
    source: Any, output_folder: str | PathLike[str] | None = None, *, overwrite: bool = False,
    levels: LevelChoice = LevelChoice(), teach: Teach = Teach(), design: Design = Design(),
    train: CaptionTrain = CaptionTrain(), held: Held = Held(),
    decode: Annotated[Decode, Without("guidance")] = Decode(),
    clip_model: str = "embedded", reading: Reading = Reading(),
) -> Captioner:  # fmt: skip
    """Train a captioner on all pairs, told how well each is aligned.

    Works on the image vectors that `clean` stored. Levels, weights and kept pairs come from its ledger; the level to
    write with is chosen on validation pairs. The same call continues an interrupted training.

    Args:
        source: What `clean` gave or its folder, or any source that it reads, which is then embedded and scored first.
        output_folder: Folder for the captioner, made if absent; by default noisycorr_out/NAME-captioner.
        overwrite: Delete what an earlier training left in the folder.
        clip_model: Encoder of a source that is not embedded yet, as for `clean`.

    Returns:
        The captioner: `generate(source)`, `write(images)`, `metrics`.

    Raises:
        UsageError: If the folder holds another training, the pairs do not suffice, or an argument is out of its range.
    """
    from noisycorr.caption.captioner.teach import Recipe
    from noisycorr.caption.result import Captioner
    from noisycorr.caption.train import CaptionPlan, train_in_folder
    from noisycorr.clean.sources import folder_for, path_of
    from noisycorr.runtime.folder import new_run

    run = new_run(folder_for(source, output_folder, reading, ending="-captioner"))
    with at_work(run.folder, "caption train"):
        recipe = Recipe(levels=levels, teach=teach, design=design, train=train, decode=decode,
                        guidances=held.strengths)  # fmt: skip
        place = reading.at(path_of(source, run, reading))
        plan = CaptionPlan(source=place, clip_model=clip_model, recipe=recipe, held=held)
        train_in_folder(plan, run, overwrite=overwrite)
    return Captioner(run.folder)


@flat
def generate_captions(
    source: Any, output_folder: str | PathLike[str], *, model: str | PathLike[str], level: str | int = "best",
    seed: int = 0, same_encoder: bool = False, decode: Annotated[Decode, Unset()], reading: Reading = Reading(),
) -> Captions:  # fmt: skip
    """Write a text for every picture, and score it; the pairs themselves are not changed.

    Writes captions/NNNNN.parquet with key, row, text, level, score (alignment, higher = better), log_prob and ended.
    How texts are written is as it was chosen in training, but for what is given here. The same command continues an
    interrupted one.

    Args:
        source: Run folder of `noisycorr clean` or `embed`, or any source; only its pictures are read.
        output_folder: Folder for the texts, made if absent.
        model: Folder of `noisycorr caption train`.
        level: best, the one that was best aligned on validation pairs; given, that of each pair by its own score; each,
            all levels, of which the best aligned text is taken; or a number.
        seed: Of the nucleus.
        same_encoder: Embeddings that came without their encoder are of that of the model's.

    Returns:
        The texts.

    Raises:
        UsageError: If model, level and pictures do not go together.
    """
    from noisycorr.caption.result import Captioner

    options = {**vars(reading), **cast(Mapping[str, Any], decode)}
    return Captioner(Path(model)).generate(source, output_folder, level=level, seed=seed, same_encoder=same_encoder,
                                     **options)  # fmt: skip


def caption_score(
    candidates: str | PathLike[str] | Result | Mapping[str, str],
    references: str | PathLike[str] | Mapping[str, Sequence[str]] | None = None, *,
    run: str | PathLike[str] | Result | None = None, metrics: str = "none",
) -> dict[str, Any]:  # fmt: skip
    """Score captions of any system: BLEU, ROUGE-L and CIDEr-D against references, and how different they are.

    Captions and references are csv, tsv, jsonl or parquet with the columns key and caption; a key may have several
    references. With the run folder of the pictures, also CLIPScore and self-retrieval by its encoder.

    Args:
        candidates: File of captions; in Python also what `generate` gave, or captions by key.
        references: File of references; without it only what needs none is measured.
        run: Run folder whose pictures have these keys.
        metrics: Metrics of the package pycocoevalcap, in Java: meteor, spice, or both with a comma.

    Returns:
        JSON: `captions`, `without_reference` and `without_picture` (left out of what needs one), `empty`; bleu_1 to
        bleu_4 and rouge_l, in [0, 1]; `cider_d` in [0, 10]; `clip_score` in [0, 2.5]; recalls in percent; `unique`,
        `pairwise`, `words` and `vocabulary`.

    Raises:
        UsageError: If a file cannot be read, a key stands twice, or nothing fits.
    """
    from noisycorr.caption.result import Captions
    from noisycorr.caption.score import score_captions

    names = [] if metrics == "none" else [name.strip() for name in metrics.split(",")]
    if isinstance(candidates, Result):
        table = Captions(candidates.folder).to_arrow()
        texts = table.column("text").to_pylist()
        candidates = {key: text or "" for key, text in zip(table.column("key").to_pylist(), texts)}
    return score_captions(candidates, references, None if run is None else _opened(run), names)


@flat
def recaption(
    run: str | PathLike[str] | Result, *, model: str | PathLike[str] | Result = "retrieval",
    rule: Recaption = Recaption(),
) -> CleanRun:  # fmt: skip
    """Give pairs whose text does not fit a new one, where that is clearly better; then report.

    Borrows texts of trusted pictures, or asks a captioner. Old and new text are scored by scorers that saw neither. The
    given text is never touched: the ledger gains text_rectified, and `decide` takes everything back.

    Args:
        run: What `clean` gave, or its folder.
        model: retrieval, or a captioner: a folder of `noisycorr caption train`, in Python also what `train_captioner`
            gave.

    Returns:
        The run.

    Raises:
        UsageError: If the run is not decided, the captioner does not read its pictures, or an argument is out of its
            range.
    """
    from noisycorr.caption.recaption.stage import recaption_stage, stored_options
    from noisycorr.clean.pipeline import report_stage
    from noisycorr.clean.plan import stored_plan
    from noisycorr.clean.result import CleanRun

    opened = _opened(run)
    name = str(model.folder if isinstance(model, Result) else model)
    with at_work(opened.folder, "recaption"):
        require_stage(opened, "decide")
        plan = dataclasses.replace(stored_plan(opened), recaption=name, recaption_options=stored_options(rule))
        recaption_stage(plan, opened)
        report_stage(opened)
    return CleanRun(opened.folder)


def _opened(run: str | PathLike[str] | Result) -> Run:
    """The folder of a run, which must be there."""
    return open_run(run.folder if isinstance(run, Result) else Path(run))
