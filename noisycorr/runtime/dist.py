"""The only file that knows about processes and devices: everything else asks here.

`accelerate launch`, `torchrun` or a plain start all work; the rank and world size come from Accelerate, which is loaded
when it is first asked, because that takes seconds.
"""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    import torch
    from accelerate import PartialState
    from torch import Tensor

Item = TypeVar("Item")
_LAUNCHED = ("WORLD_SIZE", "LOCAL_RANK", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")


def state() -> PartialState:
    """Rank, world size and device of this process."""
    import torch
    from accelerate import PartialState

    # Without being told so, PartialState takes each process of a group without an accelerator for a group of its own.
    asked = os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true", "yes", "on")
    return PartialState(cpu=asked or (_is_launched() and not (torch.cuda.is_available() or torch.xpu.is_available())))


def my_share(items: Sequence[Item]) -> list[Item]:
    """The items that this process works on: every world-size-th, starting at its rank."""
    here = state()
    return list(items[here.process_index :: here.num_processes])


def device() -> torch.device:
    """Where models of this process live."""
    return state().device


def is_main() -> bool:
    """True in the process that writes what exists once."""
    if not _is_launched():
        return True
    return bool(state().is_main_process)


def wait() -> None:
    """Return when every process has come here."""
    if _is_launched():
        state().wait_for_everyone()


def leave() -> None:
    """Leave the group of processes, at the end of the program."""
    if _is_launched():
        state().destroy_process_group()


def count() -> int:
    """Number of processes."""
    return int(state().num_processes) if _is_launched() else 1


def rank() -> int:
    """Number of this process, from 0."""
    return int(state().process_index) if _is_launched() else 0


def my_slice(size: int) -> slice:
    """The rows of a global batch of `size` rows that this process encodes: contiguous, and together all of them."""
    sizes = _sizes(size)
    start = sum(sizes[: rank()])
    return slice(start, start + sizes[rank()])


def gather_with_gradient(local: Tensor, size: int) -> Tensor:
    """The global batch from everybody's `my_slice`, with a gradient that is right after `average_gradients`.

    Every process goes on with the same rows to the same loss, so its gradient on the gathered rows is that of the
    whole. The part that belongs to its own rows goes back, times the number of processes, because the average over
    them divides by it. Parameters that are used after gathering have the same gradient everywhere, which the average
    leaves as it is. A backward that only sliced would give the same loss and half the gradient with two processes.

    Args:
        local: (b_local, ...) rows of `my_slice(size)`.
        size: b, rows of the global batch.

    Returns:
        (b, ...) the same on every process.
    """
    if count() == 1:
        return local
    return _gather_function().apply(local, size)


def total_with_gradient(local: Tensor) -> Tensor:
    """Sum of everybody's tensor, for statistics of the global batch before its rows are gathered.

    Every process uses the sum for its own rows only, so the gradients of all are summed, too; together with
    `gather_with_gradient` and `average_gradients` that is the gradient of one process.
    """
    if count() == 1:
        return local
    return _total_function().apply(local)


def gather(local: Tensor, size: int) -> Tensor:
    """The global batch from everybody's `my_slice`, without gradient."""
    if count() == 1:
        return local.detach()
    import torch

    sizes = _sizes(size)
    padded = local.new_zeros((max(sizes), *local.shape[1:]))
    padded[: len(local)] = local.detach()
    parts = [torch.empty_like(padded) for _ in sizes]
    torch.distributed.all_gather(parts, padded)
    return torch.cat([part[:length] for part, length in zip(parts, sizes)])


def average_gradients(parameters: Iterable[Tensor]) -> None:
    """Mean of the gradients over all processes, in place. A parameter without one anywhere stays without one."""
    if count() == 1:
        return
    import torch

    parameters = list(parameters)
    # A process whose slice was empty has none, and the others wait for it; asked once for all parameters.
    has = torch.tensor([float(parameter.grad is not None) for parameter in parameters], device=device())
    torch.distributed.all_reduce(has)
    for parameter, known in zip(parameters, has.tolist()):
        if known:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            torch.distributed.all_reduce(parameter.grad)
            parameter.grad /= count()


@contextlib.contextmanager
def autocast(precision: str) -> Iterator[None]:
    """Matrix products in bf16 or fp16 where the precision asks for it."""
    import torch

    half = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision)
    with torch.autocast(device().type, dtype=half or torch.bfloat16, enabled=half is not None):
        yield


def grad_scaler(precision: str) -> Any:
    """Scales losses in fp16, whose small gradients would vanish; does nothing in any other precision.

    Every process looks for overflows after `average_gradients`, in the same gradients, so all skip the same steps. The
    scale begins lower than is usual, so that short trainings do not lose their first steps.
    """
    import torch

    return torch.amp.GradScaler(device().type, init_scale=1024.0, enabled=precision == "fp16")


def find_trackers(asked: str) -> list[str]:
    """Names of Accelerate's trackers, each once.

    Args:
        asked: none, all for those that are installed, or names with commas between them.

    Raises:
        ValueError: If one is not known or not installed.
    """
    names = list(dict.fromkeys(name.strip() for name in asked.split(",") if name.strip()))
    if names in ([], ["none"]):
        return []
    from accelerate import tracking
    from accelerate.utils import LoggerType

    built_in = [name for name in map(str, LoggerType.list()) if name != "all"]
    known = list(map(str, tracking.LOGGER_TYPE_TO_CLASS))
    installed = [*map(str, tracking.get_available_trackers()), *(name for name in known if name not in built_in)]
    have = f"installed: {', '.join(installed) or 'none'}"
    for name in names:
        if name != "all" and name not in known:
            raise ValueError(f"{name!r} is no tracker; expected none, all, or some of {', '.join(known)}.")
        if name not in installed and not (name == "all" and installed):
            missing = "all finds no tracker" if name == "all" else f"{name} is not installed"
            raise ValueError(f"{missing}: install its package, or use none ({have}).")
    return installed if "all" in names else names


@contextlib.contextmanager
def tracking(names: Sequence[str], folder: Path, config: Mapping[str, Any]) -> Iterator[Callable[..., None]]:
    """Open trackers in the main process, and close them at the end, whatever happens.

    Args:
        names: As `find_trackers` gives them.
        folder: For trackers that write files.
        config: Settings to store: numbers, words, and None.

    Yields:
        A function of numbers by name, and the step that they belong to.
    """
    opened: list[Any] = []
    try:
        if names and is_main():
            from accelerate.tracking import LOGGER_TYPE_TO_CLASS

            state()  # trackers ask for it
            for kind in (LOGGER_TYPE_TO_CLASS[name] for name in names):
                if kind.requires_logging_directory:
                    folder.mkdir(parents=True, exist_ok=True)
                tracker = kind("noisycorr", *([str(folder)] if kind.requires_logging_directory else []))
                if hasattr(tracker, "start"):  # before it was there, trackers started when they were made
                    tracker.start()
                opened.append(tracker)
                tracker.store_init_configuration(dict(config))

        def log(values: Mapping[str, float], step: int) -> None:
            for tracker in opened:
                tracker.log(dict(values), step=step)

        yield log
    finally:
        for tracker in opened:
            tracker.finish()


@functools.cache
def _gather_function() -> Any:
    """Made when it is first needed, because torch is."""
    from torch.autograd import Function

    class Gather(Function):
        """Forward: all rows. Backward: own rows, times the number of processes."""

        @staticmethod
        def forward(ctx: Any, local: Tensor, size: int) -> Tensor:
            ctx.rows = my_slice(size)
            return gather(local, size)

        @staticmethod
        def backward(ctx: Any, gradient: Tensor) -> Any:
            return gradient[ctx.rows] * count(), None

    return Gather


@functools.cache
def _total_function() -> Any:
    """Made when it is first needed, because torch is."""
    import torch
    from torch.autograd import Function

    class Total(Function):
        """Forward and backward: the sum over processes."""

        @staticmethod
        def forward(ctx: Any, local: Tensor) -> Tensor:
            total = local.detach().clone()
            torch.distributed.all_reduce(total)
            return total

        @staticmethod
        def backward(ctx: Any, gradient: Tensor) -> Any:
            total = gradient.contiguous().clone()
            torch.distributed.all_reduce(total)
            return total

    return Total


def _sizes(size: int) -> list[int]:
    base, more = divmod(size, count())
    return [base + (number < more) for number in range(count())]


def _is_launched() -> bool:
    return any(name in os.environ for name in _LAUNCHED)
