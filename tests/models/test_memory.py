"""What a strategy remembers: rows are written alone, files give back every bit, differences are told."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from noisycorr.models.training.memory import Memory


def some() -> Memory:
    return Memory(4, score=torch.tensor([0.1, float("nan"), 0.3, 0.4], dtype=torch.float64),
                  bank=torch.arange(8.0).reshape(4, 2), seen=torch.tensor([True, False, True, False]))  # fmt: skip


def test_rows_are_written_alone():
    memory = some()
    memory.write("bank", torch.tensor([2, 0]), torch.tensor([[9.0, 8.0], [7.0, 6.0]], requires_grad=True))
    assert memory.columns["bank"].tolist() == [[7, 6], [2, 3], [9, 8], [6, 7]]
    assert not memory.columns["bank"].requires_grad
    assert memory.read("bank", torch.tensor([2])).tolist() == [[9, 8]]
    copy = memory.read("score", torch.tensor([0]))
    copy += 1
    assert memory.columns["score"][0] == 0.1


@pytest.mark.parametrize("values", [torch.zeros(2), torch.zeros(2, 1), torch.zeros(1, 2), torch.zeros(3, 2)])
def test_nothing_broadcasts(values: torch.Tensor):
    with pytest.raises(ValueError, match="have shape"):
        some().write("bank", torch.tensor([0, 1]), values)


def test_wrong_columns_are_refused():
    with pytest.raises(ValueError, match="expected 4 rows"):
        Memory(4, short=torch.zeros(3))
    with pytest.raises(ValueError, match="already"):
        some().add("bank", torch.zeros(4))
    with pytest.raises(KeyError, match="has no column 'bnk'"):
        some().read("bnk", torch.tensor([0]))


def test_files_give_back_every_bit(tmp_path: Path):
    memory = some()
    memory.save(tmp_path / "memory.safetensors")
    assert Memory.load(tmp_path / "memory.safetensors", 4).differences(memory) == []
    with pytest.raises(ValueError, match="expected 5 rows"):
        Memory.load(tmp_path / "memory.safetensors", 5)


def test_differences_are_told():
    one, two = some(), some()
    two.write("seen", torch.tensor([1]), torch.tensor([True]))
    two.columns["score"] = two.columns["score"].float()
    two.add("more", torch.zeros(4))
    told = one.differences(two)
    assert [line.split(":")[0] for line in told] == ["more", "score", "seen"]
    assert "1 rows differ" in told[2] and "float64" in told[1]
    clone = one.clone()
    clone.write("bank", torch.tensor([0]), torch.ones(1, 2))
    assert one.columns["bank"][0].tolist() == [0, 1]


def test_a_stored_memory_of_other_columns_is_refused():
    one = some()
    with pytest.raises(ValueError, match="but the strategy needs"):
        one.restore({"a.score": torch.zeros(4)}, "a.")
    two = some()
    two.write("bank", torch.tensor([3]), torch.zeros(1, 2))
    one.restore(two.tensors("a."), "a.")
    assert one.differences(two) == []
