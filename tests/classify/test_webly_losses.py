"""Losses, rules and banks of methods on labels, against slow loops: value and gradient."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from reference import labels_reference as slow
from torch.nn import functional

from noisycorr.classify.webly import losses as fast
from noisycorr.classify.webly.anchors import complete_through_images, text_classes, trusted_rows
from noisycorr.classify.webly.bank import CosineHead, Prototypes, Queue
from noisycorr.classify.webly.cleaning import collective_targets, mixed_score, remove_noise, remove_tag_noise
from noisycorr.classify.webly.methods.nested import accuracy_of_cuts, first_channels
from noisycorr.classify.webly.mixup import mix_rows


def numbers(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def unit(*shape: int, seed: int = 0) -> torch.Tensor:
    return functional.normalize(numbers(*shape, seed=seed), dim=-1)


def agree(one, two, *inputs: torch.Tensor) -> None:
    """Same values, and same gradients of a random combination of them."""
    inputs = tuple(x.clone().requires_grad_() for x in inputs)
    a, b = one(*inputs), two(*inputs)
    assert a.shape == b.shape
    torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)
    mixed = numbers(*a.shape, seed=99) if a.ndim else torch.tensor(1.0, dtype=torch.float64)
    for x, y in zip(*(torch.autograd.grad((v * mixed).sum(), inputs) for v in (a, b))):
        torch.testing.assert_close(x, y, rtol=1e-8, atol=1e-10)
        assert x.abs().sum() > 0


SOFT = torch.softmax(numbers(5, 4, seed=1), 1)


def test_losses_equal_their_equations():
    agree(lambda o: fast.soft_cross_entropy(o, SOFT), lambda o: slow.soft_cross_entropy(o, SOFT), numbers(5, 4))
    queue = unit(7, 3, seed=2)
    agree(lambda a, k: fast.queue_contrast(a, k, queue, temperature=0.2),
          lambda a, k: slow.queue_contrast(a, k, queue, 0.2), unit(5, 3), unit(5, 3, seed=1))  # fmt: skip
    memory = 0.8 * SOFT
    agree(lambda o: fast.early_learning(o, memory), lambda o: slow.early_learning(o, memory), numbers(5, 4))
    agree(fast.mean_prediction_gap, slow.mean_prediction_gap, numbers(5, 4))
    weight = torch.tensor([0.0, 0.3, 1.0, 0.5, 0.9], dtype=torch.float64)
    label = torch.eye(4, dtype=torch.float64)[[0, 1, 0, 2, 1]]
    agree(lambda a, b: fast.guided_contrast(a, b, label, weight, temperature=0.3),
          lambda a, b: slow.guided_contrast(a, b, label, weight, 0.3), unit(5, 3), unit(5, 3, seed=1))  # fmt: skip
    tags = torch.tensor([[1, 0, -1, 1], [0.3, -1, -1, 0], [1, 1, 0, 0]], dtype=torch.float64)
    positive = torch.tensor([2.0, 0.5, 1.0, 1.5], dtype=torch.float64)
    agree(lambda o: fast.masked_tag_loss(o, tags, positive), lambda o: slow.masked_tag_loss(o, tags, positive),
          numbers(3, 4))  # fmt: skip


def test_contrast_without_queue_is_zero():
    z = unit(4, 3)
    assert fast.queue_contrast(z, z, z[:0], temperature=0.1).abs().max() == 0


def test_masked_tags_have_no_gradient():
    logits = numbers(4, 5).requires_grad_()
    target = torch.tensor([[1.0, 0, -1, 1, -1]] * 3 + [[-1.0] * 5])
    fast.masked_tag_loss(logits, target.double(), torch.ones(5, dtype=torch.float64)).sum().backward()
    assert torch.equal(logits.grad == 0, target < 0)


def test_early_learning_raises_the_logit_that_is_believed():
    logits = numbers(1, 4).requires_grad_()
    fast.early_learning(logits, torch.tensor([[0.0, 0, 1.0, 0]], dtype=torch.float64)).sum().backward()
    assert logits.grad[0, 2] < 0 and (logits.grad[0, [0, 1, 3]] > 0).all()


def test_over_kept():
    values = numbers(6).requires_grad_()
    keep = torch.tensor([True, False, True, True, False, False])
    torch.testing.assert_close(fast.over_kept(values, keep).mean(), values[keep].mean())
    nobody = fast.over_kept(values, torch.zeros(6, dtype=torch.bool)).mean()
    nobody.backward()
    assert nobody == 0 and torch.equal(values.grad, torch.zeros(6, dtype=torch.float64))


CASES = [  # score, label, anchor -> keep, target
    ([0.075, 0.125, 0.725, 0.075], 0, False, True, 2),
    ([0.3, 0.3, 0.2, 0.2], 0, False, True, 0),
    ([0.1, 0.4, 0.3, 0.2], 0, False, False, 0),
    ([0.1, 0.4, 0.3, 0.2], 0, True, True, 0),
    ([0.075, 0.125, 0.725, 0.075], 0, True, True, 0),
    ([0.3, 0.05, 0.6, 0.05], 0, False, True, 2),  # a plausible label is changed, too
]


def test_noise_removal_worked_cases():
    score = torch.tensor([case[0] for case in CASES], dtype=torch.float64)
    label, anchor = torch.tensor([c[1] for c in CASES]), torch.tensor([c[2] for c in CASES])
    keep, target = remove_noise(score, label, anchor, threshold=0.6)
    assert keep.tolist() == [c[3] for c in CASES] and target.tolist() == [c[4] for c in CASES]
    for i, (row, y, trusted, *_) in enumerate(CASES):
        assert slow.remove_noise(row, y, trusted, 0.6) == (bool(keep[i]), int(target[i]))
    strict, changed = remove_noise(torch.tensor([[0.6, 0.4]]), torch.tensor([1]), torch.tensor([False]),
                                   threshold=0.6, strict=True)  # fmt: skip
    assert not bool(strict) and int(changed) == 1
    row, y, free = torch.tensor([[0.075, 0.125, 0.7, 0.1]]), torch.tensor([0]), torch.tensor([False])
    assert not remove_noise(row, y, free, threshold=0.8)[0], "neither sure of another class nor plausible"
    assert remove_noise(row, y, free, threshold=0.8, out_of_set=0.2)[0]


def test_a_label_changes_only_to_the_class_that_is_allowed():
    score = torch.tensor([[0.3, 0.7, 0.0]] * 4 + [[0.9, 0.1, 0.0], [0.5, 0.3, 0.2]])
    label, allowed = torch.tensor([0, 0, 0, 0, 0, 0]), torch.tensor([1, 2, -1, -1, -1, 1])
    anchor = torch.tensor([False, False, False, True, False, False])
    keep, target = remove_noise(score, label, anchor, threshold=0.6, allowed=allowed)
    assert keep.tolist() == [True, False, False, True, True, True], "neither class is believed where they disagree"
    assert target.tolist() == [1, 0, 0, 0, 0, 0]
    for i, (row, y, trusted) in enumerate(zip(score.tolist(), label.tolist(), anchor.tolist())):
        assert slow.remove_noise(row, y, trusted, 0.6, int(allowed[i])) == (bool(keep[i]), int(target[i]))


def test_mixed_score_is_a_distribution():
    s = mixed_score(numbers(3, 4), numbers(3, 4, seed=1), 0.3)
    torch.testing.assert_close(s.sum(1), torch.ones(3, dtype=torch.float64))
    torch.testing.assert_close(mixed_score(numbers(3, 4), numbers(3, 4, seed=1), 1.0), torch.softmax(numbers(3, 4), 1))


def test_tag_noise_removal():
    score = torch.tensor([[0.95, 0.05, 0.5, 0.1, 0.1, 0.5]], dtype=torch.float64)
    tag = torch.tensor([[0, 1, 1, 1, 1, 0]])
    anchor = torch.tensor([[0, 0, 0, 0, -1, 0]])
    got = remove_tag_noise(score, tag, anchor, threshold=0.9)
    assert got.tolist() == [[1, 0, 1, 0, 0, 0]], "set, removed, kept, removed, negative anchor, kept"
    released = remove_tag_noise(score, tag, anchor, threshold=0.9, faithful=True)
    assert released[0, 4] == 1, "as released a negative anchor keeps its tag"
    p, three = torch.tensor([[0.95, 0.02, 0.5, 0.1]], dtype=torch.float64), torch.tensor([[0, 1, 1, 1]])
    sure = remove_tag_noise(p, three, torch.tensor([[0, 1, 0, -1]]), threshold=0.9)
    assert sure.tolist() == [[1, 1, 1, 0]], "anchors keep what they say"
    unsure = remove_tag_noise(torch.tensor([[0.12, 0.5]], dtype=torch.float64), torch.tensor([[1, 0]]),
                              torch.zeros(1, 2, dtype=torch.int64), threshold=0.9)  # fmt: skip
    assert unsure.tolist() == [[-1, 0]]


@pytest.mark.parametrize("linear", [False, True])
def test_collective_targets(linear: bool):
    a, m, q = unit(4, 3), unit(6, 3, seed=1), torch.softmax(numbers(6, 5, seed=2), 1)
    own = torch.zeros(4, 6, dtype=torch.bool)
    own[1, 2] = True
    got = collective_targets(a, m, q, own, temperature=0.2, linear=linear)
    torch.testing.assert_close(got, slow.collective(a, m, q, own, 0.2, linear), rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(got.sum(1), torch.ones(4, dtype=torch.float64), rtol=1e-5, atol=1e-6)


def test_collective_targets_of_two_keys():
    a = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
    m = torch.tensor([[0.8, 0.6], [0.2, 0.96**0.5]], dtype=torch.float64)
    q = torch.tensor([[0.9, 0.1], [0.3, 0.7]], dtype=torch.float64)
    got = collective_targets(a, m, q, torch.zeros(1, 2, dtype=torch.bool), linear=True)
    torch.testing.assert_close(got, 0.8 * q[:1] + 0.2 * q[1:], rtol=1e-5, atol=1e-6)
    nobody = collective_targets(a, m, q, torch.ones(1, 2, dtype=torch.bool))
    assert torch.equal(nobody, torch.zeros(1, 2, dtype=torch.float64))


def test_prototypes_follow_in_order_and_stay_unit():
    bank = Prototypes(3, 4).double()
    bank.rows.copy_(unit(3, 4, seed=3))
    z, label = unit(8, 4), torch.tensor([0, 1, 0, 0, 1, 2, 0, 1])
    keep = torch.tensor([1, 1, 1, 0, 1, 0, 1, 1], dtype=torch.bool)
    wanted = slow.move(bank.rows, z, label, keep, 0.7)
    bank.move(z, label, keep, 0.7)
    torch.testing.assert_close(bank.rows, wanted)
    torch.testing.assert_close(bank.rows.norm(dim=1), torch.ones(3, dtype=torch.float64))


def test_prototypes_of_tags():
    bank, z = Prototypes(2, 2, 3).double(), unit(4, 2, 3)
    tags = torch.tensor([[1, 0], [1, -1], [0, 1], [-1, -1]])
    bank.collect(z, tags, tags >= 0)
    bank.begin()
    torch.testing.assert_close(bank.rows[0, 1], functional.normalize(z[0, 0] + z[1, 0], dim=0))
    torch.testing.assert_close(bank.rows[1, 0], z[0, 1])
    before = bank.rows.clone()
    bank.move(z, tags, tags >= 0, 0.5)
    torch.testing.assert_close(bank.rows[1, 1], functional.normalize(before[1, 1] + z[2, 1], dim=0))
    assert bank.logits(z, 0.1).shape == (4, 2, 2)


def test_prototype_of_a_class_without_anchors_is_the_mean_of_all():
    bank, z = Prototypes(2, 3).double(), unit(4, 3)
    bank.collect(z, torch.tensor([0, 0, 1, 1]), torch.tensor([True, False, False, False]))
    bank.begin()
    torch.testing.assert_close(bank.rows[0], z[0])
    torch.testing.assert_close(bank.rows[1], functional.normalize(z[2] + z[3], dim=0))


def test_queue_wraps_round():
    queue, keys = Queue(5, 2).double(), unit(9, 2)
    queue.push(keys[:3], torch.arange(3))
    assert len(queue.read()[0]) == 3
    queue.push(keys[3:7], torch.arange(3, 7))
    got, rows = queue.read()
    assert sorted(rows.tolist()) == [2, 3, 4, 5, 6]
    torch.testing.assert_close(got, keys[rows])
    queue.push(keys, torch.arange(9))
    assert sorted(queue.read()[1].tolist()) == [4, 5, 6, 7, 8]


def test_cosine_head_and_the_released_one():
    z, torch_seed = unit(3, 4), 0
    torch.manual_seed(torch_seed)
    head = CosineHead(4, 5).double()
    assert head(z).abs().max() <= 10 + 1e-9
    head.faithful = True
    torch.testing.assert_close(head(z), z @ head.weight.T)


def test_mixup_mixes_labels_as_features():
    torch.manual_seed(0)
    target = torch.eye(6, dtype=torch.float64)
    mixed, soft = mix_rows(target.clone(), target, 0.8)
    torch.testing.assert_close(mixed, soft)
    assert not torch.equal(mixed, target)
    near, _ = mix_rows(target, target, 0.8, nearer=True)
    assert (near.diagonal() >= 0.5).all()


def test_cuts_of_nested_dropout():
    features, weight = numbers(20, 6), numbers(3, 6, seed=1)
    label = (features[:, :2] @ weight[:, :2].T).argmax(1)
    found = accuracy_of_cuts(features, weight, label)
    assert found[2] == 1.0 and set(found) == {1, 2, 3, 4, 5, 6}
    for k, value in found.items():
        guess = (first_channels(features, k) @ weight.T).argmax(1)
        assert value == pytest.approx(float((guess == label).double().mean()))


def test_completed_texts_equal_the_dense_definition():
    rng = np.random.default_rng(0)
    image, text, has = rng.normal(size=(20, 6)), rng.normal(size=(20, 5)), np.arange(20) % 3 > 0
    got = complete_through_images(image, text, has, k=4)
    np.testing.assert_allclose(got, slow.complete(image, text, has, 4, 1.0), atol=1e-5)
    none = complete_through_images(image, text, np.zeros(20, bool))
    assert not none.any()


def test_trusted_rows_are_few_of_a_class():
    score = np.array([0.9, 0.1, 0.5, np.nan, 0.3, 0.2, 0.8, 0.7])
    label = np.array([0, 0, 0, 0, 1, 1, 1, 2])
    assert trusted_rows(score, label, 2).tolist() == [1, 0, 0, 0, 0, 0, 1, 1]
    wide = np.arange(20.0)
    assert np.flatnonzero(trusted_rows(wide, np.zeros(20, int), 4)).tolist() == [16, 17, 18, 19]


def test_a_text_names_a_class_if_it_matches_as_well_as_those_of_trusted_rows():
    match = np.array(
        [[0.9, 0.1, 0.2], [0.3, 0.8, 0.1], [0.5, 0.4, 0.1], [0.2, 0.7, 0.1], [0.2, 0.85, 0.1], [0.1, 0.2, 0.9]]
    )
    match = np.vstack([match, np.full(3, np.nan)])
    label, anchors = np.array([0, 1, 0, 0, 0, 0, 1]), np.array([1, 1, 0, 0, 0, 0, 0])
    assert text_classes(match, label, anchors).tolist() == [0, 1, -1, -1, 1, -1, -1], "class 2 has nobody trusted"
