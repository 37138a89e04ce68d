"""Whole steps of the methods on one batch, against loops written from their equations."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from reference import labels_reference as slow
from torch import Tensor
from torch.nn import functional

from noisycorr.classify.webly.contract import Batch, Method
from noisycorr.classify.webly.methods import load_method
from noisycorr.classify.webly.methods.pls import large_mode
from noisycorr.classify.webly.methods.pls_lsa import separate
from noisycorr.classify.webly.network import ClassNetwork, FeatureBackbone
from noisycorr.models.training.memory import Memory

B, D, C, P = 7, 5, 4, 3


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def unit(*shape: int, seed: int = 0) -> Tensor:
    return functional.normalize(numbers(*shape, seed=seed), dim=-1)


def a_batch(method: Method, *, epoch: int = 5, tags: bool = False) -> tuple[Batch, Memory]:
    """Seven samples, four classes, everything in double precision; epoch 5 of 10."""
    torch.manual_seed(0)
    network = ClassNetwork(FeatureBackbone(D), C, lambda dim: method.parts(dim, C, P, 6), slow=method.slow).double()
    for parameter in network.parameters():
        parameter.data += 0.3 * torch.randn_like(parameter)
    rows = torch.tensor([4, 0, 7, 3, 9, 1, 2])
    label = torch.tensor([0, 1, 2, 3, 0, 1, 0])
    anchors = torch.tensor([1, 0, 0, 0, 0, 0, 0])
    if tags:
        label = torch.tensor([[1, 0, 0, 1], [0, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0]] + [[0, 1, 0, 1]] * 3)
        anchors = torch.zeros(B, C, dtype=torch.int64)
        anchors[0, 0], anchors[2, 1] = 1, -1
    batch = Batch(features=numbers(B, D, seed=3).requires_grad_(), key=numbers(B, D, seed=4), rows=rows, labels=label,
                  anchors=anchors, weights=torch.ones(B, dtype=torch.float64), classes=C, network=network,
                  text_class=torch.tensor([-1, 0, 2, -1, 1, 2, 3]), epoch=epoch, epochs=10)  # fmt: skip
    columns = method.columns(12, C)
    return batch, Memory(12, **{k: v.double() if v.is_floating_point() else v for k, v in columns.items()})


def cross_entropy(logits: Tensor, label: int) -> Tensor:
    return -torch.log(slow.softmax(logits)[label])


def kept_mean(values: list[Tensor], keep: list[bool]) -> Tensor:
    some = [value for value, one in zip(values, keep) if one]
    return sum(some) / len(some) if some else torch.zeros((), dtype=torch.float64)


@pytest.mark.parametrize("faithful", [False, True])
def test_a_step_of_capro_is_its_equations(faithful: bool):
    tau, alpha, beta, decay = 0.1, 0.5, 0.1, 0.99
    method = load_method("capro", {"faithful": faithful, "threshold": 0.5, "queue": 20})
    batch, memory = a_batch(method)
    network = batch.network
    bank, queue, projector = network.heads["prototypes"], network.heads["queue"], network.heads["projector"]
    bank.rows.copy_(unit(C, P, seed=8))
    bank.ready.fill_(1.0)
    queue.push(unit(4, P, seed=9), torch.tensor([0, 5, 6, 8]))  # row 0 is in the batch, too
    prototypes, old = bank.rows.clone(), queue.read()[0]
    with torch.no_grad():
        likely = (
            torch.softmax(batch.logits, 1) + torch.softmax(projector(batch.features) @ bank.rows.T / tau, 1)
        ).argmax(1)
    says = torch.where(torch.arange(B) % 3 == 0, torch.full_like(likely, -1), likely)
    batch = dataclasses.replace(batch, text_class=says)
    got = method.learn(batch, memory, None, None)

    v, z, key = batch.features, projector(batch.features), projector(batch.key).detach()
    o = v @ network.classifier.weight.T
    head = network.heads["auxiliary"].weight
    a = z @ head.T if faithful else 10 * z @ functional.normalize(head, dim=1).T
    near = [[(z[i] @ prototypes[c]) / tau for c in range(C)] for i in range(B)]
    near_rows = [torch.stack(row) for row in near]
    keep, target = [], []
    for i in range(B):
        one, two = slow.softmax(o[i]), slow.softmax(near_rows[i])
        score = [(alpha * x + (1 - alpha) * y).item() for x, y in zip(one, two)]
        allowed = None if faithful else int(batch.text_class[i])
        stays, label = slow.remove_noise(score, int(batch.labels[i]), bool(batch.anchors[i]), 0.5, allowed)
        keep.append(stays)
        target.append(label)
    assert target != batch.labels.tolist() and (faithful or not all(keep)), "some change, and some are left out"
    moved = slow.move(prototypes, z.detach(), torch.tensor(target), torch.tensor(keep), decay)
    torch.testing.assert_close(bank.rows, moved)

    keys, owner = torch.cat([old, key]), [0, 5, 6, 8, *batch.rows.tolist()]
    torch.testing.assert_close(queue.read()[0], keys)
    with torch.no_grad():
        scale = (lambda x: x @ head.T) if faithful else (lambda x: 10 * x @ functional.normalize(head, dim=1).T)
        beliefs = torch.stack([alpha * torch.stack(slow.softmax(scale(k))) +
                               (1 - alpha) * torch.stack(slow.softmax(moved @ k / tau)) for k in keys])  # fmt: skip
        own = torch.tensor([[r == int(x) and not faithful for r in owner] for x in batch.rows])
        soft = slow.collective(z, keys, beliefs, own, 0.1, faithful)

    torch.testing.assert_close(got.per_pair.mean(), kept_mean([cross_entropy(o[i], target[i]) for i in range(B)], keep))
    wanted = {
        "prototypes": kept_mean([cross_entropy(near_rows[i], target[i]) for i in range(B)], keep),
        "instances": slow.queue_contrast(z, key, old, tau).mean(),  # the queue before the new keys came
        "auxiliary": kept_mean(
            [(1 - beta) * cross_entropy(a[i], target[i]) + beta * slow.soft_cross_entropy(a[[i]], soft[[i]])[0]
             for i in range(B)], keep),
        "reconstruction": kept_mean(
            [((network.heads["reconstructor"](z[i].detach()) - v[i].detach()) ** 2).mean() for i in range(B)], keep),
    }  # fmt: skip
    assert set(got.extras) == set(wanted)
    for name, value in wanted.items():
        torch.testing.assert_close(got.extras[name], value, rtol=1e-6, atol=1e-8, msg=name)


def test_before_the_prototypes_the_reconstruction_trains_the_projector_and_later_it_does_not():
    method = load_method("capro")
    for epoch, trains in ((0, True), (5, False)):
        batch, memory = a_batch(method, epoch=epoch)
        loss = method.learn(batch, memory, None, None)
        weight = batch.network.heads["projector"].body[0].weight
        found = torch.autograd.grad(loss.extras["reconstruction"], weight, allow_unused=True, retain_graph=True)[0]
        assert (found is not None and bool(found.abs().sum() > 0)) == trains
        assert ("prototypes" in loss.extras) == (epoch == 5)


def test_collective_bootstrapping_does_not_reach_the_classifier():
    method = load_method("capro", {"soft": 1.0})
    batch, memory = a_batch(method)
    loss = method.learn(batch, memory, None, None)
    assert torch.autograd.grad(loss.extras["auxiliary"], batch.network.classifier.weight, allow_unused=True)[0] is None


def test_the_last_stage_trains_the_classifier_alone_on_clean_labels():
    method = load_method("capro", {"mixup": 0.0})
    batch, memory = a_batch(method, epoch=9)
    clean = torch.tensor([1, -1, 2, 3, -1, 1, 0])
    memory.write("label", batch.rows, clean)
    got = method.learn(batch, memory, None, None)
    o = batch.features @ batch.network.classifier.weight.T
    wanted = kept_mean([cross_entropy(o[i], max(int(clean[i]), 0)) for i in range(B)], (clean >= 0).tolist())
    torch.testing.assert_close(got.per_pair.mean(), wanted)
    assert (
        torch.autograd.grad(got.per_pair.sum() + got.extras["auxiliary"], batch.features, allow_unused=True)[0] is None
    )
    method = load_method("capro", {"mixup": 0.8})
    assert "mixup" in method.learn(batch, memory, None, None).extras


@pytest.mark.parametrize("faithful", [False, True])
def test_a_step_of_tags(faithful: bool):
    method = load_method("capro_tags", {"faithful": faithful, "queue": 20})
    batch, memory = a_batch(method, tags=True)
    network = batch.network
    network.heads["prototypes"].rows.copy_(unit(C, 2, P, seed=8))
    network.heads["prototypes"].ready.fill_(1.0)
    network.heads["count"].add(batch.labels)
    before = network.heads["prototypes"].rows.clone()
    got = method.learn(batch, memory, None, None)

    z, head = network.heads["projector"](batch.features), network.heads["tags"]
    o = batch.features @ network.classifier.weight.T
    each = torch.stack([torch.stack([functional.normalize(head.turn[c] @ z[i], dim=0) for c in range(C)])
                        for i in range(B)])  # fmt: skip
    score, near = torch.zeros(B, C, dtype=torch.float64), torch.zeros(B, C, 2, dtype=torch.float64)
    for i in range(B):
        for c in range(C):
            near[i, c] = before[c] @ each[i, c] / 0.1
            score[i, c] = 0.5 / (1 + torch.exp(-o[i, c])) + 0.5 * slow.softmax(near[i, c])[1]
    count = batch.labels.sum(0) + 1.0
    positive = ((B - count).clamp(min=1) / count).sqrt()
    torch.testing.assert_close(network.heads["count"].weight(), positive, check_dtype=False)
    target = batch.labels.clone()
    for i in range(B):
        for c in range(C):
            s, y, trusted = float(score[i, c].detach()), int(batch.labels[i, c]), int(batch.anchors[i, c])
            clean = (s if y else 1 - s) >= 1 / C
            target[i, c] = 1 if s >= 0.9 else 0 if 1 - s >= 0.9 else y if clean else -1
            if trusted:
                target[i, c] = y if faithful or trusted > 0 else 0
    goal = target.double()
    wanted = slow.masked_tag_loss(o, goal, positive)
    torch.testing.assert_close(got.per_pair.mean(), kept_mean(list(wanted), (target >= 0).any(1).tolist()))
    pull = []
    for i in range(B):
        total, mass = torch.zeros((), dtype=torch.float64), 0.0
        for c in range(C):
            if target[i, c] >= 0:
                weight = float(positive.mean()) if target[i, c] else 1.0
                total = total + weight * cross_entropy(near[i, c], int(target[i, c]))
                mass += weight
        pull.append(total / max(mass, 1e-12))
    torch.testing.assert_close(got.extras["prototypes"], kept_mean(pull, (target >= 0).any(1).tolist()))


def test_the_released_soft_tags_only_raise():
    logits, soft = numbers(3, C).requires_grad_(), torch.full((3, C), 0.2, dtype=torch.float64)
    for faithful in (True, False):
        method = load_method("capro_tags", {"faithful": faithful})
        (slope,) = torch.autograd.grad(method.softly(logits, soft).sum(), logits)
        assert bool((slope <= 0).all()) == faithful, "as released every step raises the logits"
    wanted = -(soft * torch.log(torch.sigmoid(logits)) + 0.8 * torch.log(1 - torch.sigmoid(logits))).mean(1)
    torch.testing.assert_close(load_method("capro_tags").softly(logits, soft), wanted)


def test_a_step_of_mopro():
    method = load_method("mopro", {"threshold": 0.5})
    batch, memory = a_batch(method)
    network = batch.network
    network.heads["prototypes"].rows.copy_(unit(C, P, seed=8))
    before = network.heads["prototypes"].rows.clone()
    got = method.learn(batch, memory, None, None)
    z = network.heads["projector"](batch.features)
    o = batch.features @ network.classifier.weight.T
    keep, target = [], []
    for i in range(B):
        near = slow.softmax(torch.stack([z[i] @ before[c] / 0.1 for c in range(C)]))
        score = [(0.5 * x + 0.5 * y).item() for x, y in zip(slow.softmax(o[i]), near)]
        best, y = max(score), int(batch.labels[i])
        keep.append(best > 0.5 or score[y] > 1 / C)
        target.append(score.index(best) if best > 0.5 else y)
    wanted = kept_mean([cross_entropy(o[i], target[i]) for i in range(B)], keep)
    torch.testing.assert_close(got.per_pair.mean(), wanted)
    moved = slow.move(before, z.detach(), torch.tensor(target), torch.tensor(keep), 0.99)
    torch.testing.assert_close(network.heads["prototypes"].rows, moved)


def test_guesses_of_pls_are_sharpened_means_of_two_views():
    method = load_method("pls", {"sharpen": 2.0})
    batch, _ = a_batch(method)
    noisy = torch.tensor([True, False, True, False, False, False, False])
    got = method.targets(batch, noisy)
    weight = batch.network.classifier.weight
    for i in range(B):
        one, two = slow.softmax(batch.features[i] @ weight.T), slow.softmax(batch.key[i] @ weight.T)
        p = torch.stack([((x + y) / 2) ** 2 for x, y in zip(one, two)])
        torch.testing.assert_close(got[i], p / p.sum() if noisy[i] else batch.targets[i])


def test_large_losses_are_a_mode_and_lsa_separates_what_is_linear():
    rng = np.random.default_rng(0)
    loss = np.concatenate([rng.normal(0.2, 0.05, 300), rng.normal(2.0, 0.2, 100)])
    wrong = large_mode(loss)
    assert (wrong[:300] < 0.05).mean() > 0.98 and (wrong[300:] > 0.95).mean() > 0.98
    assert not large_mode(np.ones(5)).any()
    x = rng.normal(size=(400, 8))
    x[300:, 0] += 4
    taught = wrong > 0.5
    taught[rng.permutation(400)[:40]] ^= True  # a teacher that errs
    said = separate(x, taught, 1e3, 8)
    truth = np.arange(400) >= 300
    assert ((said > 0.5) == truth).mean() > (taught == truth).mean() + 0.01, "it errs elsewhere than its teacher"
