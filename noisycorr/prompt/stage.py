"""`noisycorr prompt`: from images and class names to a tuned classifier, its pseudo-labels and a report."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from noisycorr.clean.sources import encoder_of
from noisycorr.models.encoders.frozen import check_width
from noisycorr.prompt.baselines import free_baselines
from noisycorr.prompt.build import build, scale_of, zero_shot
from noisycorr.prompt.choice import Steps
from noisycorr.prompt.fit import PICTURES
from noisycorr.prompt.inputs import (
    Images,
    Plan,
    Ready,
    came_embedded,
    make_pixels,
    make_task,
    read_images,
    read_prior,
    tuning_inputs,
)
from noisycorr.prompt.keep import Rounds, facts_of, save_prompt, write_classifier, write_pairs, write_tables
from noisycorr.prompt.loop import State, probabilities, tune
from noisycorr.prompt.measure import doubts
from noisycorr.prompt.posterior import Posterior
from noisycorr.prompt.summary import say, summary, tell, tell_end
from noisycorr.prompt.task import read_classes
from noisycorr.prompt.text import text_side
from noisycorr.runtime import dist
from noisycorr.runtime.errors import UsageError
from noisycorr.runtime.folder import Run, atomic_path, provenance, read_json, write_json
from noisycorr.runtime.lock import refuse_other_kind

MADE = ("prompt.safetensors", "classifier.npy", "pseudo_labels.csv", "ledger.parquet", "report.json", "report.html")
OWNED = ("rounds", "stages", "labelled", "pictures", "config.yaml", "provenance.json", "prompt.safetensors",
         "classifier.npy", "classes.txt", "pseudo_labels.parquet", "pseudo_labels.csv", "ledger.parquet",
         "report.json", "report.html", "metrics.jsonl")  # fmt: skip


def tune_prompt(plan: Plan, run: Run, *, overwrite: bool = False) -> dict[str, Any]:
    """Embed if need be, tune, write everything, report.

    Args:
        plan: All choices.
        run: The folder.
        overwrite: Delete what an earlier tuning left there.

    Returns:
        The value of report.json.

    Raises:
        UsageError: If classes, labels or images do not suffice, or the folder holds another tuning.
    """
    refuse_other_kind(run.folder, "prompt_started")
    names, descriptions = read_classes(Path(plan.classes))
    images = read_images(plan, run, overwrite=overwrite)
    if overwrite and dist.is_main():
        clear(run)
    dist.wait()
    inputs = tuning_inputs(plan, images, names, descriptions)
    if differences := run.differences("prompt_started", inputs):
        raise UsageError(
            f"{run.folder} holds a tuning of other data or settings ({'; '.join(differences[:2])}): choose another "
            "`output_folder`, or add `overwrite` to start anew."
        )
    if run.is_done("prompt", inputs) and all((run.folder / name).exists() for name in MADE):
        say("prompt: nothing changed, skipped")
        done: dict[str, Any] = read_json(run.folder / "report.json")
        return done
    ready = make_ready(plan, run, images, names, descriptions)  # refuses what is wrong before the folder is taken
    if dist.is_main():
        run.sweep()
        run.finish("prompt_started", inputs)
        write_config(run, plan)
    dist.wait()
    evidence = doubts(torch.softmax(ready.zero[ready.task.unlabelled], 1).cpu().numpy())
    if evidence["warning"]:
        say(f"warning: {evidence['warning']}")
    started = time.perf_counter()
    state = tune(ready.task, ready.model, ready.zero, plan.rounds, steps_of(plan), posterior=ready.posterior,
                 prior=ready.prior, store=Rounds(run, ready.zero), on_round=tell)  # fmt: skip
    seconds = time.perf_counter() - started
    return finish(plan, run, images, ready, state, evidence, inputs, seconds)


def make_ready(plan: Plan, run: Run, images: Images, names: list[str], descriptions: dict[str, list[str]]) -> Ready:
    """Encoder, task, classifier to start from, and prompt."""
    device = dist.device()
    encoder = encoder_of(images.runs[0], "a prompt needs an encoder", clip_model=plan.clip_model)
    check_width(encoder.name, "image", images.features, encoder.image_dim)
    side = text_side(encoder)
    joint = torch.from_numpy(encoder.joint_space(images.features, np.zeros((0, encoder.text_dim), np.float32))[0])
    joint = joint.to(device)
    task, truth = make_task(plan, images, names)
    zero = zero_shot(side, names, plan.context, descriptions, device)
    pixels = None
    if plan.context.in_image_tower and not came_embedded(images.runs[0]):
        pixels = make_pixels(run, images, encoder, device)
    model = build(encoder, side, names, plan.context, features=joint, zero=zero, pixels=pixels, seed=plan.steps.seed,
                  device=device)  # fmt: skip
    logits = scale_of(side, plan.context) * joint @ zero.T
    posterior = Posterior(task, images.features, torch.softmax(logits, 1).cpu().numpy(), plan.rounds,
                          seed=plan.steps.seed)  # fmt: skip
    prior = read_prior(Path(plan.class_prior), names) if plan.class_prior else None
    baselines = free_baselines(side, task, descriptions, joint, logits, scale=scale_of(side, plan.context),
                               image=images.features)  # fmt: skip
    return Ready(task=task, truth=truth, model=model, zero=logits, baselines=baselines, posterior=posterior,
                 prior=prior, side=side, joint=joint)  # fmt: skip


def finish(plan: Plan, run: Run, images: Images, ready: Ready, state: State, evidence: dict[str, Any],
           inputs: dict[str, Any], seconds: float) -> dict[str, Any]:  # fmt: skip
    """Write what was learned, and the report."""
    from noisycorr.prompt.report import write_prompt_report

    task, model = ready.task, ready.model
    every = np.flatnonzero(task.usable)
    p = np.zeros((len(task.keys), len(task.names)), np.float32)
    p[every] = probabilities(model, task, every, every=True)
    with torch.no_grad():
        vectors = model.classes().float().cpu().numpy()
    zero = ready.baselines["zero-shot"]
    report = summary(
        plan, ready, state, evidence, p, p if state.zero_shot_failed else ready.posterior.answers(p), seconds
    )
    if not dist.is_main():
        return report
    save_prompt(run.path("prompt.safetensors"), state.weights,
                facts_of(plan.context, task.names, ready.side.name, model.scale))  # fmt: skip
    write_classifier(run, vectors, task.names)
    table = write_tables(run, task, state, p, zero, images.hashes)
    row_of = {key: row for row, key in enumerate(task.keys)}
    rows = np.array([row_of[key] for key in table.column("key").to_pylist()], np.int64)
    texts = table.column("label").to_pylist()
    classes = {name: number for number, name in enumerate(task.names)}
    write_pairs(run, [task.keys[row] for row in rows], texts, ready.joint[rows].cpu().numpy(),
                vectors[np.array([classes[text] for text in texts], np.int64)])  # fmt: skip
    write_json(run.path("report.json"), report)
    write_json(run.path("provenance.json"), provenance() | {"encoder": ready.side.name})
    run.log("prompt", seconds=round(seconds, 3), pictures_encoded=model.pictures_encoded)
    write_prompt_report(run, report, images.runs[0], [row for row in rows if row < _rows(images)], table)
    run.finish("prompt", inputs, {"images": len(every), "classes": len(task.names)})
    tell_end(run, report, seconds)
    return report


def steps_of(plan: Plan) -> Steps:
    """Where pictures are encoded anew not all of them fit into one step."""
    if plan.context.prompt == "text" or plan.steps.batch_size:
        return plan.steps
    return dataclasses.replace(plan.steps, batch_size=PICTURES)


def write_config(run: Run, plan: Plan) -> None:
    """config.yaml: the flags that make this tuning."""
    body: dict[str, Any] = {"output_folder": str(run.folder), **dataclasses.asdict(plan.source)}
    for name in ("classes", "clip_model", "labels", "seen", "test_data", "class_prior"):
        body[name] = getattr(plan, name)
    for part in (plan.context, plan.rounds, plan.steps):
        body |= dataclasses.asdict(part)
    with atomic_path(run.path("config.yaml")) as path:
        path.write_text(yaml.safe_dump(body, sort_keys=True, allow_unicode=True), encoding="utf-8")


def clear(run: Run) -> None:
    """Delete what a tuning wrote; embeddings stay."""
    import shutil

    for name in OWNED:
        path = run.folder / name
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def _rows(images: Images) -> int:
    """Images of the first run."""
    return int((images.runs[0].stage("embed") or {})["facts"]["pairs"])
