"""What the networks of a training encode: stored features, or the pictures and texts of a run for a whole encoder."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from noisycorr.clean.corpus import Corpus
from noisycorr.clean.plan import picture_reader
from noisycorr.data.store import read_facts
from noisycorr.models.encoders import load_trainable
from noisycorr.models.encoders.trainable import SCRATCH, Trainable
from noisycorr.models.training.choice import Train
from noisycorr.models.training.heads import Towers
from noisycorr.models.training.image_store import open_image_store
from noisycorr.models.training.pictures import PictureTowers
from noisycorr.models.training.tune_choice import Tune
from noisycorr.retrieval.fit import make_towers
from noisycorr.runtime import dist
from noisycorr.runtime.errors import UsageError
from noisycorr.runtime.folder import Run


def find_trainable(clip_model: str, tune: Tune) -> Trainable | None:
    """The encoder to fine-tune, or None for heads on stored features.

    Raises:
        UsageError: If it cannot be trained in this way.
    """
    if tune.train_part == "heads":
        if clip_model.startswith(SCRATCH):
            raise UsageError(f"{clip_model} has nothing to train heads on: add `train_part` whole.")
        return None
    if clip_model.startswith(SCRATCH) and tune.train_part != "whole":
        raise UsageError(f"`train_part` {tune.train_part} needs a trained encoder; {clip_model} needs whole.")
    return load_trainable(clip_model)


def run_towers(run: Run, corpus: Corpus, train: Train, tune: Tune, trainable: Trainable | None, *,
               source_run: Run, name: str, rectified: Mapping[int, str] | None = None) -> Towers:  # fmt: skip
    """Towers of the pairs of a run.

    Args:
        run: Of the model; copies of pictures go there.
        corpus: The pairs.
        train: How to train.
        tune: Which part.
        trainable: The encoder to fine-tune, or None for stored features.
        source_run: Of the pairs.
        name: Of the folder for copies.
        rectified: Texts that stand in for given ones, by row.

    Raises:
        UsageError: If the source is not there any more, or changed.
    """
    if trainable is None:
        return make_towers(corpus, train)
    reader = picture_reader(source_run, f"`train_part` {tune.train_part}", "use heads")
    image_store = open_image_store(source_run, reader, run.folder / "pictures" / name)
    dtype = torch.float64 if train.model_precision == "fp64" else torch.float32
    texts = read_facts(source_run, ["text"]).column("text").to_pylist()
    for row, text in (rectified or {}).items():
        texts[row] = text
    return PictureTowers(trainable, tune, image_store, texts, seed=train.seed, device=dist.device(), dtype=dtype,
                         keys=corpus.keys)  # fmt: skip
