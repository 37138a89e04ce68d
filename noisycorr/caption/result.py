"""A captioner and the texts that it wrote, as objects: what `train_captioner` and `Captioner.generate` give back."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from functools import cached_property, partial
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from noisycorr.caption.captioner.align import align_with, remember
from noisycorr.caption.captioner.best import write_best
from noisycorr.caption.captioner.choice import Decode
from noisycorr.caption.captioner.stored import Trained, load_captioner
from noisycorr.caption.captioner.tower import grid_tokens, make_tower
from noisycorr.caption.generate import count_texts, write_captions
from noisycorr.clean.sources import folder_for, path_of
from noisycorr.data.readers import Reading
from noisycorr.data.readers.images import BadImage, decode_image
from noisycorr.models.encoders import DualEncoder, encode_texts, load_encoder
from noisycorr.runtime import dist
from noisycorr.runtime.errors import UsageError
from noisycorr.runtime.folder import new_run, read_json
from noisycorr.runtime.lock import KINDS, at_work
from noisycorr.runtime.result import Result
from noisycorr.runtime.signature import Unset, flat

if TYPE_CHECKING:
    import pandas
    from PIL import Image

SHOWN = 5  # texts of a summary in a notebook


class Captioner(Result):
    """A trained captioner: writes a text for every picture of a source, or for a few that you have at hand."""

    kind = KINDS["caption_started"]

    @property
    def report(self) -> Path:
        """What training recorded: each epoch, and each way to write that was tried."""
        return self.folder / "report.json"

    @property
    def summary(self) -> str:
        """How many pairs taught, how well the texts fit validation pictures, and the level that is written at."""
        if not self.report.is_file():
            return "training is not finished"
        report, chosen = read_json(self.report), self.metrics
        level = "without levels" if chosen.get("level") is None else f"at level {chosen['level']}"
        pairs = report["pairs"]["pairs"] - report["pairs"]["not_kept"] - report["pairs"]["without_text"]
        epoch = chosen.get("epoch", report["best_epoch"][1]) + 1
        numbers = [f"{name.replace('_', ' ')} {chosen[name]:.3f}" for name in ("alignment", "self_retrieval_mrr")
                   if chosen.get(name) is not None]  # fmt: skip
        return "\n".join([f"{pairs:,} pairs taught for {len(report['history'])} epochs, of which {epoch} was the best",
                          ", ".join([f"writes {level}", *numbers])])  # fmt: skip

    @property
    def metrics(self) -> dict[str, Any]:
        """The way to write that was chosen on validation pictures, with all that was measured of it.

        Raises:
            UsageError: If training is not finished.
        """
        if not self.report.is_file():
            raise UsageError(f"{self.folder} holds a training that is not finished: the same call continues it.")
        chosen: dict[str, Any] = next(row for row in read_json(self.report)["levels"] if row["chosen"])
        return chosen

    @flat
    def generate(
        self, source: Any, output_folder: str | PathLike[str] | None = None, *, level: str | int = "best",
        seed: int = 0, same_encoder: bool = False, decode: Annotated[Decode, Unset()], reading: Reading = Reading(),
    ) -> Captions:  # fmt: skip
        """Write a text for every picture of a source, and score it; the pairs themselves are not changed.

        How texts are written is as it was chosen in training, but for what is given here. The same call continues an
        interrupted one.

        Args:
            source: What `clean` gave or its folder, or any source; only its pictures are read.
            output_folder: Folder for the texts, made if absent; by default noisycorr_out/NAME-captions.
            level: best, the one that was best aligned on validation pairs; given, that of each pair by its own score;
                each, all levels, of which the best aligned text is taken; or a number.
            seed: Of the nucleus.
            same_encoder: Embeddings that came without their encoder are of that of the model's.

        Returns:
            The texts.

        Raises:
            UsageError: If captioner, level and pictures do not go together.
        """
        run = new_run(folder_for(source, output_folder, reading, ending="-captions"))
        asked = cast(Mapping[str, Any], decode)  # a choice that is marked so comes as what was given of it
        with at_work(run.folder, "caption generate"):
            write_captions(run, reading.at(path_of(source, run, reading)), self.folder, level, asked, seed,
                           same_encoder=same_encoder)  # fmt: skip
        return Captions(run.folder)

    def write(self, pictures: Sequence[Image.Image | str | PathLike[str]] | np.ndarray, *,
              level: int | None = None, seed: int = 0) -> list[str]:  # fmt: skip
        """Write a text for each of a few pictures, in memory.

        Args:
            pictures: PIL images or paths of image files; or features (n, d) of the encoder that the captioner was
                trained with, and rows of zeros get an empty text.
            level: Of alignment; None = the one that was chosen on validation pairs.
            seed: Of the nucleus.

        Returns:
            One text each.

        Raises:
            UsageError: If training is not finished, the encoder cannot be loaded, or features have another width.
        """
        trained = self.trained
        if isinstance(pictures, np.ndarray):
            if trained.design.image_grid:
                raise UsageError("this captioner reads pictures, for it was trained with `image_grid`: give images.")
            image = vectors = np.asarray(pictures, np.float32)
        else:
            image, vectors = self._read(pictures)
        align = None
        if not self._precomputed:
            encode = partial(encode_texts, self._encoder)
            align = align_with(trained.aligner, vectors, remember(encode))
        return list(write_best(trained, image, align, level, seed=seed).written.texts)

    @cached_property
    def trained(self) -> Trained:
        """The network and all that it needs to write, loaded when first needed.

        Raises:
            UsageError: If training is not finished.
        """
        return load_captioner(self.folder)

    @property
    def _precomputed(self) -> bool:
        return self.trained.encoder.startswith("precomputed")

    @cached_property
    def _encoder(self) -> DualEncoder:
        """The encoder of its pictures, in the precision that they were embedded with."""
        trained = self.trained
        if self._precomputed:
            raise UsageError("this captioner learned from embeddings that came without an encoder: give features.")
        encoder = load_encoder(trained.clip_model, device=dist.device(), precision=trained.clip_precision)
        if encoder.name != trained.encoder:
            raise UsageError(f"{self.folder} reads pictures by {trained.encoder}, but the encoder is now "
                             f"{encoder.name}.")  # fmt: skip
        return encoder

    def _read(self, pictures: Sequence[Any]) -> tuple[np.ndarray, np.ndarray]:
        """What the network reads of pictures, and their vectors for the scorer."""
        import torch

        encoder, design = self._encoder, self.trained.design
        pixels = torch.stack([encoder.preprocess(_opened(picture)) for picture in pictures])
        flat_pixels = pixels.flatten(1)
        flat_pixels[(flat_pixels == 0).all(1), 0] = 1  # zeros stand for no picture, and these are black
        vectors = encoder.image(pixels).float().cpu().numpy()
        if not design.image_grid:
            return vectors, vectors
        if design.tower == "tuned":
            return pixels.numpy(), vectors
        return grid_tokens(make_tower(encoder, design.image_grid), pixels.numpy()), vectors

    def _repr_html_(self) -> str:
        lines = "".join(f"<p>{html.escape(line)}</p>" for line in self.summary.splitlines())
        return f"<div><b>{html.escape(str(self.folder))}</b>{lines}</div>"


class Captions(Result):
    """Texts that a captioner wrote, one row for each pair of the source."""

    kind = KINDS["generate"]

    @property
    def report(self) -> Path:
        """Where the texts are."""
        return self.folder / "captions"

    @property
    def summary(self) -> str:
        """How many texts there are."""
        counts = count_texts(self.run)
        return f"{counts['texts']:,} texts for {counts['pairs']:,} pairs"

    def to_arrow(self) -> pa.Table:
        """key, row, level, text, score (alignment, higher = better), log_prob (nats) and ended, in source order.

        Raises:
            UsageError: If nothing was written yet.
        """
        paths = sorted(self.report.glob("*.parquet"))
        if not paths:
            raise UsageError(f"{self.folder} holds no texts yet: the same call of `generate` continues.")
        return pa.concat_tables([pq.read_table(path) for path in paths])

    def to_pandas(self) -> pandas.DataFrame:
        """The same as a DataFrame."""
        return self.to_arrow().to_pandas()

    def _repr_html_(self) -> str:
        rows = self.to_arrow().slice(0, SHOWN).to_pylist() if any(self.report.glob("*.parquet")) else []
        cells = "".join(f"<tr><td>{html.escape(row['key'])}</td><td>{html.escape(row['text'] or '')}</td></tr>"
                        for row in rows)  # fmt: skip
        return (f"<div><b>{html.escape(str(self.folder))}</b><p>{html.escape(self.summary)}</p>"
                f"<table>{cells}</table></div>")  # fmt: skip


def _opened(picture: Image.Image | str | PathLike[str]) -> Image.Image:
    if not isinstance(picture, str | PathLike):
        return picture
    try:
        return decode_image(Path(picture)).image
    except (BadImage, OSError) as error:
        raise UsageError(f"{picture} cannot be read as a picture: {error}.") from error
