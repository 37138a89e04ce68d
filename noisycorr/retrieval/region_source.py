"""From a folder of published region features to a corpus and its towers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from noisycorr.clean.corpus import TEST, TRAIN, VALID, Corpus
from noisycorr.data.noise.recipes import from_noise_index
from noisycorr.data.noise.swaps import text_ids
from noisycorr.data.readers.regions import (
    DEV_IMAGES,
    RegionSplit,
    Vocabulary,
    count_vocabulary,
    find_tokens,
    folder_identity,
    is_region_folder,
    read_regions,
    read_vocabulary,
)
from noisycorr.models.training.choice import Train
from noisycorr.models.training.tune_choice import Regions, Tune
from noisycorr.retrieval.regions import RegionTowers
from noisycorr.runtime import dist
from noisycorr.runtime.errors import UsageError
from noisycorr.runtime.folder import fingerprint, fingerprint_file

PLACES = {"train": TRAIN, "dev": VALID, "test": TEST}


def check_regions(path: str, regions: Regions, train: Train, tune: Tune) -> None:
    """Refuse what does not go together.

    Raises:
        UsageError: If the source and the flags do not fit.
    """
    folder = is_region_folder(Path(path).expanduser())
    if folder and regions.region == "none":
        raise UsageError(f"{path} holds region features: add `region` sgr, saf or gpo.")
    if regions.region == "none":
        return
    if not folder:
        raise UsageError(f"`region` {regions.region} needs a folder with train_ims.npy, but {path} is none.")
    if tune.train_part != "heads":
        raise UsageError(f"`region` trains its network as a whole: leave out `train_part` {tune.train_part}.")
    if train.accum_freq > 1 and regions.region != "gpo":
        raise UsageError("`accum_freq` does not go with sgr and saf, whose batch norms need whole batches: use 1.")


def read_region_corpus(path: str, regions: Regions, train: Train,
                       words_of: str | None = None) -> tuple[Corpus, RegionTowers, np.ndarray]:  # fmt: skip
    """All pairs of train, dev and test; where there is a testall, as for COCO, that is the test.

    Args:
        path: The folder.
        regions: Which network, noise and vocabulary.
        train: How to train.
        words_of: Folder whose training captions give the vocabulary, if no file does; None = this one.

    Returns:
        The corpus, its towers, and int8 (n,) truth for evaluation: 1 where the noise file gave an image a wrong text,
        0 elsewhere, or -1 everywhere without a noise file.

    Raises:
        UsageError: If files are missing or do not fit.
    """
    folder = Path(path).expanduser()
    tokens = find_tokens(folder) if regions.text_tokens == "auto" else regions.text_tokens
    limits = {"dev": DEV_IMAGES} if tokens == "words" else {}  # NoW is used whole
    files = {name: "testall" if name == "test" and (folder / "testall_ims.npy").is_file() else name for name in PLACES}
    splits = {name: read_regions(folder, files[name], tokens, limit=limits.get(name)) for name in PLACES}
    source, wrong, first = [], [], 0
    for name, part in splits.items():
        own = np.arange(len(part.texts))
        moved = own
        if name == "train" and regions.noise_file is not None:
            moved = from_noise_index(Path(regions.noise_file).expanduser(), len(own))
        wrong.append((part.image_of[moved] != part.image_of).astype(np.int8))
        source.append(moved + first)
        first += len(own)
    row_of = np.concatenate(source)
    texts = [text for part in splits.values() for text in part.texts]
    vocabulary = _vocabulary(regions, folder, tokens, splits["train"], words_of)
    ids = [vocabulary.frame(row) for part in splits.values() for row in part.ids or ()] if tokens != "words" else [
        vocabulary.encode(text) for text in texts]  # fmt: skip
    place = np.concatenate([np.stack([np.full(len(part.texts), number), part.image_of], 1)
                            for number, part in enumerate(splits.values())])  # fmt: skip
    shown = np.unique(place, axis=0, return_inverse=True)[1].reshape(-1)
    n, empty = len(texts), np.zeros((len(texts), 0), np.float32)
    corpus = Corpus(
        keys=[f"{name}/{row:06d}" for name, part in splits.items() for row in range(len(part.texts))],
        image=empty, text=empty, usable=np.ones(n, bool), kept=np.ones(n, bool), shown=shown, image_group=shown,
        text_group=_groups([texts[row] for row in row_of]),
        given_split=np.concatenate([np.full(len(part.texts), PLACES[name], np.int8) for name, part in splits.items()]),
        identity=_identity(folder, tokens, regions),
    )  # fmt: skip
    if len({part.images.shape[1:] for part in splits.values()}) > 1:
        raise UsageError(f"{folder}: the splits have features of different shapes.")
    about = {
        name: value for name, value in vars(regions).items() if name not in ("noise_file", "vocab", "region_chunk")
    }
    towers = RegionTowers(
        [part.images for part in splits.values()], place, [ids[row] for row in row_of], vocabulary.size, regions,
        device=dist.device(), dtype=torch.float64 if train.model_precision == "fp64" else torch.float32,
        identity={**about, "vocabulary": fingerprint(vocabulary.number)},
    )  # fmt: skip
    truth = np.concatenate(wrong) if regions.noise_file is not None else np.full(n, -1, np.int8)
    return corpus, towers, truth


def _identity(folder: Path, tokens: str, regions: Regions) -> dict[str, object]:
    noise = fingerprint_file(Path(regions.noise_file).expanduser()) if regions.noise_file is not None else None
    return {"regions": folder_identity(folder, tokens), "noise": noise}


def _vocabulary(regions: Regions, folder: Path, tokens: str, train: RegionSplit, words_of: str | None) -> Vocabulary:
    """Of a file, or of the training captions of this or another folder."""
    if regions.vocab is not None:
        return read_vocabulary(Path(regions.vocab).expanduser())
    if words_of is not None and Path(words_of).expanduser().resolve() != folder.resolve():
        train = read_regions(Path(words_of).expanduser(), "train", tokens)
    return count_vocabulary(train.texts, train.ids)


def _groups(texts: list[str]) -> np.ndarray:
    """Equal for equal texts; a blank one is like nobody."""
    same = text_ids(texts)
    return np.where(same < 0, len(texts) + np.arange(len(texts)), same)
