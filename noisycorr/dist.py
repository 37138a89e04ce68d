"""The only file that knows about processes and devices: everything else asks here.

`accelerate launch`, `torchrun` or a plain start all work; the rank and world size come from Accelerate, which is loaded
when it is first asked, because that takes seconds.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    import torch
    from accelerate import PartialState

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


def _is_launched() -> bool:
    return any(name in os.environ for name in _LAUNCHED)
