"""All choices of one run: what `clean` was asked for, and the config.yaml that says so."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import yaml

from noisycorr.clean.decide import Decide
from noisycorr.clean.embed import Embed
from noisycorr.clean.signals.duplicates import Duplicates
from noisycorr.clean.signals.image_issues import ImageLimits
from noisycorr.clean.signals.pipeline import Score
from noisycorr.clean.signals.text_issues import TextLimits
from noisycorr.data.readers import Reader, Source, open_source
from noisycorr.models.encoders import DualEncoder, load_encoder
from noisycorr.models.encoders.precomputed import PrecomputedEncoder
from noisycorr.runtime import dist
from noisycorr.runtime.errors import UsageError
from noisycorr.runtime.folder import Run, atomic_path, fingerprint
from noisycorr.runtime.stage import require_stage

if TYPE_CHECKING:
    from noisycorr.data.readers import Reader


SHARED = {"duplicates": frozenset({"neighbors", "seed"})}  # one name must not mean two things
HOW = ("workers", "distributor", "ray_workers")  # change how fast features come, not what they are


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
    duplicates: Duplicates = field(default_factory=Duplicates)
    image_limits: ImageLimits = field(default_factory=ImageLimits)
    text_limits: TextLimits = field(default_factory=TextLimits)
    decide: Decide = field(default_factory=Decide)
    labels: str | None = None
    recaption: str = "none"
    recaption_options: str | None = None


def open_plan(plan: Plan) -> tuple[Reader, DualEncoder]:
    """The reader of the source, and the encoder (or its stand-in for precomputed embeddings)."""
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
    text = yaml.safe_dump(values, sort_keys=True, allow_unicode=True)
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        with atomic_path(path) as temporary:
            temporary.write_text(text, encoding="utf-8")


def _flat(plan: Plan) -> dict[str, Any]:
    """All fields of all choices by the names of their flags."""
    alone = ("labels", "recaption", "recaption_options")
    values: dict[str, Any] = {name: getattr(plan, name) for name in alone}
    for part in (item.name for item in dataclasses.fields(plan) if item.name not in alone):
        fields = dataclasses.asdict(getattr(plan, part))
        values |= {name: value for name, value in fields.items() if name not in SHARED.get(part, ())}
    return values


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
