"""A trained retrieval model as an object: its numbers, its page, and its vectors of pictures and texts."""

from __future__ import annotations

import dataclasses
import functools
from os import PathLike
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np

from noisycorr.clean.sources import encoder_of
from noisycorr.retrieval.plan import Evaluation
from noisycorr.runtime import console, dist
from noisycorr.runtime.errors import UsageError
from noisycorr.runtime.folder import Run, read_json
from noisycorr.runtime.lock import KINDS, at_work
from noisycorr.runtime.result import Result
from noisycorr.runtime.signature import Without, flat

if TYPE_CHECKING:
    from pathlib import Path

    from jaxtyping import Float

    from noisycorr.models.encoders import DualEncoder
    from noisycorr.models.training.heads import RetrievalNetwork

NEED = "pictures and texts need the encoder of the pairs (features need none)"


class RetrievalModel(Result):
    """What `train` made: one or two networks that put pictures and texts into one space."""

    kind = KINDS["train_started"]

    @property
    def summary(self) -> str:
        """Method, best epoch, and how well the right text or picture is found, on validation and on test pairs."""
        from noisycorr.retrieval.report import headline
        from noisycorr.retrieval.scoreboard import recall_lines

        if not (self.folder / "report.json").is_file():
            return "not trained to the end yet: the same call goes on"
        report, test = read_json(self.folder / "report.json"), self._evaluation.get("test")
        lines = [f"{report['strategy']['name']} on {report['pairs']:,} pairs", *headline(report)]
        return "\n".join([*lines, *(f"test: {line}" for line in (recall_lines(test) if test else []))])

    @property
    def metrics(self) -> dict[str, Any]:
        """`best_epoch`, from 0; `validation`; and what `evaluate` found last: `test`, `detection` and so on.

        Raises:
            UsageError: If the training did not come to its end.
        """
        report = self._finished()
        return {"best_epoch": report["best_epoch"], "validation": report.get("validation"), **self._evaluation}

    @functools.cached_property
    def networks(self) -> list[RetrievalNetwork]:
        """The networks of the best epoch, in evaluation mode.

        Raises:
            UsageError: If the training did not come to its end.
        """
        from noisycorr.retrieval.fit import load_networks

        return load_networks(self.folder, dist.device())

    @flat
    def evaluate(
        self, test_data: str | PathLike[str] | None = None, *,
        evaluation: Annotated[Evaluation, Without("test_data")] = Evaluation(),
    ) -> dict[str, Any]:  # fmt: skip
        """Open the test split, or test on other pairs; writes evaluation.json, and report.html again.

        Args:
            test_data: A source or run of `clean` to test on; by default the test split that training left alone.

        Returns:
            JSON: recall at 1, 5 and 10 in both directions, of each network and of all together; `classification` if
            there are classes; `detection` of wrong training pairs if truth is known.

        Raises:
            UsageError: If there is no finished model, or nothing to test on.
        """
        from noisycorr.retrieval.evaluate import evaluate_model

        place = test_data.folder if isinstance(test_data, Result) else test_data
        asked = dataclasses.replace(evaluation, test_data=None if place is None else str(place))
        with at_work(self.folder, "evaluate"):
            return evaluate_model(self.run, asked)

    def encode_image(self, images: Any) -> Float[np.ndarray, "n d"]:
        """Vectors of pictures, float32 of unit length; their dot products with those of texts are similarities.

        Args:
            images: PIL images or paths, one or several; for heads on stored features also an array of these, (n, d).

        Raises:
            UsageError: If the model has no vectors, or does not take such values.
        """
        from noisycorr.retrieval.encode import encode

        return encode(self.networks, images, "image", lambda: self._encoder)

    def encode_text(self, texts: Any) -> Float[np.ndarray, "n d"]:
        """Vectors of texts, float32 of unit length.

        Args:
            texts: One or several; for heads on stored features also an array of these, (n, e).

        Raises:
            UsageError: If the model has no vectors, or does not take such values.
        """
        from noisycorr.retrieval.encode import encode

        return encode(self.networks, texts, "text", lambda: self._encoder)

    def similarity(self, image: Any, text: Any) -> Float[np.ndarray, "n m"]:
        """How well each picture and each text fit, in [-1, 1], higher = better: the mean over the networks.

        Args:
            image: As for `encode_image`.
            text: As for `encode_text`.
        """
        found: np.ndarray = self.encode_image(image) @ self.encode_text(text).T
        return found

    def write_report(self) -> Path:
        """Write report.html again.

        Raises:
            UsageError: If the training did not come to its end.
        """
        from noisycorr.retrieval.report import write_training_report

        self._finished()
        with at_work(self.folder, "report"):
            path = write_training_report(self.run)
        console.say(f"report: {path}")
        return path

    @property
    def _evaluation(self) -> dict[str, Any]:
        path = self.folder / "evaluation.json"
        return read_json(path) if path.is_file() else {}

    @functools.cached_property
    def _encoder(self) -> DualEncoder:
        return encoder_of(Run(read_json(self.folder / "provenance.json")["pairs"]), NEED)

    def _finished(self) -> dict[str, Any]:
        if not (self.folder / "report.json").is_file():
            raise UsageError(f"{self.folder} holds no finished training: run the same `noisycorr train` to its end.")
        report: dict[str, Any] = read_json(self.folder / "report.json")
        return report
