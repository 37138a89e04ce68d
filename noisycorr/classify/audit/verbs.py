"""The verb that audits labels. Everything heavy is imported where it is used, so that the help comes at once."""

from __future__ import annotations

from jsonargparse import Namespace

from noisycorr.clean.plan_flags import FOLDER, NEED_FOLDER, NEED_SOURCE, SOURCE, make_choice
from noisycorr.runtime.flags import Parser, add_choice, pick
from noisycorr.runtime.folder import new_run

CLASSES = ("classes.yaml with NAME: DEFINITION, several definitions in [a, b] for several senses; or names.txt with a "
           "name a line; WordNet ids where WordNet is installed")  # fmt: skip


class Audit:
    """Say which labels are wrong, what they should be, and which pictures are of no class; no training.

    Embeds as `clean` does, completes missing texts from similar pictures, matches them with the definitions of the
    classes, and weighs that with votes and a classifier that never saw the label it judges. Writes the same ledger,
    with the neighbours that lent their text, and a report. The same command continues an interrupted audit.
    """

    name, usage, parallel = "audit", "SOURCE --classes FILE --output_folder FOLDER", True

    @staticmethod
    def flags(parser: Parser) -> None:
        """The set, its classes, how to judge and what to do."""
        from noisycorr.classify.audit.label_verdict import LabelRule
        from noisycorr.classify.audit.labels import Audit as Choice
        from noisycorr.clean.embed import Embed
        from noisycorr.data.readers import Source

        parser.add_word("path", "SOURCE", SOURCE, need=NEED_SOURCE)
        parser.add("classes", str, None, CLASSES, need="`classes` is missing: name a classes.yaml or a names.txt")
        parser.add("output_folder", str, None, f"{FOLDER}; made if absent", need=NEED_FOLDER)
        parser.add("config", str | None, None, "YAML file with any of these keys, `path` among them; flags win over it")
        parser.add_switch("overwrite", "Delete what an earlier run left in the folder")
        parser.add(
            "label_col", str | None, None, "Column of the labels; by default the one that holds names of the list"
        )
        parser.add("class_embeddings", str | None, None, ".npy with one row for each definition, for sources of "
                   "precomputed embeddings")  # fmt: skip
        add_choice(parser, Choice)
        add_choice(parser, LabelRule)
        add_choice(parser, Source, skip=frozenset({"path"}))
        add_choice(parser, Embed)

    @staticmethod
    def run(given: Namespace) -> None:
        """Audit."""
        from noisycorr.classify.audit.label_verdict import LabelRule
        from noisycorr.classify.audit.labels import Audit as Choice
        from noisycorr.clean.embed import Embed
        from noisycorr.data.readers import Source

        choice, rule = make_choice(given, "audit", Choice), make_choice(given, "rule", LabelRule)
        source, embed = Source(**pick(given, Source)), Embed(**pick(given, Embed))
        run = new_run(given.output_folder)
        from noisycorr.classify.audit.audit import AuditPlan, audit
        from noisycorr.clean.plan import Plan

        plan = AuditPlan(plan=Plan(source=source, embed=embed), classes=given.classes, label_col=given.label_col,
                         class_embeddings=given.class_embeddings, audit=choice, rule=rule)  # fmt: skip
        audit(plan, run, overwrite=given.overwrite)
