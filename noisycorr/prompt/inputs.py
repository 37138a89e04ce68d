"""The images of `noisycorr prompt`: embedded if need be, with their few labels, and with those that only measure."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from noisycorr.clean.embed import Embed
from noisycorr.clean.pipeline import clean
from noisycorr.clean.plan import Plan as CleanPlan
from noisycorr.clean.plan import stored_reader
from noisycorr.data.readers import Source
from noisycorr.data.store import open_features, read_facts
from noisycorr.models.training.image_store import open_image_store
from noisycorr.models.training.pictures import Pictures, stacked
from noisycorr.prompt.choice import Context, Rounds, Steps
from noisycorr.prompt.model import Prompted
from noisycorr.prompt.posterior import Posterior
from noisycorr.prompt.task import UNKNOWN, Task, check_leak, read_labels, read_seen, tidy
from noisycorr.prompt.text import TextSide
from noisycorr.runtime import dist
from noisycorr.runtime.errors import UsageError
from noisycorr.runtime.flags import read_config
from noisycorr.runtime.folder import Run, fingerprint
from noisycorr.runtime.strict_yaml import load_yaml
from noisycorr.runtime.version import __version__

INNER = "data"  # folder inside that of the prompt, of images that were not embedded yet
KNOWN = 0.9  # of the texts are class names: then they are the truth to measure with


@dataclass(frozen=True, kw_only=True)
class Plan:
    """All choices of a tuning.

    Attributes:
        source: Where the images come from; its path may be a run folder.
        classes: File of class names.
        clip_model: Encoder of a source that is not embedded yet.
        labels: File of given labels, or None.
        seen: File of classes whose labels are all given, or None.
        test_data: Images to measure with, whose texts are class names, or None.
        class_prior: File of shares of the classes, or None.
        context: What is learned.
        rounds: Which pseudo-labels.
        steps: How.
    """

    source: Source
    classes: str
    clip_model: str = "embedded"
    labels: str | None = None
    seen: str | None = None
    test_data: str | None = None
    class_prior: str | None = None
    context: Context = field(default_factory=Context)
    rounds: Rounds = field(default_factory=Rounds)
    steps: Steps = field(default_factory=Steps)


@dataclass(frozen=True, kw_only=True)
class Images:
    """Images of one or two runs, one after the other.

    Attributes:
        runs: The runs.
        keys: n keys.
        hashes: Of the pictures, or None.
        texts: As they came; only to measure with.
        features: (n, e) as the encoder made them.
        is_test: bool (n,).
    """

    runs: list[Run]
    keys: list[str]
    hashes: list[str | None]
    texts: list[str | None]
    features: np.ndarray
    is_test: np.ndarray


def read_images(plan: Plan, run: Run, *, overwrite: bool = False) -> Images:
    """Embed what is not embedded yet, and read it.

    Raises:
        UsageError: If a test image is among the others, or two encoders were used.
    """
    runs = [embedded(plan, run, plan.source.path, INNER, overwrite)]
    if plan.test_data is not None:
        runs.append(embedded(plan, run, plan.test_data, "test", overwrite))
    tables = [read_facts(one, ["key", "text", "image_hash", "columns"]) for one in runs]
    features = [np.concatenate(open_features(one, "image")).astype(np.float32) for one in runs]
    encoders = [(one.stage("embed") or {})["facts"]["encoder"] for one in runs]
    if len(set(encoders)) > 1 or len({part.shape[1] for part in features}) > 1:
        raise UsageError(
            f"`test_data` was embedded by {encoders[1]}, but the images by {encoders[0]}: use one encoder."
        )
    held = [_held(table.column("columns").to_pylist()) for table in tables[:1]]
    held += [np.ones(len(table), bool) for table in tables[1:]]
    is_test = np.concatenate(held)
    keys, hashes, texts = ([value for table in tables for value in table.column(name).to_pylist()]
                           for name in ("key", "image_hash", "text"))  # fmt: skip
    inside, outside = np.flatnonzero(~is_test), np.flatnonzero(is_test)
    check_leak([keys[row] for row in inside], [hashes[row] for row in inside], [keys[row] for row in outside],
               [hashes[row] for row in outside])  # fmt: skip
    return Images(runs=runs, keys=keys, hashes=hashes, texts=texts, features=np.concatenate(features), is_test=is_test)


def embedded(plan: Plan, run: Run, path: str, name: str, overwrite: bool = False) -> Run:
    """The run folder that a path is, or the one that its images are embedded into; others only go if `overwrite`."""
    if (Path(path) / "stages" / "embed.json").is_file():
        if Path(path).resolve() == run.folder.resolve():
            raise UsageError(f"{path} is the run of the images: choose another `output_folder` for the prompt.")
        return Run(path)
    inner = Run(run.folder / name)
    source = dataclasses.replace(plan.source, path=path)
    cleaning = CleanPlan(source=source, embed=Embed(clip_model=plan.clip_model))
    try:
        clean(cleaning, inner, stages=("embed",))
    except UsageError:
        if not overwrite:
            raise
        clean(cleaning, inner, stages=("embed",), overwrite=True)
    dist.wait()
    return inner


def stored_images_run(run: Run) -> Run:
    """The run of the images that a finished tuning learned from.

    Raises:
        UsageError: If it is not where it was.
    """
    path = read_config(run.folder / "config.yaml").get("path")
    for folder in (Path(str(path)), run.folder / INNER):
        if (folder / "stages" / "embed.json").is_file():
            return Run(folder)
    raise UsageError(f"the run of the images is neither in {path} nor in {run.folder / INNER}: put it back.")


def came_embedded(run: Run) -> bool:
    """True if the source of a run brought embeddings, and no pictures."""
    return str((run.stage("embed") or {})["facts"]["encoder"]).startswith("precomputed")


def make_task(plan: Plan, images: Images, names: list[str]) -> tuple[Task, np.ndarray]:
    """The task, and classes to measure with: texts of the source that are class names, if nearly all are."""
    usable = np.asarray(images.features.any(1))
    number_of = {name: number for number, name in enumerate(names)}
    truth = np.array([number_of.get(tidy(text or ""), UNKNOWN) for text in images.texts], np.int64)
    known = truth >= 0
    for part in (~images.is_test, images.is_test):
        some = part & usable
        if some.any() and known[some].mean() < KNOWN:
            truth[part] = UNKNOWN
    label = np.full(len(images.keys), UNKNOWN, np.int64)
    if plan.labels:
        label = read_labels(Path(plan.labels), images.keys, names)
        label[images.is_test] = UNKNOWN
    seen = read_seen(Path(plan.seen), names) if plan.seen else np.zeros(len(names), bool)
    if lacking := [names[k] for k in np.flatnonzero(seen) if not (label == k).any()]:
        raise UsageError(f"`seen` names {lacking[0]!r}, but `labels` gives no image of it.")
    task = Task(names=names, keys=images.keys, usable=usable, label=label, seen=seen, held=images.is_test)
    task.check()
    return task, truth


def make_pixels(run: Run, images: Images, encoder: Any, device: torch.device) -> Any:
    """Preprocessed pictures by row, decoded when they are asked for."""
    parts: list[Pictures] = []
    for number, one in enumerate(images.runs):
        reader = stored_reader(one)
        image_store = open_image_store(one, reader, run.folder / "pictures" / str(number))
        parts.append(
            Pictures(image_store=image_store, preprocess=encoder.preprocess, size=(0, 0), aug_scale=1.0, seed=0)
        )
    border = len(parts[0].image_store)

    def pixels(rows: list[int]) -> torch.Tensor:
        found = [parts[int(row >= border)][(row - border if row >= border else row, None)] for row in rows]
        return stacked(found).to(device)

    return pixels


def read_prior(path: Path, names: list[str]) -> np.ndarray:
    """Share of each class from a JSON or YAML mapping of names to numbers >= 0.

    Raises:
        UsageError: If it is not such a mapping of all classes.
    """
    try:
        body = load_yaml(path.read_text(encoding="utf-8"))
        share_of = {tidy(str(name)): float(value) for name, value in body.items()}
    except (OSError, ValueError, AttributeError, TypeError, OverflowError) as error:
        raise UsageError(f"`class_prior` {path} is no mapping from class names to numbers.") from error
    if lacking := [name for name in names if name not in share_of]:
        raise UsageError(f"`class_prior` {path} lacks {lacking[0]!r}.")
    share = np.array([share_of[name] for name in names])
    if not np.isfinite(share).all() or (share < 0).any() or share.sum() <= 0:
        raise UsageError(f"`class_prior` {path} has numbers below 0, or nothing above it.")
    return share / share.sum()


def tuning_inputs(plan: Plan, images: Images, names: list[str], descriptions: dict[str, list[str]]) -> dict[str, Any]:
    """Everything that the result depends on."""
    files = {name: _content(getattr(plan, name)) for name in ("labels", "seen", "class_prior")}
    return {
        "images": [(one.stage("embed") or {})["fingerprint"] for one in images.runs],
        "classes": fingerprint([names, descriptions]), **files, "clip_model": plan.clip_model,
        "context": dataclasses.asdict(plan.context), "rounds": dataclasses.asdict(plan.rounds),
        "steps": dataclasses.asdict(plan.steps), "noisycorr": __version__,
    }  # fmt: skip


def _held(columns: list[str | None]) -> np.ndarray:
    """Test images, by the column `split` of the source."""
    words = [json.loads(text).get("split") if text and '"split"' in text else None for text in columns]
    return np.array([str(word).strip().lower() == "test" for word in words], bool)


def _content(path: str | None) -> str | None:
    """Fingerprint of a small file."""
    if path is None:
        return None
    if not Path(path).is_file():
        raise UsageError(f"{path} is not a file.")
    return fingerprint(Path(path).read_bytes().hex())


@dataclass(frozen=True, kw_only=True)
class Ready:
    """What a tuning works on.

    Attributes:
        task: Images and classes.
        truth: int64 (n,): classes to measure with, -1 = unknown.
        model: With the prompt to start from.
        zero: float32 (n, c): zero-shot logits.
        baselines: Predictions of classifiers that need no training: classes, int64 (n,), or probabilities (n, c).
        posterior: What labels are chosen from.
        prior: Share of each class, or None.
        side: The text tower.
        joint: (n, d) image vectors of unit length.
    """

    task: Task
    truth: np.ndarray
    model: Prompted
    zero: torch.Tensor
    baselines: dict[str, np.ndarray]
    posterior: Posterior
    prior: np.ndarray | None
    side: TextSide
    joint: torch.Tensor
