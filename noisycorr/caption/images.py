"""What a captioner reads of a run: stored vectors, tokens of a frozen tower, or pixels for one that is tuned."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from noisycorr.caption.captioner.choice import Design
from noisycorr.caption.captioner.stored import Trained
from noisycorr.caption.captioner.tower import Pixels, grid_file, make_tower
from noisycorr.clean.plan import picture_reader
from noisycorr.clean.sources import clip_model_of, encoder_identity
from noisycorr.models.encoders import DualEncoder, load_encoder
from noisycorr.models.training.image_store import open_image_store
from noisycorr.runtime import console, dist
from noisycorr.runtime.errors import UsageError
from noisycorr.runtime.folder import Run


def images_of(source_run: Run, design: Design, folder: Path) -> tuple[Any, Any]:
    """Images of all pairs of a run in the form that a captioner reads, and the tower that learns along.

    Args:
        source_run: Embedded.
        design: Of the captioner.
        folder: For tokens and copies of pictures, kept for the next time.

    Returns:
        None for stored vectors, a memory map (n, m, f) of tokens, or `Pixels`; and a tower, or None.

    Raises:
        UsageError: If the source brings no pictures, changed, or its encoder shows no grid.
    """
    if not design.image_grid:
        return None, None
    reader = picture_reader(source_run, "`image_grid`", "use `image_grid` 0")
    encoder: DualEncoder = load_encoder(clip_model_of(source_run), device=dist.device())
    embedded = (source_run.stage("embed") or {})["facts"]["encoder"]
    if encoder.name != embedded:
        raise UsageError(f"{source_run.folder} was embedded by {embedded}, but its encoder is now {encoder.name}.")
    pixels = Pixels(open_image_store(source_run, reader, folder), encoder)
    tower = make_tower(encoder, design.image_grid, tuned=design.tower == "tuned")
    if design.tower == "tuned":
        return pixels, tower
    name = f"{encoder.name} {(source_run.stage('embed') or {})['fingerprint']}"
    return grid_file(folder, pixels, tower, name, lambda told: console.say(f"caption: {told}")), None


def check_reads(trained: Trained, folder: Path, source_run: Run, *, same_encoder: bool | None = None) -> None:
    """Refuse a captioner that reads pictures by another encoder than that of a run.

    Args:
        trained: The captioner.
        folder: Of it.
        source_run: Embedded.
        same_encoder: Embeddings that came without their encoder are of that of the captioner; None where the command
            has no such switch.

    Raises:
        UsageError: With both names.
    """
    name = encoder_identity(source_run)
    unknown = name.startswith("precomputed")
    if name != trained.encoder and not (same_encoder and unknown and trained.encoder.startswith("precomputed")):
        more = ", or add `same_encoder` if one made both" if unknown and same_encoder is not None else ""
        raise UsageError(f"{folder} reads pictures by {trained.encoder}, but {source_run.folder} was embedded by "
                         f"{name}: embed them with that encoder{more}.")  # fmt: skip
