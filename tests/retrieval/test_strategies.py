"""Every built-in method keeps the contract, and the check finds those that do not."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from learning import learner, train_set
from torch import Tensor, nn

from noisycorr import Loss, Strategy, Trust, check_strategy
from noisycorr.models.losses import info_nce
from noisycorr.models.training.contract import Encoded
from noisycorr.models.training.loop import fit
from noisycorr.models.training.memory import Memory
from noisycorr.retrieval.strategies import BUILT_IN, describe, find_strategy, load_strategy
from noisycorr.runtime.errors import UsageError

VARIANTS: list[tuple[str, dict[str, object]]] = [
    *((name, {}) for name in BUILT_IN),
    ("plain", {"peer": "twin"}),
    ("plain", {"loss": "siglip"}),
    ("plain", {"loss": "triplet"}),
    ("coteach", {"split": "bmm", "weighted": True, "peer": "none", "warm_up": 0}),
    ("weighted", {"column": "sample_weight", "power": 2.0, "floor": 0.3}),
]


@pytest.mark.parametrize(("name", "options"), VARIANTS)
def test_built_in_methods_keep_the_contract(name: str, options: dict[str, object]):
    check_strategy(load_strategy(name, options))


# ---- methods that break it


def loss_of(enc: Encoded) -> Tensor:
    return info_nce(enc.sims, temperature=enc.temperature, negatives=enc.negatives)


@dataclass(frozen=True, kw_only=True)
class Broadcasts(Strategy):
    def step(self, enc: Encoded, memory: Memory, trust: Trust | None, peer: Encoded | None) -> Loss:
        return Loss(per_pair=(loss_of(enc)[:, None] * torch.arange(len(enc.rows))).mean(0))


@dataclass(frozen=True, kw_only=True)
class Shapeless(Strategy):
    def step(self, enc: Encoded, memory: Memory, trust: Trust | None, peer: Encoded | None) -> Loss:
        return Loss(per_pair=loss_of(enc)[:, None])


@dataclass(frozen=True, kw_only=True)
class Peeks(Strategy):
    def step(self, enc: Encoded, memory: Memory, trust: Trust | None, peer: Encoded | None) -> Loss:
        weight = enc.columns.get("truth_wrong")
        return Loss(per_pair=loss_of(enc) * (1.0 if weight is None else weight))


@dataclass(frozen=True, kw_only=True)
class Scribbles(Strategy):
    def memory(self, n: int) -> Memory:
        return Memory(n, seen=torch.zeros(n))

    def step(self, enc: Encoded, memory: Memory, trust: Trust | None, peer: Encoded | None) -> Loss:
        memory.columns["seen"] += 1
        return Loss(per_pair=loss_of(enc))


@dataclass(frozen=True, kw_only=True)
class Random(Strategy):
    def step(self, enc: Encoded, memory: Memory, trust: Trust | None, peer: Encoded | None) -> Loss:
        return Loss(per_pair=loss_of(enc), extras={"noise": np.random.default_rng().normal() * enc.sims.mean()})


@dataclass(frozen=True, kw_only=True)
class Detached(Strategy):
    def step(self, enc: Encoded, memory: Memory, trust: Trust | None, peer: Encoded | None) -> Loss:
        return Loss(per_pair=loss_of(enc).detach() + 0 * loss_of(enc))


@dataclass(frozen=True, kw_only=True)
class Infinite(Strategy):
    def step(self, enc: Encoded, memory: Memory, trust: Trust | None, peer: Encoded | None) -> Loss:
        return Loss(per_pair=loss_of(enc) / 0)


@dataclass(frozen=True, kw_only=True)
class Overconfident(Strategy):
    judges = True

    def decide(self, signals: Mapping[str, np.ndarray], memory: Memory) -> Trust:
        return Trust(p_clean=signals["similarity"] * 3, clean=np.ones(memory.n, bool))

    def step(self, enc: Encoded, memory: Memory, trust: Trust | None, peer: Encoded | None) -> Loss:
        return Loss(per_pair=loss_of(enc))


BROKEN = [
    (Broadcasts, "does not follow a permutation"),
    (Shapeless, "per_pair has shape"),
    (Peeks, "asked for the hidden column 'truth_wrong'"),
    (Scribbles, "wrote rows of memory column 'seen'"),
    (Random, "two equal trainings differ"),
    (Detached, "every gradient is 0"),
    (Infinite, "per_pair is not finite"),
    (Overconfident, "must lie in"),
]


@pytest.mark.parametrize(("kind", "said"), BROKEN)
def test_the_check_finds_what_is_wrong(kind: type[Strategy], said: str):
    with pytest.raises((AssertionError, ValueError), match=said):
        check_strategy(kind())


# ---- a method of one's own


MINE = """
from dataclasses import dataclass
from torch import nn
from noisycorr import Loss, Strategy
from noisycorr.models.losses import info_nce

@dataclass(frozen=True, kw_only=True)
class Mine(Strategy):
    gain: float = 2.0

    def step(self, enc, memory, trust, peer):
        return Loss(per_pair=self.gain * info_nce(enc.sims, temperature=enc.temperature, negatives=enc.negatives))

class NoData(Strategy):
    pass

class Other:
    pass
"""


def test_a_method_of_ones_own_is_one_file(tmp_path: Path):
    path = tmp_path / "mine.py"
    path.write_text(MINE)
    one = load_strategy(f"{path}:Mine", {"gain": 3.0})
    check_strategy(one, processes=True)
    facts = describe("x", one)
    assert facts["gain"] == 3.0 and facts["class"] == "Mine"
    path.write_text(MINE.replace("self.gain *", "2 * self.gain *"))
    two = load_strategy(f"{path}:Mine", {"gain": 3.0})
    assert describe("x", two)["source"] != facts["source"], "another text is another method"


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("nothing", {}, "is not known: use one of"),
        ("plain", {"warmth": 1}, "has no option 'warmth'; it has bias, calm, loss"),
        ("plain", {"loss": "none"}, "loss is 'none', expected one of gce"),
        ("coteach", {"split": "cut"}, "refused its options: split is 'cut'"),
        ("weighted", {"power": -1.0}, "expected at least 0"),
        ("./nowhere.py:Mine", {}, "nowhere.py does not exist"),
        ("nowhere.module:Mine", {}, "cannot be imported"),
        ("FILE:Other", {}, "no class Other that inherits"),
        ("FILE:Absent", {}, "no class Absent"),
        ("FILE:NoData", {}, "must be a dataclass"),
        ("BAD:Mine", {}, "failed: ZeroDivisionError"),
    ],
)
def test_wrong_names_and_options_are_told(name: str, options: dict[str, object], said: str, tmp_path: Path):
    (tmp_path / "mine.py").write_text(MINE)
    (tmp_path / "bad.py").write_text("1 / 0\n")
    name = name.replace("FILE", str(tmp_path / "mine.py")).replace("BAD", str(tmp_path / "bad.py"))
    with pytest.raises(UsageError, match=said):
        load_strategy(name, options)


# ---- single methods


def test_weights_of_the_ledger_count():
    n = 40
    weight = np.where(np.arange(n) < 20, 1.0, 0.0).astype(np.float32)
    one = learner("weighted", train_set(n, p_clean=weight))
    loss = one.strategy.step(one.look(0, torch.arange(10, 30)), one.memories[0], None, None).per_pair
    plain = learner("plain", train_set(n)).strategy.step(one.look(0, torch.arange(10, 30)), one.memories[0], None, None)
    assert (loss[10:] == 0).all()
    torch.testing.assert_close(loss[:10], 2 * plain.per_pair[:10])
    with pytest.raises(UsageError, match="has p_clean: run"):
        fit(learner("weighted", train_set(n, p_clean=weight), options={"column": "other"}))


def test_modules_of_a_method_are_trained_along():
    @dataclass(frozen=True, kw_only=True)
    class Classes(Strategy):
        def heads(self, dim: int) -> dict[str, nn.Module]:
            return {"classes": nn.Linear(dim, 5)}

        def step(self, enc: Encoded, memory: Memory, trust: Trust | None, peer: Encoded | None) -> Loss:
            image, text = enc.aux["classes"]
            assert image.shape == text.shape == (len(enc.rows), 5)
            return Loss(per_pair=loss_of(enc), extras={"classes": (image - text).square().mean()})

    check_strategy(Classes())
    one = learner(Classes())
    before = one.snapshot()
    fit(one)
    assert not torch.equal(before["0.heads.classes.weight"], one.weights()["0.heads.classes.weight"])


def test_every_method_is_in_the_paper_index():
    import noisycorr.retrieval.strategies as package

    text = (Path(package.__file__).parent / "README.md").read_text(encoding="utf-8")
    for name in BUILT_IN:
        assert f"| `{name}` |" in text, name
        assert "Source:" in (find_strategy(name).__doc__ or ""), name
        assert (Path(package.__file__).parents[3] / "configs" / "retrieval" / f"{name}.yaml").is_file(), name
