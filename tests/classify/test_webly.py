"""Methods that learn from wrong labels: they learn, they resume, and labels of anchors never change."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path

import numpy as np
import pytest
import torch
from webly_data import METHODS, OPTIONS, blobs, learner, some_anchors, tags_of

from noisycorr.classify.webly.choice import TrainClasses
from noisycorr.classify.webly.contract import ClassSet
from noisycorr.classify.webly.fitting import feature_learner, final_opinion, predict_features, probabilities, tune_on
from noisycorr.classify.webly.learner import ClassLearner
from noisycorr.classify.webly.methods import find_method, load_method
from noisycorr.classify.webly.network import PictureBackbone, StrongView
from noisycorr.models.encoders.backbones import load_backbone
from noisycorr.models.training.checkpoint import load_latest, save_checkpoint
from noisycorr.models.training.loop import Hooks, fit
from noisycorr.models.training.tune_choice import Tune
from noisycorr.runtime.errors import UsageError
from noisycorr.stats.class_metrics import changed_labels, tag_metrics

SINGLE = [name for name in METHODS if name != "capro_tags"]


class Stopped(Exception):
    """The training is killed here."""


@pytest.mark.parametrize("name", METHODS)
def test_a_continued_training_ends_as_one_left_alone(name: str, tmp_path: Path):
    alone = learner(name)
    fit(alone)
    first = learner(name)
    steps = {"left": 9}

    def progress(_: int) -> None:
        steps["left"] -= 1
        if not steps["left"]:
            save_checkpoint(first, tmp_path)
            raise Stopped

    with pytest.raises(Stopped):
        fit(first, Hooks(progress=progress))
    second = learner(name)
    assert load_latest(second, tmp_path) is not None and second.cursor.step > 0
    fit(second)
    wanted = alone.weights()
    assert all(torch.equal(value, wanted[key]) for key, value in second.weights().items())
    assert all(not a.differences(b) for a, b in zip(alone.memories, second.memories))
    one, two = final_opinion(alone), final_opinion(second)
    assert np.array_equal(one.p_clean, two.p_clean)
    assert (one.p_clean >= 0).all() and (one.p_clean <= 1).all()


@functools.cache
def train(name: str, *, wrong: float = 0.35, **options):
    x, truth, given = blobs(400, 8, wrong=wrong, width=16)
    method = load_method(name, {**OPTIONS.get(name, {}), **options})
    choice = TrainClasses(epochs=16, batch_size=50, lr=0.05, embed_dim=8, hidden=16, warmup=5, save_every=0.0)
    one = feature_learner(x, given, 8, method, choice, anchors=some_anchors(truth, given, 6))
    valid, right, _ = blobs(80, 8, width=16, seed=0)
    fit(one, Hooks(validate=lambda it: tune_on(one, valid, right)))
    return one, truth, given


@pytest.mark.parametrize("name", SINGLE)
def test_methods_learn_and_tell_wrong_labels(name: str):
    from noisycorr.stats.detection import auroc

    one, truth, given = train(name)
    x, label, _ = blobs(400, 8, width=16)
    p = probabilities(predict_features(one, x))
    np.testing.assert_allclose(p.sum(1), 1.0)
    assert (p.argmax(1) == label).mean() > (0.7 if name == "nested" else 0.9)  # features in no order suit it badly
    assert auroc(final_opinion(one).p_clean, given != truth) > 0.85


@pytest.mark.parametrize("name", ["capro", "mopro", "pls", "elr"])
def test_changed_labels_are_mostly_right(name: str):
    one, truth, given = train(name, **({"threshold": 0.5} if name == "mopro" else {}))
    found = changed_labels(given, final_opinion(one).label, truth)
    assert found["changed"] > 0.1 and found["precision"] > 0.8


@pytest.mark.parametrize("faithful", [False, True])
def test_capro_protects_its_anchors(faithful: bool):
    x, truth, given = blobs(200, 4, wrong=0.4)
    anchors = np.zeros(200, np.int8)
    anchors[np.flatnonzero(given != truth)[:10]] = 1  # wrong ones, which it would love to change
    choice = TrainClasses(epochs=10, batch_size=40, lr=0.05, embed_dim=6, hidden=8, save_every=0.0)
    method = load_method("capro", {"threshold": 0.3, "faithful": faithful})
    one = feature_learner(x, given, 4, method, choice, anchors=anchors)
    fit(one)
    label = final_opinion(one).label
    assert (label != given).sum() > 20
    assert np.array_equal(label[anchors > 0], given[anchors > 0]) != faithful, "released, the export protects nobody"


def test_capro_changes_labels_only_to_what_the_texts_say():
    x, truth, given = blobs(200, 4, wrong=0.4)
    says = np.where(np.arange(200) % 2 == 0, truth, -1)
    choice = TrainClasses(epochs=10, batch_size=40, lr=0.05, embed_dim=6, hidden=8, save_every=0.0)
    for confirm in (True, False):
        one = feature_learner(x, given, 4, load_method("capro", {"threshold": 0.3, "confirm": confirm}), choice,
                              anchors=some_anchors(truth, given), text_class=says)  # fmt: skip
        fit(one)
        label = final_opinion(one).label
        changed = (label >= 0) & (label != given)
        assert changed.sum() > 10 and ((label == says)[changed].all() == confirm)


def test_tags_are_learned_and_cleaned():
    x, truth, _ = blobs(300, 5, width=16)
    tags = tags_of(truth, 5)
    given = tags.copy()
    rng = np.random.default_rng(0)
    given[rng.random(tags.shape) < 0.15] ^= 1
    choice = TrainClasses(epochs=16, batch_size=50, lr=0.1, embed_dim=8, hidden=16, save_every=0.0)
    for name in ("plain", "capro_tags"):
        one = feature_learner(x, given, 5, load_method(name), choice)
        fit(one)
        p = probabilities(predict_features(one, x), tags=True)
        assert tag_metrics(p, tags > 0, 2)["map"] > 0.9
    label = final_opinion(one).label
    changed = (label >= 0) & (label != given)
    assert changed.sum() > 50 and (label[changed] == tags[changed]).mean() > 0.9


def test_a_closed_backbone_does_not_move():
    for share, moves in ((1.0, False), (0.5, True), (0.0, True)):
        one = learner("capro", unfreeze=share)
        before = one.networks[0].backbone.body[0].weight.clone()
        fit(one)
        assert torch.equal(before, one.networks[0].backbone.body[0].weight) != moves


def test_the_slow_copy_follows():
    one = learner("mopro")
    network = one.networks[0]
    wanted = 0.9 * network.slow["projector"].body[0].weight + 0.1 * (network.heads["projector"].body[0].weight + 1)
    with torch.no_grad():
        network.heads["projector"].body[0].weight += 1
    network.follow(0.9)
    torch.testing.assert_close(network.slow["projector"].body[0].weight, wanted)


def test_weights_of_samples_act():
    x, _, given = blobs(60, 3)
    choice = TrainClasses(epochs=1, batch_size=60, save_every=0.0)
    weights = np.where(given == 0, 5.0, 0.5)
    runs = []
    for some in (None, weights):
        one = feature_learner(x, given, 3, load_method("plain"), choice, weights=some)
        fit(one)
        runs.append(one.networks[0].classifier.weight.detach())
    assert not torch.allclose(*runs)


def test_what_does_not_fit_is_refused():
    x, _, given = blobs(20, 4)
    for name, label in (("capro_tags", given), ("mopro", tags_of(given, 4))):
        with pytest.raises(ValueError, match="learns from"):
            feature_learner(x, label, 4, load_method(name), TrainClasses())
    with pytest.raises(ValueError, match="reach from"):
        feature_learner(x, given + 1, 4, load_method("plain"), TrainClasses())
    with pytest.raises(ValueError, match="anchors have shape"):
        feature_learner(x, given, 4, load_method("capro"), TrainClasses(), anchors=np.zeros(3, np.int8))
    with pytest.raises(UsageError, match="no method 'cleverest'"):
        find_method("cleverest")
    with pytest.raises(UsageError, match="no option 'treshold'"):
        load_method("capro", {"treshold": 0.5})
    for wrong in ({"optimizer": "lion"}, {"unfreeze": 2.0}, {"view": 1.0}, {"layer": -1}, {"accum_freq": 2}):
        with pytest.raises(UsageError, match=f"`{next(iter(wrong))}`"):
            TrainClasses(**wrong)


@pytest.mark.parametrize(
    ("name", "options"),
    [("capro", {"threshold": 1.5}), ("capro", {"queue": 0}), ("pls", {"noisy_from": -1.0}), ("confident", {"folds": 1}),
     ("nested", {"forget": 1.0}), ("mopro", {"temperature": 0.0})],
)  # fmt: skip
def test_options_out_of_range_are_refused(name: str, options: dict[str, float]):
    with pytest.raises(UsageError, match=f"`method.{next(iter(options))}`"):
        load_method(name, options)


class PixelTowers:
    """Pictures at hand."""

    chunk, identity = 64, {}

    def __init__(self, pixels: torch.Tensor) -> None:
        self.pixels = pixels

    def image(self, rows: torch.Tensor, epoch: int | None = None) -> torch.Tensor:
        return self.pixels[rows]

    def expect(self, requests: object) -> None:
        """Nothing to load."""


def test_an_image_encoder_is_a_backbone():
    encoder = load_backbone("scratch:cnn")
    height, width = encoder.size
    label = np.arange(12) % 2
    pixels = torch.rand(12, 3, height, width, generator=torch.Generator().manual_seed(0)) * 0.2
    pixels[label == 1, 0] += 1.0
    data = ClassSet(towers=PixelTowers(pixels), rows=np.arange(12), image_group=np.arange(12), text_group=label,
                    labels=label, classes=2)  # fmt: skip
    choice = TrainClasses(epochs=3, batch_size=6, lr=0.01, embed_dim=4, hidden=6, save_every=0.0, unfreeze=0.3)
    one = ClassLearner(data, load_method("capro"), choice, device=torch.device("cpu"),
                       backbone=lambda: PictureBackbone(encoder, Tune(train_part="whole")))  # fmt: skip
    before = {name: value.clone() for name, value in one.networks[0].backbone.named_parameters()}
    fit(one)
    now = dict(one.networks[0].backbone.named_parameters())
    moved = [name for name, value in before.items() if not torch.equal(value, now[name])]
    assert moved and all(torch.isfinite(value).all() for value in one.weights().values())
    logits = one.predict(lambda rows: pixels[rows], 12, chunk=5)[0]
    assert logits.shape == (12, 2) and np.isfinite(logits).all() and len(np.unique(logits[:, 0])) > 10


def test_strong_view_of_pictures():
    view = StrongView(0.2)
    x = torch.rand(6, 3, 4, 5)
    torch.manual_seed(0)
    whole = view(x)
    assert not torch.equal(whole, x)
    torch.manual_seed(0)
    view.window = (6, slice(2, 4))
    torch.testing.assert_close(view(x[2:4]), whole[2:4])
    assert torch.equal(view.eval()(x), x)


def test_no_truth_gets_in():
    fields = {field.name for field in dataclasses.fields(ClassSet)}
    assert not any("truth" in name for name in fields)
    towers = learner("plain").data.towers
    with pytest.raises(ValueError, match="hidden truth"):
        ClassSet(towers=towers, rows=np.arange(3), image_group=np.arange(3), text_group=np.arange(3),
                 columns={"truth_label": np.zeros(3)}, labels=np.zeros(3, int), classes=2)  # fmt: skip


def test_all_dropped_batch_is_harmless():
    one = learner("capro", options={"out_of_set": 50.0, "threshold": 1.0})
    one.anchors.zero_()
    fit(one)
    assert all(torch.isfinite(value).all() for value in one.weights().values())
