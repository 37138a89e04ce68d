"""Adaptation to a stream: each formula by hand, the way back, the brake, and a tiny CLIP."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from tiny_checkpoints import write_clip
from torch import Tensor, nn
from torch.nn import functional

from noisycorr.learn.test_time import (
    Adapt,
    TestTime,
    collapsed,
    deyo_weights,
    entropies,
    mean_entropy,
    plpd,
    restore_some,
    shuffle_patches,
    surer_than_source,
)


def seeded(number: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(number)


def test_entropies_against_loops_with_gradient():
    logits = torch.randn(5, 4, generator=seeded(), dtype=torch.float64, requires_grad=True)
    slow = []
    for row in logits:
        parts = [math.e**value for value in row]
        p = [part / sum(parts) for part in parts]
        slow.append(-sum(x * torch.log(x) for x in p))
    assert torch.allclose(entropies(logits), torch.stack(slow))
    one, two = (torch.autograd.grad(x.sum(), logits)[0] for x in (entropies(logits), torch.stack(slow)))
    assert torch.allclose(one, two)
    mean = logits.detach().softmax(1).mean(0)
    assert mean_entropy(logits.detach()).item() == pytest.approx(-sum(float(p) * math.log(p) for p in mean))
    assert mean_entropy(torch.tensor([[1e9, 0.0], [1e9, 0.0]])).item() == 0


def test_plpd_and_the_rows_that_deyo_keeps():
    p, q = torch.tensor([[0.7, 0.3], [0.4, 0.6]]), torch.tensor([[0.2, 0.8], [0.5, 0.5]])
    difference = plpd(p.log(), q.log())
    assert difference.tolist() == pytest.approx([0.5, 0.1])
    entropy = torch.tensor([0.1, 0.1])
    weight = deyo_weights(entropy, difference, 2, entropy_below=0.5, plpd_above=0.2)
    assert weight.tolist() == pytest.approx([math.exp(-(0.1 - 0.4 * math.log(2))) + math.exp(0.5), 0])
    assert (
        deyo_weights(torch.tensor([0.5 * math.log(2)] * 2), difference, 2, entropy_below=0.5, plpd_above=0).sum() == 0
    )


def test_surer_than_source_asks_for_the_source_s_answer():
    source = torch.tensor([[0.6, 0.4], [0.6, 0.4], [0.6, 0.4]]).log()
    adapted = torch.tensor([[0.7, 0.3], [0.5, 0.5], [0.1, 0.9]]).log()
    assert surer_than_source(adapted, source).tolist() == [True, False, False]


def test_patches_change_places_and_nothing_is_lost():
    images = torch.arange(2 * 3 * 9 * 8, dtype=torch.float32).reshape(2, 3, 9, 8)
    mixed = shuffle_patches(images, 4, seeded())
    assert torch.equal(mixed[:, :, 8:], images[:, :, 8:])  # the ninth row fills no patch
    assert torch.equal(mixed.flatten(1).sort(1).values, images.flatten(1).sort(1).values)
    patches = {
        tuple(images[0, :, i : i + 2, j : j + 2].flatten().tolist()) for i in range(0, 8, 2) for j in range(0, 8, 2)
    }
    found = {
        tuple(mixed[0, :, i : i + 2, j : j + 2].flatten().tolist()) for i in range(0, 8, 2) for j in range(0, 8, 2)
    }
    assert patches == found and not torch.equal(mixed, images)
    assert torch.equal(shuffle_patches(images, 1, seeded()), images)
    with pytest.raises(ValueError, match="cannot be cut"):
        shuffle_patches(images, 20, seeded())


def test_restore():
    source, now = [torch.zeros(4000)], [torch.ones(4000)]
    assert restore_some(now, source, 0.0, seeded()) == 0 and now[0].sum() == 4000
    back = restore_some(now, source, 0.25, seeded())
    assert back == 4000 - now[0].sum() and 800 < back < 1200
    restore_some(now, source, 1.0, seeded())
    assert torch.equal(now[0], source[0])


class Blobs(nn.Module):
    """A normalisation and a linear layer on pictures of 4 x 4."""

    def __init__(self, classes: int = 4) -> None:
        super().__init__()
        self.norm, self.head = nn.LayerNorm(16), nn.Linear(16, classes, bias=False)
        with torch.no_grad():
            self.head.weight.copy_(3 * functional.normalize(torch.randn(classes, 16, generator=seeded(1)), dim=1))

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.norm(images.flatten(1)))


def stream(batches: int = 40, batch: int = 16, shift: float = 1.6) -> list[tuple[Tensor, Tensor]]:
    """Pictures of four kinds, with a shift that the source does not know."""
    generator, model = seeded(2), Blobs()
    push = torch.randn(16, generator=generator)
    out = []
    for _ in range(batches):
        label = torch.randint(4, (batch,), generator=generator)
        x = model.head.weight[label].detach() + torch.randn(batch, 16, generator=generator) + shift * push
        out.append((x.reshape(batch, 1, 4, 4), label))
    return out


def run(choice: Adapt) -> tuple[float, TestTime, Blobs]:
    model = Blobs().eval()
    adapt = TestTime(model, lambda net, x: net(x), choice)
    right = [float((adapt(x).argmax(1) == y).float().mean()) for x, y in stream()]
    return sum(right) / len(right), adapt, model


@pytest.mark.parametrize("method", ["tent", "deyo", "ostta", "cotta"])
def test_reset_brings_the_source_back_bit_by_bit(method: str):
    model = Blobs().eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    adapt = TestTime(model, lambda net, x: net(x), Adapt(method=method, lr=0.05, plpd_above=-1, guard=False, restore=0))
    first, *others = stream(6)
    source = model(first[0]).softmax(1)
    assert torch.equal(adapt(first[0]), source)  # it answers before it learns
    for x, _ in others:
        adapt(x)
    changed = [name for name, value in model.state_dict().items() if not torch.equal(value, before[name])]
    assert changed and (method == "cotta" or all(name.startswith("norm") for name in changed))
    adapt.reset()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(model(first[0]).softmax(1), source)


def test_adapting_with_diversity_helps_and_without_it_the_guard_fires():
    source, _, _ = run(Adapt(method="none"))
    good, adapt, _ = run(Adapt(lr=0.02))
    bad, _, _ = run(Adapt(lr=1.0, diversity=0, guard=False))
    held, guarded, _ = run(Adapt(lr=1.0, diversity=0, window=10))
    assert good > source + 0.05 and adapt.resets == 0
    assert bad < source - 0.02 and guarded.resets > 0 and held > bad


def test_cotta_with_everything_restored_is_the_source():
    model = Blobs().eval()
    adapt = TestTime(
        model, lambda net, x: net(x), Adapt(method="cotta", lr=0.05, restore=1.0, teacher=1.0, guard=False)
    )
    for x, _ in stream(4):
        assert torch.equal(adapt(x), Blobs()(x).softmax(1))


def test_periodic_reset_and_batches_that_keep_nobody():
    _, adapt, _ = run(Adapt(reset_every=10))
    assert adapt.resets == 4
    _, _, model = run(Adapt(method="deyo", plpd_above=1.0))  # nothing can fall by more than 1
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), Blobs().state_dict().values()))


def test_collapse_signals():
    choice = Adapt()
    even = [(one % 4, one % 4) for one in range(80)]
    assert not collapsed(even, choice)
    assert collapsed([(0, two) for _, two in even], choice)
    assert collapsed([((one + 1) % 4, one) for one, _ in even], choice)  # evenly wrong: agreement tells


def test_on_a_clip_of_transformers(tmp_path: Path):
    model = write_clip(tmp_path / "clip").eval()
    text = functional.normalize(torch.randn(5, 24, generator=seeded(3)), dim=1)

    def logits(net: nn.Module, images: Tensor) -> Tensor:
        found = net.get_image_features(pixel_values=images)  # type: ignore[operator]
        features = getattr(found, "pooler_output", found)
        return 10 * functional.normalize(features, dim=1) @ text.T

    images = torch.randn(6, 3, 32, 32, generator=seeded(4))
    source = logits(model, images).softmax(1).detach()
    adapt = TestTime(model, logits, Adapt(method="deyo", lr=0.01, plpd_above=-1, entropy_below=2, grid=2, guard=False))
    assert torch.equal(adapt(images), source)
    second = adapt(images)
    assert not torch.equal(second, source) and torch.isfinite(second).all()
    moved = [name for name, value in model.state_dict().items() if not torch.equal(value, adapt.start[name])]
    assert moved and all("norm" in name for name in moved)
    adapt.reset()
    assert torch.equal(logits(model, images).softmax(1), source)


def test_choices_out_of_range():
    for wrong in ({"method": "magic"}, {"lr": -1.0}, {"restore": 2.0}, {"temperature": 0.0}):
        with pytest.raises(ValueError):
            Adapt(**wrong)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="no normalisation"):
        TestTime(nn.Linear(2, 2), lambda net, x: net(x), Adapt())
