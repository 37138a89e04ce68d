"""metrics.jsonl holds each epoch once, whatever killed the training, and wherever it went on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from learning import SMALL, features

from noisycorr.clean.corpus import TRAIN, VALID, Corpus
from noisycorr.models.training.choice import Train
from noisycorr.retrieval import fit as retrieval
from noisycorr.retrieval.metrics_log import align_log
from noisycorr.retrieval.strategies import load_strategy
from noisycorr.runtime.folder import Run


def history(count: int) -> list[dict[str, Any]]:
    return [{"epoch": n, "loss": [1.0, 2.0], "pairs": [5, 5], "valid_rSum": 10.0 + n} for n in range(count)]


def epochs(run: Run) -> list[int]:
    lines = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    return [line["epoch"] for line in lines if line["event"] == "epoch"]


@pytest.mark.parametrize("done", [0, 1, 3])
def test_lines_of_epochs_that_come_again_go_and_missing_ones_come(tmp_path: Path, done: int):
    run = Run(tmp_path)
    run.log("other", value=1)
    for epoch in (0, 0, 2):
        run.log("epoch", epoch=epoch, loss=1.5, seconds_train=3.0)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"event": "epo')
    align_log(run, history(done))
    assert sorted(epochs(run)) == list(range(done))
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert lines[0]["event"] == "other"
    if done == 3:
        assert lines[-1] == {"event": "epoch", "epoch": 1, "loss": 1.5, "valid_rSum": 11.0}
        assert lines[1]["seconds_train"] == 3.0
    before = (tmp_path / "metrics.jsonl").read_bytes()
    align_log(run, history(done))
    assert (tmp_path / "metrics.jsonl").read_bytes() == before


def test_an_empty_folder_gets_no_log(tmp_path: Path):
    align_log(Run(tmp_path), [])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("moment", ["before the line", "inside the next epoch"])
def test_a_training_that_was_stopped_and_continued(tmp_path: Path, moment: str, monkeypatch: pytest.MonkeyPatch):
    image, text, _ = features(60)
    corpus = Corpus(keys=[str(n) for n in range(60)], image=image, text=text, usable=np.ones(60, bool),
                    kept=np.ones(60, bool), shown=np.arange(60), image_group=np.arange(60),
                    text_group=np.arange(60))  # fmt: skip
    split = np.where(np.arange(60) < 48, TRAIN, VALID)
    choice = Train(**{**SMALL, "epochs": 4, "save_every": 1e-9, "keep_checkpoints": 1})
    run, method = Run(tmp_path), ("plain", load_strategy("plain"))
    save, tell, seen = retrieval.save_checkpoint, retrieval._tell, []

    def stop_saving(learner: Any, folder: Path, **options: Any) -> Path:
        if moment != "before the line" and learner.cursor.epoch == 2 and learner.cursor.step == 2:
            raise KeyboardInterrupt
        return save(learner, folder, **options)

    def stop_telling(*words: Any) -> dict[str, float]:
        seen.append(words[1]["epoch"])
        if moment == "before the line" and len(seen) == 2:
            raise KeyboardInterrupt
        return tell(*words)

    monkeypatch.setattr(retrieval, "save_checkpoint", stop_saving)
    monkeypatch.setattr(retrieval, "_tell", stop_telling)
    with pytest.raises(KeyboardInterrupt):
        retrieval.train_run(run, corpus, split, method, choice)
    monkeypatch.undo()
    retrieval.train_run(run, corpus, split, method, choice)
    assert sorted(epochs(run)) == [0, 1, 2, 3]
    retrieval.train_run(run, corpus, split, method, Train(**{**vars(choice), "resume": "never"}))
    assert epochs(run) == [0, 1, 2, 3]
