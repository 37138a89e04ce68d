"""Train a retrieval model on a corpus into a run folder: split, train, select on validation, keep the best.

model.safetensors, model.json     the networks of the best epoch, and how to build them again
networks/                         instead of the former, fine-tuned encoders as open_clip or transformers reads them
trust.parquet                     key, split, and what the strategy thinks of each training pair in the end
report.json                       every epoch, without times; metrics.jsonl has those
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors.torch import load_file, save

from noisycorr.clean.corpus import TRAIN, VALID, Corpus
from noisycorr.models.encoders import load_saved
from noisycorr.models.training.checkpoint import checkpoints, load_latest, save_checkpoint, sweep
from noisycorr.models.training.choice import Train
from noisycorr.models.training.contract import Strategy, Trust
from noisycorr.models.training.heads import Network, RetrievalNetwork, StoredTowers, Towers, load_trained
from noisycorr.models.training.learner import Learner, TrainSet
from noisycorr.models.training.loop import Hooks, fit
from noisycorr.models.training.tune_choice import Regions, Tune
from noisycorr.models.training.tuned import TunedNetwork
from noisycorr.retrieval.metrics_log import align_log, epoch_values
from noisycorr.retrieval.regions import RegionNetwork
from noisycorr.retrieval.scoreboard import retrieval, short
from noisycorr.retrieval.strategies import describe
from noisycorr.runtime import console, dist
from noisycorr.runtime.errors import UsageError
from noisycorr.runtime.folder import Run, atomic_path, fingerprint, read_json, write_json
from noisycorr.runtime.version import __version__
from noisycorr.stats.detection import auroc

UNKNOWN = -1


@dataclass(frozen=True, kw_only=True)
class Validation:
    """Pairs to select on, which may be of another corpus.

    Attributes:
        towers: Their features.
        rows: int64 (m,) in them.
        shown: int64 (m,): equal for the same image.
    """

    towers: Towers
    rows: np.ndarray
    shown: np.ndarray


def make_towers(corpus: Corpus, choice: Train) -> StoredTowers:
    """The stored features in the precision of the training."""
    dtype = torch.float64 if choice.model_precision == "fp64" else torch.float32
    return StoredTowers(corpus.image, corpus.text, device=dist.device(), dtype=dtype)


def make_learner(corpus: Corpus, rows: np.ndarray, strategy: Strategy, choice: Train,
                 towers: Towers | None = None) -> Learner:  # fmt: skip
    """A learner for some rows of a corpus; heads on stored features are standardised by them.

    Args:
        corpus: The pairs.
        rows: int64 (n,) of them.
        strategy: The method.
        choice: How to train.
        towers: What networks encode; None = the stored features.

    Raises:
        UsageError: If there are fewer than 2 rows.
    """
    if len(rows) < 2:
        raise UsageError(f"there are {len(rows)} pairs to train on, expected at least 2 with image and text.")
    data = TrainSet(
        towers=towers or make_towers(corpus, choice),
        rows=rows,
        image_group=corpus.image_group[rows],
        text_group=corpus.text_group[rows],
        columns={name: values[rows] for name, values in corpus.columns.items()},
    )
    learner = Learner(data, strategy, choice, device=dist.device())
    for network in learner.networks:
        if isinstance(network, Network):
            network.standardise(corpus.image[rows], corpus.text[rows])
    return learner


def watch_truth(wrong: np.ndarray) -> Any:
    """A hook that says how well signals and trust tell wrong pairs; only for evaluation.

    Args:
        wrong: int8 (n,) of the training pairs: 1 wrong, 0 right, -1 unknown.
    """
    known = wrong != UNKNOWN

    def watch(number: int, signals: Mapping[str, np.ndarray], trust: Trust | None) -> dict[str, float | None]:
        values = {name: (-x if name.startswith("loss") else x) for name, x in signals.items()}
        if trust is not None:
            values["p_clean"] = trust.p_clean
        found = {f"auroc_{name}": auroc(x[known], wrong[known] == 1) for name, x in values.items()}
        return {name: None if math.isnan(x) else x for name, x in found.items()}

    return watch


def train_run(run: Run, corpus: Corpus, split: np.ndarray, strategy: tuple[str, Strategy], choice: Train,
              *, towers: Towers | None = None, validation: Validation | None = None,
              wrong: np.ndarray | None = None, trackers: Sequence[str] = ()) -> dict[str, Any]:  # fmt: skip
    """Train into a run folder, from its last checkpoint if it has one.

    Args:
        run: The folder.
        corpus: The pairs.
        split: int8 (n,) of `split_corpus`; rows of `TRAIN` are trained on, those of `VALID` validate.
        strategy: Its name and itself.
        choice: How to train.
        towers: What networks encode; None = the stored features.
        validation: An own set to select on.
        wrong: int8 (n,) truth, for the detection metrics of each epoch; the strategy does not see it.
        trackers: Names of trackers to tell the numbers of each epoch, as `dist.find_trackers` gives them.

    Returns:
        The report.

    Raises:
        UsageError: If the folder holds a training of other data, strategy or settings, or there are too few pairs.
    """
    rows = np.flatnonzero(split == TRAIN)
    inputs = training_inputs(corpus, split, strategy, choice, towers, validation)
    learner = make_learner(corpus, rows, strategy[1], choice, towers)
    if validation is None and (split == VALID).sum() >= 2:
        valid = np.flatnonzero(split == VALID)
        validation = Validation(towers=learner.data.towers, rows=valid, shown=corpus.shown[valid])
    folder = run.folder / "checkpoints"
    if dist.is_main():
        sweep(folder)
    dist.wait()
    if choice.resume == "latest" and (found := load_latest(learner, folder)) is not None:
        _say(f"train: goes on after epoch {learner.cursor.epoch}, step {learner.cursor.step} ({found.name})")
    if dist.is_main():
        align_log(run, learner.cursor.history)
    facts = {"pairs": len(rows), **{f"strategy.{k}": v for k, v in describe(*strategy).items()}, **choice.settings()}
    with (
        dist.tracking(trackers, run.folder / "trackers", _plain(facts)) as log,
        console.bar(label="train", total=None, hidden=not dist.is_main()) as bar,
    ):
        hooks = _hooks(run, learner, choice, validation, wrong, rows, log)
        fit(learner, dataclasses.replace(hooks, progress=bar.update))
    report = _finish(run, learner, corpus, rows, validation, wrong, strategy)
    if dist.is_main():
        run.finish("train", inputs, {"best_epoch": report["best_epoch"]})
    dist.wait()
    return report


def check_folder(run: Run, inputs: dict[str, Any], choice: Train) -> None:
    """Claim a folder for a training; refuse one that holds another, with what differs (law 3).

    Raises:
        UsageError: If it holds a training of other data, strategy or settings.
    """
    if choice.resume == "latest" and (differences := run.differences("train_started", inputs)):
        more = f" and {len(differences) - 2} more" if len(differences) > 2 else ""
        raise UsageError(
            f"{run.folder} holds a training of other data, strategy or settings ({'; '.join(differences[:2])}{more}): "
            "choose another `output_folder`, or add `overwrite` to start anew."
        )
    dist.wait()
    if dist.is_main():
        if choice.resume == "never":
            for old in checkpoints(run.folder / "checkpoints"):
                (old / "COMPLETE").unlink()
            (run.folder / "evaluation.json").unlink(missing_ok=True)
        run.finish("train_started", inputs)
    dist.wait()


def training_inputs(corpus: Corpus, split: np.ndarray, strategy: tuple[str, Strategy], choice: Train,
                    towers: Towers | None = None, validation: Validation | None = None) -> dict[str, Any]:  # fmt: skip
    """Everything that the result depends on."""
    rows = np.flatnonzero(split == TRAIN)
    return {
        "data": {**corpus.identity, "pairs": len(rows), "rows": fingerprint(rows.tolist())},
        "validation": None
        if validation is None
        else fingerprint([validation.rows.tolist(), validation.shown.tolist()]),
        "strategy": describe(*strategy),
        "settings": choice.settings(),
        "towers": dict(towers.identity) if towers is not None else {},
        "noisycorr": __version__,
    }


def _hooks(run: Run, learner: Learner, choice: Train, validation: Validation | None, wrong: np.ndarray | None,
           rows: np.ndarray, log: Callable[..., None]) -> Hooks:  # fmt: skip
    said: set[str] = set()

    def validate(it: Learner) -> dict[str, Any]:
        if validation is None:
            return {}
        found = retrieval(it.networks, validation.towers, validation.rows, validation.shown)
        line = short(found, "valid")
        return line | {"select": line["valid_rSum"]}

    def told(record: Mapping[str, Any], times: Mapping[str, float]) -> None:
        if dist.is_main():
            log(_tell(run, record, times, choice, said), step=record["epoch"] + 1)

    extra: dict[str, Any] = {}
    if wrong is not None and (wrong[rows] == 1).any():
        extra = {"watch": watch_truth(wrong[rows]), "watches": True}
    return Hooks(
        validate=validate,
        on_epoch=told,
        save=lambda it: save_checkpoint(it, run.folder / "checkpoints", keep=choice.keep_checkpoints),
        **extra,
    )


def _tell(run: Run, record: Mapping[str, Any], times: Mapping[str, float], choice: Train,
          said: set[str]) -> dict[str, float]:  # fmt: skip
    """Log an epoch and show its line; what must be known is said once. Returns its numbers, for trackers."""
    speed = times["pairs"] / max(times["train"], 1e-9)
    share = times["loading"] / max(times["train"] + times["judge"], 1e-9)
    values = epoch_values(record)
    values |= {"samples_per_second": round(speed, 1), "seconds_train": round(times["train"], 3),
               "seconds_judge": round(times["judge"], 3), "loading_share": round(share, 4)}  # fmt: skip
    run.log("epoch", **values)
    parts = [f"epoch {record['epoch'] + 1}/{choice.epochs}: loss {np.mean(record['loss']):.4f}"]
    parts += [f"valid rSum {record['valid_rSum']:.1f}"] if "valid_rSum" in record else []
    clean = [value for name, value in record.items() if name.startswith("clean_share")]
    parts += [f"clean {np.mean(clean):.1%}"] if clean else []
    found = [value for name, value in record.items() if name.startswith(("auroc_p_clean", "auroc_loss")) and value]
    parts += [f"AUROC {max(found):.3f}"] if found else []
    parts += [f"{speed:,.0f} samples/s, loading {share:.0%}"]
    console.say(", ".join(parts))
    notes = {value: value for name, value in record.items() if name.startswith("note")}
    if "fall_back" in record:
        notes["fall_back"] = (f"fewer than 2 pairs were trusted: epoch {record['epoch'] + 1} used all "
                              f"{record['fall_back']:,} pairs; report.html tells of later ones")  # fmt: skip
    for note in notes:
        if (kind := console.without_numbers(note)) not in said:
            console.warn(f"warning: {notes[note]}")
            said.add(kind)
    return {name: float(value) for name, value in values.items() if isinstance(value, (int, float)) and name != "epoch"}


def _finish(run: Run, learner: Learner, corpus: Corpus, rows: np.ndarray, validation: Validation | None,
            wrong: np.ndarray | None, strategy: tuple[str, Strategy]) -> dict[str, Any]:  # fmt: skip
    """Load the best weights, judge all pairs once more, and write model, trust and report."""
    learner.load_weights(learner.best)
    final: dict[str, Any] = {}
    trusts: list[Trust] = []

    def watch(number: int, signals: Mapping[str, np.ndarray], trust: Trust | None) -> None:
        if trust is not None:
            trusts.append(trust)
        if wrong is not None and (wrong[rows] == 1).any():
            final.update({f"{k}_{number}": v for k, v in watch_truth(wrong[rows])(number, signals, trust).items()})

    learner.judge(watch)
    best = learner.cursor.best
    report: dict[str, Any] = {
        "strategy": describe(*strategy),
        "settings": learner.choice.settings(),
        "pairs": len(rows),
        "networks": len(learner.networks),
        "best_epoch": None if best is None else int(best[1]),
        "history": learner.cursor.history,
        "detection": final,
    }
    if validation is not None:
        report["validation"] = retrieval(learner.networks, validation.towers, validation.rows, validation.shown)
    if dist.is_main():
        _store_model(run, learner)
        table: dict[str, Any] = {"key": [corpus.keys[row] for row in rows], "row": rows}
        if trusts:
            table["p_clean"] = np.mean([trust.p_clean for trust in trusts], axis=0).astype(np.float32)
        with atomic_path(run.path("trust.parquet")) as path:
            pq.write_table(pa.table(table), path, compression="zstd")
        write_json(run.path("report.json"), report)
    return report


def _store_model(run: Run, learner: Learner) -> None:
    """The networks, without the strategy's own modules; a fine-tuned encoder as its library reads it."""
    facts = {
        **learner.networks[0].facts(),
        "networks": len(learner.networks),
        "precision": learner.choice.model_precision,
    }
    for number, network in enumerate(learner.networks):
        if isinstance(network, TunedNetwork):
            network.export(run.path("networks", str(number)))
    if facts["kind"] != "tuned":
        body = {name: value.cpu().contiguous() for name, value in learner.weights().items() if ".heads." not in name}
        with atomic_path(run.path("model.safetensors")) as path:
            path.write_bytes(save(body))
    write_json(run.path("model.json"), facts)


def load_networks(folder: Path, device: torch.device) -> list[RetrievalNetwork]:
    """The networks of a finished training, without the strategy's own modules.

    Raises:
        UsageError: If there is no finished model.
    """
    if not (folder / "model.json").is_file():
        raise UsageError(f"{folder} holds no finished model: run the same `noisycorr train` command to its end.")
    facts = read_json(folder / "model.json")
    dtype = torch.float64 if facts["precision"] == "fp64" else torch.float32
    weights = load_file(folder / "model.safetensors") if facts["kind"] != "tuned" else {}
    networks = []
    for number in range(facts["networks"]):
        network, start = _build(folder, facts, number), f"{number}."
        network.to(dtype)
        if weights:
            load_trained(network, {k.removeprefix(start): v for k, v in weights.items() if k.startswith(start)})
        networks.append(network.to(device).eval())
    return networks


def _build(folder: Path, facts: Mapping[str, Any], number: int) -> RetrievalNetwork:
    if facts["kind"] == "tuned":
        return TunedNetwork(load_saved(facts["family"], folder / "networks" / str(number)), Tune(train_part="whole"))
    if facts["kind"] == "regions":
        widths = {name: facts[name] for name in ("count", "width", "vocabulary", "dim")}
        return RegionNetwork(Regions(**facts["regions"]), **widths)
    return Network(facts["image_dim"], facts["text_dim"], dim=facts["dim"], hidden=facts["hidden"])


def _plain(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Numbers and words as they are, everything else as words: what trackers take as settings."""
    return {k: v if isinstance(v, (bool, int, float, str)) else str(v) for k, v in facts.items()}


def _say(message: str) -> None:
    if dist.is_main():
        console.say(message)
