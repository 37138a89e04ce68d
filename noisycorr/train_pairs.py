"""What a training works on: its plan, and the run folder that its pairs are in or are embedded into."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import yaml

from noisycorr import console, dist
from noisycorr.embed import Embed
from noisycorr.formats import Source
from noisycorr.learn.choice import Split, Train
from noisycorr.learn.contract import Strategy
from noisycorr.learn.tune_choice import Regions, Tune
from noisycorr.pairs import UsageError
from noisycorr.run import RUN_CONTENT, Run
from noisycorr.stages import Plan as CleanPlan
from noisycorr.stages import clean
from noisycorr.train_towers import embedding_model


@dataclass(frozen=True, kw_only=True)
class Plan:
    """All choices of a training.

    Attributes:
        source: Where the pairs come from; its path may be a run folder.
        clip_model: Encoder of a source that is not embedded yet.
        train: How to train.
        split: Which pairs do what.
        strategy: Name and method.
        tune: Which part of the encoder is trained.
        regions: Network on region features.
        evaluate: Open the test split after training.
        report_to: Trackers: none, all, or names with commas between them.
    """

    source: Source
    clip_model: str
    train: Train
    split: Split
    strategy: tuple[str, Strategy]
    tune: Tune = field(default_factory=Tune)
    regions: Regions = field(default_factory=Regions)
    evaluate: bool = True
    report_to: str = "none"


def say(message: str) -> None:
    """One line, from the main process."""
    if dist.is_main():
        console.say(message)


def run_of_pairs(source: Source, clip_model: str, run: Run, name: str, *, score: bool, overwrite: bool = False) -> Run:
    """The run folder that a source is, or the one that its pairs are embedded into, inside the model's folder.

    Args:
        source: What the user named.
        clip_model: Encoder of a source that is not embedded yet.
        run: Of the model.
        name: Of the folder inside it.
        score: Score and decide, too.
        overwrite: Embed anew if the folder holds other pairs.
    """
    path = source.path
    if (Path(path) / "stages" / "embed.json").is_file():
        return Run(path)
    inner = Run(run.folder / name)
    cleaning = CleanPlan(source=source, embed=Embed(clip_model=embedding_model(clip_model)))
    stages = ("embed", "score", "decide") if score else ("embed",)
    clean(cleaning, inner, stages=stages, overwrite=overwrite and _is_other(inner, cleaning))
    dist.wait()
    return inner


def text_encoder(source_run: Run, need: str) -> Callable[[list[str]], np.ndarray]:
    """The text side of the encoder that a run was embedded with: texts to features (k, e).

    Args:
        source_run: The run.
        need: What it is needed for, as the begin of a sentence.

    Raises:
        UsageError: If the embeddings came without an encoder, or it is another one by now.
    """
    from noisycorr.encoders import encode_texts, load_encoder

    stored = yaml.safe_load((source_run.folder / "config.yaml").read_text(encoding="utf-8"))
    embedded = (source_run.stage("embed") or {})["facts"]["encoder"]
    if embedded.startswith("precomputed"):
        raise UsageError(f"{need}, but the embeddings of {source_run.folder} came without an encoder.")
    encoder = load_encoder(stored["clip_model"], device=dist.device(), precision=stored["model_precision"])
    if encoder.name != embedded:
        raise UsageError(f"{source_run.folder} was embedded by {embedded}, but its encoder is now {encoder.name}.")

    return partial(encode_texts, encoder)


def _is_other(inner: Run, cleaning: CleanPlan) -> bool:
    """True if the folder holds the pairs of another source or encoder, as far as its config tells."""
    if not (inner.folder / "config.yaml").is_file():
        return False
    stored = yaml.safe_load((inner.folder / "config.yaml").read_text(encoding="utf-8"))
    wanted = dataclasses.asdict(cleaning.source) | {"clip_model": cleaning.embed.clip_model}
    return any(stored.get(name) != value for name, value in wanted.items())


def same_encoder(one: Run, two: Run, flag: str) -> None:
    """Refuse pairs that another encoder embedded.

    Raises:
        UsageError: With both names.
    """
    names = [(run.stage("embed") or {})["facts"]["encoder"] for run in (one, two)]
    if names[0] != names[1]:
        raise UsageError(f"{flag} was embedded by {names[1]}, but the training pairs by {names[0]}: use one encoder.")


def clear_training(run: Run, owner: str = "train_started") -> None:
    """Delete what a training left, but not the embeddings in its `data` folder.

    Raises:
        UsageError: If the folder holds something else.
    """
    if dist.is_main() and run.folder.exists():
        marker = run.folder / "stages" / f"{owner}.json"
        taken = [name for name in RUN_CONTENT if (run.folder / name).exists()]
        if taken and not marker.exists():
            raise UsageError(f"{run.folder} holds {taken[0]!r}, but no training: --overwrite deletes trainings only.")
        run.clear()
    dist.wait()
