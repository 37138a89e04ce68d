"""SGR, SAF and GPO against slow loops: values and gradients, padding, chunks, running statistics, two processes."""

from __future__ import annotations

import copy
from typing import Literal

import pytest
import torch
from reference.region_reference import pool, saf_text, sgr
from torch import Tensor, nn

from noisycorr.retrieval.regions import GlobalNorm
from noisycorr.retrieval.settoset import OrderedPooling, SetSimilarity, unit

A, B, R, T, D, W = 4, 5, 6, 7, 8, 6
LENGTHS = [3, 7, 1, 5, 2]


def sets(seed: int = 0, more: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Images, texts padded by zeros, and mask, in double precision."""
    generator = torch.Generator().manual_seed(seed)
    image = unit(torch.randn(A, 1 + R, D, generator=generator, dtype=torch.float64))
    text = unit(torch.randn(B, 1 + T, D, generator=generator, dtype=torch.float64))
    mask = torch.arange(T + more) < torch.tensor(LENGTHS)[:, None]
    text = torch.cat([text, torch.zeros(B, more, D, dtype=torch.float64)], 1)
    text[:, 1:] *= mask[..., None]
    return image, text, mask


def similarity(kind: Literal["sgr", "saf"], *, chunk: int = 8) -> SetSimilarity:
    """With fixed random weights, biases among them."""
    torch.manual_seed(1)
    module = SetSimilarity(kind, D, width=W, chunk=chunk).double()
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.5)
    return module


def gradients(module: nn.Module, value: Tensor, *inputs: Tensor) -> list[Tensor]:
    """With respect to weights and inputs."""
    return list(torch.autograd.grad(value, [*module.parameters(), *inputs]))


def weighted(sims: Tensor) -> Tensor:
    """A number that depends on every entry differently."""
    return (sims * torch.arange(1, sims.numel() + 1, dtype=sims.dtype).view_as(sims).sin()).sum()


@pytest.mark.parametrize("chunk", [1, 2, 8])
@pytest.mark.parametrize("more", [0, 4])
def test_sgr_is_the_loop_over_images_and_texts(chunk: int, more: int):
    module = similarity("sgr", chunk=chunk)
    image, text, mask = sets(more=more)
    image.requires_grad_()
    text.requires_grad_()
    found = module(image, text, mask)
    expected = torch.stack([torch.stack([sgr(module, image[n], text[k, : 1 + LENGTHS[k]]) for k in range(B)])
                            for n in range(A)])  # fmt: skip
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    one, two = (gradients(module, weighted(x), image, text) for x in (found, expected))
    for mine, theirs in zip(one, two, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-10)


@pytest.mark.parametrize("chunk", [1, 2, 8])
@pytest.mark.parametrize("training", [True, False])
def test_saf_is_the_loop_over_texts(chunk: int, training: bool):
    module = similarity("saf", chunk=chunk)
    module.norm.running_mean.fill_(0.3)  # type: ignore[union-attr]
    module.norm.running_var.fill_(1.7)  # type: ignore[union-attr]
    module.train(training)
    norm = copy.deepcopy(module.norm)
    norm.weight, norm.bias = module.norm.weight, module.norm.bias
    image, text, mask = sets(more=3)
    image.requires_grad_()
    text.requires_grad_()
    found = module(image, text, mask)
    columns = [torch.stack(saf_text(module, list(image), text[k, : 1 + LENGTHS[k]], norm)) for k in range(B)]
    expected = torch.stack(columns, 1)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    one, two = (gradients(module, weighted(x), image, text) for x in (found, expected))
    for mine, theirs in zip(one, two, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-10)
    torch.testing.assert_close(module.norm.running_mean, norm.running_mean, rtol=0, atol=1e-12)
    torch.testing.assert_close(module.norm.running_var, norm.running_var, rtol=0, atol=1e-12)


def test_similarities_are_the_same_without_gradient():
    for kind in ("sgr", "saf"):
        module = similarity(kind).eval()  # type: ignore[arg-type]
        with torch.no_grad():
            apart = module(*sets())
        torch.testing.assert_close(module(*sets()), apart, rtol=0, atol=1e-14)
        assert ((apart > 0) & (apart < 1)).all()


def test_pooling_is_the_loop_over_sets():
    torch.manual_seed(0)
    module = OrderedPooling(8).double()
    x = torch.randn(B, T, D, dtype=torch.float64, requires_grad=True)
    mask = torch.arange(T) < torch.tensor(LENGTHS)[:, None]
    found = module(x, mask)
    expected = torch.stack([pool(module, x[k, :length]) for k, length in enumerate(LENGTHS)])
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    one, two = (gradients(module, weighted(value), x) for value in (found, expected))
    for mine, theirs in zip(one, two, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-10)


def test_unit_rows_of_zeros_have_a_finite_gradient():
    x = torch.zeros(2, 3, requires_grad=True)
    unit(x).sum().backward()
    assert torch.isfinite(x.grad).all()  # type: ignore[arg-type]


@pytest.mark.parametrize("shape", [(5, 4), (5, 4, 3)])
def test_the_global_norm_is_batch_norm_on_one_process(shape: tuple[int, ...]):
    torch.manual_seed(0)
    mine, theirs = GlobalNorm(4).double(), nn.BatchNorm1d(4).double()
    for _ in range(3):
        x = torch.randn(shape, dtype=torch.float64) * 2 + 1
        torch.testing.assert_close(mine(x), theirs(x), rtol=0, atol=1e-12)
    torch.testing.assert_close(mine.running_var, theirs.running_var, rtol=0, atol=1e-12)
    torch.testing.assert_close(mine.eval()(x), theirs.eval()(x), rtol=0, atol=1e-12)
