"""What pseudo-labels are chosen from: the mixture, its answers, residual prompts, and the guard that looks at it."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from scipy import special

from noisycorr.prompt.choice import Rounds, Steps
from noisycorr.prompt.loop import pick, probabilities, tune
from noisycorr.prompt.model import ResidualPrompt, snapshot
from noisycorr.prompt.posterior import Posterior
from noisycorr.prompt.summary import changes
from noisycorr.prompt.task import Task
from noisycorr.prompt.transclip import PULL, SHARE, alike, answer, iterate_transclip

C, D, E, N = 5, 24, 16, 240


def world(seed: int = 0, *, shots: int = 0, seen: int = 0):
    """Image features that cluster well, and a joint space that hardly does."""
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, C, N)
    image = rng.normal(size=(C, E))[truth] + 0.5 * rng.normal(size=(N, E))
    centre = rng.normal(size=(C, D))
    joint = torch.from_numpy(centre[truth] + 1.5 * rng.normal(size=(N, D)))
    joint = torch.nn.functional.normalize(joint, dim=1)
    classes = torch.nn.functional.normalize(torch.from_numpy(centre + 1.5 * rng.normal(size=(C, D))), dim=1)
    held, label = np.arange(N) >= 180, np.full(N, -1)
    for k in range(C):
        mine = np.flatnonzero((truth == k) & ~held)
        label[mine if k < seen else mine[:shots]] = k
    task = Task(names=[f"class {k}" for k in range(C)], keys=[str(row) for row in range(N)], usable=np.ones(N, bool),
                label=label, seen=np.arange(C) < seen, held=held)  # fmt: skip
    zero = (3 * joint @ classes.T).numpy()
    return task, image, joint, classes, zero, truth


def test_the_answer_for_one_more_image_is_the_equation():
    _, image, _, _, zero, _ = world()
    x = image / np.linalg.norm(image, axis=1, keepdims=True)
    start = special.log_softmax(zero, axis=1)
    found = iterate_transclip(x[:100], start[:100], alike(x[:100], 3), blocks=4)
    got = answer(found, x[:100], x[100:105], start[100:105], k=3)
    for row, query in enumerate(x[100:105]):
        near = np.argsort(-(x[:100] @ query), kind="stable")[:3]
        logit = start[100 + row].copy()
        for c in range(C):
            gauss = -0.5 * sum((query[d] - found.mean[c, d]) ** 2 / found.variance[d] for d in range(E))
            logit[c] += SHARE * (gauss + 2 * PULL * sum((x[j] @ query) * found.z[j, c] for j in near))
        assert np.allclose(got[row], special.softmax(logit), atol=1e-5)


def test_the_mixture_puts_pseudo_labels_right_and_test_images_change_nothing():
    gains, answers = [], []
    for seed in range(4):
        task, image, _, _, zero, truth = world(seed)
        p = special.softmax(zero, axis=1)
        found = Posterior(task, image, p, Rounds(), seed=0)
        mine = task.unlabelled
        after = found(p[mine].astype(np.float32))
        assert np.allclose(after.sum(1), 1, atol=1e-5)
        gains.append((after.argmax(1) == truth[mine]).mean() - (p[mine].argmax(1) == truth[mine]).mean())
        all_at_once = found.answers(p)
        test = np.flatnonzero(task.held)
        answers.append((all_at_once[test].argmax(1) == truth[test]).mean() - (p[test].argmax(1) == truth[test]).mean())
        fewer = dataclasses.replace(task, usable=task.usable & (np.arange(N) < 200))
        alone = Posterior(fewer, image, p, Rounds(), seed=0).answers(p)
        assert np.allclose(alone[:200], all_at_once[:200], atol=1e-6)
    assert np.mean(gains) > 0.1 and np.mean(answers) > 0.08, (gains, answers)


def test_given_labels_stay_and_seen_classes_are_named_by_none_but_the_test():
    task, image, _, _, zero, _ = world(shots=2)
    p = special.softmax(zero, axis=1)
    told = Posterior(task, image, p, Rounds(), seed=0).answers(p)
    assert (told[task.labelled].argmax(1) == task.label[task.labelled]).all()
    task, image, _, _, zero, truth = world(seen=2)
    p = special.softmax(zero, axis=1)
    found = Posterior(task, image, p, Rounds(), seed=0)
    chances = found(special.softmax(zero[task.unlabelled][:, task.open], axis=1))
    assert chances.shape == (len(task.unlabelled), C - 2)
    named = found.answers(p).argmax(1)
    assert not task.seen[named[task.unlabelled]].any() and task.seen[named[task.held]].any()
    assert truth.max() == C - 1


@pytest.mark.parametrize("kind", ["neighbors", "prompt"])
def test_other_posteriors(kind: str):
    task, image, _, _, zero, _ = world()
    p = special.softmax(zero, axis=1).astype(np.float32)
    found = Posterior(task, image, p, Rounds(posterior=kind), seed=0)
    assert found.answers(p) is p
    assert not found.mixes, "so the guard has nothing to compare with"
    same = np.array_equal(found(p[task.unlabelled]), p[task.unlabelled])
    assert same == (kind == "prompt")


def test_sizes_are_half_way_between_even_and_seen():
    task, _, _, _, _, _ = world()
    rng = np.random.default_rng(0)
    p = special.softmax(rng.normal(size=(180, C)) + np.array([3, 0, 0, 0, 0.0]), axis=1)
    share = 0.5 * p.mean(0) + 0.5 / C
    count = np.bincount(pick(p, 36, Rounds(), None, task).label, minlength=C) / 180
    assert np.abs(count - share).max() < 0.08
    even = np.bincount(pick(p, 36, Rounds(balance="uniform", selector="exclusive"), None, task).label, minlength=C)
    assert (even == 36).all()


def test_a_residual_starts_at_zero_shot_and_learns():
    task, image, joint, classes, zero, truth = world()
    model = ResidualPrompt(classes, joint, scale=3.0)
    assert torch.equal(model.classes(), torch.nn.functional.normalize(classes, dim=-1))
    posterior = Posterior(task, image, special.softmax(zero, axis=1), Rounds(), seed=0)
    state = tune(task, model, torch.from_numpy(zero), Rounds(), Steps(epochs=20, lr=0.02), posterior=posterior)
    assert set(snapshot(model)) == {"residual"} and len(state.history) == 4
    test = np.flatnonzero(task.held)
    after = probabilities(model, task, test, every=True).argmax(1)
    assert (after == truth[test]).mean() > (zero[test].argmax(1) == truth[test]).mean() + 0.05


@pytest.mark.parametrize("kind", ["mixture", "prompt", "neighbors"])
def test_the_guard_undoes_what_similar_images_contradict(kind):
    task, image, joint, classes, zero, truth = world()
    test = np.flatnonzero(task.held)
    before = (zero[test].argmax(1) == truth[test]).mean()
    for seed in range(6):
        wild = Steps(lr=20.0, epochs=3, optimizer="sgd", grad_clip_norm=0, loss="ce", seed=seed)
        kept = {}
        for guard in (True, False):
            model = ResidualPrompt(classes, joint, scale=3.0)
            rounds = Rounds(guard=guard, guard_agree=0.0, guard_fit=1.0, posterior=kind)
            posterior = Posterior(task, image, special.softmax(zero, axis=1), rounds, seed=0)
            rng = np.random.default_rng(seed)

            def shuffle(found, rng=rng):
                return dataclasses.replace(found, label=rng.permutation(found.label))

            state = tune(task, model, torch.from_numpy(zero), rounds, wild, posterior=posterior, corrupt=shuffle)
            after = probabilities(model, task, test, every=True).argmax(1)
            kept[guard] = (after == truth[test]).mean(), state.stopped
        assert kept[True] == (before, True) and kept[False][0] < before and not kept[False][1]


def test_nothing_is_built_on_a_hopeless_zero_shot_answer_unless_labels_are_given():
    for shots, guard in ((0, True), (0, False), (2, True)):
        task, image, joint, classes, zero, _ = world(shots=shots)
        flat = torch.from_numpy(0.02 * zero)
        rounds = Rounds(guard=guard, guard_agree=0.0)
        posterior = Posterior(task, image, special.softmax(flat.numpy(), axis=1), rounds, seed=0)
        model = ResidualPrompt(classes, joint, scale=3.0)
        state = tune(task, model, flat, rounds, Steps(epochs=2), posterior=posterior)
        assert state.zero_shot_failed == (shots == 0 and guard) and state.zero_shot_failed == (not state.history)
        assert state.zero_shot_failed == torch.equal(model.classes(), torch.nn.functional.normalize(classes, dim=-1))


def test_wrong_labels_that_similar_images_contradict_are_not_learned():
    task, image, joint, classes, zero, truth = world()
    test, wrong, after = np.flatnonzero(task.held), 0.6, {}
    for clean in ("none", "neighbors"):
        model = ResidualPrompt(classes, joint, scale=3.0)
        rounds = Rounds(guard=False)
        posterior = Posterior(task, image, special.softmax(zero, axis=1), rounds, seed=0)
        rng = np.random.default_rng(0)

        def spoil(found, rng=rng):
            chosen = rng.random(len(found)) < wrong
            return dataclasses.replace(found, label=np.where(chosen, (found.label + rng.integers(1, C, len(found))) % C,
                                                             found.label))  # fmt: skip

        steps = Steps(epochs=20, lr=0.02, clean=clean)
        state = tune(task, model, torch.from_numpy(zero), rounds, steps, posterior=posterior, corrupt=spoil)
        after[clean] = (probabilities(model, task, test, every=True).argmax(1) == truth[test]).mean()
        assert (state.history[-1]["learned_from"] < state.history[-1]["selected"]) == (clean == "neighbors")
    assert after["neighbors"] > after["none"] + 0.1


def test_changes_by_class_name_the_winners_and_the_losers():
    told = (("cat", 0.5, 0.5), ("dog", 0.25, 1.0), ("owl", 0.5, 0.25), ("elk", None, None))
    rows = [{"class": name, "images": 4, "accuracy_zero_shot": before, "accuracy_tuned": after}
            for name, before, after in told]  # fmt: skip
    assert changes(rows) == "dog 25% to 100% of 4, owl 50% to 25% of 4"
    assert changes(rows[:1]) == ""
