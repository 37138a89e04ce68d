"""Test-time adaptation: a classifier that learns from the stream it is asked about, with a brake and a way back.

    adapt = TestTime(model, logits, choice)             # logits(model, images) -> (b, c)
    for images in stream:
        p = adapt(images)                               # answers first, then learns from the batch

Only scales and shifts of normalisation layers learn (CoTTA: all that has a gradient). Entropy alone pulls everything to
one class, so its loss has a term for the entropy of the mean answer, and a guard returns to the source when answers
become one-sided or leave the source. Both assume a stream that is not sorted by class.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

NORMS = (nn.LayerNorm, nn.BatchNorm1d, nn.BatchNorm2d, nn.GroupNorm)
LEAST = {"lr": 0, "diversity": 0, "temperature": 1e-6, "grid": 1, "window": 1, "reset_every": 0}


@dataclass(frozen=True, kw_only=True)
class Adapt:
    """How a classifier adapts to a stream.

    Attributes:
        method: tent (entropy), deyo (entropy of what is sure, and changes when its parts are shuffled), ostta (entropy
            of what became surer than the source was), cotta (towards a slow teacher), or none.
        lr: Of SGD with momentum 0.9 (cotta: Adam).
        diversity: Weight of the entropy of the mean answer, >= 0; 0 invites collapse.
        temperature: Logits are divided by it before the loss only, > 0; CLIP's scale of 100 makes entropies flat.
        entropy_below: deyo keeps rows below this share of ln c.
        plpd_above: deyo keeps rows whose confidence falls by more than this when patches are shuffled.
        grid: Patches along each side that are shuffled.
        teacher: cotta's moving average, in [0, 1).
        restore: cotta's chance that a weight goes back to the source after each step, in [0, 1].
        guard: Return to the source when the guard finds a collapse.
        window: Predictions of each class that the guard looks back on, on average.
        one_sided: The guard's least entropy of predicted classes, as a share of the source's.
        agreement: The guard's least share of predictions that equal the source's.
        reset_every: Batches after which everything goes back to the source; 0 = never.
        seed: Of shuffles and restores.

    Raises:
        ValueError: If a value is out of its range.
    """

    method: Literal["none", "tent", "deyo", "ostta", "cotta"] = "tent"
    lr: float = 1e-3
    diversity: float = 1.0
    temperature: float = 1.0
    entropy_below: float = 0.5
    plpd_above: float = 0.2
    grid: int = 4
    teacher: float = 0.999
    restore: float = 0.01
    guard: bool = True
    window: int = 20
    one_sided: float = 0.9
    agreement: float = 0.5
    reset_every: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.method not in ("none", "tent", "deyo", "ostta", "cotta"):
            raise ValueError(f"method is {self.method!r}, expected none, tent, deyo, ostta or cotta")
        for name, least in LEAST.items():
            if not getattr(self, name) >= least:
                raise ValueError(f"{name} is {getattr(self, name)}, expected at least {least}")
        for name in ("teacher", "restore", "one_sided", "agreement"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is {getattr(self, name)}, expected in [0, 1]")


def entropies(logits: Float[Tensor, "b c"]) -> Float[Tensor, " b"]:
    """- sum_c p_c ln p_c of each row, p = softmax(logits); in [0, ln c], higher = less sure."""
    log_p = logits.log_softmax(1)
    return -(log_p.exp() * log_p).sum(1)


def mean_entropy(logits: Float[Tensor, "b c"]) -> Float[Tensor, ""]:
    """Entropy of the mean answer of a batch, in [0, ln c]; low = all rows go to few classes."""
    mean = logits.softmax(1).mean(0)
    return -torch.special.xlogy(mean, mean).sum()


def shuffle_patches(
    images: Float[Tensor, "b k h w"], grid: int, generator: torch.Generator
) -> Float[Tensor, "b k h w"]:
    """The images cut into grid x grid patches that change places, each image in its own way.

    Rows and columns that do not fill a patch stay where they are.
    """
    b, k, h, w = images.shape
    high, wide = h // grid, w // grid
    if not high or not wide:
        raise ValueError(f"images of {h} x {w} cannot be cut into {grid} x {grid} patches")
    out = images.clone()
    part = images[:, :, : high * grid, : wide * grid].reshape(b, k, grid, high, grid, wide)
    flat = part.permute(0, 2, 4, 1, 3, 5).reshape(b, grid * grid, k, high, wide)
    order = torch.stack([torch.randperm(grid * grid, generator=generator) for _ in range(b)]).to(images.device)
    mixed = flat[torch.arange(b, device=images.device)[:, None], order].reshape(b, grid, grid, k, high, wide)
    out[:, :, : high * grid, : wide * grid] = mixed.permute(0, 3, 1, 4, 2, 5).reshape(b, k, high * grid, wide * grid)
    return out


def plpd(logits: Float[Tensor, "b c"], shuffled: Float[Tensor, "b c"]) -> Float[Tensor, " b"]:
    """Pseudo-label probability difference: how much the confidence in the answer falls without the shape.

        p_y(x) - p_y(x'),      y = argmax p(x)

    Returns:
        In [-1, 1]; higher = the answer hangs on where things are, not on textures and colours.

    Source: DeYO (Lee et al., ICLR 2024).
    """
    answer = logits.argmax(1, keepdim=True)
    return (logits.softmax(1).gather(1, answer) - shuffled.softmax(1).gather(1, answer))[:, 0]


def deyo_weights(entropy: Float[Tensor, " b"], difference: Float[Tensor, " b"], classes: int, *, entropy_below: float,
                 plpd_above: float) -> Float[Tensor, " b"]:  # fmt: skip
    """exp(-(H_i - 0.4 ln c)) + exp(PLPD_i) where H_i < entropy_below ln c and PLPD_i > plpd_above, else 0.

    Source: DeYO, as released. Differs: ln c of the data, where the release has ln 1000 in one branch.
    """
    keep = (entropy < entropy_below * math.log(classes)) & (difference > plpd_above)
    weight = torch.exp(-(entropy - 0.4 * math.log(classes))) + torch.exp(difference)
    return torch.where(keep, weight, torch.zeros_like(weight)).detach()


def surer_than_source(adapted: Float[Tensor, "b c"], source: Float[Tensor, "b c"]) -> Bool[Tensor, " b"]:
    """Rows whose confidence in the source's answer did not fall: those that belong to known classes, mostly.

    Source: open-set test-time adaptation by the wisdom of crowds (Lee et al., ICCV 2023), as re-implemented by others.
    """
    answer = source.argmax(1, keepdim=True)
    return (adapted.softmax(1).gather(1, answer) >= source.softmax(1).gather(1, answer))[:, 0]


@torch.no_grad()
def restore_some(parameters: list[Tensor], source: list[Tensor], chance: float, generator: torch.Generator) -> int:
    """Put each number back to the source with this chance, in place; how many went back.

    Source: CoTTA (Wang et al., CVPR 2022), stochastic restoration.
    """
    count = 0
    for now, before in zip(parameters, source):
        back = (torch.rand(now.shape, generator=generator) < chance).to(now.device)
        now.copy_(torch.where(back, before, now))
        count += int(back.sum())
    return count


class TestTime:
    """A classifier and its stream.

    Args:
        model: Changed in place; `reset` brings it back bit by bit. Put it into evaluation mode first.
        logits: From the model and a batch of images to (b, c).
        choice: How it adapts.
    """

    __test__ = False  # pytest takes the name for a test

    def __init__(self, model: nn.Module, logits: Callable[[nn.Module, Tensor], Tensor], choice: Adapt) -> None:
        self.model, self.logits, self.choice = model, logits, choice
        model.requires_grad_(False)
        self.learned = self._parameters()
        if choice.method != "none" and not self.learned:
            raise ValueError("the model has no normalisation layer with scales and shifts to adapt")
        self.start = {name: value.detach().clone() for name, value in model.state_dict().items()}
        self.source = [value.detach().clone() for value in self.learned]
        self.teacher = [value.detach().clone() for value in self.learned]
        self.generator = torch.Generator().manual_seed(choice.seed)
        self.optimizer = self._optimizer()
        self.recent: deque[tuple[int, int]] = deque()
        self.batches, self.resets = 0, 0

    def __call__(self, images: Float[Tensor, "b k h w"]) -> Float[Tensor, "b c"]:
        """Probabilities of the batch by the model as it was before it learned from it (cotta: by the teacher)."""
        self.batches += 1
        with torch.no_grad():
            source = self._with(self.source, images)
            answer = (
                self._with(self.teacher, images) if self.choice.method == "cotta" else self.logits(self.model, images)
            )
        if self.choice.method != "none":
            self._learn(images, source, answer)
            self._watch(answer.argmax(1), source.argmax(1), answer.shape[1])
        return answer.softmax(1)

    def reset(self) -> None:
        """Everything as it was at the start, bit by bit."""
        self.model.load_state_dict(self.start)
        for slow, value in zip(self.teacher, self.source):
            slow.copy_(value)
        self.optimizer = self._optimizer()
        self.recent.clear()

    def _parameters(self) -> list[nn.Parameter]:
        modules = [one for one in self.model.modules() if self.choice.method == "cotta" or isinstance(one, NORMS)]
        found = [value for one in modules for value in one.parameters(recurse=False) if value.is_floating_point()]
        for value in found:
            value.requires_grad_(True)
        return found

    def _optimizer(self) -> Any:
        if not self.learned:
            return None
        if self.choice.method == "cotta":
            return torch.optim.Adam(self.learned, lr=self.choice.lr)
        return torch.optim.SGD(self.learned, lr=self.choice.lr, momentum=0.9)

    def _with(self, values: list[Tensor], images: Tensor) -> Tensor:
        """Logits with other values of what learns."""
        now = [value.detach().clone() for value in self.learned]
        with torch.no_grad():
            for place, value in zip(self.learned, values):
                place.copy_(value)
            out = self.logits(self.model, images)
            for place, value in zip(self.learned, now):
                place.copy_(value)
        return out

    def _learn(self, images: Tensor, source: Tensor, answer: Tensor) -> None:
        loss = self._loss(images, self.logits(self.model, images) / self.choice.temperature, source, answer)
        if loss is None or not torch.isfinite(loss):
            return
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        if self.choice.method == "cotta":
            with torch.no_grad():
                for slow, value in zip(self.teacher, self.learned):
                    slow.mul_(self.choice.teacher).add_(value, alpha=1 - self.choice.teacher)
            restore_some(list(self.learned), self.source, self.choice.restore, self.generator)

    def _loss(self, images: Tensor, logits: Tensor, source: Tensor, answer: Tensor) -> Tensor | None:
        """None where no row is kept."""
        choice, entropy = self.choice, entropies(logits)
        if choice.method == "cotta":
            return -((answer / choice.temperature).softmax(1) * logits.log_softmax(1)).sum(1).mean()
        weight = torch.ones_like(entropy)
        if choice.method == "ostta":
            weight = surer_than_source(logits.detach(), source / choice.temperature).to(entropy)
        elif choice.method == "deyo":
            with torch.no_grad():
                mixed = (
                    self.logits(self.model, shuffle_patches(images, choice.grid, self.generator)) / choice.temperature
                )
            weight = deyo_weights(entropy.detach(), plpd(logits.detach(), mixed), logits.shape[1],
                                  entropy_below=choice.entropy_below, plpd_above=choice.plpd_above)  # fmt: skip
        kept = weight > 0
        if not kept.any():
            return None
        return (weight * entropy)[kept].mean() - choice.diversity * mean_entropy(logits[kept])

    def _watch(self, answer: Int[Tensor, " b"], source: Int[Tensor, " b"], classes: int) -> None:
        """Back to the source on a collapse, or when it is time."""
        self.recent.extend(zip(answer.tolist(), source.tolist()))
        while len(self.recent) > self.choice.window * classes:
            self.recent.popleft()
        due = self.choice.reset_every and self.batches % self.choice.reset_every == 0
        full = len(self.recent) == self.choice.window * classes
        if due or (self.choice.guard and full and collapsed(list(self.recent), self.choice)):
            self.resets += 1
            self.reset()


def collapsed(recent: list[tuple[int, int]], choice: Adapt) -> bool:
    """True if the answers are much more one-sided than the source's, or mostly others than the source's."""
    now, before = (_spread([pair[side] for pair in recent]) for side in (0, 1))
    agree = sum(one == two for one, two in recent) / len(recent)
    return now < choice.one_sided * before or agree < choice.agreement


def _spread(answers: list[int]) -> float:
    share = torch.bincount(torch.tensor(answers)).double() / len(answers)
    return float(-torch.special.xlogy(share, share).sum())
