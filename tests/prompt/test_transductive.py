"""Classifiers that train nothing equal slow loops, and do what they promise on data where that is known."""

from __future__ import annotations

import numpy as np
import pytest
from reference import transductive_reference as slow

from noisycorr.prompt.transclip import transclip
from noisycorr.prompt.zlap import zlap
from noisycorr.stats.transductive import balanced, class_features, linear_probe, neighbor_labels, zero_shot


def space(n: int = 30, d: int = 6, c: int = 4, spread: float = 0.5, seed: int = 0):
    """Images about class centres, and class texts that point away from them by a common error."""
    rng = np.random.default_rng(seed)
    centre = rng.normal(size=(c, d))
    label = np.arange(n) % c
    image = centre[label] + spread * rng.normal(size=(n, d))
    text = centre + 0.5 * rng.normal(size=(c, d))
    return image, text, label


def test_zero_shot_and_class_features():
    image, text, _ = space()
    assert np.allclose(zero_shot(3 * image, text / 2, scale=10), slow.zero_shot(image, text, 10), atol=1e-5)
    one = class_features([row[None] for row in text])
    assert np.allclose(one, slow.unit(text), atol=1e-6)
    many = class_features([np.stack([text[0], 5 * image[0]]), text[1:2]])
    expected = (slow.unit(text[:1]) + slow.unit(image[:1]))[0]
    assert np.allclose(many[0], expected / np.linalg.norm(expected), atol=1e-6)
    assert np.allclose(class_features([text[[0, 1, 2]]]), class_features([text[[2, 0, 1]]]), atol=1e-6)
    with pytest.raises(ValueError, match="class 1 has no text"):
        class_features([text[:1], text[:0]])
    with pytest.raises(ValueError, match="not of one space"):
        zero_shot(image, text[:, :3])


@pytest.mark.parametrize("keep", [1.0, 0.5])
def test_transclip_equals_the_loops(keep: float):
    image, text, _ = space(24, 5, 3)
    fast = transclip(image, text, scale=10, k=3, blocks=3, sweeps=2, keep=keep)
    assert np.allclose(fast, slow.transclip(image, text, 10, 3, 3, 2, keep), atol=1e-5)


def test_zlap_equals_the_loops_and_an_image_as_a_query_is_near_its_own_row():
    image, text, label = space(24, 5, 3)
    fast = zlap(image, text, k=3, power=2, alpha=0.4)
    assert np.allclose(fast, slow.zlap(image, text, 3, 2, 0.4), atol=1e-5)
    asked = zlap(image, text, k=3, power=2, alpha=0.4, queries=image[:6] + 1e-4)
    assert asked.shape == (6, 3) and (asked.argmax(1) == fast[:6].argmax(1)).mean() > 0.8
    # a class that no image comes near is reached by nobody
    far = np.concatenate([text, -image.mean(0, keepdims=True)])
    assert zlap(image, far, k=1).shape == (24, 4)
    with pytest.raises(ValueError, match="alpha"):
        zlap(image, text, alpha=1.0)
    assert label.max() == 2


def test_balanced_equals_the_loops():
    image, text, _ = space()
    chances = zero_shot(image, text, scale=3)
    prior = np.array([0.4, 0.3, 0.2, 0.1])
    fast = balanced(chances, prior=prior, rounds=200)
    assert np.allclose(fast, slow.balanced(chances, prior, 200), atol=1e-4)
    assert np.allclose(fast.sum(1), 1) and np.allclose(fast.sum(0), 30 * prior, atol=1e-2)
    even = balanced(chances)
    assert np.allclose(even.sum(0), 30 / 4, atol=0.1)
    assert np.isfinite(balanced(np.array([[1.0, 0.0], [1.0, 0.0]]))).all()
    with pytest.raises(ValueError, match="prior"):
        balanced(chances, prior=prior * 2)


def test_neighbor_labels_equal_the_loops():
    image, text, _ = space()
    chances = zero_shot(image, text, scale=5)
    fast = neighbor_labels(chances, image, k=4, sharp=7)
    assert np.allclose(fast, slow.neighbor_labels(chances, image, 4, 7), atol=1e-5)
    asked = neighbor_labels(chances, image, k=1, queries=2 * image)
    assert np.allclose(asked, chances, atol=1e-6)  # its own copy is the nearest
    empty = image.copy()
    empty[3] = 0
    assert np.allclose(neighbor_labels(chances, empty, k=4)[3], chances[3])


def test_they_help_where_texts_are_off_and_images_cluster():
    gains = []
    for seed in range(5):
        image, text, label = space(120, 12, 6, 0.45, seed)
        first = (zero_shot(image, text, scale=8).argmax(1) == label).mean()
        later = [(one.argmax(1) == label).mean() for one in (
            transclip(image, text, scale=8), zlap(image, text), balanced(zero_shot(image, text, scale=8)),
            neighbor_labels(zero_shot(image, text, scale=8), image))]  # fmt: skip
        gains.append(np.array(later) - first)
        assert (linear_probe(image[:60], label[:60], image[60:], classes=6).argmax(1) == label[60:]).mean() > 0.95
    assert (np.mean(gains, axis=0) > 0).all(), np.mean(gains, axis=0)


def test_linear_probe_leaves_unknown_classes_out():
    image, _, label = space()
    found = linear_probe(image[label < 2], label[label < 2], image, classes=4)
    assert found.shape == (30, 4) and (found[:, 2:] == 0).all() and np.allclose(found.sum(1), 1)
    with pytest.raises(ValueError, match="2 or more"):
        linear_probe(image, 0 * label, image, classes=4)
