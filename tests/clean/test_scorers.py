"""Scorers on arrays: against loops, against the losses, and by what every scorer must keep."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

import numpy as np
import pytest
import torch
from reference import scorers_reference as slow
from reference import signals_reference

import noisycorr as nc
from noisycorr.caption.metrics import clip_score as of_captions
from noisycorr.clean import scorers
from noisycorr.models.losses import info_nce
from noisycorr.runtime.errors import UsageError
from noisycorr.stats.detection import auroc

Features = tuple[np.ndarray, np.ndarray]
JOINT: dict[str, Callable[..., np.ndarray]] = {
    "cosine": scorers.cosine, "margin": scorers.margin, "csls": scorers.csls, "negclip_loss": scorers.negclip_loss,
    "lemon": scorers.lemon,
}  # fmt: skip
LEARNED: dict[str, Callable[..., np.ndarray]] = {
    "neighbor_agreement": scorers.neighbor_agreement, "crossfit": scorers.crossfit,
}  # fmt: skip


def features(n: int = 40, d: int = 6, *, seed: int = 0, holes: bool = True) -> Features:
    """Texts that are near to their images; rows 3 and 4 lack a side."""
    rng = np.random.default_rng(seed)
    image = rng.normal(size=(n, d)).astype(np.float32)
    text = (image + rng.normal(size=(n, d)) * 0.8).astype(np.float32)
    if holes:
        image[3], text[4] = 0, np.nan
    return image, text


def lists(array: np.ndarray) -> list[list[float]]:
    return np.nan_to_num(array).astype(np.float64).tolist()


def noisy(n: int = 600, *, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pairs of 40 topics, a third of them with another text; truth last."""
    rng = np.random.default_rng(seed)
    centre = rng.normal(size=(40, 24))
    topic = rng.integers(40, size=n)
    image = centre[topic] + 0.5 * rng.normal(size=(n, 24))
    wrong = rng.random(n) < 1 / 3
    said = np.where(wrong, (topic + rng.integers(1, 40, size=n)) % 40, topic)
    text = centre[said] + 0.5 * rng.normal(size=(n, 24))
    return image.astype(np.float32), text.astype(np.float32), wrong


@pytest.mark.parametrize("k", [1, 5, 100])
def test_csls_equals_its_loop(k: int) -> None:
    image, text = features()
    want = signals_none([slow.csls(lists(image), lists(text), i, k) for i in range(len(image))])
    found = scorers.csls(image, text, k=k)
    np.testing.assert_allclose(found, want, atol=1e-5)
    assert np.isnan(found).sum() == 2 and np.nanmax(np.abs(found)) <= 4


def signals_none(values: list[float | None]) -> np.ndarray:
    return np.array([np.nan if value is None else value for value in values])


@pytest.mark.parametrize("options", [{}, {"k": 3, "beta": 1.0, "gamma": 0.0, "tau1": 2.0, "tau2": 0.5}, {"beta": 0.0}])
def test_lemon_equals_its_loop(options: dict[str, float]) -> None:
    image, text = features()
    given = {"k": 30, "beta": 5.0, "gamma": 5.0, "tau1": 0.1, "tau2": 5.0} | options  # the published fixed setting
    want = signals_none([slow.lemon(lists(image), lists(text), i, **given) for i in range(len(image))])  # type: ignore[arg-type]
    found = scorers.lemon(image, text, **options)  # type: ignore[arg-type]
    np.testing.assert_allclose(found, -want, atol=2e-5)
    assert np.nanmax(found) <= 0


@pytest.mark.parametrize("temperature", [0.01, 0.2])
def test_negclip_loss_equals_its_loop_and_the_loss(temperature: float) -> None:
    image, text = features()
    rows = [i for i in range(len(image)) if i not in (3, 4)]
    want = np.array([slow.negclip(lists(image), lists(text), i, rows, temperature) for i in rows])
    found = scorers.negclip_terms(image, text, temperature=temperature)
    np.testing.assert_allclose(np.stack(found, 1)[rows], want, atol=1e-5)
    score = scorers.negclip_loss(image, text, temperature=temperature)
    np.testing.assert_allclose(score[rows], want[:, 0] - want[:, 1:].mean(1), atol=1e-5)
    assert np.isnan(score[[3, 4]]).all() and np.nanmax(score) <= 1e-6
    one, two = (torch.nn.functional.normalize(torch.from_numpy(side[rows]).double(), dim=1) for side in (image, text))
    np.testing.assert_allclose(score[rows], -temperature * info_nce(one @ two.T, temperature=temperature), atol=1e-5)


def test_negclip_batches_cover_all_pairs_in_each_round(monkeypatch: pytest.MonkeyPatch) -> None:
    image, text = features(50, holes=False)
    monkeypatch.setattr(scorers, "ROWS", 7)
    whole = scorers.negclip_terms(image, text)
    np.testing.assert_allclose(whole.text, scorers.negclip_terms(text, image).image, atol=1e-6)
    some = scorers.negclip_terms(image, text, batch_size=20, rounds=3)
    assert np.isfinite(some).all() and (some.image <= whole.image + 1e-6).all()
    assert (some.image == scorers.negclip_terms(image, text, batch_size=20, rounds=3).image).all()
    assert (some.image != scorers.negclip_terms(image, text, batch_size=20, rounds=3, seed=1).image).any()


def test_cosine_and_clip_score_equal_loops() -> None:
    image, text = features()
    want = signals_none([signals_reference.cosine(a, b) for a, b in zip(lists(image), lists(text))])
    np.testing.assert_allclose(scorers.cosine(image, text), want, atol=1e-6)
    image, text = features(holes=False)
    want = 100 * np.maximum(nc.score.cosine(image, text), 0)
    np.testing.assert_allclose(scorers.clip_score(image, text, scale=100), want, atol=1e-4)
    assert of_captions is scorers.clip_score


def test_margin_equals_the_loop_of_both_sides() -> None:
    image, text = features(20)
    one, two = ([signals_reference.unit(row) for row in lists(side)] for side in (image, text))
    there = [any(a) and any(b) for a, b in zip(one, two)]
    sides = []
    for asking, asked in ((one, two), (two, one)):
        rivals = [[asked[j] for j in range(20) if j != i and there[j]] for i in range(20)]
        sides.append([signals_reference.margin(asking[i], asked[i], rivals[i], 0.05) if there[i] else None
                      for i in range(20)])  # fmt: skip
    want = np.mean([signals_none(side) for side in sides], axis=0)
    np.testing.assert_allclose(scorers.margin(image, text), want, atol=1e-3)


def test_all_find_wrong_pairs_and_order_does_not_matter() -> None:
    image, text, wrong = noisy()
    order = np.random.default_rng(1).permutation(len(image))
    for name, scorer in (JOINT | LEARNED).items():
        score = scorer(image, text)
        assert score.shape == (600,) and auroc(score, wrong) > 0.9, name
        if name not in ("crossfit",):  # its folds are dealt by row
            np.testing.assert_allclose(scorer(image[order], text[order]), score[order], atol=2e-3, err_msg=name)
        assert (scorer(image, text) == score).all(), name
        scaled = scorer(image * 7, text / 3)
        if name in JOINT:
            np.testing.assert_allclose(scaled, score, atol=1e-3, err_msg=name)
    mixed = scorers.crossfit(image, text[:, :12])  # no joint space
    assert auroc(mixed, wrong) > 0.8 and auroc(scorers.neighbor_agreement(image, text[:, :12]), wrong) > 0.8


def test_probabilities_from_scores_and_made_wrong_pairs() -> None:
    image, text, wrong = noisy(2000)
    i, j = nc.score.shuffled_rows(image, text, count=5000)
    assert len(i) == len(j) > 4000 and (i != j).all()
    score = nc.score.cosine(image, text)
    p = nc.score.p_clean(np.append(score, np.nan), nc.score.cosine(image[i], text[j]))
    assert np.isnan(p[-1]) and p[:-1].min() >= 0 and p[:-1].max() <= 1
    order = np.argsort(score)
    assert (np.diff(p[:-1][order]) >= 0).all() and abs(1 - p[:-1].mean() - wrong.mean()) < 0.05


@pytest.mark.parametrize("name", [*JOINT, *LEARNED])
@pytest.mark.parametrize("n", [0, 1, 2, 3])
def test_few_pairs_do_no_harm(name: str, n: int) -> None:
    image, text = features(n, holes=False)
    if name == "crossfit":
        with pytest.raises(UsageError, match=rf"^{n} pairs cannot be dealt into 5 folds \(`folds`\)"):
            scorers.crossfit(image, text)
        return
    assert (JOINT | LEARNED)[name](image, text).shape == (n,)


@pytest.mark.parametrize("name", [*JOINT, *LEARNED])
def test_missing_and_extreme_rows(name: str) -> None:
    image, text = features(60)
    image[7], text[8] = np.inf, 1e38
    with np.errstate(all="raise", under="ignore"):
        score = (JOINT | LEARNED)[name](image, text)
    assert np.flatnonzero(np.isnan(score)).tolist() == [3, 4, 7, 8]


@pytest.mark.parametrize(("call", "words"), [
    (lambda: nc.score.cosine(np.zeros((3, 2)), np.zeros((3, 4))), r"`image` has shape \(3, 2\) and `text` \(3, 4\)"),
    (lambda: nc.score.lemon(np.zeros((3, 2)), np.zeros((2, 2))), "the same shape, of one joint space"),
    (lambda: nc.score.crossfit(np.zeros((3, 2)), np.zeros((2, 2))), "as many rows in both"),
    (lambda: nc.score.csls(np.zeros(3), np.zeros(3)), r"`image` has shape \(3,\) of float64, expected numbers"),
    (lambda: nc.score.csls(np.array([["a"]]), np.array([["b"]])), "expected numbers"),
    (lambda: nc.score.csls(*features(), k=0), "`k` is 0, expected at least 1"),
    (lambda: nc.score.lemon(*features(), beta=-1), "`beta` is -1, expected at least 0"),
    (lambda: nc.score.lemon(*features(), tau2=float("nan")), "`tau2` is nan"),
    (lambda: nc.score.negclip_loss(*features(), temperature=0), "`temperature` is 0, expected more than 0"),
    (lambda: nc.score.negclip_loss(*features(), rounds=0), "`rounds` is 0"),
    (lambda: nc.score.margin(*features(), text_id=np.arange(3)), r"`text_id` has shape \(3,\), expected one"),
    (lambda: nc.score.p_clean(np.zeros((2, 2)), np.zeros(3)), r"`score` has shape \(2, 2\)"),
    (lambda: nc.score.label_quality(np.ones((2, 2)) / 2, [0, 2]), "label 2 is outside of the 2 classes"),
    (lambda: nc.score.label_issues(np.ones((2, 2)) / 2, [0, 1], filter_by="x"), "`filter_by` is 'x'"),
])  # fmt: skip
def test_errors_name_the_argument(call: Callable[[], object], words: str) -> None:
    with pytest.raises(UsageError, match=words) as caught:
        call()
    assert isinstance(caught.value, ValueError)


def test_labels_have_scores_too() -> None:
    p = np.array([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4], [0.1, 0.9]])
    np.testing.assert_allclose(nc.score.label_quality(p, [0, 0, 1, 1]), [0.9, 0.2, 0.4, 0.9])
    assert nc.score.label_issues(p, [0, 0, 1, 1]).shape == (4,)


def test_the_namespaces_are_listed_and_lazy() -> None:
    assert set(dir(nc.score)) == {name for name in dir(nc.score) if callable(getattr(nc.score, name))}
    assert {"cosine", "lemon", "label_issues"} <= set(dir(nc.score)) and "higher = better" in nc.score.__doc__
    for name in dir(nc.score):
        assert "Raises:" in getattr(nc.score, name).__doc__ or name == "p_clean"
    with pytest.raises(AttributeError, match="has no 'lemmon': there are clip_score, cosine"):
        _ = nc.score.lemmon
    assert "score" in dir(nc) and "losses" in dir(nc)
    assert set(nc.losses.__all__) == {name for name in nc.losses.__all__ if callable(getattr(nc.losses, name))}
    assert nc.losses.info_nce(torch.eye(3)).shape == (3,)
    code = "import sys, noisycorr as nc; dir(nc.score); nc.score; print('numpy' in sys.modules, 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]
