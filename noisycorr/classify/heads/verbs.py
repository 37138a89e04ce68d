"""Verbs on frozen features: tune heads, and say what to label.

Everything heavy is imported where it is used, so that the help comes at once.
"""

from __future__ import annotations

from pathlib import Path

from jsonargparse import Namespace

from noisycorr.clean.plan_flags import NEED_FOLDER, make_choice
from noisycorr.runtime import console
from noisycorr.runtime.flags import Parser, add_choice, pick
from noisycorr.runtime.folder import new_run

FEATURES = ("Run folder of `noisycorr clean` or `embed`, a .npy file of features, a folder with image.npy, or any "
            "source that `clean` reads, which is then embedded first")  # fmt: skip

POOL = "Run folder of `noisycorr clean` or `embed`, a .npy file of features, or a folder with image.npy"


class Tune:
    """Tune classifiers on frozen features of an encoder that may have learned from wrong pairs.

    A linear probe, a residual adapter, and NMTune: the adapter with terms that keep it near the features, decorrelate
    their numbers and strengthen what dominates. Reports accuracy inside and outside of the domain, and the spectrum of
    the features before and after. The same command continues an interrupted one.
    """

    name, usage, parallel = "tune", "FEATURES --output_folder FOLDER", True

    @staticmethod
    def flags(parser: Parser) -> None:
        """The rows, and how to tune."""
        from noisycorr.classify.heads.choice import NMTune, Rows
        from noisycorr.data.readers import Source

        parser.add_word("path", "FEATURES", FEATURES, need="the features are missing: name a run folder or a .npy file")
        parser.add("output_folder", str, None, "Folder for the heads; made if absent", need=NEED_FOLDER)
        parser.add("config", str | None, None, "YAML file with any of these keys, `path` among them; flags win over it")
        parser.add_switch("overwrite", "Delete what an earlier command left in the folder")
        add_choice(parser, Rows)
        add_choice(parser, NMTune)
        parser.add("clip_model", str, "embedded", "Encoder of sources that are not embedded yet, as for `clean`")
        add_choice(parser, Source, skip=frozenset({"path"}))

    @staticmethod
    def run(given: Namespace) -> None:
        """Tune."""
        from noisycorr.classify.heads.choice import NMTune, Rows
        from noisycorr.data.readers import Source

        rows, choice = make_choice(given, "rows", Rows), make_choice(given, "nmtune", NMTune)
        source = Source(**pick(given, Source))
        run = new_run(given.output_folder)
        from noisycorr.classify.heads.tune import Plan, tune

        plan = Plan(source=source, clip_model=given.clip_model, rows=rows, tune=choice)
        tune(plan, run, overwrite=given.overwrite)


class Annotate:
    """Say which images a person should label or look at next, and why: a csv of keys, best first.

    By class probabilities that are given, or those of a linear probe on the labels that are known. Put the labels into
    the file of `labels` and ask again.
    """

    name, usage, parallel = "annotate", "FEATURES", False

    @staticmethod
    def flags(parser: Parser) -> None:
        """The rows, and what to label."""
        from noisycorr.classify.heads.annotate import Annotate as Choice

        parser.add_word("path", "FEATURES", POOL, need="the features are missing: name a run folder or a .npy file")
        parser.add("output_file", str | None, None, "csv to write; by default the rows go to stdout")
        add_choice(parser, Choice)

    @staticmethod
    def run(given: Namespace) -> None:
        """Write or print."""
        from noisycorr.classify.heads.annotate import Annotate as Choice
        from noisycorr.classify.heads.annotate import annotate, to_csv

        body = to_csv(annotate(given.path, make_choice(given, "annotate", Choice)))
        if given.output_file is None:
            print(body, end="")
            return
        from noisycorr.runtime.folder import atomic_path

        with atomic_path(Path(given.output_file)) as temporary:
            temporary.write_text(body, encoding="utf-8", newline="\n")
        console.say(f"annotate: {body.count(chr(10)) - 1:,} rows in {given.output_file}")
