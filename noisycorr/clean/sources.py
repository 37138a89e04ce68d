"""One front door: whatever a source is, a folder of a run with its features, and the encoder that made them."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from noisycorr.clean.embed import Embed
from noisycorr.clean.pipeline import clean
from noisycorr.clean.plan import Plan, stored_plan
from noisycorr.data.readers import Reading, Source
from noisycorr.data.readers.objects import Objects, take_object
from noisycorr.data.readers.source import ObjectPath
from noisycorr.models.encoders import DualEncoder, encode_texts, load_encoder
from noisycorr.models.encoders.trainable import SCRATCH
from noisycorr.runtime import dist
from noisycorr.runtime.errors import UsageError
from noisycorr.runtime.folder import SOURCE, Run
from noisycorr.runtime.result import Result

DEFAULT_FOLDER = "noisycorr_out"
TAKEN = ("a path, a pattern or 'sample', a pandas DataFrame, an Arrow table, a Hugging Face dataset, or a list (or "
         "other iterable) of (image, text) or of dicts")  # fmt: skip


def run_of_pairs(
    source: Source, clip_model: str, run: Run, name: str, *, score: bool, overwrite: bool = False,
    model_precision: str = "fp32",
) -> Run:  # fmt: skip
    """The run folder that a source is, or the one that its pairs are embedded into, inside the model's folder.

    Args:
        source: What the user named.
        clip_model: Encoder of a source that is not embedded yet.
        run: Of the model.
        name: Of the folder inside it.
        score: Score and decide, too.
        overwrite: Embed anew if the folder holds other pairs.
        model_precision: Of that encoder: that of the pairs which these are compared with.
    """
    path = source.path
    if (Path(path) / "stages" / "embed.json").is_file():
        return Run(path)
    inner = Run(run.folder / name)
    embed = Embed(clip_model=embedding_model(clip_model), model_precision=model_precision)
    cleaning = Plan(source=source, embed=embed)
    stages = ("embed", "score", "decide") if score else ("embed",)
    clean(cleaning, inner, stages=stages, overwrite=overwrite and _is_other(inner, cleaning))
    dist.wait()
    return inner


def encoder_of(source_run: Run, need: str, *, clip_model: str | None = None) -> DualEncoder:
    """The encoder that a run was embedded with, in the precision that it was embedded in.

    Args:
        source_run: The run.
        need: What it is needed for, as the begin of a sentence.
        clip_model: What to load where the embeddings came without an encoder; None refuses such a run.

    Raises:
        UsageError: If the embeddings came without an encoder, or it is another one by now.
    """
    choice = stored_plan(source_run).embed
    embedded = (source_run.stage("embed") or {})["facts"]["encoder"]
    came = embedded.startswith("precomputed")
    if came and clip_model is None:
        raise UsageError(f"{need}, but the embeddings of {source_run.folder} came without an encoder.")
    spec = clip_model if came and clip_model is not None else choice.clip_model
    encoder = load_encoder(spec, device=dist.device(), precision=choice.model_precision)
    if not came and encoder.name != embedded:
        raise UsageError(f"{source_run.folder} was embedded by {embedded}, but its encoder is now {encoder.name}.")
    return encoder


def text_encoder(source_run: Run, need: str) -> Callable[[list[str]], np.ndarray]:
    """The text side of the encoder that a run was embedded with: texts to features (k, e).

    Args:
        source_run: The run.
        need: What it is needed for, as the begin of a sentence.

    Raises:
        UsageError: If the embeddings came without an encoder, or it is another one by now.
    """
    return partial(encode_texts, encoder_of(source_run, need))


def _is_other(inner: Run, cleaning: Plan) -> bool:
    """True if the folder holds the pairs of another source or encoder, as far as its config tells."""
    if not (inner.folder / "config.yaml").is_file():
        return False
    stored = yaml.safe_load((inner.folder / "config.yaml").read_text(encoding="utf-8"))
    embed = cleaning.embed
    wanted = dataclasses.asdict(cleaning.source)
    wanted |= {"clip_model": embed.clip_model, "model_precision": embed.model_precision}
    return any(stored.get(name) != value for name, value in wanted.items())


def same_encoder(one: Run, two: Run, flag: str) -> None:
    """Refuse pairs that another encoder embedded.

    Raises:
        UsageError: With both names.
    """
    names = [(run.stage("embed") or {})["facts"]["encoder"] for run in (one, two)]
    if names[0] != names[1]:
        raise UsageError(f"{flag} was embedded by {names[1]}, but the training pairs by {names[0]}: use one encoder.")


def embedding_model(clip_model: str) -> str:
    """The encoder that finds near-duplicates and scores pairs before training: one that knows something."""
    return "embedded" if clip_model.startswith(SCRATCH) else clip_model


def embedded_run(place: str, folder: Path, *, caption_col: str | None, clip_model: str) -> Run:
    """The run folder that a place is, or the one that its samples are embedded into."""
    if (Path(place) / "stages" / "embed.json").is_file():
        return Run(place)
    inner = Run(folder)
    source = Source(path=place, caption_col=caption_col)
    clean(Plan(source=source, embed=Embed(clip_model=clip_model)), inner, stages=("embed",))
    return inner


def precision_of(source_run: Run) -> str:
    """In which precision the encoder of a run worked: what is compared with its features must be made in the same."""
    return stored_plan(source_run).embed.model_precision


def encoder_identity(source_run: Run) -> str:
    """Name of the encoder of a run with its weights; of embeddings that came without one, that of their files.

    Two sets of such embeddings may be of different encoders although they have the same width.
    """
    stage = source_run.stage("embed") or {}
    name = str(stage["facts"]["encoder"])
    return f"{name}@{stage['inputs']['weights'][:12]}" if name.startswith("precomputed") else name


def folder_for(
    source: Any, output_folder: str | PathLike[str] | None, reading: Reading = Reading(), *, ending: str = ""
) -> str:
    """Where a job writes: what was named, else a folder of `noisycorr_out` that is called like the source.

    The name of an object ends in a digest of its content, so it is gone through here.

    Args:
        source: As for `path_of`.
        output_folder: What was named, or None.
        reading: How image and text are found in an object.
        ending: Of the name, so that two jobs on one source have two folders.

    Raises:
        UsageError: If the source is nothing that holds pairs.
    """
    if output_folder is not None:
        return str(output_folder)
    if (path := _path(source)) is None:
        given = _object(source, reading)
        name = f"{given.kind}-{given.survey(_spool(Path(DEFAULT_FOLDER)))[:8]}"
        _GIVEN[id(source)] = source, given
        return str(Path(DEFAULT_FOLDER) / f"{name}{ending}")
    name = Path(path.split("::")[0]).name.partition("{")[0]
    plain = "".join(char if char.isalnum() or char in "-_." else "_" for char in name).strip("._-")
    return str(Path(DEFAULT_FOLDER) / ((plain.removesuffix(".tar") or "run").lower() + ending))


def path_of(source: Any, run: Run, reading: Reading = Reading(), *, overwrite: bool = False) -> str:
    """The path of a source, which a reader opens; an object is written into the run folder first.

    Args:
        source: A path, a result (its folder), or an object that holds pairs.
        run: The folder.
        reading: How image and text are found in an object.
        overwrite: Write an object although the run was made of other data.

    Returns:
        The path. That of an object says from where its image paths start, which `Reading.at` passes on.

    Raises:
        UsageError: If it is nothing that holds pairs, or the folder holds a run of other data.
    """
    if (path := _path(source)) is not None:
        return path
    given = _GIVEN.pop(id(source), (source, None))[1] or _object(source, reading)
    folder = (run.folder / SOURCE).absolute()
    given.survey(_spool(folder))
    place = given.place(folder)
    if not overwrite and not given.is_written(folder) and (run.folder / "stages" / "embed_started.json").exists():
        config = run.folder / "config.yaml"  # not there if the run was killed when it began
        stored = yaml.safe_load(config.read_text(encoding="utf-8")) if config.is_file() else {}
        if stored.get("path", str(place)) != str(place):
            raise UsageError(f"{run.folder} holds embeddings of other data: choose another `output_folder`, or add "
                             "`overwrite` to start anew.")  # fmt: skip
    if dist.is_main():
        given.write(folder)
    dist.wait()
    found = ObjectPath(place)
    found.image_root = place.anchor if given.has_paths else None
    return found


_GIVEN: dict[int, tuple[Any, Objects]] = {}  # what `folder_for` has read, for `path_of`: some can be read once only


def _path(source: Any) -> str | None:
    """The path of what has one."""
    if isinstance(source, Result):
        return str(source.folder)
    return os.fspath(source) if isinstance(source, str | PathLike) else None


def _object(source: Any, reading: Reading) -> Objects:
    if (given := take_object(source, reading)) is None:
        raise UsageError(f"the source is a {type(source).__name__}, expected {TAKEN}.")
    return given


def _spool(folder: Path) -> Path | None:
    """Where rows wait that can be read once: in the process that writes them."""
    return folder if dist.is_main() else None
