"""The stage between decide and report: new texts for pairs whose own does not fit.

It lays itself over the ledger. Whoever decides anew takes it back; the same command does it again, and a captioner is
not asked twice for the same picture.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from noisycorr.caption.captioner import stored
from noisycorr.caption.captioner.align import align_with, remember
from noisycorr.caption.captioner.best import write_best
from noisycorr.caption.images import check_reads, images_of
from noisycorr.caption.recaption.choice import Recaption
from noisycorr.caption.recaption.guards import disturb
from noisycorr.caption.recaption.ledger import recaption_run
from noisycorr.caption.recaption.repair import Encode, Joint
from noisycorr.clean.ledger import touched
from noisycorr.clean.pipeline import decide_stage, each_part
from noisycorr.clean.plan import Plan, write_config
from noisycorr.clean.score import joint_features, load_pairs
from noisycorr.clean.signals.view import PairEmbeddings, take
from noisycorr.clean.sources import encoder_of
from noisycorr.data.store import open_features
from noisycorr.models.encoders import DualEncoder, encode_texts
from noisycorr.runtime.errors import UsageError
from noisycorr.runtime.folder import Run, fingerprint
from noisycorr.runtime.signature import checked, nearest, parameters
from noisycorr.runtime.stage import require_stage, run_stage, tell

NONE, RETRIEVAL = "none", "retrieval"


def check_recaption(plan: Plan) -> Recaption:
    """The rule, before any work is done.

    Raises:
        UsageError: If an option is unknown or bad, or the folder of the captioner is none.
    """
    choice = named_recaption(plan.recaption, plan.recaption_options)
    if plan.recaption not in (NONE, RETRIEVAL):
        _check_folder(Path(plan.recaption))
    return choice


def _check_folder(folder: Path) -> None:
    if not folder.is_dir():
        raise UsageError(f"{folder} is no folder: give retrieval, or a folder of `noisycorr caption train`.")


def recaption_stage(plan: Plan, run: Run) -> None:
    """New texts into the ledger, as `plan.recaption` says.

    Raises:
        UsageError: If the run is not decided, or the captioner cannot be loaded.
    """
    choice = check_recaption(plan)
    if plan.recaption == NONE:
        return
    if touched(run) and run.stage("recaption") is None:  # interrupted: start from the ledger as it was decided
        decide_stage(dataclasses.replace(plan, recaption=NONE), run)
    decided = require_stage(run, "decide")["fingerprint"]
    inputs = {"decide": decided, "recaption": dataclasses.asdict(choice), "model": _identity(plan.recaption)}
    done = run.is_current("recaption", inputs, files := each_part(run, "ledger"))
    trained = None
    if not done and plan.recaption != RETRIEVAL:  # before anything is taken back
        trained = stored.load_captioner(folder := Path(plan.recaption))
        check_reads(trained, folder, run)
    if touched(run) and not done:
        decide_stage(dataclasses.replace(plan, recaption=NONE), run)
    run_stage(run, "recaption", inputs, lambda: _work(plan, run, choice, trained, inputs["model"]), files)
    write_config(run, plan)  # not before: what cannot be done is no part of the run
    (run.folder / "stages" / "recaption_started.json").unlink(missing_ok=True)
    tell((run.stage("recaption") or {})["facts"]["summary"])


def _work(plan: Plan, run: Run, choice: Recaption, trained: stored.Trained | None, model: str) -> dict[str, Any]:
    loaded = load_pairs(plan, run)
    embedded = require_stage(run, "embed")["facts"]
    encoder = None
    if not embedded["encoder"].startswith("precomputed"):
        encoder = encoder_of(run, "new texts are to be compared with given ones")
    encode = None if encoder is None else partial(encode_texts, encoder, batch_size=256)
    write = None
    if trained is not None:
        write = RowWriter(trained, run, fingerprint([model, choice.recaption_seed]), choice, encode)
    return recaption_run(choice, run, loaded, joint=_joint(plan, embedded, loaded.view, encoder), write=write,
                         encode=encode)  # fmt: skip


class RowWriter:
    """A captioner of `noisycorr caption train` that writes for rows of a run.

    Attributes:
        name: Its kind and the identity of its weights.
        level: The level of alignment that was found best in training; None without levels.
    """

    def __init__(self, trained: Any, run: Run, identity: str, choice: Recaption, encode: Encode | None) -> None:
        self.trained, self.choice, self.encode = trained, choice, encode
        self.image: Any = None
        if (design := getattr(trained, "design", None)) is not None and design.image_grid:
            self.image, _ = images_of(run, design, run.folder / "pictures" / "recaption")
        self.parts = open_features(run, "image")
        self.name = f"captioner:{identity}"
        self.level: int | None = trained.level

    def __call__(self, rows: np.ndarray) -> list[str]:
        """One text for each row."""
        return self.at_levels(rows)[0]

    def at_levels(self, rows: np.ndarray) -> tuple[list[str], list[int | None]]:
        """One text for each row, the best of several, and the level that it was written at; None without levels."""
        vectors = take(self.parts, rows)
        align = None if self.encode is None else align_with(self.trained.aligner, vectors, remember(self.encode))
        seed, names = self.choice.recaption_seed, rows.tolist()
        best = write_best(self.trained, self._images(rows), align, seed=seed, names=names)
        return best.written.texts, [level if level >= 0 else None for level in best.level.tolist()]

    def disturbed(self, rows: np.ndarray, turn: int) -> list[str]:
        """Texts for the pictures with noise on their features, or on their pixels; one each, the likeliest words."""
        image = self._images(rows)
        flat = disturb(image.reshape(len(image), -1), noise=self.choice.disturbance, seed=self.choice.recaption_seed,
                       turn=turn, names=rows.tolist())  # fmt: skip
        return self._plain(flat.reshape(image.shape))

    def undisturbed(self, rows: np.ndarray) -> list[str]:
        """What `disturbed` would write without noise: the best of several is another way of writing."""
        return self._plain(self._images(rows))

    def _plain(self, image: np.ndarray) -> list[str]:
        greedy = dataclasses.replace(self.trained.decode, search="greedy")
        return list(self.trained.write(image, decode=greedy).texts)

    def _images(self, rows: np.ndarray) -> np.ndarray:
        return take(self.parts, rows) if self.image is None else np.asarray(self.image[rows])


def named_recaption(name: str, options: Mapping[str, Any] | str | None) -> Recaption:
    """The rule with options from a mapping or its YAML, checked by the types of its fields.

    Raises:
        UsageError: If an option is unknown or of another type, or there are options but nothing to do.
    """
    values = yaml.safe_load(options) if isinstance(options, str) and options else options or {}
    if not isinstance(values, Mapping):
        raise UsageError(f"`recaption_options` is {options!r}, expected a YAML mapping such as '{{gain: 0.2}}'.")
    if values and name == NONE:
        raise UsageError("`recaption_options` are given, but `recaption` is none: give retrieval or a folder.")
    hints = {item.name: item.hint for item in parameters(Recaption)}
    if unknown := [str(key) for key in values if key not in hints]:
        raise UsageError(f"`recaption_options` has no {unknown[0]!r}{nearest(unknown[0], hints)}")
    try:
        return Recaption(**{key: checked(key, hints[key], value) for key, value in values.items()})
    except UsageError as error:
        raise UsageError(f"`recaption_options`: {error}") from error


def stored_options(choice: Recaption) -> str | None:
    """The fields of a rule that are not the defaults, as `recaption_options` takes them."""
    values = {name: value for name, value in dataclasses.asdict(choice).items() if value != getattr(Recaption(), name)}
    return json.dumps(values) if values else None


def _identity(model: str) -> str:
    """What a captioner is, for the fingerprint of the stage."""
    folder = Path(model)
    return model if model == RETRIEVAL or not folder.is_dir() else stored.captioner_identity(folder)


def _joint(plan: Plan, embedded: dict[str, Any], view: PairEmbeddings, encoder: DualEncoder | None) -> Joint | None:
    space = joint_features(plan, embedded, view)
    if space is None:
        return None
    if embedded["joint"] or encoder is None:
        return space[0], space[1], lambda text: text
    blank = np.zeros((1, view.image[0].shape[1]), np.float32)
    return space[0], space[1], lambda text: encoder.joint_space(blank, np.asarray(text, np.float32))[1]
