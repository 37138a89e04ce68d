"""Confident learning against cleanlab, and votes, small loss, planes and the discriminant on made-up classes."""

from __future__ import annotations

import numpy as np
import pytest

from noisycorr.classify import confident
from noisycorr.classify.audit.channel import blind_loss, channel_loss
from noisycorr.classify.audit.discriminant import discriminant
from noisycorr.classify.audit.label_votes import knn_vote, linear_split, small_loss
from noisycorr.runtime.errors import UsageError
from noisycorr.stats.index import Neighbors, neighbors


def noisy(seed: int = 0, n: int = 600, c: int = 4, rate: float = 0.25) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Probabilities, noisy labels and true ones."""
    rng = np.random.default_rng(seed)
    true = rng.integers(c, size=n)
    logits = rng.normal(size=(n, c)) + 2.5 * np.eye(c)[true]
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    given = np.where(rng.random(n) < rate, (true + rng.integers(1, c, size=n)) % c, true)
    return p, given, true


@pytest.mark.parametrize("seed", [0, 1])
def test_the_joint_is_cleanlabs(seed: int) -> None:
    count = pytest.importorskip("cleanlab.count")
    p, y, _ = noisy(seed)
    ours = confident.confident_joint(p, y)
    np.testing.assert_array_equal(ours.counts, count.compute_confident_joint(y, p, calibrate=False))
    theirs = count.compute_confident_joint(y, p, calibrate=True)
    assert np.abs(ours.calibrated - theirs).max() <= 1  # the two round differently
    np.testing.assert_array_equal(ours.calibrated.sum(1), np.bincount(y))
    np.testing.assert_allclose(ours.threshold, count.get_confident_thresholds(y, p))


@pytest.mark.parametrize("rule", confident.RULES)
def test_every_rule_is_cleanlabs(rule: str) -> None:
    find = pytest.importorskip("cleanlab.filter").find_label_issues
    p, y, _ = noisy(2)
    ours = confident.label_issues(p, y, filter_by=rule)
    theirs = find(y, p, filter_by=rule, n_jobs=1)
    assert theirs.sum() > 40
    assert (ours != theirs).sum() <= 4, "a few may differ by the rounding of counts"


def test_float32_and_chunks_change_no_flag(monkeypatch: pytest.MonkeyPatch) -> None:
    p, y, _ = noisy(7)
    p = p.astype(np.float32)
    whole = {rule: confident.label_issues(p.astype(np.float64), y, filter_by=rule) for rule in confident.RULES}
    monkeypatch.setattr(confident, "CHUNK", 7)
    for rule, flags in whole.items():
        np.testing.assert_array_equal(confident.label_issues(p, y, filter_by=rule), flags)


def test_the_lowest_are_those_of_a_stable_sort() -> None:
    score = np.random.default_rng(0).integers(5, size=40).astype(np.float32)
    for k in (-1, 0, 1, 7, 20, 39, 40, 50):
        wanted = np.zeros(40, bool)
        wanted[np.argsort(score, kind="stable")[: max(k, 0)]] = True
        np.testing.assert_array_equal(confident._lowest(score, k), wanted)


def test_scores_are_cleanlabs() -> None:
    rank = pytest.importorskip("cleanlab.rank")
    p, y, _ = noisy(3)
    for name, ours in (("self_confidence", confident.self_confidence),
                       ("normalized_margin", confident.normalized_margin),
                       ("confidence_weighted_entropy", confident.confidence_weighted_entropy)):  # fmt: skip
        theirs = rank.get_label_quality_scores(y, p, method=name)
        assert np.corrcoef(np.argsort(np.argsort(ours(p, y))), np.argsort(np.argsort(theirs)))[0, 1] > 0.9999


def test_sure_predictions_give_the_true_confusion() -> None:
    _, y, true = noisy(4)
    joint = confident.confident_joint(np.eye(4)[true], y)
    wanted = np.zeros((4, 4), int)
    np.add.at(wanted, (y, true), 1)
    np.testing.assert_array_equal(joint.calibrated, wanted)
    assert joint.noise_rate == pytest.approx(np.mean(y != true))
    one, two, share = confident.overlapping_classes(joint)[0]
    assert share == pytest.approx((wanted[one, two] + wanted[two, one]) / len(y))
    assert share == max(s for _, _, s in confident.overlapping_classes(joint, 100))


@pytest.mark.parametrize("rule", ["confident_learning", "prune_by_noise_rate", "prune_by_class"])
def test_names_of_classes_do_not_matter(rule: str) -> None:
    p, y, _ = noisy(5)
    order = np.array([2, 0, 3, 1])
    renamed = np.empty_like(p)
    renamed[:, order] = p
    one, two = (confident.label_issues(a, b, filter_by=rule) for a, b in ((p, y), (renamed, order[y])))
    assert (one != two).sum() <= 3


def test_confident_learning_refuses_what_does_not_fit() -> None:
    p, y, _ = noisy(6)
    with pytest.raises(UsageError, match="label 7 is outside"):
        confident.confident_joint(p, np.where(np.arange(len(y)) == 3, 7, y))
    with pytest.raises(UsageError, match="do not fit"):
        confident.confident_joint(p[:5], y)
    with pytest.raises(UsageError, match="filter_by"):
        confident.label_issues(p, y, filter_by="all")
    with pytest.raises(UsageError, match="frac_noise"):
        confident.label_issues(p, y, frac_noise=0)
    few = confident.confident_joint(np.eye(3)[[0, 1, 0, 1]], np.array([0, 1, 0, 1]))
    assert few.threshold[2] == 2 and few.counts[2, 2] == 1  # a class without a row is never guessed


def test_heavily_confused_classes_are_told() -> None:
    rng = np.random.default_rng(0)
    true = rng.integers(2, size=400)
    y = np.where((true == 1) & (rng.random(400) < 0.5), 0, true)
    p = np.where(np.eye(2)[true] > 0, 0.9, 0.1)
    assert "class 0 first" not in str(confident.confident_joint(p, true).warning)
    y[: len(y) // 2] = np.where(true[: len(y) // 2] == 1, 0, y[: len(y) // 2])
    assert confident.confident_joint(p, y).warning is not None


def blobs(n: int = 300, c: int = 3, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    true = rng.integers(c, size=n)
    x = 3 * rng.normal(size=(c, 8))[true] + rng.normal(size=(n, 8))
    return x.astype(np.float32), true, np.where(rng.random(n) < 0.2, (true + 1) % c, true)


def test_votes_by_hand() -> None:
    found = Neighbors(ids=np.array([[1, 2], [0, 2], [-1, -1]]), method="", recall=1.0,
                      similarity=np.array([[0.5, 0.25], [0.5, 0.1], [np.nan, np.nan]], np.float32))  # fmt: skip
    votes = knn_vote(found, np.array([0, 0, 1]), 2)
    np.testing.assert_allclose(votes[0], [(0.5 + 2 / 3) / 1.75, (0.25 + 1 / 3) / 1.75], rtol=1e-6)
    np.testing.assert_allclose(votes[2], [2 / 3, 1 / 3], rtol=1e-6)
    np.testing.assert_allclose(knn_vote(found, np.array([0, 0, 1]), 2, group=np.array([5, 5, 6]))[0, 0],
                               (2 / 3) / 1.25, rtol=1e-6)  # fmt: skip
    np.testing.assert_allclose(knn_vote(found, np.array([0, 0, 1]), 2, rows=np.array([2])), votes[2:])
    np.testing.assert_allclose(knn_vote(found, np.array([0, -1, 1]), 2)[0], [0.5 / 1.25, 0.75 / 1.25], rtol=1e-6)


def test_detectors_find_wrong_labels() -> None:
    from sklearn.metrics import roc_auc_score

    x, true, y = blobs()
    fold = np.arange(len(y)) % 5
    logits = discriminant(lambda rows: x[rows], y, fold, 3).logits(np.arange(len(y)))
    loss = -np.take_along_axis(logits - np.log(np.exp(logits).sum(1, keepdims=True)), y[:, None], 1)[:, 0]
    right = y == true
    assert roc_auc_score(right, -loss) > 0.97
    assert roc_auc_score(right, small_loss(loss, seed=0)) > 0.95
    assert roc_auc_score(right, small_loss(loss, seed=0, faithful=True)) > 0.9
    votes = knn_vote(neighbors(x, 10, seed=0), y, 3)
    assert roc_auc_score(right, np.take_along_axis(votes, y[:, None], 1)[:, 0]) > 0.97
    assert np.isnan(small_loss(np.array([np.nan, *loss]), seed=0)).sum() == 0


def test_a_row_is_not_judged_by_its_own_label() -> None:
    x, _, y = blobs()
    fold = np.arange(len(y)) % 5
    before = discriminant(lambda rows: x[rows], y, fold, 3).logits(np.flatnonzero(fold == 2))
    changed = np.where(fold == 2, (y + 1) % 3, y)
    after = discriminant(lambda rows: x[rows], changed, fold, 3).logits(np.flatnonzero(fold == 2))
    np.testing.assert_array_equal(before, after)


def test_the_plane_sees_what_is_out_of_the_set() -> None:
    rng = np.random.default_rng(1)
    outside = rng.random(400) < 0.3
    x = rng.normal(size=(400, 6)) + np.where(outside[:, None], 2.0, 0.0)
    provisional = np.where(rng.random(400) < 0.2, outside, ~outside)
    for faithful in (False, True):
        found = linear_split(x, provisional, np.arange(400) % 4, faithful=faithful)
        assert found[~outside].mean() > 0.6 > 0.4 > found[outside].mean()
    assert (linear_split(x, np.ones(400, bool), np.arange(400) % 4) == 0.5).all()
    with pytest.raises(UsageError, match="do not fit"):
        linear_split(x, provisional[:5], np.zeros(400))


@pytest.mark.parametrize("kind", ["blind", "channel"])
def test_gradients_of_the_channel(kind: str) -> None:
    rng = np.random.default_rng(0)
    signals, y = rng.normal(size=(3, 50, 4)).astype(np.float32), rng.integers(4, size=50)
    matrix = 0.8 * np.eye(4) + 0.05
    theta = np.array([0.4, 0.7, 0.2, -0.8] if kind == "blind" else [0.4, 0.7, 0.2])
    extra = (np.full(4, 0.25),) if kind == "blind" else (matrix,)
    loss = blind_loss if kind == "blind" else channel_loss
    _, slope = loss(theta, signals, y, *extra)
    for i in range(len(theta)):
        step = np.zeros_like(theta)
        step[i] = 1e-3
        numeric = (loss(theta + step, signals, y, *extra)[0] - loss(theta - step, signals, y, *extra)[0]) / 2e-3
        assert slope[i] == pytest.approx(numeric, abs=2e-4)
