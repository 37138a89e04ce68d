"""What is typed, in Python and at the command line.

What needs torch is imported where it is used, so that the help comes at once.
"""

from __future__ import annotations

from os import PathLike
from typing import TYPE_CHECKING, Any

from noisycorr.data.readers import Reading
from noisycorr.prompt.choice import Context, Rounds, Steps
from noisycorr.runtime.folder import new_run
from noisycorr.runtime.lock import at_work
from noisycorr.runtime.signature import flat

if TYPE_CHECKING:
    from noisycorr.prompt.result import PromptedClassifier


@flat
def prompt(
    source: Any, output_folder: str | PathLike[str] | None = None, *, classes: str | PathLike[str],
    overwrite: bool = False, labels: str | PathLike[str] | None = None, seen: str | PathLike[str] | None = None,
    test_data: str | PathLike[str] | None = None, class_prior: str | PathLike[str] | None = None,
    clip_model: str = "embedded", context: Context = Context(), rounds: Rounds = Rounds(), steps: Steps = Steps(),
    reading: Reading = Reading(),
) -> PromptedClassifier:  # fmt: skip
    """Tune a classifier from images and class names alone: pseudo-labels, a prompt, better pseudo-labels.

    Writes prompt.safetensors, classifier.npy (a plain weight matrix), pseudo_labels.csv, ledger.parquet and
    report.html. Labels are optional. The same call continues an interrupted run.

    Args:
        source: Images: anything that `clean` reads, or the run that it made; texts only measure, they are not learned
            from.
        output_folder: Folder for what is learned, made if absent; by default noisycorr_out/NAME-prompt, after the
            source.
        classes: File of class names, one on each line; or YAML or JSON, where a class may have descriptions that stand
            in for the template.
        overwrite: Delete what an earlier tuning left in the folder.
        labels: File of labels that are known: csv, tsv, jsonl or parquet with key and label, such as pseudo_labels.csv
            of an earlier run after you corrected it.
        seen: File of classes whose images are all labelled: pseudo-labels name the others only.
        test_data: Images to measure with, whose texts are class names; by default those whose column `split` says
            test, else the unlabelled ones if their texts are class names.
        class_prior: File of the shares of the classes among the images, a YAML or JSON mapping; labels are given out
            accordingly.
        clip_model: Encoder of images that are not embedded yet, as for `clean`.

    Returns:
        The classifier: `summary`, `metrics`, `predictions()`, `predict(images)`.

    Raises:
        UsageError: If classes, labels or images do not suffice, or the folder holds something else.
    """
    from noisycorr.clean.sources import folder_for, path_of
    from noisycorr.clean.verbs import as_text
    from noisycorr.prompt.inputs import Plan
    from noisycorr.prompt.result import PromptedClassifier
    from noisycorr.prompt.stage import tune_prompt

    run = new_run(folder_for(source, output_folder, reading, ending="-prompt"))
    with at_work(run.folder, "prompt"):
        place = path_of(source, run, reading, overwrite=overwrite)
        plan = Plan(
            source=reading.at(place), classes=str(classes), clip_model=clip_model,
            labels=as_text(labels), seen=as_text(seen), test_data=as_text(test_data),
            class_prior=as_text(class_prior), context=context, rounds=rounds, steps=steps,
        )  # fmt: skip
        tune_prompt(plan, run, overwrite=overwrite)
    return PromptedClassifier(run.folder)
