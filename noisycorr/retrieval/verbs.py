"""The verb that trains. Everything heavy is imported where it is used, so that the help comes at once."""

from __future__ import annotations

from jsonargparse import Namespace

from noisycorr.clean.plan_flags import NEED_FOLDER, make_choice
from noisycorr.runtime.flags import Parser, add_choice, pick
from noisycorr.runtime.folder import new_run

SOURCE = "Run folder of `noisycorr clean`, or any source that it reads, which is then embedded and scored first"

LR = ("Highest learning rate of AdamW; it rises over `warmup` steps and falls along a cosine to 0; by default 1e-3 for "
      "heads, 1e-5 for whole and last_blocks, 1e-4 for lora, 5e-4 for scratch, 2e-4 for regions")  # fmt: skip
MODEL = ("Encoder of a source that is not embedded yet, as for `clean`; and the one to fine-tune, if `train_part` is "
         "not heads, which may also be scratch:vit or scratch:cnn, small ones with random weights")  # fmt: skip

METHOD = "Method: a name of the paper index such as best, coteach, pc2 or plain, or your own, ./FILE.py:CLASS"
TRACKERS = ("Trackers of Accelerate that get the numbers of each epoch: none, all that are installed, or names such as "
            "tensorboard,wandb")  # fmt: skip


class Train:
    """Train a retrieval model that doubts its pairs.

    Works on the features that `noisycorr clean` stored, so that each picture is decoded once. Pairs are split by image,
    the best epoch is selected on validation pairs, and the test split is opened once, after the last epoch. The numbers
    and curves stand in `report.html`. The same command continues an interrupted training.
    """

    name, usage, parallel = "train", "SOURCE --output_folder FOLDER", True

    @staticmethod
    def flags(parser: Parser) -> None:
        """The pairs, the method, and how to train."""
        from noisycorr.data.readers import Source
        from noisycorr.models.training.choice import Split
        from noisycorr.models.training.choice import Train as Choice
        from noisycorr.models.training.tune_choice import Regions, Tune

        parser.add_word("path", "SOURCE", SOURCE, need="the source is missing: name a run folder or a source")
        parser.add("output_folder", str, None, "Folder for the model; made if absent", need=NEED_FOLDER)
        parser.add("config", str | None, None, "YAML file with any of these keys, `path` among them; flags win over it")
        parser.add_switch("overwrite", "Delete what an earlier training left in the folder")
        parser.add_object("strategy", "best", METHOD)
        add_choice(parser, Choice, skip=frozenset({"lr"}))
        parser.add("lr", float | None, None, LR)
        add_choice(parser, Split)
        parser.add("clip_model", str, "embedded", MODEL)
        add_choice(parser, Tune)
        add_choice(parser, Regions)
        parser.add("evaluate", bool, True, "Open the test split after training, as `noisycorr evaluate` does")
        parser.add("report_to", str, "none", TRACKERS)
        add_choice(parser, Source, skip=frozenset({"path"}))

    @staticmethod
    def run(given: Namespace) -> None:
        """Train."""
        from noisycorr.data.readers import Source
        from noisycorr.models.training.choice import Split
        from noisycorr.models.training.choice import Train as Choice
        from noisycorr.models.training.tune_choice import Regions, Tune, default_rate

        tune, regions = make_choice(given, "tune", Tune), make_choice(given, "regions", Regions)
        if given.lr is None:
            given.lr = default_rate(tune, given.clip_model, regions.region)
        choice, split = make_choice(given, "train", Choice), make_choice(given, "split", Split)
        source = Source(**pick(given, Source))
        run = new_run(given.output_folder)
        from noisycorr.retrieval.plan import Plan
        from noisycorr.retrieval.train import check_trackers, named_strategy, train

        check_trackers(given.report_to)

        strategy = named_strategy(given.strategy, given.strategy_options)
        plan = Plan(source=source, clip_model=given.clip_model, train=choice, split=split,
                    strategy=(given.strategy, strategy), tune=tune, regions=regions,
                    evaluate=given.evaluate, report_to=given.report_to)  # fmt: skip
        train(plan, run, overwrite=given.overwrite)
