"""The verbs about classes. Everything heavy is imported where it is used, so that the help comes at once."""

from __future__ import annotations

from jsonargparse import Namespace

from noisycorr.clean.plan_flags import NEED_FOLDER, make_choice
from noisycorr.runtime.flags import Parser, add_choice
from noisycorr.runtime.folder import new_run

SOURCE = "Run folder of `noisycorr clean`, or any source that it reads, which is then embedded first"
METHOD = "Method: capro, mopro, pls, pls_lsa, elr, elr_plus, nested, confident or plain; capro_tags or plain for tags"


class ClassifyTrain:
    """Train a classifier on labels that may be wrong, and write what it thinks of them.

    Works on the features that `noisycorr clean` stored, or fine-tunes an image encoder (`backbone`). Samples whose
    texts, completed by those of similar images, match the definition of their class best are trusted. The test split
    is opened once, after the last epoch; cleaned labels stand in `labels.parquet`, numbers and curves in
    `report.html`. The same command continues an interrupted training.
    """

    name, usage, parallel = "classify train", "SOURCE --output_folder FOLDER", True

    @staticmethod
    def flags(parser: Parser) -> None:
        """The samples, the method, and how to train."""
        from noisycorr.classify.webly.choice import RETRIEVAL_ONLY, Finetune, Labels, TrainClasses
        from noisycorr.models.training.tune_choice import Tune

        parser.add_word("path", "SOURCE", SOURCE, need="the source is missing: name a run folder or a source")
        parser.add("output_folder", str, None, "Folder for the model; made if absent", need=NEED_FOLDER)
        parser.add("config", str | None, None, "YAML file with any of these keys, `path` among them; flags win over it")
        parser.add_object("method", "capro", METHOD)
        add_choice(parser, Labels)
        add_choice(parser, TrainClasses, skip=RETRIEVAL_ONLY)
        add_choice(parser, Finetune)
        add_choice(parser, Tune, skip=frozenset({"train_part"}))
        parser.add("clip_model", str, "embedded", "Encoder of a source that is not embedded yet, and of class names "
                   "where the embeddings came without an encoder")  # fmt: skip
        parser.add("caption_col", str | None, None, "Column of the texts of such a source; detected if none")

    @staticmethod
    def run(given: Namespace) -> None:
        """Train."""
        from noisycorr.classify.webly.choice import Finetune, Labels, TrainClasses
        from noisycorr.models.training.tune_choice import Tune

        train, labels = make_choice(given, "train", TrainClasses), make_choice(given, "labels", Labels)
        finetune, tune = make_choice(given, "finetune", Finetune), make_choice(given, "tune", Tune)
        run = new_run(given.output_folder)
        from noisycorr.classify.webly.train import Plan, classify_train, named_method

        method = named_method(given.method, given.method_options)
        classify_train(
            Plan(path=given.path, caption_col=given.caption_col, clip_model=given.clip_model, labels=labels,
                 method=(given.method, method), train=train, finetune=finetune, tune=tune), run)  # fmt: skip
