"""A classifier as an object: its numbers, the labels that it cleaned, and its opinion on new features."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow.parquet as pq
import torch
import yaml
from jaxtyping import Float
from safetensors.torch import load_file

from noisycorr.classify.webly.choice import TrainClasses
from noisycorr.classify.webly.contract import Method
from noisycorr.classify.webly.fitting import probabilities
from noisycorr.classify.webly.methods import load_method
from noisycorr.classify.webly.network import ClassNetwork, FeatureBackbone
from noisycorr.classify.webly.report import verdict, write_class_report
from noisycorr.models.training.heads import load_trained
from noisycorr.runtime.errors import UsageError
from noisycorr.runtime.folder import read_json
from noisycorr.runtime.lock import KINDS, at_work
from noisycorr.runtime.result import Result

if TYPE_CHECKING:
    import pandas

METRICS = ("test", "open_set", "labels", "by_shots", "per_class")
CHUNK = 1024  # rows at once


class Classifier(Result):
    """What `classify` trained: networks, cleaned labels, and numbers of the test split."""

    kind = KINDS["classify_started"]

    @property
    def summary(self) -> str:
        """How good it is, and what became of the labels."""
        if not (self.folder / "report.json").is_file():
            return "not trained to the end yet: the same call continues"
        report = read_json(self.folder / "report.json")
        lines = [verdict(report).replace("\u00a0", " ")]
        if changed := report.get("labels"):
            lines.append(f"labels: {changed['changed']:.1%} changed, {changed['left_out']:.1%} left out")
        return "\n".join([*lines, *report["notes"]])

    @property
    def metrics(self) -> dict[str, Any]:
        """Numbers by what they are about, if known: test, open_set, labels, by_shots, per_class; shares in [0, 1]."""
        report = read_json(self._finished("report.json"))
        return {name: report[name] for name in METRICS if name in report}

    @property
    def classes(self) -> list[str]:
        """Names of the c classes or tags, in the order of the probabilities."""
        return [str(name) for name in read_json(self._finished("model.json"))["classes"]]

    def labels(self) -> pandas.DataFrame:
        """Labels of the training samples as they came and as they should be.

        Returns:
            One row for each: `key`, `label`, `label_rectified` (None = left out), `verdict`, `p_clean` that the label
            is right, `anchor` (1 = trusted) and `text_class`, as far as the method has an opinion.
        """
        return pq.read_table(self._finished("labels.parquet")).to_pandas()

    @torch.no_grad()
    def predict(self, features: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "n c"]:
        """Probabilities of classes, the mean over the networks; of tags each in [0, 1] by itself.

        Args:
            features: Of images, by the encoder of the run that it was trained on.

        Raises:
            UsageError: If the training is not finished or fine-tuned an image encoder, or features have another width.
        """
        facts, config = read_json(self._finished("model.json")), self._config()
        if "backbone" in facts:
            raise UsageError(
                f"{self.folder} fine-tuned an image encoder ({facts['backbone']}), so it takes no features."
            )
        weights = load_file(self.folder / "model.safetensors")
        width = weights["0.backbone.mean"].shape[0]
        if np.ndim(features) != 2 or np.shape(features)[1] != width:
            raise UsageError(f"`features` have shape {np.shape(features)}, expected (n, {width}).")
        method, choice = self._method(config), self._choice(config)
        rows = torch.from_numpy(np.array(features)).to(weights["0.backbone.mean"].dtype)
        logits = []
        for number in range(facts["networks"]):
            start = f"{number}."
            network = _network(width, len(facts["classes"]), method, choice).to(rows.dtype)
            load_trained(network, {key.removeprefix(start): value for key, value in weights.items()
                                   if key.startswith(start)})  # fmt: skip
            network.eval()
            parts = [method.predict(network, network.image(part)) for part in rows.split(CHUNK)]
            logits.append(torch.cat(parts).double().numpy())
        return probabilities(logits, tags=bool(read_json(self.folder / "report.json")["multi"]))

    def write_report(self) -> Path:
        """Write report.html again."""
        self._finished("report.json")
        with at_work(self.folder, "report"):
            return write_class_report(self.run)

    def _finished(self, name: str) -> Path:
        if self.run.stage("classify") is None:
            raise UsageError(f"{self.folder} holds no finished classifier: run the same `noisycorr classify train` "
                             "command to its end.")  # fmt: skip
        return self.folder / name

    def _config(self) -> dict[str, Any]:
        stored: dict[str, Any] = yaml.safe_load((self.folder / "config.yaml").read_text(encoding="utf-8"))
        return stored

    @staticmethod
    def _method(config: dict[str, Any]) -> Method:
        return load_method(config["method"]["class_path"], config["method"]["init_args"])

    @staticmethod
    def _choice(config: dict[str, Any]) -> TrainClasses:
        return TrainClasses(**{name: config[name] for name in ("embed_dim", "hidden", "layer", "view")})


def _network(width: int, classes: int, method: Method, choice: TrainClasses) -> ClassNetwork:
    """A network as `ClassLearner` makes it for features of this width, before its weights are loaded."""
    # Weights are loaded strictly, so slow copies and modules of the method must be there, too, although only the
    # backbone, the classifier and what `Method.predict` reads are used.
    return ClassNetwork(
        FeatureBackbone(width, choice.layer), classes,
        lambda dim: method.parts(dim, classes, choice.embed_dim, choice.hidden), slow=method.slow, view=choice.view,
    )  # fmt: skip
