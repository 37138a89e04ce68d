"""The verbs about classes. Everything heavy is imported where it is used, so that the help comes at once."""

from __future__ import annotations

from jsonargparse import Namespace

from noisycorr.flags import Parser, add_choice
from noisycorr.plan_flags import NEED_FOLDER, make_choice, new_run

UNUSED = frozenset({"temperature", "dropout", "accum_freq", "beta1", "beta2", "eps"})  # fields of retrieval models


class BenchWebly:
    """Compare methods that learn a classifier from wrong labels, on frozen features; with tables.

    Puts diffuse or semantic noise into labels and texts of each set, or takes the labels that people gave, trains each
    method with the same budget, and reports on clean test samples. What is done is not done again.
    """

    name, usage, parallel = "bench webly", "--output_folder FOLDER", False

    @staticmethod
    def flags(parser: Parser) -> None:
        """What to run, and the budget."""
        from noisycorr.webly.choice import TrainClasses
        from noisycorr.webly_choice import BenchWebly as Choice

        parser.add("output_folder", str, None, "Folder for features, cells and tables; made if absent",
                   need=NEED_FOLDER)  # fmt: skip
        parser.add("config", str | None, None, "YAML file with any of these keys; flags win over it")
        add_choice(parser, Choice)
        add_choice(parser, TrainClasses, skip=UNUSED | {"seed", "resume", "save_every", "keep_checkpoints"})
        parser.add("clip_model", str, "embedded", "Encoder of sources that are not embedded yet, and of class names where "
                   "the embeddings came without an encoder")  # fmt: skip
        parser.add("caption_col", str | None, None, "Column of their texts; detected if none")

    @staticmethod
    def run(given: Namespace) -> None:
        """Run what is missing; the tables go to stdout, too."""
        from noisycorr.webly.choice import TrainClasses
        from noisycorr.webly_bench import bench_webly
        from noisycorr.webly_choice import BenchWebly as Choice

        choice, budget = make_choice(given, "bench", Choice), make_choice(given, "train", TrainClasses)
        run = new_run(given.output_folder)
        bench_webly(choice, budget, run, caption_col=given.caption_col, clip_model=given.clip_model)
        print((run.folder / "bench.md").read_text(encoding="utf-8"), end="")
