"""From flags to the plan of a run, and back from its config.yaml to the same plan.

Everything heavy is imported where it is used, so that the help comes at once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from jsonargparse import Namespace

from noisycorr.runtime.errors import UsageError
from noisycorr.runtime.flags import Parser, add_choice, pick

if TYPE_CHECKING:
    from noisycorr.clean.plan import Plan

# Fields without a flag: one name must not mean two things. Both choices get the same seed.
SHARED = {"duplicates": frozenset({"neighbors", "seed"})}


RECAPTION = ("Give new texts to pairs whose own does not fit: none, retrieval (borrow those of trusted pictures), or a "
             "folder of `noisycorr caption train`; options are those of `noisycorr recaption`")  # fmt: skip


FOLDER = "Run folder"


NEED_FOLDER = "`output_folder` is missing: name the run folder"


NEED_SOURCE = "the source is missing: name a file, a folder, a pattern, hf://NAME or 'sample'"


SOURCE = "File, folder, brace pattern, several joined by '::', hf://NAME, or 'sample' for the set that comes with it"


def plan_choices() -> dict[str, type]:
    """The choices of a run by their names in `Plan`."""
    from noisycorr.clean.decide import Decide
    from noisycorr.clean.embed import Embed
    from noisycorr.clean.signals.duplicates import Duplicates
    from noisycorr.clean.signals.image_issues import ImageLimits
    from noisycorr.clean.signals.pipeline import Score
    from noisycorr.clean.signals.text_issues import TextLimits
    from noisycorr.data.readers import Source

    return {
        "source": Source, "embed": Embed, "score": Score, "duplicates": Duplicates, "image_limits": ImageLimits,
        "text_limits": TextLimits, "decide": Decide,
    }  # fmt: skip


def plan_flags(parser: Parser) -> None:
    """Flags of all choices of a run."""
    parser.add_word("path", "SOURCE", SOURCE, need=NEED_SOURCE)
    parser.add("output_folder", str, None, f"{FOLDER}; made if absent", need=NEED_FOLDER)
    parser.add("config", str | None, None, "YAML file with any of these keys, `path` among them; flags win over it")
    parser.add_switch("overwrite", "Delete what an earlier run left in the folder")
    labels_flag(parser)
    parser.add_object("recaption", "none", RECAPTION)
    for part, choice in plan_choices().items():
        add_choice(parser, choice, skip=frozenset({"path"}) if part == "source" else SHARED.get(part, frozenset()))


def make_plan(given: Namespace) -> Plan:
    """The plan that parsed flags describe."""
    from noisycorr.clean.plan import Plan

    parts = {part: make_choice(given, part, choice) for part, choice in plan_choices().items()}
    return Plan(**parts, labels=given.labels, recaption=given.recaption, recaption_options=given.recaption_options)


def labels_flag(parser: Parser) -> None:
    """Flag of the pairs that a person judged."""
    parser.add("labels", str | None, None, "File of pairs that a person judged: csv, tsv or jsonl with key and label")


def make_choice(given: Namespace, part: str, choice: type) -> Any:
    """One choice from parsed flags."""
    fields = {name: value for name, value in pick(given, choice).items() if name not in SHARED.get(part, ())}
    if part == "duplicates":
        fields["seed"] = given.seed
    try:
        return choice(**fields)
    except UsageError:
        raise
    except ValueError as error:
        raise UsageError(f"{error}.") from error
