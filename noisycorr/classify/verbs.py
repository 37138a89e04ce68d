"""What is typed, in Python and at the command line, about labels: audit, classify, tune, annotate.

What needs torch is imported where it is used, so that the help comes at once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from noisycorr.classify.audit.label_verdict import LabelRule
from noisycorr.classify.audit.labels import Audit
from noisycorr.classify.heads.annotate import Annotate, Suggestions, suggest
from noisycorr.classify.heads.choice import NMTune, Rows
from noisycorr.classify.webly.choice import RETRIEVAL_ONLY, Finetune, Labels, TrainClasses
from noisycorr.clean.embed import Embed
from noisycorr.clean.plan import Plan, stored_plan
from noisycorr.data.readers import Reading
from noisycorr.models.training.tune_choice import Tune
from noisycorr.runtime import console
from noisycorr.runtime.errors import UsageError
from noisycorr.runtime.folder import Run, atomic_path, new_run
from noisycorr.runtime.lock import at_work
from noisycorr.runtime.result import Result
from noisycorr.runtime.signature import Named, Without, flat

if TYPE_CHECKING:
    from noisycorr.classify.audit.result import AuditRun
    from noisycorr.classify.heads.result import TunedHeads
    from noisycorr.classify.webly.result import Classifier


@flat
def audit(
    source: Any, output_folder: str | PathLike[str] | None = None, *, classes: str | PathLike[str],
    overwrite: bool = False, label_col: str | None = None, class_embeddings: str | PathLike[str] | None = None,
    judging: Audit = Audit(), rule: LabelRule = LabelRule(), reading: Reading = Reading(), embed: Embed = Embed(),
) -> AuditRun:  # fmt: skip
    """Say which labels are wrong, what they should be, and which pictures are of no class; no training.

    Embeds as `clean` does, completes missing texts from similar pictures, matches them with the definitions of the
    classes, and weighs that with votes and a classifier that never saw the label it judges. Writes the same ledger,
    with the neighbours that lent their text, and a report. The same call continues an interrupted audit.

    Args:
        source: File, folder, brace pattern, several joined by '::', hf://NAME, or 'sample' for the set that comes with
            the package. A run of `clean` is audited in its own folder if no other is named: its embeddings are used,
            and its verdicts are replaced.
        output_folder: Run folder, made if absent; by default noisycorr_out/NAME-audit, after the source.
        classes: File of the classes: classes.yaml with NAME: DEFINITION, several definitions in [a, b] for several
            senses; or names.txt with a name a line; WordNet ids where WordNet is installed.
        overwrite: Delete what an earlier run left in the folder.
        label_col: Column of the labels; by default the one that holds names of the list.
        class_embeddings: .npy with one row for each definition, for sources of precomputed embeddings.

    Returns:
        The run: `label_issues()`, `to_pandas()`, `explain(key)`, `export(...)` and more.

    Raises:
        UsageError: If the source or the classes cannot be read, no column holds labels, or the folder holds other data.
    """
    from noisycorr.classify.audit.audit import AuditPlan
    from noisycorr.classify.audit.audit import audit as run_audit
    from noisycorr.classify.audit.result import AuditRun
    from noisycorr.clean.sources import folder_for, path_of

    if (embedded := _run_of(source)) is not None:
        _refuse_reading(embedded, reading, embed)
        run, plan = new_run(output_folder or embedded.folder), stored_plan(embedded)
    else:
        run, plan = new_run(folder_for(source, output_folder, reading, ending="-audit")), None
    with at_work(run.folder, "audit"):
        plan = plan or Plan(source=reading.at(path_of(source, run, reading)), embed=embed)
        run_audit(AuditPlan(embedding=plan, classes=str(classes), label_col=label_col,
                            class_embeddings=None if class_embeddings is None else str(class_embeddings),
                            audit=judging, rule=rule), run, overwrite=overwrite)  # fmt: skip
    return AuditRun(run.folder)


@flat
def classify(
    source: Any, output_folder: str | PathLike[str] | None = None, *, method: Annotated[str, Named()] = "capro",
    method_options: Mapping[str, Any] | str | None = None, labels: Labels = Labels(),
    train: Annotated[TrainClasses, Without(*RETRIEVAL_ONLY)] = TrainClasses(), finetune: Finetune = Finetune(),
    tune: Annotated[Tune, Without("train_part")] = Tune(), clip_model: str = "embedded", caption_col: str | None = None,
) -> Classifier:  # fmt: skip
    """Train a classifier on labels that may be wrong, and write what it thinks of them.

    Works on the features that `noisycorr clean` stored, or fine-tunes an image encoder (`backbone`). Samples whose
    texts, completed by those of similar images, match the definition of their class best are trusted. The test split
    is opened once, after the last epoch; cleaned labels stand in `labels.parquet`, numbers and curves in
    `report.html`. The same call continues an interrupted training.

    Args:
        source: Run or run folder of `clean`, or any source that it reads, which is then embedded first.
        output_folder: Folder for the model, made if absent; by default noisycorr_out/NAME-classifier, after the source.
        method: capro, mopro, pls, pls_lsa, elr, elr_plus, nested, confident or plain; capro_tags or plain for tags.
        method_options: Options of the method as a mapping.
        clip_model: Encoder of a source that is not embedded yet, and of class names where the embeddings came without
            an encoder.
        caption_col: Column of the texts of such a source; detected if none.

    Returns:
        The classifier: `metrics`, `labels()`, `predict(features)`.

    Raises:
        UsageError: If the folder holds another training, the samples do not suffice, or an argument is out of its
            range.
    """
    from noisycorr.classify.webly.result import Classifier
    from noisycorr.classify.webly.train import Plan as TrainPlan
    from noisycorr.classify.webly.train import classify_train, named_method
    from noisycorr.clean.sources import folder_for, path_of

    chosen, reading = named_method(method, method_options), Reading(caption_col=caption_col)
    run = new_run(folder_for(source, output_folder, reading, ending="-classifier"))
    with at_work(run.folder, "classify train"):
        path = path_of(source, run, reading)
        plan = TrainPlan(path=path, caption_col=caption_col, clip_model=clip_model, labels=labels,
                         method=(method, chosen), train=train, finetune=finetune, tune=tune)  # fmt: skip
        classify_train(plan, run)
    return Classifier(run.folder)


@flat
def tune(
    source: Any, output_folder: str | PathLike[str] | None = None, *, overwrite: bool = False, rows: Rows = Rows(),
    tuning: NMTune = NMTune(), clip_model: str = "embedded", reading: Reading = Reading(),
) -> TunedHeads:  # fmt: skip
    """Tune classifiers on frozen features of an encoder that may have learned from wrong pairs.

    A linear probe, a residual adapter, and NMTune: the adapter with terms that keep it near the features, decorrelate
    their numbers and strengthen what dominates. Reports accuracy inside and outside of the domain, and the spectrum of
    the features before and after. The same call continues an interrupted one.

    Args:
        source: Run or run folder of `clean` or `embed`, a .npy file of features, a folder with image.npy, or any
            source that `clean` reads, which is then embedded first.
        output_folder: Folder for the heads, made if absent; by default noisycorr_out/NAME-heads, after the source.
        overwrite: Delete what an earlier call left in the folder.
        clip_model: Encoder of sources that are not embedded yet, as for `clean`.

    Returns:
        The heads: `metrics`, `apply(features)`.

    Raises:
        UsageError: If the folder holds something else, or rows or labels do not suffice.
    """
    from noisycorr.classify.heads.result import TunedHeads
    from noisycorr.classify.heads.tune import Plan as TunePlan
    from noisycorr.classify.heads.tune import tune as run_tune
    from noisycorr.clean.sources import folder_for, path_of

    run = new_run(folder_for(source, output_folder, reading, ending="-heads"))
    with at_work(run.folder, "tune"):
        plan = TunePlan(source=reading.at(path_of(source, run, reading)), clip_model=clip_model, rows=rows, tune=tuning)
        run_tune(plan, run, overwrite=overwrite)
    return TunedHeads(run.folder)


@flat
def annotate(run: Any, *, output_file: str | PathLike[str] | None = None, wanted: Annotate = Annotate()) -> Suggestions:
    """Say which images a person should label or look at next, and why: a csv of keys, best first.

    By class probabilities that are given, or those of a linear probe on the labels that are known. Put the labels into
    the file of `labels` and ask again.

    Args:
        run: Run or run folder of `clean` or `embed`, a .npy file of features, or a folder with image.npy.
        output_file: csv to write, too; at the command line the rows go to stdout otherwise.

    Returns:
        The rows: `str` of them is the csv, `to_pandas()` a table.

    Raises:
        UsageError: If there are no features, or an acquisition lacks class probabilities.
    """
    path = str(run.folder) if isinstance(run, Result) else str(run)
    suggestions = Suggestions(suggest(path, wanted), file=None if output_file is None else Path(output_file))
    if suggestions.file is not None:
        with atomic_path(suggestions.file) as temporary:
            temporary.write_text(str(suggestions), encoding="utf-8", newline="\n")
        console.say(f"annotate: {len(suggestions):,} rows in {suggestions.file}")
    return suggestions


def _run_of(source: Any) -> Run | None:
    """The run of `clean` that a source is, or None."""
    folder = source.folder if isinstance(source, Result) else source
    if not isinstance(folder, str | PathLike) or not (Path(folder) / "stages" / "embed.json").is_file():
        return None
    return Run(Path(folder))


def _refuse_reading(run: Run, *choices: Reading | Embed) -> None:
    """Refuse to read or embed otherwise what is embedded already."""
    for choice in choices:
        for field in fields(choice):
            if getattr(choice, field.name) != field.default:
                raise UsageError(f"{run.folder} is embedded already: leave out `{field.name}`, or name its source.")
