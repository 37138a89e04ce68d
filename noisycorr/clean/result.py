"""A run of `clean` as an object: its verdicts as tables and datasets, the reasons, and everything that can follow."""

from __future__ import annotations

import base64
import dataclasses
import html
from collections.abc import Callable, Mapping
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from noisycorr.clean.decide import Decide
from noisycorr.clean.evaluate import evaluate_run
from noisycorr.clean.explain import explain as explained
from noisycorr.clean.export import Export
from noisycorr.clean.export import export as write_export
from noisycorr.clean.pipeline import decide_stage, decided, each_part, report_stage, score_stage
from noisycorr.clean.plan import OwnDuplicates, stored_plan, stored_reader
from noisycorr.clean.report.gallery import strip
from noisycorr.clean.signals.duplicates import Duplicates
from noisycorr.clean.signals.image_issues import ImageLimits
from noisycorr.clean.signals.pipeline import Score
from noisycorr.clean.signals.text_issues import TextLimits
from noisycorr.runtime import console
from noisycorr.runtime.errors import UsageError
from noisycorr.runtime.lock import KINDS, at_work
from noisycorr.runtime.result import Result
from noisycorr.runtime.signature import Without, flat

if TYPE_CHECKING:
    import datasets
    import pandas
    import torch

Formats = Literal["webdataset", "parquet", "hf", "csv", "jsonl", "coco", "uids", "clip-retrieval", "issues"]
SHOWN = 8  # pictures of a strip in a notebook


class CleanRun(Result):
    """What `clean` found: one row for every pair that came in, with scores, `p_clean`, verdict and reason."""

    kind = KINDS["embed"]

    @property
    def summary(self) -> str:
        """Counts, the estimated share of mismatched pairs with its interval, and what is expected of the kept ones."""
        record = self.run.stage("decide")
        lines = record["facts"].get("summary", []) if record else ["embedded, not decided yet"]
        return "\n".join(str(line) for line in lines)

    def to_arrow(self) -> pa.Table:
        """The ledger, one row for each pair that came in, in the order of the source."""
        decided(self.run)
        return pa.concat_tables([pq.read_table(self.folder / name) for name in each_part(self.run, "ledger")],
                                promote_options="permissive")  # fmt: skip

    def to_pandas(self) -> pandas.DataFrame:
        """The ledger as a DataFrame."""
        return self.to_arrow().to_pandas()

    def to_dataset(self, only: str = "keep,recaption,relabel", *, texts: str = "rectified") -> datasets.Dataset:
        """Pairs with their images as a Hugging Face dataset, mapped from disk.

        Args:
            only: Verdicts, joined by commas, or all.
            texts: rectified for new texts where there are some, or given.

        Returns:
            Columns image, text and key, those that came in, and those of the ledger.
        """
        import datasets

        words = "-".join(sorted(part.strip() for part in only.split(",")))
        place = self.folder / "export" / f"hf-{words}-{texts}"
        with console.silent():
            self.export("hf", place, only=only, texts=texts)
        return datasets.load_from_disk(str(place))

    def to_torch(
        self, only: str = "keep,recaption,relabel", *, transform: Callable[[Any], Any] | None = None,
        texts: str = "rectified",
    ) -> PairDataset:  # fmt: skip
        """A map-style dataset for a `DataLoader`: image, text, key and sample_weight of each pair.

        Args:
            only: Verdicts, joined by commas, or all.
            transform: From a PIL image to what is returned as image, such as the preprocessing of a CLIP.
            texts: rectified for new texts where there are some, or given.
        """
        return PairDataset(self.to_dataset(only, texts=texts), transform)

    def sampler(
        self, only: str = "keep,recaption,relabel", *, seed: int = 0
    ) -> torch.utils.data.WeightedRandomSampler:  # fmt: skip
        """Draws the pairs of `to_torch(only)` with replacement, as often as their weight says.

        Args:
            only: Verdicts, joined by commas, or all.
            seed: Of the draws.

        Raises:
            UsageError: If no pair has a weight above 0.
        """
        return self.to_torch(only).sampler(seed=seed)

    def explain(self, key: str, *, neighbors: int = 5) -> str:
        """Say why a pair got its verdict, with the nearest neighbours that spoke for and against it.

        Args:
            key: Key of the pair, as it stands in the ledger.
            neighbors: Neighbours to show on each side, 1 to 100.

        Raises:
            UsageError: If there is no such key, or the number is out of its range.
        """
        if not 1 <= neighbors <= 100:
            raise UsageError(f"`neighbors` is {neighbors}, expected 1 to 100.")
        decided(self.run)
        return explained(self.run, str(key), count=neighbors)

    @flat
    def decide(self, *, labels: str | PathLike[str] | None = None, decide: Decide = Decide()) -> CleanRun:
        """Decide anew from stored scores, with another rule or with labels, then report; touches no image.

        What is not given has the default shown here.

        Args:
            labels: File of pairs that a person judged: csv, tsv or jsonl with key and label.

        Raises:
            UsageError: If the run is not scored, or an argument is out of its range.
        """
        labels = None if labels is None else str(labels)
        with at_work(self.folder, "decide"):
            plan = dataclasses.replace(stored_plan(self.run), decide=decide, labels=labels, recaption="none",
                                       recaption_options=None)  # fmt: skip
            decide_stage(plan, self.run)
            report_stage(self.run)
        return self

    @flat
    def score(
        self, *, score: Score = Score(), duplicates: OwnDuplicates = Duplicates(),
        image_limits: ImageLimits = ImageLimits(), text_limits: TextLimits = TextLimits(),
    ) -> CleanRun:  # fmt: skip
        """Score an embedded set anew, for example with other signals, then decide and report.

        What is not given has the default shown here. The rule stays the one of the run.

        Raises:
            UsageError: If the run is not embedded, or an argument is out of its range.
        """
        with at_work(self.folder, "score"):
            plan = dataclasses.replace(
                stored_plan(self.run), score=score, duplicates=duplicates, image_limits=image_limits,
                text_limits=text_limits, recaption="none", recaption_options=None,
            )  # fmt: skip
            score_stage(plan, self.run)
            decide_stage(plan, self.run)
            report_stage(self.run)
        return self

    @flat
    def export(
        self, output_format: Formats = "webdataset", output_path: str | PathLike[str] | None = None, *,
        choice: Annotated[Export, Without("output_format", "output_path")] = Export(),
    ) -> Path:  # fmt: skip
        """Write kept (or dropped) pairs as webdataset, parquet, hf, csv, jsonl, coco, uids, clip-retrieval or issues.

        Args:
            output_format: webdataset, parquet, hf (a saved dataset), csv (open_clip's, with tabs), jsonl, coco
                (captions), uids (DataComp's sorted npy), clip-retrieval (embeddings and metadata) or issues (cleanlab's
                table).
            output_path: Folder to write to; by default export/FORMAT in the run folder.

        Returns:
            The folder that was written.

        Raises:
            UsageError: If the run is not decided, or the folder holds other files.
        """
        with at_work(self.folder, "export"):
            decided(self.run)
            path = None if output_path is None else str(output_path)
            choice = dataclasses.replace(choice, output_format=output_format, output_path=path)
            facts = write_export(self.run, stored_reader(self.run), choice)
        tell_export(facts)
        return Path(facts["folder"])

    def evaluate(self, *, truth: str | PathLike[str] | None = None) -> dict[str, Any]:
        """Compare the ledger with known truth: AUROC, AUPRC, precision and recall, calibration, noise-rate error.

        Args:
            truth: csv, tsv, jsonl or parquet with key and truth_wrong; by default the column truth_wrong of the source,
                as `noisycorr inject` writes it.

        Returns:
            JSON; undefined numbers are None.

        Raises:
            UsageError: If no truth is known.
        """
        decided(self.run)
        return evaluate_run(self.run, None if truth is None else Path(truth))

    def write_report(self) -> Path:
        """Write report.html and report.json again."""
        with at_work(self.folder, "report"):
            report_stage(self.run)
        return self.report

    def _repr_html_(self) -> str:
        page = super()._repr_html_()
        if self.run.stage("decide") is None:
            return page
        cells = []
        for card in strip(self.run, SHOWN):
            told, verdict = html.escape((card.text or "")[:80]), html.escape(card.verdict)
            data = base64.b64encode(card.jpeg or b"").decode()
            style = "max-width:96px;max-height:96px"
            picture = f'<img src="data:image/jpeg;base64,{data}" style="{style}" alt="{told}"/>' if data else ""
            p = "" if card.p_clean is None else f" {card.p_clean:.2f}"
            cells.append(
                f'<figure style="display:inline-block;width:110px;margin:4px;vertical-align:top">'
                f'{picture}<figcaption style="font-size:11px">{told}<br/><b>{verdict}{p}</b></figcaption>'
                "</figure>"
            )
        return f"{page}<div>{''.join(cells)}</div>"


class PairDataset:
    """Kept pairs for a PyTorch `DataLoader`; any number of workers may read it.

    Args:
        rows: As `to_dataset` gives them.
        transform: From a PIL image to what is returned as image; None = the PIL image.
    """

    def __init__(self, rows: datasets.Dataset, transform: Callable[[Any], Any] | None = None) -> None:
        self.rows, self.transform = rows, transform

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, row: int) -> dict[str, Any]:
        """Image, text, key and sample_weight of a pair."""
        item: Mapping[str, Any] = self.rows[int(row)]
        image = item["image"]
        weight = item.get("sample_weight")
        return {"image": image if self.transform is None else self.transform(image), "text": item["text"],
                "key": item["key"], "sample_weight": 1.0 if weight is None else float(weight)}  # fmt: skip

    def weights(self) -> np.ndarray:
        """float64 (n,): how much each pair should count, >= 0."""
        if "sample_weight" not in self.rows.column_names:
            return np.ones(len(self))
        return np.array([1.0 if value is None else value for value in self.rows["sample_weight"]], np.float64)

    def sampler(self, *, seed: int = 0) -> torch.utils.data.WeightedRandomSampler:
        """Draws pairs with replacement, as often as their weight says.

        Args:
            seed: Of the draws.

        Raises:
            UsageError: If no pair has a weight above 0.
        """
        import torch

        weights = self.weights().tolist()
        if not any(weight > 0 for weight in weights):
            raise UsageError(f"of {len(weights)} pairs no pair has a weight above 0: choose other verdicts (`only`).")
        generator = torch.Generator().manual_seed(seed)
        return torch.utils.data.WeightedRandomSampler(weights, len(self), generator=generator)


def tell_export(facts: Mapping[str, Any]) -> None:
    """Say on one line what was exported."""
    others = {
        name: value for name, value in facts.items() if name.startswith(("without", "left_out", "keys", "images"))
    }
    listed = "".join(f", {value:,} {name.replace('_', ' ')}" for name, value in others.items() if value)
    shards = "1 shard" if facts["shards"] == 1 else f"{facts['shards']:,} shards"
    console.say(f"export: {facts['rows']:,} pairs in {shards}{listed}, in {facts['folder']}")
