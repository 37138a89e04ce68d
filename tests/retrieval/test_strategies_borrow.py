"""PC2, L2RM, GSC, SPS, IN2R and OSA: released forms against slow loops, frozen numbers, parts and switches."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from learning import features, learner, train_set
from reference.rectify_reference import neighbour_prototype
from test_learn_loop import state
from torch import Tensor

from noisycorr import Trust, check_strategy
from noisycorr.models.training.checkpoint import load_latest, save_checkpoint
from noisycorr.models.training.contract import Encoded
from noisycorr.models.training.learner import Learner
from noisycorr.models.training.loop import Hooks, fit, plan_epoch
from noisycorr.retrieval.strategies import load_strategy
from noisycorr.retrieval.strategies.pc2 import partner_purity
from noisycorr.retrieval.testing import tiny_learner
from noisycorr.runtime.errors import UsageError

NAMES = ("gsc", "in2r", "l2rm", "osa", "pc2", "sps")
VARIANTS: list[tuple[str, dict[str, Any]]] = [
    *((name, {"faithful": True}) for name in NAMES),
    *((name, {"peer": "twin"}) for name in ("gsc", "l2rm", "osa")),
    *((name, {"peer": "none"}) for name in ("in2r", "pc2", "sps")),
    ("pc2", {"classify": False, "stable": False}),
    ("pc2", {"stable": False, "loss": "triplet", "noisy_from": 0.0}),
    ("pc2", {"borrow": False, "probe": 0.0, "warm_up": 0}),
    ("l2rm", {"loss": "triplet", "mass": 1.0}),
    ("in2r", {"same_image": True, "loss": "triplet", "k": 100}),
    ("in2r", {"refine": True}),
    ("l2rm", {"learn_cost": False}),
    ("sps", {"noisy_from": 0, "clean_from": 0, "sure": 0.99}),
    ("osa", {"column": "score_similarity", "offset": 0.2, "scale": 0.5}),
]


@pytest.mark.parametrize(("name", "options"), VARIANTS)
def test_variants_keep_the_contract(name: str, options: dict[str, Any]):
    check_strategy(load_strategy(name, options))


@pytest.mark.parametrize(
    ("name", "options"),
    [("pc2", {"warmup": 3}), ("pc2", {"classify": False}), ("pc2", {"loss": "mse"}), ("pc2", {"classes": 1}),
     ("pc2", {"probe": 0.9}), ("l2rm", {"mass": 0.0}), ("l2rm", {"loss": "mse"}), ("gsc", {"keep": 2.0}),
     ("sps", {"sure": 0.2}), ("sps", {"penalty": -1.0}), ("in2r", {"k": 0}), ("in2r", {"loss": "mse"}),
     ("osa", {"scale": 0.0}), ("l2rm", {"places": 1})],
)  # fmt: skip
def test_wrong_options_are_refused(name: str, options: dict[str, Any]):
    with pytest.raises(UsageError):
        load_strategy(name, options)


@pytest.mark.parametrize("name", NAMES)
def test_each_trains_and_goes_on_from_a_checkpoint_as_if_nothing_had_happened(name: str, tmp_path: Path):
    options = {} if name == "osa" else {"warm_up": 1}
    options |= {"noisy_from": 0.0} if name in ("in2r", "l2rm", "pc2", "sps") else {}
    make = lambda: learner(name, train_set(60, wrong=20, p_clean=np.linspace(0.1, 1, 60)), options=options, epochs=4)  # noqa: E731
    whole, first = make(), make()
    fit(whole)
    assert all(math.isfinite(loss) for record in whole.cursor.history for loss in record["loss"])
    assert np.mean(whole.cursor.history[-1]["loss"]) != np.mean(whole.cursor.history[0]["loss"])

    class Stop(Exception):
        pass

    def save(it: Learner) -> None:
        save_checkpoint(it, tmp_path, keep=1)
        if it.cursor.epoch == 2:
            raise Stop

    with pytest.raises(Stop):
        fit(first, Hooks(save=save))
    again = make()
    assert load_latest(again, tmp_path)
    fit(again)
    assert state(again) == state(whole)


# ---- the released forms, as slow loops


def batch(name: str, options: dict[str, Any], b: int = 14) -> tuple[Learner, Encoded, Trust]:
    """A learner in double precision, a batch with gradient, and a trust with a third of the batch noisy."""
    one = tiny_learner(load_strategy(name, options))
    rows = torch.arange(8, 8 + b)
    enc = one.encoded(0, rows, *one.encode_local(0, rows))
    p_clean = np.random.default_rng(3).uniform(0.55, 1, 60)
    p_clean[10:60:3] = 0.2
    clean = p_clean > 0.5
    strict = p_clean > 0.75
    return one, enc, Trust(p_clean=p_clean, clean=clean, sets={"noisy": ~clean, "strict": strict})


def same(one: Learner, got: Tensor, expected: Tensor) -> None:
    """Value and gradient."""
    assert got.item() == pytest.approx(expected.item(), rel=1e-6, abs=1e-9)
    parameters = list(one.networks[0].parameters())
    gradients = [torch.autograd.grad(x, parameters, retain_graph=True, allow_unused=True) for x in (got, expected)]
    for a, b in zip(*gradients):
        if a is not None or b is not None:
            zero = torch.zeros_like(a if a is not None else b)
            torch.testing.assert_close(zero if a is None else a, zero if b is None else b, rtol=1e-6, atol=1e-8)


def hinge(x: Tensor) -> Tensor:
    return x.clamp(min=0)


def curve(y: Tensor) -> Tensor:
    return 0.2 * (10**y - 1) / 9


def test_released_pc2_is_the_slow_loop():
    one, enc, trust = batch("pc2", {"faithful": True, "classes": 5})
    s, (image, text) = enc.sims, enc.aux["classes"]
    p, y = image.softmax(1), trust.chance(enc)
    is_clean = trust.holds("clean", enc).tolist()
    clean, noisy = ([i for i, is_so in enumerate(is_clean) if is_so == kind] for kind in (True, False))
    total = s.new_zeros(())
    for i in clean:
        # (b, 1) labels give row i of the matrix the margin of i, also where column i asks
        total = total + max(hinge(curve(y[i]) + s[i, j] - s[i, i]) for j in clean if j != i)
        total = total + max(hinge(curve(y[j]) + s[j, i] - s[i, i]) for j in clean if j != i)
        total = total - torch.log(p[i, int(text[i].argmax())]) / len(clean)
        total = total + 10 * (p[i] * torch.log(p[i])).sum() / len(clean)
    lent, label = {}, {}
    for i in noisy:
        cosines = [p[i] @ p[j] / (p[i].norm() * p[j].norm()) for j in clean]
        best = max(range(len(clean)), key=lambda place: float(cosines[place].detach()))
        lent[i] = clean[best]
        label[i] = cosines[best] if float(cosines[best].detach()) >= 0.5 else s.new_zeros(())  # not detached
    for i in noisy:
        # (b,) labels give column i the margin of i, also where row i asks
        own = s[i, lent[i]]
        total = total + max(hinge(curve(label[j]) + s[i, lent[j]] - own) for j in noisy if j != i)
        total = total + max(hinge(curve(label[i]) + s[j, lent[i]] - own) for j in noisy if j != i)
    same(one, one.strategy.step(enc, one.memories[0], trust, None).total(), total)
    warm = s.new_zeros(())
    for i in range(len(s)):
        for j in range(len(s)):
            if i != j:
                warm = warm + (hinge(0.2 + s[i, j] - s[i, i]) + hinge(0.2 + s[j, i] - s[i, i])) / len(s)
        warm = warm - torch.log(p[i, int(text[i].argmax())]) / len(s) + 10 * (p[i] * torch.log(p[i])).sum() / len(s)
    same(one, one.strategy.step(enc, one.memories[0], None, None).total(), warm)


def test_released_pc2_labels_are_those_of_the_loop():
    one = tiny_learner(load_strategy("pc2", {"faithful": True}))
    rng = np.random.default_rng(0)
    signals = {"loss": rng.beta(2, 5, 60), "loss_oscillation": rng.gamma(2, 1, 60)}
    trust = one.strategy.decide(signals, one.memories[0])
    from sklearn.mixture import GaussianMixture

    found = []
    for x in signals.values():
        x = ((x - x.min()) / (x.max() - x.min()))[:, None]
        model = GaussianMixture(2, max_iter=10, tol=1e-2, reg_covar=5e-4, random_state=0).fit(x)
        found.append(model.predict_proba(x)[:, model.means_.argmin()])
    w, u = found
    for i in range(60):
        assert trust.clean[i] == (w[i] > 0.5)
        expected = w[i] + (1 - w[i]) * (u[i] if u[i] > 0.5 else 0) if w[i] > 0.5 else w[i]
        assert trust.p_clean[i] == pytest.approx(expected, abs=1e-6)


def posteriors(s: Tensor, tau: float) -> tuple[Tensor, Tensor]:
    """P over texts for each image, Q over images for each text, [query, candidate]."""
    return (s / tau).softmax(1), (s / tau).softmax(0).T


def test_released_l2rm_is_the_slow_loop():
    from noisycorr.stats.transport import partial_transport

    one, enc, trust = batch("l2rm", {"faithful": True, "reg": 0.01})
    s, b = enc.sims, len(enc.rows)
    clean, noisy = (x.nonzero()[:, 0] for x in (trust.holds("clean", enc), ~trust.holds("clean", enc)))
    total = s.new_zeros(())
    for i in clean:
        total = total + max(hinge(0.2 + s[i, j] - s[i, i]) for j in clean if j != i)
        total = total + max(hinge(0.2 + s[j, i] - s[i, i]) for j in clean if j != i)
    layer = enc.modules["cost"]
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.normal_(0, 3, generator=torch.Generator().manual_seed(1))

    def cost(sims: Tensor) -> Tensor:
        n, rows = len(sims), sims.detach()
        w = [[-float(j == k) + 0.01 * layer.weight[j, k] for k in range(n)] for j in range(n)]
        return torch.stack([torch.stack([hinge(sum(w[j][k] * rows[i, k] for k in range(n)) + 1 + 0.01 * layer.bias[j])
                                         for j in range(n)]) for i in range(n)])  # fmt: skip

    inner = s[noisy][:, noisy]
    plan = partial_transport(cost(inner).detach(), mass=0.1, reg=0.01,
                             forbidden=torch.eye(len(noisy), dtype=torch.bool))  # fmt: skip
    assert float(plan.sum()) == pytest.approx(0.1, abs=1e-3)
    plan = plan.clamp(min=1e-10)
    for query, goal in zip(posteriors(inner, 0.05), (plan, plan.T)):
        for i in range(len(noisy)):
            t, p = goal[i] / goal[i].sum(), query[i]
            total = total + 0.5 * sum(t[j] * torch.log(t[j] / p[j]) + p[j] * torch.log(p[j] / t[j])
                                      for j in range(len(noisy)))  # fmt: skip
    known = cost(s[clean][:, clean])
    total = total / b + sum(known[i, i] for i in range(len(clean))) / len(clean)
    same(one, one.strategy.step(enc, one.memories[0], trust, None).total(), total)
    warm = s.new_zeros(())
    for query in posteriors(s, 0.05):
        for i in range(b):
            reverse = -sum(query[i, j] * math.log(1e-7 + (i == j)) for j in range(b))
            warm = warm + 0.5 * (0.5 * reverse - 0.5 * torch.log(query[i, i]))
    same(one, one.strategy.step(enc, one.memories[0], None, None).total(), warm / b)


def test_released_gsc_is_the_slow_loop():
    one, enc, trust = batch("gsc", {"faithful": True})
    s, y, b = enc.sims, trust.chance(enc), len(enc.rows)
    image, text = enc.image @ enc.image.T, enc.text @ enc.text.T
    match = torch.stack([torch.stack([sum(y[k] ** 2 * image[i, k] * text[j, k] for k in range(b)) for j in range(b)])
                         for i in range(b)])  # fmt: skip
    p, q = posteriors(s, 0.07)
    total = s.new_zeros(())
    for i in range(b):
        total = total - y[i] * 0.5 * (torch.log(p[i, i]) + torch.log(q[i, i]))
        total = total - 0.01 * y[i] * torch.log(match[i].softmax(0)[i])
    same(one, one.strategy.step(enc, one.memories[0], trust, None).total(), total / b)
    seen = one.memories[0].columns["seen"][enc.rows]
    for i in range(b):
        cosine = sum(image[i, k] * text[i, k] for k in range(b)) / (image[i].norm() * text[i].norm())
        assert seen[i].item() == pytest.approx(cosine.item(), abs=1e-6)


def test_gsc_labels_are_the_smaller_moving_average():
    one = tiny_learner(load_strategy("gsc"))
    rng = np.random.default_rng(0)
    signals = {
        "structure": np.r_[rng.normal(0.9, 0.02, 40), rng.normal(0.2, 0.1, 20)],
        "posterior": rng.uniform(0, 1, 60),
    }
    for _ in range(2):
        trust = one.strategy.decide(signals, one.memories[0])
    predicted = 0.3 * (0.3 + 0.7 * signals["posterior"]) + 0.7 * signals["posterior"]
    structured = one.memories[0].columns["structured"].numpy()
    np.testing.assert_allclose(trust.p_clean, np.minimum(predicted, structured), atol=1e-6)
    assert structured[:40].min() > 0.9 and structured[40:].max() < 0.2 and trust.clean.all()


def test_released_sps_is_the_slow_loop():
    one, enc, trust = batch("sps", {"faithful": True})
    other = np.linspace(0.52, 1, 60)
    both = [trust, Trust(p_clean=other, clean=other > 0.5)]
    trust = one.strategy.agree(both)[0]
    s, w, b, own = enc.sims, trust.chance(enc), len(enc.rows), other[8:22]
    strict = [i for i in range(b) if w[i] > 0.6 and own[i] > 0.6]
    clean = [i for i in range(b) if w[i] > 0.5 and own[i] > 0.5]
    assert 2 < len(strict) < len(clean) < b
    near = (enc.image @ enc.image.T).detach()
    lent = [i if i in clean else max(strict, key=lambda j: float(near[i, j])) for i in range(b)]
    mixed = torch.stack([s[:, j] for j in lent], 1)
    p, q = posteriors(mixed, 0.07)
    total = s.new_zeros(())
    for i in range(b):
        opinion = float(p[i, i].detach() + q[i, i].detach()) / 2
        label = float(w[i]) + (1 - float(w[i])) * opinion if i in clean else opinion * float(near[i, lent[i]])
        label = 0.0 if i not in clean and label < 0.5 else label
        for query, row in ((p, mixed[i]), (q, mixed[:, i])):
            others = [max(float(row[j].detach()), 0.0) if j != i else 0.0 for j in range(b)]
            others = others if sum(others) else [float(j != i) for j in range(b)]
            for j in range(b):
                share = label if j == i else (1 - label) * others[j] / sum(others)
                total = total - share * torch.log(query[i, j])
    total = total / b
    for i in strict:
        for j in strict:
            gap = enc.image[i] @ enc.image[j] - enc.text[i] @ enc.text[j]
            total = total + 25 * ((s[i, j] - s[j, i]) ** 2 + gap**2) / len(strict) ** 2
    same(one, one.strategy.step(enc, one.memories[0], trust, None).total(), total)


def attend(x: Tensor, module: Any) -> Tensor:
    """The refined prototype of the neighbours x (k, d), entry by entry."""
    k, d = x.shape
    width = d // 4
    query, key, value = (
        torch.stack([layer.weight @ x[i] + layer.bias for i in range(k)])
        for layer in (module.query, module.key, module.value)
    )
    refined = []
    for i in range(k):
        mixed = []
        for h in range(4):
            part = slice(h * width, (h + 1) * width)
            share = torch.stack([query[i, part] @ key[j, part] / math.sqrt(width) for j in range(k)]).softmax(0)
            mixed.append(sum(share[j] * value[j, part] for j in range(k)))
        z = x[i] + module.out.weight @ torch.cat(mixed) + module.out.bias
        z = (z - z.mean()) / torch.sqrt(((z - z.mean()) ** 2).mean() + 1e-5)
        refined.append(z * module.norm.weight + module.norm.bias)
    mean = torch.stack(refined).mean(0)
    return mean / mean.norm()


@pytest.mark.parametrize("refine", [True, False])
def test_released_in2r_is_the_slow_loop(refine: bool):
    one, enc, trust = batch("in2r", {"faithful": True, "refine": refine})
    one.evidence(0)
    one.networks[0].eval()  # the refiner's dropout
    bank_image, bank_text = (one.memories[0].columns[side] for side in ("image", "text"))
    s, b = enc.sims, len(enc.rows)
    clean, noisy = (x.nonzero()[:, 0].tolist() for x in (trust.holds("clean", enc), ~trust.holds("clean", enc)))
    bank = np.flatnonzero(trust.sets["strict"]).tolist()
    total = s.new_zeros(())
    for i in clean:
        total = total + max(hinge(0.2 + s[i, j] - s[i, i]) for j in clean if j != i)
        total = total + max(hinge(0.2 + s[j, i] - s[i, i]) for j in clean if j != i)
    prototypes = []
    for i in noisy:
        nearest = sorted(bank, key=lambda j: -float(enc.image[i].detach() @ bank_image[j]))[:5]
        mean = bank_text[nearest].mean(0)
        prototypes.append(attend(bank_text[nearest], enc.modules["refiner"]) if refine else mean / mean.norm())
    inner = torch.stack([torch.stack([enc.image[i] @ prototype for prototype in prototypes]) for i in noisy])
    for query in posteriors(inner, 0.05):
        for i in range(len(noisy)):
            back = -sum(query[i, j] * math.log((i == j) + 1e-7) for j in range(len(noisy)))
            total = total + 0.25 * (back - torch.log(query[i, i]))
    same(one, one.strategy.step(enc, one.memories[0], trust, None).total(), total / b)


def test_the_refiner_learns_and_is_left_out_of_the_model():
    one = learner("in2r", train_set(60, wrong=20), options={"warm_up": 1, "noisy_from": 0.0, "refine": True}, epochs=4)
    before = {k: v.clone() for k, v in one.networks[0].heads["refiner"].state_dict().items()}
    fit(one)
    moved = [k for k, v in one.networks[0].heads["refiner"].state_dict().items() if not torch.equal(v, before[k])]
    assert {"out.weight", "value.weight", "norm.weight"} <= set(moved)
    assert all(".heads." in name for name in one.weights() if "refiner" in name)


def test_prototypes_are_unit_means_of_the_nearest_texts():
    one, enc, trust = batch("in2r", {"k": 4, "same_image": True, "refine": False})
    one.evidence(0)
    rows, bank = torch.arange(5), np.flatnonzero(trust.sets["strict"])
    image, text = (one.memories[0].columns[side].numpy() for side in ("image", "text"))
    found, some = one.strategy._prototypes(enc, rows, one.memories[0], trust)  # type: ignore[attr-defined]
    expected = neighbour_prototype(enc.image[rows].tolist(), image[bank].tolist(), text[bank].tolist(), 4)
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-9)
    assert some.all()


def test_released_osa_is_the_slow_loop():
    one, enc, _ = batch("osa", {"faithful": True, "column": "score_similarity", "offset": 0.2, "scale": 0.9})
    x = [min(max((float(value) - 0.2) / 0.9, 0.0), 1.0) for value in enc.columns["score_similarity"]]
    p, q = posteriors(enc.sims.masked_fill(~(enc.negatives | torch.eye(len(x), dtype=torch.bool)), -1e9),
                      enc.temperature)  # fmt: skip
    total = sum(-(v**2) * (1 - v**2) * 0.5 * (torch.log(p[i, i]) + torch.log(q[i, i])) for i, v in enumerate(x))
    same(one, one.strategy.step(enc, one.memories[0], None, None).total(), total / len(x))


# ---- frozen numbers


def frozen(name: str, options: dict[str, Any]) -> list[float]:
    """Total loss of pairs 5 to 20 of `tiny_learner`, seed 0: in the warm-up, and with what network 0 thinks of them."""
    one = tiny_learner(load_strategy(name, options))
    rows = torch.arange(5, 21)
    enc = one.look(0, rows)
    trust = one.strategy.decide(one.evidence(0), one.memories[0])
    one.networks[0].eval()  # no dropout in modules of its own
    return [one.strategy.step(enc, one.memories[0], some, None).total().item() for some in (None, trust)]


GOLDEN: dict[tuple[str, bool], list[float]] = {
    ("gsc", False): [6.58413236, 6.12007985],
    ("gsc", True): [6.60769428, 2.09572848],
    ("in2r", False): [10.7395914, 1.04029151],
    ("in2r", True): [11.6499418, 1.82979103],
    ("l2rm", False): [10.7395914, 1.85796676],
    ("l2rm", True): [11.8319081, 1.22664877],
    ("osa", False): [6.09846689, 6.09846689],
    ("osa", True): [1.06416384, 1.06416384],
    ("pc2", False): [6.6846457, 3.83520899],
    ("pc2", True): [-28.4784131, -24.2313322],
    ("sps", False): [6.5558104, 10.2404838],
    ("sps", True): [13.1634733, 12.6001023],
}


@pytest.mark.parametrize(("name", "faithful"), list(GOLDEN))
def test_golden_values(name: str, faithful: bool):
    """Made by `frozen(name, {"faithful": faithful})` when the loops above had passed."""
    assert frozen(name, {"faithful": faithful}) == pytest.approx(GOLDEN[name, faithful], rel=1e-5)


# ---- PC2's parts


def ready(**options: Any) -> tuple[Learner, np.ndarray]:
    """PC2 on 240 pairs, 80 of them wrong."""
    _, _, wrong = features(240, wrong=80)
    given = {"classes": 8, "noisy_from": 0, "warm_up": 1, **options}
    return learner("pc2", train_set(240, wrong=80), options=given, epochs=5, batch_size=60, hidden=32, lr=5e-3), wrong


def test_pc2_uses_its_classes_where_the_released_code_uses_few():
    used = {}
    for faithful in (False, True):
        one, _ = ready(faithful=faithful)
        fit(one)
        used[faithful] = one.cursor.history[-1]["classes_in_use_0"]
    assert used[False] >= 6 and used[False] > used[True]


def test_oscillation_without_information_is_told_and_left_out():
    one, _ = ready()
    fit(one)
    probe = one.memories[0].columns["probe"]
    known = probe >= 0
    assert known.sum() == 24 and (probe[known].sort().values == known.nonzero()[:, 0]).all()
    signals = one.evidence(0)
    base = one.strategy.decide({**signals, "loss_oscillation": np.zeros(240)}, one.memories[0])
    assert base.note and "no better than chance" in base.note and base.facts["oscillation_auc"] == 0.5
    drift = np.random.default_rng(0).uniform(0, 0.1, 240) + known.numpy()
    trust = one.strategy.decide({**signals, "loss_oscillation": drift}, one.memories[0])
    assert trust.facts["oscillation_auc"] == 1 and "oscillation" not in (trust.note or "")
    assert (trust.p_clean >= base.p_clean).all() and (trust.p_clean > base.p_clean).any()
    assert (trust.clean == base.clean).all()


def test_borrowed_texts_that_are_no_nearer_than_random_ones_are_told_and_left_out():
    one, _ = ready()
    signals = one.evidence(0)
    trust = one.strategy.decide({**signals, "partner_fit": np.full(240, 0.5)}, one.memories[0])
    assert trust.note and "borrow none" in trust.note and not trust.sets["strict"].any()
    trust = one.strategy.decide({**signals, "partner_fit": np.full(240, 0.9)}, one.memories[0])
    assert (trust.sets["noisy"] == ~trust.clean).all() and (trust.sets["strict"] == trust.clean).all()
    off, _ = ready(borrow=False)
    assert not off.strategy.decide(off.evidence(0), off.memories[0]).sets["strict"].any()
    fit(off)
    assert (off.memories[0].columns["partner"] == -1).all()


def test_texts_are_borrowed_from_clean_pairs_of_other_pictures_alone():
    one, _ = ready(near=0.5)
    fit(one)
    partner = one.memories[0].columns["partner"].numpy()
    some = partner >= 0
    assert some.any() and (partner[some] != np.flatnonzero(some)).all()
    labels = np.arange(240) % 3
    purity, chance = partner_purity(partner, labels, labels)
    assert purity == pytest.approx((labels[partner[some]] == labels[some]).mean()) and 0.3 < chance < 0.37
    assert all(math.isnan(x) for x in partner_purity(np.full(240, -1), labels, labels))


def test_duplicate_borrowed_texts_are_no_negatives():
    one, enc, _ = batch("pc2", {})
    partner = torch.arange(14)
    partner[[2, 5]] = 7
    allowed = one.strategy._negatives(enc, torch.arange(14), partner)  # type: ignore[attr-defined]
    for i, j in ((2, 5), (2, 7), (5, 7)):
        assert not allowed[i, j] and not allowed[j, i]
    groups, texts = enc.image_group.tolist(), [int(enc.text_group[partner[i]]) for i in range(14)]
    for i in range(14):
        for j in range(14):
            assert bool(allowed[i, j]) == (groups[i] != groups[j] and texts[i] != texts[j])


def test_noisy_pairs_join_at_their_share_of_the_epochs():
    one, _ = ready(noisy_from=0.5)
    trust = Trust(p_clean=np.ones(240), clean=np.arange(240) < 100, sets={"noisy": np.arange(240) >= 100})
    one.trusts = [trust, trust]
    for epoch, pairs in ((2, 100), (3, 240)):  # of 5
        one.cursor.epoch = epoch
        assert sum(map(len, plan_epoch(one, 0)[0])) == pairs
