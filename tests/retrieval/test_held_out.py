"""The share of wrong pairs from pairs that the warm-up left out."""

import numpy as np
import pytest
import torch

from noisycorr.models.training.loop import fit
from noisycorr.retrieval.strategies.held_out import bounded, held_rows, level_held, strangers, wrong_share
from tests.learning import features, learner, train_set

PAIRS = np.random.default_rng(0)


def test_strangers_are_the_next_pairs_texts_whatever_the_order_of_the_batch():
    rng = torch.Generator().manual_seed(0)
    sims = torch.randn(6, 6, generator=rng, dtype=torch.float64)
    rows = torch.tensor([7, 3, 11, 5, 2, 9])
    group = torch.tensor([0, 1, 2, 3, 3, 4])  # pairs 5 and 2 show the same picture
    negatives = group[:, None] != group[None]
    new, allowed, wrong = strangers(sims, negatives, rows)
    mixed = sorted(rows.tolist(), key=lambda row: row * 2654435761 % 2**32)
    following = dict(zip(mixed, mixed[1:] + mixed[:1]))
    assert mixed != sorted(mixed)
    place = {row: i for i, row in enumerate(rows.tolist())}
    for i, row in enumerate(rows.tolist()):
        j = place[following[row]]
        assert new[i, i] == sims[i, j] and wrong[i] == negatives[i, j]
        for k, other in enumerate(rows.tolist()):
            assert new[i, k] == sims[i, place[following[other]]]
            assert allowed[i, k] == (group[i] != group[place[following[other]]])
    same = torch.tensor([0 if row in mixed[:2] else row for row in rows.tolist()])
    assert strangers(sims, same[:, None] != same[None], rows)[2].tolist() == [row != mixed[0] for row in rows.tolist()]


@pytest.mark.parametrize("share", [0.0, 0.3, 0.7])
def test_the_share_of_left_out_pairs_that_look_re_paired(share: float):
    n = 4000
    wrong = PAIRS.random(n) < share
    loss = np.where(wrong, PAIRS.normal(6, 1, n), PAIRS.normal(1, 1, n)).clip(0)
    held = np.arange(n) < 800
    learned_by_heart = np.where(held, loss, loss * 0.1)
    null = np.where(np.arange(n) % 5 == 0, -1.0, PAIRS.normal(6, 1, n).clip(0))
    assert share - 0.05 < wrong_share(learned_by_heart, null, held) < share + 0.07
    assert wrong_share(learned_by_heart, null, np.arange(n) < 10) == 1
    assert wrong_share(learned_by_heart, np.full(n, -1.0), held) == 1


def test_left_out_losses_on_the_scale_of_the_learned_ones():
    loss = PAIRS.gamma(2, size=3000)
    held = np.arange(3000) % 10 == 0
    raised = np.where(held, 3 * loss + 1, loss)
    found = level_held(raised, held)
    assert (found[~held] == loss[~held]).all()
    assert (np.argsort(found[held]) == np.argsort(loss[held])).all()
    assert np.quantile(found[held], [0.1, 0.5, 0.9]) == pytest.approx(
        np.quantile(loss[~held], [0.1, 0.5, 0.9]), abs=0.05
    )
    assert (level_held(loss, np.zeros(3000, bool)) == loss).all()


def test_bounded_probabilities():
    p = PAIRS.random(500)
    for share in (0.3, 0.1, 0.01):
        q = bounded(p, share)
        assert (1 - q).mean() == pytest.approx(share, abs=1e-6) and (q >= p).all()
        moved = np.log(q / (1 - q)) - np.log(p / (1 - p))
        assert moved == pytest.approx(np.full(500, moved[0]), abs=1e-6)
    assert (bounded(p, 0.9) == p).all() and (bounded(p, 0.0) == 1).all() and len(bounded(p[:0], 0.5)) == 0
    assert bounded(np.zeros(4), 0.5) == pytest.approx(np.full(4, 0.5))


def test_few_pairs_are_not_left_out():
    assert not held_rows(100, 0.1).any() and held_rows(300, 0.1).sum() == 30 and not held_rows(300, 0.0).any()
    assert (held_rows(300, 0.1) == held_rows(300, 0.1)).all()


@pytest.mark.parametrize(("wrong", "options"), [(0, {}), (120, {}), (0, {"loss": "triplet"})])
def test_pc2_leaves_right_pairs_in_peace(wrong: int, options: dict[str, str]):
    _, _, truth = features(300, wrong=wrong)
    given = {"classes": 8, "warm_up": 3, **options}
    one = learner("pc2", train_set(300, wrong=wrong), options=given, epochs=5, batch_size=60, hidden=32, lr=5e-3)
    fit(one)
    found = one.cursor.history[-1]
    called = 1 - one.trusts[0].p_clean.mean()
    assert found["wrong_share_0"] > wrong / 300 - 0.1 and (wrong or found["wrong_share_0"] < 0.2)
    assert called <= found["wrong_share_0"] + 1e-6
    if not options and wrong:
        assert one.trusts[0].p_clean[truth].mean() < 0.5 < one.trusts[0].p_clean[~truth].mean()
