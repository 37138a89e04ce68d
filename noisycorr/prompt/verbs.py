"""The verbs that tune prompts. Everything heavy is imported where it is used, so that the help comes at once."""

from __future__ import annotations

from jsonargparse import Namespace

from noisycorr.clean.plan_flags import NEED_FOLDER, NEED_SOURCE, make_choice
from noisycorr.runtime.flags import Parser, add_choice, pick
from noisycorr.runtime.folder import new_run

SOURCE = "Images: anything that `noisycorr clean` reads, or its run folder; texts are not learned from"
CLASSES = ("File of class names, one on each line; or YAML or JSON, where a class may have descriptions that stand in "
           "for the template")  # fmt: skip
LABELS = ("File of labels that are known: csv, tsv, jsonl or parquet with key and label, such as pseudo_labels.csv of "
          "an earlier run after you corrected it")  # fmt: skip
SEEN = "File of classes whose images are all labelled: pseudo-labels name the others only"
TEST = ("Images to measure with, whose texts are class names; by default those whose column `split` says test, else "
        "the unlabelled ones if their texts are class names")  # fmt: skip
PRIOR = "File of shares of the classes among the images, a YAML or JSON mapping; labels are given out accordingly"


class Prompt:
    """Tune a classifier from images and class names alone: pseudo-labels, a prompt, better pseudo-labels.

    Writes prompt.safetensors, classifier.npy (a plain weight matrix), pseudo_labels.csv, ledger.parquet and
    report.html. Labels are optional. The same command continues an interrupted run.
    """

    name, usage, parallel = "prompt", "SOURCE --classes FILE --output_folder FOLDER", True

    @staticmethod
    def flags(parser: Parser) -> None:
        """The images, the classes, and how to tune."""
        from noisycorr.data.readers import Source
        from noisycorr.prompt.choice import Context, Rounds, Steps

        parser.add_word("path", "SOURCE", SOURCE, need=NEED_SOURCE)
        parser.add("classes", str, None, CLASSES, need="`classes` is missing: name a file with class names")
        parser.add("output_folder", str, None, "Folder for what is learned; made if absent", need=NEED_FOLDER)
        parser.add("config", str | None, None, "YAML file with any of these keys, `path` among them; flags win over it")
        parser.add_switch("overwrite", "Delete what an earlier tuning left in the folder")
        parser.add("labels", str | None, None, LABELS)
        parser.add("seen", str | None, None, SEEN)
        parser.add("test_data", str | None, None, TEST)
        parser.add("class_prior", str | None, None, PRIOR)
        parser.add("clip_model", str, "embedded", "Encoder of images that are not embedded yet, as for `clean`")
        for choice in (Context, Rounds, Steps):
            add_choice(parser, choice)
        add_choice(parser, Source, skip=frozenset({"path"}))

    @staticmethod
    def run(given: Namespace) -> None:
        """Tune."""
        from noisycorr.data.readers import Source
        from noisycorr.prompt.choice import Context, Rounds, Steps

        parts = {part: make_choice(given, part, choice)
                 for part, choice in (("context", Context), ("rounds", Rounds), ("steps", Steps))}  # fmt: skip
        source, run = Source(**pick(given, Source)), new_run(given.output_folder)
        from noisycorr.prompt.inputs import Plan
        from noisycorr.prompt.stage import prompt

        plan = Plan(source=source, classes=given.classes, clip_model=given.clip_model, labels=given.labels,
                    seen=given.seen, test_data=given.test_data, class_prior=given.class_prior, **parts)  # fmt: skip
        prompt(plan, run, overwrite=given.overwrite)
