"""What a captioner reads of a run: stored vectors, tokens of a frozen tower, or pixels for one that is tuned.

Also what the scores of a run depend on, and the encoder of its texts, for whoever scores what was written.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

from noisycorr.caption.captioner.align import Encode
from noisycorr.caption.captioner.choice import Design
from noisycorr.caption.captioner.stored import Trained
from noisycorr.caption.captioner.tower import Pixels, grid_file, make_tower
from noisycorr.clean.plan import picture_reader
from noisycorr.clean.sources import encoder_identity, encoder_of, text_encoder
from noisycorr.models.training.image_store import open_image_store
from noisycorr.runtime import console
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
    encoder = encoder_of(source_run, "`image_grid` needs pictures")
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


def made_by(source_run: Run) -> dict[str, str]:
    """What the scores of a run depend on: encoder, preprocessing, and the pairs with the settings of scoring."""
    embed, score = source_run.stage("embed") or {}, source_run.stage("score") or {}
    return {"scorer": encoder_identity(source_run), "preprocessing": str(embed["inputs"].get("preprocessing")),
            "corpus": str(score.get("fingerprint"))}  # fmt: skip


def text_features_of(source_run: Run) -> Encode | None:
    """Texts to features by the encoder of a run, loaded when first needed; None if its embeddings came without one."""
    if encoder_identity(source_run).startswith("precomputed"):
        return None
    load = functools.cache(lambda: text_encoder(source_run, "captions are to be compared with texts"))
    return lambda texts: load()(texts)
