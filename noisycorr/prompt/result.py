"""A tuned prompt as an object: what came out, the label of every image, and probabilities for new ones."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow.parquet as pq
import torch
from jaxtyping import Float
from PIL import Image

from noisycorr.clean.sources import encoder_of
from noisycorr.data.readers.images import BadImage, decode_image
from noisycorr.data.store import read_facts
from noisycorr.models.encoders.frozen import check_width
from noisycorr.prompt.build import build
from noisycorr.prompt.choice import Context
from noisycorr.prompt.inputs import stored_images_run
from noisycorr.prompt.keep import load_prompt
from noisycorr.prompt.model import ENCODED, Prompted, restore
from noisycorr.prompt.report import verdict, write_prompt_report
from noisycorr.prompt.text import text_side
from noisycorr.runtime import dist
from noisycorr.runtime.errors import UsageError
from noisycorr.runtime.flags import read_config
from noisycorr.runtime.folder import read_json
from noisycorr.runtime.lock import KINDS, at_work
from noisycorr.runtime.result import Result
from noisycorr.stats.index import unit_rows

if TYPE_CHECKING:
    import pandas

Picture = Image.Image | str | PathLike[str]
ACCURACIES = ("before", "after", "poor", "rich", "losers", "seen", "unseen", "harmonic", "harmonic_before")


class PromptedClassifier(Result):
    """What `prompt` learned from images and class names: a classifier, and a label for every image."""

    kind = KINDS["prompt_started"]

    @property
    def summary(self) -> str:
        """How many images changed their class, and how good the classifier is where classes of images are known."""
        if not (self.folder / "report.json").is_file():
            return "not finished: the same call continues it"
        report = self._report
        lines = [f"{report['images']:,} images, {report['classes']:,} classes, {report['encoder']}", verdict(report)]
        return "\n".join([*lines, report["doubts"]["warning"]] if report["doubts"]["warning"] else lines)

    @property
    def metrics(self) -> dict[str, Any]:
        """Numbers of the report.

        `changed`: images with another class than zero-shot's. Where classes of images are known, too: accuracy `before`
        (zero-shot) and `after` in [0, 1], `poor` and `rich` (gain of the worse and the better half of the classes),
        `losers`, with seen classes `seen`, `unseen` and `harmonic`; `with_similar_images`, `label_precision` (share of
        right pseudo-labels) and `baselines` (accuracy of classifiers that need no training).
        """
        report = self._report
        measures = report.get("measures", {})
        numbers = {"changed": report["changed"]} | {name: measures[name] for name in ACCURACIES if name in measures}
        others = {"with_similar_images": "settled", "label_precision": "label_precision", "baselines": "baselines"}
        return numbers | {name: report[stored] for name, stored in others.items() if stored in report}

    @property
    def classes(self) -> list[str]:
        """Class names, in the order of the columns of `predict`."""
        self._finished()
        return (self.folder / "classes.txt").read_text(encoding="utf-8").split("\n")[:-1]

    def predictions(self) -> pandas.DataFrame:
        """The ledger: a row for every image, with its class as `text`, `p_clean`, and how it came by the class."""
        self._finished()
        return pq.read_table(self.folder / "ledger.parquet").to_pandas()

    def pseudo_labels(self) -> pandas.DataFrame:
        """Labels of the last round: key, label, probability, round in which the image first got it, rank in its class.

        Delete the rows that you did not check, correct the others, and give them back as `labels`.
        """
        self._finished()
        return pq.read_table(self.folder / "pseudo_labels.parquet").to_pandas()

    def predict(self, images: Any) -> Float[np.ndarray, "n c"]:
        """Probabilities of images over the classes, by the prompt alone.

        Args:
            images: n pictures, as PIL images or as paths of files. Or their features: (n, e) as the encoder of the run
                makes them, or (n, d) in the space that it shares with texts.

        Returns:
            float32 (n, c), rows sum to 1; column k belongs to `classes[k]`. A row of zeros has no image: all classes
            are equally likely.

        Raises:
            UsageError: If a picture cannot be read, features have another width, or the prompt sits in the image tower
                and features are given, which do not know of it.
        """
        self._finished()
        classes = np.load(self.folder / "classifier.npy", allow_pickle=False)
        if isinstance(images, Image.Image | str | PathLike):
            images = [images]
        if isinstance(images, Sequence) and all(isinstance(image, Image.Image | str | PathLike) for image in images):
            vectors = self._picture_vectors(images, classes)
        else:
            vectors = self._feature_vectors(images, classes)
        logits = self._report["scale"] * torch.from_numpy(vectors) @ torch.from_numpy(classes).T
        return torch.softmax(logits, 1).numpy()

    def write_report(self) -> Path:
        """Write report.html again."""
        self._finished()
        table = pq.read_table(self.folder / "pseudo_labels.parquet")
        source_run = stored_images_run(self.run)
        keys = read_facts(source_run, ["key"]).column("key").to_pylist()
        row_of = {key: row for row, key in enumerate(keys)}
        with at_work(self.folder, "report"):
            rows = [row_of[key] for key in table.column("key").to_pylist()]
            return write_prompt_report(self.run, self._report, source_run, rows, table)

    def _finished(self) -> None:
        """UsageError if the tuning was stopped before its end."""
        if self.run.stage("prompt") is None:
            raise UsageError(f"{self.folder} holds a tuning that is not finished: the same `prompt` call continues it.")

    @property
    def _report(self) -> dict[str, Any]:
        self._finished()
        report: dict[str, Any] = read_json(self.folder / "report.json")
        return report

    @property
    def _context(self) -> Context:
        settings = self._report["settings"]
        return Context(**{field.name: settings[field.name] for field in dataclasses.fields(Context)})

    @functools.cached_property
    def _encoder(self) -> Any:
        config = read_config(self.folder / "config.yaml")
        source_run = stored_images_run(self.run)
        encoder = encoder_of(source_run, "`images` need an encoder", clip_model=config["clip_model"])
        if encoder.name != self._report["encoder"]:
            raise UsageError(f"{self.folder} belongs to {self._report['encoder']}, but the encoder is {encoder.name}.")
        return encoder

    def _feature_vectors(self, images: Any, classes: np.ndarray) -> np.ndarray:
        """Unit vectors in the space of the classes, from features."""
        if self._context.in_image_tower:
            raise UsageError("this prompt sits in the image tower: `images` must be pictures, not features.")
        try:
            features = np.asarray(images, np.float32)
        except (TypeError, ValueError) as error:
            raise UsageError("`images` is neither pictures (PIL or paths) nor an array of features (n, d).") from error
        if features.ndim != 2:
            raise UsageError(f"`images` has the shape {features.shape}, expected pictures, or features (n, d).")
        if features.shape[1] == classes.shape[1]:  # no encoder is needed, and none has to be there
            return unit_rows(features)
        check_width(self._encoder.name, "image", features, self._encoder.image_dim)
        return self._joint(features)

    def _picture_vectors(self, images: Sequence[Picture], classes: np.ndarray) -> np.ndarray:
        """Unit vectors in the space of the classes, from pictures."""
        encoder, tuned = self._encoder, self._tower(images, classes) if self._context.in_image_tower else None
        parts = [np.zeros((0, classes.shape[1]), np.float32)]
        for start in range(0, len(images), ENCODED):
            rows = range(start, min(start + ENCODED, len(images)))
            if tuned is not None:
                with torch.no_grad():
                    parts.append(tuned.images(list(rows)).float().cpu().numpy())
            else:
                pixels = torch.stack([encoder.preprocess(_opened(images[row])) for row in rows])
                parts.append(self._joint(encoder.image(pixels).float().cpu().numpy()))
        return np.concatenate(parts)

    def _joint(self, features: np.ndarray) -> np.ndarray:
        no_texts = np.zeros((0, self._encoder.text_dim), np.float32)
        vectors: np.ndarray = self._encoder.joint_space(features, no_texts)[0]
        return vectors

    def _tower(self, images: Sequence[Picture], classes: np.ndarray) -> Prompted:
        """The image tower with what was learned, over these pictures."""
        encoder, device = self._encoder, dist.device()
        weights, _ = load_prompt(self.folder / "prompt.safetensors", encoder=encoder.name, names=self.classes)

        def pixels(rows: list[int]) -> torch.Tensor:
            return torch.stack([encoder.preprocess(_opened(images[row])) for row in rows]).to(device)

        vectors = torch.from_numpy(classes).to(device)
        model = build(encoder, text_side(encoder), self.classes, self._context, features=vectors[:0], zero=vectors,
                      pixels=pixels, seed=0, device=device)  # fmt: skip
        restore(model, {name: value.to(device) for name, value in weights.items()})
        return model


def _opened(image: Picture) -> Image.Image:
    """One picture in RGB; UsageError if it cannot be read."""
    if isinstance(image, Image.Image):
        return image.convert("RGB")
    try:
        return decode_image(Path(image)).image
    except BadImage as error:
        raise UsageError(f"`images`: {image} could not be read ({error.detail}).") from error
