"""All choices of one run: what `clean` was asked for, and the config.yaml that says so."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import yaml

from noisycorr.clean.decide import Decide
from noisycorr.clean.embed import Embed
from noisycorr.clean.signals.duplicates import Duplicates
from noisycorr.clean.signals.image_issues import ImageLimits
from noisycorr.clean.signals.pipeline import Score
from noisycorr.clean.signals.text_issues import TextLimits
from noisycorr.data.readers import Reader, Source, open_source
from noisycorr.runtime import dist
from noisycorr.runtime.errors import UsageError
from noisycorr.runtime.flags import read_config
from noisycorr.runtime.folder import Run, fingerprint
from noisycorr.runtime.signature import Without, bind, parameters
from noisycorr.runtime.stage import require_stage, write_yaml

if TYPE_CHECKING:
    from noisycorr.models.encoders import DualEncoder

HOW = ("workers", "distributor", "ray_workers")  # change how fast features come, not what they are


# One name must not mean two things: how many neighbours are asked is a field of `Score`, and so is the one seed.
OwnDuplicates = Annotated[Duplicates, Without("neighbors")]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """All choices of one run.

    Attributes:
        source: Where the pairs come from.
        embed: How they become numbers.
        score: How they are scored.
        duplicates: What counts as a near-duplicate.
        image_limits: What counts as an image issue.
        text_limits: What counts as a text issue.
        decide: Which are kept.
        labels: File of pairs that a person judged, or None.
        recaption: Who gives new texts to pairs whose own does not fit: none, retrieval, or a folder of a captioner.
        recaption_options: How, as a YAML mapping; None = all defaults.
    """

    source: Source
    embed: Embed = field(default_factory=Embed)
    score: Score = field(default_factory=Score)
    duplicates: OwnDuplicates = field(default_factory=Duplicates)
    image_limits: ImageLimits = field(default_factory=ImageLimits)
    text_limits: TextLimits = field(default_factory=TextLimits)
    decide: Decide = field(default_factory=Decide)
    labels: str | None = None
    recaption: str = "none"
    recaption_options: str | None = None


def stored_plan(run: Run) -> Plan:
    """The plan that a run folder was made with.

    Raises:
        UsageError: If its config.yaml is damaged, or names what no choice has.
    """
    path = run.folder / "config.yaml"
    values = {key: value for key, value in read_config(path).items() if key != "output_folder"}
    known = {item.name for item in parameters(Plan)}
    if unknown := [key for key in values if key not in known]:
        raise UsageError(f"config {path}: {unknown[0]!r} is not a key of `noisycorr clean`.")
    if values.get("path") is None:
        raise UsageError(f"config {path}: the source is missing: give `path`, a file, a folder or a pattern.")
    try:
        return Plan(**bind(Plan, values))
    except UsageError as error:
        raise UsageError(f"config {path}: {error}") from error


def stored_reader(run: Run) -> Reader:
    """The source that a run folder was made from.

    Raises:
        UsageError: If it cannot be opened, with the file that names it.
    """
    source = stored_plan(run).source
    try:
        return open_source(source)
    except UsageError as error:
        raise UsageError(
            f"{error} The source {source.path!r} stands in {run.folder / 'config.yaml'}, and the working directory is "
            f"{Path.cwd()}: if it starts there, go to where the run was made, or write the whole path into the file."
        ) from error


def picture_reader(run: Run, asked: str, instead: str) -> Reader:
    """The source of a run, for whoever needs its pictures again.

    Args:
        run: Embedded.
        asked: What needs them, for the error.
        instead: What to do without them.

    Raises:
        UsageError: If the source brings embeddings.
    """
    reader = stored_reader(run)
    if reader.format == "embeddings":
        raise UsageError(f"{asked} needs pictures, but this source brings embeddings: {instead}.")
    return reader


def open_plan(plan: Plan) -> tuple[Reader, DualEncoder]:
    """The reader of the source, and the encoder (or its stand-in for precomputed embeddings)."""
    from noisycorr.models.encoders import load_encoder
    from noisycorr.models.encoders.precomputed import PrecomputedEncoder

    reader = open_source(plan.source)
    given = None
    if reader.format == "embeddings":
        given = next((found for piece in reader.pieces() if (found := reader.embeddings(piece)) is not None), None)
    if given is not None:
        encoder: DualEncoder = PrecomputedEncoder(fingerprint(reader.identity), given[0].shape[1], given[1].shape[1])
    else:
        encoder = load_encoder(plan.embed.clip_model, device=dist.device(), precision=plan.embed.model_precision)
    return reader, encoder


def write_config(run: Run, plan: Plan) -> None:
    """config.yaml: the flags of `noisycorr clean` that make this run, so that `noisycorr run` on it makes it again."""
    path, values = run.path("config.yaml"), {"output_folder": str(run.folder), **_flat(plan)}
    if plan.recaption == "none" and run.stage("recaption") and path.exists():  # its texts lie over the ledger as yet
        stored = yaml.safe_load(path.read_text(encoding="utf-8"))
        values |= {name: stored.get(name, values[name]) for name in ("recaption", "recaption_options")}
    write_yaml(path, values)


def _flat(plan: Plan) -> dict[str, Any]:
    """All fields of all choices by the names of their flags."""
    return {item.name: getattr(getattr(plan, item.choice) if item.choice else plan, item.name)
            for item in parameters(Plan)}  # fmt: skip


def _refuse_other(plan: Plan, run: Run) -> None:
    """A plan that does not embed must be about the pairs that were embedded."""
    require_stage(run, "embed")
    stored = yaml.safe_load((run.folder / "config.yaml").read_text(encoding="utf-8"))
    for name, value in (dataclasses.asdict(plan.source) | dataclasses.asdict(plan.embed)).items():
        if name not in HOW and stored.get(name) != value:
            raise UsageError(
                f"{run.folder} was embedded with {name} = {stored.get(name)!r}, now it is {value!r}, but `stages` "
                "leaves out embed: give the same value, or choose another `output_folder`."
            )
