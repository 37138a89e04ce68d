"""Tuned heads as an object: their numbers, and their opinion on new features."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow.parquet as pq
from jaxtyping import Float

from noisycorr.classify.heads.nmtune import apply_head, load_head
from noisycorr.classify.heads.report import write_tuning_report
from noisycorr.classify.heads.tune import summary_lines
from noisycorr.runtime.errors import UsageError
from noisycorr.runtime.folder import read_json
from noisycorr.runtime.lock import KINDS, at_work
from noisycorr.runtime.result import Result

if TYPE_CHECKING:
    import pandas


class TunedHeads(Result):
    """What `tune` made: a head for each method, and what each is worth inside and outside of the domain."""

    kind = KINDS["tune_started"]

    @property
    def summary(self) -> str:
        """Accuracy of each method on each set, and how many rows were left out."""
        if self.run.stage("tune") is None:
            return "not tuned to the end yet: the same call continues"
        return "\n".join(summary_lines(self._report()))

    @property
    def metrics(self) -> dict[str, Any]:
        """By method: `accuracy` on each set (top1 and class_mean, in [0, 1]), and the `spectrum` of its features."""
        methods: dict[str, Any] = self._report()["methods"]
        return methods

    @property
    def best(self) -> str:
        """The method that validates best."""
        return str(self._report()["best"])

    @property
    def classes(self) -> list[str]:
        """Names of the c classes, in the order of the probabilities."""
        self._report()
        return [str(name) for name in read_json(self.folder / "models" / "heads.json")["classes"]]

    def predictions(self) -> pandas.DataFrame:
        """Every row with `key`, `split`, `label`, `predicted`, `p_predicted` and `p_label`, by the best method."""
        self._report()
        return pq.read_table(self.folder / "predictions.parquet").to_pandas()

    def apply(
        self, features: Float[np.ndarray, "n d"], method: str | None = None
    ) -> tuple[Float[np.ndarray, "n c"], Float[np.ndarray, "n d"]]:
        """Probabilities of the classes, and the tuned features.

        Args:
            features: As they were tuned on; for lora those of its own tower, models/lora_encoder.
            method: linear, mlp, nmtune or lora, if it was tuned; None = the best.

        Raises:
            UsageError: If there is no such head, or features have another width.
        """
        report = self._report()
        name = report["best"] if method is None else method
        if name not in report["methods"]:
            raise UsageError(f"`method` is {name!r}, expected one of {', '.join(report['methods'])}.")
        network = load_head(self.folder / "models" / f"{name}.safetensors")
        width = network.head.in_features
        if np.ndim(features) != 2 or np.shape(features)[1] != width:
            raise UsageError(f"`features` have shape {np.shape(features)}, expected (n, {width}).")
        return apply_head(network, np.asarray(features))

    def write_report(self) -> Path:
        """Write report.html again."""
        self._report()
        with at_work(self.folder, "report"):
            return write_tuning_report(self.run)

    def _report(self) -> dict[str, Any]:
        if self.run.stage("tune") is None:
            raise UsageError(f"{self.folder} holds no tuned heads yet: run the same `noisycorr tune` command to its "
                             "end.")  # fmt: skip
        report: dict[str, Any] = read_json(self.folder / "report.json")
        return report
