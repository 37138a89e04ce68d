"""The project's own recipe: the refinement of probabilities, its guards, and the contract."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from learning import learner, train_set
from scipy import special

from noisycorr import Trust, check_strategy
from noisycorr.models.losses import generalised_cross_entropy, info_nce
from noisycorr.models.training.loop import fit
from noisycorr.models.training.memory import Memory
from noisycorr.retrieval.strategies import load_strategy
from noisycorr.retrieval.strategies.best import Best, refine
from noisycorr.runtime.errors import UsageError
from noisycorr.stats.detection import auroc, calibration


def evidence(n: int = 4000, noise: float = 0.4, *, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Calibrated priors, independent losses, and which pairs are wrong."""
    rng = np.random.default_rng(seed)
    wrong = rng.random(n) < noise
    score = rng.normal(np.where(wrong, -1.0, 1.0))  # log odds of the prior: 2 * score + logit
    prior = special.expit(2 * score + special.logit(1 - noise))
    return prior, rng.normal(np.where(wrong, 1.0, -1.0)), wrong


def test_losses_sharpen_the_prior_and_keep_it_calibrated():
    prior, loss, wrong = evidence()
    now = refine(prior, loss, share=1.0)
    assert auroc(now, wrong) > auroc(prior, wrong) + 0.04
    assert calibration(now, wrong).ece < 0.03
    assert now.mean() == pytest.approx(prior.mean(), abs=0.02)


def test_nothing_is_invented_where_clean_finds_nothing():
    """Mixtures of losses call a large part of clean data wrong; the refinement cannot."""
    _, loss, _ = evidence()
    certain = np.ones(len(loss))
    assert np.array_equal(refine(certain, loss, share=1.0), certain)
    almost = np.where(np.arange(len(loss)) < 5, 0.0, 1.0)
    assert np.array_equal(refine(almost, loss, share=1.0), almost)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 1000), st.floats(0, 2))
def test_lower_losses_and_higher_priors_are_never_worse(seed: int, share: float):
    prior, loss, _ = evidence(300, seed=seed)
    now = refine(prior, loss, share=share)
    assert ((now >= 0) & (now <= 1)).all()
    order = np.argsort(loss)
    lifted = special.logit(np.clip(now, 1e-9, 1 - 1e-9)) - special.logit(np.clip(prior, 1e-3, 1 - 1e-3))
    if share:
        assert (np.diff(lifted[order]) <= 1e-6).all()
    assert np.allclose(refine(prior, np.zeros(300), share=share), prior)


@pytest.mark.parametrize("peer", ["twin", "none"])
def test_contract(peer: str):
    check_strategy(Best(peer=peer))  # type: ignore[arg-type]


def test_step_is_a_robust_loss_by_weights():
    p = np.linspace(0, 1, 50)
    enc = learner("best", train_set(p_clean=p)).look(0, torch.arange(20))
    plain = info_nce(enc.sims, temperature=enc.temperature, negatives=enc.negatives)
    prior = torch.from_numpy(p[:20]).to(plain)
    before = Best(q=0).step(enc, Memory(50), None, None).per_pair
    torch.testing.assert_close(before, plain * prior * 20 / prior.sum())
    trust = Trust(p_clean=np.full(50, 0.25), clean=np.ones(50, bool))
    torch.testing.assert_close(Best(q=0).step(enc, Memory(50), trust, None).per_pair, plain)
    robust = generalised_cross_entropy(enc.sims, temperature=enc.temperature, q=0.3, negatives=enc.negatives)
    torch.testing.assert_close(Best().step(enc, Memory(50), trust, None).per_pair, robust)


def test_frozen_numbers():
    """Five pairs, worked out from the equation; the first two losses are pooled."""
    prior, loss = np.array([0.85, 0.95, 0.5, 0.3, 0.1]), np.array([0.0, 1.0, 2.0, 3.0, 4.0])
    pi, m = 0.54, np.array([0.9, 0.9, 0.5, 0.3, 0.1])
    odds = prior / (1 - prior) * np.sqrt(m / (1 - m) * (1 - pi) / pi)
    np.testing.assert_allclose(refine(prior, loss, share=0.5), odds / (1 + odds), atol=1e-9)
    np.testing.assert_allclose(
        refine(prior, loss, share=0.5), [0.940085, 0.981346, 0.479968, 0.205688, 0.033054], atol=1e-6
    )


def test_it_finds_and_ignores_wrong_pairs():
    wrong = np.arange(60) < 20
    p = np.where(wrong, 0.15, 0.9)
    it = learner("best", train_set(60, wrong=20, p_clean=p), epochs=6)
    fit(it)
    assert it.trusts[0] is not None and auroc(it.trusts[0].p_clean, wrong) == 1.0


def test_without_probabilities_its_own_twins_judge():
    it = learner("best", train_set(60, wrong=20), epochs=8, lr=5e-3)
    assert it.strategy.step(it.look(0, torch.arange(8)), it.memories[0], None, None).per_pair.shape == (8,)
    fit(it)
    assert it.trusts[0] is not None and auroc(it.trusts[0].p_clean, np.arange(60) < 20) > 0.8
    assert "no p_clean" in it.cursor.history[-1]["note_0"]
    assert "note_0" not in it.cursor.history[0]


def test_a_column_that_was_asked_for_must_be_there():
    with pytest.raises(UsageError, match="noisycorr clean"):
        Best(column="sample_weight").step(learner("plain").look(0, torch.arange(8)), Memory(50), None, None)
    with pytest.raises(UsageError, match="least"):
        load_strategy("best", {"least": 1.0})
